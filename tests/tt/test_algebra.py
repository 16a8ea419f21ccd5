"""Algebra of tensor trains against dense float64 NumPy, relative error at most 1e-12."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from koopjax import tt
from tests.tt.dense import assert_close, full, full_matrix, normal

MODES = (2, 3, 4)
TOLERANCE = 1e-12
#: Each of the two kinds of train, and both kinds of number.
KINDS = {"ragged": (False, True), "padded": (True, False)}
kinds = st.sampled_from(list(KINDS))
seeds = st.integers(0, 2**31 - 1)
property_based = settings(max_examples=10, deadline=None)


@pytest.fixture(autouse=True, scope="module")
def wide():
    with jax.enable_x64(True):
        yield


def draw(rng, modes, rank, complex_, columns=None):
    """Cores in NumPy; rank 3 next to a mode of 2 lies above the feasible one: that is meant."""
    ranks = [1, *[rank] * (len(modes) - 1), 1]
    sizes = [(n,) for n in modes] if columns is None else list(zip(modes, columns, strict=True))
    return [
        normal(rng, r, *n, s, complex_=complex_)
        for r, n, s in zip(ranks[:-1], sizes, ranks[1:], strict=True)
    ]


def trains(seed, kind, modes=MODES):
    padded, complex_ = KINDS[kind]
    rng = np.random.default_rng(seed)
    first, second = draw(rng, modes, 3, complex_), draw(rng, modes, 2, complex_)
    a, b = tt.TensorTrain(first), tt.TensorTrain(second)
    if padded:
        a, b = tt.pad(a, 4, max(modes) + 1), tt.pad(b, 3, max(modes) + 1)
    return a, b, full(first), full(second)


@functools.partial(jax.jit, static_argnames="center")
def verbs(a, b, center):
    """Every verb, in one program."""
    found = {
        "add": tt.add(a, b),
        "subtract": tt.subtract(a, b),
        "scale": tt.scale(a, -2.5),
        "hadamard": tt.hadamard(a, b),
        "turned": tt.orthogonalize(a, center),
    }
    small = tt.subtract(tt.add(a, tt.scale(b, 1e-9)), a)
    numbers = {
        "dot": tt.dot(a, b),
        "norm": tt.norm(a),
        "norm of a sum": tt.norm(found["add"]),
        "norm of a small difference": tt.norm(small),
        "norm of nothing": tt.norm(tt.subtract(a, a)),
        "singular values": tt.singular_values(a),
        "complex": tt.scale(a, 1 + 2j),
    }
    return found, numbers


@property_based
@given(seeds, kinds)
def test_every_verb_against_numpy(seed, kind):
    a, b, x, y = trains(seed, kind)
    center = {"ragged": 2, "padded": 1}[kind]
    found, numbers = verbs(a, b, center)
    wanted = {"add": x + y, "subtract": x - y, "scale": -2.5 * x, "hadamard": x * y, "turned": x}
    for name, want in wanted.items():
        assert type(found[name]) is type(a)
        assert_close(found[name], want)
    assert_close(numbers["complex"], (1 + 2j) * x)
    size, other = np.linalg.norm(x), np.linalg.norm(y)
    assert abs(complex(numbers["dot"]) - np.vdot(x, y)) <= TOLERANCE * size * other
    assert_close(numbers["norm"], size)
    assert_close(numbers["norm of a sum"], np.linalg.norm(x + y))
    # The root of a product with itself cannot see these at all.
    assert abs(float(numbers["norm of a small difference"]) - 1e-9 * other) <= 1e-14 * size
    assert float(numbers["norm of nothing"]) <= 1e-14 * size
    check_orthogonal(found["turned"], center, size)
    values = numbers["singular values"]
    assert len(values) == len(MODES) - 1
    for k, got in enumerate(map(np.asarray, values), start=1):
        want = np.linalg.svd(x.reshape(np.prod(MODES[:k]), -1), compute_uv=False)
        short = min(len(got), len(want))
        assert np.abs(got[:short] - want[:short]).max() <= TOLERANCE * want[0]
        assert np.all(got[short:] <= TOLERANCE * want[0])


def check_orthogonal(train, center, size):
    plain = tt.unpad(train) if isinstance(train, tt.PaddedTT) else train
    for k, core in enumerate(map(np.asarray, plain.cores)):
        if k == center:
            assert_close(np.linalg.norm(core), size)
            continue
        pattern = "anb,anc->bc" if k < center else "bna,cna->bc"
        gram = np.einsum(pattern, core.conj(), core)
        assert np.abs(gram - np.eye(len(gram))).max() <= TOLERANCE


@pytest.mark.parametrize("kind", KINDS)
def test_one_core(kind):
    a, b, x, y = trains(0, kind, (3,))
    one = lambda a, b: (tt.add(a, b), tt.hadamard(a, b), tt.truncate(a, 1), tt.singular_values(a))
    total, product, same, none = jax.jit(one)(a, b)
    for got, want in ((total, x + y), (product, x * y), (same, x), (tt.orthogonalize(a, 0), x)):
        assert_close(got, want)
    assert len(none) == 0
    assert_close(tt.norm(a), np.linalg.norm(x))


@jax.jit
def matrix_verbs(a, b, v):
    turned = tt.transpose(b)
    return {
        "matmul": tt.matmul(a, b),
        "matvec": tt.matvec(a, v),
        "vecmat": tt.vecmat(v, b),
        "transpose": tt.transpose(a),
        "add": tt.add(a, turned),
        "hadamard": tt.hadamard(a, turned),
        "norm": tt.norm(a),
        "dot": tt.dot(a, turned),
        "turned": tt.orthogonalize(a, 0),
        "truncated": tt.truncate(a, 2),
        "dense": a.to_dense(),
    }


@property_based
@given(seeds)
def test_matrices(seed):
    rng = np.random.default_rng(seed)
    rows, middle = (3, 4), (2, 3)
    first = draw(rng, rows, 2, True, middle)
    second = draw(rng, middle, 3, True, rows)
    vector = draw(rng, middle, 2, True)
    x, y, z = full_matrix(first), full_matrix(second), full(vector).ravel()
    found = matrix_verbs(tt.TTMatrix(first), tt.TTMatrix(second), tt.TensorTrain(vector))
    wanted = {
        "matmul": x @ y,
        "matvec": (x @ z).reshape(rows),
        "vecmat": (z @ y).reshape(rows),
        "transpose": x.T,
        "add": x + y.T,
        "hadamard": x * y.T,
        "norm": np.linalg.norm(x),
        "turned": x,
        "truncated": x,
        "dense": x,
    }
    for name, want in wanted.items():
        assert_close(found[name], want)
    size = np.linalg.norm(x) * np.linalg.norm(y)
    assert abs(complex(found["dot"]) - np.vdot(x, y.T)) <= TOLERANCE * size


def test_structured_trains():
    rng = np.random.default_rng(0)
    vectors = [rng.normal(size=n) for n in (2, 3, 4)]
    assert_close(tt.rank_one(vectors), np.einsum("i,j,k->ijk", *vectors))
    assert_close(tt.identity((2, 3), jnp.float64), np.eye(6))
    matrices = [rng.normal(size=(2, 3)), rng.normal(size=(4, 2))]
    assert_close(tt.kronecker(matrices), np.kron(*matrices))


def test_random_is_the_leading_block_of_a_larger_rank():
    key = jax.random.key(3)
    small = tt.random(key, (4, 4, 4), 2, jnp.float64)
    large = tt.random(key, (4, 4, 4), 4, jnp.float64)
    for a, b in zip(small.cores, large.cores, strict=True):
        r, n, s = a.shape
        factor = np.sqrt(s / b.shape[2])
        assert_close(np.asarray(a) * factor, np.asarray(b)[:r, :n, :s])
    assert tt.random(key, (2, 3, 2), 9).ranks == (1, 2, 2, 1)
    entries = full(tt.random(key, (8,) * 4, 8, jnp.complex128))
    assert 0.5 < np.mean(np.abs(entries) ** 2) < 2
    matrix = tt.random_matrix(key, (2, 3), (3, 2), 3)
    assert matrix.shape == (6, 6)
    assert matrix.ranks == (1, 3, 1)
