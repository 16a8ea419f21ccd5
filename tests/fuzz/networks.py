"""Verbs of the rooms that hold networks, files and tables."""

from __future__ import annotations

import functools
import json
import pathlib
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from koopjax import (
    analysis,
    compress,
    data,
    edmd,
    export,
    models,
    nn,
    observables as ob,
    plot,
    report,
    surgery,
    sweep,
    tensor_edmd,
    tt,
)  # fmt: skip
from tests.fuzz.numeric import gram, koopman, tensor_fit
from tests.fuzz.verbs import (
    CROSS,
    GRAM,
    LABELS,
    SQUARE,
    D,
    W,
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
)  # fmt: skip

once = functools.cache
FOLDER = pathlib.Path(tempfile.mkdtemp(prefix="fuzz"))
RESULTS = pathlib.Path(__file__).parent.parent / "report" / "results.json"


@once
def mlp() -> Any:
    return models.MLP((D, 4, 4, 2), rngs=nnx.Rngs(0))


@once
def results() -> Any:
    return json.loads(RESULTS.read_text())


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
         if not s and matrix.ndim == 2 else None)  # fmt: skip
verb("nn.LowRank", operator(nn.LowRank), {"left": array(MATRIX[:, :2]),
     "right": array(MATRIX[:2])}, {"bias": array(BIAS), **SETTINGS}, weight=0.5)  # fmt: skip
verb("nn.Sparse.from_dense", operator(nn.Sparse.from_dense),
     {"matrix": array(np.where(MATRIX > 0, MATRIX, 0))}, {"bias": array(BIAS)})  # fmt: skip
verb("nn.Sparse", operator(lambda **s: nn.Sparse(**s)),
     {"values": array(BIAS[:3]), "rows": array(np.array([0, 1, 3])),
      "columns": array(np.array([0, 4, 2])), "shape": sequence(4, 5)},
     {"bias": array(BIAS)})  # fmt: skip
verb("nn.Clustered.from_dense", operator(nn.Clustered.from_dense),
     {"matrix": array(MATRIX), "size": number(4)},
     {"bias": array(BIAS), "weights": array(np.abs(MATRIX) + 0.1)})  # fmt: skip
verb("nn.Clustered", operator(nn.Clustered), {"codebook": array(BIAS[:4]),
     "codes": array(np.arange(20).reshape(4, 5) % 4)}, {"bias": array(BIAS),
     "zero": flag(False)}, weight=0.5)  # fmt: skip
verb("nn.Quantized.from_dense", operator(nn.Quantized.from_dense), {"matrix": array(MATRIX)},
     {"bits": number(4), "axis": text("column"), "bias": array(BIAS)},
     part=lambda r: r[0].to_dense(), tolerance=6e-3,
     wanted=lambda matrix, **s: matrix if not s else None)  # fmt: skip
verb("nn.Quantized", operator(nn.Quantized), {"codes": array(np.arange(20).reshape(4, 5) - 9),
     "scale": array(np.float32([[0.1]]))}, {"bias": array(BIAS), "bits": number(8)},
     weight=0.5)  # fmt: skip
verb("nn.TT", operator(nn.TT), {"cores": sequence(
     np.ones((1, 2, 2, 2), np.float32), np.ones((2, 2, 2, 1), np.float32))},
     {"bias": array(BIAS[:4]), "form": text("auto")}, weight=0.5)  # fmt: skip
verb("nn.TT.create", operator(nn.TT.create), {"key": key(), "row_modes": sequence(2, 2),
     "column_modes": sequence(2, 3), "rank": number(2)},
     {"use_bias": flag(True), "init": text("normal")}, weight=0.5)  # fmt: skip
verb("nn.Dense.create", operator(nn.Dense.create), {"key": key(), "p": number(4), "q": number(3)},
     {"use_bias": flag(True)}, weight=0.5)  # fmt: skip
verb("nn.LowRank.create", operator(nn.LowRank.create), {"key": key(), "p": number(4),
     "q": number(3), "rank": number(2)}, {"use_bias": flag(True)}, weight=0.5)  # fmt: skip
