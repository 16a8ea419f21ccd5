"""TT-SVD and rounding: ε is never exceeded, ranks are exact, clipping is said."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from koopjax import tt
from tests.tt.dense import full, full_matrix, normal

property_based = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**31 - 1)


@pytest.fixture(autouse=True, scope="module")
def wide():
    with jax.enable_x64(True):
        yield


def decaying(seed, modes, complex_=False):
    """A dense tensor whose unfoldings have singular values over many decades."""
    rng = np.random.default_rng(seed)
    a = np.zeros(modes)
    for j in range(12):
        vectors = [rng.normal(size=n) for n in modes]
        if complex_:
            vectors = [v + 1j * rng.normal(size=v.shape) for v in vectors]
        term = vectors[0]
        for v in vectors[1:]:
            term = np.multiply.outer(term, v)
        a = a + 10.0 ** (-1.2 * j) * term
    return a


def doubled(train):
    """The sum of a train with itself, in NumPy."""
    first, *inner, last = map(np.asarray, train.cores)
    blocks = [np.zeros((2 * c.shape[0], c.shape[1], 2 * c.shape[2]), c.dtype) for c in inner]
    for core, block in zip(inner, blocks, strict=True):
        block[: len(core), :, : core.shape[2]] = block[len(core) :, :, core.shape[2] :] = core
    ends = np.concatenate([first, first], axis=2), np.concatenate([last, last])
    return tt.TensorTrain([ends[0], *blocks, ends[1]])


def drawn(modes, rank, dtype):
    rng, ranks = np.random.default_rng(0), [1, *[rank] * (len(modes) - 1), 1]
    shapes = zip(ranks[:-1], modes, ranks[1:], strict=True)
    complex_ = np.issubdtype(dtype, np.complexfloating)
    return tt.TensorTrain([normal(rng, *s, complex_=complex_).astype(dtype) for s in shapes])


def error(train, a):
    return np.linalg.norm(full(train) - a) / np.linalg.norm(a)


modes_of = st.sampled_from([(4, 5, 6), (3, 4, 3, 4)])
tolerances = st.floats(-13, 0).map(lambda e: 10.0**e)


@property_based
@given(seeds, modes_of, tolerances, st.booleans())
def test_from_dense_keeps_its_tolerance(seed, modes, rtol, complex_):
    a = decaying(seed, modes, complex_)
    train, info = tt.from_dense(a, rtol=rtol, return_info=True)
    assert error(train, a) <= rtol
    assert float(info.error) <= rtol
    assert abs(float(info.error) - error(train, a)) <= 1e-13
    assert train.ranks == tuple(info.ranks)
    assert all(r <= m for r, m in zip(train.ranks, tt.feasible_ranks(modes), strict=True))


@property_based
@given(seeds, modes_of, tolerances, st.booleans())
def test_round_keeps_its_tolerance(seed, modes, rtol, padded):
    rng = np.random.default_rng(seed)
    rank = 6
    ranks = [1, *[rank] * (len(modes) - 1), 1]
    # Ranks decay on both sides of each bond, and some lie above what the modes allow.
    weights = [10.0 ** -np.arange(r) for r in ranks]
    total = tt.TensorTrain(
        [
            weights[k][:, None, None] * rng.normal(size=(ranks[k], n, ranks[k + 1]))
            for k, n in enumerate(modes)
        ]
    )
    want = full(total)
    if padded:
        total = tt.pad(total, rank + 1)
    rounded = tt.round(total, rtol=rtol)
    assert type(rounded) is type(total)
    plain = tt.unpad(rounded) if padded else rounded
    assert error(plain, want) <= rtol


@pytest.mark.parametrize("rtol", [1e-7, 1e-6, 1e-5, 1e-3, 0.1])
def test_float32_keeps_its_tolerance_down_to_its_own_digits(rtol):
    a = decaying(0, (4, 5, 6)).astype(np.float32)
    train = tt.from_dense(a, rtol=rtol)
    assert train.dtype == np.float32
    in_float64 = tt.TensorTrain([np.asarray(c, np.float64) for c in train.cores])
    assert error(in_float64, a.astype(np.float64)) <= max(rtol, 3e-7)
    rounded = tt.round(doubled(train), rtol=rtol)
    assert rounded.dtype == np.float32
    assert max(rounded.ranks) <= max(train.ranks)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex64, np.complex128])
def test_exact_ranks_are_found_and_the_dtype_is_kept(dtype):
    train = drawn((4, 5, 6, 4), 3, dtype)
    for found in (tt.from_dense(full(train)), tt.round(doubled(train))):
        assert found.ranks == (1, 3, 3, 3, 1)
        assert found.dtype == dtype


def test_rounding_is_no_worse_than_the_bound_and_maximum_rank_wins():
    a = decaying(3, (4, 5, 6))
    train, info = tt.from_dense(a, max_rank=2, rtol=1e-12, return_info=True)
    tails = []
    for k in (1, 2):
        s = np.linalg.svd(a.reshape(np.prod(a.shape[:k]), -1), compute_uv=False)
        tails.append(np.sum(s[2:] ** 2))
    assert train.ranks == (1, 2, 2, 1)
    assert error(train, a) <= np.sqrt(sum(tails)) / np.linalg.norm(a) * (1 + 1e-12)
    assert np.isclose(float(info.error), error(train, a))
    assert not info.clipped


def test_clipping_is_said():
    a = decaying(0, (2, 3, 2))
    train, info = tt.from_dense(a, max_rank=7, return_info=True)
    assert train.ranks == (1, 2, 2, 1)
    assert info.clipped
    assert "clipped" in info.message
    assert "(1, 2, 2, 1)" in info.message
    _, info = tt.round(train, max_rank=2, return_info=True)
    assert not info.clipped
    assert "clipped" not in info.message
    for candidate in (train, tt.pad(train, 5)):
        _, info = tt.truncate(candidate, 7, return_info=True)
        assert info.clipped
        assert "clipped" in info.message
        _, info = tt.truncate(candidate, 1, return_info=True)
        assert not info.clipped
    assert tt.clip_ranks((2, 3, 2), 2) == ((1, 2, 2, 1), None)
    ranks, said = tt.clip_ranks((2, 3, 2), (2, 5))
    assert ranks == (1, 2, 2, 1)
    assert said is not None
    assert "at most" in said


def test_feasible_ranks():
    assert tt.feasible_ranks((2, 3, 2, 2)) == (1, 2, 4, 2, 1)
    assert tt.feasible_ranks((5,)) == (1, 1)
    # Exact, however large the product is.
    assert tt.feasible_ranks((2,) * 200)[100] == 2**100


def test_matrices():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(4, 6)), rng.normal(size=(3, 5))
    a = np.kron(first, second) + 1e-3 * rng.normal(size=(12, 30))
    for rtol in (1e-12, 1e-4, 1e-1):
        matrix = tt.matrix_from_dense(a, (4, 3), (6, 5), rtol=rtol)
        assert matrix.row_modes == (4, 3)
        assert matrix.column_modes == (6, 5)
        gap = np.linalg.norm(full_matrix(matrix) - a)
        assert gap <= rtol * np.linalg.norm(a)
    assert matrix.ranks == (1, 1, 1)
    whole = tt.matrix_from_dense(a, (4, 3), (6, 5))
    rounded, info = tt.round(whole, rtol=1e-1, return_info=True)
    assert isinstance(rounded, tt.TTMatrix)
    assert rounded.ranks == (1, 1, 1)
    gap = np.linalg.norm(full_matrix(rounded) - a)
    assert np.isclose(float(info.error), gap / np.linalg.norm(a))


def test_zeros_and_single_modes():
    train = tt.from_dense(np.zeros((3, 4, 2)))
    assert train.ranks == (1, 1, 1, 1)
    assert not full(train).any()
    assert float(tt.norm(train)) == 0
    assert tt.round(doubled(train)).ranks == (1, 1, 1, 1)
    vector = np.arange(5.0)
    assert np.array_equal(full(tt.from_dense(vector)), vector)


def test_two_hundred_cores_round():
    train = drawn((2,) * 200, 4, np.float64)
    ranks = np.minimum(train.ranks, tt.feasible_ranks(train.modes)[:4] + (4,) * 193 + (4, 4, 2, 1))
    assert tt.round(doubled(train), rtol=1e-10).ranks == tuple(ranks)
