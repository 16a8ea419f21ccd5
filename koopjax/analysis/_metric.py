"""What an error in a state costs at the output: a metric on states, by derivatives."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from koopjax import surgery
from koopjax._core import as_numbers, as_whole, check_finite, expected, matmul, read

#: Ways to weigh the outputs.
METRICS = ("output", "centred", "softmax")


@functools.partial(jax.jit, static_argnames=("kind", "sample_axes"))
def _accumulate(function: Any, states: Array, *, kind: str, sample_axes: Any) -> Array:
    """Sum over samples of `Jᵀ C J`, block by block of one sample."""

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
    return jax.lax.scan(lambda total, state: (total + one(state), None), start, states)[0]


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
    total = _accumulate(function, states[chosen], kind=kind, sample_axes=sample_axes)
    return total / len(chosen)
