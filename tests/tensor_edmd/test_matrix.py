"""TT matrices close to a matrix in a metric: dense float64 oracles, laws, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from koopjax import tt
from koopjax._core import SUCCESS
from koopjax.tensor_edmd import _matrix_solve as als, approximate

ROWS, COLUMNS = (3, 2, 4), (2, 3, 2)
SHAPE = (24, 12)


def gram_of(size, seed, rank=None):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rank or 2 * size, size)) * np.geomspace(1, 0.05, size)
    return x.T @ x / len(x)


def problem(seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=SHAPE), gram_of(24, seed + 1), gram_of(12, seed + 2)


def cost(weight, train, gram, metric):
    e = weight - np.asarray(train)
    return np.sqrt(np.trace(metric @ e.T @ gram @ e) / np.trace(metric @ weight.T @ gram @ weight))


def tt_matrix(seed, rank):
    rng = np.random.default_rng(seed)
    ranks = (1, rank, rank, 1)
    shapes = zip(ranks[:-1], ROWS, COLUMNS, ranks[1:], strict=True)
    out = np.einsum("aijb,bklc,cmnd->ikmjln", *[rng.normal(size=shape) for shape in shapes])
    return out.reshape(SHAPE)


def test_one_core_is_the_least_squares_solution_of_the_dense_problem():
    weight, gram, metric = problem()
    with jax.enable_x64(True):
        cores = tt.matrix_from_dense(weight, ROWS, COLUMNS, 2).cores
        rows = tuple(als.kronecker_factors(gram, ROWS))
        columns = tuple(als.kronecker_factors(metric, COLUMNS))
        arrays = [jnp.asarray(a) for a in (weight, gram, metric)]
        for k in range(3):
            found, residual = als.solve_core(cores, k, *arrays, rows, columns, 1e-13, 500)
            # every entry of the core as a column, written out and whitened
            basis = []
            for index in range(cores[k].size):
                unit = np.zeros(cores[k].size)
                unit[index] = 1
                parts = [*cores[:k], unit.reshape(cores[k].shape), *cores[k + 1 :]]
                full = np.einsum("aijb,bklc,cmnd->ikmjln", *parts).reshape(SHAPE)
                basis.append(full)
            g, m = np.linalg.cholesky(gram), np.linalg.cholesky(metric)
            design = np.stack([(g.T @ b @ m).ravel() for b in basis], 1)
            coefficients = np.linalg.lstsq(design, (g.T @ weight @ m).ravel(), rcond=None)[0]
            np.testing.assert_allclose(np.ravel(found), coefficients, atol=1e-8)
            assert float(residual) < 1e-12


def test_identity_metrics_are_plain_least_squares_and_never_worse_than_tt_svd():
    weight, _, _ = problem()
    found = approximate(weight, ROWS, COLUMNS, 2, iterations=50)
    plain = tt.matrix_from_dense(weight, ROWS, COLUMNS, 2).to_dense()
    whole = np.linalg.norm(weight)
    error = np.linalg.norm(weight - np.asarray(found.to_dense())) / whole
    np.testing.assert_allclose(found.info.error, error, rtol=1e-10)
    assert error <= np.linalg.norm(weight - np.asarray(plain)) / whole + 1e-12
    eyes = approximate(
        weight, ROWS, COLUMNS, 2, gram=np.eye(24), metric=np.eye(12), iterations=50, init="plain"
    )
    np.testing.assert_allclose(eyes.to_dense(), found.to_dense(), atol=1e-8)


@pytest.mark.parametrize("init", ["plain", "whitened", None])
def test_a_matrix_of_that_rank_is_recovered(init):
    weight = tt_matrix(3, 2)
    _, gram, metric = problem()
    found = approximate(
        weight, ROWS, COLUMNS, 2, gram=gram, metric=metric, init=init, sweeps=60, iterations=100,
        rtol=0.0,
    )  # fmt: skip
    assert float(found.info.error) < 1e-9
    assert found.ranks == (1, 2, 2, 1)
    assert int(found.result) == SUCCESS


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_metric_pays_in_its_own_norm(seed):
    weight, gram, metric = problem(seed)
    plain = approximate(weight, ROWS, COLUMNS, 2).to_dense()
    inner = approximate(weight, ROWS, COLUMNS, 2, gram=gram)
    both = approximate(weight, ROWS, COLUMNS, 2, gram=gram, metric=metric)
    eye = np.eye(12)
    assert cost(weight, inner.to_dense(), gram, eye) < cost(weight, plain, gram, eye)
    assert cost(weight, both.to_dense(), gram, metric) < cost(weight, plain, gram, metric)
    np.testing.assert_allclose(
        both.info.error, cost(weight, both.to_dense(), gram, metric), rtol=1e-8
    )


def test_the_error_never_rises_and_the_info_says_what_happened():
    weight, gram, metric = problem()
    found = approximate(
        weight, ROWS, COLUMNS, 2, gram=gram, metric=metric, row_order="search",
        column_order="search", sweeps=12, rtol=0.0,
    )  # fmt: skip
    series = np.concatenate([[found.info.start], found.info.history])
    assert (np.diff(series) <= 1e-12).all()
    assert found.info.swaps.sum() > 0
    assert "TT-SVD" in found.info.reason
    assert "12 sweeps" in found.info.reason
    assert found.numbers == found.train.numbers == 2 * 6 + 4 * 6 + 2 * 8


def test_a_singular_metric_is_no_obstacle():
    weight, _, _ = problem()
    gram = gram_of(24, 5, rank=8)
    gram[:3] = gram[:, :3] = 0
    found = approximate(weight, ROWS, COLUMNS, 2, gram=gram, metric=gram_of(12, 6, rank=4))
    assert np.isfinite(np.asarray(found.to_dense())).all()
    assert float(found.info.error) < 0.5
    nothing = approximate(np.zeros(SHAPE), ROWS, COLUMNS, 2, gram=gram, metric=np.eye(12))
    assert float(nothing.info.error) == 0


def test_orders_are_undone():
    weight = tt_matrix(4, 2)
    rng = np.random.default_rng(0)
    rows, columns = rng.permutation(24), rng.permutation(12)
    shuffled = np.empty(SHAPE)
    shuffled[np.ix_(rows, columns)] = weight
    given = {"row_order": rows, "column_order": columns}
    found = approximate(
        shuffled, ROWS, COLUMNS, 2, gram=gram_of(24, 1), metric=np.eye(12), **given, iterations=50
    )
    assert float(found.info.error) < 1e-9
    np.testing.assert_allclose(found.to_dense(), shuffled, atol=1e-7)
    x = rng.normal(size=(5, 24))
    with jax.enable_x64(True):
        out = tt.apply_matrix(found.train, jnp.asarray(x[:, np.asarray(found.row_order)]))
    np.testing.assert_allclose(out, (x @ shuffled)[:, columns], atol=1e-6)


def test_a_search_lowers_the_error_and_its_orders_are_undone():
    weight, gram, metric = problem(7)
    settings = {"gram": gram, "metric": metric, "sweeps": 15}
    still = approximate(weight, ROWS, COLUMNS, 2, **settings)
    moved = approximate(
        weight, ROWS, COLUMNS, 2, row_order="search", column_order="search", **settings
    )
    assert float(moved.info.error) < float(still.info.error)
    for found, size in ((moved.row_order, 24), (moved.column_order, 12)):
        np.testing.assert_array_equal(np.sort(found), np.arange(size))
    np.testing.assert_allclose(
        moved.info.error, cost(weight, moved.to_dense(), gram, metric), rtol=1e-8
    )


def test_gains_of_swaps_equal_the_differences():
    rng = np.random.default_rng(0)
    a, k = gram_of(6, 1), gram_of(6, 2)
    r = rng.normal(size=(6, 6))
    gains = als._gains(a, k, r)

    def value(slots):
        return np.vdot(a, k[np.ix_(slots, slots)]) - 2 * r[np.arange(6), slots].sum()

    for i in range(6):
        for j in range(i):
            slots = np.arange(6)
            slots[[i, j]] = j, i
            np.testing.assert_allclose(gains[i, j], value(np.arange(6)) - value(slots), atol=1e-12)
    slots, swaps = als.search(a, k, r, 1.0)
    assert swaps > 0
    assert value(slots) < value(np.arange(6))


def test_a_train_to_start_from():
    weight, gram, metric = problem()
    first = approximate(weight, ROWS, COLUMNS, 2, gram=gram, metric=metric, sweeps=3, rtol=0.0)
    again = approximate(
        weight, ROWS, COLUMNS, 2, gram=gram, metric=metric, sweeps=1, init=first.train
    )
    np.testing.assert_allclose(again.info.start, first.info.error, rtol=1e-10)
    with pytest.raises(ValueError, match="ranks"):
        approximate(weight, ROWS, COLUMNS, 3, init=first.train)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, jnp.bfloat16])
def test_dtype_is_kept(dtype):
    weight, gram, _ = problem()
    given = weight.astype(dtype)
    found = approximate(given, ROWS, COLUMNS, 2, gram=gram, sweeps=2)
    assert found.train.dtype == dtype
    assert found.to_dense().dtype == dtype


def test_one_core_and_full_rank_are_exact():
    weight, gram, _ = problem()
    alone = approximate(weight, (24,), (12,), 1, gram=gram)
    np.testing.assert_allclose(alone.to_dense(), weight, atol=1e-10)
    full = approximate(weight, ROWS, COLUMNS, 100, gram=gram)
    assert full.ranks == (1, 6, 8, 1)
    assert "clipped" in full.info.reason or "rank" in full.info.reason
    np.testing.assert_allclose(full.to_dense(), weight, atol=1e-9)


BAD = {
    "modes": ({"row_modes": (3, 2, 5)}, r"multiply to 24, got \(3, 2, 5\); try \(4, 3, 2\)"),
    "columns": ({"column_modes": (2, 3)}, r"multiply to 12"),
    "lengths": ({"column_modes": (4, 3)}, r"column_modes=\(3, 2, 2\)"),
    "zero mode": ({"row_modes": (24, 0, 1)}, "at least 1"),
    "rank 0": ({"rank": 0}, "rank"),
    "ranks": ({"rank": (2, 2, 2, 2)}, "rank"),
    "gram shape": ({"gram": np.eye(12)}, r"gram of shape \(24, 24\)"),
    "gram nan": ({"gram": np.full((24, 24), np.nan)}, "gram"),
    "asymmetric": ({"metric": np.triu(np.ones((12, 12)))}, "symmetric metric"),
    "indefinite": ({"metric": -np.eye(12)}, "positive semidefinite metric, got an eigenvalue"),
    "order": ({"row_order": np.zeros(24, int)}, "row_order"),
    "order name": ({"column_order": "best"}, "column_order"),
    "init": ({"init": "random"}, "init"),
    "sweeps": ({"sweeps": -1}, "sweeps"),
    "rtol": ({"rtol": 2.0}, "rtol"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(name):
    settings, message = BAD[name]
    given = {"row_modes": ROWS, "column_modes": COLUMNS, "rank": 2} | settings
    with pytest.raises(ValueError, match=message) as caught:
        approximate(problem()[0], **given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_matrix_that_is_not_finite(bad):
    weight = problem()[0]
    weight[3, 4] = bad
    with pytest.raises(ValueError, match="finite"):
        approximate(weight, ROWS, COLUMNS, 2)


@pytest.mark.parametrize("matrix", [np.ones(24), np.ones((24, 12), int), np.ones((0, 12))])
def test_what_is_no_matrix(matrix):
    with pytest.raises(ValueError, match="matrix"):
        approximate(matrix, ROWS, COLUMNS, 2)


def test_a_call_under_jit_is_refused():
    with pytest.raises(ValueError, match="jit"):
        jax.jit(lambda w: approximate(w, ROWS, COLUMNS, 2).to_dense())(problem()[0])


def test_a_second_call_compiles_nothing():
    weight, gram, metric = problem(8)
    settings = {"sweeps": 2, "rtol": 0.0}
    approximate(weight, ROWS, COLUMNS, 2, gram=gram, metric=metric, **settings)
    before = als.solve_core._cache_size(), als.error._cache_size()
    other, gram, metric = problem(9)
    approximate(other, ROWS, COLUMNS, 2, gram=gram, metric=metric, iterations=9, sweeps=3)
    assert (als.solve_core._cache_size(), als.error._cache_size()) == before
