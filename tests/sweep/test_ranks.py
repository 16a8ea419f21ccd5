"""Ranks of a reduced-rank regression from one set of statistics, against a solve a rank."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from koopjax import edmd, sweep

P, Q = 8, 5


@pytest.fixture
def snapshots():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, P))
    y = x @ rng.normal(size=(P, Q)) @ np.diag(0.5 ** np.arange(Q)) + 0.1 * rng.normal(size=(60, Q))
    return x, y


def metrics():
    root = np.random.default_rng(1).normal(size=(Q, Q))
    return {"identity": None, "full": root @ root.T}


def statistics(kind, x, y):
    with jax.enable_x64(True):
        return kind.from_batch(jax.device_put(x), jax.device_put(y))


def relative(x, y, k, metric):
    m = np.eye(Q) if metric is None else metric
    rest = x @ k - y
    return np.sqrt(np.trace(rest @ m @ rest.T) / np.trace(y @ m @ y.T))


@pytest.mark.parametrize("kind", [edmd.Gram, edmd.RFactor])
@pytest.mark.parametrize("metric", ["identity", "full"])
def test_all_ranks_equal_single_solves(snapshots, kind, metric):
    x, y = snapshots
    m = metrics()[metric]
    stats, held = statistics(kind, x[:40], y[:40]), statistics(kind, x[40:], y[40:])
    table = sweep.ranks(stats, metric=m, alpha=[1e-3, 1.0], validation=held)
    assert [(row["alpha"], row["rank"]) for row in table] == [
        (alpha, rank) for alpha in (1e-3, 1.0) for rank in range(1, Q + 1)
    ]
    for row in table:
        alpha, rank = row["alpha"], row["rank"]
        alone = edmd.solve(stats, edmd.ReducedRank(rank, m, alpha))
        left, right = (np.asarray(a) for a in table.fit(rank, alpha))
        assert left.shape == (P, rank)
        assert row["numbers"] == left.size + right.size
        np.testing.assert_allclose(left @ right, alone.value, atol=1e-12)
        assert row["error"] == pytest.approx(relative(x[:40], y[:40], left @ right, m), rel=1e-9)
        held_error = relative(x[40:], y[40:], left @ right, m)
        assert row["validation_error"] == pytest.approx(held_error, rel=1e-9)
        assert row["result"] == int(alone.result) == 0
    errors = table.where(alpha=1e-3)["error"]
    assert (np.diff(errors) < 1e-12).all()


def test_small_errors_keep_their_digits_with_an_r_factor(snapshots):
    x, _ = snapshots
    y = x @ np.random.default_rng(2).normal(size=(P, Q))
    exact = sweep.ranks(statistics(edmd.RFactor, x, y), [Q])
    assert exact["error"][0] < 1e-13


def test_scores_of_masked_factors(snapshots):
    x, y = snapshots
    stats = statistics(edmd.Gram, x, y)
    with jax.enable_x64(True):
        xs = jnp.asarray(x)

    def score(left, right):
        return {"size": jnp.sum((xs @ left @ right) ** 2), "k": left @ right}

    table = sweep.ranks(stats, [1, 3], alpha=[0.1, 0.2], score=score)
    for row, k in zip(table, table.arrays["k"], strict=True):
        left, right = table.fit(row["rank"], row["alpha"])
        np.testing.assert_allclose(k, np.asarray(left) @ np.asarray(right), atol=1e-12)
        assert row["size"] == pytest.approx(np.sum((x @ k) ** 2))
    alone = sweep.ranks(stats, [2], score=lambda left, right: left[0] @ right[:, 0])
    assert set(alone.columns) >= {"score", "error", "numbers"}


def test_float32_stays_and_bad_data_are_flagged(snapshots):
    x, y = (np.asarray(a, np.float32) for a in snapshots)
    stats = edmd.Gram.from_batch(jnp.asarray(x), jnp.asarray(y))
    table = sweep.ranks(stats, [2])
    assert table.fit(2)[0].dtype == jnp.float32
    y[0, 0] = np.nan
    flagged = sweep.ranks(edmd.Gram.from_batch(jnp.asarray(x), jnp.asarray(y)), [2])
    assert flagged["result"].tolist() == [4]
    assert np.isnan(flagged["error"]).all()


@pytest.mark.parametrize(
    ("ranks", "settings", "message"),
    [
        ([0], {}, "whole ranks from 1 to 5, got 0"),
        ([6], {}, "whole ranks from 1 to 5, got 6"),
        ([1.5], {}, "whole ranks"),
        (["one"], {}, "whole ranks"),
        ([], {}, "at least one rank"),
        (3, {}, "a sequence of ranks"),
        ([1], {"alpha": -1.0}, "ridges alpha of at least 0"),
        ([1], {"alpha": []}, "ridges alpha"),
        ([1], {"metric": np.eye(3)}, "a metric of shape"),
    ],
)
def test_mistakes(snapshots, ranks, settings, message):
    stats = statistics(edmd.Gram, *snapshots)
    with pytest.raises(ValueError, match=message):
        sweep.ranks(stats, ranks, **settings)


def test_mistakes_of_the_call(snapshots):
    stats = statistics(edmd.Gram, *snapshots)
    with pytest.raises(ValueError, match="all else by name"):
        sweep.ranks(stats, [1], None)
    with pytest.raises(ValueError, match="statistics and ranks, or a dictionary"):
        sweep.ranks(object(), [1])
    with pytest.raises(ValueError, match="alpha among"):
        sweep.ranks(stats, [1]).fit(1, 0.5)
    other = edmd.Gram.empty(3, 2)
    with pytest.raises(ValueError, match="validation statistics of sizes"):
        sweep.ranks(stats, [1], validation=other)
