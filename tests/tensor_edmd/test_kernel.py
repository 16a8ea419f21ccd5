"""The kernel form against regression on the full product dictionary, dense in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from koopjax import nn, tensor_edmd
from koopjax._core import ILL_CONDITIONED, RANK_DEFICIENT, SUCCESS
from koopjax.observables import (
    Compose,
    CosSin,
    Monomials,
    Polynomial1D,
    Product,
    Project,
    Trigonometric,
)
from koopjax.tensor_edmd import _kernel

PRODUCT = Product([CosSin(0.5), Polynomial1D(2), CosSin(0.3), Trigonometric(1)])
KEY = jax.random.key(0)


def samples(n=120, q=2, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1, 1, (n, 4))
    return x, np.sin(x @ rng.normal(size=(4, q))) + 0.1 * rng.normal(size=(n, q))


@jax.jit
def _lifted(product, x):
    return product(x)


def lift(product, x):
    with jax.enable_x64(True):
        return np.asarray(_lifted(product, np.asarray(x, np.float64)))


def oracle(product, x, y, alpha, at):
    """Predictions of the ridge solution on the dictionary itself; of the least norm without."""
    psi = lift(product, x)
    if alpha:
        theta = np.linalg.solve(psi.T @ psi + alpha * np.eye(psi.shape[1]), psi.T @ y)
    else:
        theta = np.linalg.pinv(psi, rcond=1e-11) @ y
    return lift(product, at) @ theta


@pytest.mark.parametrize("method", ["cholesky", "cg", "nystrom"])
@pytest.mark.parametrize(("dtype", "tol"), [(np.float32, 3e-3), (np.float64, 1e-7)])
def test_every_method_gives_the_ridge_solution(method, dtype, tol):
    x, y = samples()
    with jax.enable_x64(dtype == jnp.float64):
        fit = tensor_edmd.kernel(
            PRODUCT, x.astype(dtype), y.astype(dtype), alpha=0.1, method=method,
            centers=len(x) if method == "nystrom" else None, key=KEY, tolerance=tol / 100,
        )  # fmt: skip
        at = samples(7, seed=3)[0]
        found = fit.predict(at.astype(dtype))
        assert found.dtype == fit.matrix.dtype == dtype
        assert int(fit.result) == SUCCESS
        assert fit.info.method == method
    np.testing.assert_allclose(found, oracle(PRODUCT, x, y, 0.1, at), atol=tol)
    error = np.linalg.norm(oracle(PRODUCT, x, y, 0.1, x) - y) / np.linalg.norm(y)
    np.testing.assert_allclose(fit.info.residual, error, rtol=1e-3)


@pytest.mark.parametrize("n", [20, 120])  # fewer and more samples than the 36 functions
def test_without_ridge_it_is_the_least_norm(n):
    x, y = samples(n)
    with jax.enable_x64(True):
        fit = tensor_edmd.kernel(PRODUCT, x, y)
        at = samples(7, seed=3)[0]
        found = fit.predict(at)
    np.testing.assert_allclose(found, oracle(PRODUCT, x, y, 0.0, at), atol=1e-4)
    assert int(fit.result) == (SUCCESS if n == 20 else RANK_DEFICIENT)
    assert ("36 of 120 eigenvalues" in fit.info.reason) == (n == 120)


def test_a_small_ridge_takes_float64_for_float32_samples():
    x, y = (a.astype(np.float32) for a in samples(24))
    fit = tensor_edmd.kernel(PRODUCT, x, y, alpha=1e-6)
    assert fit.info.dtype == "float64"
    assert "float64" in fit.info.reason
    assert fit.matrix.dtype == jnp.float32
    exact = oracle(PRODUCT, x, y, 1e-6, x)
    residual = np.linalg.norm(exact - y) / np.linalg.norm(y)
    np.testing.assert_allclose(fit.info.residual, residual, rtol=1e-3)


def test_too_little_damping_is_raised_and_said():
    with jax.enable_x64(True):
        rows = jax.device_put(np.ones((4, 4)) - 1e-6 * np.eye(4))
        lower, used, code, notes = _kernel._damped(rows, 1e-12, 1e-12)
    assert 1e-6 < used < 1e-4
    assert code == ILL_CONDITIONED
    assert "damping raised" in notes[0]
    assert np.all(np.isfinite(lower))


def test_a_ridge_is_chosen_on_validation_samples():
    x, y = samples()
    a = samples(60, seed=5)[0]
    b = np.sin(a @ np.ones((4, 1)))
    y = np.sin(x @ np.ones((4, 1))) + 0.3 * y[:, :1]
    grid = [1e-2, 1.0, 100.0]
    for method in ("cholesky", "nystrom"):
        fit = tensor_edmd.kernel(
            PRODUCT, x.astype(np.float32), y.astype(np.float32), alpha=grid, method=method,
            centers=len(x) if method == "nystrom" else None,
            x_val=a.astype(np.float32), y_val=b.astype(np.float32), key=KEY,
        )  # fmt: skip
        errors = [np.linalg.norm(oracle(PRODUCT, x, y, g, a) - b) / np.linalg.norm(b) for g in grid]
        np.testing.assert_allclose(fit.info.scores, errors, rtol=2e-2)
        np.testing.assert_allclose(fit.info.alpha, grid[int(np.argmin(errors))])


def test_few_landmarks_come_close_and_say_how_many():
    x, y = (a.astype(np.float32) for a in samples(120))
    whole = tensor_edmd.kernel(PRODUCT, x, y, alpha=0.1)
    few = tensor_edmd.kernel(PRODUCT, x, y, alpha=0.1, centers=40, key=KEY)
    assert few.matrix.shape == (40, 2)
    assert int(few.info.landmarks) == 40
    assert few.info.method == "nystrom"
    assert abs(float(few.info.residual - whole.info.residual)) < 1e-2
    given = tensor_edmd.kernel(PRODUCT, x, y, alpha=0.1, centers=x[:40])
    assert given.matrix.shape == (40, 2)


def test_kernel_values_computed_again_are_those_stored():
    x, y = (a.astype(np.float32) for a in samples(300))
    fit = functools.partial(tensor_edmd.kernel, PRODUCT, x, y, alpha=0.1, centers=40, key=KEY)
    # What a fit on landmarks takes, and a little more: not the values at all samples.
    first, second = fit(memory_limit=4 * (4 * 40**2 + 2**24 + 1000)), fit()
    assert "kernel computed in every iteration" in first.info.reason
    assert "kernel stored" in second.info.reason
    np.testing.assert_allclose(first.predict(x), second.predict(x), atol=1e-3)


def test_maps_in_front_stay_in_front_and_blocks_take_it():
    x, y = (a.astype(np.float32) for a in samples())
    front = Project.pca(x, 3)
    product = Product.of(CosSin(0.4), 3)
    fit = tensor_edmd.kernel(Compose(front, product), x, y, alpha=0.1)
    exact = oracle(product, np.asarray(front(x)), y, 0.1, np.asarray(front(x)))
    np.testing.assert_allclose(fit.predict(x), exact, atol=3e-3)
    np.testing.assert_allclose(fit.predict(x, batch_size=7), fit.predict(x), atol=1e-4)
    np.testing.assert_allclose(nn.from_koopman(fit)(x), fit.predict(x), atol=1e-4)
    np.testing.assert_allclose(fit.predict(x[0]), np.asarray(fit.predict(x))[0], atol=1e-4)


def test_it_simulates_forward():
    x = samples()[0]
    with jax.enable_x64(True):
        lines = Product.of(Polynomial1D(1), 4)
        fit = tensor_edmd.kernel(lines, x, 0.5 * x, alpha=1e-4)
        start = x[:5]
        path = fit.simulate(start, 3)
        assert path.shape == (3, 5, 4)
        np.testing.assert_allclose(path[-1], 0.125 * x[:5], atol=1e-4)
        np.testing.assert_allclose(fit.predict(start, 3), path[-1])
        with pytest.raises(ValueError, match="expected 4 outputs"):
            tensor_edmd.kernel(PRODUCT, x, x[:, :1], alpha=1e-3).simulate(start, 2)


def test_jit_vmap_and_grad_over_the_ridge():
    x, y = (a.astype(np.float32) for a in samples())
    predict = lambda alpha: tensor_edmd.kernel(PRODUCT, x, y, alpha=alpha).predict(x[:5])
    grid = np.array([0.1, 1.0], np.float32)
    lanes = jax.jit(jax.vmap(predict))(grid)
    for alpha, lane in zip((0.1, 1.0), lanes, strict=True):
        np.testing.assert_allclose(lane, predict(alpha), atol=2e-3)
    slope = jax.jit(jax.grad(lambda a: jnp.sum(predict(a))))(np.float32(1.0))
    sides = [np.sum(oracle(PRODUCT, x, y, 1.0 + h, np.asarray(x[:5]))) for h in (1e-4, -1e-4)]
    np.testing.assert_allclose(slope, (sides[0] - sides[1]) / 2e-4, rtol=2e-2)


def test_a_second_fit_compiles_nothing(caplog):
    x, y = (a.astype(np.float32) for a in samples())
    tensor_edmd.kernel(PRODUCT, x, y, alpha=0.5)
    with jax.log_compiles(True), caplog.at_level("WARNING"):
        tensor_edmd.kernel(PRODUCT, x * np.float32(0.99), y, alpha=0.6)
    assert not [r for r in caplog.records if "Compiling" in r.getMessage()]


def test_bad_input_is_refused():
    x, y = (a.astype(np.float32) for a in samples(30))
    fit = tensor_edmd.kernel
    with pytest.raises(ValueError, match="an empty batch"):
        fit(PRODUCT, x[:0], y[:0])
    with pytest.raises(ValueError, match="as many rows in y as in x"):
        fit(PRODUCT, x, y[:5])
    with pytest.raises(ValueError, match="expected finite numbers in x"):
        fit(PRODUCT, np.where(x == x[0, 0], np.nan, x), y)
    with pytest.raises(ValueError, match="for Product, got 3"):
        fit(PRODUCT, x[:, :3], y)
    with pytest.raises(ValueError, match="expected a Product dictionary"):
        fit(Monomials(2), x, y)
    with pytest.raises(ValueError, match="expected a method"):
        fit(PRODUCT, x, y, method="lu")
    with pytest.raises(ValueError, match="a ridge, or a list of them, not negative"):
        fit(PRODUCT, x, y, alpha=-1.0)
    with pytest.raises(ValueError, match="to choose a ridge by"):
        fit(PRODUCT, x, y, alpha=[0.1, 1.0])
    with pytest.raises(ValueError, match="from 1 to 30 landmarks"):
        fit(PRODUCT, x, y, centers=31, key=KEY)
    with pytest.raises(ValueError, match="a random key to draw landmarks"):
        fit(PRODUCT, x, y, centers=5)
    with pytest.raises(ValueError, match=r"centres of shape \(m, 4\)"):
        fit(PRODUCT, x, y, centers=x[:5, :2])
    with pytest.raises(ValueError, match="batch_size of at least 1"):
        fit(PRODUCT, x, y, batch_size=0)


def test_a_memory_limit_says_what_would_fit():
    x, y = np.zeros((9_000, 2), np.float32), np.zeros((9_000, 1), np.float32)
    product = Product.of(CosSin(0.1), 2)
    with pytest.raises(ValueError, match=r"9,000 samples, which need .* centers=\d"):
        tensor_edmd.kernel(product, x, y, method="cholesky", memory_limit=2**27)
    with pytest.raises(ValueError, match="a larger memory_limit"):
        tensor_edmd.kernel(product, x, y, centers=100, memory_limit=2**20, key=KEY)