verb("nn.KoopmanBlock", lambda **s: nn.KoopmanBlock(**s)(X),
     {"psi": thing(lambda: ob.Monomials(1)), "operator": thing(lambda: nn.Dense(MATRIX))},
     {"trainable": flag(True), **SETTINGS}, weight=0.7)  # fmt: skip
verb("nn.Stack", lambda **s: nn.Stack(**s)(INPUT),
     {"operators": sequence(nn.Dense(MATRIX), nn.Dense(MATRIX.T.copy())),
      "activations": sequence("relu", "identity")}, weight=0.5)  # fmt: skip
verb("nn.from_koopman", lambda **s: nn.from_koopman(**s)(X), {"fit": thing(koopman)},
     {"rank": number(2), "steps": number(2), "lifted": flag(True), "trainable": flag(True),
      **SETTINGS}, weight=0.5)  # fmt: skip
verb("nn.tensorize", nn.tensorize, {"operator": array(MATRIX[:, :4].copy()),
     "row_modes": sequence(2, 2), "column_modes": sequence(2, 2)},
     {"rank": number(2), "rtol": number(0.1), "form": text("auto")}, weight=0.5)  # fmt: skip
for _name in ("freeze", "unfreeze", "decoded"):
    verb(f"nn.{_name}", getattr(nn, _name), {"module": thing(lambda: nn.Sparse.from_dense(MATRIX))},
         weight=0.3)  # fmt: skip
verb("nn.with_form", nn.with_form, {"module": thing(lambda: nn.TT.create(
     jax.random.key(0), (2, 2), (2, 2), 2)), "form": text("auto")}, weight=0.3)  # fmt: skip
for _name, _needed in (
    ("apply_dense", {"matrix": array(MATRIX)}),
    ("apply_low_rank", {"left": array(MATRIX[:, :2]), "right": array(MATRIX[:2])}),
    ("apply_clustered", {"codebook": array(BIAS[:4]),
                         "codes": array(np.arange(20).reshape(4, 5) % 4)}),
    ("apply_quantized", {"codes": array((np.arange(20).reshape(4, 5) - 9).astype(np.int8)),
                         "scale": array(np.float32([[0.1]]))}),
):  # fmt: skip
    verb(f"nn.functional.{_name}", getattr(nn.functional, _name), {"x": array(INPUT), **_needed},
         {"bias": array(BIAS)}, weight=0.5)  # fmt: skip
verb("nn.Dense.__call__", lambda x: nn.Dense(MATRIX)(x), {"x": array(INPUT)}, weight=0.5)
verb("nn.KoopmanBlock.__call__", lambda x: nn.from_koopman(koopman())(x), {"x": array(X)},
     weight=0.5)  # fmt: skip

# surgery --------------------------------------------------------------------------------------

SPAN = ("layers.0/relu", "layers.1/relu")
verb("surgery.cut_points", surgery.cut_points, {"model": MODEL, "x": BATCH},
     {"unroll": flag(True)}, weight=0.7)  # fmt: skip
verb("surgery.middle", surgery.middle, {"model": MODEL, "x": BATCH}, weight=0.5)
verb("surgery.split", surgery.split, {"model": MODEL, "x": BATCH, "at": sequence(*SPAN)},
     weight=0.7)  # fmt: skip
verb("surgery.capture", lambda **s: next(iter(surgery.capture(**s))),
     {"model": MODEL, "batches": BATCH, "at": sequence(*SPAN)},
     {"batch_size": number(10), "sample_axes": text("flatten")}, weight=0.5)  # fmt: skip
verb("surgery.splice", lambda x, **s: surgery.splice(x=x, **s)(X),
     {"model": MODEL, "x": BATCH, "at": sequence(*SPAN), "block": thing(
         lambda: nn.Dense(np.eye(4, dtype=np.float32)))},
     {"sample_axes": text("flatten"), "trainable": sequence("head", "block")},
     weight=0.4)  # fmt: skip


@once
def parts() -> Any:
    return surgery.split(mlp(), X, SPAN)


@once
def cuts() -> Any:
    return surgery.cut_points(mlp(), X)


