"""What the digits of the observables and of the sums decide: rank, least norm, the way taken."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from koopjax import edmd, observables as ob
from koopjax._core import ILL_CONDITIONED, RANK_DEFICIENT, SUCCESS, message

KINDS = ("gram", "rfactor")


def dependent(units=(1.0, 1.0, 1.0, 1.0, 1.0)):
    """Five coordinates on a plane to float32's rounding, and targets that are not linear."""
    rng = np.random.default_rng(4)
    x = rng.normal(size=(300, 2)) @ rng.normal(size=(2, 5)) * np.array(units)
    y = np.sin(x / np.array(units) @ rng.normal(size=(5, 2)))
    return x.astype(np.float32), y.astype(np.float32)


def least_norm(x, y, units=None):
    """By SVD in float64, with the rank that exact coordinates have."""
    lifted = np.concatenate([np.ones((len(x), 1)), x], 1).astype(np.float64)
    return np.linalg.lstsq(lifted, y, rcond=1e-5)[0]


@pytest.mark.parametrize("kind", [*KINDS, "auto"])
def test_dependent_float32_observables(kind):
    x, y = dependent()
    fit = edmd.fit(ob.Monomials(1), x, y, target=ob.Identity(), statistics=kind)
    assert int(fit.result) == RANK_DEFICIENT
    assert int(fit.info.rank) == 3
    np.testing.assert_allclose(fit.matrix, least_norm(x, y), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("solver", [edmd.TruncatedSVD(6), edmd.ReducedRank(2)], ids=["svd", "rrr"])
def test_dependent_observables_by_other_solvers(kind, solver):
    x, y = dependent()
    fit = edmd.fit(ob.Monomials(1), x, y, target=ob.Identity(), statistics=kind, solver=solver)
    assert int(fit.result) == RANK_DEFICIENT
    np.testing.assert_allclose(fit.matrix, least_norm(x, y), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_rank_does_not_depend_on_units(kind):
    x, y = dependent((1e5, 1e-5, 1.0, 1.0, 1e3))
    fit = edmd.fit(ob.Monomials(1), x, y, target=ob.Identity(), statistics=kind)
    assert int(fit.info.rank) == 3
    plain = edmd.fit(ob.Monomials(1), *dependent(), target=ob.Identity(), statistics=kind)
    np.testing.assert_allclose(fit.predict(x), plain.predict(dependent()[0]), atol=1e-3)


def test_float64_observables_keep_their_rank():
    # What depends to float32's rounding is independent in float64.
    with jax.enable_x64(True):
        x, y = (a.astype(np.float64) for a in dependent())
        for kind in KINDS:
            stats = edmd.accumulate(ob.Monomials(1), x, y, target=ob.Identity(), statistics=kind)
            assert stats.observed == ""
        assert int(edmd.solve(stats).info.rank) == 6


def test_statistics_know_the_precision_of_their_observables():
    x, y = dependent()
    for kind in KINDS:
        whole = edmd.accumulate(ob.Monomials(1), x, y, target=ob.Identity(), statistics=kind)
        assert whole.observed == "float32"
        parts = [whole.select(jnp.arange(3)), whole.scale(2.0), whole.merge(whole)]
        parts += [whole.to_gram(), whole.of_targets(1), whole.astype(jnp.float64)]
        assert {part.observed for part in parts} == {"float32"}
        mixed = whole.merge(type(whole).empty(6, 2, jnp.float64))
        assert mixed.observed == "float32"
        narrow = edmd.accumulate(ob.Monomials(1), x, y, accumulate_dtype="float32",
                                 target=ob.Identity(), statistics=kind)  # fmt: skip
        assert narrow.observed == ""


def test_gradients_on_the_numerical_rank_are_finite():
    x, y = dependent()
    stats = edmd.accumulate(ob.Monomials(1), x, y, target=ob.Identity(), statistics="rfactor")
    stats = stats.astype(jnp.float32)
    error = lambda s: jnp.sum(edmd.solve(s).value ** 2)
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(jax.grad(error)(stats)))


@pytest.mark.parametrize("degree", [1, 3])
def test_the_sums_that_were_asked_for_are_taken(degree):
    x = np.random.default_rng(0).uniform(0.5, 1.5, (400, 3)).astype(np.float32)
    fit = edmd.fit(ob.Monomials(degree), x, np.tanh(x), target=ob.Identity(),
                   accumulate_dtype="float32")  # fmt: skip
    assert (fit.info.statistics, fit.info.dtype) == ("gram", "float32")
    assert fit.info.reason == "Gram: one pass in the accumulate_dtype that was asked for"
    # Cubes of numbers near 1: too much for a float32 Gram matrix, and said.
    assert int(fit.result) == (SUCCESS if degree == 1 else ILL_CONDITIONED)


def test_advice_names_what_keeps_more_digits():
    assert "more than a Gram matrix" in message(ILL_CONDITIONED)
