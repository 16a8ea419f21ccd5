"""The interaction spectrum against closed forms and against ANOVA on the full grid."""

import itertools
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from koopjax import analysis, tensor_edmd, tt
from koopjax.observables import (
    Compose,
    CosSin,
    Polynomial1D,
    Product,
    Project,
    Standardize,
    Trigonometric,
)


def core(rows):
    """A core from its blocks `rows[r][s]`, each a vector over the functions."""
    return np.transpose(np.array(rows, float), (0, 2, 1))[:, :, None, :]


def fitted(psi, cores):
    with jax.enable_x64(True):
        train = tt.TTMatrix([jax.device_put(np.asarray(c, np.float64)) for c in cores]).validate()
    return types.SimpleNamespace(psi=psi, train=train)


def ishigami(a, b):
    """`sin x0 (1 + b x2⁴) + a sin² x1` as a train of rank 2."""
    psi = Product([Trigonometric(1), Trigonometric(2), Polynomial1D(4)])
    sine, one = np.eye(3)[2], np.eye(3)[0]
    first = core([[sine, one]])
    constant, square = np.eye(5)[0], 0.5 * a * (np.eye(5)[0] - np.eye(5)[3])
    second = core([[constant, 0 * constant], [0 * constant, square]])
    third = core([[np.eye(5)[0] + b * np.eye(5)[4]], [np.eye(5)[0]]])
    return fitted(psi, [first, second, third])


def test_ishigami_to_a_millionth():
    a, b, n = 7.0, 0.1, 20_000
    grid = -math.pi + 2 * math.pi * (np.arange(n) + 0.5) / n
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x = np.stack([rng.permutation(grid) for _ in range(3)], axis=1)
        found = analysis.interaction_spectrum(ishigami(a, b), x)
    v0 = 0.5 * (1 + b * math.pi**4 / 5) ** 2
    v1 = a**2 / 8
    v02 = b**2 * math.pi**8 * (1 / 18 - 1 / 50)
    whole = v0 + v1 + v02
    assert found.variance == pytest.approx(whole, rel=1e-6)
    np.testing.assert_allclose(found.orders, [(v0 + v1) / whole, v02 / whole, 0, 0], atol=1e-6)
    np.testing.assert_allclose(found.first, [v0 / whole, v1 / whole, 0], atol=1e-6)
    np.testing.assert_allclose(
        found.total, [(v0 + v02) / whole, v1 / whole, v02 / whole], atol=1e-6
    )
    pairs = np.zeros((3, 3))
    pairs[0, 2] = pairs[2, 0] = v02 / whole
    np.testing.assert_allclose(found.pairs, pairs, atol=1e-6)
    assert found.beyond == pytest.approx(0, abs=1e-12)
    assert found.mean_order == pytest.approx((v0 + v1 + 2 * v02) / whole, rel=1e-6)
    assert found.leading(1)[0]["coordinates"] == ["x1"]
    assert found.result == 0


def test_a_sum_plus_a_product_has_the_variances_of_its_terms():
    weights, c, means, d = np.array([1.0, 2.0, 0.5, 3.0, 1.5]), 0.7, np.arange(5) / 3.0, 5
    psi = Product.of(Polynomial1D(1), d)
    cores = []
    for k in range(d):
        one, line = np.eye(2)
        # States of the chain: the sum so far, "not yet added", the product so far.
        grow = [
            [one, 0 * one, 0 * one],
            [weights[k] * line, one, 0 * one],
            [0 * one, 0 * one, line],
        ]
        rows = [[*grow[1][:2], c * line]] if k == 0 else grow
        rows = [[row[0] + row[2]] for row in rows] if k == d - 1 else rows
        cores.append(core(rows))
    signs = np.array(list(itertools.product([-1.0, 1.0], repeat=d)))
    with jax.enable_x64(True):
        found = analysis.interaction_spectrum(
            fitted(psi, cores), signs + means[None, :], max_order=3
        )
    # The product of μ + ε is the sum over subsets of Π μ Π ε; singles also have the sum's weights.
    variances = np.zeros(d + 1)
    for size in range(1, d + 1):
        for subset in itertools.combinations(range(d), size):
            rest = [k for k in range(d) if k not in subset]
            term = c * math.prod(means[rest])
            variances[size] += (term + (weights[subset[0]] if size == 1 else 0.0)) ** 2
    shares = variances[1:] / variances.sum()
    np.testing.assert_allclose(found.orders, shares[:3], atol=1e-12)
    assert found.beyond == pytest.approx(shares[3:].sum(), abs=1e-12)
    assert found.mean_order == pytest.approx(float(np.sum(shares * np.arange(1, d + 1))))
    # All corners of the cube: coordinates are independent in the samples too.
    assert found.joint == pytest.approx(found.variance)