verb("surgery.apply", lambda x: surgery.apply(parts()[0], x), {"x": BATCH}, weight=0.5)
verb("surgery.find", lambda key: surgery.find(cuts(), key), {"key": text(SPAN[0])}, weight=0.4)
verb("surgery.to_rows", surgery.to_rows, {"x": array(X.reshape(4, 6, 3)),
     "sample_axes": text("flatten")}, weight=0.5)  # fmt: skip
verb("surgery.from_rows", surgery.from_rows, {"rows": array(X), "shape": sequence(24, 3),
     "sample_axes": text("flatten")}, weight=0.5)  # fmt: skip

# models ---------------------------------------------------------------------------------------


def forward(x: np.ndarray) -> Any:
    """The network in float64."""
    h = x
    for i, layer in enumerate(mlp().layers):
        h = h @ np.asarray(layer.kernel[...], float) + np.asarray(layer.bias[...], float)
        h = np.maximum(h, 0) if i < 2 else h
    return h if x.ndim == 2 else None


verb("models.predict", lambda x, **s: models.predict(mlp(), x, **s), {"x": BATCH},
     {"batch_size": number(10)}, wanted=lambda x, **s: forward(x))  # fmt: skip
verb("models.predict of a model", models.predict, {"model": MODEL, "x": BATCH}, weight=0.5)
verb("models.apply", models.apply, {"model": MODEL, "x": BATCH}, weight=0.5)
verb("models.accuracy", lambda x, y, **s: models.accuracy(mlp(), x, y, **s),
     {"x": BATCH, "y": array(LABELS)}, {"batch_size": number(10)})  # fmt: skip
verb("models.cross_entropy", models.cross_entropy, {"logits": array(X), "y": array(LABELS)})
verb("models.squared_error", models.squared_error, {"output": array(X), "y": array(Y)})
verb("models.train", models.train, {"model": MODEL, "x": BATCH, "y": array(LABELS), "key": key(),
     "epochs": number(1)}, {"batch_size": number(8), "learning_rate": number(1e-3),
     "weight_decay": number(0.1), "warmup": number(0.1), "x_val": BATCH, "y_val": array(LABELS),
     "epoch_size": number(16), "loss": function(models.cross_entropy)}, weight=0.12)  # fmt: skip
verb("models.MLP", lambda sizes: models.MLP(sizes, rngs=nnx.Rngs(0))(X),
     {"sizes": sequence(D, 4, 2)}, weight=0.3)  # fmt: skip
verb("models.build", lambda name, config: models.build(name, config, nnx.Rngs(0)),
     {"name": text("mlp"), "config": thing(lambda: {"sizes": (D, 4, 2)})}, weight=0.3)  # fmt: skip
verb("models.recipe", models.recipe, {"name": text("digits"), "shape": sequence(8, 8),
     "classes": number(10), "n": number(100)},
     {"architecture": text("mlp"), "epochs": number(2)}, weight=0.3)  # fmt: skip
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
     {"a": array(MATRIX)}, wanted=lambda a: a, tolerance=1e-6)  # fmt: skip
verb("export.save to a place", export.save, {"model": thing(lambda: nn.Dense(MATRIX)),
     "path": text(str(FOLDER / "other.koopjax"))}, weight=0.4)  # fmt: skip
export.save(nn.Dense(MATRIX), FOLDER / "dense.koopjax")
export.save({"w": MATRIX}, FOLDER / "tree.koopjax")
verb("export.load", export.load, {"path": text(str(FOLDER / "tree.koopjax")),
     "model": thing(lambda: {"w": jnp.zeros((4, 5))})}, weight=0.5)  # fmt: skip
verb("export.describe", export.describe, {"path": text(str(FOLDER / "dense.koopjax"))},
     weight=0.3)  # fmt: skip

# sweep ----------------------------------------------------------------------------------------


def errors(table: Any) -> list[Any]:
    """What lanes that say success have in their main column."""
    return [row["error"] for row in table.rows if not row.get("result")]


def lane(x: Any, alpha: Any) -> Any:
    return {"error": jnp.mean((x * alpha) ** 2)}


