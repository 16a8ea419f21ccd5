"""A dictionary is a function of each state by itself: foreign code is tried on a few rows."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from koopjax._core import expected, is_tracing

ROWS = 5
# What rounding may do in the narrowest format where a batch of one is computed another way, and
# where the same program runs on other neighbours; relative to the largest value.
ALONE, AMONG = 3e-2, 1e-6


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
            rest = np.arange(ROWS) != ROWS // 2
            if _differ(together, alone, ALONE) or _differ(together[rest], changed[rest], AMONG):
                return True
    return False


def _differ(a: Array, b: Array, share: float) -> bool:
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    finite = np.isfinite(x) & np.isfinite(y)
    largest = np.abs(x[finite]).max(initial=0)
    return not np.allclose(x, y, rtol=0, atol=share * largest, equal_nan=True)
