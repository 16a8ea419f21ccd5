"""Small networks with numbers of NumPy's: no initializer is compiled for each of their shapes."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


def numbers(tree, seed=0):
    """Arrays in the place of shapes: weights of unit gain."""
    random = np.random.default_rng(seed)

    def fill(leaf):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.key(0)
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return jax.device_put(np.zeros(leaf.shape, leaf.dtype))
        made = random.normal(size=leaf.shape) / math.sqrt(max(1, math.prod(leaf.shape[:-1])))
        return jax.device_put(made.astype(leaf.dtype))

    return jax.tree.map(fill, tree)


def filled(build, seed=0):
    """The NNX module that `build()` makes, with other numbers; statistics are positive."""
    model = nnx.eval_shape(build)
    nnx.update(model, numbers(nnx.state(model), seed))
    nnx.update(model, jax.tree.map(abs_of, nnx.state(model, nnx.BatchStat)))
    return model


def abs_of(leaf):
    return jax.device_put(0.5 + np.abs(np.asarray(leaf)))


def linen_filled(module, x, seed=0, **how):
    """Variables of a Linen module likewise."""
    shapes = jax.eval_shape(functools.partial(module.init, **how), jax.random.key(0), x)
    variables = dict(numbers(shapes, seed))
    if "batch_stats" in variables:
        variables["batch_stats"] = jax.tree.map(abs_of, variables["batch_stats"])
    return variables


@nnx.jit
def outputs(model, x):
    """`model(x)` as one program."""
    return model(x)


def normal(*shape, seed=0):
    """Seeded numbers in float32."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)
