"""Fine-tuning of a compressed model: distillation from the original, with or without labels."""

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from koopjax import export, models
from koopjax._core import check_finite, expected
from koopjax.compress._budget import Budget
from koopjax.compress._result import Compressed, finish
from koopjax.compress._sparse_updates import keep_zeros, prune_gradually

#: Of the loss that goes to the labels where there are any.
LABEL_WEIGHT = 0.5


def finetune(
    compressed: Any,
    calibration: ArrayLike,
    *,
    teacher: Any,
    labels: ArrayLike | None = None,
    key: Array,
    epochs: int = 20,
    batch_size: int = 128,
    learning_rate: float = 2e-3,
    weight_decay: float = 0.0,
    warmup: float = 0.05,
    temperature: float = 1.0,
    label_weight: float = LABEL_WEIGHT,
    density: float | None = None,
    x_val: ArrayLike | None = None,
    y_val: ArrayLike | None = None,
    progress: Callable[[int, dict[str, float]], None] | None = None,
    checkpoint: str | os.PathLike | None = None,
    resume: bool = True,
) -> Any:
    """Train a compressed model to answer as its original does.

    Minimises `(1 - w) T² KL(softmax(t / T) ‖ softmax(s / T)) + w CE(labels, s)` over the student's
    parameters, for teacher outputs `t` and student outputs `s`; `w = 0` without labels. One output
    means regression, with the mean squared difference. AdamW, linear warm-up, cosine schedule, an
    epoch one compiled scan. Exact zeros of matrices stay zero, so that a pruned model keeps its
    bytes; frozen arrays (indices, codes) stay as they are.

    Args:
        compressed: a `Compressed`, or a model of any form that `models.train` takes.
        calibration: `(n, ...)` samples.
        teacher: the original model, of any form, or its outputs `(n, q)` on `calibration`.
        labels: `(n,)` integers; without, nothing but the teacher is learned from.
        key: shuffles.
        epochs, batch_size, learning_rate, weight_decay, warmup: as in `models.train`.
        temperature: `T`, above 0.
        label_weight: `w`, from 0 to 1; matters with labels alone.
        density: prune on the way, down to this share of non-zero entries of all matrices together,
            by the cubic schedule of gradual magnitude pruning over the first three quarters.
        x_val, y_val: samples and labels on which a `Compressed` is scored anew.
        progress, checkpoint, resume: as in `models.train`; an interrupted run goes on.

    Returns:
        What came: a `Compressed`, its report telling the new file and validation score (where
        there are `x_val` and `y_val`), or the model of the form given. The one given is left as it
        was.

    Raises:
        ValueError: data that do not fit, settings out of range; a `Compressed` whose file would
            no longer fit its budget.
        NumericalError: the loss is no longer finite.

    Reference: Hinton, Vinyals & Dean (2015), arXiv 1503.02531 (distillation); Zhu & Gupta (2017),
        arXiv 1710.01878, equation 1 (gradual pruning).
    """
    _check(temperature, label_weight, density, learning_rate)
    model = compressed.model if isinstance(compressed, Compressed) else compressed
    x = jnp.asarray(calibration)
    if x.ndim < 2 or x.shape[0] == 0:
        raise expected("finetune: calibration of shape (n, ...), n > 0", f"shape {x.shape}")
    logits = _teacher_outputs(teacher, x)
    weight = label_weight if labels is not None and logits.shape[-1] > 1 else 0.0
    targets = _targets(logits, labels, weight)
    steps = epochs * (len(x) // min(batch_size, len(x)))
    optimizer = _optimizer(learning_rate, weight_decay, round(warmup * steps), steps, density)
    result = models.train(
        model, x, targets, key=key, epochs=epochs, batch_size=batch_size, optimizer=optimizer,
        loss=_loss(logits.shape[-1], float(temperature), float(weight)),
        progress=progress, checkpoint=checkpoint, resume=resume,
    )  # fmt: skip
    if not isinstance(compressed, Compressed):
        return result.model
    return _account(compressed, result.model, x_val, y_val, epochs=epochs, labels=labels)


def _check(temperature: float, label_weight: float, density: Any, learning_rate: float) -> None:
    if not temperature > 0:
        raise expected("finetune: a temperature above 0", f"{temperature}", "temperature=1.0")
    if not 0 <= label_weight <= 1:
        raise expected("finetune: label_weight from 0 to 1", f"{label_weight}")
    if density is not None and not 0 < density <= 1:
        raise expected(
            "finetune: a density above 0, at most 1", f"{density}", "None to prune no more"
        )
    if not learning_rate > 0:
        raise expected("finetune: a learning_rate above 0", f"{learning_rate}")


def _teacher_outputs(teacher: Any, x: Array) -> Float[Array, "n q"]:
    """The original's outputs, run or given."""
    outputs = teacher if hasattr(teacher, "ndim") else models.predict(teacher, x)
    outputs = jnp.asarray(outputs, jnp.float32)
    if outputs.ndim != 2 or outputs.shape[0] != x.shape[0]:
        raise expected(
            f"finetune: teacher outputs of shape ({x.shape[0]}, q)", f"shape {outputs.shape}",
            "the original model, or its outputs on the calibration samples",
        )  # fmt: skip
    check_finite("the teacher's outputs (finetune)", outputs)
    return outputs


def _targets(logits: Array, labels: Any, weight: float) -> Array:
    """Teacher outputs, with the label as one more column where it is learned from."""
    if labels is None:
        return logits
    labels = jnp.asarray(labels)
    if labels.shape != logits.shape[:1] or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise expected(
            f"finetune: labels as {logits.shape[0]} integers",
            f"{labels.dtype} of shape {labels.shape}",
        )
    low, high = int(labels.min()), int(labels.max())
    if weight and (low < 0 or high >= logits.shape[1]):
        raise expected(
            f"finetune: labels from 0 to {logits.shape[1] - 1}", f"labels from {low} to {high}"
        )
    return jnp.concatenate([logits, labels[:, None].astype(logits.dtype)], 1) if weight else logits


# Cached by their settings: the training step takes both as static arguments, and the same object
# again means that nothing is compiled anew.
@functools.lru_cache(maxsize=128)
def _loss(outputs: int, temperature: float, weight: float) -> Callable[[Array, Array], Array]:
    def squared(student: Array, targets: Array) -> Array:
        return jnp.mean((student - targets[:, :outputs]) ** 2)

    def distilled(student: Array, targets: Array) -> Array:
        teacher = targets[:, :outputs] / temperature
        soft = optax.losses.kl_divergence_with_log_targets(
            jax.nn.log_softmax(student / temperature), jax.nn.log_softmax(teacher)
        )
        loss = (1 - weight) * temperature**2 * jnp.mean(soft)
        if not weight:
            return loss
        labels = targets[:, outputs].astype(jnp.int32)
        hard = optax.softmax_cross_entropy_with_integer_labels(student, labels)
        return loss + weight * jnp.mean(hard)

    return squared if outputs == 1 else distilled


@functools.lru_cache(maxsize=128)
def _optimizer(
    rate: float, decay: float, warmup: int, steps: int, density: float | None
) -> optax.GradientTransformation:
    schedule = optax.warmup_cosine_decay_schedule(
        rate / 10 if warmup else rate, rate, warmup, max(steps, warmup + 1)
    )
    matrices = lambda params: jax.tree.map(lambda p: p.ndim >= 2, params)
    adam = optax.adamw(schedule, weight_decay=decay, mask=matrices)
    sparse = keep_zeros() if density is None else prune_gradually(density, round(0.75 * steps))
    return optax.chain(adam, sparse)


def _account(given: Compressed, model: Any, x_val: Any, y_val: Any, **how: Any) -> Compressed:
    report = given.report
    stored = export.stored_bytes(model)
    if stored > report.budget_bytes:
        raise expected(
            f"a fine-tuned file of at most {report.budget_bytes} bytes", f"{stored}",
            "a slightly smaller budget for the method, since entropy-coded values have changed",
        )  # fmt: skip
    score = report.score
    if x_val is not None and y_val is not None:
        score = models.accuracy(model, x_val, y_val)
    kept = {"method", "settings", "why", "measure", "candidates", "result", "notes"}
    fields = {f.name: getattr(report, f.name) for f in dataclasses.fields(report) if f.name in kept}
    what = "distillation with labels" if how["labels"] is not None else "distillation"
    fields["settings"] = {**report.settings, "finetuned": f"{how['epochs']} epochs, {what}"}
    return finish(
        model, budget=Budget(size=report.budget_bytes), original_bytes=report.original_bytes,
        score=score, **fields,
    )  # fmt: skip
