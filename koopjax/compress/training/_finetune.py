"""Fine-tuning of a compressed model: distillation from the original, with or without labels."""

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from koopjax import export, models
from koopjax._core import as_array, as_key, as_number, check_finite, expected, on_device
from koopjax.compress._problem import ScoreFn, pose
from koopjax.compress._result import Budget, Compressed, count_tied, finish
from koopjax.compress.training._to_size import Goal, ToSize, at_rate, constrained, with_rate

#: Of the loss that goes to the labels where there are any.
LABEL_WEIGHT = 0.2
#: Fields of `Goal` that `finetune` takes as keywords.
SIZED = ("density", "saliency", "value_bits")
#: Looks at the parameters in a pass over the data, where a run prunes or quantises on the way.
ROUNDS = 4
#: Note of a report on arrays that were one before.
UNTIED = "an array that two names shared is two since its training: a shared Variable stays one"
#: Note of a report whose score was never measured.
UNMEASURED = "nothing was measured after fine-tuning: a score needs x_val, with y_val for accuracy"


@dataclasses.dataclass(frozen=True)
class Training:
    """How a compressed model is trained; the same for every method of a fair comparison.

    Args:
        epochs: passes over the data.
        batch_size: samples a step.
        learning_rate: the largest, of AdamW; linear warm-up, then half a cosine down to zero.
        weight_decay: decoupled, of arrays with two axes or more.
        warmup: share of the steps in which the rate rises.
        clip: largest norm of a gradient; polynomials of polynomials have steep places.
        temperature: `T` of the distillation, above 0.
        label_weight: `w`, share of the loss that goes to the labels; matters with labels alone.
        prune_until: share of the epochs in which entries go, where a size is asked for.
    """

    epochs: int = 20
    batch_size: int = 128
    learning_rate: float = 2e-3
    weight_decay: float = 0.0
    warmup: float = 0.05
    clip: float = 1.0
    temperature: float = 1.0
    label_weight: float = LABEL_WEIGHT
    prune_until: float = 0.6

    def check(self) -> None:
        """Raise on a setting out of range, in one line."""
        for name in ("epochs", "batch_size"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise expected(f"finetune: {name} a positive integer", f"{value!r}")
        for name in ("learning_rate", "temperature", "clip"):
            if not as_number(f"finetune: {name}", getattr(self, name)) > 0:
                raise expected(f"finetune: a {name} above 0", f"{getattr(self, name)}")
        for name in ("label_weight", "warmup", "prune_until"):
            if not 0 <= as_number(f"finetune: {name}", getattr(self, name)) <= 1:
                raise expected(f"finetune: {name} from 0 to 1", f"{getattr(self, name)}")


def finetune(
    compressed: Any,
    calibration: ArrayLike,
    *,
    teacher: Any,
    labels: ArrayLike | None = None,
    task: str | None = None,
    score_fn: ScoreFn | None = None,
    key: Array,
    training: Training | None = None,
    budget: Any = None,
    x_val: ArrayLike | None = None,
    y_val: ArrayLike | None = None,
    progress: Callable[[int, dict[str, float]], None] | None = None,
    checkpoint: str | os.PathLike | None = None,
    resume: bool = True,
    **settings: Any,
) -> Any:
    """Train a compressed model to answer as its original does.

    Minimises `(1 - w) T² KL(softmax(t / T) ‖ softmax(s / T)) + w CE(labels, s)` over the student's
    parameters, for teacher outputs `t` and student outputs `s`; `w = 0` without labels. One logit
    stands for the pair `(0, s)`. For a regression it is the mean squared difference from the
    teacher, and with weight `w` from the labels. The student is in training mode (dropout on, batch
    normalisation by the batch), the teacher in inference. Every epoch is a compiled scan. Exact
    zeros of matrices stay zero, so that a pruned model keeps its bytes; frozen arrays (indices,
    codes) stay as they are. With `budget` or `density`, entries of least saliency go on the way, as
    `ToSize` describes; with `value_bits` too, what stays is trained on grids.

    Args:
        compressed: a `Compressed`, or a model of any form that `models.train` takes.
        calibration: `(n, ...)` samples.
        teacher: the original model, of any form, or its outputs `(n, ..., q)` on `calibration`.
        labels: `(n,)` classes, or targets of a regression; without, nothing but the teacher is
            learned from.
        task, score_fn: as for every method; a `Compressed` knows its task. A bare model without
            labels is trained as a regression unless it is said to be a classifier.
        key: shuffles.
        training: a `Training`; or its fields as keywords (`epochs=5, learning_rate=1e-3`).
        budget: prune on the way until the file takes at most so many bytes: bytes, `"64KiB"`, or a
            `Budget` of a size; for what a method's own budget was, `report.budget_bytes`.
        settings: fields of `training`, and how entries go. `density`: until this share of them is
            left, instead of a budget. `saliency`: which, "fisher" (the default), "magnitude" or
            "lamp" (layer-adaptive magnitude), with a budget or a density. `value_bits`: with a
            budget, quantise: bits a non-zero value takes, entropy-coded.
        x_val, y_val: samples and labels on which a `Compressed` is scored anew, as by the methods.
        progress: called as `progress(epoch, metrics)`, four times a pass where entries go.
        checkpoint, resume: as in `models.train`; an interrupted run goes on.

    Returns:
        What came: a `Compressed`, its report telling the new file and validation score, or the
        model of the form given. Without `x_val` the score is NaN, and a note says so. The one given
        is left as it was. An array that two names shared is trained as two, and a note says so; a
        Variable that two modules share stays one.

    Raises:
        ValueError: data that do not fit, settings out of range; a `Compressed` whose file would
            no longer fit its budget.
        BudgetTooSmall: the file is over `budget` with every entry gone that may go.
        NumericalError: the loss is no longer finite.

    Reference: Hinton, Vinyals & Dean (2015), arXiv 1503.02531 (distillation).
    """
    training = Training() if training is None else training
    if not isinstance(training, Training):
        raise expected("a compress.Training as training", f"{training!r:.60}", "epochs=5")
    how = {name: settings.pop(name) for name in SIZED if settings.get(name) is not None}
    settings = {name: value for name, value in settings.items() if name not in SIZED}
    training = dataclasses.replace(training, **settings)
    goal = Goal(None if budget is None else _size_of(budget), **how)
    if "saliency" in how and not goal.sized:
        raise expected(
            "finetune: a saliency with a budget or a density", f"{goal.saliency!r} alone",
            "density=0.1",
        )  # fmt: skip
    if y_val is not None and x_val is None:
        raise expected("finetune: y_val with x_val", "y_val alone", "x_val=..., the samples of it")
    model, judge = compressed, None
    if isinstance(compressed, Compressed):
        model = compressed.model
        if task is None:
            task = _task_by(compressed, (calibration, labels), (x_val, y_val))
        judge = _judge(compressed, teacher, calibration, x_val, y_val, key, task, score_fn)
    (tuned,) = train_students(
        [model], calibration, teachers=[teacher], labels=labels, keys=[key], training=training,
        goals=[goal], progress=progress, checkpoint=checkpoint, resume=resume, task=task,
    )  # fmt: skip
    if not isinstance(compressed, Compressed):
        return tuned
    return account(compressed, tuned, judge, training.epochs, labels is not None)


def train_students(
    students: Sequence[Any], calibration: ArrayLike, *, teachers: Sequence[Any],
    labels: ArrayLike | None, keys: Sequence[Array], training: Training, goals: Sequence[Goal],
    task: str | None = None, progress: Callable[[int, Any], None] | None = None,
    checkpoint: str | os.PathLike | None = None, resume: bool = True,
) -> list[Any]:  # fmt: skip
    """Train students of one structure at once, as lanes of one vmapped scan (one alone: as it is).

    To each its teacher (a model, or its outputs; the same object is run once), key and goal.
    """
    training.check()
    for key in keys:
        key = as_key("finetune", key)
    x = as_array("finetune: calibration", calibration)
    if x.ndim < 2 or x.shape[0] == 0:
        raise expected("finetune: calibration of shape (n, ...), n > 0", f"shape {x.shape}")
    for goal in goals:
        goal.check()
    run = {id(teacher): teacher for teacher in teachers}
    run = {place: _teacher_outputs(teacher, x) for place, teacher in run.items()}
    logits = [run[id(teacher)] for teacher in teachers]
    for student in students:
        _check_pair(models.output_like(student, x, by_rows=True).shape, logits[0].shape)
    task, labels = models.read_task(logits[0], labels, task, name="finetune: labels")
    weight = 0.0 if labels is None else training.label_weight
    targets = [_targets(one, labels if weight else None) for one in logits]
    batch = min(training.batch_size, len(x))
    # Epochs of a quarter, so that entries go in small portions.
    rounds = ROUNDS if any(g.sized for g in goals) and len(x) // ROUNDS >= batch else 1
    epochs, size = training.epochs * rounds, len(x) // rounds
    steps = epochs * (size // batch)
    optimizer = _optimizer(
        training.weight_decay, round(training.warmup * steps), steps, training.clip
    )
    begun = [jax.tree.map(jnp.asarray, models.form_of(student)[1]) for student in students]
    # The rate is a leaf of the state: another is no compilation.
    states = [
        with_rate(_first_state(optimizer, params), training.learning_rate) for params in begun
    ]
    pairs = zip(students, goals, strict=True)
    plans = [_plan(student, goal, epochs, training.prune_until) for student, goal in pairs]
    common: Any = {
        "epochs": epochs, "batch_size": batch, "epoch_size": size, "optimizer": optimizer,
        "loss": _loss(logits[0].shape[-1], task, float(training.temperature), float(weight)),
        "progress": progress,
    }  # fmt: skip
    if len(students) == 1:
        result = models.train(
            students[0], x, targets[0], key=keys[0], revise=plans[0], opt_state=states[0],
            checkpoint=checkpoint, resume=resume, **common,
        )  # fmt: skip
        return [result.model]
    if checkpoint is not None:
        raise expected(
            "a checkpoint for one student alone", f"{len(students)} lanes", "one at a time"
        )
    results = models.train_lanes(
        students, x, targets, keys=keys, revise=_by_lane(plans), opt_states=states, **common
    )
    return [result.model for result in results]


def _by_lane(plans: Sequence[ToSize | None]) -> Callable[..., Any] | None:
    """What is done to each lane after an epoch; None where nothing is."""

    def revise(lane: int, epoch: int, params: Any, opt_state: Any) -> Any:
        plan = plans[lane]
        return (params, opt_state) if plan is None else plan(epoch, params, opt_state)

    return revise if any(plans) else None


@functools.partial(jax.jit, static_argnums=0)
def _first_state(optimizer: optax.GradientTransformation, params: Any) -> Any:
    return optimizer.init(params)


def _plan(student: Any, goal: Goal, epochs: int, until: float) -> ToSize | None:
    """What is done to a student after every epoch."""
    if not goal.sized:
        return None
    form, _, rest = models.form_of(student)
    measure = lambda params: export.stored_bytes(form.merge(params, rest))
    return ToSize(epochs, measure, goal, until)


def _size_of(budget: Any) -> int:
    parsed = Budget.parse(budget)
    if parsed.size is None:
        raise expected("finetune: a budget as a size", f"{parsed}", "'64KiB' or bytes")
    return parsed.size


def _teacher_outputs(teacher: Any, x: Array) -> Float[Array, "n ... q"]:
    """The original's outputs, run or given."""
    given = hasattr(teacher, "ndim")
    if not given:
        models.output_like(teacher, x, by_rows=True)
    outputs = teacher if given else models.predict(teacher, x)
    outputs = on_device(outputs, jnp.float32)
    if outputs.ndim < 2 or outputs.shape[0] != x.shape[0]:
        raise expected(
            f"finetune: teacher outputs of shape ({x.shape[0]}, ..., q)", f"shape {outputs.shape}",
            "the original model, or its outputs on the calibration samples",
        )  # fmt: skip
    check_finite("the teacher's outputs (finetune)", outputs)
    return outputs


def _check_pair(student: tuple[int, ...], teacher: tuple[int, ...]) -> None:
    """Refuse a student whose outputs are not the teacher's, but for a last axis of one entry."""
    if student not in (teacher, teacher[:-1] if teacher[-1] == 1 else teacher):
        raise expected(
            f"finetune: a teacher with outputs of the student's shape {student}", f"{teacher}",
            "the model that was compressed",
        )  # fmt: skip


def _targets(outputs: Array, labels: Array | None) -> Array:
    """Teacher outputs, with the labels as further columns where they are learned from."""
    if labels is None:
        return outputs
    columns = labels if labels.ndim == outputs.ndim else labels[..., None]
    return jnp.concatenate([outputs, columns.astype(outputs.dtype)], axis=-1)


# Cached by their settings: the training step takes both as static arguments, and the same object
# again means that nothing is compiled anew.
@functools.lru_cache(maxsize=128)
def _loss(
    outputs: int, task: str, temperature: float, weight: float
) -> Callable[[Array, Array], Array]:
    def distilled(student: Array, targets: Array) -> Array:
        teacher, labels = targets[..., :outputs], targets[..., outputs:]
        student = student.reshape(teacher.shape)
        if task == "regression":
            loss = (1 - weight) * models.squared_error(student, teacher)
            return loss + weight * models.squared_error(student, labels) if weight else loss
        soft = models.divergence(teacher / temperature, student / temperature, task)
        loss = (1 - weight) * temperature**2 * soft
        if not weight:
            return loss
        return loss + weight * models.cross_entropy(student, labels[..., 0].astype(jnp.int32))

    return distilled


@functools.lru_cache(maxsize=128)
def _optimizer(decay: float, warmup: int, steps: int, clip: float) -> optax.GradientTransformation:
    rising = optax.warmup_cosine_decay_schedule(
        0.1 if warmup else 1.0, 1.0, warmup, max(steps, warmup + 1)
    )
    matrices = lambda params: jax.tree.map(lambda p: p.ndim >= 2, params)
    return optax.chain(
        optax.clip_by_global_norm(clip), optax.scale_by_adam(),
        optax.add_decayed_weights(decay, mask=matrices), optax.scale_by_schedule(rising),
        at_rate(), constrained(),
    )  # fmt: skip


def _task_by(given: Compressed, *sets: tuple[Any, Any]) -> str:
    """Its own task, unless labels of several outputs came only now and say what it is."""
    for x, y in sets:
        if y is not None:
            like = models.output_like(given.model, as_array("finetune: samples", x))
            if like.shape[-1] > 1:
                return models.read_task(like, y, name="finetune: labels")[0]
    return given.report.task


def _judge(
    given: Compressed, teacher: Any, calibration: Any, x_val: Any, y_val: Any, key: Array,
    task: str, score_fn: Any,
) -> Callable[[Any], dict[str, Any]] | None:  # fmt: skip
    """What gives a model's validation score as fields of a `Report`; None without samples."""
    if x_val is None:
        return None
    known = not hasattr(teacher, "ndim")
    if not known and y_val is None:
        raise expected(
            "finetune: the original model as the teacher, whose outputs on x_val the score needs",
            "its outputs on the calibration samples", "teacher=model, or no x_val",
        )  # fmt: skip
    # With labels alone the score needs no outputs of the original; the divergence does.
    few = as_array("finetune: calibration", calibration)[:2]
    problem = pose(
        "finetune", teacher if known else given.model, few,
        Budget(size=given.report.budget_bytes), None, (x_val, y_val), key, task, score_fn,
    )  # fmt: skip
    told = lambda model: problem.account(problem.score_model(model))
    return told if known else lambda model: told(model) | {"divergence": None}


def account(given: Compressed, model: Any, judge: Any, epochs: int, labelled: bool) -> Compressed:
    """The fine-tuned model with a report that is true of it; `judge` from `_judge`."""
    report = given.report
    stored = export.stored_bytes(model)
    if stored > report.budget_bytes:
        raise expected(
            f"a fine-tuned file of at most {report.budget_bytes} bytes", f"{stored}",
            "a slightly smaller budget for the method, since entropy-coded values have changed, "
            f"or budget={report.budget_bytes}",
        )  # fmt: skip
    # The score before the training is no longer one of this model.
    measured = {"score": math.nan, "measure": report.measure, "task": report.task}
    measured = measured | {"notes": (UNMEASURED,)} if judge is None else judge(model)
    said = (UNMEASURED, *measured["notes"])
    advice = tuple(note for note in report.notes if note not in said)
    if count_tied(given.model) > count_tied(model):
        advice = (*advice, UNTIED)
    what = "distillation with labels" if labelled else "distillation"
    return finish(
        model, method=report.method, budget=Budget(size=report.budget_bytes),
        original_bytes=report.original_bytes, result=report.result,
        settings={**report.settings, "finetuned": f"{epochs} epochs, {what}"}, why=report.why,
        advice=advice, candidates=report.candidates, **measured,
    )  # fmt: skip
