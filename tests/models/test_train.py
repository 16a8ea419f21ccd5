"""Training: it learns, in every form; it resumes to the same bits; it compiles once."""

import functools
import os
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

from koopjax import models
from koopjax._core import NumericalError

KEY = jax.random.key(7)


def blobs(n=120, d=6, classes=3):
    """Three clouds that a small network tells apart."""
    random = np.random.default_rng(0)
    y = np.arange(n) % classes
    centres = 3.0 * random.normal(size=(classes, d))
    return (centres[y] + random.normal(size=(n, d))).astype(np.float32), y.astype(np.int32)


X, Y = blobs()
SETTINGS = {"key": KEY, "epochs": 4, "batch_size": 16, "learning_rate": 1e-2}


@functools.partial(nnx.jit, static_argnums=1)
def initialised(rngs, sizes):
    return models.MLP(sizes, rngs=rngs)


def mlp(seed=0, sizes=(6, 8, 3)):
    return initialised(nnx.Rngs(seed), sizes)


def leaves(model):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(model)]


def same_bits(a, b):
    assert len(a) == len(b)
    for one, two in zip(a, b, strict=True):
        assert one.dtype == two.dtype
        np.testing.assert_array_equal(one, two)


def affine(params, x):
    return x @ params["w"] + params["b"][None, :]


class Dropping(linen.Module):
    @linen.compact
    def __call__(self, x, deterministic=True):
        x = linen.relu(linen.Dense(16)(x))
        return linen.Dense(3)(linen.Dropout(0.1)(x, deterministic=deterministic))


def zeros(q=3):
    return {"w": np.zeros((6, q), np.float32), "b": np.zeros(q, np.float32)}


def linen_pair(module):
    return module, jax.jit(module.init)(KEY, X)


FORMS = {
    "nnx": mlp,
    "linen": lambda: linen_pair(models.linen.MLP((6, 8, 3))),
    "linen dropout": lambda: linen_pair(Dropping()),
    "function": lambda: (affine, zeros()),
    "pytree": lambda: jax.tree_util.Partial(affine, zeros()),
}


@pytest.mark.parametrize("form", FORMS)
def test_it_learns_in_every_form_and_leaves_the_model_as_it_was(form):
    model = FORMS[form]()
    is_pair = isinstance(model, tuple)
    before = leaves(model[1] if is_pair else model)
    result = models.train(model, X, Y, x_val=X, y_val=Y, **SETTINGS | {"epochs": 15})
    assert len(result.history) == 15
    assert set(result.history[0]) == {"loss", "accuracy", "val_loss", "val_accuracy"}
    assert result.history[-1]["loss"] < 0.3 * result.history[0]["loss"]
    found = models.accuracy(result.model, X, Y)
    assert found > 0.95
    assert result.history[-1]["val_accuracy"] == pytest.approx(found)
    same_bits(before, leaves(model[1] if is_pair else model))


def test_the_update_is_adamw_with_a_cosine():
    """One batch an epoch, so that shuffling makes no difference, against optax's own."""
    # Random weights: at equal ones the gradient of b is rounding alone, which Adam scales up.
    weights = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    model = (affine, zeros() | {"w": weights})
    result = models.train(
        model, X, Y, key=KEY, epochs=10, batch_size=120, learning_rate=0.05, weight_decay=0.1,
        warmup=0.2,
    )  # fmt: skip

    def rate(count):
        rising, falling = (count + 1) / 2, 0.5 * (1 + jnp.cos(jnp.pi * (count - 2) / 8))
        return 0.05 * jnp.where(count < 2, rising, falling)

    optimizer = optax.adamw(rate, weight_decay=0.1, mask={"w": True, "b": False})

    def step(carry, _):
        params, state = carry
        grads = jax.grad(lambda p: models.cross_entropy(affine(p, X), Y))(params)
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    @jax.jit
    def by_optax(params):
        return jax.lax.scan(step, (params, optimizer.init(params)), length=10)[0][0]

    params = by_optax(model[1])
    for name in params:
        np.testing.assert_allclose(result.model[1][name], params[name], atol=2e-5)


def test_batch_statistics_are_trained_and_frozen_variables_are_not():
    images = np.random.default_rng(1).normal(2.0, 3.0, (48, 4, 4, 1)).astype(np.float32)
    labels = (images.mean((1, 2, 3)) > 2).astype(np.int32)
    model = nnx.jit(lambda: models.CNN((4, 4, 1), 2, (3,), 4, rngs=nnx.Rngs(0)))()
    model.frozen = nnx.Variable(jnp.arange(3.0))
    result = models.train(model, images, labels, key=KEY, epochs=3, batch_size=16)
    assert np.abs(np.asarray(result.model.norms[0].mean[...])).max() > 0
    np.testing.assert_array_equal(model.norms[0].mean[...], np.zeros(3))
    np.testing.assert_array_equal(result.model.frozen[...], np.arange(3.0))
    module = models.linen.CNN(2, (3,), 4)
    variables = jax.jit(module.init)(KEY, images)
    _, trained = models.train((module, variables), images, labels, key=KEY, epochs=2).model
    assert np.abs(np.asarray(trained["batch_stats"]["norms_0"]["mean"])).max() > 0


