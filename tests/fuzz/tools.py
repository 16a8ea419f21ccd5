"""Verbs of sweep, analysis, compress, data, plot and report."""

from __future__ import annotations

import functools
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from koopjax import (
    analysis,
    compress,
    data,
    observables as ob,
    plot,
    report,
    sweep,
)
from tests.fuzz.fits import gram
from tests.fuzz.networks import BATCH, FOLDER, MODEL, SPAN, mlp
from tests.fuzz.trains import tensor_fit
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
)

once = functools.cache
# fmt: off
RESULTS = pathlib.Path(__file__).parent.parent / "report" / "results.json"


@once
def results() -> Any:
    return json.loads(RESULTS.read_text())


# sweep ----------------------------------------------------------------------------------------


def errors(table: Any) -> list[Any]:
    """What lanes that say success have in their main column."""
    return [row["error"] for row in table.rows if not row.get("result")]


def lane(x: Any, alpha: Any) -> Any:
    return {"error": jnp.mean((x * alpha) ** 2)}


verb("sweep.grid", lambda x, alpha, **s: sweep.grid(lane, {"alpha": alpha}, data=(x,), **s),
     {"x": BATCH, "alpha": sequence(0.1, 1.0)}, {"chunk": number(1), "lanes": text("map"),
     "zip": flag(True), "static": text("alpha"), "memory_limit": text("1GiB")}, weight=0.5)
verb("sweep.grid of a function", lambda function, **s: sweep.grid(function, data=(X,), **s),
     {"function": function(lambda x, **s: {"error": jnp.sum(x)}),
      "axes": thing(lambda: {"alpha": [0.1, 1.0]})}, weight=0.4)
verb("sweep.ranks of statistics", lambda statistics, ranks, **s: sweep.ranks(
        statistics, ranks, **s), {"statistics": thing(gram), "ranks": sequence(1, 2)},
     {"alpha": number(1e-3), "relative": number(1e-6), "lanes": text("map"),
      "metric": array(np.eye(4, dtype=np.float32)), "validation": thing(gram)}, look=errors,
     weight=0.3)
verb("sweep.ranks of trains", lambda x, y, ranks, key, **s: sweep.ranks(
        ob.Product.of(ob.Polynomial1D(1), D), x, y, ranks, key, **s),
     {"x": BATCH, "y": array(Y), "ranks": sequence(1, 2), "key": key()},
     {"alpha": number(1e-3), "sweeps": number(1)}, look=errors, weight=0.03)


@once
def table() -> Any:
    return sweep.Table([{"a": i, "b": i % 2, "error": 0.5 * i} for i in range(4)], ("a", "b"))


def rows(result: Any) -> None:
    """Missing values are NaN here by what is promised."""


verb("sweep.Table.best", lambda **s: table().best(**s), {"column": text("error")},
     {"direction": text("minimum")}, weight=0.2)
verb("sweep.Table.best within", lambda **s: table().best("error", **s),
     {"within": number(0.1), "least": text("a")}, weight=0.2)
verb("sweep.Table.mean_over", lambda axis: table().mean_over(axis), {"axis": text("b")}, look=rows,
     weight=0.2)
verb("sweep.Table.pivot", lambda **s: table().pivot(**s), {"rows": text("a"), "columns": text("b"),
     "values": text("error")}, look=rows, weight=0.2)
verb("sweep.Table.where", lambda a: table().where(a=a), {"a": number(1)}, weight=0.2)
verb("sweep.Table.from_json", sweep.Table.from_json, {"path": text(str(FOLDER / "t.json"))},
     weight=0.2)
(FOLDER / "t.json").write_text(table().to_json())

# analysis -------------------------------------------------------------------------------------

DICTIONARIES = {"affine": lambda s: ob.Monomials(1)}
verb("analysis.evaluate", analysis.evaluate, {"output": array(X), "reference": array(Y)},
     {"labels": array(LABELS), "task": text("classification")})
verb("analysis.confusion", analysis.confusion, {"labels": array(LABELS),
     "answers": array(LABELS[::-1].copy()), "classes": number(2)})
