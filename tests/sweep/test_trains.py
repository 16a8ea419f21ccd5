"""Ranks of tensor trains: padded lanes against single fits, buckets, compilations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from koopjax import sweep, tensor_edmd
from koopjax.observables import Polynomial1D, Product
from koopjax.sweep._trains import bucket_sizes

EVENT = "/jax/core/compile/backend_compile_duration"
D = 4


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, size=(80, D))
    y = np.stack([x[:, 0] * x[:, 1] + x[:, 2], np.tanh(x.sum(1))], axis=1)
    with jax.enable_x64(True):
        return Product.of(Polynomial1D(1), D), jnp.asarray(x), jnp.asarray(y)


def test_lanes_equal_single_fits(problem):
    compiled = []
    listen = lambda event, _, **about: event == EVENT and compiled.append(about.get("fun_name"))
    keys = jax.random.split(jax.random.key(1), 2)
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        ranks, how = [1, 2, 1000], {"sweeps": 1, "buckets": [4]}
        table = sweep.ranks(*problem, ranks, keys, alpha=[1e-6, 1e-2], **how)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert [name for name in compiled if "run_lanes" in name] == ["jit(run_lanes)"]
    assert len(table) == 12
    psi, x, y = problem
    for alpha, seed in ((1e-6, 0), (1e-2, 1)):
        alone = tensor_edmd.als(psi, x, y, 2, keys[seed], alpha=alpha, sweeps=1)
        fit = table.fit(2, alpha, seed)
        assert fit.ranks == alone.ranks
        with jax.enable_x64(True):
            np.testing.assert_allclose(
                fit.train.to_dense(), alone.train.to_dense(), rtol=1e-8, atol=1e-8
            )
        row = table.where(rank=2, alpha=alpha, seed=seed).rows[0]
        assert row["numbers"] == alone.numbers
        assert row["error"] == pytest.approx(float(alone.info.residual), rel=1e-8)
    # A rank above what the modes allow is clipped, as `als` does.
    clipped = table.fit(1000, 1e-2, 0)
    assert max(clipped.ranks) == 4
    assert "clipped" in clipped.info.reason
    with pytest.raises(ValueError, match="seed among"):
        table.fit(2, 1e-2, 5)


def test_a_sweep_is_set_up_as_a_single_fit_is(problem):
    """Outputs far from the origin, blocks of equal sizes and keys of the old kind, too."""
    psi, x, y = problem
    x, y = np.asarray(x, np.float32), (np.asarray(y) + 1e4).astype(np.float32)
    key = jax.random.PRNGKey(3)
    how = {"alpha": 1e-3, "sweeps": 1, "batch_size": 50}
    fit = sweep.train_ranks(psi, x, y, [2], key, **how).fit(2)
    alone = tensor_edmd.als(psi, x, y, 2, key, **how)
    assert int(fit.result) == int(alone.result)
    for core, other in zip(fit.train.cores, alone.train.cores, strict=True):
        np.testing.assert_allclose(core, other, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_ranks_one_to_sixteen_equal_single_fits():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(200, 6))
    y = np.tanh(x @ rng.normal(size=(6, 3)))
    psi, key = Product.of(Polynomial1D(2, family="hermite"), 6), jax.random.key(0)
    with jax.enable_x64(True):
        x, y = jnp.asarray(x), jnp.asarray(y)
    table = sweep.ranks(psi, x, y, range(1, 17), key, alpha=1e-3, sweeps=2)
    for rank in range(1, 17):
        alone = tensor_edmd.als(psi, x, y, rank, key, alpha=1e-3, sweeps=2)
        fit = table.fit(rank)
        assert fit.ranks == alone.ranks
        np.testing.assert_allclose(fit.predict(x), alone.predict(x), rtol=1e-8, atol=1e-8)


def test_buckets_are_few_and_waste_little():
    sizes = bucket_sizes(range(1, 17))
    assert set(sizes) == set(range(1, 17))
    assert all(size >= rank for rank, size in sizes.items())
    assert len(set(sizes.values())) <= 4
    for power in (3, 4, 6):
        padded = sum(size**power for size in sizes.values())
        assert padded <= 1.4 * sum(rank**power for rank in sizes)
    assert bucket_sizes([3, 1], (1, 2, 4)) == {1: 1, 3: 4}
    assert bucket_sizes([5]) == {5: 5}
    with pytest.raises(ValueError, match="a bucket for rank 5"):
        bucket_sizes([5], [1, 4])


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        ({"ranks": [0]}, {}, "whole ranks from 1"),
        ({"ranks": []}, {}, "at least one rank"),
        ({"key": 0}, {}, "a random key"),
        ({}, {"alpha": -1.0}, "ridges alpha"),
        ({}, {"lanes": "all"}, "lanes in"),
        ({}, {"sweeps": 0}, "sweeps as a whole number"),
        ({}, {"buckets": [0]}, "whole ranks"),
        ({"x": np.full((80, D), np.nan)}, {}, "finite numbers in x"),
        ({"x": np.ones((79, D))}, {}, "as many rows"),
    ],
)
def test_mistakes(problem, change, settings, message):
    psi, x, y = problem
    given = {"psi": psi, "x": x, "y": y, "ranks": [1], "key": jax.random.key(0), **change}
    with pytest.raises(ValueError, match=message):
        sweep.ranks(*given.values(), **settings)
