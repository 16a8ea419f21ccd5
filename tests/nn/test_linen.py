"""The Linen block computes what the NNX block computes, under the same names."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from koopjax import nn, observables

X = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
PSI = observables.Concat(
    observables.Compose(observables.Standardize.fit(X), observables.Monomials(2)),
    observables.Neural(nnx.Linear(3, 4, rngs=nnx.Rngs(0))),
)


def nnx_block(rank, trainable=True, **settings):
    key = jax.random.key(1)
    if rank is None:
        operator = nn.Dense.create(key, 14, 2, use_bias=True)
    else:
        operator = nn.LowRank.create(key, 14, 2, rank)
    return nn.KoopmanBlock(PSI, operator, trainable=trainable, **settings)


def spelled(tree):
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return sorted("/".join(entry.key for entry in path) for path, _ in flat)


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("trainable", [True, False, "operator"])
def test_parity_by_copied_parameters(rank, trainable):
    block = nnx_block(rank, trainable)
    module, variables = nn.linen.from_nnx(block)
    np.testing.assert_array_equal(module.apply(variables, X), block(X))
    np.testing.assert_allclose(jax.jit(module.apply)(variables, X), block(X), rtol=1e-5, atol=1e-6)
    names = ["/".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(block))]
    found = spelled({**variables.get("params", {}), **variables.get("frozen", {})})
    assert found == sorted(names)
    back = nn.linen.to_nnx(module, variables)
    assert nnx.split(back)[0] == nnx.split(block)[0]
    np.testing.assert_array_equal(back(X), block(X))


def test_collections_follow_what_trains():
    module, variables = nn.linen.from_nnx(nnx_block(None, "operator"))
    assert set(variables) == {"params", "frozen"}
    assert set(variables["params"]) == {"operator"}
    fresh = module.init(jax.random.key(3), X)
    assert spelled(fresh) == spelled(variables)
    np.testing.assert_array_equal(
        jax.tree.leaves(fresh["frozen"])[0], jax.tree.leaves(variables["frozen"])[0]
    )


def test_a_linen_block_trains():
    module = nn.linen.KoopmanBlock(PSI, features=2, rank=1, use_bias=True)
    variables = module.init(jax.random.key(0), X)
    target = jnp.ones((6, 2))

    @jax.jit
    def step(params, state):
        loss, grads = jax.value_and_grad(
            lambda p: jnp.mean((module.apply({"params": p}, X) - target) ** 2)
        )(params)
        updates, state = tx.update(grads, state)
        return optax.apply_updates(params, updates), state, loss

    tx = optax.adam(0.05)
    params, state = variables["params"], tx.init(variables["params"])
    losses = []
    for _ in range(30):
        params, state, loss = step(params, state)
        losses.append(float(loss))
    assert losses[-1] < 0.2 * losses[0]


def test_dtypes_and_batch_axes():
    module = nn.linen.KoopmanBlock(observables.Identity(), features=2, dtype=jnp.bfloat16)
    variables = module.init(jax.random.key(0), X)
    assert variables["params"]["operator"]["matrix"].dtype == jnp.float32
    shape = lambda x: jax.eval_shape(module.apply, variables, x)
    assert shape(X).dtype == jnp.bfloat16
    assert shape(X[0]).shape == (2,)
    assert shape(np.ones((4, 5, 3), np.float32)).shape == (4, 5, 2)


def test_modules_compare_by_value():
    same = [nn.linen.KoopmanBlock(observables.Standardize.fit(X), features=2) for _ in range(2)]
    other = nn.linen.KoopmanBlock(observables.Standardize.fit(2 * X), features=2)
    assert same[0] == same[1]
    assert hash(same[0]) == hash(same[1])
    assert same[0] != other
