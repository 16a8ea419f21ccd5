"""Which solver a kernel fit takes, what memory it needs, and its landmarks."""

import dataclasses
import math
from typing import Any

import numpy as np
from jaxtyping import Array

from koopjax._core import as_numbers, available_bytes, check_finite, expected, is_tracing
from koopjax.tensor_edmd._dictionary import through
from koopjax.tensor_edmd._kernel_solve import drawn

METHODS = ("auto", "cholesky", "cg", "nystrom")
# Kernel matrix, the damped copy, its factor.
DIRECT_COPIES = 3
# Of landmarks squared: kernel matrix, its factor, the inner matrix and its factor.
LANDMARK_COPIES = 4
# A direct solve takes n³/3 operations, minutes from here on.
LARGEST_DIRECT = 20_000
# Landmarks by default; their factors take as long as the samples' kernel.
LANDMARKS = 8_000
# Landmarks of the preconditioner of conjugate gradients.
PRECONDITIONER = 1_000
# Values of a block, with what is computed on the way.
BLOCK_VALUES = 2**24


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a kernel is fitted: with so many landmarks, its values kept between iterations or not."""

    method: str
    landmarks: int
    stored: bool
    reason: str


def bytes_needed(method: str, n: int, m: int, stored: bool, width: int) -> int:
    """Bytes of a fit beside its `n` samples: `m` landmarks, numbers of so many bytes."""
    if method == "cholesky":
        return (DIRECT_COPIES * n * n + BLOCK_VALUES) * width
    if method == "cg":
        thin = min(PRECONDITIONER, n)
        return ((n * n if stored else 0) + 3 * n * thin + 3 * thin * thin + BLOCK_VALUES) * width
    return ((n * m if stored else 0) + LANDMARK_COPIES * m * m + BLOCK_VALUES) * width


def most_landmarks(n: int, limit: int, width: int) -> int:
    """The most landmarks that fit without storing the kernel; 0 if none."""
    free = limit // width - BLOCK_VALUES
    return min(n, math.isqrt(max(0, free) // LANDMARK_COPIES))


def plan_for(method: str, n: int, centers: Any, width: int, memory_limit: int | None) -> Plan:
    """The solver, refused with what would fit where memory is too small.

    `centers` is None, a number of landmarks, or the landmarks; `width` the bytes of a number.
    """
    if method not in METHODS:
        raise expected(f"a method in {METHODS}", repr(method))
    limit = available_bytes() if memory_limit is None else int(memory_limit)
    count = None if centers is None else centers if isinstance(centers, int) else len(centers)
    if count is not None and method in ("cholesky", "cg"):
        wanted = f"all samples as centres for {method!r}"
        raise expected(wanted, f"{count} landmarks", "method='nystrom'")
    fits = lambda name, m, stored: bytes_needed(name, n, m, stored, width) <= limit
    reason = "requested"
    if method == "auto" and count is not None:
        method, reason = "nystrom", "landmarks were given"
    elif method == "auto" and n <= LARGEST_DIRECT and fits("cholesky", n, False):
        method, reason = "cholesky", "the kernel matrix fits in memory"
    elif method == "auto":
        method, reason = "nystrom", "the samples' kernel matrix is too large to factor"
    if method == "nystrom":
        most = most_landmarks(n, limit, width)
        m = min(n, LANDMARKS, most) if count is None else count
        if m > most or m < 1:
            raise _too_small(f"{n:,} samples and {max(m, 1):,} landmarks", limit,
                             bytes_needed(method, n, max(m, 1), False, width), most)  # fmt: skip
        return Plan(method, m, fits(method, m, True), reason)
    if not fits(method, n, False):
        needed = bytes_needed(method, n, n, False, width)
        raise _too_small(f"{n:,} samples", limit, needed, most_landmarks(n, limit, width))
    return Plan(method, n, fits(method, n, True), reason)


def _too_small(what: str, limit: int, needed: int, most: int) -> ValueError:
    fit = f"method='nystrom' with centers={most:,}" if most else "a larger memory_limit"
    return expected(
        f"a kernel that fits in {limit / 2**30:.3g} GiB",
        f"{what}, which need {needed / 2**30:.3g} GiB",
        f"{fit} (the most that fits)" if most else fit,
    )


def check_settings(alpha: Any, batch_size: int | None, centers: Any, n: int) -> None:
    """Raise unless ridge, batch size and landmarks can be met."""
    if not is_tracing(alpha):
        values = np.asarray(alpha, np.float64)
        if values.ndim > 1 or values.size == 0 or not np.all(np.isfinite(values) & (values >= 0)):
            raise expected("a ridge, or a list of them, not negative", f"{alpha}", "alpha=1e-3")
    if batch_size is not None and batch_size < 1:
        raise expected("a batch_size of at least 1", f"{batch_size}")
    if isinstance(centers, bool) or (isinstance(centers, int) and not 1 <= centers <= n):
        raise expected(f"from 1 to {n} landmarks, the number of samples", f"{centers}")


def landmarks_of(front: Any, x: Any, z: Array, centers: Any, plan: Plan, key: Any) -> Array:
    """The centres on the product's coordinates, on which the samples `x` are `z`."""
    if centers is not None and not isinstance(centers, int):
        centers = as_numbers("centers", centers).astype(x.dtype)
        if centers.ndim != 2 or centers.shape[1] != x.shape[1] or len(centers) == 0:
            raise expected(f"centres of shape (m, {x.shape[1]})", f"shape {centers.shape}")
        check_finite("centers", centers)
        return through(front, centers)
    if plan.landmarks == len(z):
        return z
    if key is None:
        raise expected("a random key to draw landmarks with", "none", "key=jax.random.key(0)")
    return z[drawn(key, len(z), plan.landmarks)]