verb("sweep.grid", lambda x, alpha, **s: sweep.grid(lane, {"alpha": alpha}, data=(x,), **s),
     {"x": BATCH, "alpha": sequence(0.1, 1.0)}, {"chunk": number(1), "lanes": text("map"),
     "zip": flag(True), "static": text("alpha"), "memory_limit": text("1GiB")}, weight=0.5)  # fmt: skip
verb("sweep.grid of a function", lambda function, **s: sweep.grid(function, data=(X,), **s),
     {"function": function(lambda x, **s: {"error": jnp.sum(x)}),
      "axes": thing(lambda: {"alpha": [0.1, 1.0]})}, weight=0.4)  # fmt: skip
verb("sweep.ranks of statistics", lambda statistics, ranks, **s: sweep.ranks(
        statistics, ranks, **s), {"statistics": thing(gram), "ranks": sequence(1, 2)},
     {"alpha": number(1e-3), "relative": number(1e-6), "lanes": text("map"),
      "metric": array(np.eye(4, dtype=np.float32)), "validation": thing(gram)}, look=errors,
     weight=0.3)  # fmt: skip
verb("sweep.ranks of trains", lambda x, y, ranks, key, **s: sweep.ranks(
        ob.Product.of(ob.Polynomial1D(1), D), x, y, ranks, key, **s),
     {"x": BATCH, "y": array(Y), "ranks": sequence(1, 2), "key": key()},
     {"alpha": number(1e-3), "sweeps": number(1)}, look=errors, weight=0.03)  # fmt: skip


@once
def table() -> Any:
    return sweep.Table([{"a": i, "b": i % 2, "error": 0.5 * i} for i in range(4)], ("a", "b"))


def rows(result: Any) -> None:
    """Missing values are NaN here by what is promised."""


verb("sweep.Table.best", lambda **s: table().best(**s), {"column": text("error")},
     {"direction": text("minimum"), "within": number(0.1), "least": text("a")}, weight=0.3)  # fmt: skip
verb("sweep.Table.mean_over", lambda axis: table().mean_over(axis), {"axis": text("b")}, look=rows,
     weight=0.2)  # fmt: skip
verb("sweep.Table.pivot", lambda **s: table().pivot(**s), {"rows": text("a"), "columns": text("b"),
     "values": text("error")}, look=rows, weight=0.2)  # fmt: skip
verb("sweep.Table.where", lambda a: table().where(a=a), {"a": number(1)}, weight=0.2)
verb("sweep.Table.from_json", sweep.Table.from_json, {"path": text(str(FOLDER / "t.json"))},
     weight=0.2)  # fmt: skip
(FOLDER / "t.json").write_text(table().to_json())

# analysis -------------------------------------------------------------------------------------

DICTIONARIES = {"affine": lambda s: ob.Monomials(1)}
verb("analysis.evaluate", analysis.evaluate, {"output": array(X), "reference": array(Y)},
     {"labels": array(LABELS), "task": text("classification")})  # fmt: skip
verb("analysis.confusion", analysis.confusion, {"labels": array(LABELS),
     "answers": array(LABELS[::-1].copy()), "classes": number(2)})  # fmt: skip
verb("analysis.one_sided", analysis.one_sided, {"values": array(X[:, 0])}, weight=0.5)
verb("analysis.output_metric", analysis.output_metric,
     {"function": function(jax.tree_util.Partial(lambda h: jnp.tanh(h) @ jnp.ones((3, 2)))),
      "states": BATCH},
     {"kind": text("output"), "max_samples": number(8)}, weight=0.5)  # fmt: skip
verb("analysis.interaction_spectrum", lambda x, **s: analysis.interaction_spectrum(
        tensor_fit(), x, **s), {"x": BATCH},
     {"metric": array(np.eye(D, dtype=np.float32)), "max_order": number(2), "pairs": flag(True),
      "names": sequence("a", "b", "c"), "batch_size": number(10)}, weight=0.5)  # fmt: skip
verb("analysis.bond_singular_values", lambda x: analysis.bond_singular_values(tensor_fit(), x),
     {"x": BATCH}, weight=0.4)  # fmt: skip
