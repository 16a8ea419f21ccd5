"""`fit` and the operator: closed forms, choice of statistics, readouts, streams, spectrum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from koopjax import edmd
from koopjax._core import (
    ILL_CONDITIONED,
    RANK_DEFICIENT,
    SUCCESS,
    UNDERDETERMINED,
)
from koopjax.observables import Compose, Custom, GaussianRBF, Identity, Monomials, Select

MU, LAM, DT = -0.05, -1.0, 0.1


def slow_manifold(x, dt=DT):
    """Exact flow of `x1' = μ x1`, `x2' = λ (x2 − x1²)`; linear in [x1, x2, x1²]."""
    b = LAM / (LAM - 2 * MU)
    first = np.exp(MU * dt) * x[:, 0]
    second = b * first**2 + np.exp(LAM * dt) * (x[:, 1] - b * x[:, 0] ** 2)
    return np.stack([first, second], axis=1)


SLOW = Select(Monomials(2), jnp.array([1, 2, 3]))
SLOW_EIGENVALUES = np.exp(DT * np.array([MU, 2 * MU, LAM]))


def states(n=200, d=2, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).uniform(-1, 1, size=(n, d)).astype(dtype)


@pytest.mark.parametrize("statistics", ["auto", "gram", "rfactor"])
def test_slow_manifold_in_float64(statistics):
    x = states()
    with jax.enable_x64(True):
        koopman = edmd.fit(SLOW, x, slow_manifold(x), statistics=statistics)
        values = np.asarray(koopman.eigenvalues())
        far = np.asarray(koopman.predict(x, 7))
        residuals = np.asarray(koopman.residuals(x, slow_manifold(x)))
    np.testing.assert_allclose(values, SLOW_EIGENVALUES, atol=1e-10)
    np.testing.assert_allclose(far, slow_manifold(x, 7 * DT), atol=1e-10)
    assert residuals.max() < 1e-10
    assert int(koopman.result) == SUCCESS
    assert koopman.matrix.dtype == np.float64


@pytest.mark.parametrize("statistics", ["auto", "rfactor"])
def test_linear_system_in_float64(statistics):
    x = states(50)
    with jax.enable_x64(True):
        step = np.array([[0.8, 0.3], [0.0, 0.7]])
        koopman = edmd.fit(Identity(), x, x @ step, statistics=statistics)
        values = np.asarray(koopman.eigenvalues())
    np.testing.assert_allclose(values, [0.8, 0.7], atol=1e-10)
    assert int(koopman.result) == SUCCESS


def degree_eight(statistics, accumulate_dtype):
    x = states(500, 2, dtype=np.float32)
    y = (x @ np.array([[0.9, 0.1], [0.0, 0.7]], np.float32)).astype(np.float32)
    koopman = edmd.fit(Monomials(8), x, y, statistics=statistics, accumulate_dtype=accumulate_dtype)
    exact = np.array([0.9**i * 0.7**j for i in range(9) for j in range(9 - i)])
    got = np.asarray(koopman.eigenvalues())
    return koopman, np.abs(np.sort_complex(got) - np.sort(exact)).max()


def test_degree_eight_in_float32_needs_r_factors():
    by_gram, gram_error = degree_eight("gram", jnp.float32)
    by_r, r_error = degree_eight("rfactor", jnp.float32)
    by_choice, error = degree_eight("auto", None)
    assert r_error < 1e-4  # 3e-6
    assert error < 1e-4
    assert gram_error > 100 * r_error  # 1e-2 or 1e-3, as the processor rounds
    assert int(by_r.result) == SUCCESS
    assert int(by_choice.result) == SUCCESS
    assert int(by_gram.result) == ILL_CONDITIONED
    assert by_gram.info.dtype == "float32"
    assert by_gram.info.statistics == "gram"
    assert by_r.info.statistics == "rfactor"


def test_auto_changes_to_r_factors_where_the_condition_asks(rng):
    x = states(300, 2, dtype=np.float32)
    y = np.tanh(x)
    easy = edmd.fit(Monomials(2), x, y, target=Identity())
    assert (easy.info.statistics, easy.info.dtype) == ("gram", "float64")
    assert "low enough" in easy.info.reason
    wide = GaussianRBF(x[:12], 4.0)
    hard = edmd.fit(wide, x, y, target=Identity())
    assert hard.info.statistics == "rfactor"
    assert "too high" in hard.info.reason
    assert float(hard.info.residual) < 0.05
    # Solved well, but its terms cancel beyond what float32 predictions can stand; a ridge helps.
    assert float(hard.info.cancellation) > 1e4
    assert int(hard.result) == ILL_CONDITIONED
    calm = edmd.fit(wide, x, y, target=Identity(), solver=edmd.Ridge(relative=1e-8))
    assert int(calm.result) == SUCCESS
    # With the ridge, float32 predictions have the residual that the statistics promise.
    error = np.linalg.norm(calm.predict(x) - y) / np.linalg.norm(y)
    np.testing.assert_allclose(error, float(calm.info.residual), rtol=1e-2)
    assert float(calm.info.cancellation) < 1e-2 * float(hard.info.cancellation)
    batches = [(x[i : i + 100], y[i : i + 100]) for i in range(0, 300, 100)]
    again = edmd.fit(wide, batches, target=Identity())
    assert again.info.statistics == "rfactor"
    scale = float(np.abs(hard.matrix).max())
    np.testing.assert_allclose(again.matrix, hard.matrix, atol=1e-4 * scale)
    once = edmd.fit(wide, iter(batches), target=Identity())
    assert once.info.statistics == "gram"
    assert "second time" in once.info.reason
    assert int(once.result) == ILL_CONDITIONED


def test_traced_fit_is_differentiable_and_agrees(rng):
    x = states(60, 2, dtype=np.float32)
    y = np.tanh(2 * x)

    def koopman(scale):
        return edmd.fit(Monomials(2), scale * x, y, target=Identity(), solver=edmd.Ridge(1e-2))

    jitted = jax.jit(koopman)(1.1)
    eager = koopman(jnp.float32(1.1))
    np.testing.assert_allclose(jitted.matrix, eager.matrix, atol=1e-4)
    assert "traced" in jitted.info.reason
    assert jitted.info.dtype == "float32"
    loss = lambda s: jnp.mean((koopman(s).predict(s * x) - y) ** 2)
    slope = jax.jit(jax.grad(loss))(1.1)
    np.testing.assert_allclose(slope, (loss(1.15) - loss(1.05)) / 0.1, rtol=5e-2, atol=1e-5)


def test_weights_repeat_samples():
    x = states(20, 2, dtype=np.float32)
    y = np.tanh(x)
    w = np.arange(20) % 3
    weighted = edmd.fit(Monomials(1), x, y, weights=w.astype(np.float32))
    repeated = edmd.fit(Monomials(1), np.repeat(x, w, 0), np.repeat(y, w, 0))
    np.testing.assert_allclose(weighted.matrix, repeated.matrix, atol=1e-6)


def test_targets_and_readouts():
    x = states(200, 2, dtype=np.float32)
    y = np.stack([x[:, 0] * x[:, 1], 0.5 * x[:, 0]], axis=1)
    onto_state = edmd.fit(Monomials(2), x, y, target=Identity())
    assert onto_state.matrix.shape == (6, 2)
    assert onto_state.readout is None
    np.testing.assert_allclose(onto_state.predict(x), y, atol=1e-6)
    np.testing.assert_allclose(onto_state.predict(x[3]), y[3], atol=1e-6)
    # A target that does not hold the state as columns: the readout is regressed.
    twisted = Compose(Custom(_twist, 2), Monomials(1))
    onto_other = edmd.fit(Monomials(2), x, y, target=twisted)
    assert onto_other.readout.shape == (3, 2)
    np.testing.assert_allclose(onto_other.predict(x), y, atol=1e-5)
    for use in (onto_other.eigenvalues, onto_other.modes, lambda: onto_other.predict(x, 2)):
        with pytest.raises(ValueError, match="square K"):
            use()
    with pytest.raises(ValueError, match="square K"):
        onto_state.eigenfunctions(x)


def _twist(x):
    return x @ jnp.array([[1.0, 2.0], [-1.0, 1.0]], x.dtype)


def test_the_state_is_read_off_where_the_dictionary_holds_it():
    """Regressed under the same ridge it would be shrunk a second time."""
    x = states(50, 2, dtype=np.float32)
    y = np.tanh(x)
    square = edmd.fit(Monomials(2), x, y, solver=edmd.Ridge(5.0))
    onto_state = edmd.fit(Monomials(2), x, y, target=Identity(), solver=edmd.Ridge(5.0))
    np.testing.assert_array_equal(square.readout, _columns())
    np.testing.assert_allclose(square.predict(x), onto_state.predict(x), atol=1e-6)
    np.testing.assert_allclose(square.predict(x, 0), x, atol=1e-7)
    other = edmd.fit(Monomials(1), x, y, target=Monomials(2), solver=edmd.Ridge(5.0))
    np.testing.assert_array_equal(other.readout, _columns())
    operator = edmd.generator(Monomials(2), x, -x, solver=edmd.Ridge(5.0))
    np.testing.assert_array_equal(operator.readout, _columns())


def _columns():
    """Columns 1 and 2 of six: where `Monomials(2)` has the two coordinates."""
    return np.eye(6, dtype=np.float32)[:, 1:3]


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_types_keep_counts_ridges_and_a_spectrum(dtype):
    x = jnp.asarray(states(1001, 2).astype(dtype))
    koopman = edmd.fit(Monomials(1), x, x / 2, solver=edmd.Ridge(1e-9))
    assert koopman.matrix.dtype == koopman.readout.dtype == koopman.predict(x).dtype == dtype
    assert koopman.info.count.dtype == np.float32
    assert float(koopman.info.count) == 1001
    assert float(koopman.info.alpha) == np.float32(1e-9)
    np.testing.assert_allclose(np.abs(koopman.eigenvalues()), [1, 0.5, 0.5], atol=5e-3)
    phi, modes = np.asarray(koopman.eigenfunctions(x)), np.asarray(koopman.modes())
    assert phi.dtype == modes.dtype == np.complex64
    np.testing.assert_allclose(phi @ modes, np.asarray(x, np.float32), atol=2e-2)
    assert np.max(koopman.residuals(x, x / 2)) < 2e-2
    operator = edmd.generator(Monomials(1), x, -x)
    assert operator.info.count.dtype == np.float32
    np.testing.assert_allclose(operator.eigenvalues().real, [0, -1, -1], atol=5e-3)
    assert operator.predict(x, 0.5).dtype == dtype


def test_residuals_with_weights_repeat_samples():
    x = states(20, 2, dtype=np.float32)
    w = np.arange(20) % 3
    koopman = edmd.fit(Monomials(1), x, np.tanh(x))
    weighted = koopman.residuals(x, np.tanh(x), w)
    repeated = koopman.residuals(np.repeat(x, w, 0), np.repeat(np.tanh(x), w, 0))
    np.testing.assert_allclose(weighted, repeated, atol=1e-6)


def test_a_target_of_other_width():
    x = states(100, 3, dtype=np.float32)
    koopman = edmd.fit(Monomials(1), x, x[:, :2], target=Monomials(1))
    assert koopman.matrix.shape == (4, 3)
    np.testing.assert_allclose(koopman.predict(x), x[:, :2], atol=1e-5)


def test_complex_spectrum_vectors_and_modes():
    angle = 0.3
    step = 0.95 * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    x = states(80)
    with jax.enable_x64(True):
        koopman = edmd.fit(Monomials(2), x, x @ step)
        found = koopman.eigenvalues(), koopman.right, koopman.left, koopman.matrix
        values, right, left, k = map(np.asarray, found)
        np.testing.assert_allclose(k @ right, right * values[None, :], atol=1e-12)
        np.testing.assert_allclose(left.conj().T @ k, values[:, None] * left.conj().T, atol=1e-12)
        np.testing.assert_allclose(left.conj().T @ right, np.eye(6), atol=1e-12)
        phi, modes = np.asarray(koopman.eigenfunctions(x)), np.asarray(koopman.modes())
        np.testing.assert_allclose(phi @ modes, x, atol=1e-12)
        np.testing.assert_allclose((phi * values[None, :] ** 4) @ modes, koopman.predict(x, 4))
        np.testing.assert_allclose(koopman.eigenfunctions(x @ step), phi * values[None, :])
        np.testing.assert_allclose(np.asarray(koopman.simulate(x, 3))[2], koopman.predict(x, 3))
        np.testing.assert_allclose(koopman.predict(x, 0), x, atol=1e-12)
    one = 0.95 * np.exp(1j * angle)
    exact = [1, one, one.conj(), abs(one) ** 2, one**2, one.conj() ** 2]
    assert all(np.abs(np.asarray(values) - e).min() < 1e-12 for e in exact)
    moduli = np.abs(values)
    assert (np.diff(moduli) < 1e-12).all()
    assert np.asarray(values)[1].imag > 0 > np.asarray(values)[2].imag


def test_residuals_tell_spurious_pairs():
    """`x → x²` on [0, 1]: monomials of degree 2 miss x⁴, so its eigenpairs can't be trusted."""
    x = states(400, 1, dtype=np.float32)
    koopman = edmd.fit(Monomials(2), x, x**2)
    residuals = koopman.residuals(x, x**2)
    psi = lambda a: np.asarray(Monomials(2)(a), np.complex128)
    values, right = np.asarray(koopman.eigenvalues()), np.asarray(koopman.right)
    before, after = psi(x) @ right, psi(x**2) @ right
    expected = np.linalg.norm(after - values * before, axis=0) / np.linalg.norm(before, axis=0)
    np.testing.assert_allclose(residuals, expected, atol=1e-5)
    assert float(residuals[0]) < 1e-5 < 0.05 < float(residuals.max())
    pairs = [(x[:150], x[:150] ** 2), (x[150:], x[150:] ** 2)]
    np.testing.assert_allclose(koopman.residuals(pairs), residuals, atol=1e-5)


