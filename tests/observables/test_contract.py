"""What every dictionary promises, alone or in combination."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from koopjax import observables as ob
from koopjax.observables import _base
from tests.observables.dictionaries import DICTIONARIES, D, data

ALL = pytest.mark.parametrize("psi", DICTIONARIES.values(), ids=DICTIONARIES.keys())


@jax.jit
def outside(psi, x):
    return psi(x)


@ALL
def test_sizes_names_jit_and_vmap_agree(psi):
    x = data(7)
    p, eager = psi.size(D), psi(x)
    assert eager.shape == (7, p)
    assert np.all(np.isfinite(eager))
    for names in (psi.names(D), psi.names(D, list("abcd"))):
        assert len(names) == p
        assert all(isinstance(name, str) and name for name in names)
    np.testing.assert_allclose(outside(psi, x), eager, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(jax.vmap(psi)(x), eager, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["hermite", "product_mixed", "custom_single", "nested"])
def test_no_rows_and_many_axes(name):
    psi, x = DICTIONARIES[name], data(6)
    assert psi(x[:0]).shape == (0, psi.size(D))
    np.testing.assert_allclose(psi(x.reshape(2, 3, D)).reshape(6, -1), psi(x), rtol=1e-5, atol=1e-6)


@ALL
def test_dtype_in_is_dtype_out(psi):
    x = data(7)
    assert psi(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16
    with jax.enable_x64(True):
        wide = psi(x.astype(jnp.float64))
        assert wide.dtype == jnp.float64
    np.testing.assert_allclose(wide, psi(x), rtol=1e-4, atol=1e-5)


def test_integers_become_floats():
    whole = jnp.arange(8).reshape(2, 4)
    for psi in (ob.Identity(), ob.Monomials(2)):
        out = psi(whole)
        assert out.dtype == jnp.float32
        np.testing.assert_array_equal(out, psi(whole.astype(jnp.float32)))


@jax.jit
def jacobians(psi, x):
    return jax.vmap(jax.jacfwd(psi))(x)


@ALL
def test_forward_derivatives_are_finite_differences(psi):
    x = data(2, seed=5).at[1].set(0)
    directions = data(2, seed=6)
    derivative = np.einsum("npd,nd->np", jacobians(psi, x), directions)
    with jax.enable_x64(True):
        a, b, h = x.astype(jnp.float64), directions.astype(jnp.float64), 1e-5
        both = psi(jnp.concatenate([a + h * b, a - h * b]))
        difference = (both[:2] - both[2:]) / (2 * h)
    np.testing.assert_allclose(derivative, difference, rtol=2e-3, atol=2e-4)


@jax.jit
def gradients(psi, x):
    return jax.grad(lambda psi: jnp.sum(psi(x) ** 2), allow_int=True)(psi)


@ALL
def test_gradients_reach_the_leaves(psi):
    grads = gradients(psi, data(7))
    for value, grad in zip(jax.tree.leaves(psi), jax.tree.leaves(grads), strict=True):
        assert jnp.shape(value) == grad.shape
        if jnp.issubdtype(jnp.result_type(value), jnp.floating):
            assert np.all(np.isfinite(grad))


@ALL
def test_rebuilt_dictionary_is_the_same_and_is_not_traced_again(psi):
    x = data(7)
    first = psi(x)
    leaves, structure = jax.tree.flatten(psi)
    again = jax.tree.unflatten(structure, [jnp.array(leaf) for leaf in leaves])
    assert jax.tree.structure(again) == structure
    before = _base._evaluate._cache_size()
    np.testing.assert_array_equal(again(x), first)
    again(x + 1)
    assert _base._evaluate._cache_size() <= before + 1  # weak types and NumPy leaves settle once
    settled = _base._evaluate._cache_size()
    jax.tree.unflatten(structure, [jnp.array(leaf) for leaf in leaves])(x)
    assert _base._evaluate._cache_size() == settled


@ALL
def test_structure_survives_any_leaves(psi):
    jax.tree.map(lambda _: object(), psi)
    jax.tree.map(lambda _: None, psi)
    shapes = jax.eval_shape(lambda psi: psi, psi)
    abstract = jax.eval_shape(outside, shapes, jax.ShapeDtypeStruct((3, D), jnp.float32))
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
    psi, x = DICTIONARIES["rbf"], data(5)
    widths = jnp.array([1.0, 2.0, 3.0])
    sweep = jax.vmap(lambda w: ob.GaussianRBF(psi.centers, w)(x))(widths)
    for k, width in enumerate(widths):
        one = ob.GaussianRBF(psi.centers, width)(x)
        np.testing.assert_allclose(sweep[k], one, rtol=1e-5, atol=1e-7)


def test_equal_settings_share_one_compilation():
    x = data(11)
    ob.Compose(ob.Identity(), ob.Orthogonal(2))(x)
    before = _base._evaluate._cache_size()
    ob.Compose(ob.Identity(), ob.Orthogonal(2))(x)
    assert _base._evaluate._cache_size() == before
