"""The label-free Koopman method: a projection trained through the least-squares solve."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from koopjax import models
from koopjax._core import expected, matmul, on_device, pytree
from koopjax.compress._koopman.block import Setting, product_factors
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
#: Ridge of the solve on a batch, relative to its samples.
RIDGE = 1e-3
#: Samples a step once K is a parameter.
BATCH = 512
#: Samples an observable in a batch on which K is solved, and the least number of samples.
PER_PRODUCT, LEAST_ROWS = 3, 1000
#: Entries of the state that vary less than this share of the widest are not blown up further.
FLOOR = 0.05
#: A stage is looked at on the validation data so many times.
LOOKS = 8


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


@pytree
class Frame:
    """What training holds fixed: moments of the kept entries, the covariance once standardised."""

    mean: Any
    scale: Any
    covariance: Any
    mask: Any  # (m, r), ones where a coordinate reads an entry
    # (degree, r + 1, p): observable j is the product over k of `[1, z] @ factors[k]`, a matrix
    # product whose gradient is one, which a gather's isn't.
    factors: Any


class Numbers(NamedTuple):
    """Numbers of a block that train."""

    directions: Array  # (m, r) in standardised entries, of any scale
    shift: Array
    operator: tuple[Array, ...]  # the Koopman matrix, or the factors of it


class _Stage(NamedTuple):
    """A block, and what it takes to train on from it."""

    fitted: Fitted
    frame: Frame
    state: Numbers
    data: tuple[Array, Array, Array]
    rows_val: Array

    @classmethod
    def of(cls, fitted: Fitted) -> "_Stage":
        """Ready to train."""
        setting, span = fitted.setting, fitted.span
        frame, state = begin(
            *span.moments, setting.kept, setting.columns, setting.degree, fitted.matrix,
            fitted.shift, fitted.clean,
        )  # fmt: skip
        teacher = run(span.outputs_of, span.y).astype(jnp.float32)
        data = (span.h[:, setting.kept], span.y, teacher)
        return cls(fitted, frame, state, data, span.h_val[:, setting.kept])

    def train(
        self, steps: int, rate: float, through: bool, key: Array, told: Any = None
    ) -> tuple[Numbers, Score]:
        """The best state on the way, and its score."""
        span = self.fitted.span
        return train(
            self.frame, self.state, self.data, tail=span.tail,
            shape=(span.out_shape, span.out_dtype), task=span.problem.task, steps=steps,
            rate=rate, through=through, look=functools.partial(self._look, through), key=key,
            progress=told,
        )  # fmt: skip

    def _look(self, through: bool, state: Numbers) -> Score:
        if through:
            psi = _observe(self.frame, state, self.data[0][:LOOK])
            state = state._replace(operator=(solved(psi, self.data[1][:LOOK]),))
        return self.fitted.span.score(np.asarray(_predict(self.frame, state, self.rows_val)))

    def solve(self, state: Numbers) -> "_Stage":
        """With the least-squares K of a trained projection, its ridge chosen anew."""
        span, (h, y, _) = self.fitted.span, self.data
        psi = np.asarray(_observe(self.frame, state, h[:ROWS]), np.float64)
        psi_val = np.asarray(_observe(self.frame, state, self.rows_val), np.float64)
        gram, cross = psi.T @ psi, psi.T @ np.asarray(y[:ROWS], np.float64)
        ridge = best_ridge(span, gram, cross, psi_val, len(psi))
        setting = dataclasses.replace(self.fitted.setting, ridge=ridge)
        return _Stage.of(fit_behind(span, setting, *projection(self.frame, state)))

    def keep(self, state: Numbers) -> "_Stage":
        """With the K that was trained; should the file not fit, the faintest products go."""
        span, setting = self.fitted.span, self.fitted.setting
        matrix, shift = projection(self.frame, state)
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


def begin(
    mean: np.ndarray, covariance: np.ndarray, kept: np.ndarray, columns: np.ndarray, degree: int,
    matrix: np.ndarray, shift: Any, k: Any,
) -> tuple[Frame, Numbers]:  # fmt: skip
    """The frame of some entries of a state and products of their coordinates, and a start in it.

    Zeros of the projection stay. Coordinates come to unit variance, which first steps make up for
    in K.
    """
    covariance = covariance[np.ix_(kept, kept)]
    deviation = np.sqrt(np.maximum(np.diag(covariance), 0))
    scale = np.maximum(deviation, FLOOR * (deviation.max() or 1.0))
    covariance = covariance / np.outer(scale, scale) + 1e-6 * np.eye(len(kept))
    table = product_factors(matrix.shape[1], degree)[:, columns]
    factors = np.zeros((degree, matrix.shape[1] + 1, len(columns)))
    for place, places in enumerate(table):
        factors[place, places, np.arange(len(columns))] = 1
    held = lambda a: on_device(a, jnp.float32)
    frame = Frame(*map(held, (mean[kept], scale, covariance, matrix != 0, factors)))
    beyond = np.asarray(shift) - np.asarray(frame.mean, np.float64) @ np.asarray(matrix)
    operator = tuple(map(held, k if isinstance(k, tuple) else (k,)))
    # On the host: each product of other shapes would be compiled.
    directions = np.asarray(matrix, np.float32) * np.asarray(frame.scale)[:, None]
    return frame, Numbers(held(directions), held(beyond), operator)


def projection(frame: Frame, state: Numbers) -> tuple[np.ndarray, np.ndarray]:
    """`(m, r)` matrix for the kept entries as they are, and `(r,)` what is taken off behind it."""
    matrix = np.asarray(_matrix(frame, state.directions), np.float64)
    return matrix, np.asarray(frame.mean, np.float64) @ matrix + np.asarray(state.shift)


def _unit(frame: Frame, directions: Array) -> Array:
    """Directions whose coordinates have unit variance, so that scale is no degree of freedom."""
    rows = directions * frame.mask
    variance = jnp.sum(rows * matmul(frame.covariance, rows), axis=0)
    return rows / jnp.sqrt(jnp.maximum(variance, 1e-12))[None]


@jax.jit
def _matrix(frame: Frame, directions: Array) -> Array:
    return _unit(frame, directions) / frame.scale[:, None]


def observe(frame: Frame, state: Numbers, h: Float[Array, "n m"]) -> Float[Array, "n p"]:
    """The observables of kept entries as they are."""
    z = (h - frame.mean[None]) / frame.scale[None]
    z = matmul(z, _unit(frame, state.directions)) - state.shift[None]
    one = jnp.concatenate([jnp.ones((len(h), 1), z.dtype), z], axis=1)
    return functools.reduce(jnp.multiply, [matmul(one, f) for f in frame.factors])


def predict(frame: Frame, state: Numbers, h: Float[Array, "n m"]) -> Float[Array, "n q"]:
    """States at the second cut."""
    return functools.reduce(matmul, state.operator, observe(frame, state, h))


def solved(psi: Float[Array, "n p"], y: Float[Array, "n q"]) -> Float[Array, "p q"]:
    """`(Ψᵀ Ψ + α n I)⁻¹ Ψᵀ Y`, which gradients go through."""
    gram = matmul(psi.T, psi) + RIDGE * len(psi) * jnp.eye(psi.shape[1], dtype=psi.dtype)
    return jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(gram), True), matmul(psi.T, y))


def divergence(outputs: Float[Array, "*n q"], teacher: Float[Array, "*n q"], task: str) -> Array:
    """`models.divergence` from the teacher; of a regression relative to the teacher's variance."""
    found = models.divergence(teacher, outputs, task)
    return found if task == "classification" else found / jnp.maximum(jnp.var(teacher), 1e-12)


