"""The Koopman method beyond the contract: cuts, model forms, few samples, regression."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from koopjax import compress, export, models, nn, observables, surgery
from koopjax._core import UNDERDETERMINED
from koopjax.compress._koopman.block import (
    active,
    array_bytes,
    jacobian_metric,
    least_bytes,
    most_observables,
)
from koopjax.compress._koopman.span import moments
from tests import nets

EVENT = "/jax/core/compile/backend_compile_duration"


def test_few_samples_are_flagged_and_say_so(network, calibration):
    made = compress.koopman(network, calibration[:40], "4x", key=jax.random.key(0), seconds=0)
    assert made.report.result == UNDERDETERMINED
    assert "samples are few" in str(made.report)
    assert np.all(np.isfinite(made.model(calibration)))


ENDS = ("layers.0/relu", "layers.1/relu")


@pytest.mark.parametrize(
    ("at", "end", "budget"),
    [
        (ENDS[0], "layers.2", "1.3x"),
        pytest.param(ENDS, ENDS[1], "1.05x", marks=pytest.mark.slow),
    ],
)
def test_from_a_hidden_layer_to_another_or_the_logits(
    at, end, budget, network, digits, calibration, tmp_path
):
    made = compress.koopman(network, calibration, budget, at=at, key=jax.random.key(0), seconds=0)
    assert isinstance(made.model, surgery.Spliced)
    assert made.report.settings["at"] == [ENDS[0], end]
    assert made.report.stored_bytes <= made.report.original_bytes / float(budget[:-1])
    assert models.accuracy(made.model, digits.x_test, digits.y_test) > 0.9
    export.save(made.model, tmp_path / "m")
    again = export.load(tmp_path / "m", model=made.model)
    np.testing.assert_array_equal(again(calibration[:9]), made.model(calibration[:9]))


def test_an_unknown_cut_names_the_nearest(network, calibration):
    with pytest.raises(ValueError, match=r"the name or index of a cut"):
        compress.koopman(network, calibration, "5x", at="layer.9", key=jax.random.key(0))


def linen_twin(network):
    """The same network in Linen."""
    params = {
        f"layers_{k}": {"kernel": layer.kernel.get_value(), "bias": layer.bias.get_value()}
        for k, layer in enumerate(network.layers)
    }
    return (models.linen.MLP(network.sizes), {"params": params})


def test_a_linen_network_becomes_an_nnx_module(network, calibration):
    x, how = calibration, {"key": jax.random.key(0), "seconds": 0}
    made = compress.koopman(linen_twin(network), x, 1500, **how)
    same = compress.koopman(network, x, 1500, **how)
    assert isinstance(made.model, nnx.Module)
    assert made.report.stored_bytes <= 1500
    where = {"at": ["input", "layers_2"]}  # as Linen names it
    assert made.report.settings == same.report.settings | where
    np.testing.assert_allclose(made.model(x), same.model(x), rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_conventional_methods_take_linen_networks(network, digits, calibration):
    twin = linen_twin(network)
    svd = compress.whitened_svd(twin, calibration, 4000, key=jax.random.key(2))
    assert svd.report.stored_bytes <= 4000
    pruned = compress.magnitude(twin, calibration, "2x", key=jax.random.key(2))
    assert models.accuracy(pruned.model, digits.x_test, digits.y_test) > 0.3


SLOWLY = [pytest.param(name, marks=pytest.mark.slow) for name in ("magnitude", "whitened_svd")]


@pytest.mark.parametrize("name", ["koopman", *SLOWLY])
def test_images_go_in_as_images(calibration, name):
    make = lambda: models.CNN((8, 8, 1), 10, channels=(4,), hidden=16, rngs=nnx.Rngs(0))
    x = calibration.reshape(-1, 8, 8, 1)
    how = {"seconds": 0} if name == "koopman" else {}
    made = compress.METHODS[name](nets.filled(make), x, "2x", key=jax.random.key(0), **how)
    assert made.report.stored_bytes <= made.report.original_bytes / 2
    assert made.model(x[:7]).shape == (7, 10)


def test_a_regression_model_is_scored_by_r2():
    x = jax.random.normal(jax.random.key(0), (600, 5))
    params = jnp.array([1.0, -2.0, 0.5, 0.0, 1.5])
    model = (lambda p, a: (a @ p)[:, None] ** 2 + a[:, :1], params)
    made = compress.koopman(model, x, 600, key=jax.random.key(1))
    assert made.report.measure == "r2"
    assert made.report.divergence is None
    assert made.report.score > 0.999


def test_whitened_svd_refuses_what_it_cannot_factor(calibration):
    model = (lambda p, x: x @ p, jnp.ones((64, 10)))
    with pytest.raises(ValueError, match=r"expected an nnx.Module"):
        compress.whitened_svd(model, calibration, "2x", key=jax.random.key(0))


def test_the_jacobian_metric_is_that_of_the_chain_rule():
    w, x = nets.normal(6, 4), nets.normal(700, 6, seed=1)
    found = jacobian_metric((jax.tree_util.Partial(lambda p, h: jnp.tanh(h @ p), w),), x, 4,
                            jax.random.key(2), centred=True)  # fmt: skip
    # of tanh(h @ w)
    jac = (1 - np.tanh(x @ w, dtype=np.float64) ** 2)[:, :, None] * w.T
    jac = jac - jac.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(
        found, np.einsum("nci,ncj->ij", jac, jac) / 700, rtol=2e-4, atol=1e-5
    )


def test_active_directions_are_uncorrelated_and_find_the_plane():
    x = nets.normal(4000, 8, seed=3) @ nets.normal(8, 8, seed=5)
    a = nets.normal(8, 2, seed=4).astype(np.float64)
    _, covariance = moments(x)
    found = active(covariance, a @ a.T, 2)
    np.testing.assert_allclose(found.matrix.T @ covariance @ found.matrix, np.eye(2),
                               atol=1e-6)  # fmt: skip
    # The outputs x @ a are functions of the two coordinates, up to the damping of whitening.
    z = np.asarray(x, np.float64) @ found.matrix
    y = np.asarray(x, np.float64) @ a
    fit = z @ np.linalg.lstsq(z, y, rcond=None)[0]
    assert np.sum((fit - y) ** 2) < 2e-2 * np.sum(y**2)


def with_scale(psi):
    """The dictionary with a scale of ones in every `Standardize`, as older files have it."""
    if isinstance(psi, observables.Standardize):
        return observables.Standardize(psi.mean, jnp.ones_like(psi.mean))
    if not dataclasses.is_dataclass(psi):
        return psi
    parts = {f.name: with_scale(getattr(psi, f.name)) for f in dataclasses.fields(psi)}
    return type(psi)(**parts)


def test_a_block_has_no_scale_and_older_files_with_one_are_read(network, calibration, tmp_path):
    made = compress.koopman(network, calibration, 1500, key=jax.random.key(0), seconds=0).model
    old = nn.KoopmanBlock(with_scale(made.psi), made.operator)
    count = lambda model: len(jax.tree.leaves(nnx.state(model)))
    assert count(old) == count(made) + 1
    export.save(old, tmp_path / "old")
    read = export.load(tmp_path / "old")
    np.testing.assert_array_equal(read(calibration[:50]), made(calibration[:50]))


def test_a_second_call_compiles_nothing(network, calibration):
    compiled = []
    listen = lambda event, _, **about: event == EVENT and compiled.append(about.get("fun_name"))
    make = lambda: compress.koopman(network, calibration, 1500, key=jax.random.key(0), seconds=0)
    make()
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        make()
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert compiled == []


def test_the_count_of_bytes_is_that_of_the_arrays():
    for d, q, m, r, degree, rank in [(784, 10, 30, 8, 2, 10), (64, 10, 64, 5, 3, 7)]:
        total = math.comb(r + degree, degree)
        full = array_bytes(d, q, m, r, total, total, rank)
        assert most_observables(full, d, q, m, r, total, rank) == total
        p = most_observables(full - 90, d, q, m, r, total, rank)
        assert array_bytes(d, q, m, r, p, total, rank) <= full - 90
        if p + 1 < total:
            assert array_bytes(d, q, m, r, p + 1, total, rank) > full - 90
    assert 88 <= least_bytes(784, 10) <= 88 + 16
