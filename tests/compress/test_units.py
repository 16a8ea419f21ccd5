"""The same function of inputs in other units: what a Gram matrix decides stays the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from koopjax import compress, models
from koopjax.compress.gram._obs import activation_order
from koopjax.compress.gram._select import backward, unit_diagonal
from koopjax.compress.gram.formats import feedback, on_codebook
from koopjax.compress.methods._svd import factor
from tests import nets

P, Q = 9, 4


def problem(seed, dead=(3,)):
    """Second moments of `[1, x]` in units that differ by 1e4, and a matrix; other units."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(200, P)) @ rng.normal(size=(P, P)) + 1
    x[:, 0] = 1
    x[:, list(dead)] = 0
    units = 10.0 ** rng.uniform(-2, 2, size=P)
    units[0] = 1
    return x.T @ x / 200, rng.normal(size=(P, Q)), units


@pytest.mark.parametrize("seed", range(3))
def test_pruning_and_refits(seed):
    gram, w, units = problem(seed)
    scaled, moved = gram * np.outer(units, units), w / units[:, None]
    first = compress.removal_order(gram, w, alpha=1e-2, protect=(0,))
    other = compress.removal_order(scaled, moved, alpha=1e-2, protect=(0,))
    np.testing.assert_array_equal(other.rank, first.rank)
    np.testing.assert_allclose(other.error, first.error, rtol=1e-8, atol=1e-12)
    assert np.all(first.rank[3] < first.rank[1:3].max(axis=1).min())  # the dead input is early
    mask = first.mask(20)
    fitted = compress.refit(gram, gram @ w, mask, alpha=1e-2)
    again = compress.refit(scaled, scaled @ moved, mask, alpha=1e-2)
    np.testing.assert_allclose(again * units[:, None], fitted, rtol=1e-7, atol=1e-10)
    np.testing.assert_array_equal(fitted[3], 0)
    np.testing.assert_array_equal(activation_order(scaled, moved), activation_order(gram, w))


def test_selection_of_observables():
    gram, w, units = problem(3, dead=())
    ways = [(gram, gram @ w)]
    ways.append((gram * np.outer(units, units), units[:, None] * (gram @ w)))
    (kept, k), (stay, moved) = (backward(g, c, [5], 0.0, share=0.0)[5] for g, c in ways)
    np.testing.assert_array_equal(stay, kept)
    np.testing.assert_allclose(moved * units[kept, None], k, rtol=1e-6)


def test_error_feedback_moves_the_rest_by_inputs_of_unit_moment():
    gram, w, _ = problem(4)
    order = np.argsort(-np.diag(gram), kind="stable")
    rounding = on_codebook(np.array([-0.7, 0.1, 0.8]))
    got = feedback(gram, w, rounding, alpha=1e-2)
    system, unit = unit_diagonal(gram)
    np.testing.assert_allclose(np.diag(system), np.arange(P) != 3, rtol=1e-14)
    inverse = np.linalg.inv(system[np.ix_(order, order)] + 1e-2 * np.eye(P))
    upper = np.linalg.cholesky(inverse).T
    rest = (w / unit[:, None])[order]
    for k, row in enumerate(order):
        rounded = rounding(rest[k] * unit[row])
        np.testing.assert_allclose(got[row], rounded)
        gap = (rest[k] - rounded / unit[row]) / upper[k, k]
        rest[k + 1 :] -= np.outer(upper[k, k + 1 :], gap)


@pytest.mark.parametrize("rank", [1, 3])
def test_whitened_factors(rank):
    gram, w, units = problem(5)
    scaled, moved = gram * np.outer(units, units), w / units[:, None]
    products = []
    for g, m in ((gram, w), (scaled, moved)):
        left, right, _ = factor(m, g, g)
        products.append(left[:, :rank] @ right[:rank])
    np.testing.assert_allclose(products[1] * units[1:, None], products[0], rtol=1e-5, atol=1e-8)


@pytest.fixture(scope="module")
def perceptron():
    """A network and its inputs, one of them always zero, twice: as they are and in other units."""
    rng = np.random.default_rng(7)
    model = nets.filled(lambda: models.MLP((10, 12, 12, 3), rngs=nnx.Rngs(1)))
    x = (rng.normal(size=(300, 10)) @ rng.normal(size=(10, 10))).astype(np.float32)
    x[:, 4] = 0
    units = 2.0 ** rng.integers(-7, 8, 10).astype(np.float32)
    moved = nnx.clone(model)
    kernel = moved.layers[0].kernel
    kernel.set_value(jnp.asarray(np.asarray(kernel.get_value()) / units[:, None]))
    return (model, x), (moved, x * units)


@pytest.mark.parametrize("name", ["obs", "whitened_svd", "deep_compression"])
def test_whole_networks(perceptron, name):
    made = [
        compress.METHODS[name](model, x, "2.5x", key=jax.random.key(0)).model
        for model, x in perceptron
    ]
    first, other = (
        np.asarray(models.predict(model, x)) for model, (_, x) in zip(made, perceptron, strict=True)
    )
    original = np.asarray(models.predict(*perceptron[0]))
    if name == "deep_compression":  # numbers that are shared in one unit are not in another
        errors = [np.std(out - original) / np.std(original) for out in (first, other)]
        assert errors[1] < 2 * errors[0] + 0.1
        return
    np.testing.assert_allclose(other, first, atol=1e-3 * float(np.std(original)))
    if name == "obs":
        kept = [np.asarray(m.layers[0].kernel.get_value()) != 0 for m in made]
        np.testing.assert_array_equal(kept[1], kept[0])