@functools.partial(jax.jit, static_argnames=("through", "rows", "shape", "task"))
def _steps(
    carry: Any, frame: Frame, tail: Any, data: tuple[Array, Array, Array], key: Array,
    rates: Array, *, through: bool, rows: int, shape: Any, task: str,
) -> Any:  # fmt: skip
    h, y, teacher = data
    keys = jax.random.split(key, len(rates))
    adam = optax.scale_by_adam()

    def outputs(states: Array) -> Array:
        out_shape, dtype = shape
        states = states.astype(dtype).reshape(len(states), *out_shape)
        out = states if tail is None else tail(states)
        return out.astype(jnp.float32)

    def loss(state: Numbers, batch: Array) -> Array:
        if not through:
            states = predict(frame, state, h[batch])
        else:
            psi, half = observe(frame, state, h[batch]), rows // 2
            # What K is solved on and what it is judged by are different samples.
            states = matmul(psi[half:], solved(psi[:half], y[batch[:half]]))
            batch = batch[half:]
        out = outputs(states)
        return divergence(out, teacher[batch].reshape(out.shape), task)

    def step(carry: Any, now: Any) -> Any:
        state, inner = carry
        key, rate = now
        batch = jax.random.randint(key, (rows,), 0, len(h))
        value, slopes = jax.value_and_grad(loss)(state, batch)
        # One step in the direction of Adam, relative to the size of each array.
        updates: Any
        updates, inner = adam.update(slopes, inner)
        size = lambda a: jax.lax.stop_gradient(jnp.sqrt(jnp.mean(a**2)) + 1e-8)
        # Coordinates have unit variance, so that a shift is of size one.
        sizes = Numbers(size(state.directions), jnp.ones(()), tuple(map(size, state.operator)))
        # Where float64 is on, scalars would widen the float32 parameters.
        move = lambda a, u, size: a - (rate * size * u).astype(a.dtype)
        state = jax.tree.map(move, state, updates, sizes)
        return (state, inner), value

    return jax.lax.scan(step, carry, (keys, rates))


