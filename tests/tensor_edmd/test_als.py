"""Alternating least squares against dense solutions, known trains and its own padded form."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from koopjax import data, tensor_edmd, tt
from koopjax._core import ILL_CONDITIONED, NONFINITE_DATA, SUCCESS
from koopjax.observables import Compose, CosSin, Polynomial1D, Product, Standardize
from koopjax.tensor_edmd._als_local import split
from tests.tensor_edmd.oracles import dense, hermites, rows_product

KEY = jax.random.key(3)
SWEEPS = 20
PSI = Product.of(Polynomial1D(2, family="hermite"), 4)
#: A dictionary that is quick to compile for, where its size does not matter.
SMALL = Product.of(Polynomial1D(2, family="hermite"), 3)


@pytest.fixture(autouse=True)
def wide():
    """Oracles are in float64."""
    with jax.enable_x64(True):
        yield


@functools.cache
def samples(n: int, d: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d))


def random_target(ranks, modes, outputs, seed=1):
    """Coefficients `(∏ modes, outputs)` of a random train whose outputs are in its last core."""
    rng = np.random.default_rng(seed)
    total = np.ones((1, 1))
    for k, mode in enumerate(modes):
        right = ranks[k + 1] if k + 1 < len(modes) else outputs
        core = rng.normal(size=(ranks[k], mode, right))
        total = np.einsum("pa,aib->pib", total, core).reshape(-1, right)
    return total


def fit_to(x, y, rank, **options):
    """One compilation for most tests: one padding, one number of sweeps."""
    return tensor_edmd.als(PSI, x, y, rank, KEY, **{"max_rank": 9, "sweeps": SWEEPS, **options})


def quick(x, y, rank, **options):
    """The same for what has to be compiled anew."""
    return tensor_edmd.als(SMALL, x, y, rank, KEY, **{"max_rank": 3, "sweeps": 4, **options})


def lift(x):
    return rows_product(hermites(x))


def error(fit, x, y):
    return np.linalg.norm(np.asarray(fit.predict(x)) - y) / np.linalg.norm(y)


def dense_ridge(features, y, alpha):
    gram = features.T @ features + alpha * np.eye(features.shape[1])
    return np.linalg.solve(gram, features.T @ y)


@functools.cache
def problem(outputs=2):
    x = samples(300, 4)
    target = random_target((1, 2, 3, 2), (3, 3, 3, 3), outputs)
    return x, lift(x) @ target, target


@functools.cache
def fitted():
    """A fit of rank 2 that several tests look at, with its samples."""
    x, y = samples(300, 4), samples(300, 2, 9)
    return x, y, fit_to(x, y, 2, alpha=1.0)


@functools.cache
def recovered():
    """The outputs move: bonds must hold the exact ranks wherever they are."""
    x, y, _ = problem()
    return fit_to(x, y, 6)


def test_recovers_a_random_train_from_samples():
    x, y, target = problem()
    fit = recovered()
    assert np.linalg.norm(dense(fit.train.cores) - target) < 1e-10 * np.linalg.norm(target)
    assert fit.ranks == (1, 3, 6, 3, 1)
    assert int(fit.result) == SUCCESS
    assert float(fit.info.residual) < 1e-10
    np.testing.assert_allclose(fit.predict(x), y, atol=1e-9)


@pytest.mark.parametrize("alpha", [0.0, 3.0])
def test_is_dense_ridge_at_full_rank(alpha):
    x = samples(300, 4)
    y = samples(300, 2, 5)
    fit = fit_to(x, y, 9, alpha=alpha)
    np.testing.assert_allclose(dense(fit.train.cores), dense_ridge(lift(x), y, alpha), atol=1e-10)


UNEQUAL = Product([Polynomial1D(1), Polynomial1D(3), Polynomial1D(1)])


def unequal(x, y, rank, **options):
    """One compilation for tests of modes that differ."""
    return tensor_edmd.als(UNEQUAL, x, y, rank, KEY, max_rank=8, sweeps=1, **options)


def test_unequal_modes_are_dense_ridge_at_full_rank():
    x, y = samples(200, 3), samples(200, 3, 5)
    fit = unequal(x, y, 8, alpha=0.5)
    assert fit.train.row_modes == (2, 4, 2)
    assert fit.ranks == (1, 2, 2, 1)
    features = [x[:, k : k + 1] ** np.arange(n) for k, n in enumerate((2, 4, 2))]
    expected = dense_ridge(rows_product(features), y, 0.5)
    np.testing.assert_allclose(dense(fit.train.cores), expected, atol=1e-10)


def test_one_coordinate_is_ordinary_ridge():
    psi = Product([Polynomial1D(4)])
    x, y = samples(60, 1), samples(60, 2, 5)
    fit = tensor_edmd.als(psi, x, y, 5, KEY, alpha=0.1, sweeps=1)
    expected = dense_ridge(x ** np.arange(5), y, 0.1)
    np.testing.assert_allclose(dense(fit.train.cores), expected, atol=1e-10)


def test_learns_the_fermi_pasta_ulam_chain():
    x, y = chain(4, 800)
    psi = Product.of(Polynomial1D(3, family="legendre"), 4)
    fit = tensor_edmd.als(psi, x, y, 8, KEY, sweeps=SWEEPS)
    assert float(fit.info.residual) < 1e-8
    fresh, after = chain(4, 100, seed=7)
    np.testing.assert_allclose(fit.predict(fresh), after, atol=1e-7)


def chain(d, n, seed=0):
    """Accelerations of a chain of masses between walls, with cubic springs (beta = 0.7)."""
    x = np.random.default_rng(seed).uniform(-1, 1, (n, d))
    stretch = np.diff(np.pad(x, ((0, 0), (1, 1))), axis=1)
    force = stretch + 0.7 * stretch**3
    return x, force[:, 1:] - force[:, :-1]


def test_objective_never_rises_with_one_output():
    x, y = samples(300, 3), np.tanh(samples(300, 3) @ np.ones((3, 1)))
    fit = quick(x, y, 2)
    errors = np.asarray(fit.info.history)[:, 0]
    assert errors.shape == (8,)
    assert np.all(np.diff(errors) < 1e-12)
    np.testing.assert_allclose(fit.info.residual, errors[-1], rtol=1e-6)


def test_residual_is_that_of_the_predictions():
    x, y, fit = fitted()
    np.testing.assert_allclose(fit.info.residual, error(fit, x, y), rtol=1e-10)


def test_ridge_is_of_the_whole_tensor():
    """Stationary: no change of the output core lowers the dense objective."""
    x, y = samples(300, 4), samples(300, 2, 9)
    fit, features = fit_to(x, y, 2, alpha=5.0), lift(x)
    where = int(np.argmax(fit.train.column_modes))
    cores = [np.asarray(core) for core in fit.train.cores]
    matrix = dense(cores)
    slope = 2 * (features.T @ (features @ matrix - y) + 5.0 * matrix)
    # The objective is quadratic in the core: its slope there, entry by entry.
    changes = []
    for index in np.ndindex(cores[where].shape):
        unit = np.zeros_like(cores[where])
        unit[index] = 1
        changes.append(np.vdot(slope, dense([*cores[:where], unit, *cores[where + 1 :]])))
    objective = np.sum((features @ matrix - y) ** 2) + 5.0 * np.sum(matrix**2)
    assert np.max(np.abs(changes)) < 1e-8 * objective


def test_lane_of_a_padded_fit_is_the_single_fit():
    x, noisy = samples(300, 3), samples(300, 2, 6)
    val, y_val = samples(100, 3, 8), samples(100, 2, 4)
    options = {"alpha": 0.1, "x_val": val, "y_val": y_val}
    single = quick(x, noisy, 2, max_rank=2, **options)
    padded = tensor_edmd.als_padded(SMALL, x, noisy, 2, KEY, max_rank=3, sweeps=4, **options)
    np.testing.assert_allclose(padded.predict(val), single.predict(val), atol=1e-9)
    exact = padded.unpad()
    assert exact.ranks == single.ranks
    np.testing.assert_allclose(dense(exact.train.cores), dense(single.train.cores), atol=1e-9)
    np.testing.assert_allclose(exact.info.history, single.info.history, atol=1e-9)
    np.testing.assert_allclose(padded.rank_mask.sum(axis=1), single.ranks)


def test_vmap_over_ranks_ridges_and_keys_is_a_loop():
    x, y = samples(300, 3), samples(300, 2, 9)
    ranks, alphas = np.array([1, 2, 3]), np.array([0.1, 1.0, 0.5])
    keys = jax.random.split(KEY, 3)
    one = functools.partial(tensor_edmd.als_padded, SMALL, x, y, max_rank=3, sweeps=4)
    fits = jax.jit(jax.vmap(lambda r, a, k: one(r, k, alpha=a)))(ranks, alphas, keys)
    fresh = samples(300, 3, 2)
    for i in range(3):
        alone = one(int(ranks[i]), keys[i], alpha=float(alphas[i])).unpad()
        lane = fits.unpad(i)
        assert lane.ranks == alone.ranks
        np.testing.assert_allclose(
            lift(fresh) @ dense(lane.train.cores), lift(fresh) @ dense(alone.train.cores), atol=1e-8
        )
    with pytest.raises(ValueError, match="lane"):
        fits.unpad()
    with pytest.raises(ValueError, match="one fit"):
        fits.predict(fresh)


@pytest.mark.slow
def test_vmap_over_data():
    x, y = samples(300, 3), np.stack([samples(300, 2, s) for s in (5, 6)])
    fit = functools.partial(tensor_edmd.als_padded, SMALL, max_rank=3, sweeps=4, alpha=1.0)
    fits = jax.vmap(lambda target: fit(x, target, 2, KEY))(y)
    for i in range(2):
        np.testing.assert_allclose(
            fits.unpad(i).predict(x), fit(x, y[i], 2, KEY).predict(x), atol=1e-8
        )


def test_no_compilation_for_another_rank_or_ridge(caplog):
    x, y, _ = fitted()
    with jax.log_compiles(True), caplog.at_level("WARNING"):
        fit_to(x, y, 4, alpha=0.3)
    assert not [r for r in caplog.records if "_fit" in r.getMessage()]


def test_minibatches_give_the_same_fit():
    x, y = samples(300, 3), samples(300, 2, 9)
    whole = quick(x, y, 2, alpha=1.0)
    parts = quick(x, y, 2, alpha=1.0, batch_size=37)
    np.testing.assert_allclose(parts.predict(x), whole.predict(x), atol=1e-8)


@pytest.mark.parametrize("outputs", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_adaptive_rank_finds_the_exact_ranks(outputs):
    x = samples(900, 4)
    target = random_target((1, 2, 3, 2), (3, 3, 3, 3), outputs)
    y = lift(x) @ target
    fit = fit_to(x, y, 1, sweeps=2, adaptive=True, rtol=1e-6)
    where = int(np.argmax(fit.train.column_modes))
    assert fit.ranks == exact_ranks(target, where, outputs)
    assert float(fit.info.residual) < 1e-6


def exact_ranks(target, where, outputs):
    """Of the unfoldings, with the outputs on the side of their core."""
    tensor, out = target.reshape(3, 3, 3, 3, outputs), [1]
    for k in (1, 2, 3):
        rows = 3**k
        side = tensor.reshape(rows, -1, outputs)
        matrix = side.reshape(rows, -1) if k <= where else side.swapaxes(1, 2).reshape(
            rows * outputs, -1
        )  # fmt: skip
        out.append(int(np.linalg.matrix_rank(matrix, 1e-8 * np.linalg.norm(matrix))))
    return (*out, 1)


def test_validation_keeps_the_best():
    x, y = samples(300, 3), samples(300, 2, 9)
    held = samples(100, 3, 8), samples(100, 2, 4)
    fit = quick(x, y, 3, alpha=1e-3, x_val=held[0], y_val=held[1])
    mine = error(fit, *held)
    np.testing.assert_allclose(mine, np.min(np.asarray(fit.info.history)[:, 1]), rtol=1e-8)
    # Not that of the last core: at full rank that one is the same least squares all the time.
    low = quick(x, y, 2, alpha=1e-3, x_val=held[0], y_val=held[1])
    assert error(low, *held) < error(quick(x, y, 2, alpha=1e-3), *held)


def test_patience_stops_and_says_so():
    x, y = samples(300, 3), samples(300, 2, 9)
    fit = quick(x, y, 3, alpha=0.1, patience=1)
    assert "stopped after" in fit.info.reason
    assert len(fit.info.history) < 8


def test_output_metric_decides_what_a_rank_keeps():
    core, cut = np.zeros((4, 2, 3)), jax.jit(split)
    core[0, 0, 1], core[2, 1, 2] = 10.0, 1.0
    for root, kept in (((1.0, 1.0), 0), ((0.01, 1.0), 2)):
        columns, _, rank = cut(core, np.eye(4), np.eye(3), np.diag(root), np.int32(1), 0.0)
        assert int(rank) == 1
        assert int(np.argmax(np.abs(np.asarray(columns)[:, 0]))) == kept


def test_history_is_in_the_output_metric():
    x, y = samples(300, 3), samples(300, 2, 9)
    fit = quick(x, y, 2, metric=np.diag([0.0, 4.0]))
    rest = (np.asarray(fit.predict(x)) - y)[:, 1]
    np.testing.assert_allclose(
        fit.info.residual, np.linalg.norm(rest) / np.linalg.norm(y[:, 1]), rtol=1e-8
    )


def test_starts_from_a_known_train():
    x, y, _ = problem()
    start = functools.partial(fit_to, x, y, sweeps=1)
    assert float(start(6, init=recovered()).info.residual) < 1e-9
    assert float(start(8, init=recovered().train).info.residual) < 1e-9
    line = tt.TensorTrain([np.ones((1, 3, 1))] * 4)
    poor = start(2, init=line)
    assert poor.ranks == (1, 2, 2, 2, 1)
    assert float(poor.info.residual) > 0.1
    with pytest.raises(ValueError, match="modes"):
        start(2, init=tt.TensorTrain([np.ones((1, 2, 1))] * 4))


def test_ranks_bond_by_bond():
    x, y = samples(300, 3), samples(300, 2, 9)
    assert quick(x, y, (1, 3)).ranks == (1, 1, 3, 1)


def test_clipped_rank_is_said():
    fit = quick(samples(300, 3), samples(300, 2, 9), 40, alpha=1e-3)
    assert fit.ranks == (1, 3, 3, 1)
    assert "rank 40 clipped to 3" in fit.info.reason


def test_dependent_functions_are_damped_and_said():
    x = samples(300, 3).copy()
    x[:, 1] = 1.0
    fit = quick(x, samples(300, 2, 9), 3)
    assert int(fit.result) == ILL_CONDITIONED
    assert "damped" in fit.info.reason
    assert np.all(np.isfinite(fit.predict(x)))


def test_silent_coordinates_need_no_damping():
    x = samples(200, 3).copy()
    x[:, 2] = 0.0
    assert int(unequal(x, samples(200, 3, 9), 2, alpha=1e-3).result) == SUCCESS


def test_products_of_many_cores_neither_underflow_nor_overflow():
    """Products of 48 values are 1e-192 or 1e192, whose squares leave even float64."""
    x = samples(100, 48).astype(np.float32)
    y = samples(100, 2, 9).astype(np.float32)
    psi = Product.of(Polynomial1D(1), 48)
    for scale in (1e-4, 1e4):
        fit = tensor_edmd.als(psi, scale * x, y, 2, KEY, alpha=1e-6, sweeps=1)
        found = np.asarray(fit.predict(scale * x))
        assert np.all(np.isfinite(found))
        assert found.dtype == np.float32


@pytest.mark.slow
def test_dtypes_of_float32_data_and_of_the_products():
    x, y = (np.asarray(a, np.float32) for a in problem()[:2])
    rough = fit_to(x, y, 9, alpha=1e-6)
    fine = fit_to(x, y, 9, alpha=1e-6, dtype=jnp.float64)
    for fit in (rough, fine):
        assert {core.dtype for core in fit.train.cores} == {np.dtype(np.float32)}
        assert fit.predict(x).dtype == jnp.float32
        assert float(fit.info.residual) < 1e-5


def test_standardised_coordinates_in_front():
    x = samples(300, 3)
    moved, y = 7 + 5 * x, lift(x) @ random_target((1, 1, 2), (3, 3, 3), 2)
    psi = Compose(Standardize.fit(moved), SMALL)
    fit = tensor_edmd.als(psi, moved, y, 3, KEY, sweeps=1)
    assert float(fit.info.residual) < 1e-8


def test_simulates_forward():
    x = samples(200, 3)
    fit = unequal(x, 0.5 * x, 8)
    np.testing.assert_allclose(fit.predict(x, steps=3), x / 8, atol=1e-10)


def test_predictions_are_differentiable_in_padded_cores():
    x, y = samples(300, 3), samples(300, 2, 9)
    fit = tensor_edmd.als_padded(SMALL, x, y, 2, KEY, max_rank=3, sweeps=4)

    @jax.jit
    def value(cores, output):
        changed = dataclasses.replace(fit, cores=cores, output=output)
        return jnp.sum(changed.predict(x[:20]) ** 2)

    slope = jax.jit(jax.grad(value, (0, 1)))(fit.cores, fit.output)
    assert all(np.all(np.isfinite(s)) for s in slope)
    step = 1e-6 * samples(fit.output.size, 1).reshape(fit.output.shape)
    difference = value(fit.cores, fit.output + step) - value(fit.cores, fit.output - step)
    np.testing.assert_allclose(np.sum(slope[1] * step) * 2, difference, rtol=1e-5)


def test_nonfinite_data_are_coded_where_they_cannot_be_refused():
    x, y = samples(300, 3).copy(), samples(300, 2, 9)
    x[3, 1] = np.nan
    fit = tensor_edmd.als_padded(SMALL, x, y, 2, KEY, max_rank=3, sweeps=4)
    assert int(fit.result) == NONFINITE_DATA


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"rank": 0}, "ranks"),
        ({"rank": 1.5}, "ranks"),
        ({"rank": (2, 2)}, "3 of them"),
        ({"y": np.ones((4, 2))}, "as many rows"),
        ({"x": np.ones((0, 4))}, "not empty"),
        ({"x": np.full((300, 4), np.nan)}, "finite"),
        ({"y": np.full((300, 2), np.inf)}, "finite"),
        ({"x": np.ones((300, 3))}, "4"),
        ({"psi": Polynomial1D(2)}, "Product"),
        ({"alpha": -1.0}, "alpha"),
        ({"sweeps": 0}, "sweeps"),
        ({"batch_size": 0}, "batch_size"),
        ({"patience": 0}, "patience"),
        ({"metric": np.eye(3)}, "metric"),
        ({"x_val": np.ones((3, 4))}, "together"),
        ({"x_val": np.ones((3, 4)), "y_val": np.ones((3, 1))}, "validation"),
        ({"max_rank": 2000, "psi": Product.of(Polynomial1D(63), 4), "rank": 2000}, "unknowns"),
    ],
)
def test_bad_input(change, match):
    x, y, _ = problem()
    arguments = {"psi": PSI, "x": x, "y": y, "rank": 2, "key": KEY, **change}
    with pytest.raises(ValueError, match=match):
        tensor_edmd.als(**arguments)


def test_few_samples_of_real_data():
    images = data.load("digits")
    x = np.asarray(images.flat().x_train)[:150]
    y = np.eye(10)[np.asarray(images.y_train)[:150]]
    fit = tensor_edmd.als(Product.of(CosSin(1.0), x.shape[1]), x, y, 4, KEY, alpha=1e-2, sweeps=1)
    assert float(fit.info.residual) < 0.5


def test_function_major_dictionaries_are_fitted():
    rng = np.random.default_rng(11)
    x = rng.normal(size=(300, 4)).astype(np.float32)
    y = x[:, :1] - 2 * x[:, 1:2] * x[:, 3:] ** 2
    psi = tensor_edmd.FunctionMajor(Product.of(Polynomial1D(2), 4))
    fit = tensor_edmd.als(psi, x, y, 5, jax.random.key(0))
    assert fit.train.row_modes == (5, 5)
    assert np.linalg.norm(np.asarray(fit.predict(x)) - y) <= 1e-4 * np.linalg.norm(y)


@pytest.mark.parametrize(
    ("unit", "mean", "code"),
    [(1e-12, 0.0, SUCCESS), (1.0, 1e5, SUCCESS), (1.0, 3e6, ILL_CONDITIONED)],
)
def test_units_and_far_outputs(unit, mean, code):
    """Scaled coordinates in float32 products; outputs far away are fitted in float64, or said."""
    x = np.random.default_rng(0).uniform(-1, 1, (300, 2))
    y = np.stack([x[:, 0] * x[:, 1] + x[:, 0] ** 2, 0.5 * x[:, 1]], 1) + mean
    y = y.astype(np.float32)
    x = unit * x if unit < 1 else x.astype(np.float32)
    fit = tensor_edmd.als(
        Product.of(Polynomial1D(2), 2), x, y, 3, KEY, dtype=None if mean else jnp.float32
    )
    assert int(fit.result) == code
    rest = np.std(np.asarray(fit.predict(x), np.float64) - y, axis=0)
    assert code or np.all(rest < 0.05 * np.std(y.astype(np.float64), axis=0))
