"""Trains whose cores lie far from 1 while their product does not: every verb against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from koopjax import tt

MODES, RANKS, ORDER = (3,) * 6, (1, 2, 2, 2, 2, 2, 1), 6
FAR = np.array([1e25, 1e15, 1e-30, 1e-5, 1e-10, 1e5])


def plain(seed, dtype=np.float64):
    rng = np.random.default_rng(seed)
    shapes = zip(RANKS[:-1], MODES, RANKS[1:], strict=True)
    cores = [rng.normal(size=shape) for shape in shapes]
    if np.issubdtype(dtype, np.complexfloating):
        cores = [core + 1j * rng.normal(size=core.shape) for core in cores]
    return cores


def full(cores):
    out = cores[0]
    for core in cores[1:]:
        out = np.tensordot(out, core, axes=1)
    return out[0, ..., 0]


def far(cores, dtype=np.float32):
    """The same tensor with cores far apart, and with a bond whose two ranks are far apart."""
    cores = [core * factor for core, factor in zip(cores, FAR, strict=True)]
    gauge = np.array([1e15, 1e-15])
    cores[3], cores[4] = cores[3] * gauge, cores[4] / gauge[:, None, None]
    return tt.TensorTrain([jnp.asarray(core, dtype) for core in cores])


def close(got, want, tolerance=1e-5):
    got = np.asarray(got)
    assert np.linalg.norm(got - want) <= tolerance * np.linalg.norm(want)


@pytest.mark.parametrize("dtype", [np.float32, np.complex64])
def test_verbs_on_trains_far_from_one(dtype):
    cores, others = plain(0, dtype), plain(1, dtype)
    a, b, x, y = far(cores, dtype), far(others, dtype), full(cores), full(others)
    kinds = [(a, b, lambda t: t), (tt.pad(a, 3), tt.pad(b, 2), tt.unpad)]
    for first, second, back in kinds:
        assert float(tt.norm(first)) == pytest.approx(np.linalg.norm(x), rel=1e-5)
        assert float(tt.log_norm(first)) == pytest.approx(np.log(np.linalg.norm(x)), rel=1e-5)
        size = np.linalg.norm(x) * np.linalg.norm(y)
        assert abs(complex(tt.dot(first, second)) - np.vdot(x, y)) <= 1e-5 * size
        close(back(tt.add(first, second)).to_dense(), x + y)
        close(back(tt.hadamard(first, second)).to_dense(), x * y)
        close(back(tt.scale(first, 1e10)).to_dense(), 1e10 * x)
        close(back(tt.orthogonalize(first, 2)).to_dense(), x)
        cut, info = tt.truncate(first, 2, return_info=True)
        close(back(cut).to_dense(), x)
        assert float(info.error) < 1e-5
        values = np.asarray(tt.singular_values(first)[2])
        want = np.linalg.svd(x.reshape(27, 27), compute_uv=False)
        close(values[:2], want[:2])
    rounded, info = tt.round(tt.subtract(tt.add(a, b), b), rtol=1e-4, return_info=True)
    assert rounded.ranks == RANKS
    close(rounded.to_dense(), x, 1e-3)
    index = np.random.default_rng(2).integers(0, 3, (20, ORDER))
    close(tt.entries(a, index), x[tuple(index.T)])
    close(a[1, :, 2].to_dense(), x[1, :, 2])
    matrix = tt.diagonal_matrix(a)
    close(tt.matvec(matrix, b).to_dense(), x * y)
    close(tt.diagonal(tt.matmul(matrix, tt.diagonal_matrix(b))).to_dense(), x * y)
    rows = jnp.ones((1, 3**ORDER), dtype)
    close(tt.apply_matrix(matrix, rows)[0], x.ravel())
    close(tt.quantize(a, base=3).to_dense(), x)


def test_float64_beyond_its_squares():
    cores = plain(3)
    with jax.enable_x64(True):
        factors = [1e200, 1e150, 1e-200, 1e-150, 1e-100, 1e100]
        train = tt.TensorTrain([jnp.asarray(c * f) for c, f in zip(cores, factors, strict=True)])
        x = full(cores)
        for found in (train, tt.round(train, 1e-12), tt.truncate(train, 2)):
            close(found.to_dense(), x, 1e-12)
            assert float(tt.norm(found)) == pytest.approx(np.linalg.norm(x), rel=1e-12)
        dense = np.outer([1e200, 1.0], [1e-50, 1e80])
        close(np.asarray(tt.from_dense(dense).to_dense()) / 1e280, dense / 1e280, 1e-12)


def test_what_leaves_the_dtype_is_infinite_or_zero_and_its_logarithm_is_not():
    huge = tt.TensorTrain([jnp.full((1, 2, 1), 1e30)] * 3)
    tiny = tt.TensorTrain([jnp.full((1, 2, 1), 1e-30)] * 3)
    for train, norm in ((huge, np.inf), (tiny, 0.0)):
        sign = 90 if norm else -90
        for one in (train, tt.pad(train, 2), tt.round(train), tt.orthogonalize(train, 1)):
            assert float(tt.norm(one)) == norm
            want = sign * np.log(10) + 1.5 * np.log(2)
            assert float(tt.log_norm(one)) == pytest.approx(want, rel=1e-6)
        assert float(tt.dot(train, train)) == norm
        assert np.all(np.asarray(train.to_dense()) == norm)
    assert float(tt.dot(huge, tiny)) == pytest.approx(8.0)
    assert float(tt.log_norm(tt.scale(huge, 0.0))) == -np.inf
    # Entries of very different size in one tensor keep their own.
    mixed = tt.rank_one([np.array([1e30, 1e-30]), np.array([1e-30, 1e30])])
    close(np.asarray(mixed.to_dense()).ravel()[[0, 3]], np.ones(2), 1e-6)
    close(tt.entries(mixed, np.array([[0, 0], [1, 1]])), np.ones(2), 1e-6)


def test_derivatives_far_from_one_and_beside_zero_cores():
    cores = plain(4)
    train = far(cores)
    size = np.linalg.norm(full(cores))
    for verb in (lambda c: tt.norm(tt.TensorTrain(c)), lambda c: tt.dot(*[tt.TensorTrain(c)] * 2)):
        found = jax.jit(jax.grad(verb))(train.cores)
        # Euler: each core enters once (twice in the product with itself).
        want = size if verb(train.cores) < size * 1.01 else 2 * size**2
        for slope, core in zip(found, train.cores, strict=True):
            assert float(jnp.sum(slope * core)) == pytest.approx(want, rel=1e-4)
    slope = jax.grad(lambda c: tt.log_norm(tt.TensorTrain(c)))(train.cores)
    assert float(jnp.sum(slope[3] * train.cores[3])) == pytest.approx(1, rel=1e-4)
    # The derivative with respect to a core that is zero is the product of the others.
    other = [jnp.zeros((1, 3, 1)), jnp.full((1, 3, 1), 1e20), jnp.full((1, 3, 1), 1e-20)]
    ones = tt.rank_one([jnp.ones(3)] * 3)
    slope = jax.grad(lambda c: tt.dot(tt.TensorTrain([c, *other[1:]]), ones))(other[0])
    np.testing.assert_allclose(slope, 9.0, rtol=1e-6)


def test_quantised_functions_have_their_known_ranks():
    grid = np.arange(2**10) / 2**10
    for values, rank in ((np.exp(grid), 1), (np.sin(7 * grid), 2), (grid**2, 3)):
        train = tt.quantize(tt.from_dense(values))
        assert train.modes == (2,) * 10
        assert max(train.ranks) == rank
        close(np.asarray(train.to_dense()).ravel(), values)
