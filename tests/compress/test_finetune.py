"""Fine-tuning: what the teacher knows comes back, zeros stay zero, the account stays true."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from koopjax import compress, export, models
from tests import nets
from tests.goldens import golden_compress


@pytest.fixture(scope="module")
def pruned(network, calibration):
    return compress.magnitude(
        network, calibration, "3x", key=jax.random.key(0), task="classification"
    )


@pytest.fixture(scope="module")
def labels():
    """Of the calibration samples."""
    return golden_compress.digits()["labels"]


def agreement(model, teacher, x):
    classes = lambda m: np.argmax(models.predict(m, x), -1)
    return np.mean(classes(model) == classes(teacher))


def test_distillation_without_labels_brings_the_teacher_back(pruned, network, calibration):
    before = agreement(pruned.model, network, calibration)
    tuned = compress.finetune(
        pruned, calibration, teacher=network, key=jax.random.key(1), epochs=30
    )
    assert agreement(tuned.model, network, calibration) > max(before, 0.93)
    # The same zeros, so the same budget; the report is that of the new file.
    assert tuned.report.stored_bytes == export.stored_bytes(tuned.model)
    assert tuned.report.stored_bytes <= tuned.report.budget_bytes == pruned.report.budget_bytes
    assert tuned.report.parameters <= pruned.report.parameters
    assert "distillation" in tuned.report.settings["finetuned"]
    zeros = lambda m: [np.asarray(a) == 0 for a in jax.tree.leaves(nnx.state(m, nnx.Param))]
    for old, new in zip(zeros(pruned.model), zeros(tuned.model), strict=True):
        assert old.ndim < 2 or np.all(new[old])


def test_labels_help_and_the_teachers_outputs_may_be_given(pruned, network, calibration, labels):
    x, y = calibration, labels
    outputs = models.predict(network, x)
    settings = {"key": jax.random.key(1), "epochs": 4}
    tuned = compress.finetune(pruned, x, teacher=outputs, labels=y, **settings)
    same = compress.finetune(pruned, x, teacher=network, labels=y, **settings)
    for a, b in zip(*(jax.tree.leaves(nnx.state(m.model)) for m in (tuned, same)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert models.accuracy(tuned.model, x, y) > models.accuracy(pruned.model, x, y)
    assert "labels" in tuned.report.settings["finetuned"]


def test_a_bare_model_of_any_form_comes_back_in_its_form(network, calibration):
    student = (
        lambda p, x: x @ p["w"] + p["b"][None, :],
        {"w": jnp.zeros((64, 10)), "b": jnp.zeros(10)},
    )
    function, params = compress.finetune(
        student, calibration, teacher=network, key=jax.random.key(0), epochs=2
    )
    assert function is student[0]
    # All zeros of a matrix stay: this student could learn its bias alone.
    assert not np.any(np.asarray(params["w"]))
    assert np.any(np.asarray(params["b"]))


def test_gradual_pruning_reaches_its_density_and_keeps_most_of_the_accuracy(
    network, calibration, labels
):
    x, y = calibration, labels
    tuned = compress.finetune(
        network, x, teacher=network, labels=y, key=jax.random.key(0), epochs=12, density=0.15,
        batch_size=32,
    )  # fmt: skip
    arrays = jax.tree.leaves(nnx.state(tuned, nnx.Param))
    live = sum(np.count_nonzero(a) for a in arrays) / sum(a.size for a in arrays)
    assert 0.13 < live <= 0.151
    one_shot = compress.magnitude(network, x, "5x", key=jax.random.key(0)).model
    assert models.accuracy(tuned, x, y) > models.accuracy(one_shot, x, y)


def test_a_compressed_model_may_lose_more_on_the_way(pruned, network, calibration):
    small = compress.Compressed(pruned.model, dataclasses.replace(pruned.report, budget_bytes=1500))
    tuned = compress.finetune(
        small,
        calibration,
        teacher=network,
        key=jax.random.key(1),
        epochs=4,
        budget=small.report.budget_bytes,
    )
    assert 1300 < export.stored_bytes(tuned.model) <= 1500
    assert tuned.report.stored_bytes == export.stored_bytes(tuned.model)


def test_one_output_is_a_regression():
    x = nets.normal(400, 5)
    teacher = np.sin(x[:, :1])
    student = (lambda p, x: jnp.tanh(x @ p["w"]) @ p["v"],
               {"w": jnp.asarray(0.1 * nets.normal(5, 8)),
                "v": jnp.asarray(0.1 * nets.normal(8, 1, seed=1))})  # fmt: skip
    tuned = compress.finetune(
        student, x, teacher=teacher, key=jax.random.key(2), epochs=40, learning_rate=1e-2
    )
    error = lambda m: np.mean((np.asarray(models.predict(m, x)) - teacher) ** 2)
    assert error(tuned) < 0.2 * error(student)


def test_what_koopman_returned_still_fits_when_it_is_trained(network, calibration, labels):
    x, y = calibration, labels
    made = compress.koopman(network, x, 1500, key=jax.random.key(0), seconds=0)
    tuned = compress.finetune(made, x, teacher=network, labels=y, key=jax.random.key(0), epochs=2)
    assert tuned.report.stored_bytes <= made.report.budget_bytes
    # Of the float32 numbers nothing is left that takes more of the file once it has moved.
    assert abs(tuned.report.stored_bytes - made.report.stored_bytes) <= 4


def test_the_report_says_what_was_measured(pruned, network, calibration, digits):
    x, y = digits.x_test, digits.y_test
    settings = {"key": jax.random.key(1), "epochs": 2}
    assert pruned.report.measure == "agreement"
    labelled = compress.finetune(
        pruned, calibration, teacher=network, x_val=x, y_val=y, **settings
    ).report  # fmt: skip
    tuned = compress.finetune(pruned, calibration, teacher=network, x_val=x, **settings)
    alone = tuned.report
    assert (labelled.measure, alone.measure) == ("accuracy", "agreement")
    np.testing.assert_allclose(labelled.score, models.accuracy(tuned.model, x, y), atol=1e-6)
    np.testing.assert_allclose(alone.score, agreement(tuned.model, network, x), atol=1e-6)
    logs = [jax.nn.log_softmax(models.predict(m, x)) for m in (network, tuned.model)]
    divergence = np.mean(np.sum(np.exp(logs[0]) * (logs[0] - logs[1]), axis=-1))
    np.testing.assert_allclose([labelled.divergence, alone.divergence], [divergence] * 2, rtol=1e-4)
    given = compress.finetune(
        pruned, calibration, teacher=models.predict(network, calibration), x_val=x, y_val=y,
        **settings,
    ).report  # fmt: skip
    assert given.divergence is None
    assert (given.measure, given.score) == ("accuracy", pytest.approx(labelled.score))


def test_no_score_outlives_the_training(pruned, network, calibration):
    settings = {"teacher": network, "key": jax.random.key(1), "epochs": 1}
    ruined = compress.finetune(pruned, calibration, learning_rate=30.0, clip=1e9, **settings)
    assert np.isnan(ruined.report.score)
    assert ruined.report.divergence is None
    assert "nothing was measured after fine-tuning" in str(ruined.report)
    again = compress.finetune(ruined, calibration, x_val=calibration, **settings).report
    assert again.score == pytest.approx(
        agreement(compress.finetune(ruined, calibration, **settings).model, network, calibration)
    )
    assert again.notes == pruned.report.notes


def test_a_regression_is_scored_by_r2_whatever_the_labels():
    x = nets.normal(400, 5)
    model = (lambda p, a: (a @ p)[:, None] ** 2 + a[:, :1], jnp.array([1.0, -2.0, 0.5, 0.0, 1.5]))
    made = compress.koopman(model, x, 600, key=jax.random.key(1), seconds=0)
    settings = {"teacher": model, "key": jax.random.key(2), "epochs": 1}
    reports = [
        compress.finetune(made, x, x_val=x, y_val=y, **settings).report
        for y in (None, np.zeros(len(x), np.int32))
    ]
    out = models.predict(compress.finetune(made, x, **settings).model, x)
    wanted = np.asarray(models.predict(model, x))
    r2 = 1 - np.sum((out - wanted) ** 2) / np.sum((wanted - wanted.mean()) ** 2)
    for report in reports:
        assert (report.measure, report.divergence) == ("r2", None)
        assert report.score == pytest.approx(float(r2), abs=1e-5)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"y_val": np.zeros(9, np.int32)}, "y_val with x_val, got y_val alone"),
        ({"x_val": np.zeros((9, 64), np.float32), "y_val": np.zeros(8, np.int32)}, "9 labels"),
        ({"x_val": np.zeros((9, 64), np.float32), "y_val": np.zeros((9, 2), np.int32)}, r"\(9,\)"),
        ({"x_val": np.zeros((9, 63), np.float32)}, r"validation samples of shape \(64,\)"),
        ({"x_val": np.zeros((9, 64), np.float32), "outputs": True}, "model as the teacher"),
    ],
)
def test_validation_that_does_not_fit_is_told_before_the_training(
    pruned, network, calibration, wrong, words
):
    teacher = network
    if "outputs" in wrong:
        wrong = {"x_val": wrong["x_val"]}
        teacher = models.predict(network, calibration)

    def trained(*_):
        raise AssertionError("trained")

    with pytest.raises(ValueError, match=words) as caught:
        compress.finetune(
            pruned, calibration, teacher=teacher, key=jax.random.key(0), epochs=1,
            progress=trained, **wrong,
        )  # fmt: skip
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"temperature": 0.0}, "temperature above 0"),
        ({"label_weight": 2.0}, "label_weight from 0 to 1"),
        ({"density": 0.0}, "density above 0"),
        ({"learning_rate": -1.0}, "learning_rate above 0"),
        ({"epochs": 0}, "epochs a positive integer"),
        ({"budget": "30x"}, "a budget as a size"),
        ({"budget": True}, "a budget: a ratio"),
        ({"budget": 4000, "density": 0.5}, "a budget or a density"),
        ({"value_bits": 4.0}, "value_bits from 1 to 32 with a budget"),
        ({"saliency": "fisher"}, "saliency with a budget or a density"),
        ({"density": 0.5, "saliency": "luck"}, "saliency among fisher, magnitude, lamp"),
        ({"labels": np.zeros(3, np.int32)}, "labels in"),
        ({"labels": np.full(400, 12)}, "labels from 0 to 9"),
        ({"teacher": np.zeros((3, 10))}, "teacher outputs of shape"),
        ({"teacher": np.zeros((400, 9))}, r"teacher with outputs of the student's shape .*9\)"),
        ({"density": "half"}, "density as one finite number"),
        ({"density": np.ones(2)}, "density as one finite number"),
        ({"budget": 4000, "value_bits": "4"}, "value_bits as one finite number"),
        ({"teacher": np.full((400, 10), np.nan)}, "finite numbers"),
    ],
)
def test_bad_settings_are_one_clear_error(network, calibration, wrong, words):
    settings = {"teacher": network, "key": jax.random.key(0), "epochs": 1, **wrong}
    with pytest.raises(ValueError, match=words):
        compress.finetune(network, calibration, **settings)
