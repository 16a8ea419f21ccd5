"""Accuracy over the plane of degree and tensor-train rank, in the place of a span."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from koopjax import export, models, surgery
from koopjax._core import expected
from koopjax.analysis._dictionaries import Snapshots, affine, quadratic
from koopjax.analysis._flow import Flow, flow
from koopjax.analysis._ladder import cuts_of, example_of, hold_out, ladder, metrics_of
from koopjax.analysis._metrics import evaluate, states
from koopjax.analysis._points import Plane, Point, train_name
from koopjax.analysis._rungs import Ladder
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
    at: Any = None,
    degrees: Sequence[int] = DEGREES,
    ranks: Sequence[int] = RANKS,
    latent: int = 12,
    family: str = "legendre",
    alphas: Sequence[float] = ALPHAS,
    choices: Mapping[tuple[int, int], float] | None = None,
    sweeps: int = 2,
    max_samples: int | None = 10_000,
    metric: Any = None,
    outputs: int = 16,
    tolerance: float = 0.005,
    reference: Ladder | str | None = "all",
    task: str | None = None,
    score_fn: Callable[[Array, Array], Array] | None = None,
    sample_axes: Any = None,
    stored: bool = True,
    batch_size: int = 4096,
    memory_limit: float | str | None = None,
    ledger: Any = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Plane:
    """Replace a span by tensor trains of every degree and rank, and measure each.

    The state before the span is projected to the latent coordinates that vary and that the output
    depends on, and scaled. The train is a linear map on all `(degree + 1)^latent` products of one
    orthonormal polynomial a coordinate, fitted by alternating least squares to the coordinates of
    the state after the span in the metric of the output; a readout leads back to the state. How
    high the degree must be says how nonlinear the span is in one coordinate; how high the rank,
    how entangled the coordinates are.

    Args:
        model: an `nnx.Module`, `(linen_module, variables)`, `(function, params)` or a callable
            pytree.
        x_train: `(n, ...)` inputs that trains are fitted on; no labels are used.
        x_val: inputs on which each point's ridge is chosen; every twelfth training sample where
            left out and `choices` are not given.
        x_test: inputs on which points are measured.
        y_test: their labels; without, points have agreement and divergence but no accuracy.
        key: random key, for the random starts.
        at: two cuts `(a, b)`; the middle layers if left out.
        degrees: of the polynomials; each is compiled on its own.
        ranks: TT ranks, lanes of one compiled sweep.
        latent: number of latent coordinates.
        family: "legendre" or "chebyshev", on the ranges of the coordinates; or "hermite", on
            standardised ones: unbounded, so that a few samples dominate products of many of them.
        alphas: ridges to choose from, relative to the number of samples.
        choices: `(degree, rank)` to ridge, chosen already (the `.choices` of another plane).
        sweeps: of alternating least squares, there and back each.
        max_samples: most training samples that are fitted on, evenly spaced; None for all.
        metric: as in `ladder`.
        outputs: most coordinates of the state after the span.
        tolerance: accuracy that the finding lets go of.
        reference: rows to compare with: "all" (identity, mean, affine, full quadratic), "nulls"
            (the first two), a `Ladder` of the same span whose full rows are taken, or None for
            none.
        task: "classification" or "regression"; found as by `ladder` where left out.
        score_fn: stands in for the accuracy, see `evaluate`.
        sample_axes: how states that are no vectors are read, as in `surgery.to_rows`.
        stored: whether to measure the bytes of each point's file.
        batch_size: samples of one forward pass.
        memory_limit: bytes, or such as "2GiB", for the sweep; lanes are chunked to it.
        ledger: folder for what is finished of the sweep; called again, it goes on from there.
        progress: called as `progress(done, total, what)`.

    Returns:
        A `Plane`.

    Numerics:
        A sweep costs `2 n d (r² m)²` operations for each lane, at the largest rank of its bucket.

    Raises:
        ValueError: wrong shapes, no samples, NaN, degrees or ranks below 1, more latent
            coordinates than the state has, a memory limit too small for one lane.
    """
    _check(x_test, degrees, ranks, alphas, choices, reference)
    at = cuts_of(model, x_train, at)
    parts = surgery.split(model, x_train[:2], at)
    run = lambda x, name: flow(parts, x, name, sample_axes, batch_size)
    train, test = run(x_train, "x_train"), run(x_test, "x_test")
    val = None if x_val is None else run(x_val, "x_val")
    task, y_test = models.read_task(test.output, y_test, task, score_fn=score_fn, name="y_test")
    if val is None and choices is None:
        train, val, _ = hold_out(train, None)
    if not 1 <= latent <= train.before.shape[1]:
        raise expected(f"latent from 1 to {train.before.shape[1]}", f"{latent}")
    after, before = metrics_of(parts, train, metric, task, sample_axes)
    readout = Readout.fit(train.after, after, outputs)
    snapshots = Snapshots(train.before, train.after, before, key)
    front = coordinates(snapshots, latent, family)
    pairs = _pairs(train, readout, max_samples)
    fits = fit_trains(
        front,
        pairs,
        None if val is None else _pairs(val, readout, max_samples),
        degrees=degrees, ranks=ranks, family=family, alphas=tuple(alphas), choices=choices,
        sweeps=sweeps, key=key, memory_limit=memory_limit, ledger=ledger, progress=progress,
    )  # fmt: skip
    trains = {place: SpanTrain(found.fit, readout) for place, found in fits.items()}
    measure = _Measure(model, example_of(x_train), at, parts[2], test, y_test, task, score_fn,
                       sample_axes, stored, batch_size)  # fmt: skip
    points = [measure(trains[place], place, latent, found.alpha) for place, found in fits.items()]
    if isinstance(reference, str):
        known = {"affine": affine, "degree 2": quadratic}
        compared = ladder(
            model, x_train, x_val, None, x_test, y_test, key=key, at=at, ranks=(), logits=False,
            dictionaries=known if reference == "all" else {"affine": affine}, task=task,
            score_fn=score_fn, metric=metric, sample_axes=sample_axes, stored=stored,
            batch_size=batch_size, alphas=(1e-5, 1e-3),
        ).rungs  # fmt: skip
    else:
        compared = [] if reference is None else reference.rungs
    full = [rung for rung in compared if rung.rank is None and rung.target == "state"]
    nulls = [rung for rung in full if rung.null or reference != "nulls"]
    return Plane(
        points, nulls, measure.original(), at, latent, family, tolerance,
        {place: found.alpha for place, found in fits.items()},
        {place: found.error for place, found in fits.items()},
        trains, pairs[0], model, measure.example, sample_axes,
    )  # fmt: skip


def _check(x_test, degrees, ranks, alphas, choices, reference) -> None:
    if x_test is None:
        raise expected("x_test, the samples that points are measured on", "none")
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


@dataclasses.dataclass(frozen=True)
class _Measure:
    """Scores of a train on the test samples."""

    model: Any
    example: Any
    at: tuple[str, str]
    tail: Any
    test: Flow
    labels: Any
    task: str
    score_fn: Any
    sample_axes: Any
    stored: bool
    batch: int

    def original(self) -> dict[str, Any]:
        """Accuracy, parameters and bytes of the model as it was."""
        output = self.test.output
        whole = evaluate(output, output, self.labels, task=self.task, score_fn=self.score_fn)
        return {
            "accuracy": whole.get("accuracy"),
            "task": self.task,
            "parameters": surgery.cut_points(self.model, self.example)[-1].parameters,
            "stored_bytes": export.stored_bytes(self.model) if self.stored else None,
        }

    def __call__(
        self, train: SpanTrain, place: tuple[int, int], latent: int, alpha: float
    ) -> Point:
        rows = jnp.asarray(predictions(train, self.test.before, self.batch))
        output = _apply(self.tail, states(rows, self.test.shapes[1], self.sample_axes))
        scores = evaluate(
            output, self.test.output, self.labels, task=self.task, score_fn=self.score_fn
        )
        stored = None
        if self.stored:
            made = surgery.splice(
                self.model, self.example, self.at, train.block(), sample_axes=self.sample_axes
            )
            stored = export.stored_bytes(made)
        degree, rank = place
        return Point(
            dictionary=train_name(degree), rank=rank, truncation="tt", target="state", null=False,
            accuracy=scores.get("accuracy"), agreement=scores["agreement"], kl=scores["kl"],
            r2=float(models.r_squared(jnp.asarray(self.test.after), rows)),
            observables=(degree + 1) ** latent, numbers=train.numbers, stored_bytes=stored,
            alpha=float(alpha), condition=float(train.fit.info.condition),
            result=int(train.fit.result), degree=degree, latent=latent,
            ranks=tuple(train.fit.ranks),
        )  # fmt: skip


@jax.jit
def _apply(part: Any, x: Array) -> Array:
    return part(x)
