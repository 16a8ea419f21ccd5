"""The projection trained through the solve: pieces against NumPy, and the whole on digits."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from koopjax import compress, export, models, observables
from koopjax.compress._koopman import trained as varpro
from koopjax.compress._koopman.span import moments


def setup(degree=2, r=3, m=5, n=300):
    random = np.random.default_rng(0)
    h = random.normal(size=(n, m)) @ random.normal(size=(m, m)) + 2
    columns = np.array([0, 2, 3, 5, 9] if degree == 2 else [0, 1, 7, 12, 19])
    mean, covariance = moments(jnp.asarray(h, jnp.float32))
    matrix = random.normal(size=(m, r))
    frame, state = varpro.begin(
        mean, covariance, np.arange(m), columns, degree, matrix, h.mean(0) @ matrix,
        np.ones((len(columns), 2)),
    )  # fmt: skip
    return h, columns, frame, state


@pytest.mark.parametrize("degree", [2, 3])
def test_observables_are_the_products_of_white_coordinates(degree):
    h, columns, frame, state = setup(degree)
    matrix, shift = varpro.projection(frame, state)
    z = h @ matrix - shift
    np.testing.assert_allclose(z.std(axis=0), 1, rtol=1e-3)
    names = observables.Monomials(degree).names(3, ["a", "b", "c"])
    values = dict(zip("abc", z.T, strict=True)) | {"__builtins__": {}}
    want = np.stack(
        [eval(names[c].replace("^", "**"), values) * np.ones(len(z)) for c in columns], axis=1
    )
    found = varpro.observe(frame, state, jnp.asarray(h, jnp.float32))
    np.testing.assert_allclose(found, want, rtol=1e-2, atol=1e-2)


def test_the_solve_is_ridge_regression_and_its_slope_a_finite_difference():
    random = np.random.default_rng(1)
    a, y = random.normal(size=(50, 4)), random.normal(size=(50, 2))
    with jax.enable_x64(True):
        want = np.linalg.solve(a.T @ a + varpro.RIDGE * 50 * np.eye(4), a.T @ y)
        np.testing.assert_allclose(varpro.solved(jnp.asarray(a), jnp.asarray(y)), want, rtol=1e-9)
        way = random.normal(size=a.shape)
        f = lambda t: jnp.sum(varpro.solved(a + t * way, jnp.asarray(y)) ** 3)
        slope = (f(1e-5) - f(-1e-5)) / 2e-5
        np.testing.assert_allclose(jax.grad(f)(0.0), slope, rtol=1e-6)


@pytest.mark.parametrize("through", [False, True])
@pytest.mark.parametrize("rate", [0.05, 1e4])
def test_training_finds_the_plane_or_keeps_the_start(through, rate):
    random = np.random.default_rng(2)
    h = random.normal(size=(1200, 6)).astype(np.float32)
    z = h[:, :2] + 0.3 * h[:, 2:4]
    y = np.stack([z[:, 0] * z[:, 1], -z[:, 0]], axis=1).astype(np.float32)
    mean, covariance = moments(jnp.asarray(h))
    start = np.eye(6, 2) + 0.4 * random.normal(size=(6, 2))
    k = 0.1 * random.normal(size=(6, 2))
    frame, state = varpro.begin(
        mean, covariance, np.arange(6), np.arange(6), 2, start, mean @ start, k
    )
    data = tuple(map(jnp.asarray, (h, y, y)))

    def look(now):
        if through:
            psi = varpro.observe(frame, now, data[0])
            now = now._replace(operator=(varpro.solved(psi, data[1]),))
        return -float(
            varpro.divergence(varpro.predict(frame, now, data[0]), data[2], "classification")
        )

    best, score = varpro.train(
        frame, state, data, tail=None, shape=((2,), jnp.float32), task="classification",
        steps=120, rate=rate,
        through=through, look=look, key=jax.random.key(0),
    )  # fmt: skip
    assert score == look(best)
    assert score >= look(state)
    if rate < 1:
        assert score > look(state) / 2


@pytest.fixture(scope="module")
def made(network, calibration):
    steps = []
    out = compress.koopman_trained(
        network, calibration, "8x", key=jax.random.key(0), steps=20, together=200,
        progress=lambda step, metrics: steps.append((step, metrics["divergence"])),
    )  # fmt: skip
    return out, steps


@pytest.mark.slow
def test_it_is_better_than_the_closed_form_without_labels(made, digits):
    (model, report), steps = made
    scores = dict(part.split() for part in report.why.split(": ")[1].split(", "))
    assert list(scores) == ["start", "solve", "together"]
    assert report.score == pytest.approx(max(map(float, scores.values())), abs=1e-4)
    assert float(scores["together"]) > float(scores["start"])
    assert models.accuracy(model, digits.x_test, digits.y_test) > 0.88
    assert export.stored_bytes(model) <= report.budget_bytes
    counts = [step for step, _ in steps]
    assert counts == sorted(counts)
    assert counts[-1] == 220
    assert steps[-1][1] < steps[0][1]


def test_without_time_it_is_the_closed_form(network, calibration):
    made = compress.koopman_trained(network, calibration, "10x", key=jax.random.key(0), seconds=0)
    assert made.report.settings["trained"] == "start"
    assert "passes of the search left out" in str(made.report)
    assert made.report.score > 0.8


@pytest.mark.slow
def test_without_steps_it_is_the_closed_form(network, calibration):
    key = jax.random.key(0)
    plain = compress.koopman(network, calibration, "10x", key=key)
    made = compress.koopman_trained(network, calibration, "10x", key=key, steps=0, together=0)
    assert made.report.settings["trained"] == "start"
    np.testing.assert_array_equal(made.model(calibration), plain.model(calibration))


def test_the_contract_comes_first_and_bad_steps_are_refused(network, calibration):
    names = list(inspect.signature(compress.koopman_trained).parameters)
    assert names[:7] == ["model", "calibration", "budget", "at", "labels", "validation", "key"]
    with pytest.raises(ValueError, match="steps and together at least 0"):
        compress.koopman_trained(network, calibration, "9x", key=jax.random.key(0), steps=-1)
