"""Algebra of tensor trains against dense float64 NumPy, relative error at most 1e-12."""

import string

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from koopjax import tt

# Rank 3 next to a mode of 2 lies above the feasible one: that is meant.
MODES = [(2, 3, 4, 2)]
TOLERANCE = 1e-12
shapes = st.sampled_from(MODES)
seeds = st.integers(0, 2**31 - 1)
booleans = st.booleans()
property_based = settings(max_examples=20, deadline=None)


@pytest.fixture(autouse=True, scope="module")
def wide():
    with jax.enable_x64(True):
        yield


def draw(rng, modes, rank, complex_, columns=None):
    """Cores in NumPy; ranks above the feasible ones are left in on purpose."""
    ranks = [1, *[rank] * (len(modes) - 1), 1]
    cores = []
    for k, n in enumerate(modes):
        shape = (ranks[k], n, *(() if columns is None else (columns[k],)), ranks[k + 1])
        core = rng.normal(size=shape)
        cores.append(core + 1j * rng.normal(size=shape) if complex_ else core)
    return cores


def full(cores):
    """The tensor by one einsum in NumPy: the oracle."""
    d = len(cores)
    letters = string.ascii_letters
    bonds, axes = letters[: d + 1], letters[d + 1 :]
    width = cores[0].ndim - 2
    terms, out = [], ""
    for k in range(d):
        own = axes[k * width : (k + 1) * width]
        terms.append(bonds[k] + own + bonds[k + 1])
        out += own
    return np.einsum(f"{','.join(terms)}->{out}", *cores, optimize=True)


def full_matrix(cores):
    d = len(cores)
    tensor = full(cores).transpose([*range(0, 2 * d, 2), *range(1, 2 * d, 2)])
    return tensor.reshape(np.prod(tensor.shape[:d]), -1)


def trains(seed, modes, complex_, padded):
    rng = np.random.default_rng(seed)
    first, second = draw(rng, modes, 3, complex_), draw(rng, modes, 2, complex_)
    a, b = tt.TensorTrain(first), tt.TensorTrain(second)
    if padded:
        a, b = tt.pad(a, 4, max(modes) + 1), tt.pad(b, 3, max(modes) + 1)
    return a, b, full(first), full(second)


def dense(train):
    train = tt.unpad(train) if isinstance(train, tt.PaddedTT) else train
    return np.asarray(train.to_dense())


def close(got, want):
    got, want = np.asarray(got), np.asarray(want)
    assert got.shape == want.shape
    assert np.linalg.norm(got - want) <= TOLERANCE * np.linalg.norm(want)


@property_based
@given(seeds, shapes, booleans, booleans)
def test_sums_and_products(seed, modes, complex_, padded):
    a, b, x, y = trains(seed, modes, complex_, padded)
    close(dense(a), x)
    for got, want in [
        (tt.add(a, b), x + y),
        (tt.subtract(a, b), x - y),
        (tt.scale(a, -2.5), -2.5 * x),
        (tt.hadamard(a, b), x * y),
    ]:
        assert type(got) is type(a)
        close(dense(got), want)
    close(dense(tt.scale(a, 1 + 2j)), (1 + 2j) * x)


@property_based
@given(seeds, shapes, booleans, booleans)
def test_dot_and_norm(seed, modes, complex_, padded):
    a, b, x, y = trains(seed, modes, complex_, padded)
    size = np.linalg.norm(x) * np.linalg.norm(y)
    assert abs(complex(tt.dot(a, b)) - np.vdot(x, y)) <= TOLERANCE * size
    close(tt.norm(a), np.linalg.norm(x))
    close(tt.norm(tt.add(a, b)), np.linalg.norm(x + y))


@pytest.mark.parametrize("padded", [False, True])
def test_one_core(padded):
    a, b, x, y = trains(0, (3,), False, padded)
    close(dense(tt.add(a, b)), x + y)
    close(dense(tt.hadamard(a, b)), x * y)
    close(tt.norm(a), np.linalg.norm(x))
    close(dense(tt.orthogonalize(a, 0)), x)
    close(dense(tt.truncate(a, 1)), x)
    assert len(tt.singular_values(a)) == 0


def test_norm_of_a_small_difference_has_its_digits():
    a, b, x, y = trains(0, MODES[0], False, False)
    difference = tt.subtract(tt.add(a, tt.scale(b, 1e-9)), a)
    got, want = float(tt.norm(difference)), 1e-9 * np.linalg.norm(y)
    assert abs(got - want) <= 1e-14 * np.linalg.norm(x)
    # The root of a product with itself cannot see it at all.
    assert float(tt.norm(tt.subtract(a, a))) <= 1e-14 * np.linalg.norm(x)


@property_based
@given(seeds, shapes, booleans, booleans, st.sampled_from([0, 2]))
def test_orthogonalize(seed, modes, complex_, padded, center):
    a, _, x, _ = trains(seed, modes, complex_, padded)
    turned = tt.orthogonalize(a, center)
    assert type(turned) is type(a)
    close(dense(turned), x)
    plain = tt.unpad(turned) if padded else turned
    for k, core in enumerate(plain.cores):
        core = np.asarray(core)
        if k < center:
            gram = np.einsum("anb,anc->bc", core.conj(), core)
        elif k > center:
            gram = np.einsum("anb,cnb->ac", core, core.conj())
        else:
            close(np.linalg.norm(core), np.linalg.norm(x))
            continue
        assert np.abs(gram - np.eye(len(gram))).max() <= TOLERANCE