def anova(values, metric):
    """Variances of every subset's interaction on a full grid `(n, ..., n, q)`, by averaging."""
    d = values.ndim - 1
    parts, variances = {}, {}
    for size in range(d + 1):
        for subset in itertools.combinations(range(d), size):
            rest = tuple(k for k in range(d) if k not in subset)
            part = values.mean(axis=rest, keepdims=True)
            for smaller in itertools.chain.from_iterable(
                itertools.combinations(subset, s) for s in range(size)
            ):
                part = part - parts[smaller]
            parts[subset] = part
            flat = part.reshape(-1, values.shape[-1])
            variances[subset] = float(np.einsum("nq,qp,np->", flat, metric, flat)) / len(flat)
    return variances


@pytest.mark.parametrize("place", [0, 1, 3])
def test_a_random_train_against_averages_over_the_grid(place):
    rng = np.random.default_rng(place)
    d, n, q = 4, 5, 3
    factors = [Polynomial1D(2), CosSin(0.7), Trigonometric(1), Polynomial1D(3, "hermite")]
    product = Product(factors)
    columns = [q if k == place else 1 for k in range(d)]
    ranks = (1, 3, 2, 4, 1)
    shapes = zip(ranks[:-1], product.modes(), columns, ranks[1:], strict=True)
    cores = [rng.normal(size=shape) for shape in shapes]
    half = rng.normal(size=(q, 2))
    metric = half @ half.T
    x = rng.normal(size=(n, d))
    with jax.enable_x64(True):
        fit = fitted(product, cores)
        found = analysis.interaction_spectrum(fit, x, metric=metric, max_order=2, batch_size=3)
        grid = np.stack(np.meshgrid(*x.T, indexing="ij"), axis=-1).reshape(-1, d)
        answers = jax.jit(lambda train, at: tt.contract(train, product.factors_at(at)))
        both = np.asarray(answers(fit.train, np.concatenate([x, grid])))
        own, values = both[:n], both[n:]
    want = anova(values.reshape(*[n] * d, q), metric)
    whole = sum(v for s, v in want.items() if s)
    share = lambda wanted: sum(v for s, v in want.items() if wanted(s)) / whole
    assert found.variance == pytest.approx(whole)
    np.testing.assert_allclose(
        found.orders, [share(lambda s, k=k: len(s) == k) for k in (1, 2)], rtol=1e-10
    )
    assert found.beyond == pytest.approx(share(lambda s: len(s) > 2))
    for k in range(d):
        assert found.first[k] == pytest.approx(share(lambda s, k=k: s == (k,)))
        assert found.total[k] == pytest.approx(share(lambda s, k=k: k in s))
    for i, j in itertools.combinations(range(d), 2):
        assert found.pairs[i, j] == pytest.approx(share(lambda s, i=i, j=j: s == (i, j)))
    centred = own - own.mean(axis=0)
    assert found.joint == pytest.approx(np.einsum("nq,qp,np->", centred, metric, centred) / n)


def test_coordinates_are_those_behind_the_projection_and_float32_is_enough():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(200, 6)).astype(np.float32)
    project = Project.pca(x, 2)
    front = Compose(project, Standardize.fit(project(x)))
    psi = Compose(front.first, Compose(front.then, Product.of(Polynomial1D(1), 2)))
    one, line = np.eye(2)
    fit = fitted(psi, [core([[one, line]]), core([[line], [one]])])  # z0 + z1
    found = analysis.interaction_spectrum(fit, x)
    np.testing.assert_allclose(found.first, [0.5, 0.5], rtol=1e-5)
    assert found.names == ("z(u0)", "z(u1)")
    assert found.orders[0] == pytest.approx(1, abs=1e-10)
    told = found.to_dict()
    assert told["leading"][0]["share"] == pytest.approx(0.5, rel=1e-5)
    assert "single coordinates" in told["sentence"]


