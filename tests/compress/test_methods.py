"""The contract that every method in the registry keeps, on genuine handwritten digits."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from koopjax import compress, export, models
from tests import nets
from tests.goldens import golden_compress, store


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


def test_it_loads_back_to_the_same_outputs(compressed, calibration, tmp_path):
    _, (model, _) = compressed
    export.save(model, tmp_path / "small")
    again = export.load(tmp_path / "small")
    x = calibration[:50]
    np.testing.assert_array_equal(np.asarray(again(x)), np.asarray(model(x)))


@nnx.jit
def descend(model, x, y):
    """A step of gradient descent: outputs and loss before it, and the slopes."""

    def loss(m):
        out = m(x)
        return optax.softmax_cross_entropy_with_integer_labels(out, y).mean(), out

    (before, out), slopes = nnx.value_and_grad(loss, has_aux=True)(model)
    nnx.Optimizer(model, optax.sgd(1e-4), wrt=nnx.Param).update(model, slopes)
    return before, out, slopes


def test_it_is_a_flax_model(compressed):
    _, (model, _) = compressed
    x, y = (held[:64] for held in golden_compress.digits()["validation"])
    eager, copy = model(x), nnx.clone(model)
    np.testing.assert_allclose(model(x[:1])[0], eager[0], atol=2e-4)
    before, out, slopes = descend(copy, x, y)
    np.testing.assert_allclose(out, eager, atol=2e-4)
    assert all(np.all(np.isfinite(a)) for a in jax.tree.leaves(slopes))
    assert descend(copy, x, y)[0] < before


def test_the_score_is_the_accuracy_on_the_validation_samples(compressed):
    _, (model, report) = compressed
    accuracy = models.accuracy(model, *golden_compress.digits()["validation"])
    assert report.score == pytest.approx(accuracy, abs=1e-6)


@pytest.fixture
def little(name, network, calibration):
    """A network and its inputs: for methods that compile nothing a smaller one, to search less."""
    if name.startswith("koopman"):
        return network, calibration
    model = nets.filled(lambda: models.MLP((8, 12, 4), rngs=nnx.Rngs(0)))
    return model, nets.normal(120, 8)


@pytest.mark.parametrize("name", compress.METHODS)
def test_a_budget_too_small_says_the_smallest_and_a_key_one_file(name, little, tmp_path):
    make = lambda budget: compress.METHODS[name](*little, budget, key=jax.random.key(0))
    with pytest.raises(ValueError, match="expected a budget of at least") as caught:
        make(20)
    assert "\n" not in str(caught.value)
    smallest = int(str(caught.value).split("at least ")[1].split()[0])
    files = [tmp_path / "first", tmp_path / "second"]
    for file in files:
        made = make(smallest)
        assert export.save(made.model, file) == made.report.stored_bytes <= smallest
    assert files[0].read_bytes() == files[1].read_bytes()
    with pytest.raises(compress.BudgetTooSmall):
        make(smallest - 60)


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
        made = compress.svd(
            network, calibration, "3x", key=jax.random.key(0), task="classification", **given
        )
        assert made.report.measure == measure


def kernels_of(name):
    """The weights of each layer of a golden's network."""
    return [np.asarray(layer.kernel[...]) for layer in golden_compress.one_shot(name).model.layers]


def accuracies(digits, *names):
    """Of the goldens' networks on samples that none of them has seen."""
    made = {name: golden_compress.one_shot(name).model for name in names}
    return [models.accuracy(model, digits.x_test, digits.y_test) for model in made.values()]


def test_svd_keeps_the_leading_singular_triples(network, digits):
    made = golden_compress.one_shot("svd")
    for layer, operator in zip(network.layers, made.model.operators, strict=True):
        w = np.asarray(layer.kernel[...], np.float64)
        if not hasattr(operator, "left"):
            np.testing.assert_array_equal(operator.matrix[...], layer.kernel[...])
            continue
        u, s, vt = np.linalg.svd(w, full_matrices=False)
        r = operator.left.shape[1]
        product = np.asarray(operator.left) @ np.asarray(operator.right)
        np.testing.assert_allclose(product, (u[:, :r] * s[:r]) @ vt[:r], atol=1e-4)
    # what a whitened SVD is for: it is ahead
    plain, whitened = accuracies(digits, "svd", "whitened_svd")
    assert 0.4 < plain < whitened - 0.1


def test_tensor_train_makes_trains_that_still_classify(digits):
    made = golden_compress.one_shot("tensor_train")
    notes = made.report.settings["trains"]
    assert len(notes) == 3
    assert any(note != "dense" for note in notes)
    for note, operator in zip(notes, made.model.operators, strict=True):
        if note != "dense":
            assert list(operator.ranks[1:-1]) == note["ranks"]
    # a null: the same bytes in thin factors of the weights
    thin, trains = accuracies(digits, "svd", "tensor_train")
    assert trains > max(0.7, thin)


def test_kmeans_leaves_few_values_a_layer(network, digits):
    sizes = golden_compress.one_shot("kmeans").report.settings["values"]
    for kernel, size in zip(kernels_of("kmeans"), sizes, strict=True):
        assert len(np.unique(kernel)) <= size + 1  # and the zero of inputs that never vary
    original = models.accuracy(network, digits.x_test, digits.y_test)
    assert accuracies(digits, "kmeans")[0] > original - 0.03


@pytest.mark.parametrize(("name", "most"), [("int8", 127), ("int4", 7)])
def test_rounded_weights_are_small_multiples_of_one_scale(name, most, network, digits, calibration):
    for kernel in kernels_of(name):
        magnitudes = np.unique(np.abs(kernel[kernel != 0]))
        scale = np.min(np.diff(magnitudes, prepend=0))
        steps = magnitudes / scale
        np.testing.assert_allclose(steps, np.rint(steps), atol=0.02)
        assert steps.max() < most + 0.02
    original = models.accuracy(network, digits.x_test, digits.y_test)
    assert accuracies(digits, name)[0] > original - 0.02
    with pytest.raises(compress.BudgetTooSmall, match=f"for {name}, the smallest form"):
        compress.METHODS[name](network, calibration, "12x", key=jax.random.key(0))


@pytest.mark.parametrize("name", ["int4", "deep_compression"])
def test_inputs_that_are_always_zero_get_no_weights(name, calibration):
    dead = np.flatnonzero(~np.any(calibration, axis=0))
    assert dead.size
    assert not np.any(kernels_of(name)[0][dead])
