"""Systems whose spectra are known from the literature, against oracles in float64 NumPy."""

import math

import jax
import numpy as np
import pytest

from koopjax import edmd
from koopjax._core import SUCCESS
from koopjax.observables import Monomials, Orthogonal


def test_gauss_map_has_sixteen_eigenvalues_to_trust():
    """ResDMD on `exp(-2x²) - 1 - exp(-2)` with 40 Legendre functions: 16 residuals below 0.01.

    Reference: Colbrook & Townsend (2024), section 4.1 (Gauss iterated map).
    """
    nodes, weights = np.polynomial.legendre.leggauss(100)
    x = (nodes[:, None] - 1) / 2  # the interval [-1, 0]
    y = np.exp(-2 * x**2) - 1 - np.exp(-2)
    with jax.enable_x64(True):
        # The family lives on [-1, 1]; both snapshots are stretched to it.
        koopman = edmd.fit(Orthogonal(39, "legendre"), 2 * x + 1, 2 * y + 1, weights=weights / 2)
        residuals = np.asarray(koopman.residuals(2 * x + 1, 2 * y + 1, weights / 2))
        values = np.asarray(koopman.eigenvalues())
    assert len(values) == 40
    assert int((residuals < 0.01).sum()) == 16
    assert residuals[np.argmin(abs(values - 1))] < 1e-10  # the constant


def test_ornstein_uhlenbeck_decays_by_multiples_of_its_rate():
    """`dx = -αx dt + σ dW`: eigenvalues `-αk`, eigenfunctions the Hermite polynomials."""
    rate, sigma = 1.5, 0.8
    x = np.linspace(-2, 2, 200)[:, None]
    with jax.enable_x64(True):
        operator = edmd.generator(Monomials(6), x, -rate * x, np.array([[sigma]]))
        np.testing.assert_allclose(operator.eigenvalues(), -rate * np.arange(7), atol=1e-7)
        phi = np.asarray(operator.eigenfunctions(x)).real
    scaled = x[:, 0] / (sigma / math.sqrt(2 * rate))
    for k in range(7):
        hermite = np.polynomial.hermite_e.hermeval(scaled, np.eye(7)[k])
        aligned = phi[:, k] @ hermite / np.linalg.norm(phi[:, k]) / np.linalg.norm(hermite)
        assert abs(aligned) == pytest.approx(1, abs=1e-9)


def double_well_by_finite_differences(sigma, n=600, half=2.4):
    """Leading eigenvalues of `-V' f' + σ²/2 f''`, symmetrised by its invariant density."""
    x = np.linspace(-half, half, n)
    step, middle = x[1] - x[0], (x[1:] + x[:-1]) / 2
    density = lambda z: np.exp(-2 * (z**2 - 1) ** 2 / sigma**2)
    flux, mass = density(middle), density(x)
    diagonal = np.zeros(n)
    diagonal[:-1] -= flux
    diagonal[1:] -= flux
    root = np.sqrt(mass[1:] * mass[:-1])
    dense = np.diag(diagonal / mass) + np.diag(flux / root, 1) + np.diag(flux / root, -1)
    return np.linalg.eigvalsh(dense)[::-1] * sigma**2 / 2 / step**2


def test_double_well_in_one_dimension():
    """`V = (x² - 1)²` at inverse temperature 3: rates 0, -0.0806, -3.495 (Klus et al. 2020)."""
    sigma = math.sqrt(2 / 3)
    x = np.linspace(-2.2, 2.2, 400)[:, None]
    invariant = np.exp(-3 * (x[:, 0] ** 2 - 1) ** 2)
    with jax.enable_x64(True):
        operator = edmd.generator(
            Monomials(20), x, 4 * x - 4 * x**3, np.array([[sigma]]), weights=invariant
        )
        rates = np.asarray(operator.eigenvalues())[:3].real
    np.testing.assert_allclose(rates, [0, -0.0806, -3.495], atol=6e-4)
    np.testing.assert_allclose(rates, double_well_by_finite_differences(sigma)[:3], atol=6e-4)


def test_noisy_logistic_map_in_chebyshev_functions():
    """`4x(1 - x) + ξ mod 1` with density of ξ as `cos(πξ)²⁰`: a pair of modulus 0.2717 is next.

    The oracle is the transition matrix on an even grid. EDMD gets every transition of that grid as
    a sample with its probability as weight, so that both see the same process.
    """
    n, power = 96, 20
    scale = math.pi * math.gamma(power / 2 + 1) / math.gamma(power / 2 + 0.5) / math.gamma(0.5)
    grid = (np.arange(n) + 0.5) / n
    density = scale * np.cos(np.pi * (grid[None] - 4 * (grid * (1 - grid))[:, None])) ** power
    exact = np.linalg.eigvals(density / n)
    exact = exact[np.argsort(-abs(exact))][:3]
    np.testing.assert_allclose(abs(exact), [1, 0.2717, 0.2717], atol=1e-4)
    before, after = (a.reshape(-1, 1) for a in np.meshgrid(grid, grid, indexing="ij"))
    with jax.enable_x64(True):
        koopman = edmd.fit(
            Orthogonal(24, "chebyshev"), 2 * before - 1, 2 * after - 1, weights=density.ravel()
        )
        values = np.asarray(koopman.eigenvalues())[:3]
    assert int(koopman.result) == SUCCESS
    np.testing.assert_allclose(sorted(values, key=abs), sorted(exact, key=abs), atol=1e-3)


def test_canonical_correlations_are_singular_values_of_the_whitened_operator():
    """`Cxx^(-1/2) Cxy Cyy^(-1/2)` by EDMD onto another dictionary, against QR of the snapshots."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 3))
    y = np.tanh(x @ rng.normal(size=(3, 2))) + 0.3 * rng.normal(size=(500, 2))
    by_qr = np.linalg.svd(
        np.linalg.qr(np.c_[np.ones(500), x])[0].T @ np.linalg.qr(np.c_[np.ones(500), y])[0],
        compute_uv=False,
    )
    with jax.enable_x64(True):
        forward = edmd.fit(Monomials(1), x, y, target=Monomials(1)).matrix
        backward = edmd.fit(Monomials(1), y, x, target=Monomials(1)).matrix
        # Forward and back again: the squares of the canonical correlations.
        squares = np.linalg.eigvals(np.asarray(forward) @ np.asarray(backward)).real
    np.testing.assert_allclose(np.sort(squares)[::-1][:3], by_qr[:3] ** 2, atol=1e-10)
