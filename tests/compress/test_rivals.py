"""Conventional methods on genuine digits: what each promises beyond the shared contract."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from koopjax import compress, export, models
from koopjax.compress._problem import pose
from koopjax.compress.layers._layers import AffineLayers
from koopjax.compress.training._recipes import one_shot

KEY = jax.random.key(1)


@pytest.fixture(scope="module")
def made_by(network, calibration):
    """Compressions of the network by name and budget, each made once."""
    return functools.cache(
        lambda name, budget: compress.METHODS[name](network, calibration, budget, key=KEY)
    )


def accuracy(made, digits):
    return models.accuracy(made.model, digits.x_test, digits.y_test)


def kernels_of(model):
    return [np.asarray(layer.kernel.get_value()) for layer in model.layers]


def test_svd_keeps_the_leading_singular_triples(made_by, network, digits):
    made = made_by("svd", "3x")
    for layer, operator in zip(network.layers, made.model.operators, strict=True):
        w = np.asarray(layer.kernel.get_value(), np.float64)
        if not hasattr(operator, "left"):
            np.testing.assert_array_equal(operator.matrix.get_value(), layer.kernel.get_value())
            continue
        u, s, vt = np.linalg.svd(w, full_matrices=False)
        r = operator.left.get_value().shape[1]
        product = np.asarray(operator.left.get_value() @ operator.right.get_value())
        np.testing.assert_allclose(product, (u[:, :r] * s[:r]) @ vt[:r], atol=1e-4)
    # what a whitened SVD is for: it is ahead
    ahead = made_by("whitened_svd", "3x")
    assert 0.4 < accuracy(made, digits) < accuracy(ahead, digits)


def test_tensor_train_makes_trains_that_still_classify(made_by, digits):
    made = made_by("tensor_train", "4x")
    notes = made.report.settings["trains"]
    assert len(notes) == 3
    assert any(note != "dense" for note in notes)
    for note, operator in zip(notes, made.model.operators, strict=True):
        if note != "dense":
            assert list(operator.ranks[1:-1]) == note["ranks"]
    # a null: the same bytes in thin factors of the weights
    assert accuracy(made, digits) > max(0.7, accuracy(made_by("svd", "4x"), digits))


def test_tensor_train_keeps_small_layers_whole(made_by):
    made = made_by("tensor_train", "1.1x")
    assert "dense" in made.report.settings["trains"]


def test_kmeans_leaves_few_values_a_layer(made_by, network, digits):
    made = made_by("kmeans", "10x")
    sizes = made.report.settings["values"]
    for kernel, size in zip(kernels_of(made.model), sizes, strict=True):
        assert len(np.unique(kernel)) <= size + 1  # and the zero of inputs that never vary
    original = models.accuracy(network, digits.x_test, digits.y_test)
    assert accuracy(made, digits) > original - 0.03
    assert accuracy(made, digits) > accuracy(made_by("obs", "10x"), digits)


@pytest.mark.parametrize(("name", "most"), [("int8", 127), ("int4", 7)])
def test_rounded_weights_are_small_multiples_of_one_scale(name, most, made_by, network, digits):
    made = made_by(name, "2x")
    for kernel in kernels_of(made.model):
        magnitudes = np.unique(np.abs(kernel[kernel != 0]))
        scale = np.min(np.diff(magnitudes, prepend=0))
        steps = magnitudes / scale
        np.testing.assert_allclose(steps, np.rint(steps), atol=0.02)
        assert steps.max() < most + 0.02
    original = models.accuracy(network, digits.x_test, digits.y_test)
    assert accuracy(made, digits) > original - 0.02
    with pytest.raises(compress.BudgetTooSmall, match=f"for {name}, the smallest form"):
        made_by(name, "12x")


def test_deep_compression_beats_pruning_and_codebooks_alone(made_by, digits):
    made = {
        name: made_by(name, "20x") for name in ("deep_compression", "kmeans", "obs", "magnitude")
    }
    found = {name: accuracy(one, digits) for name, one in made.items()}
    assert found["deep_compression"] > 0.8
    assert found["deep_compression"] > max(found["kmeans"], found["obs"], found["magnitude"])
    zeros = [np.mean(kernel == 0) for kernel in kernels_of(made["deep_compression"].model)]
    assert max(zeros) > 0.5


def test_deep_compression_reaches_the_file_without_weights(made_by, network):
    with pytest.raises(compress.BudgetTooSmall) as caught:
        made_by("deep_compression", 20)
    empty = nnx.clone(network)
    for layer in empty.layers:
        layer.kernel.set_value(jnp.zeros_like(layer.kernel.get_value()))
    smallest = int(str(caught.value).split("at least ")[1].split()[0])
    assert abs(smallest - export.stored_bytes(empty)) <= 8


def test_codebooks_that_train_name_a_budget_above_the_one_refused():
    net = models.MLP((6, 12, 12, 3), rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=(200, 6)).astype(np.float32)
    problem = pose("kmeans", net, x, "240B", None, None, KEY, "classification", None)
    with pytest.raises(compress.BudgetTooSmall, match="got 240 bytes") as caught:
        one_shot("kmeans", problem, KEY)
    assert 240 < caught.value.smallest < 300


def test_inputs_that_are_always_zero_get_no_weights(made_by, calibration):
    dead = np.flatnonzero(~np.any(calibration, axis=0))
    assert dead.size
    for name in ("int4", "deep_compression"):
        made = made_by(name, "7x" if name == "int4" else "20x")
        assert not np.any(kernels_of(made.model)[0][dead])


class Biasless(nnx.Module):
    """A network that koopjax does not know, one layer of it without a bias."""

    def __init__(self, rngs):
        self.first = nnx.Linear(64, 20, use_bias=False, rngs=rngs)
        self.second = nnx.Linear(20, 10, rngs=rngs)

    def __call__(self, x):
        return self.second(nnx.relu(self.first(x)))


NAMES = ["svd", "tensor_train", "kmeans", "int8", "int4", "deep_compression"]


@pytest.mark.parametrize("name", NAMES)
def test_a_layer_without_a_bias_and_a_model_without_a_name(name, calibration, tmp_path):
    model = Biasless(nnx.Rngs(0))
    made = compress.METHODS[name](model, calibration[:600], "2x", task="classification", key=KEY)
    x = calibration[:40]
    export.save(made.model, tmp_path / "m")
    again = export.load(tmp_path / "m", model=made.model)
    np.testing.assert_array_equal(again(x), made.model(x))
    if name not in ("svd", "tensor_train"):
        assert made.model.first.bias is None
        layers = AffineLayers(pose("x", model, calibration[:600], "2x", None, None, KEY), None)
        assert not np.any(layers.kernels[0][0])
    agreement = np.mean(np.argmax(made.model(x), 1) == np.argmax(model(x), 1))
    assert agreement > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["cnn", "vit"])
def test_layers_of_images_models(kind, name):
    x = np.random.default_rng(0).normal(size=(120, 8, 8, 1)).astype(np.float32)
    if kind == "cnn":
        model = models.CNN((8, 8, 1), 4, channels=(4, 8), hidden=32, rngs=nnx.Rngs(0))
    else:
        model = models.ViT((8, 8, 1), 4, patch=4, width=16, depth=1, heads=2, rngs=nnx.Rngs(0))
    model.eval()
    made = compress.METHODS[name](model, x, "1.3x", key=KEY)
    assert made.report.stored_bytes <= export.stored_bytes(model) / 1.3
    assert np.all(np.isfinite(made.model(x)))
    assert np.any(made.model(x) != model(x))
