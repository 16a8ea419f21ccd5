"""The label-free Koopman method: a projection trained through the least-squares solve."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from koopjax._core import expected
from koopjax.compress._koopman import varpro
from koopjax.compress._koopman.block import Setting
from koopjax.compress._koopman.fit import Fitted, fit, fit_behind
from koopjax.compress._koopman.method import account
from koopjax.compress._koopman.search import Tally, best_ridge, search
from koopjax.compress._koopman.span import ROWS, Span, readings, roomy_span
from koopjax.compress._problem import Problem, Score, posed, run
from koopjax.compress._result import Compressed

#: Rates of learning tried, relative to the size of each array's entries.
RATES = (0.03, 0.1)
#: Starts tried, and the least ratio of their numbers of entries.
STARTS, APART = 3, 1.2
#: Share of the steps in a trial of a start and a rate.
TRIAL = 0.1
#: Samples on which K is solved to look at a projection.
LOOK = 10_000


@posed
def koopman_trained(
    problem: Problem, at: Any, *, steps: int = 100, together: int = 2000,
    rates: Sequence[float] = RATES, seconds: float | None = None,
    progress: Callable[[int, dict[str, float]], None] | None = None,
) -> Compressed:  # fmt: skip
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
    tally = Tally(seconds)
    starts = _starts(roomy_span(problem, at), tally)
    made = {"start": starts[0]}
    if (steps or together) and not tally.over():
        draw = jax.random.split(jax.random.fold_in(problem.key, 2), 3)
        trial = (max(1, round(TRIAL * (together or steps))), not together)
        start, rate = _choose(starts, rates, *trial, draw[0])
        if steps:
            made["solve"] = start.solve(start.train(steps, rate, True, draw[1], progress)[0])
            start = max(start, made["solve"], key=lambda stage: stage.fitted.score)
        if together and not tally.over():
            told = progress and (lambda step, metrics: progress(steps + step, metrics))
            made["together"] = start.keep(start.train(together, rate, False, draw[2], told)[0])
    scores = {name: stage.fitted.score for name, stage in made.items()}
    name = max(scores, key=lambda n: scores[n])  # the earlier stage where they tie
    shown = ", ".join(f"{n} {score.value:.4f}" for n, score in scores.items())
    why = f"the best validation {problem.measure} of these stages: {shown}"
    return account(made[name].fitted, tally, why, trained=name)


class _Stage(NamedTuple):
    """A block, and what it takes to train on from it."""

    fitted: Fitted
    frame: varpro.Frame
    state: varpro.Trained
    data: tuple[Array, Array, Array]
    rows_val: Array

    @classmethod
    def of(cls, fitted: Fitted) -> "_Stage":
        """Ready to train."""
        setting, span, matrix = fitted.setting, fitted.span, fitted.matrix
        frame = varpro.frame(*span.moments, setting.kept, setting.columns, setting.degree, matrix)
        state = varpro.begin(frame, matrix, fitted.shift, fitted.clean)
        data = (span.h[:, setting.kept], span.y, _teacher(span))
        return cls(fitted, frame, state, data, span.h_val[:, setting.kept])

    def train(
        self, steps: int, rate: float, through: bool, key: Array, told: Any = None
    ) -> tuple[varpro.Trained, Score]:
        """The best state on the way, and its score."""
        span = self.fitted.span
        return varpro.train(
            self.frame, self.state, self.data, tail=span.tail,
            shape=(span.out_shape, span.out_dtype), task=span.problem.task, steps=steps,
            rate=rate, through=through, look=functools.partial(self._look, through), key=key,
            progress=told,
        )  # fmt: skip

    def _look(self, through: bool, state: varpro.Trained) -> Score:
        if through:
            psi = _observe(self.frame, state, self.data[0][:LOOK])
            state = state._replace(operator=(varpro.solved(psi, self.data[1][:LOOK]),))
        return self.fitted.span.score(np.asarray(_predict(self.frame, state, self.rows_val)))

    def solve(self, state: varpro.Trained) -> "_Stage":
        """With the least-squares K of a trained projection, its ridge chosen anew."""
        span, (h, y, _) = self.fitted.span, self.data
        psi = np.asarray(_observe(self.frame, state, h[:ROWS]), np.float64)
        psi_val = np.asarray(_observe(self.frame, state, self.rows_val), np.float64)
        gram, cross = psi.T @ psi, psi.T @ np.asarray(y[:ROWS], np.float64)
        ridge = best_ridge(span, gram, cross, psi_val, len(psi))
        setting = dataclasses.replace(self.fitted.setting, ridge=ridge)
        return _Stage.of(fit_behind(span, setting, *varpro.projection(self.frame, state)))

    def keep(self, state: varpro.Trained) -> "_Stage":
        """With the K that was trained; should the file not fit, the faintest products go."""
        span, setting = self.fitted.span, self.fitted.setting
        matrix, shift = varpro.projection(self.frame, state)
        k: list[np.ndarray] = [np.asarray(a) for a in state.operator]
        while True:
            operator = tuple(k) if len(k) > 1 else k[0]
            model = span.fitted(setting, matrix, shift, operator)
            over = span.over(model)
            if over <= 0 or setting.observables <= 2:
                break
            count = max(1, over // (4 * setting.rank))
            order = np.argsort(-np.linalg.norm(functools.reduce(np.matmul, k), axis=1))
            stay = np.sort(order[: max(2, setting.observables - count)])
            setting = dataclasses.replace(setting, columns=setting.columns[stay])
            k = [k[0][stay], *k[1:]]
        score, code = span.problem.score_model(model), self.fitted.code
        return _Stage.of(Fitted(span, setting, model, matrix, shift, operator, score, code))


_observe, _predict = jax.jit(varpro.observe), jax.jit(varpro.predict)


def _teacher(span: Span) -> Array:
    """The original's outputs on the calibration samples."""
    return run(span.outputs_of, span.y).astype(jnp.float32)


def _starts(span: Span, tally: Tally) -> list[_Stage]:
    """Where training may begin, the best first."""
    starts: list[_Stage] = []
    for read in readings(span):
        if starts and tally.over():
            tally.skipped += 1
            break
        found = [setting for _, setting in search(read, read.room, tally)]
        starts += [_Stage.of(fit(read, setting)) for setting in _apart(found)]
    starts.sort(key=lambda stage: stage.fitted.score, reverse=True)
    return starts[: STARTS + 1]


def _apart(found: list[Setting]) -> list[Setting]:
    """The best setting, and others that read clearly more or fewer entries."""
    chosen = found[:1]
    for other in found[1:]:
        ratios = [len(other.kept) / len(setting.kept) for setting in chosen]
        if len(chosen) < STARTS and all(max(a, 1 / a) >= APART for a in ratios):
            chosen.append(other)
    return chosen


def _choose(
    starts: list[_Stage], rates: Sequence[float], steps: int, through: bool, key: Array
) -> tuple[_Stage, float]:
    """The start and the rate that get furthest in a few steps."""
    tried = [
        (stage.train(steps, rate, through, key)[1], -place, -which)
        for place, stage in enumerate(starts)
        for which, rate in enumerate(rates)
    ]
    _, place, which = max(tried)
    return starts[-place], rates[-which]
