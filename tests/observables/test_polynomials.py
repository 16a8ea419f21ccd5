"""Monomials and orthonormal polynomials against NumPy and enumeration."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from numpy.polynomial import chebyshev, hermite_e, legendre

from koopjax import observables as ob
from koopjax.observables._polynomials import unrank

SIZES = [(1, 5), (3, 4), (6, 2), (4, 0)]


def index_tuples(d, degree):
    return [
        c for k in range(degree + 1) for c in itertools.combinations_with_replacement(range(d), k)
    ]


def normalised(family, k, t):
    """Orthonormal polynomial of degree `k` by NumPy's series, in float64."""
    unit = np.eye(k + 1)[k]
    if family == "hermite":
        return hermite_e.hermeval(t, unit) / math.sqrt(math.factorial(k))
    if family == "legendre":
        return legendre.legval(t, unit) * math.sqrt(2 * k + 1)
    return chebyshev.chebval(t, unit) * (math.sqrt(2) if k else 1)


def oracle(x, degree, family=None):
    columns = []
    for factors in index_tuples(x.shape[1], degree):
        column = np.ones(len(x))
        for i in set(factors):
            m = factors.count(i)
            column = column * (x[:, i] ** m if family is None else normalised(family, m, x[:, i]))
        columns.append(column)
    return np.stack(columns, axis=1)


@pytest.mark.parametrize(("d", "degree"), SIZES)
def test_monomials_are_all_products(d, degree):
    x = np.random.default_rng(d).normal(size=(3, d))
    psi = ob.Monomials(degree)
    assert psi.size(d) == math.comb(d + degree, degree) == len(index_tuples(d, degree))
    np.testing.assert_allclose(psi(x), oracle(x, degree), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("d", "degree"), SIZES[:3])
@pytest.mark.parametrize("family", ["hermite", "legendre", "chebyshev"])
def test_orthogonal_are_all_products(d, degree, family):
    x = np.random.default_rng(d).uniform(-1, 1, size=(3, d))
    psi = ob.Orthogonal(degree, family)
    np.testing.assert_allclose(psi(x), oracle(x, degree, family), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["hermite", "legendre", "chebyshev"])
def test_orthogonal_is_stable_to_degree_ten(family):
    t = np.linspace(-1, 1, 501) * (4 if family == "hermite" else 1)
    t = t.astype(np.float32).astype(np.float64)
    expected = np.stack([normalised(family, k, t) for k in range(11)], axis=1)
    scale = np.max(np.abs(expected), axis=0)
    single = np.asarray(ob.Orthogonal(10, family)(t.astype(np.float32)[:, None]))
    assert np.max(np.abs(single - expected) / scale) < 3e-6
    with jax.enable_x64(True):
        double = np.asarray(ob.Orthogonal(10, family)(t[:, None]))
    assert np.max(np.abs(double - expected) / scale) < 1e-14


@pytest.mark.parametrize("family", ["hermite", "legendre", "chebyshev"])
def test_orthonormal_under_the_familys_measure(family):
    rule = {
        "hermite": hermite_e.hermegauss,
        "legendre": legendre.leggauss,
        "chebyshev": chebyshev.chebgauss,
    }[family]
    nodes, weights = rule(16)
    weights = weights / weights.sum()
    grid = np.stack([g.ravel() for g in np.meshgrid(nodes, nodes)], axis=1)
    measure = np.outer(weights, weights).ravel()
    with jax.enable_x64(True):
        psi = np.asarray(ob.Orthogonal(10, family)(grid))
    gram = psi.T @ (psi * measure[:, None])
    np.testing.assert_allclose(gram, np.eye(66), atol=1e-10)


@pytest.mark.parametrize(("d", "degree"), [(1, 1), (1, 4), (6, 1), (3, 5), (7, 2), (5, 3)])
def test_unranking_inverts_the_order(d, degree):
    table = np.array([t + (d,) * (degree - len(t)) for t in index_tuples(d, degree)])
    np.testing.assert_array_equal(unrank(np.arange(len(table)), d, degree), table)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 55), min_size=6, max_size=6))
def test_selected_products_are_columns_of_all(indices):
    x = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    for psi in (ob.Monomials(3), ob.Orthogonal(3)):
        chosen = ob.Select(psi, np.array(indices))(x)
        np.testing.assert_allclose(chosen, np.asarray(psi(x))[:, indices], rtol=1e-5, atol=1e-6)


def test_selection_from_a_dictionary_that_could_not_be_formed():
    psi, x = ob.Monomials(4), np.random.default_rng(0).normal(size=(2, 100)).astype(np.float32)
    last = ob.Select(psi, [psi.size(100) - 1, 101])(x)
    np.testing.assert_allclose(last, np.stack([x[:, 99] ** 4, x[:, 0] ** 2], 1), rtol=1e-5)


def test_names_read_like_the_columns():
    assert ob.Monomials(2).names(2) == ["1", "x0", "x1", "x0^2", "x0*x1", "x1^2"]
    assert ob.Monomials(3).names(2)[7] == "x0^2*x1"
    assert "he2(x0)*he1(x3)" in ob.Orthogonal(3).names(4)
    assert ob.Monomials(2).names(2, ["q", "p"])[-2:] == ["q*p", "p^2"]
    twice = ob.Compose(ob.Monomials(2), ob.Monomials(2)).names(1)
    assert twice[-1] == "(x0^2)^2"
    assert twice[-2] == "x0*(x0^2)"


def test_size_needs_no_memory_and_the_impossible_is_refused():
    assert ob.Monomials(10).size(784) == math.comb(794, 10)
    with pytest.raises(ValueError, match=r"at most 2,147,483,647 observables.*Project"):
        ob.Monomials(10)(jnp.ones((1, 784)))


@pytest.mark.parametrize("degree", [-1, 1.5, True, "2"])
def test_bad_degree_is_refused(degree):
    for psi in (ob.Monomials(degree), ob.Orthogonal(degree)):
        with pytest.raises(ValueError, match="integer of at least 0"):
            psi(jnp.ones((2, 2)))


def test_unknown_family_is_refused():
    with pytest.raises(ValueError, match=r"chebyshev.*got 'laguerre'"):
        ob.Orthogonal(2, "laguerre").size(2)


def test_quadratic_dictionary_of_the_benchmark():
    x = np.random.default_rng(0).normal(size=(50, 100)).astype(np.float32)
    out = np.asarray(ob.Monomials(2)(x))
    rows, cols = np.triu_indices(100)
    assert out.shape == (50, 5151)
    np.testing.assert_allclose(out[:, 101:], x[:, rows] * x[:, cols])
