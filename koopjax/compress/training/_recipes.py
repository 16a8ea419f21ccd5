"""Fine-tuned compression: how each method is trained to a size, under one recipe for all."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.typing import ArrayLike
from jaxtyping import Array

from koopjax import export, models, nn
from koopjax._core import expected
from koopjax.compress._budget import Budget, BudgetTooSmall, smallest_of, too_small
from koopjax.compress._problem import Problem, Score, ScoreFn, pose, untouched
from koopjax.compress._result import Compressed
from koopjax.compress.layers._layers import as_nnx, get, linear_paths, with_factors
from koopjax.compress.methods._registry import METHODS
from koopjax.compress.training._finetune import Training, train_students
from koopjax.compress.training._students import koopman_student, small_student

Student = Callable[..., Any]
#: Share of the limit that a file of shared values may grow by while it trains, its biases and
#: values being rounder at first, and bytes for small files.
SLACK, FEW = 0.01, 16
#: Bits that the place of an entry takes among values of few bits.
PLACE = 1.0
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


def _original(problem: Problem, key: Array) -> Any:
    del key
    return problem.model


def _koopman(problem: Problem, key: Array, **settings: Any) -> nnx.Module:
    return koopman_student(problem.model, problem.x, task=problem.task, key=key, **settings)


def _small(problem: Problem, key: Array, **settings: Any) -> nnx.Module:
    return small_student(problem.model, problem.x, key=key, **settings)


def _small_exact(
    problem: Problem, key: Array, *, bottleneck: float | None, depth: int = 1
) -> nnx.Module:
    """The widest perceptron of a shape that the budget allows, nothing pruned.

    Args:
        problem: model, data and limit.
        key: draws the weights.
        bottleneck: width of the ReLU layers over that of a linear layer before them; None for no
            such layer.
        depth: number of ReLU layers.
    """
    sizes = (problem.x.shape[-1], problem.teacher.shape[-1])

    def widths(width: int) -> list[int]:
        if bottleneck is None:
            return [width] * depth
        return [width, *[max(1, round(bottleneck * width))] * depth]

    def numbers(width: int) -> int:
        between = widths(width)
        layers = pairwise([sizes[0], *between, sizes[1]])
        biases = sum(between[bottleneck is not None :]) + sizes[1]
        return sum(p * q for p, q in layers) + biases

    linear = [True] * (bottleneck is not None) + [False] * depth
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
        "pruning", _original, "magnitude",
        _grid(_HIGH, {"saliency": "magnitude"}, {"saliency": "lamp"}),
    ),
    "fisher": Recipe("pruning", _original, "fisher", _grid(_ALL, {})),
    "small_network": Recipe(
        "small network", _small_exact, None,
        _grid(_HIGH, {"bottleneck": 2.0}, {"bottleneck": None}),
    ),
    "small_network_pruned": Recipe(
        "small network", _small, "fisher",
        _grid((1e-2, 2e-2), {"widths": (24, 48), "linear": (True, False)},
              {"widths": (32, 64), "linear": (True, False)}),
    ),
}  # fmt: skip


def recipe(name: str) -> Recipe:
    """The recipe of a method.

    Raises:
        ValueError: an unknown name.
    """
    if name in RECIPES:
        return RECIPES[name]
    if name in METHODS:
        method = METHODS[name]
        return Recipe(method.family, None, None, _grid(_ALL, {}), method.any_bits)
    known = ", ".join(sorted({*RECIPES, *METHODS}))
    raise expected(f"a method among {known}", repr(name))


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
    progress: Callable[[int, dict[str, float]], None] | None = None,
    checkpoint: Any = None,
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
        progress, checkpoint: as for `finetune`; a checkpoint of a given variant alone.

    Returns:
        `Compressed`; the report names the variant.

    Raises:
        ValueError: an unknown method, bad data, or a budget too small.
    """
    chosen = recipe(name) if how is None else how
    problem = pose(name, model, calibration, budget, labels, validation, key, task, score_fn)
    if problem.is_met:
        return untouched(name, problem)
    variants = chosen.variants if variant is None else (variant,)
    best: tuple[Any, Any, Mapping[str, Any]] | None = None
    small: list[BudgetTooSmall] = []
    teacher = models.predict(problem.model, problem.x)
    for number, settings in enumerate(variants):
        if checkpoint is not None and len(variants) > 1:
            raise expected("a variant with a checkpoint", "several variants", "variant=...")
        saliency = settings.get("saliency", chosen.saliency)
        try:
            student = start(chosen, name, problem, settings, key, at, value_bits)
            (tuned,) = train_students(
                [student], problem.x, teachers=[teacher], labels=problem.y, task=problem.task,
                keys=[jax.random.fold_in(key, number)],
                training=with_variant(training, settings),
                limits=[problem.limit if saliency or value_bits else None],
                saliency=saliency or "fisher", value_bits=[value_bits],
                progress=progress, checkpoint=checkpoint,
            )  # fmt: skip
        except BudgetTooSmall as error:  # another variant may have a smaller form
            small.append(error)
            continue
        score = problem.score_model(tuned)
        if best is None or score > best[0]:
            best = (score, tuned, settings)
    if best is None:
        raise smallest_of(small, name, problem.limit, problem.original_bytes)
    score, tuned, settings = best
    return finished(
        problem, tuned, settings, score, training=training, value_bits=value_bits,
        candidates=len(variants),
    )  # fmt: skip


def finished(
    problem: Problem, model: Any, settings: Mapping[str, Any], score: Score, *,
    training: Training | None, value_bits: float | None, candidates: int,
) -> Compressed:  # fmt: skip
    """A trained student with its report."""
    epochs = (training or Training()).epochs
    learned = "distillation" if problem.y is None else "distillation with labels"
    bits = {} if value_bits is None else {"value_bits": value_bits}
    return problem.finish(
        model, score, settings={**settings, **bits, "finetuned": f"{epochs} epochs, {learned}"},
        why=f"of {candidates} variants, the best validation {problem.measure}",
        candidates=candidates,
    )  # fmt: skip


def start(
    chosen: Recipe, name: str, problem: Problem, settings: Mapping[str, Any], key: Array,
    at: Any = None, value_bits: float | None = None,
) -> Any:  # fmt: skip
    """The student of a variant, or the method's one-shot result.

    One that has its size from the start gets as much room as float32 takes for the numbers that the
    file will hold in few bits, their places included.
    """
    if value_bits is not None and chosen.saliency is None:
        room = int(problem.limit * 32 / (value_bits + PLACE))
        room = min(room, problem.original_bytes)
        problem = dataclasses.replace(problem, limit=room, budget=Budget(size=room))
    own = {k: v for k, v in settings.items() if k not in ("learning_rate", "saliency")}
    if chosen.start is None:
        if own:
            raise expected(f"variants of {name} that set learning_rate alone", f"{own}")
        return one_shot(name, problem, key, at)
    if at is not None and chosen.start is _koopman:
        own.setdefault("at", at)
    return chosen.start(problem, key, **own)


def one_shot(name: str, problem: Problem, key: Array, at: Any = None) -> Any:
    """The network that a method of `METHODS` makes of a problem, nothing trained.

    Weights on a grid or of few values come as `nn.Quantized` and `nn.Clustered`, so that they stay
    so while the scale or the values train.
    """
    validation = problem.x_val if problem.y_val is None else (problem.x_val, problem.y_val)

    if problem.y_val is not None and problem.score_fn is None:  # rows are positions in a problem
        validation = problem.x_val, problem.y_val.reshape(problem.shape[:-1])

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
        bias = None if layer.bias is None else layer.bias.get_value()
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
