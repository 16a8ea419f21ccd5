"""Entries, slices, partial contractions and quantised trains against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from koopjax import tt

MODES = (3, 4, 2, 5)


@pytest.fixture(autouse=True, scope="module")
def wide():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def pair(wide):
    train = tt.random(jax.random.key(0), MODES, 3, jnp.complex128)
    return train, np.asarray(train.to_dense())


def same(got, want):
    got = np.asarray(got.to_dense() if isinstance(got, tt.TensorTrain) else got)
    assert got.shape == np.shape(want)
    assert np.linalg.norm(got - want) <= 1e-12 * max(np.linalg.norm(want), 1e-3)


@pytest.mark.parametrize(
    "index",
    [
        np.s_[1],
        np.s_[1, :, 0, 2:4],
        np.s_[..., -1],
        np.s_[0, ..., 1],
        np.s_[:, 1:3],
        np.s_[::2, ::-1],
        np.s_[1, 2, 1, 4],
        np.s_[:, 1, 1, :],
        np.s_[...],
    ],
)
def test_slices(pair, index):
    train, dense = pair
    same(train[index], dense[index])
    same(tt.slice_(train, index), dense[index])


def test_entries(pair):
    train, dense = pair
    rng = np.random.default_rng(0)
    indices = np.stack([rng.integers(0, n, 50) for n in MODES], axis=1)
    same(tt.entries(train, indices), dense[tuple(indices.T)])
    same(jax.jit(tt.entries)(train, jnp.asarray(indices)), dense[tuple(indices.T)])


def test_partial_contraction(pair):
    train, dense = pair
    rng = np.random.default_rng(0)
    v = [rng.normal(size=n) for n in MODES]
    same(tt.contract_modes(train, {1: v[1]}), np.einsum("abcd,b->acd", dense, v[1]))
    same(
        tt.contract_modes(train, {0: v[0], -1: v[3]}), np.einsum("abcd,a,d->bc", dense, v[0], v[3])
    )
    same(tt.contract_modes(train, {}), dense)
    same(
        tt.contract_modes(train, dict(enumerate(v))),
        np.einsum("abcd,a,b,c,d->", dense, *v),
    )
    for wrong in ({4: v[0]}, {0: v[1]}, {3: v[3], -1: v[3]}):
        with pytest.raises(ValueError, match="expected"):
            tt.contract_modes(train, wrong)


@pytest.mark.parametrize("base", [2, 3])
def test_quantize_is_a_dense_reshape(base):
    modes = (base**2, base, base**3)
    train = tt.random(jax.random.key(1), modes, 3, jnp.float64)
    digits = tt.quantize(train, base)
    assert digits.modes == (base,) * 6
    assert all(r <= m for r, m in zip(digits.ranks, tt.feasible_ranks((base,) * 6), strict=True))
    same(digits, np.asarray(train.to_dense()).reshape((base,) * 6))


def test_quantized_functions_have_small_ranks_and_keep_a_tolerance():
    x = np.arange(1024) / 1024
    for values, rank in [(np.exp(x), 1), (np.sin(5 * x), 2), (x**2, 3)]:
        assert max(tt.quantize(tt.from_dense(values), rtol=1e-12).ranks) == rank
    values = 1 / (x + 0.01)
    for rtol in (1e-2, 1e-6):
        train = tt.quantize(tt.from_dense(values), rtol=rtol)
        gap = np.linalg.norm(np.asarray(train.to_dense()).ravel() - values)
        assert gap <= rtol * np.linalg.norm(values)


def test_quantized_matrices():
    matrix = tt.random_matrix(jax.random.key(2), (4, 8), (4, 1), 3, jnp.float64)
    digits = tt.quantize(matrix)
    assert digits.row_modes == (2, 2, 2, 2, 2)
    assert digits.column_modes == (2, 2, 1, 1, 1)
    dense = np.asarray(matrix.to_dense())
    assert np.allclose(digits.to_dense(), dense, rtol=0, atol=1e-12 * np.linalg.norm(dense))
    # A circulant shift is a matrix of ranks 2 in quantised form.
    shift = tt.matrix_from_dense(np.roll(np.eye(64), 1, axis=1), (64,), (64,))
    assert max(tt.quantize(shift).ranks) == 2


def test_what_cannot_be_taken():
    train = tt.random(jax.random.key(0), (3, 4), 2)
    for index in (3, (0, -5), (0, 0, 0), (..., ...)):
        with pytest.raises(IndexError, match="expected"):
            train[index]
    for index in (np.s_[1:1], "a", np.asarray([1, 2])):
        with pytest.raises(ValueError, match="expected"):
            train[index]
    for indices in (np.zeros((3, 3), int), np.zeros((3, 2)), np.asarray([[0, 4]])):
        with pytest.raises(ValueError, match="expected"):
            tt.entries(train, indices)
    with pytest.raises(ValueError, match="powers of 2"):
        tt.quantize(train)
