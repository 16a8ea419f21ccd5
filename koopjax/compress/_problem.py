"""What every method needs first: checked data, the original's outputs, and one way to score."""

import copy
import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from koopjax import export, models, surgery
from koopjax._core import SUCCESS, as_array, as_key, check_finite, expected, on_device
from koopjax.compress._result import Budget, BudgetTooSmall, Compressed, finish, too_small

#: `score_fn(outputs, labels)`, a scalar, larger is better; the same object again compiles nothing.
ScoreFn = Callable[[Array, Array], Any]
#: Share of the calibration samples held out where the caller gives no validation data.
HELD_OUT = 1 / 6
#: Fewer answers than this tell nothing about a setting.
FEWEST = 8
#: With fewer, the report says how uncertain the choice is.
FEW = 100
#: More validation samples than this tell settings no better apart, for the time that they take.
MOST_VALIDATION = 5000


@dataclasses.dataclass(frozen=True, order=True)
class Score:
    """How good a setting is on the validation data; larger is better.

    Attributes:
        value: accuracy, agreement, R², or what the caller's `score_fn` says.
        closeness: to the original, breaks ties: minus the KL divergence from its softmax, or R².
    """

    value: float
    closeness: float


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """A model to compress and the data to do it with.

    Attributes:
        method: name of the method that it was posed to.
        model: the original.
        x: `(n, ...)` calibration samples without those held out, in random order.
        y: their labels, or None.
        x_val: validation samples.
        teacher: the original's outputs on `x_val`, `(m, q)` (positions of tokens as rows).
        y_val: labels of `x_val`, `(m,)` classes, or what `score_fn` takes; or None.
        task: how the output is read, of `models.TASKS`.
        score_fn: of outputs and labels as the caller has them, in place of accuracy and R².
        shape: of the outputs on `x_val`.
        held_out: whether `x_val` was taken out of the calibration samples.
        original_bytes: size of the original's file.
        limit: bytes that the compressed model may take.
        budget: the budget as asked for.
        key: for draws.
    """

    method: str
    model: Any
    x: Array
    y: Array | None
    x_val: Array
    teacher: Array
    y_val: Array | None
    task: str
    score_fn: Any
    shape: tuple[int, ...]
    held_out: bool
    original_bytes: int
    limit: int
    budget: Budget
    key: Array

    @property
    def measure(self) -> str:
        """Name of the score."""
        if self.score_fn is not None:
            return getattr(self.score_fn, "__name__", "score_fn")
        if self.task == "classification":
            return "agreement" if self.y_val is None else "accuracy"
        return "r2"

    @property
    def softmax(self) -> bool:
        """Whether a softmax reads the outputs, to which a common shift of them is nothing."""
        return self.task == "classification" and self.teacher.shape[-1] > 1

    @property
    def is_met(self) -> bool:
        """Whether the original is as small as asked for."""
        return self.original_bytes <= self.limit

    def score(self, outputs: Float[Array, "m q"]) -> Score:
        """Compare outputs on `x_val` with the labels, or with the original where there are none."""
        outputs = on_device(outputs, self.teacher.dtype)
        shape = self.teacher.shape if self.score_fn is None else self.shape
        found = _compare(
            outputs.reshape(shape), self.teacher.reshape(shape), self.y_val, task=self.task,
            score_fn=self.score_fn,
        )  # fmt: skip
        value = float(found["agreement" if self.y_val is None else "accuracy"])
        classes = self.task == "classification"
        closeness = -float(found["kl"]) if classes else float(found["agreement"])
        # Only what counts: a mean squared difference may overflow where R² is near 1.
        if not np.isfinite([value, closeness]).all():
            return Score(-np.inf, -np.inf)
        return Score(value, closeness)

    def score_model(self, model: Any) -> Score:
        """Score a model of any form."""
        return self.score(models.predict(model, self.x_val))

    def improved(self, score: Score, model: Any, stored: Any = None) -> Score | None:
        """A model's score where it is better and its file fits; `stored` is what the file holds."""
        again = self.score_model(model)
        if again > score and export.stored_bytes(model if stored is None else stored) <= self.limit:
            return again
        return None

    def account(self, score: Score) -> dict[str, Any]:
        """The score as fields of a `Report`."""
        divergence = -score.closeness if self.task == "classification" else None
        return {
            "score": score.value, "measure": self.measure, "divergence": divergence,
            "task": self.task, "notes": self._notes(),
        }  # fmt: skip

    def finish(
        self, model: Any, score: Score, *, settings: Mapping[str, Any], why: str, candidates: int,
        result: int = SUCCESS, advice: tuple[str, ...] = (),
    ) -> Compressed:  # fmt: skip
        """The answer: a model whose file fits, with its report; for the settings see `Report`.

        `advice` goes before the notes, in place of what the code `result` says.
        """
        return finish(
            model, method=self.method, budget=self.budget, original_bytes=self.original_bytes,
            settings=dict(settings), why=why, candidates=candidates, result=result, advice=advice,
            **self.account(score),
        )  # fmt: skip

    def untouched(self) -> Compressed:
        """A copy of the original, where the budget asks for nothing smaller."""
        form, params, rest = models.form_of(self.model)
        model = form.merge(*jax.tree.map(copy.copy, (params, rest)))
        return self.finish(
            model, self.score_model(model), settings={"unchanged": True}, candidates=0,
            why=f"the original's {self.original_bytes} bytes are within the budget",
        )  # fmt: skip

    def trial(self, model: Any, settings: Mapping[str, Any]) -> "Trial":
        """A form of the model, measured."""
        return Trial(model, export.stored_bytes(model), self.score_model(model), settings)

    def best(self, trials: Sequence["Trial"], why: str) -> Compressed:
        """The trial that validates best of those that fit, as the answer.

        Raises:
            BudgetTooSmall: none fits.
        """
        fitting = [trial for trial in trials if trial.size <= self.limit]
        if not fitting:
            raise self.too_small(min(trial.size for trial in trials))
        model, _, score, settings = max(fitting, key=lambda trial: trial.score)
        return self.finish(model, score, settings=settings, why=why, candidates=len(trials))

    def too_small(self, smallest: int) -> BudgetTooSmall:
        """The error where the method's smallest form takes so many bytes."""
        return too_small(self.method, self.limit, smallest, self.original_bytes)

    def _notes(self) -> tuple[str, ...]:
        """What a reader of the score should know."""
        found, q = [], self.teacher.shape[-1]
        if self.measure == "r2" and q > 1:
            found.append(
                f"{q} outputs without labels are taken for real numbers, judged by their R²; say "
                "task='classification' where the largest is the answer"
            )
        if (n := len(self.teacher)) < FEW:
            found.append(
                f"settings were chosen on {n} validation answers, whose score is uncertain by some "
                f"{0.5 / np.sqrt(n):.2f}; give more samples"
            )
        return tuple(found)


