"""Inner products of full product dictionaries: against the dictionary itself, in both forms."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from koopjax.observables import (
    Compose,
    CosSin,
    Gaussian1D,
    Monomials,
    Polynomial1D,
    Product,
    ProductKernel,
    Standardize,
    Trigonometric,
    _base,
)

MIXED = Product(
    [CosSin(0.4), Polynomial1D(2), CosSin(0.3), Gaussian1D(jnp.array([0.0, 1.0])), Trigonometric(1)]
)
POSITIVE = Product([CosSin(0.4), CosSin(0.3), Gaussian1D(jnp.array([0.0, 1.0])), CosSin(0.2)])


def uniform(n, d, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (n, d)).astype(np.float32)


def columns(factor, t):
    """One coordinate's functions in NumPy."""
    if isinstance(factor, CosSin):
        return np.stack([np.cos(float(factor.scale) * t), np.sin(float(factor.scale) * t)], 1)
    if isinstance(factor, Polynomial1D):
        return t[:, None] ** np.arange(factor.degree + 1)
    if isinstance(factor, Trigonometric):
        return np.stack([np.ones_like(t), np.cos(t), np.sin(t)], 1)
    bumps = np.exp(-((t[:, None] - np.asarray(factor.centers)) ** 2) / 2)
    return np.concatenate([np.ones_like(t)[:, None], bumps], 1)


def dense(product, x, c):
    """The full dictionaries' inner products in float64."""
    x, c = np.asarray(x, np.float64), np.asarray(c, np.float64)
    pairs = [(columns(f, x[:, k]), columns(f, c[:, k])) for k, f in enumerate(product.factors)]
    return np.prod([a @ b.T for a, b in pairs], axis=0)


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["mixed", "positive"]), st.sampled_from([0, 7]))
def test_values_are_inner_products_of_the_dictionary(seed, which, degree):
    product = MIXED if which == "mixed" else POSITIVE
    d = len(product.factors)
    x, c = uniform(9, d, seed), uniform(6, d, seed + 1)
    psi = ProductKernel(product, c, degree, min(degree, 4))
    exact = dense(product, x, c)
    np.testing.assert_allclose(psi(x), exact, rtol=3e-5, atol=3e-5 * np.abs(exact).max())


def test_float64_has_its_digits_in_both_forms():
    x, c = uniform(9, 4), uniform(6, 4, 1)
    exact = dense(POSITIVE, x, c)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), POSITIVE)
        narrow = ProductKernel(wide, jnp.asarray(c, jnp.float64), 16, 9)
        for form in (narrow, dataclasses.replace(narrow, degree=0)):
            found = form(jnp.asarray(x, jnp.float64))
            assert found.dtype == jnp.float64
            np.testing.assert_allclose(found, exact, rtol=1e-11)


def test_many_coordinates_keep_the_accuracy_of_a_factor():
    d = 196
    product = Product.of(CosSin(0.19 * np.pi), d)
    x = np.random.default_rng(0).uniform(0, 1, (40, d)) * (uniform(40, d, 1) > 0)
    psi = ProductKernel.fit(product, x.astype(np.float32))
    assert 0 < psi.rank <= 5
    assert psi.degree <= 9
    x = x.astype(np.float32).astype(np.float64)
    exact = np.prod(np.cos(0.19 * np.pi * (x[:, None] - x[None])), axis=2)
    np.testing.assert_allclose(psi(x.astype(np.float32)), exact, rtol=1e-7 * d)


def test_a_state_outside_the_interval_takes_the_exact_form():
    c = uniform(6, 4)
    psi = ProductKernel.fit(POSITIVE, c)
    x = uniform(5, 4, 1)
    x[2, 1] = 7.5
    exact = dense(POSITIVE, x, c)
    np.testing.assert_allclose(psi(x), exact, rtol=2e-5, atol=1e-5)


def test_factors_that_change_sign_take_the_exact_form():
    c = 3 * uniform(6, 2)
    product = Product.of(CosSin(1.0), 2)
    psi = ProductKernel.fit(product, c)
    assert (psi.degree, psi.rank) == (0, 0)
    for form in (psi, ProductKernel(product, c, 4, 3)):
        np.testing.assert_allclose(form(c), dense(product, c, c), atol=1e-5)


def test_a_series_too_short_is_not_taken():
    c = uniform(6, 4)
    psi = ProductKernel(POSITIVE, c, 2, 1)
    np.testing.assert_allclose(psi(c), dense(POSITIVE, c, c), rtol=1e-5)


