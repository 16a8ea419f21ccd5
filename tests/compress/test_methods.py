"""The contract that every method in the registry keeps, on genuine handwritten digits."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from koopjax import compress, export, models
from tests.goldens import golden_compress, store

# Seconds to search even small networks: some of their tests are slow ones.
LONG = {"koopman_trained", "deep_compression", "tensor_train", "obs", "wanda"}
FEWER = [
    pytest.param(name, marks=pytest.mark.slow) if name in LONG else name
    for name in compress.METHODS
]


@pytest.fixture(params=compress.METHODS)
def compressed(request):
    """Every method's result at one budget, the one of its golden."""
    return request.param, golden_compress.one_shot(request.param)


def test_a_result_stays_what_it_was(compressed):
    name, made = compressed
    case = f"{name} {golden_compress.ONE_SHOT[name]}"
    golden = store.read("golden_compress")[case]
    store.check("golden_compress", case, golden_compress.account(made), golden)


def test_signature_and_docstring(compressed):
    name, _ = compressed
    method = compress.METHODS[name]
    parameters = inspect.signature(method).parameters
    assert list(parameters)[:7] == [
        "model", "calibration", "budget", "at", "labels", "validation", "key"
    ]  # fmt: skip
    assert parameters["key"].default is inspect.Parameter.empty
    assert all(parameters[n].default is None for n in ("at", "labels", "validation"))
    rest = list(parameters.values())[7:]
    assert all(p.default is not p.empty and p.kind == p.KEYWORD_ONLY for p in rest)
    for word in ("Args:", "Returns:", "Numerics:", "Raises:"):
        assert word in inspect.getdoc(method)


def test_the_file_fits_and_the_report_says_what_it_is(compressed, network, tmp_path):
    name, (model, report) = compressed
    assert isinstance(model, nnx.Module)
    written = export.save(model, tmp_path / "small")
    assert written == (tmp_path / "small").stat().st_size == report.stored_bytes
    budget = golden_compress.ONE_SHOT[name]
    least = int(budget[:-1])
    assert written <= report.budget_bytes == export.stored_bytes(network) // least
    # A number of bits comes to what it comes to: at most eight for each value are of use.
    bounded = name in ("int8", "int4", "deep_compression")
    assert bounded or written > 0.8 * report.budget_bytes, "room is left unused"
    assert (report.method, report.budget) == (name, budget)
    assert report.ratio == report.original_bytes / written >= least
    bits = 1 if name in compress.ANY_BITS else 32
    assert 0 < bits * report.parameters <= 8 * written
    assert report.measure == "accuracy"
    assert report.candidates > 1
    assert report.why
    assert report.settings
    assert str(report).startswith(name)


def test_deep_compression_fills_a_budget_that_binds(network, calibration):
    report = compress.deep_compression(network, calibration, "6x", key=jax.random.key(1)).report
    assert 0.8 * report.budget_bytes < report.stored_bytes <= report.budget_bytes


def test_it_loads_back_to_the_same_outputs(compressed, calibration, tmp_path):
    _, (model, _) = compressed
    export.save(model, tmp_path / "small")
    again = export.load(tmp_path / "small")
    x = calibration[:50]
    np.testing.assert_array_equal(np.asarray(again(x)), np.asarray(model(x)))


def test_it_is_a_flax_model(compressed):
    _, (model, _) = compressed
    x, y = (jnp.asarray(held[:64]) for held in golden_compress.digits()["validation"])
    np.testing.assert_allclose(nnx.jit(lambda m, a: m(a))(model, x), model(x), atol=2e-4)
    np.testing.assert_allclose(model(x[:1])[0], model(x)[0], atol=2e-4)
    copy = nnx.clone(model)

    def loss(m):
        return optax.softmax_cross_entropy_with_integer_labels(m(x), y).mean()

    optimizer = nnx.Optimizer(copy, optax.sgd(1e-4), wrt=nnx.Param)
    before, slopes = nnx.value_and_grad(loss)(copy)
    assert all(np.all(np.isfinite(a)) for a in jax.tree.leaves(slopes))
    optimizer.update(copy, slopes)
    assert loss(copy) < before


def test_the_score_is_the_accuracy_on_the_validation_samples(compressed):
    _, (model, report) = compressed
    accuracy = models.accuracy(model, *golden_compress.digits()["validation"])
    assert report.score == pytest.approx(accuracy, abs=1e-6)


@pytest.mark.parametrize("compressed", FEWER, indirect=True)
def test_the_same_key_gives_the_same_file(compressed):
    name, (model, _) = compressed
    again, _ = golden_compress.one_shot.__wrapped__(name)
    for a, b in zip(jax.tree.leaves(nnx.state(model)), jax.tree.leaves(nnx.state(again)),
                    strict=True):  # fmt: skip
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize("name", compress.METHODS)
def test_a_budget_too_small_says_the_smallest(name, network, calibration):
    method = compress.METHODS[name]
    with pytest.raises(ValueError, match="expected a budget of at least") as caught:
        method(network, calibration, 20, key=jax.random.key(0))
    assert "\n" not in str(caught.value)
    smallest = int(str(caught.value).split("at least ")[1].split()[0])
    made = method(network, calibration, smallest, key=jax.random.key(0))
    assert made.report.stored_bytes <= smallest
    with pytest.raises(compress.BudgetTooSmall):
        method(network, calibration, smallest - 60, key=jax.random.key(0))


BAD = [
    (lambda x: x[:, :50], "samples that the model takes"),
    (lambda x: x[0], "calibration of shape"),
    (lambda x: x[:0], "at least 2 samples"),
    (lambda x: np.where(np.arange(64)[None] == 3, np.nan, x), "finite numbers in .*calibration"),
    (lambda x: (x, x), "as one array"),
]


@pytest.mark.parametrize("name", compress.METHODS)
@pytest.mark.parametrize(("spoil", "says"), BAD)
def test_bad_calibration_gets_one_line(name, spoil, says, network, calibration):
    with pytest.raises(ValueError, match=says) as caught:
        compress.METHODS[name](network, spoil(calibration), "6x", key=jax.random.key(0))
    assert "\n" not in str(caught.value)


def test_bad_labels_and_validation(network, calibration):
    method, key = compress.magnitude, jax.random.key(0)
    with pytest.raises(ValueError, match=r"expected 400 labels in magnitude: labels"):
        method(network, calibration, "6x", labels=np.zeros(3, int), key=key)
    with pytest.raises(ValueError, match="validation samples of shape"):
        method(network, calibration, "6x", validation=calibration[:, :5], key=key)
    with pytest.raises(ValueError, match="the name or index of a cut"):
        method(network, calibration, "6x", at="layers.9", key=key)
    broken = nnx.clone(network)
    broken.layers[0].kernel.set_value(jnp.full((64, 24), jnp.nan))
    with pytest.raises(ValueError, match="original model's outputs"):
        method(broken, calibration, "6x", key=key)


def test_labels_and_validation_decide_the_measure(network, calibration):
    labels = golden_compress.digits()["labels"]
    for given, measure in (({}, "agreement"), ({"labels": labels}, "accuracy")):
        made = compress.magnitude(
            network, calibration, "3x", key=jax.random.key(0), task="classification", **given
        )
        assert made.report.measure == measure