_begin_adam = jax.jit(optax.scale_by_adam().init)


def train(
    frame: Frame, state: Numbers, data: tuple[Array, Array, Array], *, tail: Any,
    shape: tuple[tuple[int, ...], Any], task: str, steps: int, rate: float, through: bool,
    look: Callable[[Numbers], Any], key: Array,
    progress: Callable[[int, dict[str, float]], None] | None = None,
) -> tuple[Numbers, Any]:  # fmt: skip
    """Adam with a cosine schedule on the divergence from the original; the best state, its score.

    With `through`, `K = (Ψᵀ Ψ + α I)⁻¹ Ψᵀ Y` is solved on one half of every batch and judged on the
    other, and the projection alone moves; else projection and K both do. The data are `(n, m)` kept
    entries, `(n, q)` states at the second cut and the original's outputs; `shape` is of one state
    there, and its dtype; `look` gives the score on validation data.
    """
    best, score = state, look(state)
    inner = _begin_adam(state)
    n, p = len(data[0]), frame.factors.shape[2]
    # Two halves, one to solve on and one to look at, or one plain batch.
    rows = min(n, max(LEAST_ROWS, PER_PRODUCT * p)) // 2 * 2 if through else min(n, BATCH)
    schedule = np.asarray(rate * 0.5 * (1 + np.cos(np.pi * np.arange(steps) / max(steps, 1))))
    chunk = max(1, -(-steps // LOOKS))
    for first in range(0, steps, chunk):
        rates = on_device(schedule[first : first + chunk], jnp.float32)
        (state, inner), values = _steps(
            (state, inner), frame, tail, data, jax.random.fold_in(key, first), rates,
            through=through, rows=rows, shape=shape, task=task,
        )  # fmt: skip
        now = look(state)
        if now > score:
            best, score = state, now
        if progress is not None:
            progress(first + len(rates), {"divergence": float(jnp.mean(values))})
    return best, score


_observe, _predict = jax.jit(observe), jax.jit(predict)
