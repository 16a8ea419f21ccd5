"""The parts of the conventional methods against their definitions."""

import functools
import itertools
import types

import numpy as np
import pytest

from koopjax import compress, export, tt
from koopjax._core import semidefinite_root
from koopjax.compress._result import too_small
from koopjax.compress.gram._obs import alike
from koopjax.compress.gram.formats import best_scale, feedback, on_codebook, on_grid
from koopjax.compress.layers._allocation import Ladders, Rung, frontier
from koopjax.compress.methods._tensor_train import (
    alternate,
    balanced,
    dense,
    partial_traces,
    train_of,
)

F32 = np.dtype(np.float32)


def moments(seed, p=8, q=5, n=300):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, p)) @ rng.normal(size=(p, p))
    return x.T @ x / n, rng.normal(size=(p, q))


def error_of(gram, gap):
    return float(np.trace(gap.T @ gram @ gap))


def by_hand(gram, matrix, mask, order, rounding, protect):
    """Round row after row; each time solve least squares anew for all rows behind."""
    out = np.zeros_like(matrix)
    for c in range(matrix.shape[1]):
        rows = [r for r in order if mask[r, c]]
        values = matrix[:, c].copy()
        for k, r in enumerate(rows):
            if r in protect:
                continue
            values[r] = rounding(values[r])
            behind, fixed = rows[k + 1 :], rows[: k + 1]
            gap = matrix[fixed, c] - values[fixed]
            if behind:
                shift = np.linalg.solve(
                    gram[np.ix_(behind, behind)], gram[np.ix_(behind, fixed)] @ gap
                )
                values[behind] = matrix[behind, c] + shift
        out[rows, c] = values[rows]
    return out


@pytest.mark.parametrize("masked", [False, True])
def test_error_feedback_is_least_squares_row_after_row(masked):
    gram, w = moments(0)
    mask = np.ones(w.shape, bool)
    if masked:
        mask = np.random.default_rng(1).random(w.shape) < 0.6
        mask[0] = True
        w = np.where(mask, w, 0.0)
    grid = on_grid(0.4, 7, F32)
    order = [*sorted(range(1, 8), key=lambda r: -gram[r, r]), 0]
    got = feedback(gram, w, grid, mask=mask, protect=(0,), alpha=1e-13)
    np.testing.assert_allclose(got, by_hand(gram, w, mask, order, grid, {0}), atol=1e-7)
    assert not np.any(got[~mask])
    nearest = np.where(mask, grid(w), 0.0)
    nearest[0] = w[0]
    assert error_of(gram, w - got) < 0.8 * error_of(gram, w - nearest)
    # the protected row takes up what is left
    np.testing.assert_allclose((gram @ (w - got))[0][mask[0]], 0, atol=1e-7)


def test_without_correlation_error_feedback_is_rounding_to_the_nearest():
    _, w = moments(2)
    book = np.array([-1.0, 0.1, 0.9])
    got = feedback(np.diag(np.arange(1.0, 9)), w, on_codebook(book))
    nearest = book[np.argmin(np.abs(w[..., None] - book), axis=-1)]
    np.testing.assert_array_equal(got, nearest)


def test_a_column_without_entries_stays_empty():
    gram, w = moments(3)
    mask = np.ones(w.shape, bool)
    mask[:, 2] = False
    got = feedback(gram, np.where(mask, w, 0), on_grid(0.3, 7, F32), mask=mask)
    assert not np.any(got[:, 2])
    assert np.any(got[:, 1])


def test_groups_of_equal_columns():
    mask = np.array([[1, 0, 1, 0], [1, 1, 1, 0], [0, 1, 0, 0]], bool)
    groups = {tuple(columns): tuple(rows) for rows, columns in alike(mask)}
    assert groups == {(0, 2): (0, 1), (1,): (1, 2)}


@pytest.mark.parametrize("name", ["float32", "float64"])
def test_a_grid_is_stored_as_a_scale_and_integers(name):
    dtype = np.dtype(name)
    values = np.random.default_rng(0).normal(size=(60, 40)).astype(dtype)
    scale = best_scale(values.astype(np.float64), 7, dtype)
    rounded = on_grid(scale, 7, dtype)(values.astype(np.float64))
    assert np.max(np.abs(rounded)) <= 7.001 * scale
    stored = rounded.astype(dtype)
    np.testing.assert_array_equal(stored.astype(np.float64), rounded)
    assert not np.any(np.signbit(stored) & (stored == 0))
    # about 3 bits of entropy each
    assert export.stored_bytes([stored]) < 0.5 * values.size


def test_the_scale_is_the_best_of_a_fine_search():
    rng = np.random.default_rng(1)
    values, weights = rng.standard_t(4, size=500), rng.random(500)

    def cost(scale):
        return np.sum(weights * (values - np.clip(np.rint(values / scale), -7, 7) * scale) ** 2)

    scale = best_scale(values, 7, np.dtype(np.float64), weights)
    tries = np.linspace(0.05, 1, 2000) * np.max(np.abs(values)) / 7
    assert cost(scale) <= 1.05 * min(cost(s) for s in tries)
    assert best_scale(np.zeros(3), 7, F32) == 1.0


def ladder(seed, count=8):
    rng = np.random.default_rng(seed)
    sizes = np.sort(rng.choice(np.arange(10, 200), count, replace=False))
    errors = rng.random() * 2.0 ** (-sizes / 40.0)
    return [Rung(int(s), float(e), np.zeros((1, int(s)), np.uint8), note=k)
            for k, (s, e) in enumerate(zip(sizes, errors, strict=True))]  # fmt: skip


