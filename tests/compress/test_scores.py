"""What every method is judged by, and budgets that the original meets or nothing does."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from koopjax import compress, export, models
from koopjax.compress._problem import pose
from tests import nets

KEY = jax.random.key(2)
X = np.random.default_rng(7).normal(size=(240, 5)).astype(np.float32)


def net(outputs):
    """A small network of function and parameters, its outputs far from zero."""
    p = [jnp.asarray(nets.normal(*shape, seed=outputs)) for shape in ((5, 12), (12, outputs))]
    return (lambda p, x: jnp.tanh(x @ p[0]) @ p[1] + 3.0, p)


def score_of(outputs, labels=None, task=None, shift=0.0, score_fn=None):
    """Of a model whose outputs are all shifted."""
    model = net(outputs)
    problem = pose("koopman", model, X, "2x", labels, None, KEY, task, score_fn)
    return problem, problem.score(models.predict(model, problem.x_val) + shift)


@pytest.mark.parametrize("outputs", [1, 3])
def test_without_labels_all_of_the_outputs_counts(outputs):
    problem, score = score_of(outputs, shift=2.0)
    y = np.asarray(problem.teacher, np.float64)
    wanted = 1 - 4 * y.size / ((y - y.mean(0)) ** 2).sum()
    assert (problem.task, problem.measure) == ("regression", "r2")
    assert score.value == pytest.approx(wanted, rel=1e-4)
    assert any("task='classification'" in n for n in problem.account(score)["notes"]) == (
        outputs > 1
    )


def test_a_classifier_does_not_see_a_common_shift():
    labels = np.asarray(models.predict(net(3), X)).argmax(-1)
    for given, task, measure in ((None, "classification", "agreement"), (labels, None, "accuracy")):
        problem, score = score_of(3, given, task, shift=2.0)
        assert (problem.measure, score.value) == (measure, 1.0)
        assert problem.softmax


def test_a_score_of_ones_own_is_the_measure():
    def distance(outputs, labels):
        return -jnp.mean(jnp.abs(outputs - labels))

    problem, score = score_of(3, models.predict(net(3), X), shift=0.5, score_fn=distance)
    assert (problem.measure, score.value) == ("distance", pytest.approx(-0.5, rel=1e-5))
    with pytest.raises(ValueError, match="score_fn with labels"):
        score_of(3, score_fn=distance)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"labels": np.ones(240, int) * 3}, "from 0 to 2"),
        ({"labels": np.eye(3)[np.arange(240) % 3]}, "one-hot"),
        ({"labels": np.zeros(7, int)}, "240 labels"),
        ({"validation": X[:3]}, "at least 8 validation samples"),
        ({"calibration": X[:9]}, "at least 16 calibration samples"),
        ({"task": "ranking"}, "a task among"),
        ({"key": 0}, "one random key"),
        ({"calibration": "data"}, "an array of numbers"),
        ({"score_fn": lambda o, y: float("nan")}, "one finite number .*got NaN"),
        ({"score_fn": lambda o, y: o[:, 0]}, "one finite number .*jnp.mean"),
        ({"score_fn": lambda o, y: None}, "one finite number .*got None"),
        ({"score_fn": lambda o, y: "good"}, "one finite number .*'str'"),
        ({"score_fn": lambda o, y: np.mean(np.asarray(o))}, "jax.numpy in place of numpy"),
    ],
)
def test_what_does_not_fit_is_told(given, says):
    common = {"calibration": X, "budget": "2x", "key": KEY} | given
    if "score_fn" in given:
        common["labels"] = np.arange(240) % 3
    with pytest.raises(ValueError, match=says) as caught:
        compress.magnitude(net(3), **common)
    assert "\n" not in str(caught.value)


def test_labels_go_with_rows_alone():
    model = (lambda p, x: jnp.swapaxes(x @ p, 0, 1), jnp.ones((2, 3)))
    x, y = np.ones((16, 16, 2), np.float32), np.zeros((16, 16), int)
    for given in ({"labels": y}, {"validation": (x, y)}):
        with pytest.raises(ValueError, match="batch on axis 0, got on axis 1"):
            compress.magnitude(model, x, budget="2x", key=KEY, **given)
    with pytest.raises(ValueError, match="batch on axis 0, got on axis 1"):
        compress.finetune(model, x, teacher=model, key=KEY, epochs=1)


def test_units_do_not_decide():
    f, p = net(3)
    model = (lambda p, x: 1e22 * f(p, x), p)
    problem = pose("koopman", model, X, "2x", None, None, KEY)
    score = problem.score(models.predict(model, problem.x_val) * 1.001)
    assert 0.99 < score.value < 1


@pytest.mark.parametrize("name", compress.METHODS)
def test_a_budget_that_the_original_meets_returns_it(name):
    model = nets.filled(lambda: models.MLP((5, 6, 3), rngs=nnx.Rngs(1)))
    size = export.stored_bytes(model)
    made = compress.METHODS[name](model, X, size, key=KEY)
    np.testing.assert_array_equal(models.predict(made.model, X), models.predict(model, X))
    assert made.model is not model
    assert made.report.stored_bytes == size
    assert made.report.settings == {"unchanged": True}
    assert "within the budget" in made.report.why


@pytest.mark.parametrize("name", ["svd", "whitened_svd", "magnitude", "int8"])
def test_every_budget_gives_a_file_that_fits_or_the_smallest(name):
    model = nets.filled(lambda: models.MLP((5, 9, 9, 3), rngs=nnx.Rngs(2)))
    for ratio in (1.01, 1.7, 3.6):
        with contextlib.suppress(compress.BudgetTooSmall):
            report = compress.METHODS[name](model, X, f"{ratio}x", key=KEY).report
            assert report.stored_bytes <= report.budget_bytes


def test_tokens_are_no_numbers():
    p = [jnp.asarray(nets.normal(*shape)) for shape in ((30, 6), (6, 80), (80, 2))]
    model = (lambda p, x: jnp.tanh(p[0][x].sum(1) @ p[1]) @ p[2], p)
    x = np.random.default_rng(0).integers(0, 30, (90, 4))
    with pytest.raises(ValueError, match="at='") as caught:
        compress.koopman(model, x, "1.1x", key=KEY)
    cut = str(caught.value).split("at='")[1].split("'")[0]
    made = compress.koopman(model, x, "1.3x", at=cut, key=KEY, seconds=0)
    assert made.model(x[:3]).shape == (3, 2)


def test_stacked_kernels_are_no_layers_of_a_method_for_matrices():
    class Stack(nnx.Module):
        def __init__(self):
            make = nnx.vmap(lambda key: nnx.Linear(5, 5, rngs=nnx.Rngs(key)))
            self.layers = make(jax.random.split(KEY, 3))

        def __call__(self, x):
            for k in range(3):
                x = jnp.tanh(x @ self.layers.kernel[k])
            return x

    for name in ("svd", "obs", "int4"):
        with pytest.raises(compress.Inapplicable, match="kernels are matrices"):
            compress.METHODS[name](Stack(), X, "1.5x", key=KEY)


def test_a_regression_is_distilled_by_squared_error():
    teacher = net(2)
    student = (teacher[0], [p + 0.3 for p in teacher[1]])
    tuned = compress.finetune(
        student, X, teacher=teacher, key=KEY, epochs=40, batch_size=40, learning_rate=1e-2
    )
    answers = lambda m: np.asarray(models.predict(m, X))
    error = lambda m: np.mean((answers(m) - answers(teacher)) ** 2)
    # A softmax does not see the shift that both outputs share: distilled, it would stay.
    assert error(tuned) < 0.02 * error(student)
