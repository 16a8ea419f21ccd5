"""Accuracy over the plane of degree and tensor-train rank, in the place of a span."""

import dataclasses
import itertools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from koopjax import models, sweep, tensor_edmd
from koopjax._core import expected, on_device
from koopjax.analysis._dictionaries import Snapshots, affine, quadratic
from koopjax.analysis._ladder import ladder_of
from koopjax.analysis._results import Ladder, Plane, Point
from koopjax.analysis._scores import in_blocks, run
from koopjax.analysis._span import Flow, Span, prepare, taken
from koopjax.analysis._trains import Readout, SpanTrain, coordinates, product

DEGREES = (1, 2, 3)
RANKS = (1, 2, 4, 8, 12, 16)
#: Ridges relative to the number of samples: the functions of a coordinate have unit variance.
ALPHAS = (1e-5, 1e-3)
#: Ranks that are compiled together are padded to the next of these: a lane costs what its padding
#: costs, and a compilation costs more than a small lane.
SIZES = (12, 16, 24, 32, 48, 64)


def plane(
    model: Any,
    x_train: Any,
    x_val: Any = None,
    x_test: Any = None,
    y_test: Any = None,
    *,
    key: Array,
    **settings: Any,
) -> Plane:
    """Replace a span by tensor trains of every degree and rank, and measure each.

    The state before the span is projected to the latent coordinates that vary and that the output
    depends on, and scaled. The train is a linear map on all `(degree + 1)^latent` products of one
    orthonormal polynomial a coordinate, fitted by alternating least squares to the coordinates of
    the state after the span in the metric of the output; a readout leads back to the state. How
    high the degree must be says how nonlinear the span is in one coordinate; how high the rank,
    how entangled the coordinates are.

    Args:
        model, x_train, x_val, x_test, y_test: as of `prepare`; each point's ridge is chosen on the
            validation samples where `choices` are not given.
        key: random key, for the random starts.
        **settings: `at`, `task`, `score_fn`, `metric`, `sample_axes`, `batch_size` of `prepare`,
            and all of `plane_of`.

    Returns:
        A `Plane`.

    Raises:
        ValueError: wrong shapes, no samples, NaN, degrees or ranks below 1, more latent
            coordinates than the state has, a memory limit too small for one lane.
        TypeError: a setting of another name.
    """
    own, rest = taken(settings, plane_of, _fit_trains)
    return plane_of(prepare(model, x_train, x_val, None, x_test, y_test, **own), key=key, **rest)


def plane_of(
    span: Span,
    *,
    key: Array,
    degrees: Sequence[int] = DEGREES,
    ranks: Sequence[int] = RANKS,
    latent: int = 12,
    family: str = "legendre",
    tolerance: float = 0.005,
    reference: Ladder | str | None = "all",
    stored: bool = True,
    outputs: int = 16,
    max_samples: int | None = 10_000,
    alphas: Sequence[float] = ALPHAS,
    choices: Mapping[tuple[int, int], float] | None = None,
    **sweeping: Any,
) -> Plane:
    """`plane` of a span that `prepare` made.

    Args:
        span: prepared, once for this plane, others and ladders.
        key: random key, for the random starts.
        degrees: of the polynomials; each is compiled on its own.
        ranks: TT ranks, lanes of one compiled sweep.
        latent: number of latent coordinates.
        family: "legendre" or "chebyshev", on the ranges of the coordinates; or "hermite", on
            standardised ones: unbounded, so that a few samples dominate products of many of them.
        tolerance: accuracy that the finding lets go of.
        reference: rows to compare with: "all" (identity, mean, affine, full quadratic), "nulls"
            (the first two), a `Ladder` of the same span whose full rows are taken, or None for
            none.
        stored: whether to measure the bytes of each point's file.
        outputs: most coordinates of the state after the span.
        max_samples: most training samples that are fitted on, evenly spaced; None for all.
        alphas: ridges to choose from, relative to the number of samples.
        choices: `(degree, rank)` to ridge, chosen already (the `.choices` of another plane).
        **sweeping: `sweeps` of alternating least squares, there and back each (2);
            `memory_limit`, bytes, or such as "2GiB", for the sweep; lanes are chunked to it;
            `ledger`, folder for what is finished of the sweep; called again, it goes on from there;
            `progress`, called as `progress(done, total, what)`.

    Numerics:
        A sweep costs `2 n d (r² m)²` operations for each lane, at the largest rank of its bucket.

    Raises:
        ValueError: as `plane`.
    """
    _check(degrees, ranks, alphas, choices, reference)
    whole = span
    if span.val is None and choices is None:
        span, _ = span.held_out()
    if not 1 <= latent <= span.train.before.shape[1]:
        raise expected(f"latent from 1 to {span.train.before.shape[1]}", f"{latent}")
    after, before = span.metrics()
    readout = Readout.fit(span.train.after, after, outputs)
    snapshots = Snapshots(span.train.before, span.train.after, before, key)
    train = _pairs(span.train, readout, max_samples)
    val = None if span.val is None else _pairs(span.val, readout, max_samples)
    fits = _fit_trains(
        coordinates(snapshots, latent, family), train, val, degrees=degrees, ranks=ranks,
        family=family, alphas=tuple(alphas), choices=choices, key=key, **sweeping,
    )  # fmt: skip
    trains = {place: SpanTrain(found.fit, readout) for place, found in fits.items()}
    points = [
        _point(span, trains[place], place, latent, found.alpha, stored)
        for place, found in fits.items()
    ]
    nulls = [
        rung
        for rung in _compared(whole, key, reference, stored)
        if rung.rank is None and rung.target == "state" and (rung.null or reference != "nulls")
    ]
    return Plane(
        points=points, nulls=nulls, original=span.original(stored), span=span.at, latent=latent,
        family=family, tolerance=tolerance,
        choices={place: found.alpha for place, found in fits.items()},
        validation={place: found.error for place, found in fits.items()}, trains=trains,
        states=train[0], model=span.model, example=span.example, sample_axes=span.sample_axes,
    )  # fmt: skip


