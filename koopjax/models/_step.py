"""One epoch of training as one compiled scan."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from koopjax._core import as_array, as_numbers, expected, is_tracing, pytree
from koopjax.forms import Definition
from koopjax.models._scores import answers, logits as pair_of, paired

#: Made once, so that it is the same static argument on every call.
ADAM = optax.scale_by_adam()


@pytree
class Hyper:
    """Settings of the built-in optimizer, all leaves: another value is no new compilation.

    Of `total` steps `warmup` are of linear increase to `learning_rate`, then the cosine ends at
    zero; weight decay is decoupled, on arrays of two axes or more.
    """

    learning_rate: Any
    weight_decay: Any
    warmup: Any
    total: Any

    def rate(self, step: Array) -> Float[Array, ""]:
        """Learning rate at a step: linear warm-up, then half a cosine down to zero."""
        step = step.astype(jnp.float32)
        rising = (step + 1.0) / jnp.maximum(self.warmup, 1.0)
        done = (step - self.warmup) / jnp.maximum(self.total - self.warmup, 1.0)
        falling = 0.5 * (1.0 + jnp.cos(jnp.pi * jnp.clip(done, 0.0, 1.0)))
        return self.learning_rate * jnp.where(step < self.warmup, rising, falling)


@pytree
class State:
    """What a step changes: parameters, other variables, optimizer state, number of steps done."""

    params: Any
    rest: Any
    opt: Any
    step: Any


def cross_entropy(logits: Float[Array, "n ... classes"], y: Array) -> Float[Array, ""]:
    """Mean softmax cross-entropy; of one logit the sigmoid's.

    Args:
        logits: `(n, classes)`, or with more axes for tokens.
        y: integer labels, or probabilities of the shape of `logits` (distillation).
    """
    logits, y = as_numbers("the logits", logits), as_array("the labels", y)
    pair = pair_of(logits)
    labels = jnp.issubdtype(y.dtype, jnp.integer)
    # of one logit a probability may come with or without its axis
    fits = y.shape == logits.shape or (pair is not logits and y.shape == pair.shape[:-1])
    if not (y.shape == pair.shape[:-1] if labels else fits):
        raise expected(
            f"integer labels of the first axes of logits {logits.shape}, or probabilities of all",
            f"{y.dtype}{list(y.shape)}",
        )
    if labels:
        if not is_tracing(y) and y.size and not 0 <= int(y.min()) <= int(y.max()) < pair.shape[-1]:
            raise expected(
                f"labels from 0 to {pair.shape[-1] - 1}", f"{int(y.min())} to {int(y.max())}"
            )
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(pair, y))
    if pair is not logits:
        y = y.reshape(*pair.shape[:-1], 1)
        y = jnp.concatenate([1 - y, y], axis=-1)
    return jnp.mean(optax.softmax_cross_entropy(pair, y))


def squared_error(output: Float[Array, "n ..."], y: Float[Array, "n ..."]) -> Float[Array, ""]:
    """Mean squared error, for regression; either may have a last axis of one entry."""
    output, y = paired("the output", output, "targets", y)
    return jnp.mean((output - y) ** 2)


@functools.partial(jax.jit, static_argnames=("optimizer",))
def init_state(params: Any, rest: Any, optimizer: optax.GradientTransformation | None) -> State:
    """The state before the first step.

    Of copies: the scan takes over the buffers of the state, and the model given stays usable.
    """
    params, rest = jax.tree.map(jnp.copy, (params, rest))
    return State(params, rest, (optimizer or ADAM).init(params), jnp.zeros((), jnp.int32))


def _update(hyper, optimizer, grads, state) -> tuple[Any, Any]:
    """New parameters and optimizer state."""
    # Optax raises its rates to a whole number of steps, whatever a user asks of promotion.
    with jax.numpy_dtype_promotion("standard"):
        updates, opt = (optimizer or ADAM).update(grads, state.opt, state.params)
    if optimizer is not None:
        return optax.apply_updates(state.params, updates), opt
    rate = hyper.rate(state.step)

    def move(param, direction):
        decay = hyper.weight_decay if param.ndim >= 2 else 0.0
        return (param - rate * (direction + decay * param)).astype(param.dtype)

    return jax.tree.map(move, state.params, updates), opt


def run_epoch(
    form: Definition,
    optimizer: optax.GradientTransformation | None,
    loss: Callable[[Array, Array], Array],
    shape: tuple[int, int],
    hyper: Hyper,
    state: State,
    x: Array,
    y: Array,
    key: Array,
) -> tuple[State, dict[str, Array]]:
    """Steps over shuffled data, none twice; the samples that are left over sit this one out.

    The first three arguments and `shape` (steps, samples a step) are static. All data are on the
    device, batches are gathered inside the scan; the key shuffles, and seeds the dropout of Linen
    models. Gives the state after, and means over the epoch of the loss and, for integer labels, of
    the accuracy.
    """
    order_key, model_key = jax.random.split(key)
    steps, batch_size = shape
    order = jax.random.permutation(order_key, x.shape[0])[: steps * batch_size]
    keys = jax.random.split(model_key, steps)

    def objective(params, rest, x, y, key):
        out, rest = form.train(params, rest, x, key)
        return loss(out, y), (out, rest)

    def step(state, batch):
        index, key = batch
        xb, yb = x[index], y[index]
        (value, (out, rest)), grads = jax.value_and_grad(objective, has_aux=True)(
            state.params, state.rest, xb, yb, key
        )
        params, opt = _update(hyper, optimizer, grads, state)
        metrics = {"loss": value}
        if jnp.issubdtype(yb.dtype, jnp.integer):
            metrics["accuracy"] = jnp.mean(answers(out) == yb)
        return State(params, rest, opt, state.step + 1), metrics

    state, metrics = jax.lax.scan(step, state, (order.reshape(steps, batch_size), keys))
    return state, jax.tree.map(jnp.mean, metrics)


_STATIC = (0, 1, 2, 3)

#: One model.
epoch = jax.jit(run_epoch, static_argnums=_STATIC, donate_argnums=(5,))


@functools.partial(jax.jit, static_argnums=(*_STATIC, 4), donate_argnums=(6,))
def lanes_epoch(form, optimizer, loss, shape, own, hyper, state, x, y, keys):
    """`run_epoch` of several models at once, each with its own key, on the same samples.

    `own`: whether `y` has an axis of lanes in front.
    """
    run = functools.partial(run_epoch, form, optimizer, loss, shape, hyper)
    return jax.vmap(run, in_axes=(0, None, 0 if own else None, 0))(state, x, y, keys)