def test_eigenvalues_on_the_host_agree_and_have_derivatives():
    from koopjax._core import _linalg

    k = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 5)), jnp.float32)
    host, _ = jax.jit(jax.vmap(_linalg._on_host))(k)
    for lane in range(2):
        want = np.sort_complex(np.asarray(_linalg.eig(k[lane])[0]))
        np.testing.assert_allclose(np.sort_complex(np.asarray(host[lane])), want, atol=1e-5)
    with jax.enable_x64(True):
        a = jnp.asarray(k[0], jnp.float64)
        moduli = jax.jit(lambda t: jnp.abs(_linalg.eig(a + t * jnp.eye(5)[::-1])[0]))
        slope = jax.jvp(moduli, (0.0,), (1.0,))[1]
        np.testing.assert_allclose(slope, (moduli(1e-6) - moduli(-1e-6)) / 2e-6, rtol=1e-5)


def test_flags_of_fit():
    x = states(40, 3, dtype=np.float32)
    x[:, 1] = 0.25
    constant = edmd.fit(Monomials(2), x, np.tanh(x))
    assert int(constant.result) == RANK_DEFICIENT
    assert int(constant.info.rank) == 6
    assert np.isfinite(constant.matrix).all()
    x[:, 1] = 0
    assert int(edmd.fit(Identity(), x, np.tanh(x)).info.rank) == 2
    few = edmd.fit(Monomials(2), x[:5], np.tanh(x[:5]))
    assert int(few.result) == UNDERDETERMINED
    # A ridge above rounding makes either problem a unique one; the rank stays on record.
    for rows in (40, 5):
        for solver in (edmd.Ridge(1e-2), edmd.Ridge(relative=1e-4), edmd.ReducedRank(2, alpha=0.1)):
            ridged = edmd.fit(Monomials(2), x[:rows], np.tanh(x[:rows]), solver=solver)
            assert int(ridged.result) == SUCCESS
        below = edmd.fit(Monomials(2), x[:rows], np.tanh(x[:rows]), solver=edmd.Ridge(1e-18))
        assert int(below.result) != SUCCESS
    assert int(edmd.fit(Monomials(2), x, x, solver=edmd.Ridge(0.1)).info.rank) == 6
    psi = lambda a: np.asarray(Monomials(2)(a))
    found = psi(x[:5]) @ np.asarray(few.matrix)
    np.testing.assert_allclose(found, psi(np.tanh(x[:5])), atol=1e-4)