class Trial(NamedTuple):
    """One form of a model: its bytes, its score on the validation data, its settings."""

    model: Any
    size: int
    score: Score
    settings: Mapping[str, Any]


def cut(model: Any, x: Array, at: Any) -> tuple[tuple[Any, Any, Any], tuple[str, str]]:
    """Head, span and tail, and the names of the cuts; `at` is where to start, a pair, or None."""
    if at is None:
        at = ("input", "output")
    elif isinstance(at, str | int | surgery.CutPoint):
        at = (at, "output")
    sample = jax.ShapeDtypeStruct((2, *x.shape[1:]), x.dtype)
    parts = surgery.split(model, sample, at)
    surgery.check_rows(parts[1])
    return parts, (parts[1].segment.start, parts[1].segment.stop)


def check_real(model: Any, x: Array, parts: tuple[Any, Any, Any]) -> None:
    """Refuse a span from or to integers, such as tokens, which say nothing as numbers."""
    sample = jax.ShapeDtypeStruct((2, *x.shape[1:]), x.dtype)
    before = jax.eval_shape(parts[0], sample)
    after = jax.eval_shape(parts[1], before)
    for value, end in ((before, parts[1].segment.start), (after, parts[1].segment.stop)):
        if jnp.issubdtype(value.dtype, jnp.floating):
            continue
        cuts = surgery.cut_points(model, sample)
        real = [c.name for c in cuts if jnp.issubdtype(c.dtype, jnp.inexact)]
        start = f"at={real[0]!r} behind an embedding" if real else "another model"
        raise expected(
            "a span between real numbers", f"{value.dtype} at the cut {end!r}",
            f"{start}, or x.astype('float32') for integers that are no tokens",
        )  # fmt: skip


