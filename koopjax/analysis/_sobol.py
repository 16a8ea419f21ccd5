"""Doubled trains: variances of a tensor train's interactions, in float64 on the host."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from koopjax._core import semidefinite_root


def root_of(metric: Any) -> np.ndarray:
    """`A` with `A Aᵀ = metric`, without the directions that the metric does not see."""
    root = semidefinite_root(np.asarray(metric, np.float64))
    cutoff = len(root.scale) * np.finfo(np.float64).eps * root.scale[-1] ** 2
    return root.half[:, root.scale**2 > cutoff]


def output_core(cores: Sequence[np.ndarray]) -> int:
    """Which TT-matrix core holds the outputs."""
    return max(range(len(cores)), key=lambda k: cores[k].shape[2])


class Chain(NamedTuple):
    """Each core contracted with the mean of its functions, and with roots of their covariance.

    For each coordinate `still`, `(q, r, s)`, is the core at `m_k`, and `moving`, `(ρ q, r, s)`, the
    core at each column of `U_k`, with `U_k U_kᵀ = C_k`.
    """

    still: list[np.ndarray]
    moving: list[np.ndarray]


def chain_of(cores: Any, means: Any, covariances: Any, root: np.ndarray | None) -> Chain:
    """From TT-matrix cores `(r, m, q, s)`; the core with outputs takes the metric's root."""
    out, made = output_core(cores), Chain([], [])
    for k, (core, mean, covariance) in enumerate(zip(cores, means, covariances, strict=True)):
        if k == out and root is not None:
            core = np.einsum("rmqs,qp->rmps", core, root)
        moved = np.einsum("rmqs,mu->uqrs", core, root_of(covariance))
        made.still.append(np.einsum("rmqs,m->qrs", core, mean))
        made.moving.append(moved.reshape(-1, *moved.shape[2:]))
    return made


def _left(cores: np.ndarray, doubled: np.ndarray) -> np.ndarray:
    """`Σ_u W_uᵀ L W_u` for `(u, r, s)` cores and `(..., r, r)` doubled states."""
    half = np.matmul(doubled[..., None, :, :], cores)
    return np.matmul(np.swapaxes(cores, -1, -2), half).sum(-3)


def _right(cores: np.ndarray, doubled: np.ndarray) -> np.ndarray:
    """`Σ_u W_u R W_uᵀ`."""
    half = np.matmul(cores, doubled[..., None, :, :])
    return np.matmul(half, np.swapaxes(cores, -1, -2)).sum(-3)


def orders_of(chain: Chain, most: int) -> np.ndarray:
    """Variances by order 1, ..., `most`, and of everything above, `(most + 1,)`."""
    # Coefficients of t⁰ ... t^most, and the sum of all higher ones.
    state = np.zeros((most + 2, 1, 1))
    state[0] = 1.0
    for still, moving in zip(chain.still, chain.moving, strict=True):
        kept, risen = _left(still, state), _left(moving, state)
        state = kept
        state[1:] += risen[:-1]
        state[-1] += risen[-1]
    return state[1:, 0, 0]


def _sweeps(chain: Chain, whole: bool) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Doubled states left of each core and right of it, others at rest or all (`whole`)."""
    one = np.ones((1, 1))
    left, right = [one], [one]
    for still, moving in zip(chain.still[:-1], chain.moving[:-1], strict=True):
        state = left[-1]
        left.append(_left(still, state) + (_left(moving, state) if whole else 0.0))
    for still, moving in zip(chain.still[:0:-1], chain.moving[:0:-1], strict=True):
        state = right[-1]
        right.append(_right(still, state) + (_right(moving, state) if whole else 0.0))
    return left, right[::-1]


def outputs_of(chain: Chain, out: int) -> tuple[np.ndarray, np.ndarray]:
    """Squared mean and variance of each output `(q,)`, which lie in core `out`; sums of squares."""

    def side(places: Sequence[int], step: Any) -> tuple[np.ndarray, np.ndarray]:
        rest, varied = np.ones((1, 1)), np.zeros((1, 1))
        for k in places:
            varied = step(chain.still[k], varied) + step(chain.moving[k], rest + varied)
            rest = step(chain.still[k], rest)
        return rest, varied

    def square(left: np.ndarray, cores: np.ndarray, right: np.ndarray) -> np.ndarray:
        return np.sum(np.matmul(np.matmul(left, cores), right) * cores, axis=(-2, -1))

    rest, varied = side(range(out), _left)
    still_right, varied_right = side(range(len(chain.still) - 1, out, -1), _right)
    right = still_right + varied_right
    still = chain.still[out]
    moving = chain.moving[out].reshape(-1, *still.shape)
    variance = square(rest, still, varied_right) + square(varied, still, right)
    variance = variance + square(rest + varied, moving, right).sum(0)
    return square(rest, still, still_right), variance


def sobol_of(chain: Chain) -> tuple[np.ndarray, np.ndarray]:
    """Variance of each coordinate alone, and of all interactions that it takes part in."""
    found = []
    for whole in (False, True):
        left, right = _sweeps(chain, whole)
        pairs = zip(left, chain.moving, right, strict=True)
        found.append(np.array([np.sum(a * _right(w, b)) for a, w, b in pairs]))
    return found[0], found[1]


def pairs_of(chain: Chain) -> np.ndarray:
    """Variance of the interaction of exactly two coordinates, `(d, d)`, zero on the diagonal."""
    left, right = _sweeps(chain, False)
    ends = [_right(w, b) for w, b in zip(chain.moving, right, strict=True)]
    count = len(chain.still)
    found = np.zeros((count, count))
    for i in range(count):
        state = _left(chain.moving[i], left[i])
        for j in range(i + 1, count):
            found[i, j] = found[j, i] = np.sum(state * ends[j])
            state = _left(chain.still[j], state)
    return found
