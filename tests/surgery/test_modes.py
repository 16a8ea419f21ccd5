"""Models that are not in inference mode, or take more than one input, in surgery and in predict."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from koopjax import models, surgery
from tests.nets import filled, linen_filled, normal

X = jax.device_put(normal(5, 4))
VERBS = {
    "cut_points": lambda model: surgery.cut_points(model, X),
    "predict": lambda model: models.predict(model, X),
}


class Net(nnx.Module):
    """Every kind of layer that keeps a state; `call` says what is computed."""

    def __init__(self, call, rngs=None):
        rngs = rngs or nnx.Rngs(0)
        self.a = nnx.Linear(4, 4, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.spectral = nnx.SpectralNorm(nnx.Linear(4, 4, rngs=rngs), rngs=rngs)
        self.rnn = nnx.RNN(nnx.GRUCell(4, 4, rngs=rngs), rngs=rngs)
        self.calls = nnx.Variable(jnp.zeros((), jnp.int32))
        self.call = call

    def __call__(self, x, phase="train", **options):
        return self.call(self, x, phase == "train" and options.get("fit", True))


def net_of(call):
    return filled(lambda: Net(call))


def dropped(net, x, training):
    return net.drop(net.a(x), deterministic=not training)


def normed(net, x, training):
    return net.norm(net.a(x), use_running_average=not training)


def statistics_under_scan(net, x, training):
    step = nnx.scan(
        lambda norm, h: (norm, norm(h, use_running_average=not training)),
        in_axes=(nnx.Carry, 0),
        out_axes=(nnx.Carry, 0),
    )
    return step(net.norm, net.a(x)[None])[1][0]


def still(net, x, training):
    del training
    net.calls[...] += 1
    return net.drop(net.norm(net.spectral(net.a(x), update_stats=True)))


def recurrent(net, x, training):
    del training
    return net.rnn(net.a(x)[:, None])[:, -1]


class LinenNet(linen.Module):
    """`on` is the mode as an attribute, `phase` as an argument."""

    layer: str
    on: bool = True

    @linen.compact
    def __call__(self, x, phase="train"):
        x, training = linen.Dense(4)(x), self.on and phase == "train"
        if self.layer == "norm":
            return linen.BatchNorm(use_running_average=not training)(x)
        return linen.Dropout(0.5, deterministic=not training)(x)


def variables(layer):
    return linen_filled(LinenNet(layer, on=False), X)


def masked(p, x, keep=False):
    mask = jax.random.bernoulli(jax.random.key(0), 0.5, x.shape)
    return (x if keep else jnp.where(mask, x, 0)) @ p


P = np.ones((4, 2), np.float32)
TRAINING = {
    "dropout": net_of(dropped),
    "batch statistics": net_of(normed),
    "statistics under scan": net_of(statistics_under_scan),
    "linen dropout": (LinenNet("drop"), variables("drop")),
    "linen batch statistics": (LinenNet("norm"), variables("norm")),
    "a mask from one key": (masked, P),
}
BOUND = {
    "dropout": functools.partial(net_of(dropped), phase="test"),
    "options": functools.partial(net_of(dropped), fit=False),
    "batch statistics": functools.partial(net_of(normed), phase="test"),
    "statistics under scan": functools.partial(net_of(statistics_under_scan), phase="test"),
    "linen": (functools.partial(LinenNet("norm"), phase="test"), variables("norm")),
    "linen attribute": (LinenNet("drop", on=False), variables("drop")),
    "function": (functools.partial(masked, keep=True), P),
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("name", TRAINING)
def test_training_mode_is_refused_with_how_to_bind_it(name, verb):
    with pytest.raises(ValueError, match=r"inference mode.*(Dropout|BatchNorm).*functools.partial"):
        VERBS[verb](TRAINING[name])


@pytest.mark.parametrize("name", BOUND)
def test_a_bound_mode_is_taken_and_the_weights_stay_parameters(name):
    model = BOUND[name]
    cuts = surgery.cut_points(model, X)
    assert cuts[-1].parameters >= (8 if name == "function" else 20)
    head, span, tail = surgery.split(model, X, ("input", cuts[0].name))
    np.testing.assert_allclose(tail(span(head(X))), models.predict(model, X), rtol=1e-4, atol=1e-5)


def test_a_bound_mode_is_not_overridden():
    def net(p, x, train):
        return x @ p * (2.0 if train else 1.0)

    for train, factor in ((True, 2.0), (False, 1.0)):
        model = functools.partial(net, train=train), P
        np.testing.assert_allclose(models.predict(model, X), factor * (X @ P), rtol=1e-5)
        span = surgery.split(model, X, ("input", "output"))[1]
        np.testing.assert_allclose(span(X), factor * (X @ P), rtol=1e-5)


@pytest.mark.parametrize("call", [still, recurrent, nnx.jit(still)])
def test_states_that_the_data_do_not_change_are_no_training(call):
    model = Net(call)
    cuts = surgery.cut_points(model, X)
    assert models.predict(model, X).shape == cuts[-1].shape == (5, 4)


def test_a_fixed_key_makes_a_constant():
    def features(p, x):
        return jnp.cos(x @ jax.random.normal(jax.random.key(0), (4, 8))) @ p

    _, span, _ = surgery.split((features, np.ones((8, 2), np.float32)), X, ("input", "output"))
    np.testing.assert_allclose(
        span(X), features(np.ones((8, 2), np.float32), X), rtol=1e-4, atol=1e-5
    )


class Two(nnx.Module):
    def __init__(self):
        self.a = nnx.Linear(4, 4, rngs=nnx.Rngs(0))

    def __call__(self, x, time):
        return self.a(x) * time


class LinenTwo(linen.Module):
    @linen.compact
    def __call__(self, x, time):
        return linen.Dense(4)(x) * time


@pytest.mark.parametrize("verb", VERBS)
def test_a_second_input_is_refused_and_may_be_bound(verb):
    made = LinenTwo().init(jax.random.key(0), X, 1.0)
    for model in (Two(), (LinenTwo(), made), (lambda p, x, time: x @ p * time, P)):
        with pytest.raises(ValueError, match=r"one input array.*'time'.*functools.partial"):
            VERBS[verb](model)
    VERBS[verb](functools.partial(Two(), time=2.0))
    VERBS[verb]((functools.partial(LinenTwo(), time=2.0), made))


@pytest.mark.parametrize("verb", VERBS)
def test_bare_params_and_what_fails_inside_a_model(verb):
    with pytest.raises(ValueError, match="'params' among the variables"):
        VERBS[verb]((LinenNet("drop", on=False), variables("drop")["params"]))
    with pytest.raises(ValueError, match=r"expected .*contracting dimensions"):
        VERBS[verb]((lambda p, x: x @ p, np.ones((3, 2), np.float32)))


def test_a_function_around_a_module_hides_its_parameters():
    for wrap in (jax.vmap, jax.jit, nnx.jit):
        with pytest.raises(ValueError, match=r"a function around a Linear.*nnx\.split"):
            surgery.cut_points(wrap(nnx.Linear(4, 2, rngs=nnx.Rngs(0))), X)


class Merged(linen.Module):
    """A mode of Flax's own pattern: a field or an argument."""

    deterministic: bool | None = None

    @linen.compact
    def __call__(self, x, deterministic=None):
        still = linen.merge_param("deterministic", self.deterministic, deterministic)
        return linen.Dropout(0.5, deterministic=still)(linen.Dense(2)(x))


def normed_by_field(on):
    variables = linen.BatchNorm(use_running_average=True).init(jax.random.key(0), X)
    return linen.BatchNorm(use_running_average=on), variables


def dropped_by_field(on):
    return Merged(on), Merged(True).init(jax.random.key(0), X)


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("made", [normed_by_field, dropped_by_field])
def test_a_mode_that_is_a_field_is_not_given_twice(made, verb):
    VERBS[verb](made(True))
    VERBS[verb](made(None))
    with pytest.raises(ValueError, match=r"inference mode.*made with \w+=True"):
        VERBS[verb](made(False))


def test_a_module_whose_mode_is_a_field_is_trained():
    found = models.train(
        dropped_by_field(True), X, jnp.arange(5) % 2, key=jax.random.key(0), epochs=1
    )
    assert np.isfinite(found.history[0]["loss"])
