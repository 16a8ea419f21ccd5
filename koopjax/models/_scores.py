"""How a model's output is read, and what it is worth: one notion of task for all that score."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from koopjax._core import as_numbers, check_finite, expected, held, read

#: How the output of a model is read.
TASKS = ("classification", "regression")


def read_task(
    output: Any, labels: Any = None, task: str | None = None, *, name: str = "labels",
    score_fn: Any = None,
) -> tuple[str, Array | None]:  # fmt: skip
    """The task of a network, from its output and labels where it is not said, and the labels.

    A classifier answers by its largest output, or where it has one output alone by its sign, class
    1 where that logit is above 0. A regression is measured by R². Which it is follows from labels:
    integers that name its outputs make a classifier, numbers of the output's shape a regression.
    Without labels nothing tells logits from real numbers, and R² of the outputs is true of both, so
    that is taken: nothing then depends on which output is the largest. Where labels may mean
    either, the task is asked for.

    Args:
        output: of the model, `(n, ..., q)`; or its shape and dtype, where its numbers don't matter.
        labels: `(n, ...)` classes from 0 on, or targets of the output's shape (`(n, ...)` for one
            output); None where there are none.
        task: among `TASKS`; None to find out.
        name: of the labels, for messages.
        score_fn: reads the labels in place of accuracy and R²; they may then be anything, one a
            sample.

    Returns:
        "classification" or "regression"; and the labels as `compare` takes them, or None.

    Raises:
        ValueError: labels that don't fit the task and the output, or that leave the task open.

    Example:
        >>> import numpy as np
        >>> read_task(np.ones((3, 2)))[0], read_task(np.ones((3, 2)), np.array([0, 1, 1]))[0]
        ('regression', 'classification')
    """
    if task is not None:
        _check_task(task)
    if not isinstance(output, jax.ShapeDtypeStruct):
        output = read("the output", output)
    if not jnp.issubdtype(output.dtype, jnp.floating) or len(output.shape) < 1:
        raise expected(
            "a model whose output is real numbers", f"{output.dtype} of shape {output.shape}",
            "the logits",
        )  # fmt: skip
    if score_fn is not None and (labels is None or not callable(score_fn)):
        got = "no labels" if labels is None else repr(score_fn)
        raise expected(f"score_fn(outputs, {name}), with {name}", got, "score_fn=None")
    if labels is None:
        return task or "regression", None
    labels = read(name, labels)
    n = output.shape[0]
    if np.shape(labels)[:1] != (n,) or n == 0:
        raise expected(
            f"{n or 'at least one of'} labels in {name}, one a sample", f"shape {labels.shape}",
            "samples and labels in pairs",
        )  # fmt: skip
    if score_fn is not None:
        task = task or ("classification" if _are_classes(labels, output) else "regression")
        return task, held(name, labels)
    task = task or _task_of_labels(name, labels, output)
    if task == "classification":
        check_classes(name, labels, output)
        return task, held(name, labels).astype(jnp.int32)
    _check_targets(name, labels, output)
    return task, held(name, labels).reshape(output.shape).astype(jnp.float32)


def _check_task(task: Any) -> None:
    if not isinstance(task, str) or task not in TASKS:
        raise expected(f"a task among {', '.join(map(repr, TASKS))}", repr(task))


def _kind(labels: Any) -> str:
    """Of numbers: "integer", "floating" or "other"."""
    dtype = labels.dtype
    if jnp.issubdtype(dtype, jnp.integer) or dtype == jnp.bool_:
        return "integer"
    return "floating" if jnp.issubdtype(dtype, jnp.floating) else "other"


def _rows(output: Any) -> tuple[tuple[int, ...], int]:
    """Shape of the answers, and outputs an answer; an output without a last axis is one."""
    shape = tuple(output.shape)
    return (shape, 1) if len(shape) == 1 else (shape[:-1], shape[-1])


def _are_classes(labels: Any, output: Any) -> bool:
    """Whether they are integers that name the outputs."""
    rows, q = _rows(output)
    if _kind(labels) != "integer" or np.shape(labels) != rows:
        return False
    values = np.asarray(labels)
    return bool(0 <= values.min() <= values.max() < max(q, 2))


def _task_of_labels(name: str, labels: Any, output: Any) -> str:
    """The task that labels leave no doubt about; a `ValueError` where they do."""
    (rows, q), kind, shape = _rows(output), _kind(labels), np.shape(labels)
    ask = lambda got, suggestion: expected(
        f"task='classification' or 'regression' where {name} leave it open", got, suggestion
    )
    if kind == "integer":
        if q == 1 and shape == rows and not _are_classes(labels, output):
            raise ask(
                f"integers from {np.min(labels)} to {np.max(labels)} for one output",
                "task='regression' for numbers, classes 0 and 1 for a logit",
            )
        if shape == output.shape and q > 1:
            raise ask(
                f"integers of the output's shape {shape}",
                "y.argmax(-1) for one-hot classes, task='regression' for numbers",
            )
        return "classification"
    if kind != "floating":
        return "regression"  # which refuses it
    values = np.asarray(labels)
    if shape == output.shape and q > 1:
        if np.all((values == 0) | (values == 1)) and np.all(values.sum(axis=-1) == 1):
            raise ask(
                f"one-hot {name} of shape {shape}",
                "y.argmax(-1) for classes, task='regression' for numbers",
            )
    elif np.all((values == 0) | (values == 1)) or (shape == rows and q > 1):
        raise ask(
            f"{values.dtype} of shape {shape} for {q} outputs",
            "integer classes (y.astype(int)), or task='regression' for numbers",
        )
    return "regression"


def check_classes(name: str, labels: Any, output: Any) -> None:
    """Refuse what are not integers from 0 on, one an answer and below the number of outputs."""
    (rows, q), shape = _rows(output), np.shape(labels)
    if _kind(labels) != "integer":
        suggestion = "y.astype(int)" if shape == rows else "y.argmax(-1) for one-hot classes"
        raise expected(
            f"integer {name}", f"{labels.dtype} of shape {shape}",
            f"{suggestion}, or task='regression'",
        )  # fmt: skip
    if shape != rows:  # which would broadcast
        one_hot = len(shape) == len(rows) + 1 and shape[-1] > 1
        suggestion = "y.argmax(-1) for one-hot classes" if one_hot else "y[:, 0]"
        raise expected(f"integer {name} of shape {rows}", f"shape {shape}", suggestion)
    if not _are_classes(labels, output):
        raise expected(
            f"{name} from 0 to {max(q, 2) - 1}, since the model has {q} output{'s' * (q > 1)}",
            f"{name} from {np.min(labels)} to {np.max(labels)}",
            "classes numbered from 0, or a model with one output a class",
        )
    if q == 1 and not isinstance(output, jax.ShapeDtypeStruct):
        _check_logit(output)


def _check_logit(output: Any) -> None:
    """Refuse what looks like a probability, whose sign says nothing."""
    low, high = float(jnp.min(output)), float(jnp.max(output))
    if 0 <= low < 0.5 < high <= 1:
        raise expected(
            "one logit, whose sign is the answer", f"outputs from {low:.3g} to {high:.3g}, which "
            "look like probabilities", "the model without its last sigmoid, or task='regression'",
        )  # fmt: skip


def _check_targets(name: str, labels: Any, output: Any) -> None:
    """Refuse what are not finite numbers of the output's shape."""
    (rows, q), shape = _rows(output), np.shape(labels)
    fits = shape == tuple(output.shape) or (q == 1 and shape in (rows, (*rows, 1)))
    if _kind(labels) not in ("integer", "floating") or not fits:
        raise expected(
            f"{name} of the output's shape {tuple(output.shape)} for a regression",
            f"{labels.dtype} of shape {shape}", "one number an output",
        )  # fmt: skip
    check_finite(name, labels)