def test_own_optimizer_own_loss_and_regression():
    target = X @ np.arange(12, dtype=np.float32).reshape(6, 2) / 10
    result = models.train(
        (affine, zeros(2)), X, target, key=KEY, epochs=40, batch_size=20, optimizer=optax.sgd(0.02),
        loss=models.squared_error, x_val=X, y_val=target,
    )  # fmt: skip
    assert set(result.history[0]) == {"loss", "val_loss"}
    assert result.history[-1]["val_loss"] < 1e-2 * result.history[0]["loss"]
    soft = np.eye(3, dtype=np.float32)[Y]
    learned = models.train(mlp(), X, soft, **SETTINGS | {"epochs": 15})
    assert models.accuracy(learned.model, X, Y) > 0.95


def test_validation_is_exact_for_an_incomplete_last_batch(monkeypatch):
    monkeypatch.setattr(models._evaluate, "BATCH", 50)
    result = models.train(mlp(), X, Y, x_val=X, y_val=Y, **SETTINGS)
    whole = nnx.jit(lambda model: models.cross_entropy(model(X), Y))(result.model)
    assert result.history[-1]["val_loss"] == pytest.approx(float(whole), rel=1e-5)


def test_other_seeds_epochs_and_rates_share_the_compilation(caplog):
    models.train(mlp(0), X, Y, x_val=X, y_val=Y, **SETTINGS)
    with jax.log_compiles(True), caplog.at_level("WARNING"):
        models.train(
            mlp(1), X, Y, x_val=X, y_val=Y, key=jax.random.key(1), epochs=2, batch_size=16,
            learning_rate=0.5, weight_decay=0.3, warmup=0.1,
        )  # fmt: skip
    assert "Compiling" not in caplog.text


def test_progress_is_called_after_every_epoch():
    seen = []
    result = models.train(mlp(), X, Y, progress=lambda *args: seen.append(args), **SETTINGS)
    assert seen == list(enumerate(result.history, 1))


def stop_after(epoch):
    def progress(number, metrics):
        if number == epoch:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize("form", ["nnx", "linen dropout", "function"])
def test_an_interrupted_training_resumes_to_the_same_bits(tmp_path, form):
    whole = models.train(FORMS[form](), X, Y, x_val=X, y_val=Y, **SETTINGS)
    with pytest.raises(KeyboardInterrupt):
        models.train(
            FORMS[form](), X, Y, x_val=X, y_val=Y, progress=stop_after(2),
            checkpoint=tmp_path / "c", **SETTINGS,
        )  # fmt: skip
    numbers = []
    resumed = models.train(
        FORMS[form](), X, Y, x_val=X, y_val=Y, checkpoint=tmp_path / "c",
        progress=lambda number, _: numbers.append(number), **SETTINGS,
    )  # fmt: skip
    assert numbers == [3, 4]
    assert resumed.history == whole.history
    pair = isinstance(whole.model, tuple)
    same_bits(*(leaves(r.model[1] if pair else r.model) for r in (whole, resumed)))
    again = models.train(
        FORMS[form](), X, Y, x_val=X, y_val=Y, checkpoint=tmp_path / "c", **SETTINGS
    )
    assert again.history == whole.history


class Dropout(nnx.Module):
    """An NNX model whose random streams have to resume as well."""

    def __init__(self, rngs):
        self.inner, self.outer = nnx.Linear(6, 8, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)
        self.norm, self.drop = nnx.BatchNorm(8, rngs=rngs), nnx.Dropout(0.2, rngs=rngs)

    def __call__(self, x):
        return self.outer(self.drop(nnx.relu(self.norm(self.inner(x)))))


def test_random_streams_and_batch_statistics_resume(tmp_path):
    model = nnx.jit(lambda: Dropout(nnx.Rngs(0)))()
    whole = models.train(model, X, Y, **SETTINGS)
    with pytest.raises(KeyboardInterrupt):
        models.train(model, X, Y, progress=stop_after(1), checkpoint=tmp_path, **SETTINGS)
    resumed = models.train(model, X, Y, checkpoint=tmp_path, **SETTINGS)
    assert resumed.history == whole.history
    np.testing.assert_array_equal(resumed.model.norm.mean[...], whole.model.norm.mean[...])
    same_bits(
        leaves(nnx.state(resumed.model, nnx.Param)), leaves(nnx.state(whole.model, nnx.Param))
    )


