"""Verbs of nn, surgery, models and export."""

from __future__ import annotations

import functools
import pathlib
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from koopjax import (
    export,
    models,
    nn,
    observables as ob,
    surgery,
)
from tests.fuzz.fits import koopman
from tests.fuzz.verbs import (
    LABELS,
    D,
    X,
    Y,
    array,
    flag,
    function,
    key,
    number,
    sequence,
    text,
    thing,
    verb,
)

once = functools.cache
# fmt: off
FOLDER = pathlib.Path(tempfile.mkdtemp(prefix="fuzz"))


@once
def mlp() -> Any:
    return models.MLP((D, 4, 4, 2), rngs=nnx.Rngs(0))


MODEL = thing(mlp)
BATCH = array(X)

# nn -------------------------------------------------------------------------------------------

MATRIX = np.tile(X[:4], (1, 2))[:, :5].copy()
BIAS = X[:5, 0].copy()
INPUT = np.tile(X, (1, 2))[:, :4].copy()
SETTINGS = {"dtype": text("float32"), "param_dtype": text("float32"), "precision": text("highest")}


def operator(make: Any):
    return lambda **s: (lambda made: (made, made(INPUT)))(make(**s))


verb("nn.Dense", operator(nn.Dense), {"matrix": array(MATRIX)}, {"bias": array(BIAS), **SETTINGS},
     part=lambda r: r[1], wanted=lambda matrix, bias=0, **s: INPUT.astype(float) @ matrix + bias
         if not s and matrix.ndim == 2 else None)
verb("nn.LowRank", operator(nn.LowRank), {"left": array(MATRIX[:, :2]),
     "right": array(MATRIX[:2])}, {"bias": array(BIAS), **SETTINGS}, weight=0.5)
verb("nn.Sparse.from_dense", operator(nn.Sparse.from_dense),
     {"matrix": array(np.where(MATRIX > 0, MATRIX, 0))}, {"bias": array(BIAS)})
verb("nn.Sparse", operator(lambda **s: nn.Sparse(**s)),
     {"values": array(BIAS[:3]), "rows": array(np.array([0, 1, 3])),
      "columns": array(np.array([0, 4, 2])), "shape": sequence(4, 5)},
     {"bias": array(BIAS)})
verb("nn.Clustered.from_dense", operator(nn.Clustered.from_dense),
     {"matrix": array(MATRIX), "size": number(4)},
     {"bias": array(BIAS), "weights": array(np.abs(MATRIX) + 0.1)})
verb("nn.Clustered", operator(nn.Clustered), {"codebook": array(BIAS[:4]),
     "codes": array(np.arange(20).reshape(4, 5) % 4)}, {"bias": array(BIAS),
     "zero": flag(False)}, weight=0.5)
verb("nn.Quantized.from_dense", operator(nn.Quantized.from_dense), {"matrix": array(MATRIX)},
     {"bits": number(4), "axis": text("column"), "bias": array(BIAS)},
     part=lambda r: r[0].to_dense(), tolerance=6e-3,
     wanted=lambda matrix, **s: matrix if not s else None)
verb("nn.Quantized", operator(nn.Quantized), {"codes": array(np.arange(20).reshape(4, 5) - 9),
     "scale": array(np.float32([[0.1]]))}, {"bias": array(BIAS), "bits": number(8)},
     weight=0.5)
verb("nn.TT", operator(nn.TT), {"cores": sequence(
     np.ones((1, 2, 2, 2), np.float32), np.ones((2, 2, 2, 1), np.float32))},
     {"bias": array(BIAS[:4]), "form": text("auto")}, weight=0.5)
verb("nn.TT.create", operator(nn.TT.create), {"key": key(), "row_modes": sequence(2, 2),
     "column_modes": sequence(2, 3), "rank": number(2)},
     {"use_bias": flag(True), "init": text("normal")}, weight=0.5)
verb("nn.Dense.create", operator(nn.Dense.create), {"key": key(), "p": number(4), "q": number(3)},
     {"use_bias": flag(True)}, weight=0.5)
verb("nn.LowRank.create", operator(nn.LowRank.create), {"key": key(), "p": number(4),
     "q": number(3), "rank": number(2)}, {"use_bias": flag(True)}, weight=0.5)
verb("nn.KoopmanBlock", lambda **s: nn.KoopmanBlock(**s)(X),
     {"psi": thing(lambda: ob.Monomials(1)), "operator": thing(lambda: nn.Dense(MATRIX))},
     {"trainable": flag(True), **SETTINGS}, weight=0.7)
verb("nn.Stack", lambda **s: nn.Stack(**s)(INPUT),
     {"operators": sequence(nn.Dense(MATRIX), nn.Dense(MATRIX.T.copy())),
      "activations": sequence("relu", "identity")}, weight=0.5)
verb("nn.from_koopman", lambda **s: nn.from_koopman(**s)(X), {"fit": thing(koopman)},
     {"rank": number(2), "steps": number(2), "lifted": flag(True), "trainable": flag(True),
      **SETTINGS}, weight=0.5)
for _name in ("freeze", "unfreeze", "decoded"):
    verb(f"nn.{_name}", getattr(nn, _name), {"module": thing(lambda: nn.Sparse.from_dense(MATRIX))},
         weight=0.3)
verb("nn.with_form", nn.with_form, {"module": thing(lambda: nn.TT.create(
     jax.random.key(0), (2, 2), (2, 2), 2)), "form": text("auto")}, weight=0.3)
verb("nn.Dense.__call__", lambda x: nn.Dense(MATRIX)(x), {"x": array(INPUT)}, weight=0.5)
verb("nn.KoopmanBlock.__call__", lambda x: nn.from_koopman(koopman())(x), {"x": array(X)},
     weight=0.5)