def logits(output: Float[Array, "... q"]) -> Float[Array, "... c"]:
    """One number a class: the output, or where it is one logit the pair `(0, z)`."""
    if output.ndim < 1:
        raise expected("logits of at least one sample", "one number")
    if output.ndim > 1 and output.shape[-1] > 1:
        return output
    z = output if output.ndim > 1 else output[:, None]
    return jnp.concatenate([jnp.zeros_like(z), z], axis=-1)


def answers(output: Float[Array, "... q"]) -> Int[Array, "..."]:
    """Classes that an output answers: of the largest, or of the sign of one; -1 where it is NaN.

    Args:
        output: logits `(n, ..., q)`.

    Example:
        >>> import jax.numpy as jnp
        >>> answers(jnp.array([[0.2], [-3.0]])).tolist()
        [1, 0]
    """
    values = logits(as_numbers("the output", output))
    return jnp.where(jnp.isnan(values).any(axis=-1), -1, jnp.argmax(values, axis=-1))


def paired(wanted: str, like: Any, name: str, array: Any) -> tuple[Array, Array]:
    """Two arrays of numbers in one shape: that of the first.

    The second may differ by a last axis of one entry, which either may have, and by no more,
    although another shape may broadcast or hold as many numbers.
    """
    like, array = as_numbers(wanted, like), as_numbers(name, array)
    if array.shape not in (like.shape, (*like.shape, 1)) and like.shape != (*array.shape, 1):
        raise expected(f"{name} of {wanted}'s shape {like.shape}", f"shape {array.shape}")
    return like, array.reshape(like.shape)


