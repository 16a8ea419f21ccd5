"""A dictionary is a function of each state by itself; code that couples a batch is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from koopjax import edmd, nn, observables as ob

X = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
COUPLED = {
    "largest": lambda z: z / jnp.max(jnp.abs(z)),
    "softmax": lambda z: jax.nn.softmax(z, axis=0),
    "ranks": lambda z: jnp.argsort(jnp.argsort(z, axis=0), axis=0),
    "centred a little": lambda z: z - 1e-3 * jnp.mean(z, axis=0, keepdims=True),
    "sum so far": lambda z: jnp.cumsum(z, axis=0),
    "sum to come": lambda z: jnp.cumsum(z[::-1], axis=0)[::-1],
    "neighbour": lambda z: jnp.roll(z, 1, axis=0),
    "number of rows": lambda z: z / z.shape[0],
    "of positive numbers": lambda z: jnp.log(z) - jnp.log(z.sum(axis=0, keepdims=True)),
}
OF_STATES = {
    "elementwise": jnp.tanh,
    "softmax": lambda z: jax.nn.softmax(z, axis=-1),
    "one state": lambda s: jnp.sort(s) / jnp.sqrt(jnp.dot(s, s)),
    "half precision": lambda z: jnp.asarray(z, jnp.bfloat16) @ jnp.ones((3, 3), jnp.bfloat16),
    "nowhere defined": lambda z: jnp.log(-jnp.abs(z)),
}


@pytest.mark.parametrize("name", COUPLED)
def test_a_function_of_the_batch_is_refused(name):
    psi = ob.Custom(COUPLED[name], 3)
    for use in (
        lambda: edmd.fit(psi, X, X, target=ob.Identity()),
        lambda: ob.Compose(ob.Standardize.fit(X), psi)(X),
        lambda: jax.jit(psi)(X),
    ):
        with pytest.raises(ValueError, match="each state its own observables"):
            use()


@pytest.mark.parametrize("name", OF_STATES)
def test_a_function_of_states_is_taken(name):
    psi = ob.Custom(OF_STATES[name], 3)
    assert psi(X).shape == (40, 3)
    np.testing.assert_allclose(psi(X[7]), psi(X)[7], rtol=1e-5)


class Normed(nnx.Module):
    def __init__(self, running):
        self.norm = nnx.BatchNorm(3, rngs=nnx.Rngs(0))
        self.running = running

    def __call__(self, x):
        return self.norm(x, use_running_average=self.running)


@ob.pytree
class Own:
    """A dictionary of the user's own, which derives from nothing."""

    factor: float

    def size(self, d):
        return d

    def __call__(self, x):
        return self.factor * x / (1 + jnp.sum(x**2))


@ob.pytree
class Derived(ob.Observables):
    factor: float

    def size(self, d):
        return d

    def names(self, d, inputs=None):
        return [f"o{k}" for k in range(d)]

    def _evaluate(self, x):
        return self.factor * x / jnp.linalg.norm(x, axis=1, keepdims=self.factor is not None)


def test_networks_and_classes_of_ones_own():
    with pytest.raises(ValueError, match="each state"):
        ob.Neural(Normed(False))(X)
    assert ob.Neural(Normed(True))(X).shape == (40, 3)
    with pytest.raises(ValueError, match="each state"):
        edmd.fit(Own(2.0), X, X, target=ob.Identity())
    assert Derived(2.0)(X).shape == (40, 3)


def test_parameters_are_traced_and_swept():
    psi = ob.Custom(lambda w, z: jnp.tanh(z @ w), 2, params=jnp.ones((3, 2)))
    assert jax.grad(lambda psi: jnp.sum(psi(X)))(psi).params.shape == (3, 2)
    swept = jax.vmap(lambda w: dataclasses.replace(psi, params=w)(X))(jnp.ones((4, 3, 2)))
    assert swept.shape == (4, 40, 2)
    coupled = ob.Custom(lambda w, z: (z @ w) / jnp.linalg.norm(z), 2, params=jnp.ones((3, 2)))
    with pytest.raises(ValueError, match="each state"):
        nn.KoopmanBlock(coupled, np.eye(2))(X)
