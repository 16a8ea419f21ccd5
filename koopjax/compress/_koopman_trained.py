"""The label-free Koopman method: a projection trained through the least-squares solve."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array

from koopjax import export
from koopjax._core import expected, ridge_solve
from koopjax.compress import _varpro
from koopjax.compress._koopman import account
from koopjax.compress._koopman_block import Job, koopman_block, on_span, wrap
from koopjax.compress._koopman_build import Built, build, build_from
from koopjax.compress._koopman_reader import readings
from koopjax.compress._koopman_span import Clock, Found
from koopjax.compress._problem import Score, ScoreFn, pose, untouched
from koopjax.compress._result import Compressed
from koopjax.compress._search import RIDGES, ROWS, search

#: Rates of learning tried, relative to the size of each array's entries.
RATES = (0.03, 0.1)
#: Starts tried, and the least ratio of their numbers of entries.
STARTS, APART = 3, 1.2
#: Share of the steps in a trial of a start and a rate.
TRIAL = 0.1
#: Samples on which K is solved to look at a projection.
LOOK = 10_000


def koopman_trained(
    model: Any,
    calibration: ArrayLike,
    budget: Any,
    *,
    at: Any = None,
    labels: ArrayLike | None = None,
    validation: Any = None,
    key: Array,
    task: str | None = None,
    score_fn: ScoreFn | None = None,
    steps: int = 100,
    together: int = 2000,
    rates: Sequence[float] = RATES,
    seconds: float | None = None,
    progress: Callable[[int, dict[str, float]], None] | None = None,
) -> Compressed:
    """`koopman`, its projection then trained on what the original answers, without labels.

    Starts from the closed forms that `koopman` finds. First the projection `W` alone moves, down
    the divergence of the original's softmax from that of `psi(W h) K`, with the least-squares
    `K = (Ψᵀ Ψ + α I)⁻¹ Ψᵀ Y` solved anew on every batch and differentiated through (variable
    projection); then `W` and `K` together. The start, the rate and the stage are chosen by the
    validation score; the best start is among them.

    Args:
        model, calibration, budget, at, labels, validation, task, score_fn, key: as for `koopman`.
        steps: of the first stage; 0 leaves it out.
        together: of the second stage; 0 leaves it out, and K stays the least-squares one.
        rates: of learning, relative to the size of each array's entries.
        seconds: after which no further stage is begun.
        progress: called as `progress(step, {"divergence": ...})`, steps counted over both stages.

    Returns:
        `Compressed`, as of `koopman`; `settings["trained"]` says which stage it came from.

    Numerics:
        A step of the first stage costs `O(b p²)` for batches of `b ≈ max(1000, 3 p)`, of the
        second `O(512 p q)`; float32. K of the first stage is solved in float64 on all samples.

    Raises:
        ValueError: as `koopman`; steps below 0, or no rate.

    Reference: Golub & Pereyra (1973), SIAM J. Numer. Anal. 10, 413; Hinton, Vinyals & Dean (2015),
        arXiv 1503.02531.
    """
    if min(steps, together) < 0 or not rates or min(rates) <= 0:
        raise expected(
            "koopman_trained: steps and together at least 0, rates above 0",
            f"{steps}, {together} and {tuple(rates)}",
        )
    clock = Clock(seconds)
    problem = pose(
        "koopman_trained", model, calibration, budget, labels, validation, key, task, score_fn
    )
    if problem.is_met:
        return untouched("koopman_trained", problem)
    job = on_span("koopman_trained", problem, at, key)
    starts, found = _starts(job, clock)
    made = {"start": starts[0]}
    if (steps or together) and not clock.over():
        draw = jax.random.split(jax.random.fold_in(key, 2), 3)
        trial = (max(1, round(TRIAL * (together or steps))), not together)
        start, rate = _choose(starts, rates, *trial, draw[0])
        if steps:
            made["solve"] = start.solve(start.train(steps, rate, True, draw[1], progress))
            start = max(start, made["solve"], key=lambda stage: stage.built.score)
        if together and not clock.over():
            told = _from_step(steps, progress)
            made["together"] = start.keep(start.train(together, rate, False, draw[2], told))
    return _finish(found, made)


class _Stage(NamedTuple):
    """A block, and what it takes to train on from it."""

    job: Job
    found: Found
    built: Built
    frame: _varpro.Frame
    state: _varpro.Trained
    data: tuple[Array, Array, Array]
    rows_val: Array

    @classmethod
    def of(cls, job: Job, found: Found, built: Built) -> "_Stage":
        """Ready to train."""
        setting, span, mask = built.setting, job.span, built.matrix != 0
        frame = _varpro.frame(found.moment, setting.kept, setting.columns, setting.degree, mask)
        state = _varpro.begin(frame, built.matrix, built.shift, built.clean)
        data = (span.h[:, setting.kept], span.y, _teacher(job))
        return cls(job, found, built, frame, state, data, span.h_val[:, setting.kept])

    def train(
        self, steps: int, rate: float, through: bool, key: Array, told: Any = None
    ) -> _varpro.Trained:
        """The best state on the way."""
        return self._train(steps, rate, through, key, told)[0]

    def score(self, steps: int, rate: float, through: bool, key: Array) -> Score:
        """How far a few steps get."""
        return self._train(steps, rate, through, key, None)[1]

    def _train(self, steps: int, rate: float, through: bool, key: Array, told: Any) -> Any:
        span = self.job.span
        return _varpro.train(
            self.frame, self.state, self.data, tail=span.tail,
            shape=(span.out_shape, span.out_dtype), task=self.job.problem.task, steps=steps,
            rate=rate, through=through, look=functools.partial(self._look, through), key=key,
            progress=told,
        )  # fmt: skip

    def _look(self, through: bool, state: _varpro.Trained) -> Score:
        if through:
            psi = _observe(self.frame, state, self.data[0][:LOOK])
            state = state._replace(operator=(_varpro.solved(psi, self.data[1][:LOOK]),))
        states = _predict(self.frame, state, self.rows_val)
        return self.job.problem.score(self.job.span.outputs_of(np.asarray(states)))

    def solve(self, state: _varpro.Trained) -> "_Stage":
        """With the least-squares K of a trained projection, its ridge chosen anew."""
        matrix, shift = _varpro.projection(self.frame, state)
        setting, problem = self.built.setting, self.job.problem
        h, y, _ = self.data
        n = min(len(h), ROWS)
        psi = np.asarray(_observe(self.frame, state, h[:n]), np.float64)
        psi_val = np.asarray(_observe(self.frame, state, self.rows_val), np.float64)
        gram, cross = psi.T @ psi, psi.T @ np.asarray(y[:n], np.float64)
        scores = []
        for ridge in RIDGES:
            k = ridge_solve(gram, cross, ridge * n)
            scores.append((problem.score(self.job.span.outputs_of(psi_val @ k)), ridge))
        setting = dataclasses.replace(setting, ridge=max(scores)[1])
        return _Stage.of(self.job, self.found, build_from(self.job, setting, matrix, shift))

    def keep(self, state: _varpro.Trained) -> "_Stage":
        """With the K that was trained; should the file not fit, the faintest products go."""
        job, setting = self.job, self.built.setting
        matrix, shift = _varpro.projection(self.frame, state)
        k: list[np.ndarray] = [np.asarray(a) for a in state.operator]
        while True:
            operator = tuple(k) if len(k) > 1 else k[0]
            block = koopman_block(job.span, setting, matrix, shift, operator)
            model = wrap(job.problem, job.span, job.ends, block)
            over = export.stored_bytes(model) - job.problem.limit
            if over <= 0 or setting.observables <= 2:
                score = job.problem.score_model(model)
                code = self.built.code
                built = Built(model, setting, matrix, shift, operator, operator, score, code)
                return _Stage.of(job, self.found, built)
            count = max(1, over // (4 * setting.rank))
            order = np.argsort(-np.linalg.norm(functools.reduce(np.matmul, k), axis=1))
            stay = np.sort(order[: max(2, setting.observables - count)])
            setting = dataclasses.replace(setting, columns=setting.columns[stay])
            k = [k[0][stay], *k[1:]]


_observe, _predict = jax.jit(_varpro.observe), jax.jit(_varpro.predict)


def _teacher(job: Job) -> Array:
    """The original's outputs on the calibration samples."""
    span = job.span
    rows = range(0, span.count, 2000)
    out = jnp.concatenate([span.outputs_of(span.y[i : i + 2000]) for i in rows])
    return out.astype(jnp.float32)


