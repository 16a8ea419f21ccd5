"""Numbers on their way into a fit and out of it: none changes, whatever dtype they come in."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from koopjax import edmd, tensor_edmd
from koopjax.observables import (
    Compose,
    Identity,
    Monomials,
    Polynomial1D,
    Product,
    Project,
    Standardize,
)

RNG = np.random.default_rng(0)
Z = RNG.normal(size=(120, 2))
K = np.array([[0.9, 0.2], [-0.1, 0.7]])


def r2(got, want):
    error = np.asarray(got, np.float64) - want
    return 1 - np.sum(error**2) / np.sum((want - want.mean(0)) ** 2)


@pytest.mark.parametrize("offset", [3e6, -2e7, 1.5e8])
def test_states_far_from_the_origin(offset):
    """Fit, stream, prediction, spectrum and residuals, each against the map of the near states."""
    x, near = Z + offset, Z @ K
    psi = Compose(Standardize.fit(x), Monomials(1))
    onto = edmd.fit(psi, x, near, target=Identity())
    assert int(onto.result) == 0
    assert r2(onto.predict(x), near) > 1 - 1e-9
    np.testing.assert_allclose(np.asarray(onto.predict(x[3:4])), near[3:4], atol=1e-5)
    streamed = edmd.fit(psi, [(x[:60], near[:60]), (x[60:], near[60:])], target=Identity())
    assert r2(streamed.predict(x), near) > 1 - 1e-9

    square = edmd.fit(psi, x, near + offset)
    assert r2(square.predict(x), near + offset) > 1 - 1e-9
    assert r2(square.predict(x, 3), Z @ K @ K @ K + offset) > 1 - 1e-6
    np.testing.assert_allclose(sorted(square.eigenvalues().real), [0.8, 0.8, 1], atol=1e-3)
    halves = [(x[:60], near[:60] + offset), (x[60:], near[60:] + offset)]
    for residuals in (square.residuals(x, near + offset), square.residuals(halves)):
        assert np.max(residuals) < 1e-5
    states = square.eigenfunctions(x) @ square.modes()
    assert r2(states.real, x) > 1 - 1e-6


def test_near_states_stay_in_single_precision():
    koopman = edmd.fit(Monomials(1), Z, Z @ K)
    assert koopman.matrix.dtype == koopman.predict(Z).dtype == jnp.float32
    assert isinstance(koopman.predict(Z), jax.Array)


def test_standardisation_of_a_stream_of_single_states():
    rows = Standardize.fit(row[None] for row in Z + 1e8)
    np.testing.assert_allclose(rows.mean, Z.mean(0) + 1e8, rtol=1e-15)
    np.testing.assert_allclose(rows(Z + 1e8), (Z - Z.mean(0)) / Z.std(0), atol=1e-6)
    direction = Project.pca(Z * [3, 1] + 1e8, 1)(Z * [3, 1] + 1e8)
    np.testing.assert_allclose(
        np.var(direction), np.linalg.eigvalsh(np.cov((Z * [3, 1]).T))[1], rtol=0.05
    )


@pytest.mark.parametrize("shift", [0, 3 * 2**31])
def test_integers(shift):
    x = RNG.integers(0, 10**9, (80, 1)) + shift
    koopman = edmd.fit(Monomials(1), x, x / 4, target=Identity())
    assert float(koopman.matrix[1, 0]) == pytest.approx(0.25, rel=1e-4)
    np.testing.assert_allclose(Identity()(x), x.astype(float), rtol=1e-7)


def test_weights_are_what_they_say():
    y = Z @ K + RNG.normal(size=Z.shape)
    w = np.where(np.arange(120) < 4, 2**32 + 1, 1)
    want = np.linalg.lstsq(Z * np.sqrt(w)[:, None], y * np.sqrt(w)[:, None], rcond=None)[0]
    onto = Identity()
    for koopman in (
        edmd.fit(Identity(), Z, y, onto, weights=w),
        edmd.fit(Identity(), [(Z, y, w)], target=onto),
    ):
        np.testing.assert_allclose(koopman.matrix, want, atol=1e-4)


def test_a_centre_beyond_32_bits():
    shift = Standardize(np.array([2**33, 5]))
    np.testing.assert_allclose(shift(np.array([2**33 + 4096.0, 6.0])), [4096, 1])


class Frame:
    def __init__(self, values):
        self.values = values

    def to_numpy(self, dtype=None):
        return np.asarray(self.values, dtype)


@pytest.mark.parametrize("form", [np.ma.array, Frame, np.ndarray.tolist, lambda a: a.astype(">f8")])
def test_frames_lists_and_byte_orders_wherever_arrays_are_taken(form):
    x, y = form(Z), form(Z @ K)
    psi = Compose(Standardize.fit(x), Monomials(1))
    koopman = edmd.fit(psi, x, y, weights=form(np.ones(120)))
    np.testing.assert_allclose(koopman.predict(x), Z @ K, atol=1e-5)
    np.testing.assert_allclose(koopman.simulate(x, 2)[1], Z @ K @ K, atol=1e-5)
    assert koopman.eigenfunctions(x).shape == (120, 3)
    assert np.max(koopman.residuals(x, y)) < 1e-5
    gram = edmd.Gram.from_batch(x, y)
    np.testing.assert_allclose(gram.cross, Z.T @ (Z @ K), rtol=1e-4)


def test_what_single_precision_cannot_hold():
    huge = Z * 1e39
    psi = Compose(Standardize.fit(huge), Monomials(1))
    assert r2(edmd.fit(psi, huge, Z @ K, target=Identity()).predict(huge), Z @ K) > 1 - 1e-9
    with pytest.raises(ValueError, match=r"real numbers in x.*real and imaginary parts as coord"):
        edmd.fit(Identity(), Z + 1j, Z)
    with pytest.raises(ValueError, match=r"weights that fit in float32.*1e.39"):
        edmd.fit(Identity(), Z, Z, weights=np.full(120, 1e39))


def fitted(x):
    psi = Compose(Standardize.fit(x), Monomials(1))
    return edmd.fit(psi, x, x @ K)


def test_what_was_fitted_under_x64_is_used_outside():
    with jax.enable_x64(True):
        koopman, generator = fitted(jnp.asarray(Z)), edmd.generator(Monomials(1), Z, -Z)
    single = Z.astype(np.float32)
    for x in (single, Z, jnp.asarray(single), Z.tolist()):
        np.testing.assert_allclose(koopman.predict(x), Z @ K, atol=1e-5)
        np.testing.assert_allclose(koopman.predict(x, 2), Z @ K @ K, atol=1e-5)
        np.testing.assert_allclose(koopman.psi(x)[:, 1:].mean(0), [0, 0], atol=1e-6)
    assert koopman.predict(single).dtype == jnp.float32
    np.testing.assert_allclose(sorted(koopman.eigenvalues().real), [0.8, 0.8, 1], atol=1e-6)
    assert np.max(koopman.residuals(single, single @ K.astype(np.float32))) < 1e-5
    functions = koopman.eigenfunctions(single)
    np.testing.assert_allclose((functions @ koopman.modes()).real, Z, atol=1e-4)
    np.testing.assert_allclose(generator.predict(single, 1.0), np.exp(-1) * Z, atol=1e-5)
    np.testing.assert_allclose(sorted(generator.eigenvalues().real), [-1, -1, 0], atol=1e-6)
    compiled = jax.jit(lambda k, x: k.predict(x))(koopman, single)
    np.testing.assert_allclose(compiled, Z @ K, atol=1e-5)
    slope = jax.grad(lambda x: jnp.sum(koopman.predict(x)))(jnp.asarray(single))
    np.testing.assert_allclose(slope[0], K.sum(1), atol=1e-5)


def test_amuset_of_float64_arrays_meets_float32():
    psi = Product.of(Polynomial1D(1), 2)
    fit = tensor_edmd.amuset(psi, Z, Z @ K)
    single = Z.astype(np.float32)
    np.testing.assert_allclose(fit.predict(single), Z @ K, atol=1e-4)
    assert fit.eigenfunctions(single).shape == (120, len(fit.eigenvalues()))
    assert np.isfinite(fit.residuals(single, single @ K.astype(np.float32))).all()


def test_local_data_on_a_mesh_over_processes_are_refused(monkeypatch):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))
    monkeypatch.setattr(jax, "process_index", lambda: 7)
    for data in ((Z, Z @ K), ([(Z, Z @ K)],)):
        with pytest.raises(ValueError, match=r"global arrays.*make_array_from_process_local_data"):
            edmd.fit(Identity(), *data, mesh=mesh)
    with pytest.raises(ValueError, match=r"expected a jax\.sharding\.Mesh"):
        edmd.fit(Identity(), Z, Z, mesh=types.SimpleNamespace(size=1))


SOLVERS = [
    edmd.Ridge(1e-3, 1e-3),
    edmd.TruncatedSVD(2),
    edmd.ReducedRank(1, np.eye(2)),
    edmd.CrossValidated(edmd.ReducedRank(1), {"rank": [1, 2], "alpha": None}, "one_se", folds=2),
]


@pytest.mark.parametrize("statistics", ["gram", "rfactor"])
def test_strict_promotion_and_nan_checks_break_nothing(statistics):
    """Dependent observables too, where a factorisation is tried that may break down."""
    x = Z.astype(np.float32)
    same = np.concatenate([x, x[:, :1]], 1)
    with jax.numpy_dtype_promotion("strict"), jax.debug_nans(True):
        for solver in SOLVERS:
            koopman = edmd.fit(
                Monomials(1), x, x @ K, target=Identity(), solver=solver, statistics=statistics
            )
            assert np.isfinite(koopman.matrix).all()
        koopman = edmd.fit(Monomials(1), same, same, statistics=statistics)
        assert np.isfinite(koopman.predict(same, 2)).all()
        assert np.isfinite(koopman.residuals(same, same)).all()