def run(part: Any, x: Array) -> Array:
    """A part of the model on samples, some thousand at a time."""
    if len(x) <= 2000:
        return part(x)
    return jnp.concatenate([part(x[i : i + 2000]) for i in range(0, len(x), 2000)])


def placed(
    model: Any, x: Array, ends: tuple[str, str], block: Any, *, before: Array, rank: int,
    dtype: Any, last: bool,
) -> Any:  # fmt: skip
    """A float32 block of rows as the whole model where it replaces all of it, else spliced into it.

    `before` are states at the first cut; rank and dtype are of those at the second.
    """
    vectors = before.ndim == rank == 2
    # A spliced model hands on the original's dtype where promotion would give another.
    same = jnp.result_type(before.dtype, jnp.float32) == dtype
    if vectors and same and ends[0] == "input" and last:
        return block
    sample = jax.ShapeDtypeStruct((2, *x.shape[1:]), x.dtype)
    axes = None if vectors else "flatten"
    return surgery.splice(model, sample, ends, block, sample_axes=axes)


_compare = jax.jit(models.compare, static_argnames=("task", "score_fn"))


def posed(solve: Callable[..., Compressed]) -> Callable[..., Compressed]:
    """A method from what it does once its problem is posed.

    Args:
        solve: `solve(problem, at)` for a `Problem` and a span (None for the whole model) returns
            what `problem.finish` makes; where nothing fits it raises `problem.too_small(bytes)`.
            Keywords that it has beside these are settings of the method.

    Returns:
        A function of the signature that all methods have, under the name and the docstring of
        `solve`, and with its settings. A budget that the original meets gives a copy of it.
    """
    name, own = solve.__name__, list(inspect.signature(solve).parameters.values())[2:]

    def method(
        model: Any, calibration: ArrayLike, budget: Any, *, at: Any = None,
        labels: ArrayLike | None = None, validation: Any = None, key: Array,
        task: str | None = None, score_fn: ScoreFn | None = None, **settings: Any,
    ) -> Compressed:  # fmt: skip
        if unknown := settings.keys() - {parameter.name for parameter in own}:
            raise TypeError(f"{name}() got an unexpected keyword argument {min(unknown)!r}")
        problem = pose(name, model, calibration, budget, labels, validation, key, task, score_fn)
        return problem.untouched() if problem.is_met else solve(problem, at, **settings)

    told = ("__module__", "__name__", "__qualname__", "__doc__")
    functools.update_wrapper(method, solve, assigned=told, updated=())
    delattr(method, "__wrapped__")  # or `help` would show the arguments of `solve`
    *shared, _ = inspect.signature(method).parameters.values()
    signature = inspect.signature(method).replace(parameters=[*shared, *own])
    method.__signature__ = signature  # pyright: ignore[reportFunctionMemberAccess]
    return method