# surgery --------------------------------------------------------------------------------------

SPAN = ("layers.0/relu", "layers.1/relu")
verb("surgery.cut_points", surgery.cut_points, {"model": MODEL, "x": BATCH},
     {"unroll": flag(True)}, weight=0.7)
verb("surgery.middle", surgery.middle, {"model": MODEL, "x": BATCH}, weight=0.5)
verb("surgery.split", surgery.split, {"model": MODEL, "x": BATCH, "at": sequence(*SPAN)},
     weight=0.7)
verb("surgery.capture", lambda **s: next(iter(surgery.capture(**s))),
     {"model": MODEL, "batches": BATCH, "at": sequence(*SPAN)},
     {"batch_size": number(10), "sample_axes": text("flatten")}, weight=0.5)
verb("surgery.splice", lambda x, **s: surgery.splice(x=x, **s)(X),
     {"model": MODEL, "x": BATCH, "at": sequence(*SPAN), "block": thing(
         lambda: nn.Dense(np.eye(4, dtype=np.float32)))},
     {"sample_axes": text("flatten"), "trainable": sequence("head", "block")},
     weight=0.4)


@once
def parts() -> Any:
    return surgery.split(mlp(), X, SPAN)


@once
def cuts() -> Any:
    return surgery.cut_points(mlp(), X)


verb("surgery.apply", lambda x: surgery.apply(parts()[0], x), {"x": BATCH}, weight=0.5)
verb("surgery.find", lambda key: surgery.find(cuts(), key), {"key": text(SPAN[0])}, weight=0.4)
verb("surgery.to_rows", surgery.to_rows, {"x": array(X.reshape(4, 6, 3)),
     "sample_axes": text("flatten")}, weight=0.5)
verb("surgery.from_rows", surgery.from_rows, {"rows": array(X), "shape": sequence(24, 3),
     "sample_axes": text("flatten")}, weight=0.5)

# models ---------------------------------------------------------------------------------------


def forward(x: np.ndarray) -> Any:
    """The network in float64."""
    h = x
    for i, layer in enumerate(mlp().layers):
        h = h @ np.asarray(layer.kernel[...], float) + np.asarray(layer.bias[...], float)
        h = np.maximum(h, 0) if i < 2 else h
    return h if x.ndim == 2 else None


verb("models.predict", lambda x, **s: models.predict(mlp(), x, **s), {"x": BATCH},
     {"batch_size": number(10)}, wanted=lambda x, **s: forward(x))
verb("models.predict of a model", models.predict, {"model": MODEL, "x": BATCH}, weight=0.5)
verb("models.apply", models.apply, {"model": MODEL, "x": BATCH}, weight=0.5)
verb("models.accuracy", lambda x, y, **s: models.accuracy(mlp(), x, y, **s),
     {"x": BATCH, "y": array(LABELS)}, {"batch_size": number(10)})
verb("models.cross_entropy", models.cross_entropy, {"logits": array(X), "y": array(LABELS)})
verb("models.squared_error", models.squared_error, {"output": array(X), "y": array(Y)})
verb("models.train", models.train, {"model": MODEL, "x": BATCH, "y": array(LABELS), "key": key(),
     "x_val": BATCH, "y_val": array(LABELS), "epochs": number(1)},
     {"batch_size": number(8), "learning_rate": number(1e-3), "weight_decay": number(0.1),
      "warmup": number(0.1), "epoch_size": number(24), "loss": function(models.cross_entropy)},
     weight=0.12)
verb("models.MLP", lambda sizes: models.MLP(sizes, rngs=nnx.Rngs(0))(X),
     {"sizes": sequence(D, 4, 2)}, weight=0.3)
verb("models.build", lambda name, config: models.build(name, config, nnx.Rngs(0)),
     {"name": text("mlp"), "config": thing(lambda: {"sizes": (D, 4, 2)})}, weight=0.3)
verb("models.recipe", models.recipe, {"name": text("digits"), "shape": sequence(8, 8),
     "classes": number(10), "n": number(100)},
     {"architecture": text("mlp"), "epochs": number(2)}, weight=0.3)
verb("models.form_of", models.form_of, {"model": MODEL}, weight=0.3)
verb("models.name_of", models.name_of, {"model": MODEL}, weight=0.2)

# export ---------------------------------------------------------------------------------------


def round_trip(model: Any) -> Any:
    path = FOLDER / "model.koopjax"
    export.save(model, path)
    return export.load(path)


def stored_arrays(value: Any) -> Any:
    return [np.asarray(a) for a in jax.tree.leaves(value)]


verb("export.save and load", round_trip, {"model": thing(lambda: nn.Dense(MATRIX))}, weight=0.5)
verb("export.save of an array", lambda a: export.stored_bytes({"a": a}), {"a": array(MATRIX)})
verb("export.save of an operator", lambda a: np.asarray(round_trip(nn.Dense(a)).matrix[...]),
     {"a": array(MATRIX)}, wanted=lambda a: a, tolerance=1e-6)
verb("export.save to a place", export.save, {"model": thing(lambda: nn.Dense(MATRIX)),
     "path": text(str(FOLDER / "other.koopjax"))}, weight=0.4)
export.save(nn.Dense(MATRIX), FOLDER / "dense.koopjax")
export.save({"w": MATRIX}, FOLDER / "tree.koopjax")
verb("export.load", export.load, {"path": text(str(FOLDER / "tree.koopjax")),
     "model": thing(lambda: {"w": jnp.zeros((4, 5))})}, weight=0.5)
verb("export.describe", export.describe, {"path": text(str(FOLDER / "dense.koopjax"))},
     weight=0.3)