def _starts(job: Job, clock: Clock) -> tuple[list["_Stage"], Found]:
    """Where training may begin, the best first, and the account of all that was tried for it."""
    starts: list[_Stage] = []
    tried = skipped = 0
    for read in readings(job):
        if starts and clock.over():
            skipped += 1
            break
        found = search(read.problem, read.span, read.room, clock)
        tried, skipped = tried + found.tried, skipped + found.skipped
        starts += [_Stage.of(read, f, build(read, f)) for f in _apart(found)]
    starts.sort(key=lambda stage: stage.built.score, reverse=True)
    found = dataclasses.replace(starts[0].found, tried=tried, skipped=skipped)
    return starts[: STARTS + 1], found


def _apart(found: Found) -> list[Found]:
    """The best setting, and others that read clearly more or fewer entries."""
    chosen = [found]
    for other in found.others:
        size = len(other.setting.kept)
        ratios = [size / len(f.setting.kept) for f in chosen]
        if len(chosen) < STARTS and all(max(a, 1 / a) >= APART for a in ratios):
            chosen.append(other)
    return chosen


def _choose(
    starts: list[_Stage], rates: Sequence[float], steps: int, through: bool, key: Array
) -> tuple[_Stage, float]:
    """The start and the rate that get furthest in a few steps."""
    tried = [
        (stage.score(steps, rate, through, key), -place, -which)
        for place, stage in enumerate(starts)
        for which, rate in enumerate(rates)
    ]
    _, place, which = max(tried)
    return starts[-place], rates[-which]


def _from_step(first: int, progress: Callable[[int, dict[str, float]], None] | None) -> Any:
    """Progress of a stage that begins at a step of the whole."""
    return progress and (lambda step, metrics: progress(first + step, metrics))


def _finish(found: Found, made: dict[str, _Stage]) -> Compressed:
    """The stage that is best on validation; the earlier one where they tie."""
    scores = {name: stage.built.score for name, stage in made.items()}
    name = max(scores, key=lambda n: scores[n])
    job = made[name].job
    shown = ", ".join(f"{n} {score.value:.4f}" for n, score in scores.items())
    why = f"the best validation {job.problem.measure} of these stages: {shown}"
    whole = dataclasses.replace(made[name].found, tried=found.tried, skipped=found.skipped)
    return account("koopman_trained", job, whole, made[name].built, why=why, trained=name)
