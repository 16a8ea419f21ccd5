"""The core: pytrees, result codes, R factors, masked QR."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from koopjax import _core


@_core.pytree
class Pair:
    a: object
    size: int = _core.static(default=3)


def test_static_fields_are_structure_and_the_rest_are_leaves():
    pair = Pair(jnp.ones(2), 5)
    leaves, tree = jax.tree.flatten(pair)
    assert len(leaves) == 1
    assert jax.tree.unflatten(tree, leaves).size == 5
    assert tree == jax.tree.structure(Pair(jnp.zeros(2), 5))
    assert tree != jax.tree.structure(Pair(jnp.zeros(2), 6))
    with pytest.raises(AttributeError):
        pair.size = 4  # pyright: ignore


@jax.jit
def merged(parts):
    return _core.qr_r(jnp.concatenate([_core.qr_r(rows) for rows in parts]))


@settings(deadline=None, max_examples=20)
@given(shape=st.sampled_from([(4, 12, 1), (9, 4, 4)]), seed=st.integers(0, 99))
def test_merged_r_factors_are_the_r_factor_of_the_whole(shape, seed):
    n, m, p = shape
    a = np.random.default_rng(seed).normal(size=(n + m, p))
    with jax.enable_x64(True):
        r = np.asarray(merged([a[:n], a[n:]]))
    np.testing.assert_allclose(r.T @ r, a.T @ a, atol=1e-12)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_masked_qr_has_values_and_gradients_of_the_unpadded_one(rank):
    with jax.enable_x64(True):
        a = np.random.default_rng(0).normal(size=(6, 4))
        mask = (np.arange(4) < rank).astype(a.dtype)

        def masked(a):
            q, r = _core.masked_qr(a, mask)
            return jnp.sum(jnp.sin(q[:, :rank])) + jnp.sum(r[:rank, :rank] ** 3)

        def plain(a):
            q, r = jnp.linalg.qr(a[:, :rank])
            return jnp.sum(jnp.sin(q)) + jnp.sum(r**3)

        both = [jax.value_and_grad(f) for f in (masked, plain)]
        run = jax.jit(lambda a: (_core.masked_qr(a, mask), *(f(a) for f in both)))
        (q, r), (value, gradient), (want, of_want) = jax.tree.map(np.asarray, run(a))
        np.testing.assert_allclose(q @ r, a * mask[None, :], atol=1e-12)
        assert not np.any(np.asarray(q)[:, rank:])
        # The sign of a Householder QR is the library's choice; both go through the same one.
        np.testing.assert_allclose(value, want, atol=1e-12)
        np.testing.assert_allclose(gradient, of_want, atol=1e-11)


def test_masked_qr_vmaps_over_ranks():
    a = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)
    masks = np.tril(np.ones((3, 3), np.float32))
    run = jax.jit(jax.vmap(_core.masked_qr, in_axes=(None, 0)))
    q, r = jax.tree.map(np.asarray, run(a, masks))
    for lane, mask in enumerate(masks):
        np.testing.assert_allclose(q[lane] @ r[lane], a * mask[None, :], atol=1e-5)


def test_blocks_pad_with_weight_zero():
    x = jnp.arange(7.0)[:, None]
    rows, weights = _core.blocks(x, 3)
    assert rows.shape == (3, 3, 1)
    assert float(weights.sum()) == 7
    np.testing.assert_array_equal(rows.reshape(-1)[weights.reshape(-1) == 1], x[:, 0])
    with pytest.raises(ValueError, match="expected at least one sample, got an empty batch"):
        _core.blocks(x[:0], 3)


def test_result_codes_carry_advice():
    assert set(_core.RESULTS) == set(range(len(_core.RESULTS)))
    codes = _core.worst(jnp.array([0, 2]), jnp.array([1, 0]))
    np.testing.assert_array_equal(codes, [1, 2])
    _core.check(jnp.zeros(3, jnp.int32))
    _core.check(1, allow=(0, 1))
    with pytest.raises(_core.NumericalError, match="ill-conditioned"):
        _core.check(codes)
    with pytest.raises(ValueError, match="expected a result code"):
        _core.message(77)


def test_check_finite_counts_and_locates():
    _core.check_finite("x", jnp.arange(3))
    with pytest.raises(ValueError, match=r"in x, got 2 NaN or infinite entries.*\(1, 0\)"):
        _core.check_finite("x", jnp.array([[0.0, 1.0], [jnp.nan, jnp.inf]]))


def test_products_do_not_lose_precision():
    a = jax.device_put(np.random.default_rng(2).normal(size=(50, 4)).astype(np.float32))
    np.testing.assert_allclose(_core.gram(a), np.asarray(a, np.float64).T @ a, rtol=1e-5)
    assert _core.tol(jnp.float32) < 1e-5 < _core.tol(jnp.float32, 1e3)
    assert _core.has_float64()
    assert not _core.is_tracing(a)
    assert jax.jit(lambda x: jnp.asarray(_core.is_tracing(x)))(a)


@pytest.mark.parametrize("on_host", [True, False])
def test_roots_of_a_semidefinite_matrix(on_host):
    a = np.random.default_rng(1).normal(size=(5, 3))
    with jax.enable_x64(True):
        m = a @ a.T

        def roots(m):
            bare, floored = _core.semidefinite_root(m), _core.semidefinite_root(m, 1e-6)
            nothing = _core.semidefinite_root(0 * m, 1e-6)
            return bare.half, bare.symmetric, floored.symmetric, floored.inverse, nothing.symmetric

        found = roots(m) if on_host else jax.jit(roots)(m)
        assert isinstance(found[0], np.ndarray) == on_host
        half, symmetric, floored, inverse, nothing = map(np.asarray, found)
        for root in (half, symmetric):
            np.testing.assert_allclose(root @ root.T, m, atol=1e-12)
        np.testing.assert_allclose(floored @ inverse, np.eye(5), atol=1e-10)
        values = np.linalg.eigvalsh(floored @ floored)
        np.testing.assert_allclose(values[:2], 1e-6 * values[-1], rtol=1e-4)
        np.testing.assert_allclose(nothing, 1e-3 * np.eye(5), atol=1e-12)


def test_a_ridge_on_the_host():
    g = np.diag([1.0, 2.0])
    np.testing.assert_allclose(_core.ridge_solve(g, np.ones((2, 1)), 1.0), [[1 / 2], [1 / 3]])
