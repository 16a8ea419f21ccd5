"""Accuracy over the plane of degree and tensor-train rank, in the place of a span."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from koopjax import models
from koopjax._core import expected
from koopjax.analysis._dictionaries import Snapshots, affine, quadratic
from koopjax.analysis._flow import Flow
from koopjax.analysis._ladder import ladder_of
from koopjax.analysis._points import Plane, Point, train_name
from koopjax.analysis._rungs import Ladder
from koopjax.analysis._span import Span, prepare, taken
from koopjax.analysis._train_fits import fit_trains
from koopjax.analysis._trains import Readout, SpanTrain, coordinates, predictions

DEGREES = (1, 2, 3)
RANKS = (1, 2, 4, 8, 12, 16)
#: Ridges relative to the number of samples: the functions of a coordinate have unit variance.
ALPHAS = (1e-5, 1e-3)


def plane(
    model: Any,
    x_train: Any,
    x_val: Any = None,
    x_test: Any = None,
    y_test: Any = None,
    *,
    key: Array,
    degrees: Sequence[int] = DEGREES,
    ranks: Sequence[int] = RANKS,
    latent: int = 12,
    tolerance: float = 0.005,
    reference: Ladder | str | None = "all",
    stored: bool = True,
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
        degrees: of the polynomials; each is compiled on its own.
        ranks: TT ranks, lanes of one compiled sweep.
        latent: number of latent coordinates.
        tolerance: accuracy that the finding lets go of.
        reference: rows to compare with: "all" (identity, mean, affine, full quadratic), "nulls"
            (the first two), a `Ladder` of the same span whose full rows are taken, or None for
            none.
        stored: whether to measure the bytes of each point's file.
        **settings: `at`, `task`, `score_fn`, `metric`, `sample_axes`, `batch_size` of `prepare`;
            and of the trains:
            `family`, "legendre" or "chebyshev", on the ranges of the coordinates; or "hermite", on
            standardised ones: unbounded, so that a few samples dominate products of many of them;
            `alphas`, ridges to choose from, relative to the number of samples;
            `choices`, `(degree, rank)` to ridge, chosen already (the `.choices` of another plane);
            `sweeps` of alternating least squares, there and back each;
            `outputs`, most coordinates of the state after the span (16);
            `max_samples`, most training samples that are fitted on, evenly spaced (10,000); None
            for all;
            `memory_limit`, bytes, or such as "2GiB", for the sweep; lanes are chunked to it;
            `ledger`, folder for what is finished of the sweep; called again, it goes on from there;
            `progress`, called as `progress(done, total, what)`.

    Returns:
        A `Plane`.

    Numerics:
        A sweep costs `2 n d (r² m)²` operations for each lane, at the largest rank of its bucket.

    Raises:
        ValueError: wrong shapes, no samples, NaN, degrees or ranks below 1, more latent
            coordinates than the state has, a memory limit too small for one lane.
    """
    own, fitting = taken(settings, plane_of, fit_trains)
    span = prepare(model, x_train, x_val, None, x_test, y_test, **own)
    return plane_of(
        span, key=key, degrees=degrees, ranks=ranks, latent=latent, tolerance=tolerance,
        reference=reference, stored=stored, **fitting,
    )  # fmt: skip


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
        key, degrees, ranks, latent, family, tolerance, reference, stored, outputs, max_samples,
        alphas, choices, **sweeping: as of `plane`.

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
    fits = fit_trains(
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
        points, nulls, span.original(stored), span.at, latent, family, tolerance,
        {place: found.alpha for place, found in fits.items()},
        {place: found.error for place, found in fits.items()},
        trains, train[0], span.model, span.example, span.sample_axes,
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
    return jnp.asarray(before), readout.encode(jnp.asarray(after))


def _point(
    span: Span, train: SpanTrain, place: tuple[int, int], latent: int, alpha: float, stored: bool
) -> Point:
    """A train in the place of the span, measured on the test samples."""
    rows = jnp.asarray(predictions(train, span.test.before, span.batch))
    scores = span.scores(span.output(rows))
    degree, rank = place
    return Point(
        dictionary=train_name(degree), rank=rank, truncation="tt", target="state", null=False,
        accuracy=scores.get("accuracy"), agreement=scores["agreement"], kl=scores["kl"],
        r2=float(models.r_squared(jnp.asarray(span.test.after), rows)),
        observables=(degree + 1) ** latent, numbers=train.numbers,
        stored_bytes=span.stored_bytes(train.block()) if stored else None,
        alpha=float(alpha), condition=float(train.fit.info.condition),
        result=int(train.fit.result), degree=degree, latent=latent, ranks=tuple(train.fit.ranks),
    )  # fmt: skip
