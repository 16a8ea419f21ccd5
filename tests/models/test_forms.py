"""Models of every kind, taken apart and put together, answer as they do alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from koopjax import compress, export, models, surgery
from koopjax._core import Static, firsts, take_apart
from tests.nets import filled, linen_filled, normal, outputs

KEY = jax.random.key(0)
X = np.random.default_rng(0).normal(size=(7, 5, 4)).astype(np.float32)


class Recurrent(nnx.Module):
    def __init__(self, rngs):
        self.cells = nnx.RNN(nnx.GRUCell(4, 3, rngs=rngs), rngs=rngs)
        self.out = nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, x):
        return self.out(self.cells(x)[:, -1])


class Normed(nnx.Module):
    def __init__(self, rngs):
        self.weight = nnx.WeightNorm(nnx.Linear(4, 6, rngs=rngs), rngs=rngs)
        self.spectral = nnx.SpectralNorm(nnx.Linear(6, 2, rngs=rngs), rngs=rngs)

    def __call__(self, x):
        return self.spectral(jnp.tanh(self.weight(x[:, 0])), update_stats=False)


class Visits(nnx.Variable):
    pass


class Counting(nnx.Module):
    """Counts its calls, and runs under `nnx.jit`."""

    def __init__(self, rngs):
        self.linear, self.visits = nnx.Linear(4, 2, rngs=rngs), Visits(jnp.zeros((), jnp.int32))

    @nnx.jit
    def __call__(self, x):
        self.visits[...] += 1
        return self.linear(x[:, 0])


class Scanned(nnx.Module):
    def __init__(self, rngs):
        split = nnx.split_rngs(splits=3)
        self.layers = split(nnx.vmap(lambda rngs: nnx.Linear(4, 4, rngs=rngs)))(rngs)

    def __call__(self, x):
        step = nnx.scan(lambda x, layer: jnp.tanh(layer(x)), in_axes=(nnx.Carry, 0),
                        out_axes=nnx.Carry)  # fmt: skip
        return step(x[:, 0], self.layers)


class Plain(nnx.Module):
    """Arrays outside Variables, a tree in a Variable of the user's own, integers as a parameter."""

    def __init__(self, rngs):
        self.means = nnx.data({"of": np.arange(4.0, dtype=np.float32), "power": 2})
        self.pair = Visits({"scale": jnp.ones(4) * 3, "shift": jnp.ones(4)})
        self.order = nnx.Param(jnp.array([2, 0, 3, 1]))
        self.linear = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        pair = self.pair.get_value()
        x = (x[:, 0] - self.means["of"][None]) ** self.means["power"]
        return self.linear((x * pair["scale"][None] + pair["shift"][None])[:, self.order[...]])


MODULES = {m.__name__: m for m in (Recurrent, Normed, Counting, Scanned, Plain)}


@jax.tree_util.register_pytree_with_keys_class
class Equinox:
    """A callable pytree as Equinox makes them: functions, flags and numbers are leaves too."""

    FIELDS = ("weight", "activation", "times", "double", "missing", "name", "slope")

    def __init__(self, *fields):
        self.__dict__.update(zip(self.FIELDS, fields, strict=True))

    def tree_flatten_with_keys(self):
        keys = [jax.tree_util.GetAttrKey(name) for name in self.FIELDS]
        return list(zip(keys, (getattr(self, name) for name in self.FIELDS), strict=True)), None

    @classmethod
    def tree_unflatten(cls, _, leaves):
        return cls(*leaves)

    def __call__(self, x):
        x = x[:, 0]
        for _ in range(self.times):
            x = self.activation(x @ self.weight) * self.slope
        return 2 * x if self.double and self.missing is None and self.name == "block" else x


def equinox(seed=0, **fields):
    weight = normal(4, 4, seed=seed)
    given = {"weight": weight, "activation": jnp.tanh, "times": 3, "double": True, "missing": None,
             "name": "block", "slope": 0.5} | fields  # fmt: skip
    return Equinox(*given.values())


