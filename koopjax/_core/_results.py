"""Result codes: what went wrong in a numerical routine, as a number that jit and vmap can carry."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

SUCCESS = 0
RANK_DEFICIENT = 1
ILL_CONDITIONED = 2
UNDERDETERMINED = 3
NONFINITE_DATA = 4
NONFINITE_SOLUTION = 5
NOT_CONVERGED = 6  # of searches, which have no other code to be compared with

# In order of severity: `worst` takes the maximum.
RESULTS: dict[int, str] = {
    SUCCESS: "success",
    RANK_DEFICIENT: (
        "the observables are linearly dependent on these data (dead or constant coordinates, "
        "duplicates); the minimum-norm solution on the numerical rank was returned. Remove "
        "coordinates, lower the degree, or set a ridge"
    ),
    ILL_CONDITIONED: (
        "the problem is too ill-conditioned for the precision of its statistics, and digits are "
        "lost. Use orthogonal observables on standardised inputs, a larger ridge, or statistics "
        "that keep more digits than these (info.statistics and info.dtype: R factors more than a "
        "Gram matrix, float64 more than float32)"
    ),
    UNDERDETERMINED: (
        "there are fewer samples than observables, so infinitely many matrices fit; the one of "
        "least norm was returned. Give more samples, fewer observables, or a ridge chosen by "
        "cross-validation"
    ),
    NONFINITE_DATA: (
        "the data hold NaN or infinity, so the solution means nothing. Clean the snapshots, or "
        "look for an overflow in the observables (standardise the input)"
    ),
    NONFINITE_SOLUTION: (
        "the solve gave NaN or infinity from finite data: the range of the dtype was exceeded. "
        "Standardise the input, use float64, or set a ridge"
    ),
    NOT_CONVERGED: (
        "a bound ended the search before its tolerance was met; the best found was returned. Allow "
        "more sweeps or evaluations, or a larger rank or tolerance"
    ),
}


class NumericalError(ArithmeticError):
    """Raised on the host by `check` (and `edmd.unwrap`) when a result code is not success."""


def message(code: Any) -> str:
    """The advice that belongs to a result code (a Python int or a concrete scalar array)."""
    number = int(code)
    if number not in RESULTS:
        raise ValueError(f"expected a result code in {sorted(RESULTS)}, got {number}")
    return RESULTS[number]


def worst(*codes: Any) -> Int[Array, "..."]:
    """The gravest of several result codes (int32 scalars or arrays of one shape), elementwise."""
    result = jnp.asarray(codes[0], jnp.int32)
    for code in codes[1:]:
        result = jnp.maximum(result, jnp.asarray(code, jnp.int32))
    return result


def check(code: Any, *, allow: tuple[int, ...] = (SUCCESS,)) -> None:
    """Raise `NumericalError` with the advice of the gravest code that is not allowed.

    Of one concrete code, or of an array of them (one per vmap lane).
    """
    codes = sorted({int(c) for c in jax.device_get(jnp.ravel(jnp.asarray(code)))})
    bad = [c for c in codes if c not in allow]
    if bad:
        raise NumericalError(message(bad[-1]))