def pose(
    method: str, model: Any, calibration: Any, budget: Any, labels: Any, validation: Any, key: Any,
    task: str | None = None, score_fn: Any = None,
) -> Problem:  # fmt: skip
    """Check the arguments that all methods share, hold out validation data, run the original."""
    budget = Budget.parse(budget)
    key = as_key(method, key)
    x = _samples(f"{method}: calibration", calibration, 2)
    like = models.output_like(model, x, by_rows=labels is not None)
    if len(like.shape) < 2:
        raise expected(
            f"{method}: a model with outputs (n, q)", f"outputs of shape {like.shape}",
            "a last axis of classes or of one regression target",
        )  # fmt: skip
    y, held_out = None, validation is None
    if labels is not None:
        name = f"{method}: labels"
        task, y = models.read_task(like, labels, task, name=name, score_fn=score_fn)
    if held_out:
        order, held = _split(method, len(x), key)
        x_val, y_val = _rows(x, held), None if y is None else _rows(y, held)
    else:
        x_val, y_val = _validation(method, model, x, validation)
        # In random order, as after holding out: methods take the first samples as a sample.
        order = jax.random.permutation(key, len(x))
    x, y = _rows(x, order), None if y is None else _rows(y, order)
    outputs = models.predict(model, x_val)
    check_finite(f"the original model's outputs ({method})", outputs)
    if score_fn is not None and y_val is None:
        raise expected(f"{method}: score_fn with labels of the validation samples", "none")
    name = f"{method}: {'labels' if held_out else 'validation'}"
    task, y_val = models.read_task(outputs, y_val, task, name=name, score_fn=score_fn)
    teacher = outputs.reshape(-1, outputs.shape[-1]).astype(jnp.float32)
    if len(teacher) < FEWEST:
        raise expected(
            f"{method}: at least {FEWEST} validation samples to choose settings by",
            f"{len(teacher)}", "more of them; they need no labels",
        )  # fmt: skip
    if y_val is not None and score_fn is None:
        # A regression is held against its original, whose outputs the fit aims at.
        y_val = y_val.reshape(-1) if task == "classification" else None
    original = export.stored_bytes(model)
    problem = Problem(
        method, model, x, y, x_val, teacher, y_val, task, score_fn, outputs.shape, held_out,
        original, budget.bytes(original), budget, key,
    )  # fmt: skip
    if score_fn is not None:
        _check_score_fn(method, problem, outputs)
    return problem


# One program, where indexing by an array compiles one for each step of its own.
_rows = functools.partial(jnp.take, axis=0)


def _split(method: str, n: int, key: Array) -> tuple[Array, Array]:
    """Indices of the samples that are kept, and of those held out, in random order."""
    count = min(MOST_VALIDATION, max(FEWEST, round(HELD_OUT * n)))
    if n < 2 * count:
        raise expected(
            f"{method}: at least {2 * FEWEST} calibration samples, some of which are held out "
            "to choose settings by",
            f"{n}", "more of them; they need no labels",
        )  # fmt: skip
    order = jax.random.permutation(key, n)
    return order[count:], order[:count]


def _validation(method: str, model: Any, x: Array, validation: Any) -> tuple[Array, Any]:
    """Samples to choose by as the caller gives them, and their labels or None."""
    pair = isinstance(validation, tuple) and len(validation) == 2
    x_val, y_val = validation if pair else (validation, None)
    x_val = _samples(f"{method}: validation", x_val, 1)
    if x_val.shape[1:] != x.shape[1:]:
        raise expected(
            f"{method}: validation samples of shape {x.shape[1:]}, like calibration",
            f"{x_val.shape[1:]}", "samples of one set",
        )  # fmt: skip
    if y_val is not None:
        models.output_like(model, x_val, by_rows=True)
    return x_val, y_val


def _check_score_fn(method: str, problem: Problem, outputs: Array) -> None:
    """Refuse what can't be traced to one number, or gives none for the original."""
    outputs = outputs.astype(jnp.float32)
    wanted = f"{method}: one finite number of score_fn(outputs, labels)"
    hint = "jax.numpy in place of numpy, since score_fn is traced"
    try:
        like = jax.eval_shape(problem.score_fn, outputs, problem.y_val)
    except TypeError as error:  # all that JAX says of what can't be traced
        why = str(error).partition("\n")[0][:150]
        raise expected(wanted, f"{type(error).__name__} ({why})", hint) from error
    if not isinstance(like, jax.ShapeDtypeStruct) or like.shape:
        raise expected(wanted, f"{like}", "jnp.mean of it")
    if np.isinf(problem.score(outputs).value):
        raise expected(wanted, "NaN or infinity for the original", "a score that is finite there")


def _samples(name: str, x: Any, least: int) -> Array:
    if isinstance(x, tuple):
        raise expected(f"{name} as one array (n, ...)", type(x).__name__, "labels=... for labels")
    x = as_array(name, x)
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.float32)
    if x.ndim < 2 or x.shape[0] < least:
        raise expected(
            f"{name} of shape (n, ...) with at least {least} samples", f"shape {x.shape}",
            "samples as the model takes them, a row each",
        )  # fmt: skip
    check_finite(name, x)
    return x
