"""MANDy against dense least squares in float64 NumPy on the full product dictionary."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies

from koopjax._core import RANK_DEFICIENT, SUCCESS, UNDERDETERMINED, message
from koopjax.data.systems import FermiPastaUlam
from koopjax.observables import (
    Compose,
    CosSin,
    Gaussian1D,
    Identity,
    Polynomial1D,
    Product,
    Standardize,
    Trigonometric,
)
from koopjax.tensor_edmd import FunctionMajor, mandy
from tests.tensor_edmd import oracles
from tests.tensor_edmd.oracles import powers, relative, rows_product

CUBIC = Polynomial1D(3)


def snapshots(n, d, q, seed=0, low=-1.0, high=1.0):
    rng = np.random.default_rng(seed)
    x = rng.uniform(low, high, (n, d))
    return x, np.stack([np.sin(x @ rng.normal(size=d)) + 0.1 * k for k in range(q)], 1)


def dense(fit):
    return oracles.dense(fit.train.cores)


@functools.cache
def fitted():
    """A fit that several tests look at, with its samples."""
    x, y = snapshots(200, 3, 2)
    return x, y, mandy(Product.of(Polynomial1D(2), 3), x, y, rtol=1e-12)


def lift(psi, x):
    with jax.enable_x64(True):
        return np.asarray(jax.jit(lambda psi, x: psi(x))(psi, x))


def fpu(d, n, seed=0):
    system = FermiPastaUlam(d)
    with jax.enable_x64(True):
        x, y = system.snapshots(jax.random.key(seed), n, dtype=jnp.float64)
    return system, x, y


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equals_dense_least_squares(dtype):
    x, y, fit = fitted()
    if dtype == np.float32:
        x, y = x.astype(dtype), y.astype(dtype)
        fit = mandy(fit.psi, x, y, rtol=1e-12)
    psi = rows_product(powers(x.astype(np.float64), 2))
    oracle = np.linalg.lstsq(psi, y.astype(np.float64))[0]
    assert relative(dense(fit), oracle) < (1e-5 if dtype == np.float32 else 1e-10)
    assert fit.train.dtype == dtype
    assert int(fit.result) == SUCCESS
    misfit = relative(psi @ oracle, y)
    np.testing.assert_allclose(float(fit.info.residual), misfit, rtol=1e-4)


@pytest.mark.parametrize("d", [4, 5])
def test_minimum_norm_where_functions_outnumber_samples(d):
    """d=4 has its functions formed, d=5 goes by Gram matrices over the samples."""
    x, y = snapshots(40, d, 2)
    fit = mandy(Product.of(CUBIC, d), x, y, rtol=1e-7)
    psi = rows_product(powers(x, 3))
    oracle = np.linalg.pinv(psi) @ y
    assert relative(dense(fit), oracle) < 1e-6
    assert int(fit.result) == UNDERDETERMINED
    assert float(fit.info.residual) < 1e-5


@pytest.mark.parametrize("d", [4, 5])
def test_ridge(d):
    x, y = snapshots(40, d, 2)
    fit = mandy(Product.of(CUBIC, d), x, y, alpha=0.3, rtol=1e-9 if d == 4 else 1e-7)
    psi = rows_product(powers(x, 3))
    oracle = psi.T @ np.linalg.solve(psi @ psi.T + 0.3 * np.eye(40), y)
    assert relative(dense(fit), oracle) < 1e-6
    assert int(fit.result) == SUCCESS
    np.testing.assert_allclose(float(fit.info.alpha), 0.3)


@pytest.mark.parametrize(
    "factor", [Trigonometric(1), CosSin(1.3), Gaussian1D(np.array([-0.5, 0.5]), 0.7)]
)
def test_other_families(factor):
    x, y = snapshots(200, 3, 2, seed=4)
    psi = Product.of(factor, 3)
    fit = mandy(psi, x, y, rtol=1e-12)
    assert relative(dense(fit), np.linalg.lstsq(lift(psi, x), y)[0]) < 1e-9


def test_function_major():
    x, y = snapshots(200, 3, 2, seed=1)
    fit = mandy(Product.of(CUBIC, 3), x, y, form="function", rtol=1e-12)
    one = np.ones((200, 1))
    psi = rows_product([np.concatenate([one, x**k], 1) for k in (1, 2, 3)])
    assert fit.train.row_modes == (4, 4, 4)
    assert relative(dense(fit), np.linalg.lstsq(psi, y)[0]) < 1e-8
    np.testing.assert_allclose(lift(fit.psi, x), psi, rtol=1e-12)
    np.testing.assert_allclose(fit.predict(x[:5]), psi[:5] @ dense(fit), atol=1e-10)
    assert fit.psi.names(3)[:5] == ["1", "x0^3", "x1^3", "x2^3", "x0^2"]
    assert isinstance(fit.psi, FunctionMajor)


def test_front_maps_are_part_of_the_dictionary():
    x, y = snapshots(300, 2, 2, seed=2, low=3.0, high=7.0)
    front = Standardize.fit(jnp.asarray(x, jnp.float32))
    psi = Compose(front, Product.of(Polynomial1D(2), 2))
    fit = mandy(psi, x, y, rtol=1e-12)
    assert relative(dense(fit), np.linalg.lstsq(lift(psi, x), y)[0]) < 1e-9


def test_fermi_pasta_ulam_four_masses():
    system, x, y = fpu(4, 1000)
    exact = system.coefficient_tensor().reshape(256, 4)
    for rtol in (1e-12, 1e-6, 1e-4):
        fit = mandy(Product.of(CUBIC, 4), x, y, rtol=rtol)
        assert fit.ranks == (1, 4, 6, 7, 1)
        assert relative(dense(fit), exact) < 1e-6


def test_total_degree_prior():
    system, x, y = fpu(6, 300)
    fit = mandy(Product.of(CUBIC, 6), x, y, total_degree=3)
    exact = np.zeros((4,) * 6 + (6,))
    for exponents, values in system.coefficients().items():
        exact[exponents] = values
    assert relative(dense(fit), exact.reshape(-1, 6)) < 1e-9
    assert int(fit.result) == SUCCESS
    assert fit.ranks == (1, 4, 6, 7, 8, 9, 1)


@pytest.mark.parametrize("total", [0, 2])
def test_total_degree_equals_least_squares_on_these_functions(total):
    x, y = snapshots(200, 3, 2, seed=5)
    fit = mandy(Product.of(Polynomial1D(2), 3), x, y, total_degree=total, rtol=1e-12)
    index = [i for i in itertools.product(range(3), repeat=3) if sum(i) <= total]
    psi = np.stack([np.prod(x ** np.array(i), axis=1) for i in index], 1)
    oracle = np.zeros((3, 3, 3, 2))
    for i, row in zip(index, np.linalg.lstsq(psi, y)[0], strict=True):
        oracle[i] = row
    assert np.abs(dense(fit) - oracle.reshape(27, 2)).max() < 1e-10


@settings(max_examples=6, deadline=None)
@given(rtol=strategies.sampled_from([1e-1, 1e-2, 1e-3]), seed=strategies.integers(0, 9))
def test_rounding_keeps_its_tolerance(rtol, seed):
    x, y = snapshots(40, 5, 2, seed=seed)
    psi = rows_product(powers(x, 3))
    oracle = np.linalg.pinv(psi) @ y
    fit = mandy(Product.of(CUBIC, 5), x, y, rtol=rtol)
    assert relative(dense(fit), oracle) <= rtol


def test_max_rank_holds_and_is_said():
    x, y = snapshots(200, 3, 2)
    fit = mandy(Product.of(Polynomial1D(2), 3), x, y, max_rank=2, rtol=1e-12)
    assert max(fit.ranks) == 2
    assert "ranks limited to 2" in str(fit)
    assert fit.numbers == sum(core.size for core in fit.train.cores)


def test_a_dead_coordinate_is_flagged_and_harmless():
    x, y = snapshots(200, 3, 2)
    x[:, 1] = 0.5
    fit = mandy(Product.of(Polynomial1D(2), 3), x, y, rtol=1e-12)
    assert int(fit.result) == RANK_DEFICIENT
    psi = rows_product(powers(x, 2))
    assert np.abs(psi @ dense(fit) - psi @ (np.linalg.pinv(psi) @ y)).max() < 1e-9


def test_predicts_as_the_dense_product_and_in_blocks(monkeypatch):
    x, _, fit = fitted()
    expected = rows_product(powers(x, 2)) @ dense(fit)
    np.testing.assert_allclose(fit.predict(x), expected, atol=1e-12)
    monkeypatch.setattr("koopjax.tensor_edmd._result._BLOCK_NUMBERS", 1)
    np.testing.assert_allclose(fit.predict(x[:131]), expected[:131], atol=1e-12)
    assert fit.predict(x[0]).shape == (2,)
    assert fit.predict(x.astype(np.float32)).dtype == jnp.float32


def test_simulates_by_lifting_again():
    x, _ = snapshots(300, 2, 1)
    step = lambda s: np.stack([0.9 * s[:, 0], 0.5 * s[:, 1] + 0.1 * s[:, 0] ** 2], 1)
    fit = mandy(Product.of(Polynomial1D(2), 2), x, step(x), rtol=1e-12)
    states = fit.simulate(x[:7], 3)
    np.testing.assert_allclose(states[2], step(step(step(x[:7]))), atol=1e-10)
    np.testing.assert_allclose(fit.predict(x[:7], 3), states[2], atol=1e-12)


def test_singular_values_at_the_bonds():
    fit = fitted()[2]
    tensor = dense(fit).reshape(3, 3, 3, 2)
    for k, values in enumerate(fit.singular_values(), start=1):
        oracle = np.linalg.svd(tensor.reshape(3**k, -1), compute_uv=False)
        np.testing.assert_allclose(values, oracle[: len(values)], rtol=1e-9, atol=1e-12)


def test_the_code_is_told_in_words():
    x, y = snapshots(40, 4, 2)
    fit = mandy(Product.of(CUBIC, 4), x, y, rtol=1e-7)
    text = fit.describe()
    assert message(UNDERDETERMINED) in text
    assert str(fit.ranks) in text


@pytest.mark.slow
def test_under_jit_with_ranks_as_shapes():
    x, y = (jnp.asarray(a, jnp.float32) for a in snapshots(60, 5, 1))
    psi = Product.of(Polynomial1D(2), 5)
    prior = jax.jit(functools.partial(mandy, psi, total_degree=2))(x, y)
    eager = mandy(psi, x, y, total_degree=2)
    np.testing.assert_allclose(prior.predict(x), eager.predict(x), atol=1e-4)
    wide = jax.jit(functools.partial(mandy, Product.of(CUBIC, 5), max_rank=4, rtol=1e-3))(x, y)
    assert max(wide.ranks) == 4
    with pytest.raises(ValueError, match="max_rank under jit"):
        jax.jit(functools.partial(mandy, Product.of(CUBIC, 5)))(x, y)
    nan = jax.jit(functools.partial(mandy, psi, total_degree=2))(x.at[0, 0].set(jnp.nan), y)
    assert "NaN" in message(nan.result)


GOOD = np.linspace(-1, 1, 40).reshape(20, 2)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: mandy(Product.of(CUBIC, 3), GOOD, GOOD), "states with 3 coordinates"),
        (lambda: mandy(Product.of(CUBIC, 2), GOOD * np.nan, GOOD), "finite numbers in x"),
        (lambda: mandy(Product.of(CUBIC, 2), GOOD, GOOD * np.inf), "finite numbers in y"),
        (lambda: mandy(Product.of(CUBIC, 2), GOOD[:0], GOOD[:0]), "an empty batch"),
        (lambda: mandy(Product.of(CUBIC, 2), GOOD, GOOD[:3]), "as many rows in y as in x"),
        (lambda: mandy(Product.of(CUBIC, 2), GOOD[0], GOOD), "x of shape"),
        (lambda: mandy(Product.of(CUBIC, 2), GOOD, GOOD + 1j), "real numbers in y"),
        (lambda: mandy(Identity(), GOOD, GOOD), "a Product dictionary"),
        (lambda: mandy(Product.of(CUBIC, 2), GOOD, GOOD, max_rank=0), "max_rank"),
        (lambda: mandy(Product.of(CUBIC, 2), GOOD, GOOD, rtol=-1), "rtol"),
        (lambda: mandy(Product.of(CUBIC, 2), GOOD, GOOD, alpha=-1.0), "alpha"),
        (lambda: mandy(Product.of(CUBIC, 2), GOOD, GOOD, form="rows"), "form"),
        (lambda: mandy(Product.of(CUBIC, 2), GOOD, GOOD, total_degree=-1), "total_degree"),
        (lambda: mandy(Product.of(CosSin(), 2), GOOD, GOOD, total_degree=1), "families with a"),
    ],
)
def test_bad_input_gets_one_clear_error(call, words):
    with pytest.raises(ValueError, match=words) as error:
        call()
    assert "\n" not in str(error.value)


def test_a_problem_too_large_is_refused_before_it_starts():
    x = np.zeros((20_000, 10), np.float32)
    with pytest.raises(ValueError, match="at most 4,096 functions"):
        mandy(Product.of(CUBIC, 10), x, x)


def test_predict_refuses_other_states():
    x, _, fit = fitted()
    for bad, words in ((x[:, :1], "coordinates"), (x[:0], "an empty batch"), (x[None], "shape")):
        with pytest.raises(ValueError, match=words):
            fit.predict(bad)
    with pytest.raises(ValueError, match="steps"):
        fit.predict(x, 2)


@pytest.mark.parametrize("change", [lambda y: y * np.array([1, 1e-6]), lambda y: y + 1e6])
def test_units_and_means_of_outputs_do_not_matter(change):
    x = np.random.default_rng(0).uniform(-1, 1, (300, 2))
    y = change(np.stack([x[:, 0] * x[:, 1] + x[:, 0] ** 2, 0.5 * x[:, 1]], 1))
    fit = mandy(Product.of(Polynomial1D(2), 2), x, y)
    assert np.all(np.std(np.asarray(fit.predict(x)) - y, axis=0) < 1e-5 * np.std(y, axis=0))
