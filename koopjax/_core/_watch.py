"""What a traced function computes, as a text; and a note of it, to see when it has changed.

Compilations are remembered by the function, which may close over what changes.
"""

import contextlib
import hashlib
import itertools
import pathlib
import re
import weakref
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from koopjax._core._arrays import is_tracing

#: Calls with a derivative rule of their own, whose parameters hold the rule as a function.
_RULES = ("custom_jvp_call", "custom_vjp_call")

#: Where JAX's own rules are, such as that of `jax.nn.relu`: they close over nothing that changes.
_OF_JAX = str(pathlib.Path(jax.__file__).parent)


def fingerprint(closed: Any, *, anonymous: bool = False) -> str:
    """A hash of the operations of a closed jaxpr and of the numbers in it.

    Two traces of one function agree as long as nothing that it closes over has changed: numbers,
    globals, attributes, arrays changed in place, and what its own derivative rules close over.
    `anonymous` leaves out memory addresses, so that the text is the same in every process.
    """
    reader = _Reader(anonymous)
    reader.read(closed)
    return reader.hash.hexdigest()


class _Reader:
    def __init__(self, anonymous: bool):
        self.hash = hashlib.blake2b(digest_size=16)
        self._anonymous = anonymous
        self._inside_rule = False

    def _write(self, *texts: Any) -> None:
        for text in texts:
            self.hash.update(f"{text}\0".encode())

    def read(self, value: Any) -> None:
        """Take in a jaxpr, an array, or any other parameter of an equation."""
        if isinstance(value, jex.ClosedJaxpr):
            for constant in value.consts:
                self.read(constant)
            self._jaxpr(value.jaxpr)
        elif isinstance(value, jex.Jaxpr):
            self._jaxpr(value)
        elif isinstance(value, tuple | list):
            self._write(len(value))
            for entry in value:
                self.read(entry)
        elif isinstance(value, dict):
            self.read(sorted(value.items(), key=repr))
        elif isinstance(value, Tracer):
            self._write(value.aval)
        elif hasattr(value, "dtype") and hasattr(value, "shape"):
            self._write(digest(value))
        else:
            text = repr(value)
            self._write(re.sub(r" at 0x[0-9a-f]+|\bid=\d+", "", text) if self._anonymous else text)

    def _jaxpr(self, jaxpr: Any) -> None:
        numbers: dict[Any, int] = {}

        def define(variables: Sequence[Any]) -> None:
            for variable in variables:
                numbers[variable] = len(numbers)
                aval = variable.aval
                self._write(aval, getattr(aval, "weak_type", ""))

        def use(atoms: Sequence[Any]) -> None:
            for atom in atoms:
                if isinstance(atom, jex.Literal):
                    self._write(atom.aval)
                    self.read(atom.val)
                else:
                    self._write(numbers[atom])

        define([*jaxpr.constvars, *jaxpr.invars])
        for equation in jaxpr.eqns:
            name = equation.primitive.name
            self._write(name)
            use(equation.invars)
            for key, value in sorted(equation.params.items()):
                if name not in _RULES or not callable(value):
                    self._write(key)
                    self.read(getattr(value, "rule", value))  # a mapping rule is wrapped anew
            if name in _RULES and not self._inside_rule:
                self._rule(jaxpr, equation)
            define(equation.outvars)
        use(jaxpr.outvars)

    def _rule(self, source: Any, equation: Any) -> None:
        """Take in what a derivative rule computes; rules inside it are left alone."""
        inner = equation.params["call_jaxpr"].jaxpr
        if str(inner.debug_info.func_filename).startswith(_OF_JAX):
            return
        self._inside_rule = True
        try:
            self.read(_differentiated(source, equation))
        except Exception as error:
            # A rule is of the user: what it raises here it raises whenever a derivative is asked
            # for, which is not this call's business.
            self._write(type(error).__name__)
        self._inside_rule = False


def _differentiated(source: Any, equation: Any) -> Any:
    """The jaxpr of a call's own rule, forward or backward."""
    floating = [jnp.issubdtype(a.aval.dtype, jnp.inexact) for a in equation.invars]
    operands = [jax.ShapeDtypeStruct(a.aval.shape, a.aval.dtype) for a in equation.invars]
    outputs = [v.aval for v in equation.outvars if jnp.issubdtype(v.aval.dtype, jnp.inexact)]

    def call(values: Sequence[Any]) -> tuple[Any, list[Any]]:
        """The call as a function of its floating operands, and these."""

        def of(*chosen: Any) -> list[Any]:
            given = iter(chosen)
            full = [next(given) if f else v for f, v in zip(floating, values, strict=True)]
            results = run_equation(source, equation, full)
            return [out for out in results if jnp.issubdtype(out.dtype, jnp.inexact)]

        return of, [v for f, v in zip(floating, values, strict=True) if f]

    if equation.primitive.name == "custom_jvp_call":
        forward = lambda values, tangents: jax.jvp(*call(values), tangents)
        return jax.make_jaxpr(forward)(operands, call(operands)[1])

    def backward(values: Sequence[Any], cotangents: Sequence[Any]) -> Any:
        of, chosen = call(values)
        return jax.vjp(of, *chosen)[1](cotangents)

    cotangents = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in outputs]
    return jax.make_jaxpr(backward)(operands, cotangents)


def run_equation(source: Any, equation: Any, operands: Sequence[Any]) -> list[Any]:
    """The results of one equation of a jaxpr `source`, with its own derivative rule."""
    inputs = [jex.Var(atom.aval) for atom in equation.invars]
    jaxpr = source.replace(
        constvars=(),
        invars=inputs,
        outvars=equation.outvars,
        eqns=[equation.replace(invars=inputs)],
        effects=equation.effects,
    )
    return jex.jaxpr_as_fun(jex.ClosedJaxpr(jaxpr, ()))(*operands)


_DIGESTS: dict[int, tuple[Any, str]] = {}


def digest(array: Any) -> str:
    """A hash of an array's dtype, shape and numbers; of a `jax.Array` it is found once."""
    held, found = _DIGESTS.get(id(array), (None, ""))
    if held is not None and held() is array:
        return found
    content = array
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        content = jax.random.key_data(array)
    content = np.ascontiguousarray(content)
    made = hashlib.blake2b(f"{array.dtype}{array.shape}".encode(), digest_size=16)
    made.update(content.tobytes())
    found = made.hexdigest()
    if isinstance(array, jax.Array):  # immutable; an array of NumPy may change in place
        key = id(array)
        _DIGESTS[key] = weakref.ref(array, lambda _: _DIGESTS.pop(key, None)), found
    return found


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

    Of the arguments only shapes and dtypes are kept; `closed` is its jaxpr, where it is known.
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
