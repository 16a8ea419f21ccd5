"""What a replaced span does to the model's output: scores, divergence, and a metric on states."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from koopjax import models, surgery
from koopjax._core import as_numbers, as_whole, blocks, check_finite, expected, matmul, read

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


@jax.jit
def run(function: Any, x: Array) -> Array:
    """`function(x)` of a callable pytree."""
    return function(x)


@functools.partial(jax.jit, static_argnames="batch")
def _mapped(function: Any, x: Array, *, batch: int) -> Array:
    rows = jax.lax.map(function, blocks(x, batch)[0])
    return rows.reshape(-1, rows.shape[-1])[: x.shape[0]]


def in_blocks(function: Any, x: Any, batch: int = 4096) -> np.ndarray:
    """`function(x)` of a callable pytree, a block of samples at a time: Ψ is never whole."""
    return np.asarray(_mapped(function, x, batch=min(batch, x.shape[0])))


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

    The predictions of rank r are the leading r columns of `coded = Ψ(x) L` times the leading rows
    of `right = R`, so a rank is a mask and costs no compilation. The tail is None where K maps to
    the output itself; `truth` are the span's own rows.
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


#: Ways to weigh the outputs.
METRICS = ("output", "centred", "softmax")


@functools.partial(jax.jit, static_argnames=("kind", "sample_axes"))
def _mean_metric(function: Any, states: Array, *, kind: str, sample_axes: Any) -> Array:
    """Mean over samples of `Jᵀ C J`, block by block of one sample."""

    def one(state: Array) -> Array:
        call = lambda s: jnp.ravel(function(s[None]))
        output, pull = jax.vjp(call, state)
        root = jnp.eye(output.shape[0], dtype=output.dtype)
        if kind == "centred":
            root = root - 1 / output.shape[0]
        elif kind == "softmax":
            # diag(p) - p pᵀ = R Rᵀ with R = (I - p 1ᵀ) diag(√p)
            p = jax.nn.softmax(output)
            root = (root - p[:, None]) * jnp.sqrt(p)[None, :]
        (jacobian,) = jax.vmap(pull)(root.T)
        rows = surgery.to_rows(jacobian, sample_axes)
        rows = rows.reshape(-1, rows.shape[-1])
        return matmul(rows.T, rows)

    d = surgery.to_rows(states[:1], sample_axes).shape[-1]
    start = jnp.zeros((d, d), states.dtype)
    total, _ = jax.lax.scan(lambda total, state: (total + one(state), None), start, states)
    return total / states.shape[0]


def output_metric(
    function: Any,
    states: Float[Array, "n ..."],
    *,
    kind: str = "output",
    sample_axes: Any = None,
    max_samples: int = 512,
) -> Float[Array, "d d"]:
    """The metric in which an error of the state costs what it does at the output.

    `M = mean over samples of Jᵀ C J`, with J the Jacobian of the rest of the network. With
    `kind="output"` C is the identity, with `"centred"` it takes off what a softmax does not see (a
    common shift of all logits), with `"softmax"` it is `diag(p) - p pᵀ`, so that
    `½ e M eᵀ` is the KL divergence that a small error e causes. For a last layer `y W + b`,
    `"output"` gives `W Wᵀ`.

    Args:
        function: what comes after the states, of one batch: a callable pytree such as the tail of
            `surgery.split`, or a plain function, which each call compiles anew; its output is read
            as one vector a sample.
        states: `(n, ...)`.
        kind: see above.
        sample_axes: how a state that is no vector is read, as in `surgery.to_rows`; positions are
            summed over.
        max_samples: evenly spaced samples that are used.

    Returns:
        `(d, d)`, symmetric and positive semi-definite.

    Numerics:
        One backward pass an output and sample, as a scan: `O(d² + c)` memory a sample.
    """
    if kind not in METRICS:
        raise expected(f"a metric among {', '.join(map(repr, METRICS))}", repr(kind))
    if not callable(function):
        raise expected("a function from states to outputs", f"{function!r:.60}")
    states = as_numbers("states", states)
    check_finite("states", states)
    max_samples = as_whole("max_samples", max_samples, 1)
    if states.ndim < 2 or states.shape[0] == 0:
        raise expected("states of shape (n, ...) with n > 0", f"shape {states.shape}")
    if jax.tree_util.all_leaves([function]):
        # A new one in each call, so that what it closes over is read anew.
        function = jax.tree_util.Partial(functools.partial(function))
    out = jax.eval_shape(lambda x: read("the outputs", function(x)), states[:2])
    if out.shape[:1] != (min(2, states.shape[0]),):
        raise expected("a function that gives an output a state, (n, ...)", f"shape {out.shape}")
    if not jnp.issubdtype(out.dtype, jnp.floating):
        raise expected("a function with real outputs", f"dtype {out.dtype}")
    if kind != "output" and out.size == out.shape[0]:
        raise expected(
            f"several outputs for the metric {kind!r}, which takes off what they have in common",
            "one output", "'output'",
        )  # fmt: skip
    n = states.shape[0]
    chosen = np.unique(np.linspace(0, n - 1, min(n, max_samples)).astype(int))
    return _mean_metric(function, states[chosen], kind=kind, sample_axes=sample_axes)
