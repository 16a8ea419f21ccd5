"""A solver of one's own: a base class, one method, and all of `edmd` takes it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from koopjax import edmd
from koopjax.observables import Monomials


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Iterated(edmd.Solver):
    """Tikhonov iterated: each round regresses what the last one left, `α` is felt less and less.

    A round multiplies what is missing along a singular vector by `α / (s² + α)`.
    """

    alpha: float = 0.0
    rounds: int = dataclasses.field(default=2, metadata={"static": True})
    parameters = ("alpha",)

    def compute(self, factorisation):
        alpha, parts = factorisation.penalty(self.alpha), factorisation.spectral
        kept = 1 - (alpha / (parts.s**2 + alpha)) ** self.rounds
        inverse = jnp.where(parts.s > 0, kept / jnp.where(parts.s > 0, parts.s, 1), 0)
        return factorisation.outcome(parts.v @ (inverse[:, None] * parts.c), alpha)


def moments():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 5)) * np.logspace(0, -2, 5)
    return x, x @ rng.normal(size=(5, 3)) + 0.1 * rng.normal(size=(60, 3))


@pytest.mark.parametrize("kind", [edmd.Gram, edmd.RFactor])
def test_it_solves_from_either_statistics_and_from_a_factorisation(kind):
    x, y = moments()
    want, system = np.zeros((5, 3)), x.T @ x + 0.3 * np.eye(5)
    for _ in range(3):
        want = want + np.linalg.solve(system, x.T @ (y - x @ want))
    with jax.enable_x64(True):
        stats = kind.from_batch(x, y)
        for source in (stats, edmd.factorise(stats)):
            found = edmd.solve(source, Iterated(0.3, 3))
            np.testing.assert_allclose(found.value, want, atol=1e-10)
            assert int(found.result) == 0
            assert int(found.info.rank) == 5
        lanes = jax.vmap(lambda a: edmd.solve(stats, Iterated(a, 3)).value)(np.array([0.3, 1.0]))
        np.testing.assert_allclose(lanes[0], want, atol=1e-10)


def test_it_is_cross_validated():
    x, y = moments()
    grid = np.array([1e-6, 1e-2, 1e4])
    with jax.enable_x64(True):
        folds = [edmd.RFactor.from_batch(x[i::4], y[i::4]) for i in range(4)]
        stacked = jax.tree.map(lambda *a: jnp.stack(a), *folds)
        found = edmd.solve(stacked, edmd.CrossValidated(Iterated(rounds=3), grid))
        errors = np.zeros(3)
        for i in range(4):
            rest = np.arange(60) % 4 != i
            stats = edmd.Gram.from_batch(x[rest], y[rest])
            for j, alpha in enumerate(grid):
                k = np.asarray(edmd.solve(stats, Iterated(alpha, 3)).value)
                errors[j] += np.sum((x[i::4] @ k - y[i::4]) ** 2) / np.sum(y[i::4] ** 2) / 4
    np.testing.assert_allclose(found.info.scores, errors, rtol=1e-8)
    assert float(found.info.alpha) == grid[np.argmin(errors)]


def test_it_fits():
    x = np.linspace(-1, 1, 50, dtype=np.float32)[:, None]
    koopman = edmd.fit(Monomials(2), x, 0.5 * x, solver=Iterated(1e-3, 4))
    np.testing.assert_allclose(koopman.eigenvalues().real, [1, 0.5, 0.25], atol=1e-4)
    chosen = edmd.fit(Monomials(2), x, 0.5 * x, solver=edmd.CrossValidated(Iterated(rounds=4)))
    np.testing.assert_allclose(chosen.predict(x), 0.5 * x, atol=1e-3)


def test_what_is_no_solver_is_refused():
    x, y = moments()
    stats = edmd.Gram.from_batch(x, y)
    for wrong in (Iterated, "ridge", x):
        with pytest.raises(ValueError, match="a solver such as"):
            edmd.solve(stats, wrong)
    with pytest.raises(ValueError, match="with parameters to validate"):
        edmd.CrossValidated(edmd.Solver()).validate((5, 3))
    with pytest.raises(ValueError, match="concrete rank"):
        edmd.low_rank(stats, Iterated())
    with pytest.raises(ValueError, match="registered as a pytree"):
        edmd.solve(stats, edmd.Solver())


@pytest.mark.parametrize("kind", [edmd.Gram, edmd.RFactor])
def test_a_factorisation_answers_for_every_ridge_rank_and_target(kind):
    x, y = moments()
    solvers = [edmd.Ridge(), edmd.Ridge(0.1), edmd.TruncatedSVD(3), edmd.ReducedRank(2, alpha=0.1)]
    with jax.enable_x64(True):
        stats = kind.from_batch(x, y)
        made = edmd.factorise(stats)
        order = np.array([2, 0, 1])
        some, reordered = made.targets(order), stats.select(None, order)
        for solver in solvers:
            want = edmd.solve(stats, solver)
            np.testing.assert_allclose(edmd.solve(made, solver).value, want.value, atol=1e-10)
            part = edmd.solve(reordered, solver)
            np.testing.assert_allclose(edmd.solve(some, solver).value, part.value, atol=1e-10)
        assert made.targets(np.array([2])).sizes == (5, 1)
        left, right = map(np.asarray, jax.jit(lambda made: made.factors(0.1))(made))
        k = edmd.solve(made, edmd.ReducedRank(2, alpha=0.1)).value
        np.testing.assert_allclose(left[:, :2] @ right[:2], k, atol=1e-10)
    with pytest.raises(ValueError, match="expected edmd"):
        edmd.solve(made, edmd.CrossValidated(edmd.Ridge()))
    with pytest.raises(ValueError, match="all samples together"):
        edmd.factorise(jax.tree.map(lambda a: jnp.stack([a, a]), edmd.Gram.from_batch(x, y)))