def _compared(span: Span, key: Array, reference: Any, stored: bool) -> list[Any]:
    """Rungs to compare with: those of a ladder, or of one that is made for it."""
    if not isinstance(reference, str):
        return [] if reference is None else reference.rungs
    known = {"affine": affine, "degree 2": quadratic}
    return ladder_of(
        span, key=key, ranks=(), logits=False, stored=stored, alphas=(1e-5, 1e-3),
        dictionaries=known if reference == "all" else {"affine": affine},
    ).rungs  # fmt: skip


def _check(degrees, ranks, alphas, choices, reference) -> None:
    for name, values in (("degrees", degrees), ("ranks", ranks)):
        if not len(values) or any(int(value) != value or value < 1 for value in values):
            raise expected(f"{name} of at least 1", f"{tuple(values)}")
    if not len(alphas) or any(not alpha >= 0 for alpha in alphas):
        raise expected("at least one ridge, none below 0", f"{tuple(alphas)}", "alphas=(1e-4,)")
    if choices is not None:
        missing = [(d, r) for d in degrees for r in ranks if (d, r) not in choices]
        if missing:
            raise expected(f"a ridge for (degree, rank) {missing[0]}", f"{sorted(choices)}")
    if not isinstance(reference, Ladder) and reference not in ("all", "nulls", None):
        raise expected("reference 'all', 'nulls', None or a Ladder", f"{reference!r}")


def _pairs(flow: Flow, readout: Readout, most: int | None) -> tuple[Any, Any]:
    """States before the span and coordinates after it, of evenly spaced samples."""
    n = flow.before.shape[0]
    kept = np.unique(np.linspace(0, n - 1, min(n, most or n)).astype(int))
    before, after = (np.asarray(a)[kept] for a in (flow.before, flow.after))
    return on_device(before, before.dtype), run(
        jax.tree_util.Partial(Readout.encode, readout), after
    )


_r_squared = jax.jit(models.r_squared)


def _point(
    span: Span, train: SpanTrain, place: tuple[int, int], latent: int, alpha: float, stored: bool
) -> Point:
    """A train in the place of the span, measured on the test samples."""
    rows = in_blocks(jax.tree_util.Partial(SpanTrain.predict, train), span.test.before, span.batch)
    scores = span.scores(span.output(rows))
    degree, rank = place
    return Point(
        dictionary=f"tensor train, degree {degree}", rank=rank, truncation="tt", target="state",
        null=False,
        accuracy=scores.get("accuracy"), agreement=scores["agreement"], kl=scores["kl"],
        r2=float(_r_squared(span.test.after, rows)),
        observables=(degree + 1) ** latent, numbers=train.numbers,
        stored_bytes=span.stored_bytes(train.block()) if stored else None,
        alpha=float(alpha), condition=float(train.fit.info.condition),
        result=int(train.fit.result), degree=degree, latent=latent, ranks=tuple(train.fit.ranks),
    )  # fmt: skip


class _Found(NamedTuple):
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


def _fit_trains(
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
) -> dict[tuple[int, int], _Found]:
    """Every degree at every rank, from the latent coordinates of `front`; arguments of `plane_of`.

    The ridge is the best on the samples `val`, or the one that was chosen already.
    """
    found: dict[tuple[int, int], _Found] = {}
    latent = front.size(train[0].shape[1])
    places = list(itertools.product(sorted(set(degrees)), sorted(set(ranks))))
    size_of = lambda rank: next((size for size in SIZES if rank <= size), rank)
    lanes = [
        (size_of(r), d, r, a)
        for d, r in places
        for a in (alphas if choices is None else (choices[d, r],))
    ]
    done = 0
    for size, degree in dict.fromkeys((size, d) for size, d, _, _ in lanes):
        here = [(r, a) for s, d, r, a in lanes if (s, d) == (size, degree)]
        rank, alpha = zip(*here, strict=True)
        book = None
        if ledger is not None:
            # Named by all that its figures depend on.
            of = (front, key, train, val, sweeps), np.asarray([(degree, *lane) for lane in here])
            book = pathlib.Path(ledger) / f"{family}-{degree}-{size}-{sweep.digest(of)[:12]}.ledger"
        told = None
        if progress is not None:
            what = f"degree {degree}, ranks up to {size}"
            progress(done, len(lanes), what)
            told = lambda n, _, done=done, what=what: progress(done + n, len(lanes), what)
        # All lanes of one shape, one after the other inside one compiled program.
        fixed = {"degree": degree, "family": family, "size": size, "sweeps": sweeps}
        axes = {name: (value,) * len(here) for name, value in fixed.items()}
        axes |= {"rank": np.asarray(rank, np.int32), "alpha": np.asarray(alpha, np.float32)}
        table = sweep.grid(
            _lane, axes, data=(front, key, train, val), static=tuple(fixed), zip=True, lanes="map",
            memory_limit=memory_limit, ledger=book, progress=told,
        )  # fmt: skip
        done += len(here)
        psi = product(front, latent, degree, family)
        for (rank, alpha), fit, row in zip(here, table.arrays["fit"], table, strict=True):
            error = float(row["error"])
            best = found.get((degree, rank))
            if best is None or error < best.error:
                padded = dataclasses.replace(fit, psi=psi)
                found[degree, rank] = _Found(padded.unpad(), float(alpha), error)
    return {place: found[place] for place in places}
