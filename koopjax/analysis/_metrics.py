"""What a replaced span does to the model's output: scores, agreement, divergence."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from koopjax import models, surgery
from koopjax._core import as_numbers, as_whole, expected, matmul, read

_score = jax.jit(models.compare, static_argnames=("task", "score_fn"))


MOST_CLASSES = 1 << 14  # their table of counts takes 2 GiB


def evaluate(
    output: Any,
    reference: Any,
    labels: Any = None,
    *,
    task: str | None = None,
    score_fn: Any = None,
) -> dict[str, float]:
    """Compare a replaced model's output with the original's and with the labels.

    Args:
        output: `(n, ..., c)` logits (or predictions) of the replaced model.
        reference: the original's, of the same shape.
        labels: `(n, ...)` integer classes, or targets for a regression; `None` without.
        task: "classification" or "regression"; found by `models.read_task` where left out, which
            takes a network for a classifier if integer labels name its outputs.
        score_fn: `score_fn(output, labels)`, a scalar that stands in for the accuracy; the same
            object each time, so that it is compiled once.

    Returns:
        `accuracy` (for a regression R² against the labels; left out without labels),
        `agreement` with the original (share of equal answers, or R² against its output) and `kl`
        (mean KL divergence of the softmax from the original's; for a regression the mean squared
        difference of outputs).

    Raises:
        ValueError: outputs of different shapes, labels that don't fit them, or that leave the task
            open.

    Example:
        >>> import jax.numpy as jnp
        >>> logits = jnp.array([[2.0, 0.0], [0.0, 1.0]])
        >>> evaluate(logits, logits, jnp.array([0, 0]))["accuracy"]
        0.5
    """
    output, reference = as_numbers("output", output), as_numbers("reference", reference)
    if output.shape != reference.shape:
        raise expected(f"outputs of shape {reference.shape}", f"shape {output.shape}")
    if output.ndim < 1 or output.shape[0] == 0:
        raise expected("at least one sample", "an empty batch")
    task, labels = models.read_task(reference, labels, task, score_fn=score_fn)
    found = _score(output, reference, labels, task=task, score_fn=score_fn)
    return {name: float(value) for name, value in found.items()}


def states(rows: Any, shape: tuple[int, ...], sample_axes: Any) -> Array:
    """Rows as states of the shape that the tail takes; the number of samples follows."""
    if sample_axes is None:
        return rows
    count = rows.size // int(np.prod(shape))
    return surgery.from_rows(rows, (count, *shape), sample_axes)


@functools.partial(jax.jit, static_argnames=("shape", "sample_axes", "task", "score_fn"))
def score_ranks(
    tail: Any,
    coded: Float[Array, "m r"],
    right: Float[Array, "r q"],
    ranks: Int[Array, " k"],
    truth: Float[Array, "m q"],
    reference: Array,
    labels: Any,
    *,
    shape: tuple[int, ...],
    sample_axes: Any,
    task: str,
    score_fn: Any,
) -> tuple[dict, Array]:
    """Scores of all ranks of one factored K, and the answers at the last of them.

    The predictions of rank r are the leading r columns of `coded` times the leading rows of
    `right`, so a rank is a mask and costs no compilation.

    Args:
        tail: what follows the span; `None` where K maps to the output itself.
        coded: `Ψ(x) L` of a factored `K = L R`.
        right: `R`.
        ranks: how many columns count, for each rung.
        truth: the span's own output, as rows.
        reference: output of the original model.
        labels: or `None`.
        shape: of one state where the tail begins.
        sample_axes: how rows make up states, as in `surgery.to_rows`.
        task: how the output is read.
        score_fn: as in `evaluate`.
    """

    def output_of(rank: Array) -> tuple[Array, Array]:
        mask = (jnp.arange(right.shape[0]) < rank).astype(coded.dtype)
        rows = matmul(coded * mask[None, :], right)
        return rows, rows if tail is None else tail(states(rows, shape, sample_axes))

    def one(rank: Array) -> dict:
        rows, output = output_of(rank)
        found = models.compare(output, reference, labels, task, score_fn)
        return {"r2": models.r_squared(truth, rows), **found}

    return jax.lax.map(one, ranks), output_of(ranks[-1])[1]


def confusion(labels: Any, answers: Any, classes: int) -> Int[np.ndarray, "c c"]:
    """How often class i (row) was answered j (column).

    Args:
        labels: `(n,)` true classes.
        answers: `(n,)` answered classes, or `(n, c)` logits.
        classes: number of classes.
    """
    labels, answers = np.ravel(read("labels", labels)), np.asarray(read("answers", answers))
    answers = np.ravel(answers if answers.ndim < 2 else models.answers(answers))
    classes = as_whole("a positive number of classes", classes, 1, MOST_CLASSES)
    if labels.shape != answers.shape:
        raise expected(f"{labels.shape[0]} answers, one a label", f"{answers.shape[0]}")
    for name, values in (("labels", labels), ("answers", answers)):
        if not np.issubdtype(values.dtype, np.integer):
            raise expected(f"integer {name}", f"{values.dtype}", f"{name}.astype(int)")
        if values.size and (values.min() < 0 or values.max() >= classes):
            raise expected(f"{name} from 0 to {classes - 1}", f"{values.min()} to {values.max()}")
    labels = labels.astype(np.int64)  # the products of narrow ones wrap
    return np.bincount(labels * classes + answers, minlength=classes**2).reshape(classes, classes)
