"""The example networks: shapes, configs, and agreement with plain NumPy and with Linen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from koopjax import models
from tests.nets import filled, linen_filled, normal, outputs

KEY = jax.random.key(0)
NETWORKS = {
    "mlp": ({"sizes": (12, 7, 5, 3)}, (12,)),
    "residual_mlp": ({"d_in": 12, "width": 8, "depth": 2, "classes": 3}, (12,)),
    "cnn": ({"shape": (8, 8, 2), "classes": 3, "channels": (4, 6), "hidden": 5}, (8, 8, 2)),
    "vit": (
        {"shape": (8, 8, 2), "classes": 3, "patch": 4, "width": 8, "depth": 2, "heads": 2},
        (8, 8, 2),
    ),
}


def make(name, seed=0):
    config, shape = NETWORKS[name]
    return filled(lambda: models.build(name, config, nnx.Rngs(0)), seed), normal(4, *shape)


@pytest.mark.parametrize("name", models.REGISTRY)
def test_every_registered_network(name):
    model, x = make(name)
    logits = models.predict(model, x)
    assert logits.shape == (4, 3)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(models.predict(model, x[1:2]), logits[1:2], atol=1e-5)
    assert models.name_of(model) == name
    assert model.config == NETWORKS[name][0]
    again = filled(lambda: models.build(name, model.config, nnx.Rngs(0)))
    np.testing.assert_array_equal(models.predict(again, x), logits)
    listed = {k: list(v) if isinstance(v, tuple) else v for k, v in model.config.items()}
    relisted = nnx.eval_shape(lambda: models.build(name, listed, nnx.Rngs(0)))
    assert relisted.config == model.config


def test_mlp_is_the_formula():
    model, x = make("mlp")
    h = np.asarray(x, np.float64)
    for k, layer in enumerate(model.layers):
        h = h @ np.asarray(layer.kernel[...], np.float64) + np.asarray(layer.bias[...])
        h = np.maximum(h, 0) if k < 2 else h
    np.testing.assert_allclose(outputs(model, x), h, atol=1e-5)


def test_residual_mlp_is_the_formula():
    model, x = make("residual_mlp")

    def affine(layer, h):
        return h @ np.asarray(layer.kernel[...], np.float64) + np.asarray(layer.bias[...])

    h = affine(model.embed, np.asarray(x, np.float64))
    for inner, outer in zip(model.inner, model.outer, strict=True):
        h = h + affine(outer, np.maximum(affine(inner, h), 0))
    np.testing.assert_allclose(outputs(model, x), affine(model.head, np.maximum(h, 0)), atol=1e-5)


def test_cnn_batch_statistics_follow_the_mode():
    model, x = make("cnn")
    before = np.asarray(model.norms[0].mean[...])
    model.eval()
    outputs(model, x)
    np.testing.assert_array_equal(model.norms[0].mean[...], before)
    model.train()
    outputs(model, x)
    assert np.abs(np.asarray(model.norms[0].mean[...]) - before).max() > 0


def test_vit_sees_positions_and_the_order_of_patches():
    model, x = make("vit")
    swapped = np.concatenate([x[:, 4:], x[:, :4]], axis=1)
    one, two = models.predict(model, x), models.predict(model, swapped)
    assert np.abs(np.asarray(one - two)).max() > 1e-6
    model.positions[...] = jnp.zeros_like(model.positions[...])
    one, two = models.predict(model, x), models.predict(model, swapped)
    np.testing.assert_allclose(one, two, atol=1e-5)


def linen_params(model, groups):
    return {
        f"{group}_{k}": {
            name: getattr(layer, name)[...]
            for name in ("kernel", "scale", "bias")
            if getattr(layer, name, None) is not None
        }
        for group in groups
        for k, layer in enumerate(getattr(model, group))
    }


def test_linen_mlp_has_the_parameters_of_its_twin():
    model, x = make("mlp")
    twin = models.linen.MLP((12, 7, 5, 3))
    params = linen_params(model, ["layers"])
    shapes = jax.tree.map(jnp.shape, linen_filled(twin, x)["params"])
    assert shapes == jax.tree.map(jnp.shape, params)
    found = jax.jit(twin.apply)({"params": params}, x)
    np.testing.assert_allclose(found, outputs(model, x), rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="expected inputs of width 12"):
        twin.apply({"params": params}, x[:, :5])


@pytest.mark.parametrize("train", [False, True])
def test_linen_cnn_has_the_parameters_of_its_twin(train):
    model, x = make("cnn")
    twin = models.linen.CNN(3, (4, 6), 5)
    variables = linen_filled(twin, x)
    params = linen_params(model, ["convs", "norms", "layers"])
    assert jax.tree.map(jnp.shape, variables["params"]) == jax.tree.map(jnp.shape, params)
    stats = {
        f"norms_{k}": {name: getattr(norm, name)[...] for name in ("mean", "var")}
        for k, norm in enumerate(model.norms)
    }
    variables = {"params": params, "batch_stats": stats}
    (model.train if train else model.eval)()
    apply = jax.jit(lambda v, x: twin.apply(v, x, train=train, mutable=["batch_stats"]))
    found = apply(variables, x)
    np.testing.assert_allclose(found[0], outputs(model, x), atol=1e-5)
    for k, norm in enumerate(model.norms):
        stats = found[1]["batch_stats"][f"norms_{k}"]
        np.testing.assert_allclose(stats["mean"], norm.mean[...], atol=1e-6)
        np.testing.assert_allclose(stats["var"], norm.var[...], atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r: models.MLP((5,), rngs=r), "sizes of two widths"),
        (lambda r: models.MLP((5, 0), rngs=r), "size as an integer of at least 1, got 0"),
        (lambda r: models.ResidualMLP(4, 4, 0, 2, rngs=r), "depth as an integer"),
        (lambda r: models.CNN((2, 2, 1), 3, (4, 4), rngs=r), "4 pixels or more a side"),
        (lambda r: models.CNN((8, 8), 3, rngs=r), r"shape \(height, width, channels\)"),
        (lambda r: models.ViT((9, 9, 1), 3, rngs=r), "patch divides"),
        (lambda r: models.ViT((8, 8, 1), 3, width=6, heads=4, rngs=r), "heads divides"),
        (lambda r: models.build("lstm", {}, r), "got 'lstm'"),
        (lambda _: models.MLP((6, 3), rngs=0), "rngs with a stream of params, got 0"),
        (lambda _: models.CNN((8, 8, 1), 3, rngs=None), "rngs with a stream of params"),
        (lambda r: models.build("mlp", {"width": 3}, r), "settings of mlp"),
    ],
)
def test_impossible_settings_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(nnx.Rngs(0))


def test_name_of_knows_no_other_models():
    assert models.name_of(nnx.Linear(2, 2, rngs=nnx.Rngs(0))) is None


@pytest.mark.parametrize("architecture", models.REGISTRY)
def test_a_recipe_builds_what_fits_the_dataset(architecture):
    how = models.recipe("digits", (8, 8, 1), 10, 1156, architecture)
    shape = (64,) if how.flat else (8, 8, 1)
    out = jax.eval_shape(lambda x: models.apply(how.build(nnx.Rngs(0)), x), jnp.zeros((2, *shape)))
    assert out.shape == (2, 10)
    assert set(how.settings()) == {
        "epochs", "batch_size", "learning_rate", "weight_decay", "warmup",
    }  # fmt: skip
    with pytest.raises(ValueError, match="got 'lstm'"):
        models.recipe("digits", (8, 8, 1), 10, 1156, "lstm")
