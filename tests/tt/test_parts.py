"""Entries, slices and quantised trains against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from koopjax import tt
from tests.tt.dense import assert_close, full, full_matrix, normal

MODES = (3, 4, 2, 5)


@pytest.fixture(autouse=True, scope="module")
def wide():
    with jax.enable_x64(True):
        yield


def drawn(modes, rank, complex_=False, columns=None):
    """A train or a matrix with cores in NumPy."""
    rng, ranks = np.random.default_rng(0), [1, *[rank] * (len(modes) - 1), 1]
    sizes = [(n,) for n in modes] if columns is None else list(zip(modes, columns, strict=True))
    shapes = [(r, *n, s) for r, n, s in zip(ranks[:-1], sizes, ranks[1:], strict=True)]
    kind = tt.TensorTrain if columns is None else tt.TTMatrix
    return kind([normal(rng, *shape, complex_=complex_) for shape in shapes])


@pytest.fixture(scope="module")
def pair(wide):
    train = drawn(MODES, 3, complex_=True)
    return train, full(train)


def assert_same(got, want):
    assert_close(got if isinstance(got, tt.TensorTrain) else np.asarray(got), want)


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
    assert_same(train[index], dense[index])


def test_entries(pair):
    train, dense = pair
    rng = np.random.default_rng(0)
    indices = np.stack([rng.integers(0, n, 50) for n in MODES], axis=1)
    assert_same(jax.jit(tt.entries)(train, jnp.asarray(indices)), dense[tuple(indices.T)])


@pytest.mark.parametrize("base", [2, 3])
def test_quantize_is_a_dense_reshape(base):
    modes = (base**2, base, base**3)
    train = drawn(modes, 3)
    digits = tt.quantize(train, base)
    assert digits.modes == (base,) * 6
    assert all(r <= m for r, m in zip(digits.ranks, tt.feasible_ranks((base,) * 6), strict=True))
    assert_same(digits, full(train).reshape((base,) * 6))


def test_quantized_functions_have_small_ranks_and_keep_a_tolerance():
    x = np.arange(1024) / 1024
    for values, rank in [(np.exp(x), 1), (np.sin(5 * x), 2), (x**2, 3)]:
        assert max(tt.quantize(tt.from_dense(values), rtol=1e-12).ranks) == rank
    values = 1 / (x + 0.01)
    for rtol in (1e-2, 1e-6):
        train = tt.quantize(tt.from_dense(values), rtol=rtol)
        gap = np.linalg.norm(full(train).ravel() - values)
        assert gap <= rtol * np.linalg.norm(values)


def test_quantized_matrices():
    matrix = drawn((4, 8), 3, columns=(4, 1))
    digits = tt.quantize(matrix)
    assert digits.row_modes == (2, 2, 2, 2, 2)
    assert digits.column_modes == (2, 2, 1, 1, 1)
    assert_close(digits, full_matrix(matrix))
    # A circulant shift is a matrix of ranks 2 in quantised form.
    shift = tt.matrix_from_dense(np.roll(np.eye(64), 1, axis=1), (64,), (64,))
    assert max(tt.quantize(shift).ranks) == 2


def test_what_cannot_be_taken():
    train = drawn((3, 4), 2)
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