def module(name):
    kind = MODULES[name]
    # These hold arrays beside their Variables.
    return kind(nnx.Rngs(0)) if kind in (Plain, Normed) else filled(lambda: kind(nnx.Rngs(0)))


@pytest.mark.parametrize("name", MODULES)
def test_modules_that_carry_more_than_parameters(name):
    model = module(name)
    found = models.predict(model, X, 3)
    if name == "Counting":
        assert model.visits[...] == 0  # the model is left as it was
    model.eval()
    np.testing.assert_allclose(found, outputs(model, X), atol=1e-5)


@pytest.mark.parametrize("name", ["Recurrent", "Counting", "Plain"])
def test_they_train(name):
    model = module(name)
    y = np.zeros((7, 2), np.float32)
    settings = {"key": KEY, "epochs": 8, "batch_size": 3, "learning_rate": 0.03}
    result = models.train(model, X, y, loss=models.squared_error, **settings)
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    if name == "Counting":
        assert result.model.visits[...] == 16
        assert model.visits[...] == 0
    if name == "Plain":
        np.testing.assert_array_equal(result.model.order[...], model.order[...])
        np.testing.assert_array_equal(result.model.means["of"], model.means["of"])


def test_a_callable_tree_keeps_what_is_no_array():
    model = equinox()
    whole = model(X)
    call = lambda held, x: held(x)
    np.testing.assert_allclose(models.predict(model, X, 3), whole, atol=1e-6)
    np.testing.assert_allclose(models.predict((call, model), X, 3), whole, atol=1e-6)
    once = equinox(times=1, double=1)  # another outline: 1 is not True
    np.testing.assert_allclose(models.predict(once, X, 3), once(jnp.asarray(X)), atol=1e-6)
    settings = {"key": KEY, "epochs": 2, "batch_size": 4, "loss": models.squared_error}
    for given in (model, (call, model)):
        trained = models.train(given, X, np.zeros((7, 4), np.float32), **settings).model
        trained = trained[1] if isinstance(trained, tuple) else trained
        assert (trained.activation, trained.times, trained.double) == (jnp.tanh, 3, True)
        assert not np.allclose(trained.weight, model.weight)


def test_statics_are_equal_by_value_and_type():
    one, pairs = take_apart({"a": np.ones(2), "n": 3, "f": jnp.tanh, "g": 2.0})
    assert [path[0].key for path, _ in pairs] == ["a", "g"]
    again, _ = take_apart({"a": np.zeros(2), "n": 3, "f": jnp.tanh, "g": 1.0})
    assert one == again
    assert hash(one) == hash(again)
    assert one != take_apart({"a": np.ones(2), "n": True, "f": jnp.tanh, "g": 2.0})[0]
    assert one.fill([1, 2]) == {"a": 1, "n": 3, "f": jnp.tanh, "g": 2}
    assert one.fill([1, 2], statics=False) == {"a": 1, "n": None, "f": None, "g": 2}
    held = {3}  # has no hash, and may be changed
    assert Static(held) == Static(held) != Static({3})


def test_one_array_at_two_leaves_is_seen_by_its_memory():
    a, b = jnp.ones(3), np.ones((2, 2))
    assert firsts([a, b, jnp.ones(3), a, b, b.T, np.zeros(0), np.zeros(0)])[:6] == [
        0,
        1,
        2,
        0,
        1,
        5,
    ]


def coupled(params, x):
    """Each answer depends on the batch, as with capacities and statistics."""
    return (x[:, 0] - jnp.mean(x[:, 0], axis=0, keepdims=True)) @ params


def test_nothing_fills_up_the_last_batch():
    w = np.eye(4, dtype=np.float32)
    each = jax.jit(lambda w: [coupled(w, X[:4]), coupled(w, X[4:])])
    whole = np.concatenate(each(w))
    np.testing.assert_allclose(models.predict((coupled, w), X, 4), whole, atol=1e-6)
    y = np.argmax(whole, -1)
    assert models.accuracy((coupled, w), X, y, 4) == 1.0


