"""Padded trains: ranks as a vmap axis, the derivatives of ragged ones, finite in SVD's gaps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from koopjax import tt
from tests.tt.dense import full

MODES = (3, 4, 4)
property_based = settings(max_examples=5, deadline=None)
seeds = st.integers(0, 2**31 - 1)


@pytest.fixture(autouse=True, scope="module")
def wide():
    with jax.enable_x64(True):
        yield


def cores_of(seed, rank=3, complex_=False, modes=MODES):
    rng = np.random.default_rng(seed)
    ranks = np.minimum([1, *[rank] * (len(modes) - 1), 1], tt.feasible_ranks(modes))
    cores = []
    for k, n in enumerate(modes):
        core = rng.normal(size=(ranks[k], n, ranks[k + 1]))
        cores.append(core + 1j * rng.normal(size=core.shape) if complex_ else core)
    return tuple(cores)


def distance(a, b):
    a, b = jax.tree.leaves(a), jax.tree.leaves(b)
    return max(
        np.linalg.norm(np.asarray(x) - np.asarray(y)) / np.linalg.norm(np.asarray(y))
        for x, y in zip(a, b, strict=True)
    )


def readout(tensor):
    """A real function of a dense tensor that depends on all of it."""
    tensor = tensor[tuple(slice(n) for n in MODES)]
    weights = jnp.cos(jnp.arange(tensor.size)).reshape(tensor.shape)
    return jnp.real(jnp.sum(weights * tensor)) + jnp.sum(jnp.abs(tensor) ** 2)


def widen(cores, rank):
    return tt.pad(tt.TensorTrain(cores), rank)


@jax.jit
def every_rank(cores):
    padded = widen(cores, 5)
    return jax.vmap(lambda rank: tt.truncate(padded, rank))(jnp.arange(1, 6))


@property_based
@given(seeds)
def test_vmapped_over_ranks_equals_a_loop(seed):
    cores = cores_of(seed, complex_=True)
    lanes = every_rank(cores)
    for i in range(5):
        lane = tt.unpad(jax.tree.map(lambda leaf, i=i: leaf[i], lanes))
        single = tt.unpad(tt.truncate(widen(cores, 5), i + 1))
        assert lane.ranks == single.ranks
        want = full(single)
        assert distance(full(lane), want) < 1e-12
        # And another way to it, in NumPy on the host.
        rounded = tt.round(tt.TensorTrain(cores), max_rank=i + 1)
        assert distance(full(rounded), want) < 1e-12


@pytest.mark.parametrize("rank", [1, 2])
def test_ragged_truncation_equals_rounding(rank):
    train = tt.TensorTrain(cores_of(0, complex_=True))
    cut, rounded = tt.truncate(train, rank), tt.round(train, max_rank=rank)
    assert isinstance(cut, tt.TensorTrain)
    assert cut.ranks == rounded.ranks
    assert distance(full(cut), full(rounded)) < 1e-12


def algebra(a, b):
    return tt.hadamard(tt.add(tt.orthogonalize(a, 1), tt.scale(b, 0.5)), b).to_dense()


def truncated_sum(a, b):
    return tt.truncate(tt.add(a, b), 2).to_dense()


@functools.partial(jax.jit, static_argnames=("verb", "padded"))
@functools.partial(jax.value_and_grad, argnums=(0, 1))
def differentiated(first, second, verb, padded):
    a, b = tt.TensorTrain(first), tt.TensorTrain(second)
    if padded:
        a, b = tt.pad(a, 5), tt.pad(b, 4)
    return readout(verb(a, b))


@pytest.mark.parametrize("verb", [algebra, truncated_sum])
@pytest.mark.parametrize("equal", [False, True])
def test_derivatives_through_padding_equal_ragged_and_difference_quotients(verb, equal):
    """Of equal trains a sum has half its ranks in vain, and bare QR and SVD give NaN there."""
    first = cores_of(1, 3, True)
    second = first if equal else cores_of(2, 3, True)
    value, gradient = differentiated(first, second, verb=verb, padded=False)
    value_padded, gradient_padded = differentiated(first, second, verb=verb, padded=True)
    assert abs(value - value_padded) <= 1e-12 * abs(value)
    assert distance(gradient_padded, gradient) < 1e-11
    rng = np.random.default_rng(0)
    steps = jax.tree.map(lambda core: rng.normal(size=core.shape), (first, second))
    pairs = zip(jax.tree.leaves(gradient), jax.tree.leaves(steps), strict=True)
    along = sum(np.real(np.sum(np.asarray(g) * s)) for g, s in pairs)

    def moved(h):
        there = jax.tree.map(lambda core, s: core + h * s, (first, second), steps)
        return float(differentiated(*there, verb=verb, padded=False)[0])

    size = np.sqrt(
        sum(float(np.sum(np.abs(np.asarray(g)) ** 2)) for g in jax.tree.leaves(gradient))
    )
    assert abs((moved(1e-5) - moved(-1e-5)) / 2e-5 - along) < 1e-6 * size


@jax.jit
@jax.grad
def slope(cores, padded, rank):
    padded = tt.PaddedTT(cores, padded.rank_mask, padded.mode_mask)
    cut, info = tt.truncate(padded, rank, return_info=True)
    return jnp.sum(cut.to_dense() ** 2) + tt.norm(cut) + info.error


@pytest.mark.parametrize(
    "make",
    [
        lambda: np.zeros(MODES),
        lambda: np.ones(MODES),  # rank 1, so that all other values are zero
        lambda: np.eye(4)[None] * np.ones((3, 1, 1)),  # all singular values of a bond equal
    ],
    ids=["zero", "rank one", "equal"],
)
def test_gradients_are_finite_where_singular_values_repeat_or_vanish(make):
    padded = tt.pad(tt.from_dense(np.asarray(make())), 6)
    # Ranks in use whose cores hold nothing but zeros.
    ranks = np.array(padded.rank_mask)
    ranks[1:-1, :4] = 1
    padded = tt.PaddedTT(padded.cores, ranks, padded.mode_mask)
    for rank in (1, 2, 4):
        assert np.isfinite(slope(padded.cores, padded, rank)).all()


def test_derivative_of_the_norm():
    cores = cores_of(0)
    slope = jax.jit(jax.grad(lambda c: tt.norm(tt.TensorTrain(c))))
    through = jax.jit(jax.grad(lambda c: tt.norm(widen(c, 5))))(cores)
    # That of the dense tensor: its unit, with the other cores contracted into it.
    unit = full(cores) / np.linalg.norm(full(cores))
    first, middle, last = (core[0] if k == 0 else core for k, core in enumerate(cores))
    last = last[:, :, 0]
    want = (
        np.einsum("ijk,ajb,bk->ia", unit, middle, last)[None],
        np.einsum("ijk,ia,bk->ajb", unit, first, last),
        np.einsum("ijk,ia,ajb->bk", unit, first, middle)[:, :, None],
    )
    assert distance(slope(cores), want) < 1e-12
    assert distance(through, want) < 1e-12
    zero = tuple(np.zeros_like(core) for core in cores)
    assert not any(np.asarray(g).any() for g in slope(zero))


def test_padding_holds_zeros_and_masks_stay_tight():
    a, b = widen(cores_of(0), 5), widen(cores_of(1, 2), 4)

    @jax.jit
    def made(a, b):
        total = tt.add(a, b)
        cuts = [tt.truncate(total, 3, max_rank=3), tt.truncate(total, 9)]
        return [total, tt.hadamard(a, b), tt.orthogonalize(total, 1), *cuts]

    results = made(a, b)
    for train in results:
        train.validate()
        left, right = np.asarray(train.rank_mask[:-1]), np.asarray(train.rank_mask[1:])
        modes = np.asarray(train.mode_mask)
        inside = np.einsum("da,dn,db->danb", left, modes, right)
        assert not np.any(np.asarray(train.cores) * (1 - inside))
    assert results[0].ranks == (1, 5, 5, 1)
    assert results[3].cores.shape == (3, 3, 4, 3)
    assert results[4].ranks == (1, 3, 4, 1)
    assert tt.unpad(results[4]).ranks == (1, 3, 4, 1)


def test_pad_and_unpad_are_inverse():
    train = tt.TensorTrain(cores_of(4))
    padded = tt.pad(train, 7, 6)
    assert padded.cores.shape == (3, 7, 6, 7)
    assert (padded.ranks, padded.modes) == (train.ranks, train.modes)
    assert padded.numbers == train.numbers
    back = tt.unpad(padded)
    assert all(np.array_equal(a, b) for a, b in zip(back.cores, train.cores, strict=True))
    dense = np.asarray(padded.to_dense())
    assert dense.shape == (6, 6, 6)
    assert np.allclose(dense[:3, :4, :4], full(train), rtol=1e-13)
    assert np.count_nonzero(dense) == np.count_nonzero(full(train))


def test_ranks_may_differ_by_bond_and_be_traced():
    padded = widen(cores_of(0), 5)
    ranks = jnp.asarray([1, 3])
    cut = jax.jit(tt.truncate)(padded, ranks)
    assert tt.unpad(cut).ranks == (1, 1, 3, 1)
    assert distance(cut.cores, tt.truncate(padded, (1, 3)).cores) < 1e-12


def test_long_trains_in_float32():
    """200 cores: norms far beyond what float32 can square."""
    rng = np.random.default_rng(0)
    masks = np.ones((201, 4)), np.ones((200, 2))
    masks[0][[0, -1], 1:] = 0
    cores = rng.normal(size=(200, 4, 2, 4)) / 2
    cores[0, 1:], cores[-1, :, :, 1:] = 0, 0
    padded = tt.PaddedTT(*(a.astype(np.float32) for a in (cores, *masks)))
    assert np.isfinite(float(tt.norm(padded)))
    cut, info = tt.truncate(padded, 3, return_info=True)
    assert 0 < float(info.error) < 1.5
    same, info = tt.truncate(padded, 4, return_info=True)
    assert float(info.error) < 1e-5
    assert cut.ranks[100] == 3
    # Compared core by core in the gauge that both share up to signs: the bonds' singular values.
    a, b = tt.singular_values(same)[99], tt.singular_values(padded)[99]
    assert np.allclose(a, b, rtol=1e-3, atol=1e-4 * float(b[0]))
