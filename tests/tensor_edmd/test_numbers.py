"""Fits under what users ask of JAX for their own code."""

import jax
import numpy as np
import pytest

from koopjax import analysis, observables as ob, sweep, tensor_edmd, tt

KEY = jax.random.key(0)
X = np.random.default_rng(0).uniform(-1, 1, (60, 2)).astype(np.float32)
Y = np.stack([X[:, 0] * X[:, 1], 0.5 * X[:, 1]], axis=1)
PSI = ob.Product.of(ob.Polynomial1D(2), 2)
START = tt.TTMatrix([np.ones((1, 3, 1, 1)), np.ones((1, 3, 2, 1))])
CALLS = {
    "als": lambda: tensor_edmd.als(PSI, X, Y, 2, KEY, sweeps=1, init=START),
    "mandy": lambda: tensor_edmd.mandy(PSI, X, Y),
    "kernel": lambda: tensor_edmd.kernel(PSI, X, Y),
    "ranks": lambda: sweep.ranks(PSI, X, Y, [1, 2], KEY, sweeps=1, buckets=(2,)).fit(rank=2),
}


@pytest.mark.parametrize("name", CALLS)
def test_strict_promotion_and_nan_checks_break_nothing(name):
    wanted = CALLS[name]().predict(X)
    for rule in (jax.numpy_dtype_promotion("strict"), jax.debug_nans(True)):
        with rule:
            np.testing.assert_allclose(CALLS[name]().predict(X), wanted, atol=1e-5)


def test_strict_promotion_breaks_no_spectrum():
    fit = tensor_edmd.mandy(PSI, X, Y)
    with jax.numpy_dtype_promotion("strict"):
        assert np.isfinite(analysis.interaction_spectrum(fit, X).orders).all()
        assert np.isfinite(tt.norm(tt.random(KEY, (3, 4, 5), 2)))