@pytest.mark.parametrize("size", [2, 5, 7])  # 5 is the length of time as well
def test_outputs_with_time_first(size):
    model = (lambda p, x: jnp.tanh(jnp.swapaxes(x, 0, 1) @ p), np.eye(4, dtype=np.float32))
    found = models.predict(model, X, size)
    np.testing.assert_allclose(found, np.tanh(np.swapaxes(X, 0, 1)), atol=1e-6)
    with pytest.raises(ValueError, match="the batch on axis 0, got on axis 1"):
        models.accuracy(model, X, np.zeros((7, 5), int), size)


def test_outputs_that_do_not_follow_the_batch_are_refused():
    total = (lambda p, x: jnp.sum(x * p, axis=0), np.float32(1))
    assert models.predict(total, X).shape == (5, 4)  # of all at once it is what the model says
    with pytest.raises(ValueError, match=r"one axis as long as the batch.*batch_size=len"):
        models.predict(total, X, 3)
    with pytest.raises(ValueError, match="whose output is one array, got tuple"):
        models.predict((lambda p, x: (x, p), np.float32(1)), X)


def test_a_bound_linen_module_is_the_pair_of_module_and_variables():
    net = linen.Sequential([linen.Dense(6), jnp.tanh, linen.Dense(2)])
    x = X[:, 0]
    variables = linen_filled(net, x)
    bound = net.bind(variables)
    np.testing.assert_allclose(
        models.predict(bound, x), jax.jit(net.apply)(variables, x), rtol=1e-5
    )
    assert abs(export.stored_bytes(bound) - export.stored_bytes((net, variables))) < 16
    assert surgery.cut_points(bound, x) == surgery.cut_points((net, variables), x)
    with pytest.raises(ValueError, match=r"expected a Linen model as the pair .* alone"):
        models.predict(net, x)


class Encoder(nnx.Module):
    def __init__(self, rngs):
        self.a, self.b = nnx.Linear(4, 6, rngs=rngs), nnx.Linear(6, 2, rngs=rngs)

    def encode(self, x):
        return self.b(jnp.tanh(self.a(x)))


@nnx.jit
def encoded(net, x):
    return net.encode(x)


@pytest.mark.parametrize("wrap", [lambda net: net.encode, lambda net: jax.vmap(net.encode)])
def test_what_hides_its_parameters_is_predicted_and_neither_cut_nor_stored(wrap):
    net, x = filled(lambda: Encoder(nnx.Rngs(0))), np.repeat(X[:, 0], 4, axis=0)
    hidden = wrap(net)
    np.testing.assert_allclose(models.predict(hidden, x), encoded(net, x), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="expected a model whose parameters can be seen"):
        export.stored_bytes(hidden)
    with pytest.raises(ValueError, match="expected a model whose parameters can be seen"):
        compress.magnitude(hidden, x, "2x", key=KEY)


def test_a_bound_method_is_cut_as_the_pair_that_its_refusal_names():
    net, x = filled(lambda: Encoder(nnx.Rngs(0))), X[:, 0]
    with pytest.raises(ValueError, match=r"nnx\.merge\(graphdef, state\)\.encode\(x\), state\)"):
        surgery.cut_points(net.encode, x)
    graphdef, state = nnx.split(net)
    pair = (lambda state, x: nnx.merge(graphdef, state).encode(x), state)
    head, span, tail = surgery.split(pair, x, ("input", "output"))
    np.testing.assert_allclose(tail(span(head(x))), encoded(net, x), rtol=1e-5, atol=1e-6)


def test_parameters_in_any_byte_order():
    w = np.random.default_rng(0).normal(size=(4, 2)).astype(">f4")
    net = lambda p, x: jnp.tanh(x @ p)
    x = X[:, 0]
    want = np.tanh(x @ w.astype(np.float32))
    np.testing.assert_allclose(models.predict((net, w), x), want, rtol=1e-5)
    head, span, tail = surgery.split((net, w), x, ("input", "output"))
    np.testing.assert_allclose(tail(span(head(x))), want, rtol=1e-5)
