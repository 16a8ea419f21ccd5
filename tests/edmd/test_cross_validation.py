"""Cross-validation from statistics against refitting on every fold in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from koopjax import edmd
from koopjax._core import NONFINITE_DATA, SUCCESS
from koopjax.observables import Identity, Monomials

ALPHAS = np.array([1e-6, 0.1, 3.0, 100.0])
RANKS = np.array([1, 2, 4])


def data(n=40, p=4, q=4):
    rng = np.random.default_rng(3)
    x = rng.normal(size=(n, p)) * np.array([1, 1, 0.3, 0.1])
    y = np.tanh(x @ rng.normal(size=(p, q))) + 0.8 * rng.normal(size=(n, q))
    return x.astype(np.float32), y.astype(np.float32)


def refit(solver_of, grid, x, y, folds):
    """Mean relative held-out error of every grid value, one fit after the other."""
    x, y = x.astype(float), y.astype(float)
    scores = []
    for fold in range(folds):
        held = np.arange(len(x)) % folds == fold
        row = []
        for value in grid:
            k = solver_of(value, x[~held], y[~held])
            row.append(np.sum((x[held] @ k - y[held]) ** 2) / np.sum(y[held] ** 2))
        scores.append(row)
    return np.array(scores)


def ridge(alpha, x, y):
    return np.linalg.solve(x.T @ x + alpha * np.eye(x.shape[1]), x.T @ y)


def truncated(rank, x, y):
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    return vt[:rank].T @ (u[:, :rank].T @ y / s[:rank, None])


def reduced(rank, x, y):
    k = ridge(0.0, x, y)
    w = np.linalg.svd(x @ k)[2][:rank].T
    return k @ w @ w.T


@pytest.mark.parametrize("kind", ["gram", "rfactor"])
@pytest.mark.parametrize(
    ("solver", "grid", "oracle"),
    [
        (edmd.Ridge(), ALPHAS, ridge),
        (edmd.TruncatedSVD(1), RANKS, truncated),
        (edmd.ReducedRank(1), RANKS, reduced),
    ],
)
def test_scores_are_those_of_refitting(kind, solver, grid, oracle):
    x, y = data()
    stacked = edmd.accumulate(Identity(), x, y, target=Identity(), statistics=kind, folds=5)
    chosen = edmd.solve(stacked, edmd.CrossValidated(solver, grid))
    scores = refit(oracle, grid, x, y, 5)
    np.testing.assert_allclose(np.ravel(chosen.info.scores), scores.mean(0), rtol=1e-6)
    best = grid[scores.mean(0).argmin()]
    expected = oracle(best, x.astype(float), y.astype(float))
    np.testing.assert_allclose(chosen.value, expected, rtol=1e-6, atol=1e-8)
    assert int(chosen.result) == SUCCESS
    if kind == "rfactor":
        return  # the rule sees the scores alone
    # One standard error: the simplest within it.
    simple = edmd.solve(stacked, edmd.CrossValidated(solver, grid, rule="one_se"))
    mean, best_at = scores.mean(0), scores.mean(0).argmin()
    limit = mean[best_at] + scores[:, best_at].std(ddof=1) / np.sqrt(5)
    within = grid[mean <= limit]
    wanted = within.max() if isinstance(solver, edmd.Ridge) else within.min()
    got = simple.info.alpha if isinstance(solver, edmd.Ridge) else simple.info.rank
    np.testing.assert_allclose(float(got), wanted)


def test_a_grid_over_both_in_a_metric():
    x, y = data()
    metric = np.diag([4.0, 1.0, 1.0, 0.25])
    stacked = edmd.accumulate(Identity(), x, y, target=Identity(), folds=4)
    grid = {"alpha": ALPHAS, "rank": RANKS}
    chosen = edmd.solve(stacked, edmd.CrossValidated(edmd.ReducedRank(1, metric), grid))
    assert chosen.info.scores.shape == (4, 3)
    weighted = y * np.sqrt(np.diag(metric)).astype(np.float32)

    def oracle(value, x, y):
        k = ridge(value[0], x, y)
        tall = np.concatenate([x @ k, np.sqrt(value[0]) * k])
        w = np.linalg.svd(tall)[2][: value[1]].T
        return k @ w @ w.T

    pairs = [(a, r) for a in ALPHAS for r in RANKS]
    scores = refit(oracle, pairs, x, weighted, 4).mean(0)
    np.testing.assert_allclose(np.ravel(chosen.info.scores), scores, rtol=1e-5)
    assert float(chosen.info.alpha) == pytest.approx(pairs[scores.argmin()][0])


def test_fit_chooses_by_itself_and_streams():
    x, y = data(60)
    stacked = edmd.accumulate(
        Monomials(1), x, y, target=Identity(), folds=5, accumulate_dtype=jnp.float32
    )
    for solver in (edmd.Ridge(), edmd.TruncatedSVD(1)):
        method = edmd.CrossValidated(solver)
        whole = edmd.fit(Monomials(1), x, y, solver=method, target=Identity())
        stream = [(x[:30], y[:30]), (x[30:], y[30:])]
        streamed = edmd.fit(Monomials(1), stream, solver=method, target=Identity())
        np.testing.assert_allclose(whole.matrix, streamed.matrix, atol=1e-6)
        method = edmd.CrossValidated(solver, np.array([1, 2]))
        assert int(jax.jit(edmd.solve)(stacked, method).result) == SUCCESS
    square = edmd.fit(Monomials(1), x, y, solver=edmd.CrossValidated(edmd.ReducedRank(1)))
    assert square.readout.shape == (5, 4)


def test_what_can_not_be_cross_validated():
    x, y = data()
    whole = edmd.Gram.from_batch(x, y)
    stacked = edmd.accumulate(Identity(), x, y, target=Identity(), folds=4)
    for statistics, solver, text in [
        (whole, edmd.CrossValidated(edmd.Ridge()), "stacked by at least two folds"),
        (stacked, edmd.Ridge(), "all samples together"),
        (stacked, edmd.CrossValidated(edmd.Ridge(), rule="best"), "a rule in"),
        (stacked, edmd.CrossValidated(edmd.Ridge(), {"rank": RANKS}), "a grid over"),
        (stacked, edmd.CrossValidated(edmd.TruncatedSVD(1), [1, 9]), "ranks from 1 to 4"),
        (stacked, edmd.CrossValidated(edmd.Ridge(), [-1.0]), "at least 0"),
        (stacked, edmd.CrossValidated(edmd.Ridge(), 3.0), "a vector"),
        (stacked, edmd.CrossValidated("ridge"), "to validate"),
    ]:
        with pytest.raises(ValueError, match=text):
            edmd.solve(statistics, solver)
    for folds in (1, 41, np.zeros(40, int), np.zeros(3, int)):
        with pytest.raises(ValueError, match="expected"):
            edmd.accumulate(Identity(), x, y, folds=folds)
    with jax.enable_x64(True):
        bad = jax.tree.map(lambda a: a * np.nan, stacked)
    result = edmd.solve(bad, edmd.CrossValidated(edmd.Ridge(), ALPHAS)).result
    assert int(result) == NONFINITE_DATA
