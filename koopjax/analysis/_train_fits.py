"""Tensor trains of every degree, rank and ridge, the ridge of each chosen on validation samples."""

import dataclasses
import itertools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from koopjax import sweep, tensor_edmd
from koopjax.analysis._trains import product

#: Ranks that are compiled together are padded to the next of these: a lane costs what its padding
#: costs, and a compilation costs more than a small lane.
SIZES = (12, 16, 24, 32, 48, 64)


@dataclasses.dataclass(frozen=True)
class Found:
    """One fit, its ridge relative to the number of samples, its error on validation samples."""

    fit: Any
    alpha: float
    error: float


def _lane(
    front: Any,
    key: Array,
    train: tuple[Array, Array],
    val: Any,
    *,
    degree: int,
    rank: Array,
    alpha: Array,
    family: str,
    size: int,
    sweeps: int,
) -> dict[str, Any]:
    """One point of the sweep; traced."""
    x, y = train
    latent = front.size(x.shape[1])
    x_val, y_val = (None, None) if val is None else val
    psi = product(front, latent, degree, family)
    fit = tensor_edmd.als_padded(
        psi, x, y, rank, key, max_rank=size, alpha=alpha * x.shape[0], sweeps=sweeps,
        x_val=x_val, y_val=y_val,
    )  # fmt: skip
    # The dictionary is the same for all ranks, and known. An error without validation is NaN, which
    # the sweep is not to take for a failure: the fit has a code of its own.
    bare = dataclasses.replace(fit, psi=None)
    return {"fit": bare, "error": fit.validation, "code": fit.result, "result": jnp.int32(0)}


def fit_trains(
    front: Any,
    train: tuple[Any, Any],
    val: tuple[Any, Any] | None,
    *,
    degrees: Sequence[int],
    ranks: Sequence[int],
    alphas: Sequence[float],
    choices: Mapping[tuple[int, int], float] | None,
    family: str,
    key: Array,
    sweeps: int = 2,
    memory_limit: Any = None,
    ledger: Any = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> dict[tuple[int, int], Found]:
    """Fit every degree at every rank.

    Args:
        front: from states to latent coordinates.
        train: states and targets.
        val: the same of the validation samples, on which the ridge is chosen.
        degrees: of the polynomials.
        ranks: TT ranks.
        alphas: ridges, relative to the number of samples.
        choices: ridges that are chosen already.
        family: of polynomials.
        sweeps: of alternating least squares.
        key: of the random starts.
        memory_limit: for the sweep.
        ledger: folder, or None.
        progress: see `plane`.
    """
    found: dict[tuple[int, int], Found] = {}
    latent = front.size(train[0].shape[1])
    places = list(itertools.product(sorted(set(degrees)), sorted(set(ranks))))
    lanes = [
        (d, r, a) for d, r in places for a in (alphas if choices is None else (choices[d, r],))
    ]
    done = 0
    for size, degree in dict.fromkeys((_size(r), d) for d, r, _ in lanes):
        here = [lane for lane in lanes if (_size(lane[1]), lane[0]) == (size, degree)]
        told = _telling(progress, done, len(lanes), f"degree {degree}, ranks up to {size}")
        table = _sweep(
            front, key, train, val, here, family=family, size=size, sweeps=sweeps,
            memory_limit=memory_limit, progress=told,
            ledger=_book(ledger, (front, key, train, val, sweeps), family, here, size),
        )  # fmt: skip
        done += len(here)
        psi = product(front, latent, degree, family)
        for (_, rank, alpha), fit, row in zip(here, table.arrays["fit"], table, strict=True):
            error = float(row["error"])
            best = found.get((degree, rank))
            if best is None or error < best.error:
                padded = dataclasses.replace(fit, psi=psi)
                found[degree, rank] = Found(padded.unpad(), float(alpha), error)
    return {place: found[place] for place in places}


def _book(ledger: Any, data: Any, family: str, lanes: Any, size: int) -> Any:
    """The file of one compiled shape, named by all that its figures depend on."""
    if ledger is None:
        return None
    name = sweep.digest((data, np.asarray(lanes, np.float64)))[:12]
    return pathlib.Path(ledger) / f"{family}-{lanes[0][0]}-{size}-{name}.ledger"


def _size(rank: int) -> int:
    return next((size for size in SIZES if rank <= size), rank)


def _sweep(
    front: Any,
    key: Array,
    train: Any,
    val: Any,
    lanes: Sequence[tuple[int, int, float]],
    *,
    family: str,
    size: int,
    sweeps: int,
    **settings: Any,
) -> Any:
    """All lanes of one shape, one after the other inside one compiled program."""
    count = len(lanes)
    degrees, ranks, alphas = zip(*lanes, strict=True)
    axes = {
        "degree": degrees,
        "rank": np.asarray(ranks, np.int32),
        "alpha": np.asarray(alphas, np.float32),
        "family": (family,) * count,
        "size": (size,) * count,
        "sweeps": (sweeps,) * count,
    }
    static = ("degree", "family", "size", "sweeps")
    return sweep.grid(
        _lane, axes, data=(front, key, train, val), static=static, zip=True, lanes="map", **settings
    )


def _telling(
    progress: Callable[[int, int, str], None] | None, before: int, total: int, what: str
) -> Callable[[int, int], None] | None:
    if progress is None:
        return None
    progress(before, total, what)
    return lambda done, _: progress(before + done, total, what)