verb("analysis.ladder", analysis.ladder,
     {"model": MODEL, "x_train": BATCH, "x_val": array(X[:9]), "x_test": array(X[:9]),
      "y_test": array(LABELS[:9]), "key": key(), "at": sequence(*SPAN),
      "dictionaries": thing(lambda: DICTIONARIES), "ranks": sequence(1, 2)},
     {"alphas": sequence(1e-4, 1e-2), "tolerance": number(0.01), "task": text("regression"),
      "choose": text("kl"), "logits": flag(False), "weights": array(W), "stored": flag(False),
      "batch_size": number(16), "y_val": array(LABELS[:9]),
      "metric": text("output")}, weight=0.05)  # fmt: skip
verb("analysis.plane", analysis.plane,
     {"model": MODEL, "x_train": BATCH, "x_val": array(X[:9]), "x_test": array(X[:9]),
      "key": key(), "at": sequence(*SPAN), "degrees": sequence(1), "ranks": sequence(1, 2),
      "latent": number(2), "reference": thing(lambda: None)},
     {"y_test": array(LABELS[:9]), "alphas": sequence(1e-3), "family": text("legendre"),
      "tolerance": number(0.01), "sweeps": number(1), "outputs": number(2)}, weight=0.02)  # fmt: skip

# compress -------------------------------------------------------------------------------------

SQUARE_GRAM = (SQUARE @ SQUARE.T + np.eye(6)).astype(np.float64)
verb("compress.Budget.parse", lambda text: compress.Budget.parse(text).bytes(10_000),
     {"text": text("10x")}, weight=0.7)  # fmt: skip
verb("compress.Budget", lambda **s: compress.Budget(**s).bytes(10_000), {"ratio": number(3.0)},
     weight=0.3)  # fmt: skip
verb("compress.matrix_curves", compress.matrix_curves,
     {"gram": array(SQUARE_GRAM), "cross": array(SQUARE[:, :2].astype(float)),
      "shares": sequence(0.5, 0.2), "alpha": number(1e-3)},
     {"methods": sequence("magnitude", "obs")})  # fmt: skip
verb("compress.refit", compress.refit, {"gram": array(GRAM), "cross": array(CROSS),
     "mask": array(np.eye(3, dtype=bool))}, {"alpha": number(1e-3)})  # fmt: skip
verb("compress.removal_order", compress.removal_order, {"gram": array(SQUARE_GRAM),
     "matrix": array(SQUARE[:, :2].astype(float))},
     {"alpha": number(1e-3), "protect": sequence(0, 1), "least": number(0.1)})  # fmt: skip
verb("compress.softmax_moments", compress.softmax_moments, {"psi_x": array(X), "logits": array(Y)},
     {"temperature": number(2.0), "floor": number(0.1), "certain": number(0.9)}, weight=0.5)  # fmt: skip
verb("compress.select_entries", compress.select_entries, {"hessian": array(
     np.einsum("ij,ab->iajb", GRAM + np.eye(3), np.eye(3))), "cross": array(CROSS),
     "sizes": number(4)}, {"alpha": number(1e-3), "share": number(0.1)}, weight=0.5)  # fmt: skip
for _name in ("select_forward", "select_observables"):
    verb(f"compress.{_name}", getattr(compress, _name), {"statistics": thing(gram),
         "sizes": number(2)}, {"alpha": number(1e-3)}, weight=0.5)  # fmt: skip
METHOD = {"model": MODEL, "calibration": BATCH, "budget": number(600), "key": key(),
          "labels": array(LABELS), "validation": thing(lambda: (X[:9], LABELS[:9]))}  # fmt: skip
for _name, _method in compress.METHODS.items():
    _weight = 0.01 if _name.startswith("koopman") else 0.04
    verb(f"compress.{_name}", _method, METHOD, {"at": sequence(*SPAN)}, weight=_weight)
verb("compress.finetune", lambda model, x, **s: compress.finetune(model, x, **s),
     {"model": MODEL, "x": BATCH, "teacher": MODEL, "key": key(), "training": thing(
         lambda: compress.Training(epochs=1, batch_size=8))},
     {"labels": array(LABELS), "density": number(0.5)}, weight=0.06)  # fmt: skip