class Random:
    """Arrays that take as many bytes as they have."""

    def __call__(self, rungs):
        rng = np.random.default_rng(0)
        return [rng.integers(1, 256, rung.kernel.shape, dtype=np.uint8) for rung in rungs]


def stub(limit, tried):
    def score_model(model):
        tried.append(model)
        return -float(sum(model))

    refused = functools.partial(too_small, "some", limit, original=1000)
    return types.SimpleNamespace(limit=limit, score_model=score_model, too_small=refused)


@pytest.mark.parametrize("limit", [120, 200, 300, 500])
def test_a_budget_is_split_nearly_as_well_as_by_trying_everything(limit):
    rungs, tried = [ladder(seed) for seed in range(3)], []
    probe = lambda chosen: [rung.error for rung in chosen]
    ladders = Ladders(stub(limit, tried), rungs, Random(), probe)
    score, chosen = ladders.best()
    assert export.stored_bytes(Random()(chosen)) <= limit
    assert score == -sum(rung.error for rung in chosen)
    every = itertools.product(*(range(len(r)) for r in rungs))
    best = min(sum(probe(ladders.at(p))) for p in every if ladders.fits(p))
    assert -score <= 1.1 * best + 1e-12
    assert len(tried) == len(ladders.tried) <= 102


def test_a_budget_below_the_lowest_rungs_names_them():
    rungs = [ladder(seed) for seed in range(3)]
    least = export.stored_bytes(Random()([r[0] for r in rungs]))
    with pytest.raises(compress.BudgetTooSmall, match=f"at least {least} bytes .* for some,"):
        Ladders(stub(least - 1, []), rungs, Random())
    Ladders(stub(least, []), rungs, Random())


def test_a_frontier_has_rising_sizes_and_falling_errors():
    rng = np.random.default_rng(0)
    rungs = [Rung(int(s), float(e), np.zeros(1)) for s, e in rng.integers(0, 50, (200, 2))]
    kept = frontier(rungs)
    assert all(a.size < b.size and a.error > b.error for a, b in itertools.pairwise(kept))
    for rung in rungs:
        assert any(k.size <= rung.size and k.error <= rung.error for k in kept)


@pytest.mark.parametrize(
    ("size", "count", "modes"),
    [(784, 2, (28, 28)), (784, 4, (7, 4, 7, 4)), (100, 2, (10, 10)), (10, 3, (5, 1, 2)),
     (7, 2, (7, 1)), (64, 3, (4, 4, 4)), (1, 2, (1, 1)), (30, 3, (5, 2, 3))],
)  # fmt: skip
def test_balanced_modes(size, count, modes):
    assert balanced(size, count) == modes


def test_a_train_in_a_kronecker_metric_is_the_best_there():
    rng = np.random.default_rng(0)
    a, b = (v @ v.T for v in (rng.normal(size=(3, 3)), rng.normal(size=(4, 4))))
    gram, w = np.kron(a, b), rng.normal(size=(12, 6))
    found = partial_traces(gram, (3, 4))
    np.testing.assert_allclose(found[0], 3 * a / np.trace(a))
    np.testing.assert_allclose(found[1], 4 * b / np.trace(b))
    roots = [semidefinite_root(m) for m in (a, b)]
    cores = train_of(w, ((3, 4), (3, 2)), 2, roots)
    # oracle: the singular values of the whitened matrix with paired modes
    white = (np.linalg.cholesky(gram).T @ w).reshape(3, 4, 3, 2).transpose(0, 2, 1, 3).reshape(9, 8)
    lost = np.sum(np.linalg.svd(white, compute_uv=False)[2:] ** 2)
    np.testing.assert_allclose(error_of(gram, w - dense(cores)), lost, rtol=1e-4)


def test_the_host_multiplies_cores_out_as_tt_does():
    w = np.random.default_rng(0).normal(size=(12, 6))
    for modes in (((3, 4), (3, 2)), ((3, 2, 2), (3, 2, 1))):
        cores = train_of(w, modes, 2, None)
        train = tt.matrix_from_dense(w, *modes, max_rank=2)
        np.testing.assert_allclose(dense(cores), np.asarray(train.to_dense()), atol=1e-5)


@pytest.mark.parametrize("modes", [((3, 4), (3, 2)), ((3, 2, 2), (3, 2, 1))])
def test_alternating_least_squares_lowers_the_error_to_a_stationary_point(modes):
    gram, w = moments(5, p=12, q=6)
    cores = train_of(w, modes, 2, None)
    errors = [error_of(gram, w - dense(alternate(cores, w, gram, n))) for n in (0, 1, 3, 200)]
    assert errors[1] < 0.8 * errors[0]
    assert errors[0] > errors[1] > errors[2] > errors[3]
    end = alternate(cores, w, gram, 200)
    rng = np.random.default_rng(0)
    for k, core in enumerate(end):
        direction = rng.normal(size=core.shape)
        moved = [error_of(gram, w - dense([*end[:k], core + step * direction, *end[k + 1 :]]))
                 for step in (-1e-4, 1e-4)]  # fmt: skip
        assert abs(moved[1] - moved[0]) / 2e-4 < 2e-3 * errors[3]


def test_a_train_of_the_rank_is_found_exactly():
    gram, _ = moments(6, p=12, q=6)
    rng = np.random.default_rng(0)
    true = [rng.normal(size=s) for s in ((1, 3, 3, 2), (2, 4, 2, 1))]
    start = [core + 0.1 * rng.normal(size=core.shape) for core in true]
    found = alternate(start, dense(true), gram, 40)
    np.testing.assert_allclose(dense(found), dense(true), atol=1e-4)
