"""Where float64 is needed it is asked for locally; the global configuration stays as it is."""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from koopjax._core._arrays import expected, has_float64, is_tracing

DOUBLE = (np.dtype(np.float64), np.dtype(np.complex128))


def in_float64(needed: bool) -> contextlib.AbstractContextManager:
    """The local float64 context where it is needed and not there; else one that does nothing.

    Also while tracing: what is traced inside stays float64.
    """
    return jax.enable_x64(True) if needed and not has_x64() else contextlib.nullcontext()


def precise(*trees: Any) -> contextlib.AbstractContextManager:
    """`in_float64` where a leaf of the trees is.

    Without it JAX would cut float64 statistics to float32 (and warn) wherever the user has not
    switched x64 on.
    """
    return in_float64(
        any(getattr(leaf, "dtype", None) in DOUBLE for leaf in jax.tree.leaves(trees))
    )


def has_x64() -> bool:
    """Whether JAX keeps float64 here, by the user's choice or a local one."""
    return jax.dtypes.canonicalize_dtype(np.float64) == np.float64


@contextlib.contextmanager
def own_rules() -> Iterator[None]:
    """JAX as this library is written for, whatever a user asks of their own code.

    Inside, NaN stands for what is absent or did not come out, and is looked at; dtypes promote.
    Also a decorator.
    """
    with jax.numpy_dtype_promotion("standard"), jax.debug_nans(False):
        yield


def is_wide(*trees: Any) -> bool:
    """Whether a leaf was fitted in float64: an array of JAX in that dtype.

    NumPy's float64 and Python's numbers are what users write down, and take the dtype that they
    meet.
    """

    def wide(leaf: Any) -> bool:
        return isinstance(leaf, jax.Array) and leaf.dtype in DOUBLE and not leaf.weak_type

    return any(map(wide, jax.tree.leaves(trees)))


def precise_for(x: Any, *trees: Any) -> contextlib.AbstractContextManager:
    """A context for states and what they meet: float64 where either is in it.

    What is traced keeps to the dtype of `x`, since a transpose runs where the gradient is taken;
    `held_leaves` then cuts the trees to it.
    """
    fitted = is_wide(*trees) and not is_tracing(x, *trees) and has_float64()
    return precise_as(np.float64 if fitted else x.dtype)


def leave(tree: Any) -> Any:
    """Results in float64 as NumPy where JAX would cut them in whatever is done next."""
    if has_x64():
        return tree

    def host(leaf: Any) -> Any:
        known = is_wide(leaf) and not is_tracing(leaf) and leaf.is_fully_addressable
        return np.asarray(leaf) if known else leaf

    return jax.tree.map(host, tree)


def working_dtype(dtype: Any) -> Any:
    """The dtype in which factorisations run: at least float32, since LAPACK has no half types."""
    if not jnp.issubdtype(dtype, jnp.floating):
        raise expected("floating-point observables", f"dtype {dtype}", "x.astype(jnp.float32)")
    return promoted(dtype, jnp.float32)


def promoted(*dtypes: Any) -> Any:
    """The dtype that holds all of these, also where a user has made promotion strict."""
    with jax.numpy_dtype_promotion("standard"):
        return functools.reduce(jnp.promote_types, dtypes)


def precise_as(dtype: Any) -> contextlib.AbstractContextManager:
    """As `precise`, for arrays of a dtype that are about to be made."""
    return precise(jax.ShapeDtypeStruct((), np.dtype(dtype)))


def at_least_float32(array: Any) -> Any:
    """Half types as float32, which LAPACK has routines for; others as they are."""
    return array.astype(jnp.float32) if jnp.dtype(array.dtype).itemsize < 4 else array


def cast(tree: Any, dtype: Any) -> Any:
    """Every floating leaf in another dtype; other leaves (counts, codes) as they are."""

    def convert(leaf: Any) -> Any:
        floating = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
        return jnp.asarray(leaf).astype(dtype) if floating else leaf

    with precise(tree) if dtype != jnp.float64 else jax.enable_x64(True):
        return jax.tree.map(convert, tree)


def traced(*trees: Any) -> bool:
    """Whether values can't be looked at: a leaf is a tracer, or the call itself is being staged.

    Under jit even operations on constants are staged, so a function called there on concrete
    arrays has no concrete results.
    """
    return is_tracing(*trees) or is_tracing(jnp.zeros(()))
