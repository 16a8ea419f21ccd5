"""Logits and accuracy of any model, in batches of constant memory."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from koopjax._core import blocks, expected
from koopjax.models._forms import Form, form_of
from koopjax.models._scores import answers, compare, read_task

#: Rows that a forward pass takes at once unless the caller says otherwise.
BATCH = 2000


def check_samples(name: str, x: Any, y: Any = None) -> None:
    """Refuse an empty batch and labels that are not one a sample."""
    if np.ndim(x) < 1 or np.shape(x)[0] == 0:
        raise expected(
            f"{name}: at least one sample", f"shape {np.shape(x)}", "x of shape (n, ...) with n > 0"
        )
    if y is not None and (np.ndim(y) < 1 or np.shape(y)[0] != np.shape(x)[0]):
        raise expected(
            f"{name}: {np.shape(x)[0]} targets, one a sample",
            f"shape {np.shape(y)}",
            "x and y of one split",
        )


def check_input(name: str, form: Form, params: Any, rest: Any, x: Any) -> jax.ShapeDtypeStruct:
    """Shape and type of the output for one sample; an error if the model takes no such input."""
    row = jax.ShapeDtypeStruct((1, *np.shape(x)[1:]), jnp.result_type(x))
    try:
        return jax.eval_shape(form.forward, params, rest, row)
    except (TypeError, ValueError, AssertionError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise expected(
            f"{name}: samples that the model takes",
            f"shape {row.shape[1:]} ({first[:200]})",
            "dataset.flat() for an MLP, images of shape (h, w, c) for a CNN",
        ) from error


@functools.partial(jax.jit, static_argnames=("form", "batch_size"))
def _predict(form: Form, params: Any, rest: Any, x: Array, batch_size: int) -> Array:
    cut, _ = blocks(x, batch_size)
    out = jax.lax.map(lambda batch: form.forward(params, rest, batch), cut)
    return out.reshape(-1, *out.shape[2:])[: x.shape[0]]


@functools.partial(jax.jit, static_argnames=("form", "batch_size"))
def count_correct(
    form: Form, params: Any, rest: Any, x: Array, y: Array, batch_size: int
) -> Int[Array, ""]:
    """Number of answers that are their label's."""
    cut, weights = blocks(x, batch_size)
    labels, _ = blocks(y, batch_size)

    def one(batch):
        x, y, weight = batch
        hits = answers(form.forward(params, rest, x)) == y
        return jnp.sum(hits & (weight > 0).reshape(-1, *(1,) * (y.ndim - 1)))

    return jnp.sum(jax.lax.map(one, (cut, labels, weights)))


@functools.partial(jax.jit, static_argnames=("form", "loss", "batch_size"))
def measure(
    form: Form, loss: Any, params: Any, rest: Any, x: Array, y: Array, batch_size: int
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Mean loss and share of correct samples (zero unless the labels are integers).

    The samples of an incomplete last batch are measured by themselves, so that a loss that is a
    mean stays one.
    """
    n = x.shape[0]
    whole = n - n % batch_size

    def one(batch):
        x, y = batch
        out = form.forward(params, rest, x)
        hits = 0.0
        if jnp.issubdtype(y.dtype, jnp.integer):
            hits = jnp.mean(answers(out) == y)
        return loss(out, y), jnp.asarray(hits, jnp.float32)

    def cut(array):
        return array[:whole].reshape(-1, batch_size, *array.shape[1:])

    value, hits = jax.tree.map(jnp.mean, jax.lax.map(one, (cut(x), cut(y))))
    if whole == n:
        return value, hits
    value_end, hits_end = one((x[whole:], y[whole:]))
    share = (n - whole) / n
    return value + share * (value_end - value), hits + share * (hits_end - hits)


def predict(model: Any, x: Float[Array, "n ..."], batch_size: int = BATCH) -> Float[Array, "n ..."]:
    """Output of a model in inference mode, `batch_size` samples at a time.

    Args:
        model: an `nnx.Module` (dropout off, batch normalisation on running statistics, whatever
            mode it is in), a pair `(linen_module, variables)`, a pair `(function, params)`, or any
            callable pytree of one array.
        x: samples.
        batch_size: rows of one forward pass; bounds the memory that activations take.

    Returns:
        The output for all samples, in order, such as logits `(n, classes)`.

    Numerics:
        One compilation a structure of the model, shape of `x` and batch size; another model of the
        same structure shares it.

    Raises:
        ValueError: no samples, or samples of a shape that the model does not take.
    """
    check_samples("models.predict", x)
    form, params, rest = form_of(model)
    check_input("models.predict", form, params, rest, x)
    return _predict(form, params, rest, jnp.asarray(x), min(batch_size, len(x)))


def accuracy(
    model: Any, x: Float[Array, "n ..."], y: Int[Array, " n"], batch_size: int = BATCH
) -> float:
    """Share of samples whose largest logit is their label's; of one logit, whose sign is.

    Args:
        model: as for `predict`.
        x: samples.
        y: labels from 0 on, integers; `(n, t)` for a model of tokens. For a model of one output
            0 and 1, where the logit is below and above 0.
        batch_size: rows of one forward pass.

    Returns:
        A number in [0, 1].

    Raises:
        ValueError: no samples, labels that are not one integer an answer from 0 on and below the
            number of outputs, one output that looks like a probability, or samples of a shape
            that the model does not take.
    """
    check_samples("models.accuracy", x, y)
    out = output_like(model, x)
    form, params, rest = form_of(model)
    x, size = jnp.asarray(x), min(batch_size, len(x))
    if out.shape[1:] in ((), (1,)):  # whether it is a logit, its numbers tell
        out = _predict(form, params, rest, x, size)
    _, labels = read_task(out, y, "classification")
    assert labels is not None
    correct = count_correct(form, params, rest, x, labels, size)
    return float(correct) / labels.size


def output_like(model: Any, x: Any) -> jax.ShapeDtypeStruct:
    """Shape and dtype of a model's output for samples, without running it.

    Args:
        model: as for `predict`.
        x: samples, or their shape and dtype.

    Raises:
        ValueError: no samples, or samples of a shape that the model does not take.
    """
    check_samples("models.output_like", x)
    out = check_input("models.output_like", *form_of(model), x)
    return jax.ShapeDtypeStruct((np.shape(x)[0], *out.shape[1:]), out.dtype)


def score(
    model: Any, x: Any, y: Any, task: str | None = None, score_fn: Any = None,
    batch_size: int = BATCH,
) -> float:  # fmt: skip
    """How good a model is on labelled samples: accuracy of a classifier, R² of a regression.

    Args:
        model: as for `predict`.
        x: samples.
        y: classes or targets.
        task: "classification" or "regression"; without, as `read_task` finds out.
        score_fn: `score_fn(outputs, labels)` in place of both.
        batch_size: rows of one forward pass.

    Raises:
        ValueError: as for `predict`; labels that don't fit, or that leave the task open.
    """
    outputs = predict(model, x, batch_size)
    task, labels = read_task(outputs, y, task, score_fn=score_fn)
    return float(compare(outputs, outputs, labels, task, score_fn)["accuracy"])


def apply(model: Any, x: Any) -> Any:
    """Output of a model in inference mode for one batch; traceable.

    Args:
        model: as for `predict`.
        x: one batch.
    """
    form, params, rest = form_of(model)
    return form.forward(params, rest, x)
