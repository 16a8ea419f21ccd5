"""Combinations, separable products, functions and networks, and sizes beforehand."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from koopjax import observables as ob
from tests.observables.dictionaries import D, LinenNet, data, linear, shifted_sine

KEY = jax.random.key(2)


def test_concat_and_compose_are_what_they_say():
    x = data(5)
    a, b = ob.Monomials(2), ob.Standardize.fit(x)
    both = ob.Concat(a, b)
    np.testing.assert_array_equal(both(x), np.concatenate([a(x), b(x)], axis=1))
    np.testing.assert_allclose(ob.Compose(b, a)(x), a(b(x)), rtol=1e-6)
    assert ob.Compose(b, a).names(4)[1] == "z(x0)"
    assert jax.tree.structure(ob.Concat([a, b])) == jax.tree.structure(ob.Concat(a, b))
    with pytest.raises(ValueError, match="at least one dictionary"):
        ob.Concat()(x)


class Foreign:
    """A dictionary that knows nothing of ours."""

    def __call__(self, x):
        return x[:, :2] ** 2

    def size(self, d):
        return 2

    def names(self, d, inputs=None):
        return ["first", "second"]


jax.tree_util.register_static(Foreign)


def test_a_foreign_dictionary_may_be_a_part():
    x = data(5)
    out = np.asarray(ob.Concat(ob.Identity(), Foreign())(x))
    np.testing.assert_allclose(out[:, 4:], x[:, :2] ** 2, rtol=1e-6)
    np.testing.assert_allclose(
        np.asarray(ob.Select(Foreign(), [1])(x))[:, 0], x[:, 1] ** 2, rtol=1e-6
    )


def test_select_runs_over_choices_and_checks_them():
    x, psi = data(6), ob.Monomials(2)
    choices = np.array([[0, 1, 2], [14, 13, 12]])
    out = jax.jit(jax.vmap(lambda i: ob.Select(psi, i)(x)))(choices)
    np.testing.assert_allclose(out[1], np.asarray(psi(x))[:, choices[1]], rtol=1e-6)
    for bad in ([15], [-1]):
        with pytest.raises(ValueError, match=r"indices in \[0, 15\)"):
            ob.Select(psi, bad)(x)
    with pytest.raises(ValueError, match="flatnonzero"):
        ob.Select(psi, np.ones(15, bool))(x)
    assert ob.Select(psi, range(3))(x).shape == (6, 3)


def test_product_is_the_outer_product():
    x = np.asarray(data(3), np.float64)
    psi = ob.Product([ob.Polynomial1D(k) for k in (1, 2, 0, 3)])
    assert psi.modes() == (2, 3, 1, 4)
    powers = itertools.product(range(2), range(3), range(1), range(4))
    expected = np.stack([np.prod(x ** np.array(p), axis=1) for p in powers], axis=1)
    np.testing.assert_allclose(psi(x), expected, rtol=1e-4, atol=1e-5)
    parts = psi.factors_at(x)
    assert [p.shape for p in parts] == [(3, 2), (3, 3), (3, 1), (3, 4)]
    full = np.einsum("na,nb,nc,nd->nabcd", *parts).reshape(3, -1)
    np.testing.assert_allclose(psi(x), full, rtol=1e-5)


def test_product_of_many_coordinates_is_counted_and_not_formed():
    psi = ob.Product.of(ob.Polynomial1D(1), 200)
    assert psi.size(200) == 2**200
    assert len(psi.factors_at(np.ones((2, 200)))) == 200
    for call in (lambda: psi(np.ones((2, 200))), lambda: psi.names(200)):
        with pytest.raises(ValueError, match=r"at most .* try"):
            call()
    with pytest.raises(ValueError, match="200 coordinates"):
        psi.factors_at(np.ones((2, 3)))


def test_univariate_families():
    t = np.linspace(-1, 1, 5).astype(np.float32)
    np.testing.assert_allclose(ob.Polynomial1D(2).evaluate(t), np.vander(t, 3, increasing=True))
    assert ob.Polynomial1D(3, "legendre").names() == ["1", "P1(x0)", "P2(x0)", "P3(x0)"]
    waves = np.asarray(ob.Trigonometric(2, 3.0).evaluate(t))
    np.testing.assert_allclose(waves[:, 4], np.sin(6 * t), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.sum(np.asarray(ob.CosSin().evaluate(t)) ** 2, 1), 1, rtol=1e-6)
    bumps = np.asarray(ob.Gaussian1D(jnp.array([0.0, 1.0]), 0.5).evaluate(t))
    np.testing.assert_allclose(bumps[:, 2], np.exp(-2 * (t - 1) ** 2), rtol=1e-5)
    with pytest.raises(ValueError, match="1 coordinates for CosSin"):
        ob.CosSin()(np.ones((2, 3)))


def test_neural_evaluates_the_module_in_inference_mode():
    rngs = nnx.Rngs(0)
    parts = linear(3, rngs), nnx.BatchNorm(3, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)
    net = nnx.Sequential(*parts)
    nnx.jit(lambda net, x: net(x))(net, data(50))  # moves the batch statistics
    psi, x = ob.Neural(net), data(5)
    before = np.asarray(parts[1].mean[...])
    first = psi(x)
    np.testing.assert_array_equal(psi(x), first)
    np.testing.assert_array_equal(parts[1].mean[...], before)
    net.eval()
    np.testing.assert_allclose(first, nnx.jit(lambda net, x: net(x))(net, x), rtol=1e-5)
    grads = jax.jit(jax.grad(lambda psi: jnp.sum(psi(x) ** 2)))(psi)  # no integer leaf in the way
    assert any(np.any(np.asarray(g)) for g in jax.tree.leaves(grads.params))
    assert all(not np.any(np.asarray(g)) for g in jax.tree.leaves(grads.rest))
    assert isinstance(psi.module, nnx.Module)


@pytest.mark.parametrize("form", ["nnx", "linen"])
def test_neural_trains(form):
    x = data(64)
    if form == "nnx":
        psi = ob.Neural(linear(3))
    else:
        net = LinenNet(3)
        psi = ob.Neural((net, jax.jit(net.init)(KEY, x)))
    target = np.tanh(x[:, :3])
    optimizer = optax.adam(0.05)

    @jax.jit
    def step(psi, state):
        loss, grads = jax.value_and_grad(lambda psi: jnp.mean((psi(x) - target) ** 2))(psi)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(psi, updates), state, loss

    state, losses = jax.jit(optimizer.init)(psi), []
    for _ in range(30):
        psi, state, loss = step(psi, state)
        losses.append(float(loss))
    assert losses[-1] < 0.3 * losses[0]
    assert step._cache_size() == 1


def test_neural_refuses_what_is_no_network():
    for thing in (None, 3, (1, 2)):
        with pytest.raises(ValueError, match=r"expected an nnx\.Module"):
            ob.Neural(thing)
    with pytest.raises(ValueError, match="'params'"):
        ob.Neural((LinenNet(), {}))


def test_custom_reads_batches_and_single_states():
    x = data(2, 2)
    batch = ob.Custom(lambda x: jnp.stack([x[:, 0], x[:, 1] ** 2], axis=1), 2)
    single = ob.Custom(lambda s: jnp.stack([s[0], s[1] ** 2]), 2)
    np.testing.assert_array_equal(batch(x), single(x))
    with pytest.raises(ValueError, match="to map"):
        ob.Custom(shifted_sine, 3)(x)

    def broken(x):
        raise KeyError("my own error")

    with pytest.raises(KeyError, match="my own error"):
        ob.Custom(broken, 3)(x)
    for size in (None, 0, 2.5):
        with pytest.raises(ValueError, match="size of Custom"):
            ob.Custom(shifted_sine, size)(x)


def test_custom_sees_values_from_an_outer_gradient():
    x = data(3)

    def loss(w):
        return jnp.sum(ob.Custom(lambda x: x * w, D)(x))

    np.testing.assert_allclose(jax.jit(jax.grad(loss))(2.0), np.sum(x), rtol=1e-5)


def test_bytes_and_what_fits():
    assert ob.bytes_needed(ob.Monomials(2), 10, 100) == 10 * 5151 * 4
    report = ob.fits(ob.Monomials(2), 100, 10**9)
    assert report.ok
    assert report.advice == ""
    assert report.needed == 2 * 5151**2 * 4
    report = ob.fits(ob.Compose(ob.Identity(), ob.Orthogonal(4)), 100, 2**30, rows=1000)
    assert not report.ok
    assert report.advice.startswith('Orthogonal(2, "hermite") with 5,151 observables, or Project')
    p = report.largest
    assert (2 * p * p + 1000 * p) * 4 <= 2**30 < (2 * (p + 1) ** 2 + 1000 * (p + 1)) * 4
    k = ob.largest_dimension(4, p)
    assert math.comb(k + 4, 4) <= p < math.comb(k + 5, 4)
    assert ob.largest_degree(100, 5151) == 2
    assert ob.largest_degree(100, 5150) == 1
    assert "at most" in ob.fits(ob.Custom(shifted_sine, 10**6), 4, 2**20).advice


def test_where_the_state_occurs():
    x = data(4)
    cases = [
        ob.Identity(),
        ob.Monomials(2),
        ob.Concat(ob.Orthogonal(2), ob.Monomials(1)),
        ob.Compose(ob.Monomials(1), ob.Identity()),
        ob.Compose(ob.Concat(ob.Monomials(0), ob.Identity()), ob.Monomials(2)),
        ob.Select(ob.Monomials(2), [4, 0, 3, 2, 1]),
    ]
    for psi in cases:
        np.testing.assert_array_equal(np.asarray(psi(x))[:, ob.contains_state(psi, D)], x)
    for psi in (ob.Monomials(0), ob.Orthogonal(2), ob.Select(ob.Monomials(2), [1, 2])):
        assert ob.contains_state(psi, D) is None


def test_every_public_name_is_documented():
    assert sorted(ob.__all__) == ob.__all__
    assert len(set(ob.__all__)) == len(ob.__all__)
    for name in ob.__all__:
        assert getattr(ob, name).__doc__
