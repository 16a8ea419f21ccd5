"""Fine-tuned compression: how each method is trained to a size, under one recipe for all."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike
from jaxtyping import Array

from koopjax import export, models, nn
from koopjax._core import expected
from koopjax.compress._problem import Problem, Score, ScoreFn, pose
from koopjax.compress._result import Budget, BudgetTooSmall, Compressed, too_small
from koopjax.compress.layers._layers import as_nnx, bias_of, get, linear_paths, with_factors
from koopjax.compress.methods._registry import METHODS
from koopjax.compress.training._finetune import Training, train_students
from koopjax.compress.training._students import koopman_student, small_student
from koopjax.compress.training._to_size import Goal

Student = Callable[..., Any]
#: Share of the limit that a file of shared values may grow by while it trains, its biases and
#: values being rounder at first, and bytes for small files.
SLACK, FEW = 0.01, 16
#: Bits that the place of an entry takes among values of few bits.
PLACE = 1.0
#: Of a candidate that there is none of.
WORST = Score(-math.inf, -math.inf)
#: Most times that a smaller file is asked for.
TRIES = 4


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a method is trained to a size.

    Attributes:
        family: "koopman", "pruning", "factorising", "clustering" or "small network".
        start: `start(problem, key, **settings)` makes the student; None takes the method's one-shot
            result in `METHODS`, whose zeros stay.
        saliency: which entries go while it trains; None where the student has its size already.
        variants: settings to choose from on validation data; the same number for every method.
            `learning_rate` may be one of them and `saliency`, in place of the recipe's, another;
            the rest go to `start`.
        any_bits: see `Method`.
    """

    family: str
    start: Student | None = None
    saliency: str | None = "fisher"
    variants: tuple[Mapping[str, Any], ...] = ({},)
    any_bits: bool = False


def _koopman(problem: Problem, key: Array, **settings: Any) -> nnx.Module:
    return koopman_student(problem.model, problem.x, task=problem.task, key=key, **settings)


def _small_exact(
    problem: Problem, key: Array, *, bottleneck: float | None, depth: int = 1
) -> nnx.Module:
    """The widest perceptron within the budget: ReLU layers, behind a bottleneck or not."""
    sizes, narrow = (problem.x.shape[-1], problem.teacher.shape[-1]), bottleneck is not None
    hidden = lambda width: max(1, round(bottleneck * width)) if narrow else width
    widths = lambda width: [width] * narrow + [hidden(width)] * depth

    def numbers(width: int) -> int:
        layers = list(pairwise([sizes[0], *widths(width), sizes[1]]))
        return sum(p * q for p, q in layers) + sum(q for _, q in layers[narrow:])

    linear = [True] * narrow + [False] * depth
    make = lambda width: small_student(
        problem.model, problem.x, widths=widths(width), linear=linear, key=key
    )
    # The header, and biases of zeros that training makes numbers of.
    smallest = make(1)
    stored = export.stored_bytes(smallest)
    biases = sum(a.size for a in jax.tree.leaves(nnx.state(smallest, nnx.Param)) if a.ndim < 2)
    header = stored - 4 * (numbers(1) - biases) + 4
    least = header + 4 * numbers(1)
    if least > problem.limit:
        raise problem.too_small(least)
    width = 1
    while header + 4 * numbers(width + 1) <= problem.limit:
        width += 1
    return make(width)


