"""Bad input: one clear error that says what was expected, what came and what to do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from koopjax import edmd
from koopjax._core import NONFINITE_DATA, NumericalError
from koopjax.observables import Identity, Monomials, Polynomial1D, Product

X = np.random.default_rng(0).uniform(-1, 1, size=(20, 2)).astype(np.float32)
NAN = np.where(np.arange(40).reshape(20, 2) == 7, np.nan, X).astype(np.float32)
INF = np.where(np.arange(40).reshape(20, 2) == 7, np.inf, X).astype(np.float32)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((X[:, 0], X), r"x of shape \(n, d\).*x\[:, None\]"),
        ((X[None], X), r"x of shape \(n, d\)"),
        ((X, X[:, 0]), r"y of shape \(n, d\)"),
        ((X, X[:-1]), "20 and 19"),
        ((X, X[:, :1]), "2 coordinates of x.*target"),
        ((X[:0], X[:0]), "at least one sample in x, got an empty batch"),
        ((NAN, X), "finite numbers in x, got 1"),
        ((X, INF), "finite numbers in y, got 1"),
        ((X.astype(complex), X), "real numbers in x"),
        ((X,), "y beside an array x"),
        ((3,), "y beside an array x"),
        (([],), "empty stream"),
        (([X, X],), "pairs"),
        (([(X, X), (X[:, :1], X)],), "2 and 2 coordinates as at first"),
        (([(X, NAN)],), "NaN or infinity"),
    ],
)
def test_data(arguments, text):
    with pytest.raises(ValueError, match=text):
        edmd.fit(Monomials(2), *arguments)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"weights": np.ones(3)}, r"weights of shape \(20,\)"),
        ({"weights": -np.ones(20)}, "not negative"),
        ({"weights": np.zeros(20)}, "not all zero"),
        ({"statistics": "qr"}, "statistics 'auto'"),
        ({"solver": edmd.TruncatedSVD(9)}, "rank as a whole number from 1 to 6"),
        ({"solver": edmd.Ridge(-1)}, "alpha of at least 0"),
        ({"solver": "ridge"}, "a solver"),
        ({"folds": 3}, "beside CrossValidated"),
        ({"batch_size": 0}, "batch_size"),
        ({"solver": edmd.Ridge(np.inf)}, "alpha of at least 0, and finite"),
        ({"solver": edmd.Ridge(relative=np.nan)}, "relative of at least 0, and finite"),
        ({"solver": edmd.TruncatedSVD(1.5)}, "rank as a whole number from 1 to 6"),
        ({"solver": edmd.ReducedRank(np.nan)}, "rank as a whole number from 1 to 6"),
        ({"solver": edmd.CrossValidated(edmd.Ridge(), [0.1, np.nan])}, "finite ridges"),
        ({"solver": edmd.CrossValidated(edmd.TruncatedSVD(2), [1, np.nan])}, "ranks from 1 to 6"),
        ({"solver": edmd.CrossValidated(edmd.ReducedRank(2, alpha=-1))}, "alpha of at least 0"),
        ({"target": lambda x: x}, r"target.*Custom\(function, size\)"),
    ],
)
def test_settings(settings, text):
    with pytest.raises(ValueError, match=text):
        edmd.fit(Monomials(2), X, X, **settings)


def test_overflowing_observables_are_named():
    with pytest.raises(ValueError, match="finite observables"):
        edmd.fit(Monomials(8), 1e6 * X, 1e6 * X)


def test_not_finite_under_jit_is_a_code():
    fitted = jax.jit(lambda x: edmd.fit(Monomials(1), x, x, solver=edmd.Ridge(0.1)))(NAN)
    assert int(fitted.result) == NONFINITE_DATA
    with pytest.raises(NumericalError, match="NaN or infinity"):
        edmd.unwrap(fitted)


def test_a_dictionary_too_large_is_refused_beforehand():
    x = jnp.zeros((4, 784))
    with pytest.raises(ValueError, match=r"Monomials\(1\) with 785 .*at most .* observables fit"):
        edmd.fit(Monomials(4), x, x, memory_limit=2**28)
    with pytest.raises(ValueError, match="observables fit"):
        edmd.accumulate(Monomials(3), [(x, x)], target=Identity(), memory_limit=2**28)
    with pytest.raises(ValueError, match="GiB"):
        edmd.fit(Monomials(6), x, x)


def test_a_product_of_many_coordinates_is_refused():
    """3^784 observables: beyond what a float holds, and not to be written out in digits."""
    x = np.zeros((4, 784), np.float32)
    with pytest.raises(ValueError, match=r"got over 10\^374 observables before") as caught:
        edmd.fit(Product.of(Polynomial1D(2), 784), x, x)
    assert len(str(caught.value)) < 300


def test_a_plain_function_is_no_dictionary():
    for use in (
        lambda: edmd.fit(lambda x: x, X, X),
        lambda: edmd.fit(np.tanh, X, X),
        lambda: edmd.accumulate(lambda x: x, X, X),
        lambda: edmd.generator(Monomials, X, X),
    ):
        with pytest.raises(ValueError, match=r"dictionary with size.*Custom\(function, size\)"):
            use()


def test_integers_and_lists_are_taken():
    koopman = edmd.fit(Identity(), [[1, 2], [3, 5], [0, 1]], [[2, 4], [6, 10], [0, 2]])
    np.testing.assert_allclose(koopman.matrix, 2 * np.eye(2), atol=1e-5)


def test_predictions_of_bad_states():
    koopman = edmd.fit(Identity(), X, X)
    for steps in (-1, 1.5):
        with pytest.raises(ValueError, match="whole number of steps"):
            koopman.predict(X, steps)
    with pytest.raises(ValueError, match="whole number of steps"):
        koopman.simulate(X, 0)
    with pytest.raises(ValueError, match=r"\(n, d\)"):
        koopman.predict(X[None])


def test_states_of_another_width():
    koopman = edmd.fit(Monomials(2), X, X)
    wide = np.ones((20, 3), np.float32)
    text = "coordinates of the fit, which give 6 observables, got 3 coordinates, which give 10"
    operator = edmd.generator(Monomials(2), X, -X)
    for use in (
        lambda: koopman.predict(wide),
        lambda: koopman.predict(wide[0]),
        lambda: koopman.predict(wide, 2),
        lambda: koopman.simulate(wide, 2),
        lambda: koopman.eigenfunctions(wide),
        lambda: koopman.residuals(wide, wide),
        lambda: koopman.residuals([(X, wide)]),
        lambda: operator.predict(wide, 1.0),
    ):
        with pytest.raises(ValueError, match=text):
            use()
    with pytest.raises(ValueError, match="2 coordinates of x"):
        koopman.residuals(X, wide)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((X, X, np.ones(3)), r"weights of shape \(20,\)"),
        ((X, X, -np.ones(20)), "not negative"),
        (([(X, X)], None, np.ones(20)), "weights only beside arrays"),
        ((NAN, X), "finite numbers in x"),
        ((X, NAN), "finite numbers in y"),
        (([(X, NAN)],), "NaN or infinity"),
    ],
)
def test_residuals_check_as_fit_does(arguments, text):
    koopman = edmd.fit(Monomials(1), X, X)
    with pytest.raises(ValueError, match=text):
        koopman.residuals(*arguments)


def test_numbers_of_steps_from_numpy():
    koopman = edmd.fit(Monomials(2), X, 0.5 * X, target=Identity())
    for one in (np.int64(1), np.int32(1), jnp.asarray(1), 1.0):
        np.testing.assert_array_equal(koopman.predict(X, one), koopman.predict(X))
    square = edmd.fit(Identity(), X, 0.5 * X)
    assert square.simulate(X, np.int64(3)).shape == (3, 20, 2)
    for steps in (np.nan, np.inf, np.ones(2)):
        with pytest.raises(ValueError, match="whole number of steps"):
            square.predict(X, steps)
