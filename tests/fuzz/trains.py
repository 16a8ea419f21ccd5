"""Verbs of tt, tensor_edmd and data.systems."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from koopjax import data, observables as ob, tensor_edmd, tt
from tests.fuzz.verbs import (
    GRAM,
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

# tt -------------------------------------------------------------------------------------------


@once
def train(seed: int = 0, ranks: tuple[int, int] = (2, 2)) -> Any:
    return tt.random(jax.random.key(seed), (2, 3, 2), ranks)


@once
def matrix(seed: int = 0) -> Any:
    return tt.random_matrix(jax.random.key(seed), (2, 3), (3, 2), 2)


def dense(train: Any) -> np.ndarray:
    """In float64, by NumPy."""
    made = np.ones((1, 1))
    for core in train.cores:
        core = np.asarray(core, np.complex128 if np.iscomplexobj(core) else np.float64)
        made = np.tensordot(made, core, 1)
    return made[0, ..., 0]


def close(result: Any) -> np.ndarray:
    return dense(result) if isinstance(result, tt.TensorTrain) else np.asarray(result)


TENSOR = dense(tt.random(jax.random.key(5), (2, 3, 2), 3)).astype(np.float32)
TRAIN, TRAIN_B, MATRIX = thing(train), thing(lambda: train(1)), thing(matrix)


def one(a: Any) -> Any:
    return dense(a) if isinstance(a, tt.TensorTrain) else None


def both(operation: Any):
    def wanted(a: Any, b: Any) -> Any:
        trains = isinstance(a, tt.TensorTrain) and isinstance(b, tt.TensorTrain)
        return operation(dense(a), dense(b)) if trains else None

    return wanted


for _name, _operation in (
    ("add", np.add), ("subtract", np.subtract), ("hadamard", np.multiply),
    ("dot", lambda a, b: np.vdot(a, b)),
):
    verb(f"tt.{_name}", getattr(tt, _name), {"a": TRAIN, "b": TRAIN_B}, part=close,
         wanted=both(_operation))
verb("tt.norm", tt.norm, {"a": TRAIN},
     wanted=lambda a: None if one(a) is None else np.linalg.norm(one(a)))
verb("tt.scale", tt.scale, {"a": TRAIN, "factor": number(2.0)})
verb("tt.round", lambda train, **s: tt.round(train, **s), {"train": TRAIN},
     {"rtol": number(1e-6), "max_rank": number(2)}, part=close,
     wanted=lambda train, **s: None if s else one(train))
verb("tt.truncate", lambda train, rank, **s: tt.truncate(train, rank, **s),
     {"train": TRAIN, "rank": number(2)})
verb("tt.truncate of a padded train", lambda rank, **s: tt.truncate(
        tt.pad(tt.random(jax.random.key(0), (2, 3, 2), 2), 3), rank, **s),
     {"rank": number(2)}, {"max_rank": number(2)})
verb("tt.orthogonalize", tt.orthogonalize, {"train": TRAIN, "center": number(1)}, part=close,
     wanted=lambda train, center: one(train))
verb("tt.singular_values", tt.singular_values, {"train": TRAIN})
verb("tt.from_dense", tt.from_dense, {"a": array(TENSOR)},
     {"max_rank": number(2), "rtol": number(1e-6)}, part=close,
     wanted=lambda a, **s: None if s else a)
verb("tt.matrix_from_dense", tt.matrix_from_dense,
     {"a": array(np.arange(36, dtype=np.float32).reshape(6, 6)), "row_modes": sequence(2, 3),
      "column_modes": sequence(3, 2)}, {"max_rank": number(2), "rtol": number(1e-6)})
verb("tt.random", tt.random, {"key": key(), "modes": sequence(2, 3, 2), "rank": number(2)},
     {"dtype": text("float32")})
verb("tt.random_matrix", tt.random_matrix, {"key": key(), "row_modes": sequence(2, 3),
     "column_modes": sequence(3, 2), "rank": number(2)}, {"dtype": text("float32")})
verb("tt.rank_one", tt.rank_one, {"vectors": sequence(X[0], X[1], X[2])})
verb("tt.identity", tt.identity, {"modes": sequence(2, 3)}, {"dtype": text("float32")})
verb("tt.matvec", tt.matvec, {"matrix": thing(lambda: tt.random_matrix(
     jax.random.key(0), (2, 2, 2), (2, 3, 2), 2)), "vector": TRAIN})
verb("tt.vecmat", tt.vecmat, {"vector": TRAIN, "matrix": thing(lambda: tt.random_matrix(
     jax.random.key(0), (2, 3, 2), (2, 2, 2), 2))})
verb("tt.matmul", tt.matmul, {"a": MATRIX, "b": thing(lambda: tt.random_matrix(
     jax.random.key(0), (3, 2), (2, 2), 2))})
verb("tt.transpose", tt.transpose, {"matrix": MATRIX}, weight=0.5)
verb("tt.entries", tt.entries, {"train": TRAIN, "indices": array(np.array([[0, 1, 1], [1, 2, 0]]))},
     wanted=lambda train, indices: dense(train)[tuple(indices.astype(int).T)]
         if np.all(indices == np.round(indices)) else None)
verb("tt.TensorTrain.__getitem__", lambda index: train()[index],
     {"index": sequence(0, 1, slice(None))}, weight=0.5)
verb("tt.apply_matrix", tt.apply_matrix, {"matrix": MATRIX, "x": array(np.tile(X, 2))},
     {"form": text("auto"), "precision": text("highest")})
verb("tt.contract", tt.contract, {"matrix": MATRIX, "factors": sequence(X[:, :2], X)},
     {"form": text("auto")})
verb("tt.contraction_order", tt.contraction_order,
     {"ranks": sequence(1, 2, 1), "row_modes": sequence(2, 3), "column_modes": sequence(3, 2),
      "n": number(10)}, {"kind": text("product"), "form": text("auto")}, weight=0.5)
verb("tt.kronecker", tt.kronecker, {"matrices": sequence(X[:2], X[:3])}, weight=0.5)
verb("tt.clip_ranks", tt.clip_ranks, {"modes": sequence(2, 3, 2), "rank": number(4)}, weight=0.5)
verb("tt.feasible_ranks", tt.feasible_ranks, {"modes": sequence(2, 3, 2)}, weight=0.3)
verb("tt.pad", tt.pad, {"train": TRAIN, "rank": number(3)}, {"mode": number(3)}, weight=0.5)
verb("tt.unpad", tt.unpad, {"train": thing(lambda: tt.pad(train(), 3))}, weight=0.3)
verb("tt.quantize", tt.quantize, {"train": thing(lambda: tt.random(
     jax.random.key(0), (4, 8), 2))}, {"base": number(2), "rtol": number(1e-6)}, weight=0.5)
verb("tt.cross", tt.cross, {"function": function(lambda i: jnp.sum(i, 1) * 1.0),
     "modes": sequence(3, 3, 3), "key": key()},
     {"rtol": number(1e-4), "max_rank": number(3), "max_sweeps": number(3),
      "max_evaluations": number(500), "batch_size": number(50)}, weight=0.5)
verb("tt.TensorTrain", lambda cores: tt.TensorTrain(cores).validate(),
     {"cores": sequence(*[np.asarray(c) for c in train().cores])}, weight=0.5)

# tensor_edmd ----------------------------------------------------------------------------------

BASIS = thing(lambda: ob.Product.of(ob.Polynomial1D(1), D))
TENSOR_FIT = {"psi": BASIS, "x": array(X), "y": array(Y)}
verb("tensor_edmd.mandy", tensor_edmd.mandy, TENSOR_FIT,
     {"rtol": number(1e-6), "max_rank": number(3), "form": text("coordinate"),
      "alpha": number(1e-3), "total_degree": number(2), "cutoff": number(1e-6)}, weight=0.25)
verb("tensor_edmd.amuset", tensor_edmd.amuset, TENSOR_FIT,
     {"rtol": number(1e-6), "max_rank": number(3), "method": text("hosvd")}, weight=0.25)
verb("tensor_edmd.als", tensor_edmd.als, {**TENSOR_FIT, "rank": number(2), "key": key()},
     {"alpha": number(1e-3), "sweeps": number(1), "x_val": array(X), "y_val": array(Y),
      "metric": array(np.eye(D, dtype=np.float32)), "batch_size": number(10),
      "patience": number(1), "max_rank": number(2), "adaptive": flag(True),
      "rtol": number(1e-6)}, weight=0.12)
verb("tensor_edmd.als_padded", tensor_edmd.als_padded,
     {**TENSOR_FIT, "rank": number(2), "key": key(), "max_rank": number(2)},
     {"alpha": number(1e-3), "sweeps": number(1), "x_val": array(X), "y_val": array(Y)},
     weight=0.06)
verb("tensor_edmd.kernel", tensor_edmd.kernel, TENSOR_FIT,
     {"alpha": number(1e-3), "centers": array(X[:6]), "method": text("auto"), "x_val": array(X),
      "y_val": array(Y), "tolerance": number(1e-4), "max_iterations": number(5),
      "batch_size": number(10), "memory_limit": number(10**8), "key": key()}, weight=0.25)
verb("tensor_edmd.latent", tensor_edmd.latent, {"x": array(X), "rank": number(2)},
     {"y": array(Y), "kind": text("pca"), "gradients": array(Y), "order": text("correlation"),
      "standardize": flag(True), "metric": array(np.eye(D, dtype=np.float32))}, weight=0.5)
verb("tensor_edmd.order_by_correlation", tensor_edmd.order_by_correlation, {"x": array(X)},
     {"method": text("spectral")}, weight=0.5)
verb("tensor_edmd.order_by_mutual_information", tensor_edmd.order_by_mutual_information,
     {"x": array(X)}, {"bins": number(4), "method": text("spectral")}, weight=0.5)
verb("tensor_edmd.separable", tensor_edmd.separable, {"psi": BASIS}, weight=0.3)
verb("tensor_edmd.approximate", tensor_edmd.approximate,
     {"matrix": array(np.tile(X[:6], 2)), "row_modes": sequence(2, 3),
      "column_modes": sequence(3, 2), "rank": number(2)},
     {"gram": array(np.eye(6, dtype=np.float32)), "metric": array(np.eye(6, dtype=np.float32)),
      "sweeps": number(2), "rtol": number(1e-3), "tol": number(1e-4), "iterations": number(3),
      "row_order": text("search"), "init": text("plain")}, weight=0.12)


@once
def tensor_fit() -> Any:
    return tensor_edmd.mandy(ob.Product.of(ob.Polynomial1D(1), D), X, Y)


verb("tensor_edmd.TensorKoopman.predict", lambda **s: tensor_fit().predict(**s), {"x": array(X)},
     {"steps": number(2)}, grows=True)
verb("tensor_edmd.TensorKoopman.simulate", lambda **s: tensor_fit().simulate(**s),
     {"x": array(X), "steps": number(2)}, weight=0.5, grows=True)

# data.systems ---------------------------------------------------------------------------------

for _name in ("Duffing", "Logistic", "SlowManifold", "VanDerPol"):
    _system = getattr(data.systems, _name)()
    verb(f"data.systems.{_name}.snapshots", lambda _s=_system, **s: _s.snapshots(**s),
         {"key": key(), "n": number(5)}, {"low": number(-0.5), "high": number(0.5),
         "dtype": text("float32")}, weight=0.15, grows=True)
    verb(f"data.systems.{_name}.step", lambda x, _s=_system: _s.step(x),
         {"x": array(np.abs(X[:, :1 if _name == "Logistic" else 2]))}, weight=0.15, grows=True)
verb("data.systems.Linear", lambda matrix: data.systems.Linear(matrix).step(X),
     {"matrix": array(GRAM.astype(np.float32))}, weight=0.2, grows=True)
verb("data.systems.FermiPastaUlam", lambda **s: data.systems.FermiPastaUlam(**s).energy(
     np.zeros((2, 6), np.float32)), {"d": number(3)}, {"beta": number(0.7)}, weight=0.2, grows=True)
verb("data.systems.trajectory", data.systems.trajectory,
     {"step": function(lambda x: x / 2), "x": array(X), "steps": number(3)}, weight=0.2, grows=True)
verb("data.systems.runge_kutta", data.systems.runge_kutta,
     {"drift": function(lambda x: -x), "x": array(X), "dt": number(0.1), "substeps": number(2)},
     weight=0.2, grows=True)