KILLED = """
import os, signal, sys
import jax, numpy as np
from flax import nnx
from koopjax import models
data = np.load(sys.argv[1])
def progress(number, metrics):
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
models.train(models.MLP((6, 8, 3), rngs=nnx.Rngs(0)), data["x"], data["y"], key=jax.random.key(7),
             epochs=4, batch_size=16, learning_rate=1e-2, progress=progress, checkpoint=sys.argv[2])
"""


def test_a_killed_training_resumes_to_the_same_bits(tmp_path):
    np.savez(tmp_path / "d.npz", x=X, y=Y)
    command = [sys.executable, "-c", KILLED, str(tmp_path / "d.npz"), str(tmp_path / "c")]
    done = subprocess.run(command, env=dict(os.environ), capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    resumed = models.train(mlp(), X, Y, checkpoint=tmp_path / "c", **SETTINGS)
    same_bits(leaves(resumed.model), leaves(models.train(mlp(), X, Y, **SETTINGS).model))


def test_a_save_that_fails_leaves_the_epoch_before(tmp_path, monkeypatch):
    whole = models.train(mlp(), X, Y, **SETTINGS)
    save = models._checkpoint.Keeper.save

    def full(self, epoch, *args):
        if epoch == 3:
            raise OSError(28, "No space left on device")
        save(self, epoch, *args)

    with monkeypatch.context() as patch:
        patch.setattr(models._checkpoint.Keeper, "save", full)
        with pytest.raises(OSError, match="No space"):
            models.train(mlp(), X, Y, checkpoint=tmp_path, **SETTINGS)
    numbers = []
    resumed = models.train(
        mlp(), X, Y, checkpoint=tmp_path, progress=lambda n, _: numbers.append(n), **SETTINGS
    )
    assert numbers == [3, 4]
    same_bits(leaves(resumed.model), leaves(whole.model))


@pytest.mark.parametrize(
    ("model", "change", "message"),
    [
        ({"sizes": (6, 9, 3)}, {}, r"with array .*, got .*; try another folder, or resume=False"),
        ({"seed": 1}, {}, "with start"),
        ({}, {"epochs": 5}, "with epochs 5, got 4"),
        ({}, {"key": jax.random.key(8)}, "with key"),
        ({}, {"learning_rate": 0.5}, "with settings"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path, model, change, message):
    model = mlp(**model)
    models.train(mlp(), X, Y, checkpoint=tmp_path, **SETTINGS)
    with pytest.raises(ValueError, match=f"expected a checkpoint of this run in .*{message}"):
        models.train(model, X, Y, checkpoint=tmp_path, **SETTINGS | change)
    fresh = models.train(model, X, Y, checkpoint=tmp_path, resume=False, **SETTINGS | change)
    same_bits(leaves(fresh.model), leaves(models.train(model, X, Y, **SETTINGS | change).model))


SGD = optax.sgd(0.1)


def other_loss(output, y):
    return 2.0 * models.cross_entropy(output, y)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": other_loss}, "with loss .*other_loss, got .*cross_entropy"),
        ({"optimizer": optax.sgd(1e-9)}, "with optimizer"),
        ({"optimizer": optax.adam(0.1)}, "with optimizer"),
        ({"y": Y[::-1]}, "with data"),
    ],
)
def test_a_checkpoint_resumes_under_its_loss_optimizer_and_data_alone(tmp_path, change, message):
    run = {"x": X, "y": Y, "key": KEY, "epochs": 2, "optimizer": SGD}
    models.train(mlp(), checkpoint=tmp_path, **run)
    with pytest.raises(ValueError, match=f"expected a checkpoint of this run in .*{message}"):
        models.train(mlp(), checkpoint=tmp_path, **run | change)
    again = run | {"optimizer": optax.sgd(0.1)}  # another object, the same rule
    assert len(models.train(mlp(), checkpoint=tmp_path, **again).history) == 2


def test_lanes_are_the_runs_one_by_one():
    keys = list(jax.random.split(KEY, 3))
    settings = {"epochs": 3, "batch_size": 16, "learning_rate": 1e-2, "x_val": X, "y_val": Y}
    lanes = models.train_lanes([mlp(seed) for seed in range(3)], X, Y, keys=keys, **settings)
    for seed, lane in enumerate(lanes):
        alone = models.train(mlp(seed), X, Y, key=keys[seed], **settings)
        for one, two in zip(leaves(lane.model), leaves(alone.model), strict=True):
            np.testing.assert_allclose(one, two, atol=1e-5)
        assert lane.history[-1]["val_loss"] == pytest.approx(
            alone.history[-1]["val_loss"], rel=1e-4
        )
    with pytest.raises(ValueError, match="one key a model"):
        models.train_lanes([mlp()], X, Y, keys=keys, **settings)
    with pytest.raises(ValueError, match="models of one structure"):
        models.train_lanes([mlp(), mlp(sizes=(6, 4, 3))], X, Y, keys=keys[:2], **settings)


def test_a_diverging_training_says_so_and_keeps_the_last_good_epoch(tmp_path):
    model = (affine, zeros(2))
    target = np.ones((120, 2), np.float32)
    with pytest.raises(NumericalError, match=r"finite loss, got .* try a smaller learning rate"):
        models.train(
            model, X, target, key=KEY, epochs=30, batch_size=20, optimizer=optax.sgd(3.0),
            loss=models.squared_error, checkpoint=tmp_path,
        )  # fmt: skip


NAN = X.copy()
NAN[3, 2] = np.nan


@pytest.mark.parametrize(
    ("x", "y", "change", "message"),
    [
        (X[:0], Y[:0], {}, "at least one sample"),
        (X, Y[:9], {}, "120 targets"),
        (X[:, :5], Y, {}, "samples that the model takes"),
        (NAN, Y, {}, r"1 NaN or infinite entries, the first at index \(3, 2\)"),
        (X, Y + 1, {}, "labels from 0 to 2, since the model has 3 outputs, got labels from 1 to 3"),
        (X, Y[:, None], {}, r"labels of shape \(120,\), got shape \(120, 1\); try y\[:, 0\]"),
        (X, Y, {"epochs": 0}, "epochs as an integer"),
        (X, Y, {"batch_size": -2}, "batch_size as an integer"),
        (X, Y, {"x_val": X}, "x_val and y_val together"),
        (X, Y, {"optimizer": optax.sgd(0.1)}, "only without optimizer"),
        (X, Y, {"key": 0}, "one random key, got 0"),
        (X, Y, {"weight_decay": None}, "weight_decay of at least 0"),
        (X, Y, {"warmup": None}, "warmup of at least 0"),
        (X, Y, {"optimizer": "adam", "learning_rate": None}, "an optimizer of optax, got 'adam'"),
        (X, Y, {"loss": "mse"}, "loss as a function"),
        (X, Y, {"epoch_size": 20.5}, "epoch_size as a whole number"),
        (X, Y, {"checkpoint_every": 0}, "checkpoint_every as a whole number"),
        (X, Y, {"progress": 1}, "progress as a function"),
        (X, Y, {"revise": 1}, "revise as a function"),
    ],
)
def test_bad_input(x, y, change, message):
    with pytest.raises(ValueError, match=message) as caught:
        models.train(mlp(), x, y, **SETTINGS | change)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("keys", [KEY, None, [0, 1], jax.random.key_data(KEY)])
def test_lanes_need_one_key_each(keys):
    with pytest.raises(ValueError, match=r"one key a model|one random key"):
        models.train_lanes([mlp(0), mlp(1)], X, Y, keys=keys, epochs=1)


def time_first(p, x):
    return jnp.swapaxes(x @ p, 0, 1)


def test_rows_of_another_axis_are_no_targets_but_for_a_loss_of_ones_own():
    model, x = (time_first, np.ones((6, 3), np.float32)), X[:16].reshape(4, 4, 6)
    swapped = lambda output, y: jnp.mean((jnp.swapaxes(output, 0, 1) - y) ** 2)
    settings = {"key": KEY, "epochs": 1}
    with pytest.raises(ValueError, match="batch on axis 0, got on axis 1"):
        models.train(model, x, x[..., :3], loss=models.squared_error, **settings)
    assert models.train(model, x, x[..., :3], loss=swapped, **settings).history[0]["loss"] > 0


def test_what_has_nothing_to_train_is_refused():
    module = mlp()
    for closed in (lambda x: module(x), jax.vmap(module), module.__call__):
        with pytest.raises(ValueError, match=r"parameters.*closes over.*\(function, params\)"):
            models.train(closed, X, Y, **SETTINGS)


def test_a_batch_larger_than_the_data_is_the_data():
    settings = {"key": KEY, "epochs": 1}
    small = models.train(mlp(), X[:5], Y[:5], batch_size=64, **settings)
    assert small.history == models.train(mlp(), X[:5], Y[:5], batch_size=5, **settings).history


@pytest.mark.parametrize("optimizer", [None, optax.adam(1e-2)])
def test_strict_promotion_trains_alike(optimizer):
    x = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
    model = (lambda p, x: x @ p, np.ones((3, 2), np.float32))
    settings = {"epochs": 1, "optimizer": optimizer, "key": KEY}
    train = lambda: models.train(model, x, np.arange(64) % 2, **settings).model[1]
    wanted = train()
    with jax.numpy_dtype_promotion("strict"):
        np.testing.assert_allclose(train(), wanted, rtol=1e-5)
