"""Solvers against float64 NumPy, and the contracts that all of them keep."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from koopjax import edmd
from koopjax._core import (
    ILL_CONDITIONED,
    NONFINITE_DATA,
    RANK_DEFICIENT,
    SUCCESS,
    UNDERDETERMINED,
    NumericalError,
)

P, Q, N = 6, 4, 60
KINDS = [edmd.Gram, edmd.RFactor]
_METRIC = np.random.default_rng(5).normal(size=(Q, Q))
METRIC = _METRIC @ _METRIC.T
# Every solver with a leaf that vmap can run over and values for it.
REGISTRY = {
    "ridge": (edmd.Ridge(0.3), "alpha", [0.1, 0.3, 2.0]),
    "relative": (edmd.Ridge(0.0, relative=0.1), "relative", [0.01, 0.1, 1.0]),
    "truncated": (edmd.TruncatedSVD(3), "rank", [1, 3, 6]),
    "reduced": (edmd.ReducedRank(2, alpha=0.2), "rank", [1, 2, 4]),
    "metric": (edmd.ReducedRank(2, METRIC.astype(np.float32), 0.2), "alpha", [0.1, 0.2, 1.0]),
}
both = pytest.mark.parametrize("kind", KINDS)
every = pytest.mark.parametrize("name", REGISTRY)


def problem(seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(N, P)) * np.linspace(1.0, 0.3, P)
    y = x @ rng.normal(size=(P, Q)) + 0.5 * rng.normal(size=(N, Q))
    return x.astype(dtype), y.astype(dtype)


def oracle(solver, x, y):
    """The textbook formula in NumPy, from the data and not from statistics."""
    if isinstance(solver, edmd.TruncatedSVD):
        u, s, vt = np.linalg.svd(x, full_matrices=False)
        r = solver.rank
        return vt[:r].T @ ((u[:, :r].T @ y) / s[:r, None])
    alpha = solver.alpha + solver.relative * np.trace(x.T @ x) / x.shape[1]
    tall = np.concatenate([x, np.sqrt(alpha) * np.eye(x.shape[1])])
    right = np.concatenate([y, np.zeros((x.shape[1], y.shape[1]))])
    k = np.linalg.lstsq(tall, right, rcond=None)[0]
    if isinstance(solver, edmd.Ridge):
        return k
    metric = np.eye(y.shape[1]) if solver.metric is None else np.asarray(solver.metric, float)
    root = np.linalg.cholesky(metric)  # any root will do: the loss is |E root|²
    w = np.linalg.svd(tall @ k @ root)[2][: solver.rank].T
    return k @ root @ w @ w.T @ np.linalg.inv(root)


@both
@every
def test_solution_is_the_textbook_one(kind, name):
    solver = REGISTRY[name][0]
    x, y = problem()
    with jax.enable_x64(True):
        solution = edmd.solve(kind.from_batch(x, y), solver)
    expected = oracle(solver, x, y)
    np.testing.assert_allclose(
        np.asarray(solution.value), expected, atol=1e-7 if name == "metric" else 1e-10
    )
    assert int(solution.result) == SUCCESS
    residual = np.linalg.norm(x @ np.asarray(solution.value) - y) / np.linalg.norm(y)
    np.testing.assert_allclose(float(solution.info.residual), residual, rtol=1e-9)
    np.testing.assert_allclose(float(solution.info.condition), np.linalg.cond(x), rtol=1e-9)


@both
@pytest.mark.parametrize("name", [name for name in REGISTRY if name != "relative"])
def test_jit_vmap_and_dtype(kind, name):
    solver, leaf, values = REGISTRY[name]
    x, y = problem(dtype=np.float32)
    stats = kind.from_batch(x, y)
    of = lambda value: edmd.solve(stats, dataclasses.replace(solver, **{leaf: value}))
    lanes = jax.jit(jax.vmap(of))(np.asarray(values, np.float32 if leaf != "rank" else np.int32))
    assert lanes.value.dtype == jnp.float32
    for value, lane in zip(values, lanes.value, strict=True):
        one = dataclasses.replace(solver, **{leaf: value})
        np.testing.assert_allclose(lane, oracle(one, *(a.astype(float) for a in (x, y))), atol=2e-4)
    assert lanes.result.shape == (3,)


@both
@pytest.mark.parametrize("name", ["ridge", "truncated", "metric"])
def test_derivative_is_the_finite_difference(kind, name):
    solver = REGISTRY[name][0]
    x, y = problem()
    dx, dy = problem(1)
    step = 1e-5

    def value(t):
        return edmd.solve(kind.from_batch(x + t * dx, y + t * dy), solver).value

    @jax.jit
    def slopes(t):
        """Forwards, and backwards along the result itself."""
        _, along = jax.linearize(value, t)
        slope = along(1.0)
        return slope, jax.linear_transpose(along, t)(slope)[0]

    with jax.enable_x64(True):
        slope, back = map(np.asarray, slopes(0.0))
        high, low = value(step), value(-step)
    difference = (np.asarray(high) - np.asarray(low)) / (2 * step)
    np.testing.assert_allclose(slope, difference, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(back, np.sum(slope**2), rtol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_stay_finite_without_full_rank(kind):
    x, y = problem(dtype=np.float32)
    x[:, 2] = 0

    def loss(scale, alpha):
        stats = edmd.Gram.from_batch(x * scale, y) if kind is edmd.Gram else None
        stats = stats or edmd.RFactor(edmd.RFactor.from_batch(x, y).r * scale, 60.0, P)
        return jnp.sum(edmd.solve(stats, edmd.Ridge(alpha)).value ** 2)

    slopes = jax.jit(jax.grad(loss, argnums=(0, 1)))
    assert np.isfinite(slopes(1.5, 0.1)).all()
    assert np.isfinite(slopes(1.5, 0.0)).all()
    if kind is edmd.Gram:
        assert np.isfinite(jax.jit(jax.hessian(loss))(1.5, 0.1))


@both
def test_reduced_rank_is_optimal(kind):
    """No other matrix of the rank has a smaller loss: against random ones and their descent."""
    x, y = problem()
    root = np.linalg.cholesky(METRIC)
    loss = lambda k: np.linalg.norm((x @ k - y) @ root)
    with jax.enable_x64(True):
        stats = kind.from_batch(x, y)
        best = loss(np.asarray(edmd.solve(stats, edmd.ReducedRank(2, METRIC)).value))
    rng = np.random.default_rng(0)
    for _ in range(20):
        k = rng.normal(size=(P, 2)) @ rng.normal(size=(2, Q))
        for _ in range(30):  # alternating least squares over the two factors
            u, _, _ = np.linalg.svd(k)
            left = u[:, :2]
            k = left @ np.linalg.lstsq(x @ left, y, rcond=None)[0]
            v = np.linalg.svd(k @ root)[2][:2].T
            k = np.linalg.lstsq(x, y @ root @ v, rcond=None)[0] @ v.T @ np.linalg.inv(root)
        assert best <= loss(k) + 1e-7


def test_low_rank_factors_multiply_to_the_solution():
    x, y = problem(dtype=np.float32)
    stats = edmd.Gram.from_batch(x, y)
    for solver in (REGISTRY["reduced"][0], REGISTRY["metric"][0]):
        left, right = edmd.low_rank(stats, solver)
        assert left.shape == (P, 2)
        np.testing.assert_allclose(left @ right, edmd.solve(stats, solver).value, atol=1e-5)
    left, right = edmd.low_rank(stats, edmd.Ridge(0.1))
    np.testing.assert_allclose(left @ right, edmd.solve(stats, edmd.Ridge(0.1)).value, atol=1e-5)


@both
def test_a_singular_metric_uses_its_ranks_first(kind):
    x, y = problem()
    direction = np.ones((Q, 1))
    with jax.enable_x64(True):
        stats = kind.from_batch(x, y)
        solver = edmd.ReducedRank(1, direction @ direction.T)
        k = np.asarray(edmd.solve(stats, solver).value)
        full = np.asarray(edmd.solve(stats, dataclasses.replace(solver, rank=Q)).value)
    plain = np.linalg.lstsq(x, y, rcond=None)[0]
    np.testing.assert_allclose(k @ direction, plain @ direction, atol=1e-6)
    np.testing.assert_allclose(full, plain, atol=1e-6)


@both
@pytest.mark.parametrize("alpha", [0.0, 1e-20])
def test_dependent_columns_give_the_least_norm(kind, alpha):
    x, y = problem()
    x = np.concatenate([x, x[:, :1], np.zeros((N, 1))], axis=1)
    with jax.enable_x64(True):
        solution = edmd.solve(kind.from_batch(x, y), edmd.Ridge(alpha))
    np.testing.assert_allclose(solution.value, np.linalg.pinv(x) @ y, atol=1e-8)
    assert int(solution.info.rank) == P
    assert int(solution.result) == RANK_DEFICIENT
    np.testing.assert_allclose(
        float(solution.info.condition), np.linalg.svd(x)[1][0] / np.linalg.svd(x)[1][P - 1]
    )
    with pytest.raises(NumericalError, match="dependent"):
        edmd.unwrap(solution)
    assert edmd.unwrap(solution, allow=(RANK_DEFICIENT,)).shape == (P + 2, Q)


@both
def test_scales_of_columns_do_not_matter(kind):
    """Monomials of unscaled data: the condition is high, the triangular solve does not mind."""
    x, y = problem()
    scales = np.logspace(0, -6, P)
    with jax.enable_x64(True):
        solution = edmd.solve(kind.from_batch(x * scales, y))
    expected = np.linalg.lstsq(x, y, rcond=None)[0] / scales[:, None]
    np.testing.assert_allclose(solution.value, expected, rtol=1e-7)
    assert int(solution.result) == SUCCESS
    assert int(solution.info.rank) == P


@both
def test_result_codes(kind):
    x, y = problem()
    with jax.enable_x64(True):
        few = edmd.solve(kind.from_batch(x[:4], y[:4]))
        np.testing.assert_allclose(few.value, np.linalg.pinv(x[:4]) @ y[:4], atol=1e-8)
        assert int(few.result) == UNDERDETERMINED
        x[:, 1] = x[:, 0] + 1e-6 * x[:, 1]
        near = edmd.solve(kind.from_batch(x, y))
        assert int(near.result) == (ILL_CONDITIONED if kind is edmd.Gram else SUCCESS)
        np.testing.assert_allclose(float(near.info.condition), np.linalg.cond(x), rtol=1e-2)
        ridged = edmd.solve(kind.from_batch(x, y), edmd.Ridge(1e-2))
        assert int(ridged.result) == SUCCESS
        x[3, 3] = np.nan
        bad = edmd.solve(kind.from_batch(x, y))
        assert int(bad.result) == NONFINITE_DATA
        assert not np.isfinite(bad.value).any()


def test_large_dictionaries_are_diagnosed_by_estimates(monkeypatch):
    from koopjax.edmd import _factor

    rng = np.random.default_rng(0)
    u, v = (np.linalg.qr(rng.normal(size=(n, 40)))[0] for n in (200, 40))
    x = u * np.logspace(0, -3, 40) @ v.T
    y = x[:, :2]
    monkeypatch.setattr(_factor, "EXACT", 10)
    for kind in KINDS:
        with jax.enable_x64(True):
            found = jax.jit(_factor.diagnose)(kind.from_batch(x, y))
        np.testing.assert_allclose(float(found.condition), 1e3, rtol=0.05)
        assert int(found.rank) == 40
        with jax.enable_x64(True):
            found = jax.jit(_factor.diagnose)(kind.from_batch(np.c_[x[:, :39], x[:, 0]], y))
        assert int(found.rank) == 39


@both
def test_large_dependent_dictionaries_take_one_factorisation(kind, monkeypatch):
    """The solution of the small ones, its rank and code, with or without a ridge."""
    from koopjax.edmd import _factor, _solvers

    x, y = problem()
    x = np.concatenate([x, x[:, :2], np.zeros((N, 1))], axis=1)
    with jax.enable_x64(True):
        stats, ridges = kind.from_batch(x, y), (edmd.Ridge(0.0), edmd.Ridge(1e-3))
        smalls = [edmd.solve(stats, ridge) for ridge in ridges]
        monkeypatch.setattr(_factor, "EXACT", 4)
        solve = jax.jit(lambda stats, ridge: _solvers.compute(stats, ridge))
        larges = [solve(stats, ridge) for ridge in ridges]
    for large, small, code in zip(larges, smalls, (RANK_DEFICIENT, SUCCESS), strict=True):
        np.testing.assert_allclose(large.value, small.value, atol=1e-10)
        assert int(large.info.rank) == int(small.info.rank) == P
        assert int(large.result) == int(small.result) == code
        np.testing.assert_allclose(float(large.info.condition), float(small.info.condition))


def test_float64_statistics_keep_their_digits_where_x64_is_off():
    x, y = problem(dtype=np.float32)
    x[:, 1] = x[:, 0] * (1 + 3e-4 * x[:, 1])
    stats = edmd.accumulate(_Plain(P), x, y, target=_Plain(Q))
    expected = np.linalg.lstsq(x.astype(float), y.astype(float), rcond=None)[0]
    alone = edmd.solve(stats, edmd.Ridge())
    assert alone.value.dtype == np.float64
    np.testing.assert_allclose(np.asarray(alone.value), expected, rtol=1e-6, atol=1e-6)
    lanes = jax.vmap(lambda a: edmd.solve(stats, edmd.Ridge(a)).value.astype(jnp.float32))
    np.testing.assert_allclose(lanes(jnp.zeros(2))[0], expected, rtol=1e-5, atol=1e-5)


class _Plain:
    """The state itself as a dictionary of one's own: only what the protocol asks for."""

    def __init__(self, d):
        self.d = d

    def __call__(self, x):
        return x

    def size(self, d):
        return d