verb("analysis.one_sided", analysis.one_sided, {"values": array(X[:, 0])}, weight=0.5)
verb("analysis.output_metric", analysis.output_metric,
     {"function": function(jax.tree_util.Partial(lambda h: jnp.tanh(h) @ jnp.ones((3, 2)))),
      "states": BATCH},
     {"kind": text("output"), "max_samples": number(8)}, weight=0.5)
verb("analysis.interaction_spectrum", lambda x, **s: analysis.interaction_spectrum(
        tensor_fit(), x, **s), {"x": BATCH},
     {"metric": array(np.eye(D, dtype=np.float32)), "max_order": number(2), "pairs": flag(True),
      "names": sequence("a", "b", "c"), "batch_size": number(10)}, weight=0.5)
verb("analysis.bond_singular_values", lambda x: analysis.bond_singular_values(tensor_fit(), x),
     {"x": BATCH}, weight=0.4)
verb("analysis.ladder", analysis.ladder,
     {"model": MODEL, "x_train": BATCH, "x_val": array(X[:9]), "x_test": array(X[:9]),
      "y_test": array(LABELS[:9]), "key": key(), "at": sequence(*SPAN),
      "dictionaries": thing(lambda: DICTIONARIES), "ranks": sequence(1, 2)},
     {"alphas": sequence(1e-4, 1e-2), "tolerance": number(0.01), "task": text("regression"),
      "choose": text("kl"), "logits": flag(False), "weights": array(W), "stored": flag(False),
      "batch_size": number(16), "y_val": array(LABELS[:9]),
      "metric": text("output")}, weight=0.05)
verb("analysis.plane", analysis.plane,
     {"model": MODEL, "x_train": BATCH, "x_val": array(X[:9]), "x_test": array(X[:9]),
      "key": key(), "at": sequence(*SPAN), "degrees": sequence(1), "ranks": sequence(1, 2),
      "latent": number(2), "reference": thing(lambda: None)},
     {"y_test": array(LABELS[:9]), "alphas": sequence(1e-3), "family": text("legendre"),
      "tolerance": number(0.01), "sweeps": number(1), "outputs": number(2)}, weight=0.02)

# compress -------------------------------------------------------------------------------------

SQUARE_GRAM = (SQUARE @ SQUARE.T + np.eye(6)).astype(np.float64)
verb("compress.Budget.parse", lambda text: compress.Budget.parse(text).bytes(10_000),
     {"text": text("10x")}, weight=0.7)
verb("compress.Budget", lambda **s: compress.Budget(**s).bytes(10_000), {"ratio": number(3.0)},
     weight=0.3)
verb("compress.matrix_curves", compress.matrix_curves,
     {"gram": array(SQUARE_GRAM), "cross": array(SQUARE[:, :2].astype(float)),
      "shares": sequence(0.5, 0.2), "alpha": number(1e-3)},
     {"methods": sequence("magnitude", "obs")})
verb("compress.refit", compress.refit, {"gram": array(GRAM), "cross": array(CROSS),
     "mask": array(np.eye(3, dtype=bool))}, {"alpha": number(1e-3)})
verb("compress.removal_order", compress.removal_order, {"gram": array(SQUARE_GRAM),
     "matrix": array(SQUARE[:, :2].astype(float))},
     {"alpha": number(1e-3), "protect": sequence(0, 1), "least": number(0.1)})
verb("compress.softmax_moments", compress.softmax_moments, {"psi_x": array(X), "logits": array(Y)},
     {"temperature": number(2.0), "floor": number(0.1), "certain": number(0.9)}, weight=0.5)
verb("compress.select_entries", compress.select_entries, {"hessian": array(
     np.einsum("ij,ab->iajb", GRAM + np.eye(3), np.eye(3))), "cross": array(CROSS),
     "sizes": number(4)}, {"alpha": number(1e-3), "share": number(0.1)}, weight=0.5)
for _name in ("select_forward", "select_observables"):
    verb(f"compress.{_name}", getattr(compress, _name), {"statistics": thing(gram),
         "sizes": number(2)}, {"alpha": number(1e-3)}, weight=0.5)
METHOD = {"model": MODEL, "calibration": BATCH, "budget": number(600), "key": key(),
          "labels": array(LABELS), "validation": thing(lambda: (X[:9], LABELS[:9]))}
for _name, _method in compress.METHODS.items():
    _weight = 0.01 if _name.startswith("koopman") else 0.04
    verb(f"compress.{_name}", _method, METHOD, {"at": sequence(*SPAN)}, weight=_weight)
