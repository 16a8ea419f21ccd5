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
from tests import nets

KEY = jax.random.key(1)


@pytest.fixture(scope="module")
def made_by(network, calibration):
    """Compressions of the network by name and budget, each made once."""
    return functools.cache(
        lambda name, budget: compress.METHODS[name](network, calibration, budget, key=KEY)
    )


def test_deep_compression_beats_pruning_and_codebooks_alone(made_by, digits):
    names = ("deep_compression", "kmeans", "obs", "magnitude")
    made = {name: made_by(name, "12x") for name in names}
    found = {
        name: models.accuracy(one.model, digits.x_test, digits.y_test) for name, one in made.items()
    }
    assert found["deep_compression"] > 0.9
    assert found["deep_compression"] > found["kmeans"] > found["obs"] > found["magnitude"]
    kernels = [layer.kernel[...] for layer in made["deep_compression"].model.layers]
    assert max(np.mean(np.asarray(kernel) == 0) for kernel in kernels) > 0.5
    report = made["deep_compression"].report
    assert 0.8 * report.budget_bytes < report.stored_bytes  # where a budget binds, it is filled


def test_tensor_train_keeps_small_layers_whole(made_by):
    made = made_by("tensor_train", "1.1x")
    assert "dense" in made.report.settings["trains"]


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


class Biasless(nnx.Module):
    """A network that koopjax does not know, one layer of it without a bias."""

    def __init__(self, rngs):
        self.first = nnx.Linear(16, 12, use_bias=False, rngs=rngs)
        self.second = nnx.Linear(12, 4, rngs=rngs)

    def __call__(self, x):
        return self.second(nnx.relu(self.first(x)))


NAMES = ["svd", "tensor_train", "kmeans", "int8", "int4", "deep_compression"]


@pytest.mark.parametrize("name", NAMES)
def test_a_layer_without_a_bias_and_a_model_without_a_name(name, tmp_path):
    model, x = nets.filled(lambda: Biasless(nnx.Rngs(0))), nets.normal(160, 16)
    made = compress.METHODS[name](model, x, "1.5x", task="classification", key=KEY)
    export.save(made.model, tmp_path / "m")
    again = export.load(tmp_path / "m", model=made.model)
    np.testing.assert_array_equal(again(x), made.model(x))
    if name not in ("svd", "tensor_train"):
        assert made.model.first.bias is None
        layers = AffineLayers(pose("x", model, x, "2x", None, None, KEY), None)
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
