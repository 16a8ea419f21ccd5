"""What a caller may do between epochs, and how a run goes on from an optimizer's state."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from koopjax import models

RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 5)).astype(np.float32)
Y = RNG.normal(size=(64, 2)).astype(np.float32)
TX = optax.adam(1e-2)
SETTINGS = {"batch_size": 16, "optimizer": TX, "loss": models.squared_error}


def forward(params, x):
    return x @ params["w"]


def start(seed=0):
    return forward, {"w": jax.random.normal(jax.random.key(seed), (5, 2))}


def test_a_run_goes_on_from_the_state_of_another():
    # All samples are one batch, so that shuffles do not matter.
    settings = {**SETTINGS, "batch_size": 64, "key": jax.random.key(0)}
    whole = models.train(start(), X, Y, epochs=4, **settings)
    half = models.train(start(), X, Y, epochs=2, **settings)
    rest = models.train(half.model, X, Y, epochs=2, opt_state=half.opt_state, **settings)
    np.testing.assert_allclose(rest.model[1]["w"], whole.model[1]["w"], rtol=1e-5)
    anew = models.train(half.model, X, Y, epochs=2, **settings)
    assert np.max(np.abs(anew.model[1]["w"] - whole.model[1]["w"])) > 1e-3


def test_what_revise_returns_is_trained_on():
    seen = []

    def revise(epoch, params, opt_state):
        seen.append(epoch)
        return jax.tree.map(lambda p: p.at[0].set(7.0), params), opt_state

    made = models.train(start(), X, Y, key=jax.random.key(0), epochs=3, revise=revise, **SETTINGS)
    assert seen == [1, 2, 3]
    np.testing.assert_array_equal(made.model[1]["w"][0], 7.0)


def test_an_epoch_may_have_fewer_samples():
    made = models.train(start(), X, Y, key=jax.random.key(0), epochs=3, epoch_size=35, **SETTINGS)
    assert int(optax.tree_utils.tree_get(made.opt_state, "count")) == 3 * (35 // 16)
    for size in (8, 65):
        with pytest.raises(ValueError, match="epoch_size from a batch"):
            models.train(
                start(), X, Y, key=jax.random.key(0), epochs=1, epoch_size=size, **SETTINGS
            )


def test_the_state_of_another_optimizer_or_model_is_refused():
    given = {"key": jax.random.key(0), "epochs": 1, **SETTINGS}
    for state in (optax.sgd(0.1).init(start()[1]), TX.init({"w": jnp.zeros((4, 2))})):
        with pytest.raises(ValueError, match="an opt_state of this optimizer"):
            models.train(start(), X, Y, opt_state=state, **given)


def test_lanes_have_targets_states_and_revisions_of_their_own():
    targets, keys = [Y, -Y], list(jax.random.split(jax.random.key(3), 2))
    states = [models.train(start(k), X, t, key=jax.random.key(9), epochs=1, **SETTINGS).opt_state
              for k, t in enumerate(targets)]  # fmt: skip
    halved = lambda lane, epoch, params, opt: (
        jax.tree.map(lambda p: p / (2 + lane), params) if epoch == 1 else params,
        opt,
    )
    lanes = models.train_lanes(
        [start(0), start(1)], X, targets, keys=keys, epochs=2, revise=halved, opt_states=states,
        **SETTINGS,
    )  # fmt: skip
    for lane, made in enumerate(lanes):
        alone = models.train(
            start(lane), X, targets[lane], key=keys[lane], epochs=2, opt_state=states[lane],
            revise=lambda *a, lane=lane: halved(lane, *a), **SETTINGS,
        )  # fmt: skip
        np.testing.assert_allclose(made.model[1]["w"], alone.model[1]["w"], rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="targets of each of 2 lanes"):
        models.train_lanes([start(0), start(1)], X, [Y], keys=keys, epochs=1, **SETTINGS)
