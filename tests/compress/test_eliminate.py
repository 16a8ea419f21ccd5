"""Backward elimination against brute force on float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from koopjax import edmd, observables
from koopjax.compress import select_forward, select_observables
from koopjax.compress.gram._select import backward


def problem(seed, n=60, p=9, q=3):
    random = np.random.default_rng(seed)
    x = random.normal(size=(n, p)) @ random.normal(size=(p, p))
    return x, random.normal(size=(n, q)) + x[:, :q]


def loss(x, y, kept, alpha):
    k = np.linalg.solve(x[:, kept].T @ x[:, kept] + alpha * np.eye(len(kept)), x[:, kept].T @ y)
    return np.sum((x[:, kept] @ k - y) ** 2) + alpha * np.sum(k**2), k


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_each_step_removes_what_costs_least_and_refits(seed):
    x, y = problem(seed)
    alpha = 0.1
    found = backward(x.T @ x, x.T @ y, range(1, 10), alpha, share=0.0)
    for size in range(9, 1, -1):
        kept, k = found[size]
        np.testing.assert_allclose(k, loss(x, y, kept, alpha)[1], rtol=1e-6, atol=1e-8)
        costs = {i: loss(x, y, [j for j in kept if j != i], alpha)[0] for i in kept}
        (gone,) = set(kept) - set(found[size - 1][0])
        assert costs[gone] <= min(costs.values()) * (1 + 1e-9)


def test_it_finds_the_products_that_matter_and_keeps_the_protected():
    x = jax.random.normal(jax.random.key(0), (500, 6))
    y = jnp.stack([x[:, 0] * x[:, 3], x[:, 2] - 2 * x[:, 5] ** 2], axis=1)
    psi = observables.Monomials(2)
    stats = edmd.accumulate(psi, x, y, target=observables.Identity())
    names = psi.names(6)
    for size in (4, 3):
        kept = select_observables(stats, size, protect=[0] if size == 4 else [])
        found = {names[i] for i in kept} - {"1"}
        assert found == {"x0*x3", "x2", "x5^2"}
    six, four = select_observables(stats, [6, 4], alpha=1e-3)
    assert set(four) <= set(six)


@pytest.mark.parametrize("size", [0, 8])
def test_impossible_sizes_are_refused(size):
    x, y = problem(0, p=7)
    stats = edmd.Gram.from_batch(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32))
    with pytest.raises(ValueError, match="a number of observables from 1 to 7"):
        select_observables(stats, size)


def test_duplicates_and_dead_columns_go_first():
    x, y = problem(3, p=5)
    wide = np.concatenate([x, x[:, :1], np.zeros((60, 1))], axis=1)
    kept = backward(wide.T @ wide, wide.T @ y, [5], 1e-6, share=0.0)[5][0]
    assert 6 not in kept
    assert not {0, 5} <= set(kept)


@pytest.mark.filterwarnings("error")
def test_observables_that_are_always_zero_go_first():
    x, y = problem(0)
    x[:, [2, 5]] = 0
    statistics = edmd.Gram.from_batch(x.astype(np.float32), y.astype(np.float32))
    alive = [0, 1, 3, 4, 6, 7, 8]
    assert select_observables(statistics, 7).tolist() == alive
    assert select_forward(statistics, 7).tolist() == alive
    nothing = edmd.Gram.empty(3, 2)
    assert len(select_observables(nothing, 2)) == len(select_forward(nothing, 2)) == 2
