"""Laws of the statistics: a monoid, weights as repeated samples, submatrices, folds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from koopjax import edmd
from koopjax.observables import Concat, Identity, Monomials, Select

KINDS = [edmd.Gram, edmd.RFactor]


def moments(statistics):
    """`[Ψx Ψy]ᵀ [Ψx Ψy]` in NumPy, whatever the kind."""
    g = statistics.to_gram()
    cross = np.asarray(g.cross)
    return np.block([[np.asarray(g.gram), cross], [cross.T, np.asarray(g.target_gram)]])


def lifted(seed, n, p=3, q=2):
    a = np.random.default_rng(seed).normal(size=(n, p + q)).astype(np.float32)
    return a[:, :p], a[:, p:], a.T.astype(np.float64) @ a


def close(a, b, scale=1.0):
    np.testing.assert_allclose(a, b, atol=2e-5 * max(scale, np.abs(b).max()))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15, deadline=None)
@given(sizes=st.permutations([1, 4, 7]), seed=st.integers(0, 99))
def test_statistics_are_a_monoid(kind, sizes, seed):
    parts = [lifted(seed + i, n) for i, n in enumerate(sizes)]
    a, b, c = (kind.from_batch(x, y) for x, y, _ in parts)
    unit = kind.empty(3, 2, jnp.float32)
    whole = sum(m for _, _, m in parts)
    close(moments(a.merge(b).merge(c)), whole)
    close(moments(a.merge(b.merge(c))), whole)
    close(moments(c.merge(a).merge(b)), whole)
    close(moments(a.merge(unit)), moments(a))
    close(moments(unit.merge(a)), moments(a))
    assert float(a.merge(b).merge(c).count) == sum(sizes)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=10, deadline=None)
@given(weights=st.lists(st.integers(0, 3), min_size=6, max_size=6), seed=st.integers(0, 99))
def test_a_weight_repeats_a_sample(kind, weights, seed):
    x, y, _ = lifted(seed, 6)
    weighted = kind.from_batch(x, y, np.asarray(weights, np.float32))
    repeated = np.repeat(np.concatenate([x, y], axis=1), weights, axis=0).astype(np.float64)
    close(moments(weighted), repeated.T @ repeated, 1.0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_of_weight_zero_may_overflow(kind):
    x = np.array([[1.0, 2.0], [np.inf, np.nan]], np.float32)
    statistics = kind.from_batch(x, x, np.array([1.0, 0.0], np.float32))
    assert np.isfinite(moments(statistics)).all()
    assert float(statistics.count) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_update_is_merge_of_a_batch(kind):
    (x, y, m), (x2, y2, m2) = lifted(0, 9), lifted(1, 4)
    close(moments(kind.from_batch(x, y).update(jnp.asarray(x2), jnp.asarray(y2))), m + m2)


@pytest.mark.parametrize("kind", KINDS)
def test_select_is_the_smaller_dictionary(kind):
    x, y, _ = lifted(3, 20, 5, 3)
    rows, cols = jnp.array([4, 0, 2]), jnp.array([2, 0])
    chosen = kind.from_batch(x, y).select(rows, cols)
    close(moments(chosen), moments(kind.from_batch(x[:, [4, 0, 2]], y[:, [2, 0]])))
    assert chosen.sizes == (3, 2)
    with pytest.raises(ValueError, match="indices below 5"):
        kind.from_batch(x, y).select(jnp.array([5]))


@pytest.mark.parametrize("kind", KINDS)
def test_scale_multiplies_the_weights(kind):
    x, y, m = lifted(3, 20)
    close(moments(kind.from_batch(x, y).scale(0.25)), 0.25 * m)


def test_shapes_that_do_not_pair_are_refused():
    with pytest.raises(ValueError, match="same n"):
        edmd.Gram.from_batch(np.ones((3, 2), np.float32), np.ones((4, 2), np.float32))
    with pytest.raises(ValueError, match="sizes"):
        edmd.Gram.empty(2, 2).merge(edmd.Gram.empty(3, 2))
    with pytest.raises(ValueError, match="Gram"):
        edmd.Gram.empty(2, 2).merge(edmd.RFactor.empty(2, 2))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_size", [None, 7, 50])
def test_accumulation_in_blocks_is_one_pass(kind, batch_size, rng):
    x = rng.normal(size=(50, 2)).astype(np.float32)
    y = np.tanh(x)
    got = edmd.accumulate(Monomials(2), x, y, statistics=kind, batch_size=batch_size)
    psi = lambda a: np.asarray(Monomials(2)(a), np.float64)
    rows = np.concatenate([psi(x), psi(y)], axis=1)
    assert got.dtype == jnp.float64
    np.testing.assert_allclose(moments(got), rows.T @ rows, rtol=1e-11, atol=1e-11)
    assert float(got.count) == 50


def test_a_dictionary_may_hold_numpys_own_integers(rng):
    x = rng.normal(size=(40, 3)).astype(np.float32)
    psi = Select(Monomials(2), np.array([0, 2, 5], np.int64))
    rows = np.stack([np.ones(40), x[:, 1], x[:, 0] * x[:, 1]], axis=1)
    for pairs in ((x, x), (iter([(x, x)]), None)):
        got = edmd.accumulate(psi, *pairs, target=Identity())
        np.testing.assert_allclose(np.asarray(got.gram), rows.T @ rows, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_gives_what_arrays_give(kind, rng):
    x = rng.normal(size=(53, 2)).astype(np.float32)
    y = np.tanh(x)
    # Partial and larger batches, weights in one of them, a generator that can be read once.
    cuts = [(0, 16), (16, 23), (23, 53)]
    stream = ((x[a:b], y[a:b], np.ones(b - a, np.float32)) for a, b in cuts)
    got = edmd.accumulate(Monomials(2), stream, statistics=kind, target=Identity())
    expected = edmd.accumulate(Monomials(2), x, y, statistics=kind, target=Identity())
    np.testing.assert_allclose(moments(got), moments(expected), rtol=1e-12, atol=1e-12)
    assert float(got.count) == 53


@pytest.mark.parametrize("kind", KINDS)
def test_folds_add_up_and_leave_out(kind, rng):
    x = rng.normal(size=(23, 2)).astype(np.float32)
    y = np.tanh(x)
    numbers = rng.permutation(np.arange(23) % 3)
    for folds, of in ((3, np.arange(23) % 3), (numbers, numbers)):
        stacked = edmd.accumulate(Monomials(1), x, y, statistics=kind, folds=folds)
        assert stacked.folds == 3
        others = edmd.leave_one_out(stacked)
        whole = edmd.accumulate(Monomials(1), x, y, statistics=kind)
        np.testing.assert_allclose(moments(edmd.total(stacked)), moments(whole), atol=1e-12)
        lifted_x, lifted_y = (np.c_[np.ones(23), a.astype(np.float64)] for a in (x, y))
        for fold in range(3):
            rest = np.concatenate([lifted_x, lifted_y], axis=1)[of != fold]
            lane = jax.tree.map(lambda a, f=fold: np.asarray(a)[f], others)
            with jax.enable_x64(True):
                np.testing.assert_allclose(moments(lane), rest.T @ rest, atol=1e-12)


def test_one_evaluation_where_both_sides_are_the_same(rng):
    x = rng.normal(size=(12, 2)).astype(np.float32)
    got = edmd.accumulate(Monomials(2), x, x)
    np.testing.assert_array_equal(np.asarray(got.gram), np.asarray(got.cross))
    psi = np.asarray(Monomials(2)(x), np.float64)
    np.testing.assert_allclose(np.asarray(got.gram), psi.T @ psi, rtol=1e-12, atol=1e-12)


def test_float32_sums_by_request(rng):
    x = rng.normal(size=(12, 2)).astype(np.float32)
    got = edmd.accumulate(Monomials(2), x, x + 1, accumulate_dtype=jnp.float32)
    assert got.dtype == jnp.float32
    assert edmd.accumulate(Monomials(2), x, x + 1).astype(jnp.float32).gram.dtype == jnp.float32


def test_half_precision_is_summed_in_more(rng):
    x = jnp.asarray(rng.normal(size=(12, 2)), jnp.bfloat16)
    assert edmd.Gram.from_batch(x, x).dtype == jnp.float32
    koopman = edmd.fit(Monomials(1), x, x, solver=edmd.Ridge(1e-3))
    assert koopman.matrix.dtype == jnp.bfloat16


def test_nothing_is_recompiled_for_the_same_shapes(rng):
    from koopjax.edmd import _accumulate, _solvers

    x = rng.normal(size=(40, 2)).astype(np.float32)
    for run in range(3):
        edmd.fit(Monomials(2), x + run, x * (1 + run), solver=edmd.Ridge(0.1 * run))
        stream = ((x[i : i + 10] + run, x[i : i + 10]) for i in range(0, 35, 10))
        edmd.fit(Concat(Monomials(1)), stream, target=Identity())
        sizes = (
            _accumulate.from_arrays._cache_size(),
            _accumulate._absorb_batch._cache_size(),
            _solvers._compute._cache_size(),
        )
        first = sizes if run == 0 else first
        assert sizes == first


@pytest.mark.parametrize("kind", KINDS)
def test_a_monoid_of_float64_made_by_hand_where_x64_is_off(kind):
    rng = np.random.default_rng(0)
    a = 1 + 1e-9 * rng.normal(size=(12, 5))  # nothing of the noise is left in float32
    whole = kind.empty(3, 2, jnp.float64)
    assert whole.dtype == whole.count.dtype == np.float64
    for rows in np.split(a, 3):
        whole = whole.merge(kind.from_batch(rows[:, :3], rows[:, 3:]))
    assert whole.dtype == whole.count.dtype == np.float64
    np.testing.assert_allclose(moments(whole), a.T @ a, rtol=1e-14)
    updated = kind.empty(3, 2, "float64").update(a[:, :3], a[:, 3:])
    np.testing.assert_allclose(moments(updated), a.T @ a, rtol=1e-14)
    assert whole.of_targets(1).dtype == np.float64
    assert (
        kind.from_batch(a[:, :3].astype(np.float32), a[:, 3:].astype(np.float32)).dtype
        == np.float32
    )
