"""Blocks made from fits predict what the fits predict."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from koopjax import edmd, nn, observables

X = np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32)
PSI = observables.Monomials(2)  # 6 observables of two coordinates


def make(p=6, q=6, d=2, readout=True):
    rng = np.random.default_rng(3)
    matrix = jnp.asarray(0.5 * rng.normal(size=(p, q)), jnp.float32)
    read = jnp.asarray(rng.normal(size=(q, d)), jnp.float32) if readout else None
    return types.SimpleNamespace(psi=PSI, matrix=matrix, readout=read)


def predict(fit, steps=1, lifted=False):
    out = np.asarray(PSI(X), np.float64)
    for _ in range(steps):
        out = out @ np.asarray(fit.matrix, np.float64)
    return out if lifted or fit.readout is None else out @ np.asarray(fit.readout, np.float64)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("lifted", [False, True])
def test_the_readout_and_the_steps_are_folded(steps, lifted):
    fit = make()
    block = nn.from_koopman(fit, steps=steps, lifted=lifted)
    expect = predict(fit, steps, lifted)
    assert block.operator.matrix.shape == (6, expect.shape[1])
    np.testing.assert_allclose(block(X), expect, rtol=1e-5, atol=1e-5 * np.abs(expect).max())


def test_a_rectangular_fit_is_taken_as_it_is():
    fit = make(q=4, readout=False)
    np.testing.assert_allclose(nn.from_koopman(fit)(X), predict(fit), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="expected a square K to take several steps"):
        nn.from_koopman(fit, steps=2)


def test_low_rank_is_the_best_of_that_rank():
    fit = make()
    whole = np.asarray(fit.matrix, np.float64) @ np.asarray(fit.readout, np.float64)
    for rank in (1, 2):
        operator = nn.from_koopman(fit, rank).operator
        product = np.asarray(operator.left.get_value() @ operator.right.get_value())
        s = np.linalg.svd(whole, compute_uv=False)
        np.testing.assert_allclose(
            np.linalg.norm(product - whole), np.sqrt(np.sum(s[rank:] ** 2)), atol=1e-4
        )
    for rank in (0, 3):
        with pytest.raises(ValueError, match="rank as a whole number from 1 to 2, got"):
            nn.from_koopman(fit, rank)
    with pytest.raises(ValueError, match="steps as a whole number of at least 1"):
        nn.from_koopman(fit, steps=0)


def test_frozen_by_default_and_trainable_on_request():
    fit = make()
    assert not jax.tree.leaves(nnx.state(nn.from_koopman(fit), nnx.Param))
    assert jax.tree.leaves(nnx.state(nn.from_koopman(fit, trainable=True), nnx.Param))


def test_dtype_of_the_fit_is_kept():
    fit = make()
    half = types.SimpleNamespace(
        psi=PSI, matrix=fit.matrix.astype(jnp.bfloat16), readout=fit.readout.astype(jnp.bfloat16)
    )
    assert nn.from_koopman(half).operator.matrix.dtype == jnp.bfloat16
    block = nn.from_koopman(fit, 2, param_dtype=jnp.bfloat16, dtype=jnp.float32)
    assert block.operator.left.dtype == jnp.bfloat16
    assert block(X).dtype == jnp.float32


def test_inside_jit_and_under_grad():
    fit = make()

    @jax.jit
    def run(matrix, x):
        given = types.SimpleNamespace(psi=PSI, matrix=matrix, readout=fit.readout)
        return nn.from_koopman(given)(x)

    np.testing.assert_allclose(run(fit.matrix, X), nn.from_koopman(fit)(X), rtol=1e-4, atol=1e-4)
    assert jnp.all(jnp.isfinite(jax.grad(lambda m: jnp.sum(run(m, X)))(fit.matrix)))


def test_linen_of_a_fit():
    fit = make()
    module, variables = nn.linen.from_koopman(fit, 2)
    assert set(variables) == {"frozen"}
    np.testing.assert_allclose(
        module.apply(variables, X), nn.from_koopman(fit, 2)(X), rtol=1e-6, atol=1e-6
    )


def test_the_block_of_a_real_fit_predicts_the_same():
    y = np.stack([0.9 * X[:, 0], 0.5 * X[:, 1] + X[:, 0] ** 2], axis=1)
    square = edmd.fit(observables.Monomials(3), X, y)
    onto_state = edmd.fit(observables.Monomials(3), X, y, target=observables.Identity())
    for fit in (square, onto_state):
        np.testing.assert_allclose(nn.from_koopman(fit)(X), fit.predict(X), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        nn.from_koopman(square, steps=2)(X), square.predict(X, steps=2), rtol=1e-3, atol=1e-3
    )


def test_steps_onto_another_dictionary_are_refused():
    x = np.random.default_rng(0).uniform(-1, 1, (60, 2)).astype(np.float32)
    for target in (observables.Orthogonal(1), observables.Monomials(1)):
        onto = edmd.fit(observables.Monomials(1), x, 0.5 * x, target=target)
        assert onto.matrix.shape == (3, 3)
        np.testing.assert_allclose(nn.from_koopman(onto)(x), onto.predict(x), atol=1e-5)
        with pytest.raises(ValueError, match="a square K to take several steps"):
            nn.from_koopman(onto, steps=2)
    generator = edmd.generator(observables.Monomials(1), x, lambda x: -x)
    with pytest.raises(ValueError, match="a fit such as"):
        nn.from_koopman(generator)