verb("compress.finetune", lambda model, x, **s: compress.finetune(model, x, **s),
     {"model": MODEL, "x": BATCH, "teacher": MODEL, "key": key(), "training": thing(
         lambda: compress.Training(epochs=1, batch_size=8))},
     {"labels": array(LABELS), "density": number(0.5)}, weight=0.06)
verb("compress.Training", lambda **s: compress.Training(**s).check(), {"epochs": number(1)},
     {"batch_size": number(8), "learning_rate": number(1e-3), "warmup": number(0.1),
      "clip": number(1.0), "temperature": number(1.0), "label_weight": number(0.2)},
     weight=0.3)
verb("compress.small_student", lambda **s: compress.small_student(mlp(), **s),
     {"x": BATCH, "widths": sequence(3), "key": key()}, {"linear": sequence(True)}, weight=0.1)
verb("compress.koopman_student", lambda **s: compress.koopman_student(mlp(), **s),
     {"x": BATCH, "coordinates": number(2), "key": key()}, {"degree": number(2),
      "hidden": sequence(2), "factors": sequence(1, 2), "at": sequence(*SPAN)}, weight=0.04)

# data, plot, report ---------------------------------------------------------------------------

data.write_idx(FOLDER / "a.idx", (X * 100).astype(np.uint8))
np.savez(FOLDER / "a.npz", x_train=X, y_train=LABELS, x_test=X, y_test=LABELS)


def idx(array: Any) -> Any:
    data.write_idx(FOLDER / "b.idx", array)
    return data.read_idx(FOLDER / "b.idx")


verb("data.write_idx and read_idx", idx, {"array": array(X)}, wanted=lambda array: array,
     tolerance=1e-6, weight=0.5)
verb("data.write_idx", data.write_idx, {"path": text(str(FOLDER / "c.idx")), "array": array(X)},
     weight=0.3)
verb("data.read_idx", data.read_idx, {"path": text(str(FOLDER / "a.idx"))}, weight=0.2)
verb("data.read_npz", data.read_npz, {"path": text(str(FOLDER / "a.npz"))}, weight=0.2)
verb("data.load", data.load, {"name": text("digits")}, {"data_dir": text(str(FOLDER)),
     "download": flag(False)}, weight=0.2)
verb("data.available", data.available, {}, {"data_dir": text(str(FOLDER))}, weight=0.05)
verb("data.Dataset", lambda **s: data.Dataset("a", **s, classes=2, shape=(3,)).flat(),
     {k: array(X if k[0] == "x" else LABELS) for k in
      ("x_train", "y_train", "x_val", "y_val", "x_test", "y_test")}, weight=0.2)
verb("plot.spectrum", plot.spectrum, {"eigenvalues": array(X[:, 0] + 0.5j)},
     {"residuals": array(np.abs(X[:, 1])), "exact": array(X[:3, 0])}, weight=0.1)
verb("plot.singular_values", plot.singular_values, {"values": array(np.abs(X[:, 0]))},
     {"normalise": flag(True)}, weight=0.1)
verb("plot.bond_singular_values", plot.bond_singular_values,
     {"values": sequence(np.ones(2), np.ones(2))}, weight=0.1)
verb("plot.confusion", plot.confusion, {"matrix": array(np.arange(9).reshape(3, 3))},
     {"classes": sequence("a", "b", "c"), "other": array(np.arange(9).reshape(3, 3))},
     weight=0.1)
verb("plot.training", plot.training, {"history": thing(
     lambda: {"loss": [1.0, 0.5], "accuracy": [0.5, 0.7]})}, weight=0.1)
verb("plot.accuracy_ladder", plot.accuracy_ladder, {"results": thing(results)}, weight=0.04)
verb("plot.colour", plot.colour, {"name": text("koopman")}, weight=0.1)
verb("report.render", report.render, {"results": thing(results)}, weight=0.1)
verb("report.to_json", report.to_json, {"results": thing(results)}, weight=0.1)
verb("report.load", report.load, {"path": text(str(RESULTS))}, weight=0.2)
verb("report.write_atomically", report.write_atomically, {"path": text(str(FOLDER / "w")),
     "content": text("words")}, weight=0.2)
