"""Latent coordinates: orders on known graphs, projections on known directions."""

import numpy as np
import pytest

from koopjax.tensor_edmd import (
    latent,
    order_by_correlation,
    order_by_mutual_information,
)


def markov_chain(n=2000, d=8, seed=0):
    """Each coordinate depends on the one before; then shuffled."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d))
    for k in range(1, d):
        x[:, k] = 0.85 * x[:, k - 1] + 0.5 * x[:, k]
    order = rng.permutation(d)
    return x[:, order].astype(np.float32), np.argsort(order)


@pytest.mark.parametrize("method", ["spectral", "chain"])
@pytest.mark.parametrize(
    "order",
    [
        order_by_correlation,
        order_by_mutual_information,
        lambda x, method: order_by_mutual_information(x, bins=8, method=method),
    ],
)
def test_finds_the_order_of_a_chain(order, method):
    x, truth = markov_chain()
    found = np.asarray(order(x, method=method).indices)
    assert found.tolist() in (truth.tolist(), truth[::-1].tolist())


def test_binned_information_sees_what_correlation_does_not():
    rng = np.random.default_rng(0)
    a, b = rng.uniform(-1, 1, (2, 3000))
    x = np.stack([a, b, a**2, b**2], axis=1)
    found = np.asarray(order_by_mutual_information(x, bins=10, method="chain").indices).tolist()
    assert abs(found.index(0) - found.index(2)) == 1
    assert abs(found.index(1) - found.index(3)) == 1


@pytest.mark.parametrize("d", [1, 2, 3])
def test_few_and_constant_coordinates(d):
    x = np.ones((20, d), np.float32)
    for order in (order_by_correlation, order_by_mutual_information):
        assert sorted(np.asarray(order(x).indices).tolist()) == list(range(d))


def wide(n=600, d=12, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)).astype(np.float32)
    directions = np.linalg.qr(rng.normal(size=(d, 2)))[0].astype(np.float32)
    u = x @ directions
    y = np.stack([u[:, 0] * u[:, 1] + u[:, 0], u[:, 1] ** 2 + u[:, 1]], axis=1)
    return x, y, directions


def overlap(front, directions):
    q = np.linalg.qr(np.asarray(front.first.matrix, np.float64))[0]
    return np.linalg.svd(q.T @ directions, compute_uv=False)[-1]


def test_output_directions_are_those_of_the_regression():
    x, y, directions = wide(5000)
    assert overlap(latent(x, y, rank=2, kind="output"), directions) > 0.98
    assert overlap(latent(x, rank=2), directions) < 0.98
    front = latent(x, y, rank=5, kind="output", metric=np.eye(2), order="mutual_information")
    z = np.asarray(front(x))
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(z.std(axis=0), 1, rtol=1e-3)


def test_active_subspace_finds_the_directions():
    x, _, directions = wide()
    u = x @ directions
    gradients = np.stack(
        [
            (u[:, 1:] + 1) * directions[:, 0] + u[:, :1] * directions[:, 1],
            (2 * u[:, 1:] + 1) * directions[:, 1],
        ],
        axis=1,
    )
    front = latent(x, rank=2, kind="active_subspace", gradients=gradients, order="correlation")
    assert overlap(front.first, directions) > 0.9999


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"kind": "magic"}, "kind"),
        ({"order": "magic"}, "order"),
        ({"kind": "output"}, "outputs y"),
        ({"kind": "active_subspace"}, "gradients"),
        ({"rank": 0}, "rank"),
        ({"rank": 13}, "rank"),
        ({"x": np.full((5, 3), np.nan)}, "finite"),
        ({"kind": "output", "y": np.ones((3, 2))}, "outputs"),
        ({"kind": "output", "y": np.ones((600, 2)), "metric": np.eye(3)}, "metric"),
    ],
)
def test_bad_input(change, match):
    arguments = {"x": wide()[0], "rank": 2, **change}
    with pytest.raises(ValueError, match=match):
        latent(**arguments)


def test_bad_orders():
    with pytest.raises(ValueError, match="bins"):
        order_by_mutual_information(np.ones((3, 2)), bins=1)
    with pytest.raises(ValueError, match="method"):
        order_by_correlation(np.ones((3, 4)), method="magic")
    with pytest.raises(ValueError, match="not empty"):
        order_by_correlation(np.ones((0, 4)))
