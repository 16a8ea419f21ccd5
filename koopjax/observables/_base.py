"""What every dictionary shares: promotion of the input, one jitted call, names and errors."""

import abc
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from koopjax._core import (
    as_numbers,
    as_states,
    as_whole,
    check_finite,
    expected,
    has_x64,
    held_leaves,
    is_tracing,
    is_wide,
    leave,
    precise_for,
    promoted,
    read,
)
from koopjax.observables._rowwise import require_rowwise


class Observables(abc.ABC):
    """A dictionary of observables `psi`: a pytree that maps `(n, d)` to `(n, p)`.

    A dictionary of one's own is a class decorated with `koopjax.observables.pytree` that derives
    from this one and defines `_evaluate`, `size` and `names`.
    """

    def __call__(self, x: Any) -> Float[Array, "*rows p"]:
        """Evaluate all observables.

        Args:
            x: `(..., d)` states, a row each; `(d,)` for a single state. Integers become floats.

        Returns:
            `(..., p)` in the dtype of `x`, where NumPy's float64 stands for JAX's default. Half
            precision is computed in float32 and rounded once.

        Numerics:
            One jitted call, cached by the static settings and the shapes. Float64 numbers whose
            spread float32 would lose, or that meet a dictionary fitted to such, are computed in
            float64, and come back in it: as NumPy outside x64.
        """
        x = as_states("the states", x, self)
        if x.ndim == 0:
            raise expected(
                "states of shape (n, d) or (d,)", "a scalar", "x[None] for one coordinate"
            )
        with precise_for(x, self):
            psi = held_leaves(self)
            psi.size(x.shape[-1])
            out = _evaluate(psi, jnp.asarray(x))
        return leave(out)

    @abc.abstractmethod
    def size(self, d: int) -> int:
        """Number of observables on `d` coordinates; allocates nothing and checks `d`."""

    @abc.abstractmethod
    def names(self, d: int, inputs: Sequence[str] | None = None) -> list[str]:
        """A readable name for each observable, in the order of the columns.

        Args:
            d: number of coordinates.
            inputs: `d` names for the coordinates; `x0`, `x1`, ... if left out.
        """

    @abc.abstractmethod
    def _evaluate(self, x: Float[Array, "n d"]) -> Float[Array, "n p"]:
        """The columns for a batch of at least single precision; traced under jit."""

    def _columns(self, x: Float[Array, "n d"], indices: Array) -> Float[Array, "n m"]:
        """Only the columns that are asked for (indices may be traced, within range)."""
        return jnp.take(self._evaluate(x), indices, axis=1)


def _working(psi: Any, dtype: Any) -> Any:
    """The dtype a dictionary is computed in: at least single, double where it was fitted so."""
    wide = dtype == np.float64 or is_wide(psi)
    return np.dtype(np.float64) if wide else promoted(dtype, jnp.float32)


@functools.partial(jax.jit, inline=True)
def _evaluate(psi: Observables, x: Array) -> Array:
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    wide = rows.astype(_working(psi, x.dtype))
    require_rowwise(psi, _of_rows, wide)
    out = psi._evaluate(wide)
    return out.astype(x.dtype).reshape(*x.shape[:-1], out.shape[-1])


def _of_rows(psi: Observables, x: Array) -> Array:
    return psi._evaluate(x)


def evaluate(psi: Any, x: Array) -> Array:
    """A part's columns inside another dictionary; any callable with `size` may be a part."""
    if isinstance(psi, Observables):
        return psi._evaluate(x)
    return jnp.asarray(psi(x), x.dtype)


def like(leaf: Any, x: Array) -> Array:
    """A leaf in the dtype of the computation."""
    leaf = leaf if isinstance(leaf, jax.Array | float) else read("a dictionary", leaf)
    if jnp.iscomplexobj(leaf):
        raise expected("real numbers in a dictionary", "complex ones")
    return jnp.asarray(leaf, x.dtype)


def require_dimension(name: str, d: int, dimension: int) -> None:
    """Raise if a dictionary fitted to `dimension` coordinates meets `d` of them."""
    if d != dimension:
        raise expected(
            f"inputs with {dimension} coordinates for {name}",
            f"{d}",
            "the states that it was fitted on",
        )


def require_axes(name: str, leaf: Any, axes: int) -> tuple[int, ...]:
    """The shape of a dictionary's array; raises unless it has so many axes."""
    shape = jnp.shape(leaf) if hasattr(leaf, "shape") else np.shape(read(name, leaf))
    if len(shape) != axes:
        raise expected(f"{name} with {axes} axes", f"shape {shape}")
    return shape


def input_names(d: int, inputs: Sequence[str] | None) -> list[str]:
    """The coordinates' names, `x0`, `x1`, ... by default."""
    d = as_whole("d", d, 0)
    if inputs is None:
        return [f"x{i}" for i in range(d)]
    if isinstance(inputs, str) or not isinstance(inputs, Sequence) or len(inputs) != d:
        raise expected(f"{d} input names", f"{inputs!r:.60}", "one name a coordinate")
    return [str(name) for name in inputs]


def atom(name: str) -> str:
    """The name in brackets where it is itself a product, power or sum."""
    return f"({name})" if any(sign in name for sign in "*^+ ") else name


def check_rows(name: str, x: Any, least: int = 1) -> None:
    """Raise unless numbers have two axes and at least `least` rows, finite where that is seen."""
    if x.ndim != 2:
        raise expected(f"{name} of shape (n, d)", f"shape {x.shape}", "one row a sample")
    if x.shape[0] < least:
        got = "an empty batch" if x.shape[0] == 0 else f"{x.shape[0]} samples"
        raise expected(f"at least {least} samples in {name}", got)
    check_finite(name, x)


def data_rows(name: str, x: Any) -> Any:
    """Data for a fit, checked; as `as_states` gives them, perhaps in float64 outside x64."""
    x = as_states(name, x)
    check_rows(name, x)
    return x


def near_rows(name: str, x: Any) -> Array:
    """As `data_rows`, for fits in single precision, which need data near the origin."""
    x = data_rows(name, x)
    if x.dtype == np.float64 and not has_x64():
        raise expected(
            f"{name} whose spread float32 holds",
            "float64 numbers far from the origin",
            "a fit to Standardize.fit(x)(x), and Compose of both",
        )
    return x


def positive(bandwidth: Any) -> Array:
    """A bandwidth that was checked, where it can be looked at."""
    bandwidth = as_numbers("the bandwidth", bandwidth)
    if not is_tracing(bandwidth) and not np.all(np.asarray(bandwidth) > 0):
        raise expected("a positive bandwidth", f"{bandwidth}")
    return bandwidth
