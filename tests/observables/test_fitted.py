"""Dictionaries that are fitted or drawn: standardisation, projection, centres, directions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from koopjax import edmd, observables as ob
from koopjax.observables._kernels import squared_distances
from tests.observables.dictionaries import data

KEY = jax.random.key(7)


def test_standardize_gives_unit_variance_in_any_scale():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 4)) * [1e-3, 1.0, 40.0, 1.0] + [1.0, -2.0, 900.0, 0.0]
    x = x.astype(np.float32)
    z = np.asarray(ob.Standardize.fit(x)(x), np.float64)
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(z.std(axis=0), 1, atol=1e-4)


def test_dead_and_constant_units_are_only_shifted():
    x = np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32)
    x[:, 1], x[:, 2] = 0.0, 0.1  # 0.1 is not a float32: its mean rounds
    psi = ob.Standardize.fit(x)
    np.testing.assert_array_equal(np.asarray(psi.scale)[1:3], 1)
    assert np.max(np.abs(np.asarray(psi(x))[:, 1:3])) < 1e-7
    np.testing.assert_allclose(psi(x[0] + 1)[1:3], 1, rtol=1e-5)


def test_rarely_active_units_do_not_blow_up():
    x = np.random.default_rng(0).normal(size=(20_000, 3)).astype(np.float32)
    x[:, 1] = 0.0
    x[7, 1] = 1.0
    x[:, 2] *= 1e-9
    psi = ob.Standardize.fit(x)
    assert np.max(np.abs(psi(x))) <= 10.001
    assert np.abs(psi(np.ones(3, np.float32))[1]) <= 10.001
    free = ob.Standardize.fit(x, limit=np.inf)
    np.testing.assert_allclose(np.std(np.asarray(free(x)), axis=0), 1, atol=1e-3)


@settings(max_examples=10, deadline=None)
@given(st.sets(st.integers(1, 39), max_size=5))
def test_standardize_from_a_stream_is_that_of_all(cuts):
    x = data(40) + 5
    batches = np.split(x, sorted(cuts))
    whole = ob.Standardize.fit(x, limit=np.inf)
    streamed = ob.Standardize.fit(iter(batches), limit=np.inf)
    np.testing.assert_allclose(streamed.mean, whole.mean, rtol=1e-5)
    np.testing.assert_allclose(streamed.scale, whole.scale, rtol=1e-4)


def test_standardize_traced_equals_eager():
    x = data(300)
    eager, traced = ob.Standardize.fit(x), jax.jit(ob.Standardize.fit)(x)
    np.testing.assert_allclose(traced.mean, eager.mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(traced.scale, eager.scale, rtol=1e-5)


def test_standardize_from_moments():
    psi = ob.Standardize.from_moments(jnp.array([1.0, 2.0]), jnp.array([4.0, 0.0]))
    np.testing.assert_allclose(psi(jnp.array([3.0, 5.0])), [1.0, 3.0])


def test_fit_range_fills_the_interval():
    x = data(300) * 7 + 3
    x[:, 2] = 5.0
    z = np.asarray(ob.Standardize.fit_range(x)(x))
    np.testing.assert_allclose(z[:, [0, 1, 3]].min(axis=0), -1, atol=1e-5)
    np.testing.assert_allclose(z[:, [0, 1, 3]].max(axis=0), 1, atol=1e-5)
    np.testing.assert_allclose(z[:, 2], 0, atol=1e-5)
    unit = np.asarray(ob.Standardize.fit_range(x, 0.0, 1.0)(x))
    np.testing.assert_allclose([unit.min(), unit.max()], [0, 1], atol=1e-5)
    with pytest.raises(ValueError, match="lower < upper"):
        ob.Standardize.fit_range(x, 1.0, 1.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize(
    "fit",
    [
        ob.Standardize.fit,
        ob.Standardize.fit_range,
        lambda x: ob.Standardize.fit(iter([x])),
        lambda x: ob.Project.pca(x, 2),
        lambda x: ob.Project.active_subspace(np.ones((3, 4)), x, 2),
        lambda x: ob.GaussianRBF.fit(x, 2, KEY),
    ],
)
def test_nan_and_infinity_are_refused_and_so_is_nothing(fit, bad):
    x = np.asarray(data(10)).copy()
    x[3, 1] = bad
    with pytest.raises(ValueError, match="expected finite numbers"):
        fit(x)
    with pytest.raises(ValueError, match="expected"):
        fit(x[:0])


def test_bad_shapes_are_refused():
    with pytest.raises(ValueError, match="shape \\(n, d\\)"):
        ob.Standardize.fit(np.ones(3))
    with pytest.raises(ValueError, match="rank from 1 to 4"):
        ob.Project.pca(data(10), 5)
    with pytest.raises(ValueError, match="an empty stream"):
        ob.Standardize.fit(iter([]))
    with pytest.raises(ValueError, match="batches of 4 coordinates, got 3"):
        ob.Standardize.fit(iter([np.ones((2, 4)), np.ones((2, 3))]))
    with pytest.raises(ValueError, match="at most 10 centres"):
        ob.GaussianRBF.fit(data(10), 11, KEY)
    with pytest.raises(ValueError, match="positive bandwidth"):
        ob.GaussianRBF.fit(data(10), 2, KEY, bandwidth=0.0)
    with pytest.raises(ValueError, match="positive bandwidth"):
        ob.RandomFourier.create(KEY, 3, 4, -1.0)
    with pytest.raises(ValueError, match="the matrix of Project with 2 axes"):
        ob.Project(jnp.ones(3))(jnp.ones((2, 3)))


def test_pca_is_the_svd():
    x = np.asarray(data(300, 6), np.float64) * np.arange(1, 7) + 4
    psi = ob.Project.pca(x.astype(np.float32), 3)
    centred = x - x.mean(axis=0)
    _, values, vt = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(np.abs(vt[:3] @ psi.matrix), np.eye(3), atol=1e-4)
    z = np.asarray(psi(x.astype(np.float32)))
    np.testing.assert_allclose(z.var(axis=0), values[:3] ** 2 / 300, rtol=1e-4)
    white = np.asarray(ob.Project.pca(x, 3, whiten=True)(x.astype(np.float32)))
    np.testing.assert_allclose(np.cov(white.T, bias=True), np.eye(3), atol=1e-3)


def test_whitening_leaves_dead_directions_alone():
    x = np.asarray(data(100, 3)).copy()
    x[:, 2] = 1.0
    z = np.asarray(ob.Project.pca(x, 3, whiten=True)(x))
    np.testing.assert_allclose(z.std(axis=0)[:2], 1, rtol=1e-3)
    assert np.max(np.abs(z[:, 2])) < 1e-5


def test_pca_in_a_metric_is_the_best_approximation():
    rng = np.random.default_rng(0)
    x, a = rng.normal(size=(400, 5)) * np.arange(1, 6), rng.normal(size=(3, 5))
    metric = a.T @ a
    psi = ob.Project.pca(x, 2, metric=metric)
    z, target = np.asarray(psi(x.astype(np.float32)), np.float64), (x - x.mean(0)) @ a.T
    left = np.sum((target - z @ np.linalg.lstsq(z, target, rcond=None)[0]) ** 2)
    values = np.linalg.svd(target, compute_uv=False)
    np.testing.assert_allclose(left, values[2] ** 2, rtol=1e-3)


def test_active_subspace_finds_the_direction_of_a_ridge_function():
    x = data(200, 5)
    w = np.array([3, 0, 4, 0, 0], np.float32) / 5
    gradients = (1 - np.tanh(x @ w) ** 2)[:, None] * w
    for weighted in (True, False):
        psi = ob.Project.active_subspace(x, gradients, 1, weighted=weighted)
        np.testing.assert_allclose(np.abs(np.asarray(psi.matrix)[:, 0]), w, atol=1e-3)
    jacobian = np.stack([gradients, np.broadcast_to(w, gradients.shape)], 1)
    psi = ob.Project.active_subspace(x, jacobian, 2)
    np.testing.assert_allclose(np.abs(np.asarray(psi.matrix)[:, 0]), w, atol=1e-3)
    assert np.all(np.isfinite(psi.matrix))
    bare = ob.Project.active_subspace(None, gradients, 1, weighted=False)
    assert bare.mean is None
    assert bare(x).shape == (200, 1)


def test_k_means_finds_separate_clusters():
    corners = np.array([[0, 0], [10, 0], [0, 10], [1000, 1000]], np.float32)
    x = np.repeat(corners, 50, axis=0) + np.random.default_rng(0).normal(size=(200, 2)) * 0.1
    x = x.astype(np.float32)
    centers = np.asarray(ob.GaussianRBF.fit(x, 4, KEY).centers)
    found = centers[np.lexsort(centers.T)]
    means = x.reshape(4, 50, 2).mean(axis=1)
    np.testing.assert_allclose(found, means[np.lexsort(means.T)], atol=1e-2)


def test_rbf_is_the_formula_and_has_a_centre_at_one():
    psi = ob.GaussianRBF.fit(data(200) + 1000, 8, KEY, bandwidth=1.5)
    x = np.asarray(data(20) + 1000, np.float64)
    c = np.asarray(psi.centers, np.float64)
    expected = np.exp(-((x[:, None] - c[None]) ** 2).sum(-1) / (2 * 1.5**2))
    np.testing.assert_allclose(psi(x), expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(np.diag(psi(psi.centers)), 1, atol=1e-6)


@pytest.mark.parametrize(
    "x",
    [np.zeros((10, 2)), np.repeat(np.eye(2), 5, axis=0), np.ones((10, 2)) * 1e4],
    ids=["dead", "two points", "constant"],
)
def test_rbf_of_too_few_distinct_points_is_finite(x):
    psi = ob.GaussianRBF.fit(x.astype(np.float32), 4, KEY)
    assert float(psi.bandwidth) > 0
    assert np.all(np.isfinite(psi(x)))


def test_rbf_bandwidth_follows_the_scale():
    x = data(200)
    small, large = ob.GaussianRBF.fit(x, 8, KEY), ob.GaussianRBF.fit(128 * x, 8, KEY)
    np.testing.assert_allclose(large.bandwidth, 128 * small.bandwidth, rtol=0.1)
    columns = np.asarray(small(x))
    assert 0.1 < columns.mean() < 0.9  # neither needles nor constants


def test_rbf_on_a_subsample():
    psi = ob.GaussianRBF.fit(data(500), 6, KEY, max_samples=60)
    assert psi.centers.shape == (6, 4)


def test_random_fourier_approximates_the_gaussian_kernel():
    x = data(30)
    psi = ob.RandomFourier.create(KEY, 4, 20_001, 1.7)
    features = np.asarray(psi(x), np.float64)
    kernel = np.exp(-np.asarray(squared_distances(x, x)) / (2 * 1.7**2))
    np.testing.assert_allclose(features @ features.T, kernel, atol=0.04)
    assert psi.names(4)[3] == "cos(w3·x)"
    assert psi.names(4)[-1] == "sin(w9999·x)"
    np.testing.assert_array_equal(psi(x), ob.RandomFourier.create(KEY, 4, 20_001, 1.7)(x))


def test_a_kronecker_projection_is_a_product_along_each_axis():
    rng = np.random.default_rng(0)
    a, b, c = rng.normal(size=(2, 3)), rng.normal(size=(3, 1)), rng.normal(size=(4, 2))
    x = rng.normal(size=(5, 24))
    psi = ob.Kronecker(tuple(jnp.asarray(m, jnp.float32) for m in (a, b, c)))
    dense = x @ np.kron(np.kron(a, b), c)
    np.testing.assert_allclose(psi(x.astype(np.float32)), dense, rtol=2e-5, atol=2e-5)
    assert psi.size(24) == 6
    assert psi.names(24)[0] == "u0_0_0"


def test_a_fitted_kronecker_projection_keeps_what_varies_along_each_axis():
    rng = np.random.default_rng(1)
    left, right = rng.normal(size=(6, 2)), rng.normal(size=(5, 2))
    x = np.einsum("ia,nab,jb->nij", left, rng.normal(size=(50, 2, 2)), right).reshape(50, 30)
    psi = ob.Kronecker.fit(x.astype(np.float32), (6, 5), (2, 2))
    a, b = (np.asarray(m, np.float64) for m in psi.factors)
    np.testing.assert_allclose(a.T @ a, np.eye(2), atol=1e-5)
    back = np.einsum("nab,ia,jb->nij", np.asarray(psi(x)).reshape(50, 2, 2), a, b)
    np.testing.assert_allclose(back.reshape(50, 30), x, atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "ranks", "words"),
    [((4, 4), (2, 2), "30 entries"), ((6, 5), (7, 1), "ranks"), ((6, 5), (2,), "a rank for each")],
)
def test_bad_axes_of_a_kronecker_projection(shape, ranks, words):
    with pytest.raises(ValueError, match=words):
        ob.Kronecker.fit(np.ones((3, 30), np.float32), shape, ranks)


def spread_out(where):
    """Samples whose distances cancel if they are taken as |x|² - 2 x·c + |c|²."""
    rng = np.random.default_rng(3)
    x = {
        "wide": rng.uniform(-3e4, 3e4, (60, 3)),
        "far": rng.normal(size=(60, 3)) + np.array([4e5, -7e5, 1e5]),
        "clusters": rng.normal(size=(60, 3)) + 1e3 * rng.integers(-4, 5, (60, 3)),
        "many": rng.normal(size=(60, 40)) + 1e4 * rng.integers(0, 2, (60, 1)),
    }[where]
    return x.astype(np.float32)


@pytest.mark.parametrize("where", ["wide", "far", "clusters", "many"])
def test_distances_have_the_digits_of_their_inputs(where):
    x = spread_out(where)
    c = x[::3] + np.float32(0.25)
    difference = x[:, None].astype(np.float64) - c[None]
    want = np.sum(difference**2, -1)
    distances = jax.jit(squared_distances)
    np.testing.assert_allclose(distances(x, c), want, rtol=1e-5)
    np.testing.assert_array_equal(np.diag(distances(x[::3], x[::3])), 0)
    psi = ob.GaussianRBF(c, jnp.float32(1.5))
    np.testing.assert_allclose(psi(x), np.exp(-want / 4.5), atol=1e-5)
    np.testing.assert_array_equal(np.diag(ob.GaussianRBF(x, 1.0)(x)), 1)


@pytest.mark.parametrize("width", [1e-30, 1e-20, 1e20, 1e30])
def test_widths_whose_squares_leave_float32(width):
    x = spread_out("many")[:9]
    with np.errstate(over="ignore"):
        wide = x.astype(np.float64)
        want = np.exp(-np.sum((wide[:, None] - wide[None]) ** 2, -1) / (2 * width**2))
        single = np.exp(-((wide[:, :1] - wide[None, :, 0]) ** 2) / (2 * width**2))
    np.testing.assert_allclose(ob.GaussianRBF(x, width)(x), want, atol=1e-6)
    np.testing.assert_allclose(ob.Gaussian1D(x[:, 0], width)(x[:, :1])[:, 1:], single, atol=1e-6)


def test_gradients_of_distances():
    x = spread_out("wide")[:7]
    square = lambda x, c: jnp.sum(jnp.sin(squared_distances(x, c) / 1e9))
    slopes = jax.jit(jax.grad(square, (0, 1)))
    assert all(np.all(np.isfinite(g)) for g in slopes(x, x))
    c = x + 3
    got = slopes(x, c)
    a, b = np.asarray(x, np.float64), np.asarray(c, np.float64)
    step = a[:, None] - b[None]
    outer = (np.cos(np.sum(step**2, -1) / 1e9) * 2e-9)[..., None] * step
    np.testing.assert_allclose(got[0], outer.sum(1), rtol=1e-3, atol=1e-9)
    np.testing.assert_allclose(got[1], -outer.sum(0), rtol=1e-3, atol=1e-9)
    # The second derivative of a Gaussian at its centre, as a generator takes it.
    at = lambda t: ob.GaussianRBF(c, 2.0)(c[:1] + t)[0, 0]
    np.testing.assert_allclose(jax.jit(jax.grad(jax.grad(at)))(0.0), -0.75, rtol=1e-5)
    together = jax.jit(jax.vmap(squared_distances, (None, 0)))(x, np.stack([c, x]))
    np.testing.assert_array_equal(together[0], jax.jit(squared_distances)(x, c))


def test_k_means_of_tight_clusters_far_apart():
    rng = np.random.default_rng(1)
    middle = np.array([[0.0, 0], [0.5, 0], [9e3, 0], [9e3, 0.5], [0, 7e3], [0.5, 7e3]])
    x = (np.repeat(middle, 30, axis=0) + 0.02 * rng.normal(size=(180, 2))).astype(np.float32)
    centers = np.asarray(ob.GaussianRBF.fit(x, 6, KEY).centers, np.float64)
    nearest = np.sum((x[:, None].astype(np.float64) - centers[None]) ** 2, -1)
    within = x.reshape(6, 30, 2) - x.reshape(6, 30, 2).astype(np.float64).mean(1, keepdims=True)
    assert np.sum(nearest.min(1)) < 1.01 * np.sum(within**2)
    width = float(ob.GaussianRBF.fit(x, 6, KEY).bandwidth)
    np.testing.assert_allclose(width, 2 * 0.5, rtol=0.05)


@pytest.mark.parametrize("fit", ["array", "stream", "traced"])
def test_standardize_in_any_units(fit):
    z = np.random.default_rng(0).normal(size=(400, 8))
    units = np.array([1e8, 1.0, 1e-30, 1e25, 0, 0, 1e-41, 1e-3])
    x = (z * units + np.array([0, 0, 0, 0, 0.1, 1e7, 0, 1.0])).astype(np.float32)
    if fit == "stream":
        psi = ob.Standardize.fit(iter([x[:150], x[150:]]))
    else:
        psi = (jax.jit(ob.Standardize.fit) if fit == "traced" else ob.Standardize.fit)(x)
    found = np.asarray(psi(x), np.float64)
    np.testing.assert_allclose(found[:, [0, 1, 2, 3, 7]].std(0), 1, atol=1e-3)
    # Constant to their own rounding, or below the normal numbers of float32.
    np.testing.assert_array_equal(np.asarray(psi.scale)[4:7], 1)
    assert np.abs(found[:, 4:7]).max() < 1
    ranged = np.asarray(ob.Standardize.fit_range(x)(x))
    assert np.all(np.isfinite(ranged))
    assert np.abs(ranged).max() < 1.001


def test_a_small_column_is_fitted_through_standardize():
    z = np.random.default_rng(0).normal(size=(500, 2))
    x = (z * np.array([3e7, 2e-6])).astype(np.float32)
    y = (z[:, :1] - 0.5 * z[:, 1:] * z[:, :1]).astype(np.float32)
    psi = ob.Compose(ob.Standardize.fit(x), ob.Monomials(2))
    fit = edmd.fit(psi, x, y, target=ob.Identity())
    assert np.max(np.abs(fit.predict(x) - y)) < 1e-4


def test_whitening_in_any_units():
    z = np.random.default_rng(0).normal(size=(300, 3))
    x = (z * np.array([1e7, 1.0, 1e-4]) + np.array([0, 0, 0.1])).astype(np.float32)
    x = np.concatenate([x, np.full((300, 1), 0.1, np.float32)], 1)
    white = np.asarray(ob.Project.pca(x, 4, whiten=True)(x))
    np.testing.assert_allclose(white[:, :3].std(0), 1, rtol=0.02)
    assert np.abs(white[:, 3]).max() < 1


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (np.array([[1, 0.5], [0, 1]]), "symmetric"),
        (np.diag([1.0, -1.0]), "positive semidefinite"),
        (np.diag([1.0, np.nan]), "finite"),
        (np.eye(3), "shape"),
        ("metre", "numbers"),
    ],
)
def test_what_is_no_metric_is_refused(metric, message):
    x = np.asarray(data(50, 2))
    with pytest.raises(ValueError, match=message):
        ob.Project.pca(x, 1, metric=metric)
    with pytest.raises(ValueError, match=message):
        edmd.fit(ob.Identity(), x, x, target=ob.Identity(), solver=edmd.ReducedRank(1, metric))


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
def test_gaussians_and_their_fits_do_not_depend_on_units(scale):
    x = data(200, 2).astype(np.float32)
    scaled = (x * np.float32(scale)).astype(np.float32)
    fitted = ob.GaussianRBF.fit(x, 4, KEY)
    again = ob.GaussianRBF.fit(scaled, 4, KEY)
    np.testing.assert_allclose(again(scaled), fitted(x), atol=2e-5)
    own = ob.GaussianRBF(scaled[:3], np.float32(scale))
    np.testing.assert_array_equal(np.diag(own(scaled[:3])), 1)


def test_moments_that_are_none_are_refused():
    with pytest.raises(ValueError, match="variance of at least 0, got -1"):
        ob.Standardize.from_moments(np.zeros(2), np.array([-1.0, 1.0]))
    with pytest.raises(ValueError, match="finite numbers in the mean"):
        ob.Standardize.from_moments(np.full(2, np.nan), np.ones(2))


@pytest.mark.parametrize("scale", [1e-160, 1e160])
def test_a_stream_is_standardised_where_its_squares_leave_float64(scale):
    x = np.random.default_rng(0).normal(2, 3, (60, 2)) * scale
    for rows in (iter([x[:20], x[20:]]), x):
        found = np.asarray(ob.Standardize.fit(rows)(x), np.float64)
        np.testing.assert_allclose(found.std(axis=0), 1, rtol=1e-5)


@pytest.mark.parametrize("scale", [1e-22, 1e20])
def test_an_active_subspace_does_not_depend_on_units(scale):
    gradients = np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32) * [1, 0.1]
    wanted = ob.Project.active_subspace(None, gradients, 1, weighted=False).matrix
    found = ob.Project.active_subspace(None, gradients * scale, 1, weighted=False).matrix
    np.testing.assert_allclose(found, wanted, atol=1e-5)
