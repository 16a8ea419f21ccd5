"""One notion of task: how an output is read, and what labels say about it."""

import functools

import jax
import numpy as np
import pytest

from koopjax import models

RNG = np.random.default_rng(5)
OUT = RNG.normal(size=(40, 4)).astype(np.float32)
ONE = RNG.normal(size=(40, 1)).astype(np.float32)
CLASSES = RNG.integers(0, 4, 40)
SIGNS = (ONE[:, 0] > 0).astype(np.int64)


r_squared = jax.jit(models.r_squared)
divergence = jax.jit(models.divergence, static_argnames="task")


@pytest.mark.parametrize(
    ("output", "labels", "task"),
    [
        (OUT, None, "regression"), (ONE, None, "regression"), (OUT, CLASSES, "classification"),
        (OUT, list(CLASSES), "classification"), (OUT, OUT + 1, "regression"),
        (ONE, SIGNS, "classification"), (ONE, SIGNS == 1, "classification"),
        (ONE[:, 0], SIGNS, "classification"), (ONE, 2 * ONE[:, 0], "regression"),
        (ONE, 2 * ONE, "regression"),
        (OUT.reshape(8, 5, 4), CLASSES.reshape(8, 5), "classification"),
    ],
)  # fmt: skip
def test_labels_say_the_task_where_they_can(output, labels, task):
    found, _ = models.read_task(output, labels)
    assert found == task


@pytest.mark.parametrize(
    ("output", "labels", "task", "says"),
    [
        (OUT, CLASSES + 1, None, "from 0 to 3, since the model has 4 outputs"),
        (OUT, CLASSES - 1, None, "from -1 to 2"),
        (OUT, np.eye(4)[CLASSES], None, r"task=.*one-hot.*y.argmax\(-1\)"),
        (OUT, np.eye(4, dtype=int)[CLASSES], None, r"task=.*y.argmax\(-1\)"),
        (OUT, np.eye(4)[CLASSES], "classification", r"integer labels.*y.argmax\(-1\)"),
        (OUT, CLASSES.astype(float), None, r"task=.*y.astype\(int\)"),
        (OUT, CLASSES.astype(float), "classification", r"y.astype\(int\)"),
        (OUT, CLASSES[:, None], None, r"y\[:, 0\]"),
        (OUT, CLASSES[:7], None, "40 labels"),
        (OUT, OUT[:, :3], None, "of the output's shape"),
        (OUT, np.where(OUT > 2, np.nan, OUT) * np.nan, None, "finite"),
        (OUT, CLASSES, "regression", "of the output's shape"),
        (OUT, CLASSES.astype(str), None, "numbers as labels"),
        (OUT, CLASSES, "ranking", "a task among"),
        (ONE, 2 * SIGNS - 1, None, "task=.*from -1 to 1 for one output"),
        (ONE, SIGNS.astype(float), None, "task="),
        (1 / (1 + np.exp(-ONE)), SIGNS, None, "probabilities"),
        (CLASSES, CLASSES, None, "real numbers"),
    ],
)
def test_what_leaves_the_task_open_or_does_not_fit_is_one_line(output, labels, task, says):
    with pytest.raises(ValueError, match=says) as caught:
        models.read_task(output, labels, task)
    assert "expected" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_logit_is_read_by_its_sign():
    linear = lambda p, x: x @ p
    x, p = RNG.normal(size=(300, 3)).astype(np.float32), np.float32([[1.0], [-2.0], [0.5]])
    y = (x @ p[:, 0] > 0.3).astype(np.int32)
    right = np.mean((x @ p[:, 0] > 0) == y)
    assert models.accuracy((linear, p), x, y, batch_size=64) == pytest.approx(right)
    assert models.score((linear, p), x, y) == pytest.approx(right)
    assert models.score((linear, p), x, x @ p) == pytest.approx(1)


def test_binary_divergence_is_that_of_two_classes():
    a, b = (RNG.normal(size=(50, 1)).astype(np.float32) for _ in range(2))
    p, q = (1 / (1 + np.exp(-z.astype(float))) for z in (a, b))
    wanted = np.mean(p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)))
    assert divergence(a, b, task="classification") == pytest.approx(wanted, rel=1e-4)
    y = RNG.integers(0, 2, 50)
    loss = -np.mean(np.log(np.where(y == 1, p[:, 0], 1 - p[:, 0])))
    assert jax.jit(models.cross_entropy)(a, y) == pytest.approx(loss, rel=1e-5)


def test_no_answer_is_right_where_it_is_nan():
    output = np.array([[0.0, np.nan], [1.0, 2.0]], np.float32)
    assert models.answers(output).tolist() == [-1, 1]


def test_r_squared_of_a_truth_that_does_not_vary():
    same = np.ones((5, 2), np.float32)
    assert (r_squared(same, same), r_squared(same, same + 1)) == (1, 0)


def test_numbers_are_no_probabilities_to_train_on():
    net = lambda p, x: x @ p
    x = RNG.normal(size=(30, 2)).astype(np.float32)
    with pytest.raises(ValueError, match=r"loss=models\.squared_error"):
        models.train((net, np.ones((2, 3), np.float32)), x, 5 * x[:, [0, 0, 1]], key=None, epochs=1)


@pytest.mark.parametrize("unit", [1e-30, 1e-10, 1.0, 1e22, 1e34])
def test_r_squared_has_no_units(unit):
    guess = OUT + 0.3 * OUT[::-1]
    wanted = 1 - ((OUT - guess) ** 2).sum() / ((OUT - OUT.mean(0)) ** 2).sum()
    truth, guess = np.float32(unit) * OUT, np.float32(unit) * guess
    assert r_squared(truth, guess) == pytest.approx(wanted, rel=1e-4)


def test_a_last_axis_of_one_entry_is_no_difference():
    flat, other = ONE[:, 0], ONE[::-1]
    for score in (
        r_squared,
        jax.jit(models.squared_error),
        functools.partial(divergence, task="regression"),
        functools.partial(divergence, task="classification"),
    ):
        assert score(ONE, other) == score(flat, other) == score(ONE, other[:, 0])
        for shape in ((20, 2), (1, 40), (40, 1, 1, 1)):
            with pytest.raises(ValueError, match=r"expected .* shape \(40, 1\), got shape"):
                score(ONE, ONE.reshape(shape))


@pytest.mark.parametrize(
    "call",
    [
        lambda: models.read_task([1, 2]),
        lambda: models.read_task(None),
        lambda: models.read_task(OUT, None, np.ones(2)),
        lambda: models.answers(None),
        lambda: models.answers(1.0),
        lambda: models.r_squared(OUT, "a"),
        lambda: models.r_squared(1.0, 1.0),
        lambda: models.divergence(None, OUT, "regression"),
        lambda: models.divergence(OUT, OUT, np.ones(2)),
        lambda: models.compare([["a"]], OUT, None, "regression", None),
    ],
)
def test_what_is_no_array_or_no_task_is_one_line(call):
    with pytest.raises(ValueError, match=r"^expected .*, got ") as caught:
        call()
    assert "\n" not in str(caught.value)
