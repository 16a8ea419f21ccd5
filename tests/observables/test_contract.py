"""What every dictionary promises, alone or in combination."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from koopjax import observables as ob
from koopjax.observables import _base
from tests.observables.dictionaries import DICTIONARIES, D, data

X, AT, ALONG, STEP = data(7), data(2, seed=5), data(2, seed=6), 1e-5
AT[1] = 0


@jax.jit
def traced(psi, x, at):
    """Values, lanes, Jacobians and the gradient in the leaves: one program a dictionary."""
    slope = jax.grad(lambda psi: jnp.sum(psi(x) ** 2), allow_int=True)(psi)
    return psi(x), jax.vmap(psi)(x), jax.vmap(jax.jacfwd(psi))(at), slope


@functools.cache
def looked_at(name):
    """What the tests of a dictionary look at: eager, traced, and in float64 at shifted states."""
    psi = DICTIONARIES[name]
    with jax.enable_x64(True):
        rows = np.concatenate([X, AT + STEP * ALONG.astype(float), AT - STEP * ALONG.astype(float)])
        wide = psi(rows)
        assert wide.dtype == jnp.float64
    return psi, np.asarray(psi(X)), traced(psi, X, AT), np.asarray(wide)


ALL = pytest.mark.parametrize("name", DICTIONARIES)


@ALL
def test_sizes_names_jit_and_vmap_agree(name):
    psi, eager, (jitted, lanes, _, _), _ = looked_at(name)
    p = psi.size(D)
    assert eager.shape == (7, p)
    assert np.all(np.isfinite(eager))
    for names in (psi.names(D), psi.names(D, list("abcd"))):
        assert len(names) == p
        assert all(isinstance(name, str) and name for name in names)
    np.testing.assert_allclose(jitted, eager, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(lanes, eager, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["hermite", "product_mixed", "custom_single", "nested"])
def test_no_rows_and_many_axes(name):
    psi, x = DICTIONARIES[name], data(6)
    assert psi(x[:0]).shape == (0, psi.size(D))
    np.testing.assert_allclose(psi(x.reshape(2, 3, D)).reshape(6, -1), psi(x), rtol=1e-5, atol=1e-6)


@ALL
def test_dtype_in_is_dtype_out(name):
    psi, eager, _, wide = looked_at(name)
    half = jax.eval_shape(psi, jax.ShapeDtypeStruct(X.shape, jnp.bfloat16))
    assert (half.dtype, eager.dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_allclose(wide[:7], eager, rtol=1e-4, atol=1e-5)


def test_integers_become_floats():
    whole = np.arange(8).reshape(2, 4)
    for psi in (ob.Identity(), ob.Monomials(2)):
        out = psi(whole)
        assert out.dtype == jnp.float32
        np.testing.assert_array_equal(out, psi(whole.astype(np.float32)))


@ALL
def test_forward_derivatives_are_finite_differences(name):
    _, _, (_, _, jacobians, _), wide = looked_at(name)
    derivative = np.einsum("npd,nd->np", jacobians, ALONG)
    difference = (wide[7:9] - wide[9:]) / (2 * STEP)
    np.testing.assert_allclose(derivative, difference, rtol=2e-3, atol=2e-4)


@ALL
def test_gradients_reach_the_leaves(name):
    psi, _, (_, _, _, slopes), _ = looked_at(name)
    for value, slope in zip(jax.tree.leaves(psi), jax.tree.leaves(slopes), strict=True):
        assert jnp.shape(value) == slope.shape
        if jnp.issubdtype(jnp.result_type(value), jnp.floating):
            assert np.all(np.isfinite(slope))


@ALL
def test_rebuilt_dictionary_is_the_same_and_is_not_traced_again(name):
    psi, first, _, _ = looked_at(name)
    leaves, structure = jax.tree.flatten(psi)
    rebuilt = lambda: jax.tree.unflatten(
        structure, [jax.device_put(np.array(leaf)) for leaf in leaves]
    )
    again = rebuilt()
    assert jax.tree.structure(again) == structure
    before = _base._evaluate._cache_size()
    np.testing.assert_array_equal(again(X), first)
    again(X + 1)
    assert _base._evaluate._cache_size() <= before + 1  # weak types and NumPy leaves settle once
    settled = _base._evaluate._cache_size()
    rebuilt()(X)
    assert _base._evaluate._cache_size() == settled


@ALL
def test_structure_survives_any_leaves(name):
    psi = DICTIONARIES[name]
    jax.tree.map(lambda _: object(), psi)
    jax.tree.map(lambda _: None, psi)
    shapes = jax.eval_shape(lambda psi: psi, psi)
    abstract = jax.eval_shape(lambda psi, x: psi(x), shapes, jax.ShapeDtypeStruct((3, D), X.dtype))
    assert abstract.shape == (3, psi.size(D))


def test_wrong_number_of_coordinates_says_what_to_do():
    for name in ("rbf", "fourier", "nested", "product_mixed"):
        with pytest.raises(ValueError, match=r"expected inputs with 4 coordinates .* got 5; try"):
            DICTIONARIES[name](data(3, 5))
    for name in ("nnx", "linen"):
        with pytest.raises(ValueError, match="expected a network in Neural that takes states of 5"):
            DICTIONARIES[name](data(3, 5))
    with pytest.raises(ValueError, match="expected the function of Custom to map"):
        DICTIONARIES["custom"](data(3, 5))


def test_scalar_complex_and_misnamed_inputs_are_refused():
    with pytest.raises(ValueError, match="got a scalar"):
        ob.Identity()(1.0)
    with pytest.raises(ValueError, match="expected real numbers in the states"):
        ob.Identity()(jnp.ones((2, 2), jnp.complex64))
    with pytest.raises(ValueError, match=r"expected 4 input names, got \["):
        ob.Monomials(2).names(4, ["a"])


def test_vmap_over_a_leaf():
    psi, x = DICTIONARIES["rbf"], X
    widths = np.array([1.0, 2.0, 3.0], np.float32)
    sweep = jax.jit(jax.vmap(lambda w: ob.GaussianRBF(psi.centers, w)(x)))(widths)
    for k, width in enumerate(widths):
        one = ob.GaussianRBF(psi.centers, jnp.asarray(width))(x)
        np.testing.assert_allclose(sweep[k], one, rtol=1e-5, atol=1e-7)


def test_equal_settings_share_one_compilation():
    x = data(11)
    ob.Compose(ob.Identity(), ob.Orthogonal(2))(x)
    before = _base._evaluate._cache_size()
    ob.Compose(ob.Identity(), ob.Orthogonal(2))(x)
    assert _base._evaluate._cache_size() == before
