"""Fine-tuned compression of several networks at once, as lanes of one vmapped scan."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from koopjax import models
from koopjax.compress._problem import Problem
from koopjax.compress._result import Compressed
from koopjax.compress.training._finetune import Training, train_students
from koopjax.compress.training._recipes import (
    Candidate,
    Recipe,
    finished,
    goal_of,
    start,
    with_variant,
)


def finetuned_lanes(
    how: Recipe, problems: Sequence[Problem], calibration: Array, labels: Array | None, *,
    variant: Mapping[str, Any], keys: Sequence[Array], at: Any, training: Training,
) -> list[Compressed]:  # fmt: skip
    """`finetuned` of several networks by one variant of a method, trained together.

    All lanes see the samples in one order. Students of different structure (such as layers cut to
    ranks of their own) are trained one after another.

    Args:
        how, variant: the method, and its settings for all lanes.
        problems, keys: one a lane; with validation data, so that all lanes have the same samples.
        calibration, labels: of all lanes, in the order in which they are seen.
        at, training: as for `finetuned`.

    Returns:
        A `Compressed` a lane.
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
