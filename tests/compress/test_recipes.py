"""Compression with training by each method's recipe, and the students that it begins with."""

import jax
import numpy as np
import pytest

from koopjax import compress, export, models
from tests.goldens import golden_compress, store

KEY = jax.random.key(0)


@pytest.fixture(params=golden_compress.FINETUNED)
def tuned(request):
    """A network of the goldens, trained to a third of the original's bytes."""
    return request.param, golden_compress.tuned(request.param)


def test_a_result_stays_what_it_was(tuned):
    name, made = tuned
    case = f"finetuned {name}"
    golden = store.read("golden_compress")[case]
    store.check("golden_compress", case, golden_compress.account(made), golden)


def test_it_fills_its_budget_and_comes_back_from_its_file(tuned, calibration, tmp_path):
    name, (model, report) = tuned
    stored = export.save(model, tmp_path / "model.koopjax")
    # A small network has widths of whole units; what makes its size at the start, loses no more.
    fixed = {"small network": 0.75, "factorising": 0.75, "clustering": 0.75}
    assert fixed.get(name, 0.8) * report.budget_bytes <= stored <= report.budget_bytes
    assert stored == report.stored_bytes
    assert report.score == pytest.approx(
        models.accuracy(model, *golden_compress.digits()["validation"]), abs=1e-6
    )
    learned = "distillation" if name == "label-free" else "distillation with labels"
    assert report.settings["finetuned"] == f"2 epochs, {learned}"
    x = calibration[:50]
    np.testing.assert_array_equal(export.load(tmp_path / "model.koopjax")(x), model(x))


def test_few_bits_fill_the_file_of_a_method_that_has_its_size_from_the_start(network, calibration):
    report = compress.finetuned(
        "small_network", network, calibration, "3x", key=KEY, value_bits=4.0,
        variant={"bottleneck": 2.0, "learning_rate": 1e-2},
        training=compress.Training(epochs=2, batch_size=50),
    ).report  # fmt: skip
    assert 0.8 * report.budget_bytes < report.stored_bytes <= report.budget_bytes


def test_students_refuse_what_does_not_fit(network, calibration):
    make = lambda **k: compress.koopman_student(network, calibration, key=KEY, **k)
    with pytest.raises(ValueError, match="hidden states"):
        make(coordinates=4, hidden=(3, 3, 3))
    with pytest.raises(ValueError, match="a number for each axis"):
        make(coordinates=4, factors=(3,))
    with pytest.raises(ValueError, match="a flag for each width"):
        compress.small_student(network, calibration, widths=(3, 4), linear=(True,), key=KEY)


def test_too_small_a_budget_names_the_method_and_a_true_ratio(network, calibration):
    with pytest.raises(compress.BudgetTooSmall, match=r"for fisher.*got 20 bytes") as error:
        compress.finetuned("fisher", network, calibration, "20B", key=KEY)
    ratio = export.stored_bytes(network) / error.value.smallest
    assert f"({ratio:.4g}x)" in str(error.value)
