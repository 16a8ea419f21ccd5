"""A model that closes over something which changes is cut as it is at that moment."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from koopjax import models, observables, surgery

X = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
P = jax.device_put(np.random.default_rng(1).normal(size=(4, 2)).astype(np.float32))
FACTOR = 1.0


class Settings:
    gain = 1.0


settings = Settings()
module = types.ModuleType("settings")
module.gain = 1.0
several = [1.0]
array = np.ones((1, 2), np.float32)
slope = {"value": 1.0}


@jax.custom_vjp
def sloped(h):
    return h


sloped.defvjp(lambda h: (h, None), lambda _, g: (g * slope["value"],))


def net(p, x):
    factor = FACTOR * settings.gain * module.gain * several[0]
    return sloped(jnp.tanh(x @ p)) * factor * array


def change_global():
    global FACTOR
    FACTOR = 2.0


CHANGES = {
    "global": change_global,
    "attribute": lambda: setattr(settings, "gain", 3.0),
    "module": lambda: setattr(module, "gain", 4.0),
    "list": lambda: several.__setitem__(0, 5.0),
    "array in place": lambda: array.__setitem__(0, 6.0),
    "derivative rule": lambda: slope.__setitem__("value", 7.0),
}


def gradient(f):
    return jax.jit(jax.grad(lambda x: jnp.sum(f(x))))(X)


@pytest.mark.parametrize("change", CHANGES)
def test_every_verb_notices(change):
    psi = observables.Custom(functools.partial(net, P), 2)
    neural = observables.Neural((net, P))

    def check():
        _, span, _ = surgery.split((net, P), X, ("input", "output"))
        plain = jax.jit(lambda x: net(P, x))  # traced anew, as it is now
        want = np.asarray(plain(X))
        for got in (span(X), models.predict((net, P), X), psi(X), neural(X)):
            np.testing.assert_allclose(got, want, rtol=1e-5)
        found = gradient(span)
        np.testing.assert_allclose(found, gradient(plain), rtol=1e-5)
        return want, found

    before = check()
    CHANGES[change]()
    after = check()
    assert not all(np.allclose(a, b) for a, b in zip(before, after, strict=True))


def test_a_part_that_is_traced_anew_after_a_change_is_refused():
    held = {"gain": 1.0}
    model = (lambda p, x: jnp.tanh(x @ p) * held["gain"]), P
    _, span, _ = surgery.split(model, X, ("input", "output"))
    before = span(X)
    held["gain"] = 2.0
    np.testing.assert_array_equal(span(X), before)  # compiled: as it was when it was cut
    with pytest.raises(ValueError, match=r"what it computed when it was cut.*cutting it again"):
        span(X[:2])
    held["gain"] = 1.0


def test_parameters_of_numpy_that_change_in_place_leave_a_part_alone():
    own = np.array(P)
    _, span, _ = surgery.split((lambda p, x: x @ p, own), X, ("input", "output"))
    own[:] = 0
    np.testing.assert_allclose(span(X), X @ np.asarray(P), rtol=1e-5)


def test_nothing_is_compiled_where_nothing_has_changed(caplog):
    psi = observables.Custom(jnp.sin, 4)

    def run():
        psi(X)
        models.predict((net, P), X)
        surgery.split((net, P), X, ("input", "output"))[1](X)

    run()
    with jax.log_compiles(True), caplog.at_level("WARNING"):
        run()
    assert not [record for record in caplog.records if "compil" in record.getMessage().lower()]
