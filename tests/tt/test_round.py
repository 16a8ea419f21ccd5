"""TT-SVD and rounding: ε is never exceeded, ranks are exact, clipping is said."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from koopjax import tt

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


def full(train):
    """The tensor in NumPy, so that ranks of every size compile nothing."""
    out = np.asarray(train.cores[0])
    for core in train.cores[1:]:
        out = np.tensordot(out, np.asarray(core), axes=1)
    return out[0, ..., 0]


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
    rounded = tt.round(tt.add(train, train), rtol=rtol)
    assert rounded.dtype == np.float32
    assert max(rounded.ranks) <= max(train.ranks)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex64, np.complex128])
def test_exact_ranks_are_found_and_the_dtype_is_kept(dtype):
    train = tt.random(jax.random.key(0), (4, 5, 6, 4), 3, dtype)
    for found in (tt.from_dense(train.to_dense()), tt.round(tt.add(train, train))):
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
        gap = np.linalg.norm(np.asarray(matrix.to_dense()) - a)
        assert gap <= rtol * np.linalg.norm(a)
    assert matrix.ranks == (1, 1, 1)
    full = tt.matrix_from_dense(a, (4, 3), (6, 5))
    rounded, info = tt.round(full, rtol=1e-1, return_info=True)
    assert isinstance(rounded, tt.TTMatrix)
    assert rounded.ranks == (1, 1, 1)
    gap = np.linalg.norm(np.asarray(rounded.to_dense()) - a)
    assert np.isclose(float(info.error), gap / np.linalg.norm(a))


def test_zeros_and_single_modes():
    train = tt.from_dense(jnp.zeros((3, 4, 2)))
    assert train.ranks == (1, 1, 1, 1)
    assert not np.asarray(train.to_dense()).any()
    assert float(tt.norm(train)) == 0
    assert tt.round(tt.add(train, train)).ranks == (1, 1, 1, 1)
    vector = np.arange(5.0)
    assert np.array_equal(tt.from_dense(vector).to_dense(), vector)


def test_two_hundred_cores_round():
    train = tt.random(jax.random.key(0), (2,) * 200, 4, jnp.float64)
    assert tt.round(tt.add(train, train), rtol=1e-10).ranks == train.ranks