def test_sobols_g_function():
    weights, n = np.array([0.0, 1.0, 4.5, 9.0]), 2000
    # |4x - 2| on x in [0, 1], as a polynomial of u = (4x - 2)² has no root: taken as the input.
    x = np.stack([np.random.default_rng(k).permutation((np.arange(n) + 0.5) / n) for k in range(4)])
    inputs = np.abs(4 * x.T - 2)
    one, line = np.eye(2)
    cores = [core([[(a * one + line) / (1 + a)]]) for a in weights]
    found = analysis.interaction_spectrum(fitted(Product.of(Polynomial1D(1), 4), cores), inputs)
    own = 1 / (3 * (1 + weights) ** 2)
    whole = np.prod(1 + own) - 1
    np.testing.assert_allclose(found.first, own / whole, rtol=1e-5)
    total = own * np.prod(1 + own) / (1 + own) / whole
    np.testing.assert_allclose(found.total, total, rtol=1e-5)
    pairs = np.outer(own, own) / whole * (1 - np.eye(4))
    np.testing.assert_allclose(found.pairs, pairs, rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("value", [-3.7e5, 2.2e-4])
def test_what_varies_by_rounding_does_not_vary(wide, value):
    rng = np.random.default_rng(5)
    dtype = np.float64 if wide else np.float32
    x = rng.uniform(-1, 1, (250, 3)).astype(dtype)
    psi = Product.of(Polynomial1D(2), 3)
    flat = np.full((250, 1), value, dtype)
    with jax.enable_x64(wide):
        fits = [tensor_edmd.mandy(psi, x, flat)]
        # In float64 four sweeps have not converged to the last digit: that fit does vary.
        fits += [] if wide else [tensor_edmd.als(psi, x, flat, 2, jax.random.key(0))]
        for fit in fits:
            found = analysis.interaction_spectrum(fit, x)
            assert sum(found.orders) + found.beyond == 0
            assert found.variance == 0
            assert not np.any(found.total)
            assert "does not vary" in found.sentence()


def test_a_constant_beside_an_output_that_varies_takes_no_share():
    psi = Product.of(Polynomial1D(1), 2)
    eps = np.finfo(np.float32).eps
    one, line = np.eye(2)
    # Output 0: 1e6 with rounding in both coordinates; output 1: 0.01 x0 x1.
    first = np.zeros((1, 2, 2, 2))
    first[0, :, 0, 0], first[0, :, 1, 1] = 1e6 * (one + eps * line), 0.01 * line
    cores = [first.astype(np.float32), core([[one + eps * line], [line]]).astype(np.float32)]
    fit = types.SimpleNamespace(psi=psi, train=tt.TTMatrix([jnp.asarray(c) for c in cores]))
    signs = np.array(list(itertools.product([-1.0, 1.0], repeat=2)))
    for metric in (None, np.eye(2)):
        found = analysis.interaction_spectrum(fit, signs, metric=metric)
        np.testing.assert_allclose(found.orders[:2], [0, 1], atol=1e-9)
        assert found.variance == pytest.approx(1e-4, rel=1e-5)


def test_modes_that_are_functions_are_no_coordinates():
    psi = tensor_edmd.FunctionMajor(Product.of(Polynomial1D(2), 3))
    x = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    fit = tensor_edmd.mandy(psi, x, x[:, :1])
    with pytest.raises(ValueError, match="FunctionMajor"):
        analysis.interaction_spectrum(fit, x)


def test_a_constant_has_no_spectrum_and_mistakes_are_named():
    psi = Product.of(Polynomial1D(1), 2)
    one, line = np.eye(2)
    flat = fitted(psi, [core([[one]]), core([[one]])])
    x = jnp.ones((4, 2)) * jnp.arange(4.0)[:, None]
    found = analysis.interaction_spectrum(flat, x)
    assert found.orders == (0, 0, 0, 0)
    assert found.sentence() == "The output does not vary."
    with pytest.raises(ValueError, match="max_order"):
        analysis.interaction_spectrum(flat, x, max_order=0)
    with pytest.raises(ValueError, match="metric of shape"):
        analysis.interaction_spectrum(flat, x, metric=np.eye(2))
    with pytest.raises(ValueError, match="finite"):
        analysis.interaction_spectrum(flat, x.at[0, 0].set(jnp.nan))
    with pytest.raises(ValueError, match="n > 0"):
        analysis.interaction_spectrum(flat, x[:0])
    bad = fitted(psi, [core([[one]]), np.nan * core([[line]])])
    assert analysis.interaction_spectrum(bad, x).result != 0
