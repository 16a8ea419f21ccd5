"""A projection trained together with the cores behind it, on the regression itself."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from koopjax import tt
from koopjax._core import (
    as_key,
    as_numbers,
    as_whole,
    check_finite,
    check_metric,
    check_number,
    expected,
    matmul,
    own_rules,
    semidefinite_root,
)
from koopjax.observables import Compose
from koopjax.tensor_edmd._dictionary import separable
from koopjax.tensor_edmd._result import TensorKoopman


@own_rules()
def train_latent(
    fit: TensorKoopman,
    x: Float[Array, "n d"],
    y: Float[Array, "n q"],
    *,
    key: Array,
    steps: int = 1000,
    learning_rate: float = 1e-3,
    batch_size: int = 256,
    metric: Any = None,
    x_val: Any = None,
    y_val: Any = None,
    evaluations: int = 10,
) -> TensorKoopman:
    """Lower `E ‖Ψ(x) K − y‖²` by gradients, in the maps in front of the product and in the cores.

    Adam on minibatches; no labels, only `y`. After each of `evaluations` equal parts the loss on
    validation data is taken, and the best parameters are kept, those at the start included: the
    result is never worse there.

    Args:
        fit: with a projection, standardisation or other maps in front of its product; their
            floating-point leaves and all cores are trained, the product's families are not.
        x: `(n, d)`.
        y: `(n, q)`.
        key: of the minibatches.
        steps: of Adam, in all.
        learning_rate: of Adam, falling to zero along a cosine.
        batch_size: samples a step.
        metric: `(q, q)`: the loss is `e M eᵀ`.
        x_val: `(m, d)`; without it the training data decide.
        y_val: `(m, q)`.
        evaluations: how often the loss is taken.

    Returns:
        `TensorKoopman` with the trained maps; `info.history` is the loss relative to `y`, as
        residual: training and validation at each evaluation.

    Numerics:
        In the dtype of the fit, one compilation for given shapes and counts.

    Raises:
        ValueError: shapes that do not match, NaN, counts below 1.
    """
    steps, batch_size = as_whole("steps", steps, 1), as_whole("batch_size", batch_size, 1)
    evaluations, key = as_whole("evaluations", evaluations, 1), as_key("train_latent", key)
    check_number("learning_rate", learning_rate)
    if (x_val is None) != (y_val is None):
        raise expected("x_val and y_val together", "one of them")
    if not isinstance(fit, TensorKoopman):
        raise expected("a fit in tensor-train format", type(fit).__name__, "tensor_edmd.als(...)")
    dtype = fit.train.dtype
    x, y = as_numbers("x", x).astype(dtype), as_numbers("y", y).astype(dtype)
    sides = [("x", x), ("y", y)]
    if x_val is not None:
        x_val, y_val = (
            as_numbers(name, a).astype(dtype) for name, a in (("x_val", x_val), ("y_val", y_val))
        )
        sides += [("x_val", x_val), ("y_val", y_val)]
    for name, array in sides:
        check_finite(name, array)
        if array.ndim != 2 or 0 in array.shape:
            raise expected(f"{name} of shape (samples, coordinates)", f"shape {array.shape}")
    q = fit.train.shape[1]
    for a, b in zip(sides[::2], sides[1::2], strict=True):
        if len(a[1]) != len(b[1]) or b[1].shape[1] != q:
            raise expected(f"{q} outputs for every row of {a[0]}", f"{b[0]} of {b[1].shape}")
    root = jnp.eye(q, dtype=dtype) if metric is None else _root(metric, q, dtype)
    front, history, train = _train(
        fit, x, y, x_val, y_val, root, key, jnp.asarray(learning_rate, dtype),
        chunk=-(-steps // evaluations), evaluations=evaluations, batch=min(batch_size, len(x)),
    )  # fmt: skip
    psi: Any = separable(fit.psi)[1]
    for part in reversed(front):
        psi = Compose(part, psi)
    best = int(np.argmin(np.asarray(history)[:, 1]))
    info = dataclasses.replace(
        fit.info, history=history, residual=history[best, 0], method=f"{fit.info.method}, trained"
    )
    return TensorKoopman(psi, train, info, fit.result)


def _root(metric: Any, q: int, dtype: Any) -> Array:
    check_metric("metric", metric, q)
    return jnp.asarray(semidefinite_root(np.asarray(metric, np.float64)).half, dtype)


def _is_trained(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)


@functools.partial(jax.jit, static_argnames=("chunk", "evaluations", "batch"))
def _train(
    fit: TensorKoopman,
    x: Array,
    y: Array,
    x_val: Any,
    y_val: Any,
    root: Array,
    key: Array,
    rate: Array,
    *,
    chunk: int,
    evaluations: int,
    batch: int,
) -> tuple[list[Any], Array, tt.TTMatrix]:
    front, product = separable(fit.psi)
    leaves, tree = jax.tree.flatten(front)
    trained = [_is_trained(leaf) for leaf in leaves]
    start = (
        [jnp.asarray(a, x.dtype) for a, t in zip(leaves, trained, strict=True) if t],
        tuple(fit.train.cores),
    )

    def maps(parameters: Any) -> Any:
        own = iter(parameters[0])
        return jax.tree.unflatten(
            tree, [next(own) if t else a for a, t in zip(leaves, trained, strict=True)]
        )

    def loss(parameters: Any, a: Array, b: Array) -> Array:
        for part in maps(parameters):
            a = part(a)
        out = tt.contract(tt.TTMatrix(parameters[1]), product.factors_at(a))
        return jnp.mean(jnp.sum(matmul(out - b, root) ** 2, axis=1))

    def relative(parameters: Any) -> Array:
        sides = [(x, y), (x, y) if x_val is None else (x_val, y_val)]
        return jnp.stack(
            [
                jnp.sqrt(loss(parameters, a, b) / jnp.mean(jnp.sum(matmul(b, root) ** 2, axis=1)))
                for a, b in sides
            ]
        )

    adam = optax.adam(optax.cosine_decay_schedule(1.0, chunk * evaluations))

    def step(carry: Any, k: Array) -> tuple[Any, None]:
        parameters, state = carry
        rows = jax.random.randint(k, (batch,), 0, x.shape[0])
        slope = jax.grad(loss)(parameters, x[rows], y[rows])
        change, state = adam.update(slope, state)
        change = jax.tree.map(lambda c: rate * c, change)
        return (optax.apply_updates(parameters, change), state), None

    def part(carry: Any, k: Array) -> tuple[Any, Array]:
        inner, best, least = carry
        inner, _ = jax.lax.scan(step, inner, jax.random.split(k, chunk))
        errors = relative(inner[0])
        better = errors[1] < least
        best = jax.tree.map(lambda a, b: jnp.where(better, a, b), inner[0], best)
        return (inner, best, jnp.minimum(least, jnp.where(better, errors[1], least))), errors

    before = relative(start)
    carry = (start, adam.init(start)), start, before[1]
    (_, best, _), errors = jax.lax.scan(part, carry, jax.random.split(key, evaluations))
    history = jnp.concatenate([before[None], errors])
    return maps(best), history, tt.TTMatrix(best[1])
