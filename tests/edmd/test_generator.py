"""The flow of a generator: large times, rates and offsets, and where it overflows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from koopjax import edmd
from koopjax._core import NONFINITE_SOLUTION
from koopjax.observables import Monomials

X = np.random.default_rng(0).uniform(-1, 1, (50, 2))


@pytest.mark.parametrize(
    ("x", "drift", "time", "right"),
    [
        (X, -X, 1e6, 0 * X),
        (X, np.full_like(X, 1e6), 1.0, X + 1e6),
        (X + 1e6, -X, 1.0, X * np.exp(-1) + 1e6),
    ],
)
def test_stiff_and_far(x, drift, time, right):
    found = edmd.generator(Monomials(1), x, drift).predict(x, time)
    np.testing.assert_allclose(found, right, rtol=1e-6, atol=1e-6)


def test_overflow_is_infinite_and_said():
    operator = edmd.generator(Monomials(1), X, X)
    assert np.all(np.isinf(operator.predict(X[:3], 1e6)))
    assert int(operator.koopman(1e6).result) == NONFINITE_SOLUTION


def test_time_is_a_leaf():
    operator = edmd.generator(Monomials(1), X, -X)
    x = jnp.asarray(X[:1], jnp.float32)
    total = lambda t: operator.predict(x, t).sum()
    right = X[0].sum() * np.exp(-1)
    np.testing.assert_allclose(jax.grad(total)(1.0), -right, rtol=1e-5)
    np.testing.assert_allclose(jax.vmap(total)(jnp.array([1.0, 1e6])), [right, 0], atol=1e-6)