def r_squared(truth: Float[Array, "n ..."], guess: Float[Array, "n ..."]) -> Float[Array, ""]:
    """`1 - Σ (y - ŷ)² / Σ (y - ȳ)²` over all entries, means an output; traceable.

    For a truth that does not vary 1 where the guess is the same, else 0.

    Numerics:
        Both are divided by the largest deviation of the truth first, whose squares may lie beyond
        float32.

    Raises:
        ValueError: different shapes, but for a last axis of one entry.
    """
    truth, guess = paired("the truth", truth, "the guess", guess)
    if truth.ndim < 1 or not truth.size:
        raise expected("a truth of at least one sample", f"shape {truth.shape}")
    centred = truth - jnp.mean(truth, axis=0, keepdims=True)
    unit = jax.lax.stop_gradient(jnp.max(jnp.abs(centred)))
    varies = unit != 0  # true of NaN, which is to show
    unit = jnp.where(varies, unit, 1)
    whole, left = jnp.sum((centred / unit) ** 2), jnp.sum(((truth - guess) / unit) ** 2)
    constant = jnp.all(truth == guess).astype(whole.dtype)
    return jnp.where(varies, 1 - left / jnp.where(varies, whole, 1), constant)


def divergence(
    reference: Float[Array, "n ... q"], output: Float[Array, "n ... q"], task: str
) -> Float[Array, ""]:
    """How far an output is from the original's; traceable.

    Mean Kullback-Leibler divergence of the softmax of `output` from that of `reference` for a
    classification (of one logit: of the sigmoid), mean squared difference for a regression.

    Args:
        reference, output: `(n, ..., q)`.
        task: among `TASKS`, static.

    Raises:
        ValueError: different shapes, but for a last axis of one entry; no task.
    """
    _check_task(task)
    reference, output = paired("the reference", reference, "the output", output)
    if task == "regression":
        return jnp.mean((reference - output) ** 2)
    p = jax.nn.log_softmax(logits(reference), axis=-1)
    q = jax.nn.log_softmax(logits(output), axis=-1)
    return jnp.mean(jnp.sum(jnp.exp(p) * (p - q), axis=-1))


def compare(
    output: Array, reference: Array, labels: Any, task: str, score_fn: Any
) -> dict[str, Array]:
    """Accuracy, agreement and divergence of one output; traceable.

    Args:
        output, reference: `(n, ..., q)`, of the model at hand and of the original.
        labels: that `read_task` gave, or None.
        task: among `TASKS`, static.
        score_fn: `score_fn(output, labels)` in place of the accuracy, static; or None.

    Returns:
        `agreement` (share of equal answers, or R² against the reference), `kl` (`divergence`) and,
        with labels, `accuracy` (share of right answers, or R² against the labels).
    """
    reference, output = paired("the reference", reference, "the output", output)
    output, reference = output.astype(jnp.float32), reference.astype(jnp.float32)
    found = {"kl": divergence(reference, output, task)}
    if task == "classification":
        answer = answers(output)
        found["agreement"] = jnp.mean(answer == answers(reference))
    else:
        found["agreement"] = r_squared(reference, output)
    if labels is None:
        return found
    if score_fn is not None:
        accuracy = score_fn(output, labels)
    elif task == "classification":
        accuracy = jnp.mean(answers(output) == labels)
    else:
        accuracy = r_squared(labels, output)
    return {"accuracy": accuracy, **found}