jax.tree_util.register_pytree_node(_Plain, lambda a: ((), a.d), lambda d, _: _Plain(d))


def test_settings_that_can_not_be_met():
    x, y = problem(dtype=np.float32)
    stats = edmd.Gram.from_batch(x, y)
    for solver, text in [
        (edmd.Ridge(-1.0), "alpha of at least 0"),
        (edmd.TruncatedSVD(7), "rank as a whole number from 1 to 6"),
        (edmd.TruncatedSVD(0), "rank as a whole number from 1 to 6"),
        (edmd.ReducedRank(5), "rank as a whole number from 1 to 4"),
        (edmd.ReducedRank(2, np.eye(3)), "metric of shape"),
        ("ridge", "a solver"),
    ]:
        with pytest.raises(ValueError, match=text):
            edmd.solve(stats, solver)
    with pytest.raises(ValueError, match="expected edmd"):
        edmd.solve(x)
    with pytest.raises(ValueError, match="concrete rank"):
        edmd.low_rank(stats, edmd.TruncatedSVD(2))


def test_at_full_rank_small_outputs_keep_their_digits():
    rng = np.random.default_rng(0)
    x, units = rng.uniform(-1, 1, (200, 2)), np.array([1e-15, 1.0])
    y = x @ np.array([[0.5, 0.2], [0.0, 0.9]])
    stats = edmd.Gram.from_batch(x * units, y * units)
    k = edmd.solve(stats, edmd.ReducedRank(2)).value
    np.testing.assert_allclose((x * units) @ np.asarray(k, np.float64) / units, y, atol=1e-5)