@property_based
@given(seeds, shapes, booleans, booleans)
def test_singular_values(seed, modes, complex_, padded):
    a, _, x, _ = trains(seed, modes, complex_, padded)
    values = tt.singular_values(a)
    assert len(values) == len(modes) - 1
    for k, got in enumerate(values, start=1):
        unfolding = x.reshape(np.prod(modes[:k]), -1)
        want = np.linalg.svd(unfolding, compute_uv=False)
        got = np.asarray(got)
        short = min(len(got), len(want))
        assert np.abs(got[:short] - want[:short]).max() <= TOLERANCE * want[0]
        assert np.all(got[short:] <= TOLERANCE * want[0])


@property_based
@given(seeds, st.just((2, 3)), booleans)
def test_matrices(seed, modes, complex_):
    rng = np.random.default_rng(seed)
    rows, middle = tuple(n + 1 for n in modes), modes
    first = draw(rng, rows, 2, complex_, middle)
    second = draw(rng, middle, 3, complex_, rows)
    vector = draw(rng, middle, 2, complex_)
    a, b, v = tt.TTMatrix(first), tt.TTMatrix(second), tt.TensorTrain(vector)
    x, y, z = full_matrix(first), full_matrix(second), full(vector).ravel()
    close(a.to_dense(), x)
    close(tt.matmul(a, b).to_dense(), x @ y)
    close(tt.matvec(a, v).to_dense().ravel(), x @ z)
    close(tt.vecmat(v, b).to_dense().ravel(), z @ y)
    close(tt.transpose(a).to_dense(), x.T)
    close(tt.add(a, tt.transpose(b)).to_dense(), x + y.T)
    close(tt.hadamard(a, tt.transpose(b)).to_dense(), x * y.T)
    close(tt.norm(a), np.linalg.norm(x))
    assert abs(complex(tt.dot(a, tt.transpose(b))) - np.vdot(x, y.T)) <= TOLERANCE * (
        np.linalg.norm(x) * np.linalg.norm(y)
    )
    close(tt.orthogonalize(a, 0).to_dense(), x)
    close(tt.diagonal(tt.matmul(a, b)).to_dense().ravel(), np.diagonal(x @ y))
    close(tt.diagonal_matrix(v).to_dense(), np.diag(z))
    close(tt.kron(a, b).to_dense(), np.kron(x, y))


def test_kron_of_trains_is_the_outer_product():
    a, b, x, y = trains(1, (2, 3), True, False)
    close(tt.kron(a, b).to_dense(), np.multiply.outer(x, y))


def test_structured_trains():
    rng = np.random.default_rng(0)
    vectors = [rng.normal(size=n) for n in (2, 3, 4)]
    want = np.einsum("i,j,k->ijk", *vectors)
    close(tt.rank_one(vectors).to_dense(), want)
    close(tt.identity((2, 3), jnp.float64).to_dense(), np.eye(6))
    matrices = [rng.normal(size=(2, 3)), rng.normal(size=(4, 2))]
    product = tt.kronecker(matrices)
    close(product.to_dense(), np.kron(*matrices))
    # Found again after the ranks have been hidden by a sum.
    hidden = tt.add(product, tt.scale(product, 2.0))
    found = tt.kronecker_factors(hidden)
    close(np.kron(*map(np.asarray, found)), 3 * np.kron(*matrices))
    assert np.isclose(*(np.linalg.norm(m) for m in found))
    other = tt.kronecker([rng.normal(size=(2, 3)), rng.normal(size=(4, 2))])
    assert tt.kronecker_factors(tt.add(product, other)) is None


def test_random_is_the_leading_block_of_a_larger_rank():
    key = jax.random.key(3)
    small = tt.random(key, (4, 4, 4), 2, jnp.float64)
    large = tt.random(key, (4, 4, 4), 4, jnp.float64)
    for a, b in zip(small.cores, large.cores, strict=True):
        r, n, s = a.shape
        factor = np.sqrt(s / b.shape[2])
        close(np.asarray(a) * factor, b[:r, :n, :s])
    assert tt.random(key, (2, 3, 2), 9).ranks == (1, 2, 2, 1)
    entries = np.asarray(tt.random(key, (8,) * 4, 8, jnp.complex128).to_dense())
    assert 0.5 < np.mean(np.abs(entries) ** 2) < 2
    matrix = tt.random_matrix(key, (2, 3), (3, 2), 3)
    assert matrix.shape == (6, 6)
    assert matrix.ranks == (1, 3, 1)


@pytest.mark.parametrize("padded", [False, True])
def test_jit_gives_the_same_kind_and_values(padded):
    a, b, *_ = trains(5, MODES[0], False, padded)
    for verb in (tt.add, tt.hadamard):
        jitted = jax.jit(verb)(a, b)
        assert type(jitted) is type(a)
        close(dense(jitted), dense(verb(a, b)))
    for verb in (tt.dot, lambda p, q: tt.norm(tt.add(p, q))):
        close(jax.jit(verb)(a, b), verb(a, b))
    turned = jax.jit(lambda p: tt.orthogonalize(p, 1))(a)
    assert type(turned) is type(a)
    close(dense(turned), dense(a))
