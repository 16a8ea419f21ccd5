"""Logits and accuracy of any model, in batches of constant memory."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from koopjax._core import as_array, check_finite, check_integer, check_number, expected, read
from koopjax.forms import Definition, ModeError, form_of
from koopjax.models._scores import answers, r_squared, read_task

_answers, _r_squared = jax.jit(answers), jax.jit(r_squared)

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


@functools.partial(jax.jit, static_argnames=("form",))
def _forward(form: Definition, params: Any, rest: Any, x: Array) -> Any:
    """Inference; a form is traced once for each shape of a batch."""
    leaves = form.leaves(params, rest)
    form.trace(leaves, x)
    return form(leaves, x)


def check_input(
    name: str, form: Definition, params: Any, rest: Any, x: Any, size: int = 1
) -> jax.ShapeDtypeStruct:
    """Shape and type of the output for a batch; an error if the model takes no such input."""
    rows = jax.ShapeDtypeStruct((size, *np.shape(x)[1:]), jnp.result_type(x))
    try:
        out = _forward.eval_shape(form, params, rest, rows)
    except ModeError:
        raise
    except (TypeError, ValueError, AssertionError) as error:
        cause = error.__cause__ or error  # of the model's own, before it was put into words
        first = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
        raise expected(
            f"{name}: samples that the model takes",
            f"shape {rows.shape[1:]} ({first[:200]})",
            "dataset.flat() for an MLP, images of shape (h, w, c) for a CNN",
        ) from error
    if not isinstance(out, jax.ShapeDtypeStruct):
        raise expected(
            f"{name}: a model whose output is one array",
            type(out).__name__,
            "a function of the model that returns the one to look at",
        )
    return out


def batch_axis(name: str, form: Definition, params: Any, rest: Any, x: Any, size: int) -> int:
    """The axis along which the outputs of batches follow each other: it grows with the batch."""
    one, two = (check_input(name, form, params, rest, x, n).shape for n in (size, size + 1))
    both = enumerate(zip(one, two, strict=False))
    grown = [axis for axis, lengths in both if lengths == (size, size + 1)]
    if len(one) != len(two) or len(grown) != 1:
        raise expected(
            f"{name}: outputs with one axis as long as the batch",
            f"shape {one} for {size} samples, {two} for {size + 1}",
            "a model of samples that answers one by one, or batch_size=len(x) in predict",
        )
    return grown[0]


def check_rows(name: str, form: Definition, params: Any, rest: Any, x: Any) -> None:
    """Refuse outputs whose rows are no samples, where labels are compared with them."""
    n = np.shape(x)[0]
    shape = check_input(name, form, params, rest, x, n).shape
    if shape[:1] == (n,) and n not in shape[1:]:
        return  # no other axis can be the batch's; a model of one batch size runs at no other
    axis = batch_axis(name, form, params, rest, x, 2)
    if axis:
        raise expected(
            f"{name}: outputs with the batch on axis 0",
            f"on axis {axis}",
            "a function that swaps the axes of the model's output",
        )


def _cut(array: Array, size: int) -> tuple[Array, Array]:
    """Rows in blocks of a size, and those that are left over.

    The last are a batch by themselves, never filled up: rows that are no samples would change the
    answers of a model whose samples share a capacity or statistics.
    """
    whole = array.shape[0] - array.shape[0] % size
    return array[:whole].reshape(-1, size, *array.shape[1:]), array[whole:]


@functools.partial(jax.jit, static_argnames=("form", "batch_size", "axis"))
def _predict(
    form: Definition, params: Any, rest: Any, x: Array, batch_size: int, axis: int
) -> Array:
    cut, end = _cut(x, batch_size)
    if cut.shape[0] == 1 and not end.shape[0]:
        return _forward(form, params, rest, x)
    out = jax.lax.map(lambda batch: _forward(form, params, rest, batch), cut)
    out = jnp.moveaxis(out, 0, axis)
    out = out.reshape(*out.shape[:axis], -1, *out.shape[axis + 2 :])
    if not end.shape[0]:
        return out
    return jnp.concatenate([out, _forward(form, params, rest, end)], axis)


@functools.partial(jax.jit, static_argnames=("form", "loss", "batch_size"))
def measure(
    form: Definition, loss: Any, params: Any, rest: Any, x: Array, y: Array, batch_size: int
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Mean loss and share of correct samples (zero unless the labels are integers).

    An incomplete last batch is measured by itself, so that a loss that is a mean stays one.
    """

    def one(batch):
        x, y = batch
        out = _forward(form, params, rest, x)
        hits = 0.0
        if jnp.issubdtype(y.dtype, jnp.integer):
            hits = jnp.mean(answers(out) == y)
        return loss(out, y), jnp.asarray(hits, jnp.float32)

    (cut_x, x_end), (cut_y, y_end) = _cut(x, batch_size), _cut(y, batch_size)
    value, hits = jax.tree.map(jnp.mean, jax.lax.map(one, (cut_x, cut_y)))
    if not x_end.shape[0]:
        return value, hits
    value_end, hits_end = one((x_end, y_end))
    share = x_end.shape[0] / x.shape[0]
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
        The output for all samples, in order, such as logits `(n, classes)`; batches follow each
        other along the axis that grows with the batch, such as the second where time comes first.

    Numerics:
        One compilation a structure of the model, shape of `x` and batch size; another model of the
        same structure shares it. The samples of an incomplete last batch are one by themselves:
        nothing fills it up, which would change the answers of a model that couples the samples of
        a batch (capacities, statistics). Such a model answers by batches of `batch_size`.

    Raises:
        ValueError: no samples, samples of a shape that the model does not take, or several batches
            of outputs without one axis as long as the batch.
    """
    return _outputs("models.predict", model, x, batch_size)


def _outputs(name: str, model: Any, x: Any, batch_size: Any, *, by_rows: bool = False) -> Array:
    """As `predict`; with `by_rows` refused where the rows of the output are no samples."""
    x = as_array(f"{name}: x", x)
    check_samples(name, x)
    form, params, rest = form_of(model)
    check_integer(f"{name}: batch_size", batch_size, 1)
    size, axis = min(int(batch_size), x.shape[0]), 0
    if by_rows:
        check_rows(name, form, params, rest, x)
    elif size == len(x):
        check_input(name, form, params, rest, x, size)
    else:
        axis = batch_axis(name, form, params, rest, x, size)
    return _predict(form, params, rest, x, size, axis)


def _scored(
    name: str, model: Any, x: Any, y: Any, task: str | None, score_fn: Any, batch_size: int
) -> float:
    outputs = _outputs(name, model, x, batch_size, by_rows=True)
    task, labels = read_task(outputs, y, task, score_fn=score_fn)
    assert labels is not None
    if score_fn is not None:
        value = score_fn(outputs.astype(jnp.float32), labels)
        check_number("one number of score_fn(outputs, labels)", value, -np.inf)
    elif task == "classification":
        # On the host: 9,650 of 10,000 are 0.965, in float32 0.96499997.
        value = np.mean(np.asarray(_answers(outputs)) == np.asarray(labels))
    else:
        check_finite(f"the model's outputs ({name})", outputs)
        value = _r_squared(labels, outputs.astype(jnp.float32))
    return float(value)


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
    y = read("models.accuracy: y", y)
    x = as_array("models.accuracy: x", x)
    check_samples("models.accuracy", x, y)
    return _scored("models.accuracy", model, x, y, "classification", None, batch_size)


def output_like(model: Any, x: Any, *, by_rows: bool = False) -> jax.ShapeDtypeStruct:
    """Shape and dtype of a model's output for samples, without running it.

    Args:
        model: as for `predict`.
        x: samples, or their shape and dtype.
        by_rows: whether rows of the output are to be the samples, as where labels go with them.

    Raises:
        ValueError: no samples, samples of a shape that the model does not take, or with `by_rows`
            a batch on another axis than the first.
    """
    name = "models.output_like"
    if not isinstance(x, jax.ShapeDtypeStruct):
        x = read(f"{name}: x", x)
    check_samples(name, x)
    formed = form_of(model)
    out = check_input(name, *formed, x, np.shape(x)[0])
    if by_rows:
        check_rows(name, *formed, x)
    return out


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
        score_fn: `score_fn(outputs, labels)` in place of both, one finite number.
        batch_size: rows of one forward pass.

    Raises:
        ValueError: as for `predict`; labels that don't fit, that leave the task open, or none; NaN
            among the outputs of a regression, or from `score_fn`; a batch on another axis than the
            first.
    """
    if y is None:
        raise expected("models.score: classes or targets as y", "None", "models.predict(model, x)")
    return _scored("models.score", model, x, y, task, score_fn, batch_size)


def apply(model: Any, x: Any) -> Any:
    """Output of a model in inference mode for one batch; traceable.

    Args:
        model: as for `predict`.
        x: one batch.

    Raises:
        ValueError: a model in training mode, or an input that it does not take.
    """
    return _forward(*form_of(model), as_array("models.apply: x", x))
