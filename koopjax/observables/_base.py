"""What every dictionary shares: promotion of the input, one jitted call, names and errors."""

import abc
import functools
import math
from collections.abc import Sequence
from typing import Any, ClassVar

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

ROWS = 5
# What rounding may do in the narrowest format where a batch of one is computed another way, and
# where the same program runs on other neighbours; relative to the largest value.
ALONE, AMONG = 3e-2, 1e-6


class Observables(abc.ABC):
    """A dictionary of observables `psi`: a pytree that maps `(n, d)` to `(n, p)`.

    A dictionary of one's own is a class decorated with `koopjax.observables.pytree` that derives
    from this one and defines `_evaluate` and `size`, and `names` or the `prefix` of all names.
    """

    prefix: ClassVar[str] = "psi"

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

    def names(self, d: int, inputs: Sequence[str] | None = None) -> list[str]:
        """A readable name for each observable, in the order of the columns.

        Args:
            d: number of coordinates.
            inputs: `d` names for the coordinates; `x0`, `x1`, ... if left out.
        """
        input_names(d, inputs)
        return [f"{self.prefix}{k}" for k in range(self.size(d))]

    @abc.abstractmethod
    def _evaluate(self, x: Float[Array, "n d"]) -> Float[Array, "n p"]:
        """The columns for a batch of at least single precision; traced under jit."""

    def _columns(self, x: Float[Array, "n d"], indices: Array) -> Float[Array, "n m"]:
        """Only the columns that are asked for (indices may be traced, within range)."""
        return jnp.take(self._evaluate(x), indices, axis=1)


@functools.partial(jax.jit, inline=True)
def _evaluate(psi: Observables, x: Array) -> Array:
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    # At least single precision, double where the dictionary was fitted so.
    double = x.dtype == np.float64 or is_wide(psi)
    wide = rows.astype(np.float64 if double else promoted(x.dtype, jnp.float32))
    require_rowwise(psi, evaluate, wide)
    out = psi._evaluate(wide)
    return out.astype(x.dtype).reshape(*x.shape[:-1], out.shape[-1])


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


def check_rows(name: str, x: Any) -> None:
    """Raise unless numbers have two axes and a row at least, finite where that is seen."""
    if x.ndim != 2:
        raise expected(f"{name} of shape (n, d)", f"shape {x.shape}", "one row a sample")
    if x.shape[0] == 0:
        raise expected(f"at least 1 samples in {name}", "an empty batch")
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


def require_rowwise(psi: Any, evaluate: Any, x: Array) -> None:
    """Raise if a dictionary that holds foreign code gives a state another value in a batch.

    Each state of two small batches is evaluated alone, and next to a changed neighbour. Parameters
    have stand-ins, so that it works while tracing, and once for each function and shape.

    Args:
        psi: a pytree.
        evaluate: `evaluate(psi, rows)`, hashable.
        x: `(n, d)`, for its width and dtype; may be traced.
    """
    if x.shape[1] == 0 or not any(map(_is_foreign, jax.tree.leaves(psi, is_leaf=_is_foreign))):
        return
    leaves, structure = jax.tree.flatten(psi)
    shapes = tuple((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)
    if any(jnp.issubdtype(kind, jax.dtypes.extended) for _, kind in shapes):
        return  # a random key has no stand-in
    if _mixes_rows(structure, shapes, evaluate, x.shape[1], jnp.dtype(x.dtype)):
        raise expected(
            "a dictionary that gives each state its own observables",
            "one that gives a state other values in a batch than alone",
            "a function of one state (d,), with statistics of the data fitted beforehand, as in "
            "Standardize.fit",
        )


def _is_foreign(node: Any) -> bool:
    """Code that is not koopjax's own: a function, a network, a class of the user's."""
    own = type(node).__module__.partition(".")[0] == "koopjax"
    return getattr(node, "foreign", False) or (callable(node) and not own)


@functools.lru_cache(maxsize=256)
def _mixes_rows(structure: Any, shapes: Any, evaluate: Any, d: int, dtype: Any) -> bool:
    rng = np.random.default_rng(0)

    def stand_in(shape: tuple[int, ...], kind: Any) -> Array:
        floating = jnp.issubdtype(kind, jnp.inexact)
        return jnp.asarray(rng.uniform(0.1, 1, shape) if floating else np.zeros(shape), kind)

    @jax.jit
    def both(psi: Any, rows: Array) -> tuple[Array, Array]:
        alone = jax.lax.map(lambda row: evaluate(psi, row[None])[0], rows)
        return evaluate(psi, rows), alone

    with jax.ensure_compile_time_eval():
        psi = jax.tree.unflatten(structure, [stand_in(*shape) for shape in shapes])
        # Of both signs, and positive for functions that are defined there alone.
        for batch in (rng.normal(size=(ROWS, d)), rng.uniform(0.1, 1, (ROWS, d))):
            other = batch.copy()
            other[ROWS // 2] = 1 + 2 * np.abs(batch).max()
            together, alone = both(psi, jnp.asarray(batch, dtype))
            changed, _ = both(psi, jnp.asarray(other, dtype))
            if is_tracing(together, alone, changed):
                return False  # it closes over what is being traced
            seen = (together, alone, changed)
            together, alone, changed = (np.asarray(a, np.float64) for a in seen)
            rest = np.arange(ROWS) != ROWS // 2
            if _differ(together, alone, ALONE) or _differ(together[rest], changed[rest], AMONG):
                return True
    return False


def _differ(x: np.ndarray, y: np.ndarray, share: float) -> bool:
    finite = np.isfinite(x) & np.isfinite(y)
    largest = np.abs(x[finite]).max(initial=0)
    return not np.allclose(x, y, rtol=0, atol=share * largest, equal_nan=True)
