"""The systems against their own closed forms, in float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from koopjax.data import systems

KEY = jax.random.key(0)
# A program for each call in place of one for each operation.
run = lambda function, *arguments: jax.jit(function)(*arguments)


def drawn(system, n, **box):
    """Snapshots in float64, by one program."""
    return run(lambda system: system.snapshots(KEY, n, dtype=jnp.float64, **box), system)


ALL = [
    systems.Linear(np.array([[0.9, 0.1], [0.0, 0.5]])),
    systems.SlowManifold(),
    systems.Duffing(),
    systems.VanDerPol(),
    systems.FermiPastaUlam(d=4),
    systems.Logistic(),
]


@pytest.mark.parametrize("system", ALL, ids=lambda system: type(system).__name__)
def test_contract(system):
    x, y = system.snapshots(KEY, 20)
    assert x.shape == y.shape
    assert x.shape[0] == 20
    assert x.dtype == y.dtype == jnp.float32
    again = jax.jit(lambda system: system.snapshots(KEY, 20))(system)
    np.testing.assert_allclose(again[1], y, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="at least one sample"):
        system.snapshots(KEY, 0)
    with jax.enable_x64(True):
        of = lambda system: system.snapshots(KEY, 3, dtype=jnp.float64)
        assert {a.dtype for a in jax.eval_shape(of, system)} == {np.dtype("float64")}


def test_linear_eigenvalues_are_products():
    with jax.enable_x64(True):
        system = systems.Linear(jnp.array([[0.9, 0.2], [-0.3, 0.7]], jnp.float64))
        values = system.eigenvalues(2)
        assert values.shape == (6,)
        a = np.linalg.eigvals(np.asarray(system.matrix))
        expected = [1, *a, a[0] ** 2, a[0] * a[1], a[1] ** 2]
        for value in expected:
            assert np.min(np.abs(values - value)) < 1e-14
        x = np.random.default_rng(0).normal(size=(5, 2))
        np.testing.assert_allclose(system.step(jnp.asarray(x)), x @ np.asarray(system.matrix))


def test_linear_refuses_a_state_of_another_size():
    with pytest.raises(ValueError, match=r"states \(\.\.\., d\)"):
        systems.Linear(np.eye(3)).step(jnp.ones((2, 2)))


def test_slow_manifold_flow_solves_its_equation():
    with jax.enable_x64(True):
        system = systems.SlowManifold(mu=-0.1, lam=-1.5, dt=0.3)
        x, y = drawn(system, 30)
        np.testing.assert_allclose(
            y, run(lambda x: systems.runge_kutta(system.drift, x, 0.3, 200), x), atol=1e-11
        )
        values = system.eigenvalues()
        np.testing.assert_allclose(
            run(system.eigenfunctions, y),
            np.asarray(run(system.eigenfunctions, x)) * values,
            atol=1e-13,
        )
        psi_x, psi_y = system.invariant(x), system.invariant(y)
        K = np.linalg.lstsq(np.asarray(psi_x), np.asarray(psi_y), rcond=None)[0]
        found = np.sort(np.linalg.eigvals(K).real)
        np.testing.assert_allclose(found, np.sort(values), atol=1e-12)


def test_slow_manifold_at_resonance():
    with pytest.raises(ValueError, match="lam that differs from 2 mu"):
        systems.SlowManifold(mu=-1.0, lam=-2.0).step(jnp.ones((1, 2)))


def evaluate(coefficients, x):
    """A polynomial from its exponents, without the library."""
    x = np.asarray(x, np.float64)
    return sum(
        np.prod(x ** np.array(exponents), axis=1)[:, None] * np.asarray(values)
        for exponents, values in coefficients.items()
    )


@pytest.mark.parametrize("system", [systems.Duffing(), systems.VanDerPol(mu=1.7)])
def test_oscillators_have_the_coefficients_they_claim(system):
    with jax.enable_x64(True):
        x, y = drawn(system, 40)
        np.testing.assert_allclose(
            run(system.drift, x), evaluate(system.coefficients(), x), atol=1e-12
        )
        fine = run(lambda x: systems.runge_kutta(system.drift, x, system.dt, 200), x)
        np.testing.assert_allclose(y, fine, atol=2e-6)


@pytest.mark.parametrize("point", [0, 1, 2])
def test_duffing_linearised(point):
    with jax.enable_x64(True):
        system = systems.Duffing(alpha=-1.0, beta=0.25, delta=0.3)
        at = jnp.asarray(system.fixed_points()[point])
        np.testing.assert_allclose(run(system.drift, at), np.zeros(2), atol=1e-14)
        expected = np.linalg.eigvals(np.asarray(run(jax.jacobian(system.drift), at)))
        found = system.generator_eigenvalues(point)
        np.testing.assert_allclose(np.sort_complex(found), np.sort_complex(expected), atol=1e-12)
    assert systems.Duffing(alpha=1.0).fixed_points().shape == (1, 2)


def test_undamped_duffing_keeps_its_energy():
    with jax.enable_x64(True):
        system = systems.Duffing(delta=0.0)
        x, _ = drawn(system, 10)
        path = run(lambda x: systems.trajectory(system.step, x, 20), x)
        assert path.shape == (21, 10, 2)
        energy = np.asarray(run(system.energy, path))
        np.testing.assert_allclose(energy, np.broadcast_to(energy[0], (21, 10)), atol=1e-5)


def test_van_der_pol_linearised_and_its_limit_cycle():
    system = systems.VanDerPol(mu=0.5)
    jacobian = np.asarray(run(jax.jacobian(system.drift), np.zeros(2, np.float32)))
    found = np.sort_complex(system.generator_eigenvalues())
    np.testing.assert_allclose(found, np.sort_complex(np.linalg.eigvals(jacobian)), atol=1e-6)
    # For small mu the cycle has radius 2.
    path = systems.trajectory(systems.VanDerPol(mu=0.05).step, jnp.array([[0.5, 0.0]]), 3000)
    np.testing.assert_allclose(np.abs(np.asarray(path)[-200:, 0, 0]).max(), 2.0, atol=0.02)


@pytest.mark.parametrize("d", [1, 2, 5])
def test_chain_coefficients_are_exact(d):
    with jax.enable_x64(True):
        system = systems.FermiPastaUlam(d=d, beta=0.7)
        x, y = drawn(system, 25, low=-1.0, high=1.0)
        np.testing.assert_allclose(y, evaluate(system.coefficients(), x), atol=1e-12)
        tensor = system.coefficient_tensor()
        assert tensor.shape == (4,) * d + (d,)
        value = np.broadcast_to(tensor, (25, *tensor.shape))
        for k in range(d):
            powers = np.asarray(x)[:, k, None] ** np.arange(4)
            value = np.einsum("na,na...->n...", powers, value)
        np.testing.assert_allclose(y, value, atol=1e-12)


def test_chain_by_hand():
    # Three masses, the middle one moved by 1: it is pulled from both sides, its neighbours once.
    pulled = systems.FermiPastaUlam(d=3, beta=0.5).acceleration(jnp.array([0.0, 1.0, 0.0]))
    np.testing.assert_allclose(pulled, [1.5, -3.0, 1.5])
    with pytest.raises(ValueError, match=r"positions of 3 masses.*try FermiPastaUlam\(d=2\)"):
        systems.FermiPastaUlam(d=3).acceleration(jnp.ones((4, 2)))
    with pytest.raises(ValueError, match=r"entries.*try coefficients\(\)"):
        systems.FermiPastaUlam(d=12).coefficient_tensor()


def test_chain_conserves_energy():
    with jax.enable_x64(True):
        system = systems.FermiPastaUlam(d=4)
        x = np.random.default_rng(0).normal(size=(6, 8)) * 0.3
        slope = run(jax.vmap(lambda x: jax.grad(system.energy)(x) @ system.drift(x)), x)
        np.testing.assert_allclose(slope, np.zeros(6), atol=1e-13)


def test_logistic_closed_forms():
    with jax.enable_x64(True):
        system = systems.Logistic()
        x, _ = drawn(system, 50)
        path = np.asarray(run(lambda x: systems.trajectory(system.step, x, 8), x))
        np.testing.assert_allclose(path[-1], run(lambda x: system.orbit(x, 8), x), atol=1e-11)
        # The density: the mass of [0, y] is that of its two preimages.
        grid = (np.arange(400_000) + 0.5) / 400_000
        density = np.asarray(run(system.invariant_density, grid))
        assert abs(density.mean() - 1) < 2e-3
        for k in (1, 2, 5):
            assert abs((density * grid**k).mean() - system.moment(k)) < 2e-3
        y = 0.3
        root = math.sqrt(1 - y)
        low, high = (1 - root) / 2, (1 + root) / 2
        mass = density[grid <= low].mean() * low + density[grid >= high].mean() * (1 - high)
        assert abs(mass - density[grid <= y].mean() * y) < 4e-3
        # Lyapunov exponent as the mean of log |derivative| under the density.
        assert abs((density * np.log(np.abs(4 - 8 * grid))).mean() - system.lyapunov()) < 5e-3


@pytest.mark.parametrize("r", [4.0, 2.5])
def test_logistic_monomials_are_carried_exactly(r):
    with jax.enable_x64(True):
        system = systems.Logistic(r)
        x, y = drawn(system, 20)
        K = system.koopman_matrix(3)
        psi = np.asarray(x) ** np.arange(7)
        np.testing.assert_allclose(psi @ K, np.asarray(y) ** np.arange(4), atol=1e-11)


@pytest.mark.parametrize(("k", "bernoulli"), [(1, [1, -1, 1 / 6]), (2, [1, -2, 1, 0, -1 / 30])])
def test_logistic_transfer_eigenvalues(k, bernoulli):
    """In the tent map's angle, `f(t) = B_2k(t/2)` is carried to `4^-k f`."""
    theta = np.linspace(0, 1, 101)

    def f(t):
        return np.polyval(bernoulli, t / 2)

    # The tent map has two inverse branches of slope a half.
    carried = (f(theta / 2) + f(1 - theta / 2)) / 2
    values = systems.Logistic().eigenvalues(3)
    np.testing.assert_allclose(carried, values[k] * f(theta), atol=1e-15)


def test_logistic_away_from_chaos_has_no_closed_form():
    with pytest.raises(ValueError, match="r=4, where it is known"):
        systems.Logistic(3.0).eigenvalues(2)