verb("compress.Training", lambda **s: compress.Training(**s).check(), {"epochs": number(1)},
     {"batch_size": number(8), "learning_rate": number(1e-3), "warmup": number(0.1),
      "clip": number(1.0), "temperature": number(1.0), "label_weight": number(0.2)},
     weight=0.3)  # fmt: skip
verb("compress.small_student", lambda **s: compress.small_student(mlp(), **s),
     {"x": BATCH, "widths": sequence(3), "key": key()}, {"linear": sequence(True)}, weight=0.1)  # fmt: skip
verb("compress.koopman_student", lambda **s: compress.koopman_student(mlp(), **s),
     {"x": BATCH, "coordinates": number(2), "key": key()}, {"degree": number(2),
      "hidden": sequence(2), "factors": sequence(1, 2), "at": sequence(*SPAN)}, weight=0.04)  # fmt: skip

# data, plot, report ---------------------------------------------------------------------------

data.write_idx(FOLDER / "a.idx", (X * 100).astype(np.uint8))
np.savez(FOLDER / "a.npz", x=X)


def idx(array: Any) -> Any:
    data.write_idx(FOLDER / "b.idx", array)
    return data.read_idx(FOLDER / "b.idx")


verb("data.write_idx and read_idx", idx, {"array": array(X)}, wanted=lambda array: array,
     tolerance=1e-6, weight=0.5)  # fmt: skip
verb("data.write_idx", data.write_idx, {"path": text(str(FOLDER / "c.idx")), "array": array(X)},
     weight=0.3)  # fmt: skip
verb("data.read_idx", data.read_idx, {"path": text(str(FOLDER / "a.idx"))}, weight=0.2)
verb("data.read_npz", data.read_npz, {"path": text(str(FOLDER / "a.npz"))}, weight=0.2)
verb("data.load", data.load, {"name": text("digits")}, {"data_dir": text(str(FOLDER)),
     "download": flag(False)}, weight=0.2)  # fmt: skip
verb("data.available", data.available, {}, {"data_dir": text(str(FOLDER))}, weight=0.05)
verb("data.Dataset", lambda **s: data.Dataset("a", **s, classes=2, shape=(3,)).flat(),
     {k: array(X if k[0] == "x" else LABELS) for k in
      ("x_train", "y_train", "x_val", "y_val", "x_test", "y_test")}, weight=0.2)  # fmt: skip
verb("plot.spectrum", plot.spectrum, {"eigenvalues": array(X[:, 0] + 0.5j)},
     {"residuals": array(np.abs(X[:, 1])), "exact": array(X[:3, 0])}, weight=0.1)  # fmt: skip
verb("plot.singular_values", plot.singular_values, {"values": array(np.abs(X[:, 0]))},
     {"normalise": flag(True)}, weight=0.1)  # fmt: skip
verb("plot.bond_singular_values", plot.bond_singular_values,
     {"values": sequence(np.ones(2), np.ones(2))}, weight=0.1)  # fmt: skip
verb("plot.confusion", plot.confusion, {"matrix": array(np.arange(9).reshape(3, 3))},
     {"classes": sequence("a", "b", "c"), "other": array(np.arange(9).reshape(3, 3))},
     weight=0.1)  # fmt: skip
verb("plot.training", plot.training, {"history": thing(
     lambda: {"loss": [1.0, 0.5], "accuracy": [0.5, 0.7]})}, weight=0.1)  # fmt: skip
verb("plot.accuracy_ladder", plot.accuracy_ladder, {"results": thing(results)}, weight=0.04)
verb("plot.colour", plot.colour, {"name": text("koopman")}, weight=0.1)
verb("report.render", report.render, {"results": thing(results)}, weight=0.1)
verb("report.to_json", report.to_json, {"results": thing(results)}, weight=0.1)
verb("report.load", report.load, {"path": text(str(RESULTS))}, weight=0.2)
verb("report.write_atomically", report.write_atomically, {"path": text(str(FOLDER / "w")),
     "content": text("words")}, weight=0.2)  # fmt: skip

_ = edmd, tensor_edmd, tt
