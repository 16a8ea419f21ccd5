"""Compilations are remembered by the function; this notices when the function has changed since."""

import contextlib
import itertools
from collections.abc import Callable, Hashable
from typing import Any

import jax
import numpy as np

from koopjax._core._arrays import is_tracing
from koopjax._core._fingerprint import fingerprint

_MOST = 256  # what is remembered keeps its function alive, and the arrays it closes over

#: Settings of JAX that change what is traced, each with what sets it for a while.
_SETTINGS: dict[str, Callable[[Any], Any]] = {
    "jax_enable_x64": jax.enable_x64,
    "jax_default_matmul_precision": jax.default_matmul_precision,
    "jax_numpy_dtype_promotion": jax.numpy_dtype_promotion,
    "jax_numpy_rank_promotion": jax.numpy_rank_promotion,
}


def trace_context() -> tuple[Any, ...]:
    """The settings of JAX that change what is traced."""
    return tuple(getattr(jax.config, name) for name in _SETTINGS)


class _Watch:
    """The last trace of a function, and a number for what it computes."""

    def __init__(self) -> None:
        self.version = next(_NUMBERS)
        self.text = ""
        self.again: Callable[[], str] | None = None

    def look(self) -> int:
        if self.again is not None and self.again() != self.text:
            self.version, self.again = next(_NUMBERS), None
        return self.version


_NUMBERS = itertools.count()
_WATCHED: dict[Hashable, _Watch] = {}


def version(key: Hashable) -> int:
    """A number that stays as long as what was noted under a key computes the same.

    A function may close over a number, a list, an array or a module that changes, and neither
    Python nor JAX tells. It is traced again as it was traced last (no compilation), and if the
    operations or the numbers in them differ, the number is a new one. As a part of a static
    argument it makes JAX compile again just then.

    Args:
        key: what the function's compilations are found by.
    """
    if key not in _WATCHED:
        if len(_WATCHED) >= _MOST:
            _WATCHED.pop(next(iter(_WATCHED)))
        _WATCHED[key] = _Watch()
    return _WATCHED[key].look()


def changed(key: Hashable, number: int) -> bool:
    """Whether a function is known to compute something else than when it had this version."""
    return key in _WATCHED and version(key) != number


def note(key: Hashable, function: Callable[..., Any], *arguments: Any, closed: Any = None) -> None:
    """Note, while a function is being traced, what it computes; `version` compares with it.

    Args:
        key: as for `version`.
        function, arguments: the call; only shapes and dtypes of the arrays are kept.
        closed: its jaxpr, where it is known already.
    """
    watch = _WATCHED.get(key)
    shapes = jax.tree.map(_shape_of, arguments)
    if watch is None:
        return

    def trace() -> Any:
        # A function of its own each time, or JAX would remember the trace.
        with jax.disable_jit(False):  # else two traces of one function could differ
            return jax.make_jaxpr(lambda *values: function(*values))(*shapes)

    closed = trace() if closed is None else closed
    if is_tracing(closed.consts):  # what closes over traced arrays must not outlive their trace
        return
    context = trace_context()

    def again() -> str:
        with contextlib.ExitStack() as stack:
            for name, value in zip(_SETTINGS, context, strict=True):
                stack.enter_context(_SETTINGS[name](value))
            try:
                return fingerprint(trace())
            except Exception as error:
                # It can't be what it was; the call that follows raises the same by itself.
                return type(error).__name__

    watch.text, watch.again = fingerprint(closed), again


def _shape_of(leaf: Any) -> Any:
    if not isinstance(leaf, jax.Array | np.ndarray | jax.ShapeDtypeStruct):
        return leaf
    aval = leaf if isinstance(leaf, jax.ShapeDtypeStruct) else jax.typeof(leaf)
    weak = bool(getattr(aval, "weak_type", False))
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=weak)
