"""Cross approximation of functions whose trains are known or small enough to be written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from koopjax import tt
from tests.tt.dense import entries, full


def hilbert(i):
    return 1.0 / (1.0 + i.sum(axis=1))


def wave(i):
    return np.exp(0.3j * i.sum(axis=1)) + 1.0 / (1 + i[:, 0] + i[:, 2])


def bump(i):
    return np.exp(-0.05 * ((i - 3.3) ** 2).sum(axis=1) + 0.01 * i[:, 0] * i[:, -1])


@pytest.mark.parametrize(
    ("function", "modes"),
    [(hilbert, (6,) * 6), (wave, (6, 5, 4, 6)), (bump, (7,) * 5), (hilbert, (20, 30))],
)
@pytest.mark.parametrize("rtol", [1e-4, 1e-9])
def test_error_is_what_the_tolerance_says(function, modes, rtol):
    with jax.enable_x64(True):
        train, info = tt.cross(function, modes, jax.random.key(0), rtol=rtol)
        grid = np.indices(modes).reshape(len(modes), -1).T
        want = function(grid)
        gap = full(train).ravel() - want
    assert info.converged
    assert float(info.error) <= rtol
    assert np.linalg.norm(gap) <= 2 * rtol * np.linalg.norm(want)
    assert train.dtype == want.dtype
    assert train.ranks == tuple(info.ranks)
    assert "tolerance" in info.reason


def test_few_of_many_entries():
    with jax.enable_x64(True):
        train, info = tt.cross(hilbert, (4,) * 20, jax.random.key(1), rtol=1e-7)
        rng = np.random.default_rng(0)
        indices = rng.integers(0, 4, (200, 20))
        got = entries(train, indices)
    assert info.converged
    assert int(info.evaluations) < 100_000  # of 10^12
    assert np.linalg.norm(got - hilbert(indices)) <= 1e-6 * np.linalg.norm(hilbert(indices))


def test_counts_what_it_evaluates_and_keeps_the_batch_shape():
    seen = []

    def counted(i):
        seen.append(i.shape)
        return hilbert(i)

    train, info = tt.cross(counted, (5,) * 4, jax.random.key(0), rtol=1e-4, batch_size=64)
    assert set(seen) == {(64, 4)}
    assert int(info.evaluations) == 64 * len(seen)
    plain, _ = tt.cross(hilbert, (5,) * 4, jax.random.key(0), rtol=1e-4)
    assert all(np.array_equal(a, b) for a, b in zip(train.cores, plain.cores, strict=True))


def test_limits_are_kept_and_said():
    train, info = tt.cross(hilbert, (6,) * 5, jax.random.key(0), rtol=1e-6, max_rank=2)
    assert max(train.ranks) == 2
    assert not info.converged
    assert "max_sweeps" in info.reason
    assert float(info.error) > 1e-6
    _, info = tt.cross(hilbert, (6,) * 5, jax.random.key(0), rtol=1e-12, max_evaluations=10)
    assert "max_evaluations" in info.reason
    assert int(info.sweeps) == 1


@pytest.mark.parametrize("most", [1, 7, 50, 300, 1000])
@pytest.mark.parametrize("batch_size", [None, 1, 32])
def test_no_more_than_max_evaluations_and_no_entry_twice(most, batch_size):
    seen = []

    def counted(i):
        seen.append(i.copy())
        return bump(i)

    settings = {"rtol": 1e-9, "max_evaluations": most, "batch_size": batch_size}
    if (batch_size or 1) > most:
        with pytest.raises(ValueError, match="one batch"):
            tt.cross(counted, (7,) * 5, jax.random.key(0), **settings)
        return
    with jax.enable_x64(True):
        train, info = tt.cross(counted, (7,) * 5, jax.random.key(0), **settings)
    rows = np.concatenate(seen)
    assert len(rows) == int(info.evaluations) <= most
    assert batch_size == 32 or len(np.unique(rows, axis=0)) == len(rows)
    assert not info.converged
    assert int(info.result) != 0
    assert "max_evaluations" in info.reason
    assert np.all(np.isfinite(full(train)))


@pytest.mark.parametrize(
    ("function", "modes", "rtol", "most"),
    # Entries that a published one-site cross approximation took, to the same error or a larger one.
    [
        (hilbert, (6,) * 6, 1e-9, 3523),
        (hilbert, (4,) * 20, 1e-7, 14755),
        (bump, (7,) * 5, 1e-9, 2375),
        (lambda i: np.sin(0.1 * i.sum(1)) + 0.3 * np.cos(0.02 * i[:, 0] * i[:, 1]), (32,) * 5,
         1e-8, 82779),
    ],
)  # fmt: skip
def test_as_few_evaluations_as_others_take(function, modes, rtol, most):
    with jax.enable_x64(True):
        train, info = tt.cross(function, modes, jax.random.key(0), rtol=rtol)
        rng = np.random.default_rng(1)
        indices = np.stack([rng.integers(0, n, 500) for n in modes], axis=1)
        got, want = entries(train, indices), function(indices)
    assert int(info.evaluations) <= most
    assert int(info.result) == 0
    assert np.linalg.norm(got - want) <= 2 * rtol * np.linalg.norm(want)


def test_small_and_empty_functions():
    zero, info = tt.cross(lambda i: 0.0 * i[:, 0], (3, 3, 3), jax.random.key(0))
    assert zero.ranks == (1, 1, 1, 1)
    assert info.converged
    one, info = tt.cross(lambda i: i[:, 0].astype(np.float32), (5,), jax.random.key(0))
    assert one.dtype == np.float32
    assert np.array_equal(full(one), np.arange(5))
    assert int(info.evaluations) == 5
    integers, _ = tt.cross(lambda i: i.sum(axis=1), (3, 4), jax.random.key(0))
    assert np.allclose(full(integers), np.add.outer(np.arange(3), np.arange(4)), atol=1e-5)


def test_jax_functions():
    function = jax.jit(lambda i: jnp.cos(0.2 * jnp.sum(i, axis=1)))
    train, info = tt.cross(function, (6,) * 4, jax.random.key(0), rtol=1e-5, batch_size=128)
    assert info.converged
    assert train.ranks == (1, 2, 2, 2, 1)


def test_mistakes():
    key = jax.random.key(0)
    for function in (lambda i: i, lambda i: 1.0, lambda i: np.log(i[:, 0] * 0.0 - 1)):
        with np.errstate(all="ignore"), pytest.raises(ValueError, match="expected"):
            tt.cross(function, (3, 3), key)
    for settings in ({"rtol": -1.0}, {"max_rank": 0}, {"max_sweeps": 0}, {"batch_size": 0}):
        with pytest.raises(ValueError, match="expected"):
            tt.cross(hilbert, (3, 3), key, **settings)
    with pytest.raises(ValueError, match="modes"):
        tt.cross(hilbert, (3, 0), key)


@pytest.mark.parametrize(
    "function",
    [
        lambda i: np.exp(5.0 * i.sum(axis=1)),
        lambda i: 1e-60 * hilbert(i),
        lambda i: hilbert(i).astype(np.longdouble),
        lambda i: hilbert(i).astype(">f8"),
    ],
)
def test_float64_outside_x64_stays_float64(function):
    train, info = tt.cross(function, (8,) * 3, jax.random.key(0))
    want = function(np.indices((8,) * 3).reshape(3, -1).T).astype(np.float64)
    assert info.converged
    assert train.dtype == np.float64
    scale = np.abs(want).max()
    got = full(train).ravel()
    assert np.linalg.norm(got / scale - want / scale) <= 2e-6 * np.linalg.norm(want / scale)


def test_values_that_are_no_numbers():
    masked = lambda i: np.ma.array(hilbert(i), mask=i[:, 0] == 3)
    for function in (masked, lambda i: ["a"] * len(i), lambda i: i[:, 0].astype("M8[s]")):
        with pytest.raises(ValueError, match="the values of the function"):
            tt.cross(function, (8,) * 3, jax.random.key(0))
    with pytest.raises(ValueError, match="16 bits"):
        tt.cross(lambda i: jnp.ones(len(i), jnp.float8_e4m3fn), (3, 3), jax.random.key(0))