def _grid(rates: Sequence[float], *settings: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    return tuple({"learning_rate": rate, **one} for one in settings for rate in rates)


_HIGH, _ALL = (5e-3, 1e-2), (2e-3, 5e-3, 1e-2, 2e-2)
_SMALL, _LARGE = {"coordinates": 24, "factors": (10, 10)}, {"coordinates": 32, "factors": (14, 14)}

#: Name -> recipe, with four variants each. What is not here is fine-tuned from its one-shot result,
#: at four learning rates.
RECIPES: dict[str, Recipe] = {
    "koopman": Recipe("koopman", _koopman, variants=_grid(_HIGH, _SMALL, _LARGE)),
    "koopman_chain": Recipe(
        "koopman", _koopman,
        variants=_grid(_HIGH, {**_SMALL, "hidden": (12,)}, {**_LARGE, "hidden": (20,)}),
    ),
    "koopman_sparse": Recipe(
        "koopman", _koopman,
        variants=_grid(_HIGH, {"coordinates": 24, "hidden": (12,)}, {"coordinates": 24}),
    ),
    "magnitude": Recipe(
        "pruning", lambda problem, _: problem.model, "magnitude",
        _grid(_HIGH, {"saliency": "magnitude"}, {"saliency": "lamp"}),
    ),
    "fisher": Recipe("pruning", lambda problem, _: problem.model, "fisher", _grid(_ALL, {})),
    "small_network": Recipe(
        "small network", _small_exact, None,
        _grid(_HIGH, {"bottleneck": 2.0}, {"bottleneck": None}),
    ),
    "small_network_pruned": Recipe(
        "small network",
        lambda problem, key, **how: small_student(problem.model, problem.x, key=key, **how),
        "fisher",
        _grid((1e-2, 2e-2), {"widths": (24, 48), "linear": (True, False)},
              {"widths": (32, 64), "linear": (True, False)}),
    ),
}  # fmt: skip


def recipe(name: str) -> Recipe:
    """The recipe of a method of the library."""
    if name in RECIPES:
        return RECIPES[name]
    if name not in METHODS:
        raise expected(f"a method among {', '.join(sorted({*RECIPES, *METHODS}))}", repr(name))
    method = METHODS[name]
    return Recipe(method.family, None, None, _grid(_ALL, {}), method.any_bits)


def finetuned(
    name: str,
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
    how: Recipe | None = None,
    training: Training | None = None,
    variant: Mapping[str, Any] | None = None,
    value_bits: float | None = None,
    **watch: Any,
) -> Compressed:
    """Compress by a method with training: the fine-tuned counterpart of `METHODS[name]`.

    A gradual method starts from a student that is too large (the original; a Koopman matrix on all
    products; a small network from scratch) and loses entries until the file fits, by distillation;
    any other method starts from its one-shot result and keeps its zeros.

    Args:
        name: in `RECIPES` or `METHODS`.
        model, calibration, budget, at, validation, task, score_fn, key: as for every method.
        labels: `(n,)` classes, or targets of a regression, to learn from beside the original;
            without, distillation alone (label-free).
        how: a recipe of one's own under this name, in place of the library's.
        training: shared settings; the variant's learning rate goes before its own.
        variant: settings of the method; the best of its recipe's, on validation data, without.
        value_bits: quantise on the way (any-bits track): bits that a value takes beside its place.
        watch: `progress` and `checkpoint`, as for `finetune`; a checkpoint of a given variant
            alone.

    Returns:
        `Compressed`; the report names the variant.

    Raises:
        ValueError: an unknown method, bad data, or a budget too small.
    """
    how = recipe(name) if how is None else how
    problem = pose(name, model, calibration, budget, labels, validation, key, task, score_fn)
    if problem.is_met:
        return problem.untouched()
    variants = how.variants if variant is None else (variant,)
    if watch.get("checkpoint") is not None and len(variants) > 1:
        raise expected("a variant with a checkpoint", "several variants", "variant=...")
    if value_bits is not None:
        variants = [{**one, "value_bits": value_bits} for one in variants]
    keys = [jax.random.fold_in(key, number) for number in range(len(variants))]
    tried = candidates(how, problem, variants, key, keys, at, training, **watch)
    return finished(problem, best_of(tried, problem), training, len(variants))


@dataclasses.dataclass(frozen=True, eq=False)
class Candidate:
    """A variant of a method on a problem: the trained student, or why there is none."""

    settings: Mapping[str, Any]
    model: Any = None
    score: Score = WORST
    error: BudgetTooSmall | None = None


def candidates(
    how: Recipe, problem: Problem, variants: Sequence[Mapping[str, Any]], key: Array,
    keys: Sequence[Array], at: Any, training: Training | None, **watch: Any,
) -> list[Candidate]:  # fmt: skip
    """Variants of a method, each trained by its key; starts are shared where they are the same."""
    if problem.is_met:  # a variant is as good as another
        same = problem.untouched().model
        return [Candidate(settings, same, problem.score_model(same)) for settings in variants]
    teacher = models.predict(problem.model, problem.x)
    made: tuple[Any, Any] = None, None
    out: list[Candidate] = []
    for settings, own_key in zip(variants, keys, strict=True):
        begun = _of_start(settings)
        try:
            if made[0] != begun:
                made = begun, start(how, problem, settings, key, at)
            (tuned,) = train_students(
                [made[1]], problem.x, teachers=[teacher], labels=problem.y, task=problem.task,
                keys=[own_key], training=with_variant(training, settings),
                goals=[goal_of(how, problem, settings)], **watch,
            )  # fmt: skip
        except BudgetTooSmall as error:  # another variant may have a smaller form
            out.append(Candidate(settings, error=error))
        else:
            out.append(Candidate(settings, tuned, problem.score_model(tuned)))
    return out


def best_of(tried: Sequence[Candidate], problem: Problem) -> Candidate:
    """The best candidate; where there is none, the error of that which needs least."""
    errors = [one.error for one in tried if one.error is not None]
    if len(errors) == len(tried):
        known = [error.smallest for error in errors if error.smallest is not None]
        raise problem.too_small(min(known)) if known else errors[0]
    return max(tried, key=lambda one: one.score)


def _of_start(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What of a variant's settings its student is made by."""
    return {k: v for k, v in settings.items() if k not in ("learning_rate", "saliency")}


def goal_of(how: Recipe, problem: Problem, settings: Mapping[str, Any]) -> Goal:
    """The size that a student is trained to; none where it has that from the start."""
    saliency, bits = settings.get("saliency", how.saliency), settings.get("value_bits")
    limit = problem.limit if saliency or bits else None
    return Goal(limit, saliency=saliency or "fisher", value_bits=bits)


def finished(
    problem: Problem, made: Candidate, training: Training | None, tried: int
) -> Compressed:
    """A trained student with its report."""
    epochs = (training or Training()).epochs
    learned = "distillation" if problem.y is None else "distillation with labels"
    return problem.finish(
        made.model, made.score, candidates=tried,
        settings={**made.settings, "finetuned": f"{epochs} epochs, {learned}"},
        why=f"of {tried} variants, the best validation {problem.measure}",
    )  # fmt: skip


def start(
    how: Recipe, problem: Problem, settings: Mapping[str, Any], key: Array, at: Any = None
) -> Any:
    """The student of a variant, or the method's one-shot result."""
    own = _of_start(settings)
    bits = own.pop("value_bits", None)
    if bits is not None and how.saliency is None:
        # As much room as float32 takes for numbers that the file will hold in few bits.
        room = min(int(problem.limit * 32 / (bits + PLACE)), problem.original_bytes)
        problem = dataclasses.replace(problem, limit=room, budget=Budget(size=room))
    if how.start is None:
        if own:
            raise expected(f"variants of {problem.method} that set learning_rate alone", f"{own}")
        return one_shot(problem.method, problem, key, at)
    if at is not None and how.start is _koopman:
        own.setdefault("at", at)
    return how.start(problem, key, **own)


def one_shot(name: str, problem: Problem, key: Array, at: Any = None) -> Any:
    """The network that a method of `METHODS` makes of a problem, nothing trained.

    Weights on a grid or of few values come as operators whose scale or values alone train.
    """
    validation, y_val = problem.x_val, problem.y_val
    if y_val is not None:
        if problem.score_fn is None:  # rows are positions in a problem
            y_val = y_val.reshape(problem.shape[:-1])
        validation = problem.x_val, y_val

    def made(budget: Any) -> Any:
        return METHODS[name](
            problem.model, problem.x, budget, at=at, validation=validation, task=problem.task,
            score_fn=problem.score_fn, key=key,
        ).model  # fmt: skip

    if not METHODS[name].any_bits:
        return made(problem.budget)
    # Two files that hold the same: operators of shared values have other names in their header.
    size, shared = problem.limit, _sharing(made(problem.budget))
    for _ in range(TRIES):
        over = export.stored_bytes(shared) + int(SLACK * problem.limit) + FEW - problem.limit
        if over <= 0:
            break
        size -= over
        try:
            shared = _sharing(made(size))
        except BudgetTooSmall as error:
            # What the smallest form takes once it is written so that its values can train.
            least = (error.smallest or size + 1) + problem.limit - size
            raise too_small(name, problem.limit, least, problem.original_bytes) from error
    return shared


def _sharing(model: Any) -> nnx.Module:
    """A network whose linear layers hold few values, as operators of shared values."""
    twin = as_nnx(model)
    paths, operators = linear_paths(twin), []
    for path in paths:
        layer = get(twin, path)
        kernel = np.asarray(layer.kernel.get_value())
        bias = bias_of(layer)
        step = _step(kernel)
        if step is None:
            size = len(np.unique(kernel))
            operators.append(nn.Clustered.from_dense(kernel, size, bias))
        else:
            codes = np.rint(kernel / step).astype(np.int8)
            operators.append(nn.Quantized(codes, np.float32(step), bias))
    return with_factors(twin, paths, operators)


def _step(kernel: np.ndarray) -> float | None:
    """The step of a grid of at most 127 multiples that holds a matrix, if there is one."""
    sizes = np.unique(np.abs(kernel[kernel != 0])).astype(np.float64)
    if not len(sizes):
        return 1.0
    for divisor in (1, 2, 3, 4):
        ratio = sizes * divisor / sizes[0]
        if ratio[-1] < 127.5 and np.all(np.abs(ratio - np.rint(ratio)) < 1e-3):
            return float(sizes[-1] / np.rint(ratio[-1]))
    return None


def with_variant(training: Training | None, settings: Mapping[str, Any]) -> Training:
    """Training at the rate of a variant."""
    training = training or Training()
    if "learning_rate" not in settings:
        return training
    return dataclasses.replace(training, learning_rate=settings["learning_rate"])


def finetuned_lanes(
    how: Recipe, problems: Sequence[Problem], calibration: Array, labels: Array | None, *,
    variant: Mapping[str, Any], keys: Sequence[Array], at: Any, training: Training,
) -> list[Compressed]:  # fmt: skip
    """`finetuned` of several networks by one variant of a method, trained together on one order.

    Students of different structure (such as layers cut to ranks of their own) go one after another.
    """
    students = [
        start(how, problem, variant, key, at)
        for problem, key in zip(problems, keys, strict=True)
    ]  # fmt: skip
    groups = [range(len(students))] if _alike(students) else [[k] for k in range(len(students))]
    tuned: list[Any] = []
    for group in groups:
        tuned += train_students(
            [students[k] for k in group], calibration, labels=labels, task=problems[0].task,
            teachers=[models.predict(problems[k].model, calibration) for k in group],
            keys=[jax.random.fold_in(keys[k], 0) for k in group],
            goals=[goal_of(how, problems[k], variant) for k in group],
            training=with_variant(training, variant),
        )  # fmt: skip
    return [
        finished(problem, Candidate(variant, model, problem.score_model(model)), training, 1)
        for problem, model in zip(problems, tuned, strict=True)
    ]


def _alike(students: Sequence[Any]) -> bool:
    """Whether all have one structure, so that they can be stacked."""
    formed = [models.form_of(student) for student in students]
    shapes = [jax.tree.map(jnp.shape, arrays) for _, *arrays in formed]
    return all(f[0] == formed[0][0] and s == shapes[0] for f, s in zip(formed, shapes, strict=True))