@pytest.mark.slow
def test_blocks_of_rows_agree_with_one_block():
    x, c = uniform(50, 4), uniform(6, 4, 1)
    psi, matrix = ProductKernel.fit(POSITIVE, c), uniform(6, 2, 2)
    whole = np.asarray(psi(x)) @ matrix
    for rows in (None, 1, 7, 50, 80):
        np.testing.assert_allclose(psi.times(x, matrix, rows=rows), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("degree", [0, 8])
def test_gradients_of_states_and_scales_are_finite_differences(degree):
    c, x = uniform(3, 4), uniform(2, 4, 1)

    def loss(scale, x, c):
        return jnp.sum(ProductKernel(Product.of(CosSin(scale), 4), c, degree, 5)(x) ** 2)

    found = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(np.float32(0.4), x, c)

    def exact(scale, x, c):
        return np.sum(np.prod(np.cos(scale * (x[:, None] - c[None])), axis=2) ** 2)

    x, c, h = x.astype(np.float64), c.astype(np.float64), 1e-5
    slope = (exact(0.4 + h, x, c) - exact(0.4 - h, x, c)) / (2 * h)
    np.testing.assert_allclose(found[0], slope, rtol=1e-3)
    for k, array in ((1, x), (2, c)):
        one = np.zeros_like(array)
        one[1, 2] = h
        sides = [exact(0.4, *((array + s * one, c) if k == 1 else (x, array + s * one)))
                 for s in (1, -1)]  # fmt: skip
        slope = (sides[0] - sides[1]) / (2 * h)
        np.testing.assert_allclose(found[k][1, 2], slope, rtol=2e-3, atol=1e-4)


def test_vmap_over_scales_is_a_loop():
    c, x = uniform(3, 4), uniform(5, 4, 1)
    kernel = jax.jit(lambda s: ProductKernel(Product.of(CosSin(s), 4), c, 4, 3)(x))
    scales = np.array([0.2, 0.5, 2.0], np.float32)
    for scale, found in zip(scales, jax.jit(jax.vmap(kernel))(scales), strict=True):
        np.testing.assert_allclose(found, kernel(scale), rtol=1e-4, atol=1e-5)


def test_a_second_call_compiles_nothing():
    c = uniform(6, 4)
    psi = ProductKernel.fit(POSITIVE, c)
    psi(uniform(5, 4))
    before = _base._evaluate._cache_size()
    psi(uniform(5, 4, 3))
    assert _base._evaluate._cache_size() == before


def test_it_follows_other_dictionaries():
    x = uniform(30, 4) * 5
    standard = Standardize.fit(x)
    psi = Compose(standard, ProductKernel.fit(POSITIVE, standard(x[:7])))
    np.testing.assert_allclose(psi(x), dense(POSITIVE, standard(x), standard(x[:7])), rtol=1e-4)
    assert psi.names(4)[:2] == ["k0", "k1"]


def test_bad_input_is_refused():
    c, key = uniform(6, 4), jax.random.key(0)
    with pytest.raises(ValueError, match="expected inputs with 4 coordinates for ProductKernel"):
        ProductKernel(POSITIVE, c)(uniform(3, 5))
    with pytest.raises(ValueError, match="for Product, got 3"):
        ProductKernel.fit(POSITIVE, uniform(6, 3))
    with pytest.raises(ValueError, match="expected a Product, got Monomials"):
        ProductKernel.fit(Monomials(2), c)
    with pytest.raises(ValueError, match="at most 6 centres"):
        ProductKernel.fit(POSITIVE, c, 7, key)
    with pytest.raises(ValueError, match="expected a random key"):
        ProductKernel.fit(POSITIVE, c, 3)
    with pytest.raises(ValueError, match="an empty batch"):
        ProductKernel.fit(POSITIVE, c[:0])
    with pytest.raises(ValueError, match="finite numbers"):
        ProductKernel.fit(POSITIVE, np.full((3, 4), np.nan, np.float32))
    with pytest.raises(ValueError, match=r"centers of shape \(m, d\)"):
        ProductKernel(POSITIVE, c[0])(c)
    with pytest.raises(ValueError, match="degree of ProductKernel"):
        ProductKernel(POSITIVE, c, -1)(c)
    chosen = ProductKernel.fit(POSITIVE, c, 3, key).centers
    assert chosen.shape == (3, 4)
    assert all(np.any(np.all(np.asarray(row) == c, axis=1)) for row in chosen)
