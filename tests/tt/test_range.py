"""Trains whose cores lie far from 1 while their product does not: every verb against NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from koopjax import tt
from tests.tt.dense import assert_close, full

MODES, RANKS, ORDER = (3,) * 4, (1, 2, 2, 2, 1), 4
FAR = np.array([1e25, 1e10, 1e-5, 1e-30])


def plain(seed, dtype=np.float64):
    rng = np.random.default_rng(seed)
    shapes = zip(RANKS[:-1], MODES, RANKS[1:], strict=True)
    cores = [rng.normal(size=shape) for shape in shapes]
    if np.issubdtype(dtype, np.complexfloating):
        cores = [core + 1j * rng.normal(size=core.shape) for core in cores]
    return cores


def far(cores, dtype=np.float32):
    """The same tensor with cores far apart, and with a bond whose two ranks are far apart."""
    cores = [core * factor for core, factor in zip(cores, FAR, strict=True)]
    gauge = np.array([1e15, 1e-15])
    cores[1], cores[2] = cores[1] * gauge, cores[2] / gauge[:, None, None]
    return tt.TensorTrain([jnp.asarray(core, dtype) for core in cores])


@jax.jit
def verbs(a, b):
    """Every verb, in one program."""
    cut, info = tt.truncate(a, (2,) * 3, return_info=True)
    trains = {
        "add": tt.add(a, b),
        "hadamard": tt.hadamard(a, b),
        "scale": tt.scale(a, 1e10),
        "turned": tt.orthogonalize(a, 2),
        "cut": cut,
    }
    values = tt.singular_values(a)[1]
    return trains, tt.norm(a), tt.dot(a, b), values, info.error


@pytest.mark.parametrize("kind", ["ragged", "padded"])
def test_verbs_on_trains_far_from_one(kind):
    dtype = {"ragged": np.complex64, "padded": np.float32}[kind]
    cores, others = plain(0, dtype), plain(1, dtype)
    a, b, x, y = far(cores, dtype), far(others, dtype), full(cores), full(others)
    if kind == "padded":
        a, b = tt.pad(a, 3), tt.pad(b, 2)
    found, norm, dot, values, error = verbs(a, b)
    assert float(norm) == pytest.approx(np.linalg.norm(x), rel=1e-5)
    assert abs(complex(dot) - np.vdot(x, y)) <= 1e-5 * np.linalg.norm(x) * np.linalg.norm(y)
    for name, want in (
        ("add", x + y), ("hadamard", x * y), ("scale", 1e10 * x), ("turned", x), ("cut", x)
    ):  # fmt: skip
        assert_close(wide(found[name]), want, 1e-5)
    assert float(error) < 1e-5
    assert_close(values[:2], np.linalg.svd(x.reshape(9, 9), compute_uv=False)[:2], 1e-5)


def wide(train):
    """The same in double precision, whose partial products NumPy can take."""
    cores = jax.tree.map(
        lambda a: np.asarray(a).astype(np.result_type(a.dtype, np.float64)), train.cores
    )
    return dataclasses.replace(train, cores=cores)


def test_parts_and_products_far_from_one():
    cores, others = plain(0), plain(1)
    a, b, x, y = far(cores), far(others), full(cores), full(others)
    total, info = tt.round(tt.subtract(tt.add(a, b), b), rtol=1e-4, return_info=True)
    assert total.ranks == RANKS
    assert float(info.error) < 1e-4
    assert_close(wide(total), x, 1e-3)
    index = np.random.default_rng(2).integers(0, 3, (20, ORDER))
    assert_close(tt.entries(a, index), x[tuple(index.T)], 1e-5)
    assert_close(wide(a[1, :, 2]), x[1, :, 2], 1e-5)
    # A diagonal matrix, whose products are those of the entries.
    eye = np.eye(3, dtype=np.float32)
    matrix = tt.TTMatrix([np.asarray(c)[:, :, None] * eye[:, :, None] for c in a.cores])
    assert_close(wide(tt.matvec(matrix, b)), x * y, 1e-5)
    assert_close(wide(tt.vecmat(b, tt.transpose(matrix))), x * y, 1e-5)
    assert_close(tt.apply_matrix(matrix, np.ones((1, 3**ORDER), np.float32))[0], x.ravel(), 1e-5)
    assert_close(a.to_dense(), x, 1e-5)
    assert_close(wide(tt.quantize(a, base=3)), x, 1e-5)


def test_float64_beyond_its_squares():
    cores = plain(3)
    with jax.enable_x64(True):
        factors = [1e200, 1e150, 1e-200, 1e-150]
        train = tt.TensorTrain([jnp.asarray(c * f) for c, f in zip(cores, factors, strict=True)])
        x = full(cores)
        for found in (train, tt.round(train, 1e-12), tt.truncate(train, 2)):
            assert_close(found.to_dense(), x, 1e-12)
        assert float(tt.norm(train)) == pytest.approx(np.linalg.norm(x), rel=1e-12)
        dense = np.outer([1e200, 1.0], [1e-50, 1e80])
        assert_close(np.asarray(tt.from_dense(dense).to_dense()) / 1e280, dense / 1e280, 1e-12)


def test_what_leaves_the_dtype_is_infinite_or_zero():
    huge = tt.TensorTrain([np.full((1, 2, 1), 1e30, np.float32)] * 3)
    tiny = tt.TensorTrain([np.full((1, 2, 1), 1e-30, np.float32)] * 3)
    for train, norm in ((huge, np.inf), (tiny, 0.0)):
        for one in (train, tt.pad(train, 2), tt.round(train), tt.orthogonalize(train, 1)):
            assert float(tt.norm(one)) == norm
        assert float(tt.dot(train, train)) == norm
        assert np.all(np.asarray(train.to_dense()) == norm)
    assert float(tt.dot(huge, tiny)) == pytest.approx(8.0)
    # A factor brings it back, or makes it nothing.
    assert float(tt.norm(tt.scale(huge, 1e-37))) == np.inf
    assert float(tt.norm(tt.hadamard(huge, tiny))) == pytest.approx(8**0.5)
    assert float(tt.norm(tt.scale(huge, 0.0))) == 0
    # Entries of very different size in one tensor keep their own.
    mixed = tt.rank_one([np.array([1e30, 1e-30]), np.array([1e-30, 1e30])])
    assert_close(np.asarray(mixed.to_dense()).ravel()[[0, 3]], np.ones(2), 1e-6)
    assert_close(tt.entries(mixed, np.array([[0, 0], [1, 1]])), np.ones(2), 1e-6)


def test_derivatives_far_from_one_and_beside_zero_cores():
    cores = plain(4)
    train = far(cores)
    size = np.linalg.norm(full(cores))
    squared = lambda c: tt.dot(*[tt.TensorTrain(c)] * 2)
    # Euler: each core enters once, twice in the product with itself.
    for verb, want in ((lambda c: tt.norm(tt.TensorTrain(c)), size), (squared, 2 * size**2)):
        for slope, core in zip(jax.jit(jax.grad(verb))(train.cores), train.cores, strict=True):
            moved = np.sum(np.asarray(slope, float) * np.asarray(core, float))
            assert moved == pytest.approx(want, rel=1e-4)
    # The derivative with respect to a core that is zero is the product of the others.
    other = [jnp.zeros((1, 3, 1)), jnp.full((1, 3, 1), 1e20), jnp.full((1, 3, 1), 1e-20)]
    ones = tt.rank_one([jnp.ones(3)] * 3)
    slope = jax.jit(jax.grad(lambda c: tt.dot(tt.TensorTrain([c, *other[1:]]), ones)))(other[0])
    np.testing.assert_allclose(slope, 9.0, rtol=1e-6)
