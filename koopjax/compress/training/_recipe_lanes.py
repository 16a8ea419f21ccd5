"""Fine-tuned compression of several networks at once, as lanes of one vmapped scan."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array

from koopjax import models
from koopjax.compress._problem import ScoreFn, pose
from koopjax.compress._result import Compressed
from koopjax.compress.training._finetune import Training, train_students
from koopjax.compress.training._recipes import Recipe, finished, recipe, start, with_variant


def finetuned_lanes(
    name: str,
    originals: Sequence[Any],
    calibration: ArrayLike,
    budget: Any,
    *,
    at: Any = None,
    keys: Sequence[Array],
    variant: Mapping[str, Any],
    validation: Any,
    labels: ArrayLike | None = None,
    task: str | None = None,
    score_fn: ScoreFn | None = None,
    how: Recipe | None = None,
    training: Training | None = None,
    value_bits: float | None = None,
    progress: Callable[[int, Any], None] | None = None,
) -> list[Compressed]:
    """`finetuned` of several networks by one variant of a method, trained together.

    All lanes see the samples in one order. Students of different structure (such as layers cut to
    ranks of their own) are trained one after another.

    Args:
        name, calibration, budget, at, labels, task, score_fn, how, training, value_bits: as for
            `finetuned`.
        originals, keys: one a lane.
        variant: settings of the method, for all lanes.
        validation: as for `finetuned`; it must be given, so that all lanes see the same samples.
        progress: called as `progress(epoch, [metrics of each lane])`.

    Returns:
        A `Compressed` a lane.

    Raises:
        ValueError: as `finetuned`.
    """
    chosen = recipe(name) if how is None else how
    x = jnp.asarray(calibration)
    problems, students = [], []
    for model, key in zip(originals, keys, strict=True):
        problems.append(pose(name, model, x, budget, labels, validation, key, task, score_fn))
        students.append(start(chosen, name, problems[-1], variant, key, at, value_bits))
    teachers = [models.predict(model, x) for model in originals]
    saliency = variant.get("saliency", chosen.saliency)
    sized = saliency or value_bits
    common: Any = {
        "labels": None if labels is None else jnp.asarray(labels),
        "training": with_variant(training, variant), "saliency": saliency or "fisher",
        "progress": progress, "task": problems[0].task,
    }  # fmt: skip
    groups = [range(len(students))] if _alike(students) else [[k] for k in range(len(students))]
    tuned: list[Any] = []
    for group in groups:
        tuned += train_students(
            [students[k] for k in group], x, teachers=[teachers[k] for k in group],
            keys=[jax.random.fold_in(keys[k], 0) for k in group],
            limits=[problems[k].limit if sized else None for k in group],
            value_bits=[value_bits] * len(group), **common,
        )  # fmt: skip
    return [
        finished(
            problem, model, variant, problem.score_model(model), training=training,
            value_bits=value_bits, candidates=1,
        )
        for problem, model in zip(problems, tuned, strict=True)
    ]  # fmt: skip


def _alike(students: Sequence[Any]) -> bool:
    """Whether all have one structure, so that they can be stacked."""
    formed = [models.form_of(student) for student in students]
    shapes = [jax.tree.map(jnp.shape, arrays) for _, *arrays in formed]
    return all(f[0] == formed[0][0] and s == shapes[0] for f, s in zip(formed, shapes, strict=True))
