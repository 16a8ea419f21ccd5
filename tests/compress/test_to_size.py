"""Pruning and quantising on the way: masks, schedule, saliency, grids, and the size of the file."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from koopjax import compress, export
from koopjax.compress.layers._allocation import lamp
from koopjax.compress.training._to_size import Goal, ToSize, constrain, constraint_of, on_grid

PARAMS = {
    "w": jnp.asarray(np.random.default_rng(0).normal(size=(20, 15)), jnp.float32),
    "v": jnp.asarray(np.random.default_rng(1).normal(size=(15, 4)), jnp.float32),
    "b": jnp.zeros(4),
}


def begun(rate=0.1):
    """An optimizer, its state after one step, and the parameters then."""
    tx = optax.chain(optax.adam(rate), compress.constrained())
    rng = np.random.default_rng(2)
    grads = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), p.dtype), PARAMS)
    updates, state = tx.update(grads, tx.init(PARAMS), PARAMS)
    return tx, state, optax.apply_updates(PARAMS, updates), grads


def count(params):
    return sum(int(np.count_nonzero(np.asarray(p))) for p in jax.tree.leaves(params))


def bytes_of(params):
    return export.stored_bytes((forward, params))


def forward(params, x):
    return x @ params["w"] @ params["v"] + params["b"]


def test_without_constraints_the_optimizer_is_what_it_was():
    plain, tx = optax.adam(0.1), optax.chain(optax.adam(0.1), compress.constrained())
    a, b, p, q = plain.init(PARAMS), tx.init(PARAMS), PARAMS, PARAMS
    for _ in range(3):
        grads = jax.tree.map(lambda v: v**2 + 1, p)
        u, a = plain.update(grads, a, p)
        p = optax.apply_updates(p, u)
        grads = jax.tree.map(lambda v: v**2 + 1, q)
        u, b = tx.update(grads, b, q)
        q = optax.apply_updates(q, u)
    for one, other in zip(jax.tree.leaves(p), jax.tree.leaves(q), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)


def test_entries_go_by_the_cubic_schedule_and_none_comes_back():
    tx, state, params, grads = begun()
    to_size = ToSize(10, bytes_of, Goal(density=0.2), until=0.8)
    total, seen, dead = count(PARAMS) + 4, [], None
    for epoch in range(1, 11):
        params, state = to_size(epoch, params, state)
        zeros = [np.asarray(p) == 0 for p in jax.tree.leaves(params)]
        if dead is not None:
            assert all(np.all(z[d]) for z, d in zip(zeros, dead, strict=True))
        dead = zeros
        seen.append(count(params))
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    end = round(0.2 * total)
    t = np.minimum(np.arange(1, 11) / 8, 1)
    np.testing.assert_allclose(seen, end + (total - end) * (1 - t) ** 3, atol=1.5)


def test_fisher_saliency_is_the_weight_times_the_root_of_adams_second_moment():
    _, state, params, grads = begun()
    kept, _ = ToSize(2, bytes_of, Goal(density=0.3), until=0.5)(1, params, state)
    leaves = [np.asarray(p, np.float64).ravel() for p in jax.tree.leaves(params)]
    slopes = [np.asarray(g, np.float64).ravel() for g in jax.tree.leaves(grads)]
    # One step from nothing: nu is (1 - 0.999) g².
    scores = np.abs(np.concatenate(leaves)) * np.sqrt(1e-3) * np.abs(np.concatenate(slopes))
    live = np.concatenate([np.asarray(p).ravel() != 0 for p in jax.tree.leaves(kept)])
    assert live.sum() == round(0.3 * len(scores))
    assert scores[live].min() >= scores[~live].max()


def test_magnitude_leaves_vectors_whole():
    _, state, params, _ = begun()
    kept, _ = ToSize(2, bytes_of, Goal(density=0.1, saliency="magnitude"), until=0.5)(
        1, params, state
    )
    assert np.count_nonzero(kept["b"]) == 4
    assert count({"w": kept["w"], "v": kept["v"]}) == round(0.1 * 360)


def test_magnitude_lets_vectors_go_where_they_fill_more_than_half_of_the_file():
    _, state, params, _ = begun()
    wide = {**params, "b": jnp.linspace(0.1, 1.0, 200)}
    state = optax.chain(optax.scale_by_adam(), compress.constrained()).init(wide)
    for limit, whole in ((1700, True), (1000, False)):
        for saliency in ("magnitude", "lamp"):
            to_size = ToSize(1, bytes_of, Goal(limit, saliency=saliency), until=0.5)
            kept, _ = to_size(1, wide, state)
            assert (np.count_nonzero(kept["b"]) == 200) == whole
            assert bytes_of(kept) <= limit


def test_lamp_divides_a_square_by_the_sum_of_those_that_are_not_smaller():
    size = np.abs(np.random.default_rng(0).normal(size=(5, 7)))
    found = lamp(size)
    for score, entry in zip(found.ravel(), size.ravel(), strict=True):
        assert score == pytest.approx(entry**2 / np.sum(size[size >= entry] ** 2))
    assert found.max() == 1.0  # so that no array is emptied
    np.testing.assert_array_equal(lamp(np.zeros((2, 3))), 0)


@pytest.mark.parametrize("limit", [500, 800, 1200])
def test_the_file_fills_the_budget(limit):
    _, state, params, _ = begun()
    to_size = ToSize(4, bytes_of, Goal(limit), until=0.5)
    for epoch in range(1, 5):
        params, state = to_size(epoch, params, state)
    assert limit - 16 <= bytes_of(params) <= limit


def test_quantised_values_lie_on_grids_and_the_file_fits():
    tx, state, params, grads = begun(rate=1e-3)
    to_size = ToSize(10, bytes_of, Goal(420, value_bits=4.0), until=0.3)
    for epoch in range(1, 11):
        updates, state = tx.update(grads, state, params)
        params, state = to_size(epoch, optax.apply_updates(params, updates), state)
    assert bytes_of(params) <= 420
    steps = constraint_of(state).steps
    for value, step in zip(jax.tree.leaves(params), jax.tree.leaves(steps), strict=True):
        whole = np.asarray(value, np.float64) / float(step)
        np.testing.assert_allclose(whole, np.round(whole), atol=1e-4)
    # Four bits a value and their places take a fraction of what floats would.
    assert count(params) > 420 / 3


def test_gradients_reach_the_latent_values_straight_through():
    tx = optax.chain(optax.sgd(0.3), compress.constrained())
    w = {"w": jnp.asarray([[1.0, 2.0]])}
    state = tx.init(w)
    grid = lambda c: type(c)(c.masks, {"w": jnp.asarray(0.5)}, c.latent)
    w, state = constrain(state, grid)
    seen = []
    for _ in range(4):
        updates, state = tx.update({"w": jnp.ones((1, 2))}, state, w)
        w = optax.apply_updates(w, updates)
        seen.append(float(w["w"][0, 1]))
    # Latent 1.7, 1.4, 1.1, 0.8 on a grid of halves.
    np.testing.assert_allclose(seen, [1.5, 1.5, 1.0, 1.0])
    np.testing.assert_allclose(constraint_of(state).latent["w"], [[-0.2, 0.8]], atol=1e-6)
    free = jnp.asarray([0.3, -0.2])
    np.testing.assert_array_equal(on_grid(free, jnp.asarray(0.0)), free)
    assert not np.any(np.signbit(on_grid(free, jnp.asarray(1.0))))  # no minus zero


def test_a_size_below_what_cannot_go_is_refused():
    _, state, params, _ = begun()
    # Magnitude leaves few biases whole: nothing is left of the matrices, and it is still too much.
    least = bytes_of({**{k: jnp.zeros_like(v) for k, v in params.items()}, "b": params["b"]})
    to_size = ToSize(4, bytes_of, Goal(least - 1, saliency="magnitude"))
    with pytest.raises(compress.BudgetTooSmall, match=f"at least {least} bytes"):
        to_size(1, params, state)