def test_generator_of_the_slow_manifold():
    x = states(100)
    drift = lambda x: jnp.stack([MU * x[:, 0], LAM * (x[:, 1] - x[:, 0] ** 2)], axis=1)
    with jax.enable_x64(True):
        operator = edmd.generator(SLOW, x, drift)
        np.testing.assert_allclose(operator.eigenvalues(), [MU, 2 * MU, LAM], atol=1e-10)
        np.testing.assert_allclose(operator.predict(x, 0.7), slow_manifold(x, 0.7), atol=1e-10)
        step = operator.koopman(DT)
        np.testing.assert_allclose(step.eigenvalues(), SLOW_EIGENVALUES, atol=1e-10)
        phi = np.asarray(operator.eigenfunctions(x))
        np.testing.assert_allclose(phi @ np.asarray(operator.modes()), x, atol=1e-10)
        values = np.stack([MU * x[:, 0], LAM * (x[:, 1] - x[:, 0] ** 2)], axis=1)
        by_values = edmd.generator(SLOW, x, values, statistics="rfactor")
        np.testing.assert_allclose(by_values.matrix, operator.matrix, atol=1e-10)
    assert int(operator.result) == SUCCESS


def test_generator_of_a_diffusion():
    """Ornstein-Uhlenbeck in two coupled noises: eigenvalues 0, −1, −2, ... in each coordinate."""
    x = states(200)
    sigma = np.array([[0.7, 0.2], [0.0, 0.5]])
    with jax.enable_x64(True):
        for diffusion in (sigma, lambda x: jnp.broadcast_to(sigma, (len(x), 2, 2))):
            operator = edmd.generator(Monomials(2), x, -x, diffusion)
            np.testing.assert_allclose(operator.eigenvalues(), [0, -1, -1, -2, -2, -2], atol=1e-10)
    # L x² = −2 x² + (σσᵀ)₁₁ in the column of x²
    np.testing.assert_allclose(
        np.asarray(operator.matrix)[0, 3], (sigma @ sigma.T)[0, 0], atol=1e-10
    )
    with pytest.raises(ValueError, match="drift of shape"):
        edmd.generator(Monomials(2), x, x[:, :1])
