"""Tensor trains of every degree, rank and ridge, the ridge of each chosen on validation samples."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from koopjax import tensor_edmd


@dataclasses.dataclass(frozen=True)
class Found:
    """One fit, its ridge relative to the number of samples, its error on validation samples."""

    fit: Any
    alpha: float
    error: float


def fit_trains(
    psis: Mapping[int, Any],
    train: tuple[Any, Any],
    val: tuple[Any, Any] | None,
    *,
    ranks: Sequence[int],
    alphas: Sequence[float],
    choices: Mapping[tuple[int, int], float] | None,
    sweeps: int,
    key: Array,
    memory_limit: Any,
    ledger: Any,
    progress: Callable[[int, int, str], None] | None,
) -> dict[tuple[int, int], Found]:
    """Fit every degree at every rank.

    Args:
        psis: degree to dictionary.
        train: states and targets.
        val: the same of the validation samples, on which the ridge is chosen.
        ranks: TT ranks.
        alphas: ridges, relative to the number of samples.
        choices: ridges that are chosen already.
        sweeps: of alternating least squares.
        key: of the random starts.
        memory_limit: for the sweep.
        ledger: folder, or None.
        progress: see `plane`.
    """
    x, y = train
    n = x.shape[0]
    found: dict[tuple[int, int], Found] = {}
    total = len(psis) * len(ranks)
    for degree, psi in psis.items():
        for rank in ranks:
            if progress is not None:
                progress(len(found), total, f"degree {degree}, rank {rank}")
            tried = alphas if choices is None else (choices[degree, rank],)
            best = None
            for alpha in tried:
                fit = tensor_edmd.als(
                    psi, x, y, rank, jax.random.fold_in(key, degree), alpha=float(alpha) * n,
                    sweeps=sweeps, max_rank=max(ranks),
                )  # fmt: skip
                error = np.nan if val is None else _error(fit, *val)
                if best is None or error < best.error:
                    best = Found(fit, float(alpha), error)
            assert best is not None
            found[degree, rank] = best
    return found


def _error(fit: Any, x: Any, y: Any) -> float:
    guess = np.asarray(fit.predict(x))
    return float(np.linalg.norm(guess - y) / np.linalg.norm(y))
