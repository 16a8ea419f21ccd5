"""AMUSEt against EDMD with the dense product dictionary."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from koopjax import edmd
from koopjax._core import SUCCESS, UNDERDETERMINED
from koopjax.data.systems import Linear, SlowManifold
from koopjax.observables import Polynomial1D, Product
from koopjax.tensor_edmd import amuset
from tests.tensor_edmd import oracles

PSI = Product.of(Polynomial1D(2), 2)
TURN = 0.9 * np.array([[np.cos(0.5), np.sin(0.5)], [-np.sin(0.5), np.cos(0.5)]])


def snapshots(system, n=300, dtype=jnp.float64):
    with jax.enable_x64(True):
        return system.snapshots(jax.random.key(0), n, dtype=dtype)


@functools.cache
def turning():
    """A fit that several tests look at, with its snapshots."""
    x, y = snapshots(Linear(TURN))
    return x, y, amuset(PSI, x, y)


@jax.jit
def lift(psi, x):
    return psi(x)


def distance(found, known):
    """The largest distance from a known eigenvalue to the nearest found one."""
    return max(np.abs(np.asarray(found) - value).min() for value in known)


@pytest.mark.parametrize("method", ["hosvd", "kernel"])
@pytest.mark.parametrize("system", [Linear(TURN), SlowManifold()])
def test_equals_dense_edmd(system, method):
    x, y = snapshots(system)
    fit = amuset(PSI, x, y, method=method)
    with jax.enable_x64(True):
        dense = edmd.fit(PSI, x, y)
        values = np.asarray(dense.eigenvalues())
        residuals = np.asarray(dense.residuals(x, y))
    assert fit.values.shape == (9,)
    assert distance(fit.eigenvalues(), values) < 1e-8
    assert distance(values, np.asarray(fit.eigenvalues())) < 1e-8
    np.testing.assert_allclose(np.sort(fit.residuals(x, y)), np.sort(residuals), atol=1e-7)
    assert int(fit.result) == SUCCESS


def test_complex_pairs_are_kept_and_right():
    x, y, fit = turning()
    pair = 0.9 * np.exp(np.array([0.5j, -0.5j]))
    assert distance(fit.eigenvalues(), pair) < 1e-10
    values = np.asarray(fit.eigenvalues())
    j = int(np.argmin(np.abs(values - pair[0])))
    before, after = np.asarray(fit.eigenfunctions(x)), np.asarray(fit.eigenfunctions(y))
    np.testing.assert_allclose(after[:, j], pair[0] * before[:, j], atol=1e-9)
    # The eigenfunction to a pair of a rotation is a complex linear function of the state.
    linear = np.asarray(x) @ np.linalg.lstsq(np.asarray(x) + 0j, before[:, j])[0]
    np.testing.assert_allclose(linear, before[:, j], atol=1e-9)


def test_eigentensors_modes_and_prediction():
    x, y, fit = turning()
    with jax.enable_x64(True):
        lifted, tensors = np.asarray(lift(PSI, x)), fit.eigentensors().cores
    tensors = oracles.dense(tensors)
    np.testing.assert_allclose(lifted @ tensors, fit.eigenfunctions(x), atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(tensors, axis=0), 1, rtol=1e-12)
    np.testing.assert_allclose(
        np.asarray(fit.eigenfunctions(x)) @ np.asarray(fit.modes()), x, atol=1e-10
    )
    np.testing.assert_allclose(fit.predict(x), y, atol=1e-9)
    np.testing.assert_allclose(fit.predict(x, 0), x, atol=1e-9)


def test_known_real_spectrum():
    system = SlowManifold()
    x, y = snapshots(system)
    assert distance(amuset(PSI, x, y).eigenvalues(), system.eigenvalues()) < 1e-9


@pytest.mark.parametrize("method", ["hosvd", "kernel"])
def test_more_functions_than_samples(method):
    """The eigenvalues that are not zero are those of the pseudo-inverse's EDMD matrix."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (20, 4))
    y = np.tanh(x @ rng.normal(size=(4, 4)))
    psi = Product.of(Polynomial1D(2), 4)
    fit = amuset(psi, x, y, method=method)
    with jax.enable_x64(True):
        before, after = (np.asarray(lift(psi, s)) for s in (x, y))
    known = np.linalg.eigvals(after @ np.linalg.pinv(before))
    assert distance(fit.eigenvalues(), known) < 1e-4
    assert int(fit.result) == UNDERDETERMINED


def test_rank_limit_dtype_and_words():
    x, y = snapshots(Linear(TURN), dtype=jnp.float32)
    fit = amuset(PSI, x, y, max_rank=4)
    assert max(fit.ranks) <= 4
    assert fit.eigenvalues().dtype == jnp.complex64
    assert fit.train.dtype == jnp.float32
    assert fit.predict(x).dtype == jnp.float32
    assert "4 eigenpairs" in str(fit)


def test_under_jit_with_ranks_as_shapes():
    x, y = snapshots(Linear(TURN), dtype=jnp.float32)
    traced = jax.jit(functools.partial(amuset, PSI, max_rank=9, rtol=1e-6))(x, y)
    assert distance(traced.eigenvalues(), np.asarray(amuset(PSI, x, y).eigenvalues())) < 1e-3
    with pytest.raises(ValueError, match="max_rank under jit"):
        jax.jit(functools.partial(amuset, PSI))(x, y)


X = np.linspace(-1, 1, 40).reshape(20, 2)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: amuset(Product.of(Polynomial1D(1), 3), X, X), "states with 3 coordinates"),
        (lambda: amuset(PSI, X, X[:, :1]), "states with 2 coordinates"),
        (lambda: amuset(PSI, X * np.nan, X), "finite numbers in x"),
        (lambda: amuset(PSI, X[:0], X[:0]), "an empty batch"),
        (lambda: amuset(PSI, X, X, max_rank=0), "max_rank"),
        (lambda: amuset(PSI, X, X, method="svd"), "method"),
    ],
)
def test_bad_input_gets_one_clear_error(call, words):
    with pytest.raises(ValueError, match=words) as error:
        call()
    assert "\n" not in str(error.value)
