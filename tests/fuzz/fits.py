"""Verbs of observables and edmd."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from koopjax import edmd, observables as ob
from tests.fuzz.verbs import (
    D,
    N,
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

# observables ----------------------------------------------------------------------------------


def of(psi: Any):
    return lambda x: psi(x)


def monomials(x: np.ndarray) -> np.ndarray:
    """Degree 2 in graded order."""
    columns = [np.ones(len(x)), *x.T]
    columns += [x[:, i] * x[:, j] for i in range(x.shape[1]) for j in range(i, x.shape[1])]
    return np.stack(columns, 1)


def evaluate(name: str, psi: Any, wanted: Any = None, tolerance: float = 2e-3) -> None:
    verb(f"observables.{name}.__call__", of(psi), {"x": array(X)}, wanted=wanted,
         tolerance=tolerance)


def gaussians(centers: np.ndarray, bandwidth: float):
    return lambda x: np.exp(
        -((x[:, None] - centers[None].astype(np.float64)) ** 2).sum(2) / (2 * bandwidth**2)
    )


evaluate("Identity", ob.Identity(), lambda x: x)
evaluate("Monomials", ob.Monomials(2), lambda x: monomials(x) if x.ndim == 2 else None)
evaluate("Orthogonal", ob.Orthogonal(2))
evaluate("GaussianRBF", ob.GaussianRBF(X[:5], 0.7), gaussians(X[:5], 0.7))
evaluate("RandomFourier", ob.RandomFourier.create(jax.random.key(0), D, 8, 1.0))
evaluate("Product", ob.Product.of(ob.Polynomial1D(1), D))
evaluate("ProductKernel", ob.ProductKernel(ob.Product.of(ob.Polynomial1D(1), D), X[:5]))
evaluate("Custom", ob.Custom(jnp.sin, D), np.sin)
evaluate("Concat", ob.Concat(ob.Identity(), ob.Monomials(2)))
evaluate("Project", ob.Project.pca(X, 2))
evaluate("Select", ob.Select(ob.Monomials(2), [0, 2, 3]))
verb(
    "observables.Kronecker.__call__",
    of(ob.Kronecker.fit(np.tile(X, (1, 2)), (2, 3), (1, 2))),
    {"x": array(np.tile(X, (1, 2)))},
)
evaluate("Compose", ob.Compose(ob.Standardize.fit(X), ob.Monomials(2)))


def standardised(x: np.ndarray) -> Any:
    spread = x.std(0)
    far = np.abs((x - x.mean(0)) / np.where(spread > 0, spread, 1)).max() > 9
    if len(x) < 3 or far or spread.max() < 1e-36 or np.any(spread < 1e-3 * np.abs(x).max()):
        return None  # constant and far columns have rules of their own
    return (x - x.mean(0)) / spread


verb("observables.Standardize.fit", lambda x, **s: ob.Standardize.fit(x, **s)(x), {"x": array(X)},
     {"limit": number(10.0), "floor": number(1e-6)},
     wanted=lambda x, **s: None if s else standardised(x))
verb("observables.Standardize.fit_range", lambda x, **s: ob.Standardize.fit_range(x, **s)(x),
     {"x": array(X)}, {"lower": number(-1.0), "upper": number(1.0)})
verb("observables.Standardize.from_moments", ob.Standardize.from_moments,
     {"mean": array(X.mean(0)), "variance": array(X.var(0))},
     {"extent": array(np.abs(X).max(0)), "limit": number(10.0), "floor": number(1e-6)})
verb("observables.Standardize", lambda mean, scale: ob.Standardize(mean, scale)(X),
     {"mean": array(X.mean(0)), "scale": array(X.std(0))})
verb("observables.GaussianRBF.fit", lambda x, **s: ob.GaussianRBF.fit(x, **s)(X),
     {"x": array(X), "n_centers": number(4), "key": key()},
     {"bandwidth": number(1.0), "iterations": number(3), "max_samples": number(20)},
     weight=0.5)
verb("observables.GaussianRBF", lambda centers, bandwidth: ob.GaussianRBF(centers, bandwidth)(X),
     {"centers": array(X[:4]), "bandwidth": number(1.0)})
verb("observables.RandomFourier.create", lambda **s: ob.RandomFourier.create(**s)(X),
     {"key": key(), "d": number(D), "size": number(8), "bandwidth": number(1.0)},
     {"dtype": text("float32")})
verb("observables.Project.pca", lambda x, **s: ob.Project.pca(x, **s)(X),
     {"x": array(X), "rank": number(2)},
     {"metric": array(np.eye(D, dtype=np.float32)), "whiten": flag(True)}, weight=0.5)
verb("observables.Project.active_subspace", lambda **s: ob.Project.active_subspace(**s)(X),
     {"x": array(X), "gradients": array(Y), "rank": number(2)},
     {"weighted": flag(True), "whiten": flag(True)}, weight=0.5)
verb("observables.Project", lambda matrix, **s: ob.Project(matrix, **s)(X),
     {"matrix": array(Y[:D, :2])}, {"mean": array(X[0])})
verb("observables.Kronecker.fit", lambda x, **s: ob.Kronecker.fit(x, **s)(np.tile(X, (1, 2))),
     {"x": array(np.tile(X, (1, 2))), "shape": sequence(2, 3), "ranks": sequence(1, 2)},
     weight=0.5)
verb("observables.Monomials", lambda degree: ob.Monomials(degree)(X), {"degree": number(2)},
     weight=0.5)
verb("observables.Orthogonal", lambda **s: ob.Orthogonal(**s)(X), {"degree": number(2)},
     {"family": text("chebyshev")}, weight=0.5)
verb("observables.Select", lambda psi, indices: ob.Select(psi, indices)(X),
     {"psi": thing(lambda: ob.Monomials(2)), "indices": sequence(0, 2, 3)})
verb("observables.Compose", lambda first, then: ob.Compose(first, then)(X),
     {"first": thing(lambda: ob.Standardize.fit(X)), "then": thing(lambda: ob.Monomials(2))},
     weight=0.5)
verb("observables.Concat", lambda parts: ob.Concat(parts)(X),
     {"parts": sequence(ob.Identity(), ob.Monomials(2))}, weight=0.5)
verb("observables.Custom", lambda function, size, **s: ob.Custom(function, size, **s)(X),
     {"function": function(lambda x: jnp.sin(x)), "size": number(D)},
     {"labels": sequence("a", "b", "c")})
verb("observables.Neural", lambda module: ob.Neural(module)(X),
     {"module": thing(lambda: (lambda p, x: x * p, jnp.ones(D)))})
verb("observables.Product", lambda factors: ob.Product(factors)(X),
     {"factors": sequence(*[ob.Polynomial1D(1)] * 3)}, weight=0.5)
verb("observables.Product.of", lambda factor, d: ob.Product.of(factor, d)(X),
     {"factor": thing(lambda: ob.Polynomial1D(1)), "d": number(D)}, weight=0.5)
verb("observables.Polynomial1D", lambda degree, **s: ob.Product.of(
        ob.Polynomial1D(degree, **s), D)(X),
     {"degree": number(1)}, {"family": text("legendre")}, weight=0.3)
verb("observables.Trigonometric", lambda order, **s: ob.Product.of(
        ob.Trigonometric(order, **s), D)(X), {"order": number(1)}, {"scale": number(1.0)},
     weight=0.3)
verb("observables.Gaussian1D", lambda **s: ob.Product.of(ob.Gaussian1D(**s), D)(X),
     {"centers": array(X[:2, 0])}, {"bandwidth": number(1.0)}, weight=0.3)
verb("observables.CosSin", lambda scale: ob.Product.of(ob.CosSin(scale), D)(X),
     {"scale": number(0.5)}, weight=0.3)
verb("observables.ProductKernel", lambda product, centers, **s: ob.ProductKernel(
        product, centers, **s)(X),
     {"product": thing(lambda: ob.Product.of(ob.Polynomial1D(1), D)), "centers": array(X[:4])},
     {"degree": number(4), "rank": number(3)}, weight=0.3)
verb("observables.ProductKernel.times", lambda x, matrix, **s: ob.ProductKernel(
        ob.Product.of(ob.Polynomial1D(1), D), X[:5]).times(x, matrix, **s),
     {"x": array(X), "matrix": array(Y[:5, :2])}, {"rows": number(4)}, weight=0.05)
verb("observables.size", lambda psi, d: psi.size(d), {
     "psi": thing(lambda: ob.Monomials(2)), "d": number(D)}, weight=0.3)
verb("observables.names", lambda d, **s: ob.Monomials(2).names(d, **s), {"d": number(D)},
     {"inputs": sequence("a", "b", "c")}, weight=0.3)
verb("observables.bytes_needed", ob.bytes_needed,
     {"psi": thing(lambda: ob.Monomials(2)), "n": number(N), "d": number(D)},
     {"dtype": text("float32")}, weight=0.3)
verb("observables.fits", ob.fits,
     {"psi": thing(lambda: ob.Monomials(2)), "d": number(D), "memory": number(10**6)},
     {"rows": number(5), "squares": number(2)}, weight=0.3)
verb("observables.largest_degree", ob.largest_degree, {"d": number(D), "limit": number(100)},
     weight=0.3)
verb("observables.largest_dimension", ob.largest_dimension,
     {"degree": number(2), "limit": number(100)}, weight=0.3)
verb("observables.contains_state", ob.contains_state,
     {"psi": thing(lambda: ob.Monomials(2)), "d": number(D)}, weight=0.3)

# edmd -----------------------------------------------------------------------------------------


def affine(x: np.ndarray, y: np.ndarray, **settings: Any) -> Any:
    """What the best affine map predicts, where the data say which it is."""
    if set(settings) - {"psi", "target"} or x.ndim != 2 or y.ndim != 2 or len(x) <= 6:
        return None
    if not isinstance(settings.get("psi"), ob.Monomials) or settings["psi"].degree != 1:
        return None
    lifted = np.concatenate([np.ones((len(x), 1)), (x - x.mean(0)) / x.std(0)], 1)
    if np.iscomplexobj(lifted) or not np.linalg.cond(lifted) < 50:
        return None
    return np.abs(lifted @ np.linalg.lstsq(lifted, y, rcond=None)[0])


def fitted(psi: Any, x: Any, y: Any, **settings: Any) -> Any:
    fit = edmd.fit(psi, x, y, **settings)
    return fit, fit.predict(x)


PSI = thing(lambda: ob.Monomials(1))
FIT = {"psi": PSI, "x": array(X), "y": array(Y)}
SOLVERS = {
    "target": thing(lambda: ob.Identity()), "solver": thing(lambda: edmd.Ridge(1e-3)),
    "statistics": text("rfactor"), "weights": array(W), "batch_size": number(10),
    "accumulate_dtype": text("float32"), "memory_limit": number(10**8),
}
verb("edmd.fit", edmd.fit, FIT, SOLVERS, weight=3)
verb("edmd.fit and predict", fitted, {**FIT, "target": thing(lambda: ob.Identity())},
     wanted=affine, part=lambda r: np.abs(np.asarray(r[1])), weight=3)
verb("edmd.fit of a standardised state",
     lambda x, y: (fit := edmd.fit(ob.Compose(ob.Standardize.fit(x), ob.Monomials(1)), x, y,
                                   target=ob.Identity()), fit.predict(x)),
     {"x": array(X), "y": array(Y)}, part=lambda r: np.abs(np.asarray(r[1])),
     wanted=lambda x, y: affine(x, y, psi=ob.Monomials(1)), weight=2)
verb("edmd.accumulate", edmd.accumulate, FIT, {k: SOLVERS[k] for k in (
     "target", "weights", "batch_size", "accumulate_dtype", "memory_limit")}
     | {"statistics": text("gram"), "folds": number(3)})


@once
def koopman() -> Any:
    return edmd.fit(ob.Monomials(1), X, Y)


@once
def to_state() -> Any:
    return edmd.fit(ob.Monomials(2), X, Y, target=ob.Identity())


@once
def gram() -> Any:
    return edmd.accumulate(ob.Monomials(1), X, Y)


@once
def folds() -> Any:
    return edmd.accumulate(ob.Monomials(1), X, Y, folds=3)


verb("edmd.Koopman.predict", lambda **s: koopman().predict(**s), {"x": array(X)},
     {"steps": number(2)}, grows=True)
verb("edmd.Koopman.predict to the state", lambda **s: to_state().predict(**s), {"x": array(X)},
     {"steps": number(1)}, grows=True)
verb("edmd.Koopman.simulate", lambda **s: koopman().simulate(**s),
     {"x": array(X), "steps": number(3)}, grows=True)
verb("edmd.Koopman.residuals", lambda **s: koopman().residuals(**s),
     {"x": array(X), "y": array(Y)}, {"weights": array(W), "batch_size": number(10)})
verb("edmd.Koopman.eigenfunctions", lambda x: koopman().eigenfunctions(x), {"x": array(X)})
verb("edmd.Koopman.eigenvalues", lambda: koopman().eigenvalues(), {}, weight=0.05)
verb("edmd.Koopman.modes", lambda: koopman().modes(), {}, weight=0.05)
verb("edmd.Gram.from_batch", edmd.Gram.from_batch, {"psi_x": array(X), "psi_y": array(Y)},
     {"weights": array(W)}, part=lambda r: r.gram,
     wanted=lambda psi_x, psi_y, weights=None:
         (psi_x * (1 if weights is None else weights[:, None])).T @ psi_x)
verb("edmd.RFactor.from_batch", edmd.RFactor.from_batch, {"psi_x": array(X), "psi_y": array(Y)},
     {"weights": array(W)}, part=lambda r: r.r[:3].T @ r.r[:3, :3],
     wanted=None)
verb("edmd.Gram.update", lambda **s: gram().update(**s),
     {"psi_x": array(np.tile(X, 2)[:, :4]), "psi_y": array(np.tile(Y, 2)[:, :4])},
     {"weights": array(W)}, weight=0.5)
verb("edmd.Gram.merge", lambda other: gram().merge(other), {"other": thing(gram)}, weight=0.5)
verb("edmd.Gram.scale", lambda factor: gram().scale(factor), {"factor": number(2.0)}, weight=0.5)
verb("edmd.Gram.select", lambda **s: gram().select(**s), {"indices": sequence(0, 2)},
     {"targets": sequence(1, 2)}, weight=0.5)
verb("edmd.Gram.empty", edmd.Gram.empty, {"p": number(3), "q": number(2)},
     {"dtype": text("float32")}, weight=0.3)
verb("edmd.Gram.astype", lambda dtype: gram().astype(dtype), {"dtype": text("float32")},
     weight=0.3)
verb("edmd.solve", edmd.solve, {"statistics": thing(gram)},
     {"solver": thing(lambda: edmd.Ridge(1e-3)), "dtype": text("float32")})
for _name, _make, _settings in (
    ("Ridge", edmd.Ridge, {"alpha": number(1e-3), "relative": number(1e-6)}),
    ("TruncatedSVD", edmd.TruncatedSVD, {"rank": number(2)}),
    ("ReducedRank", edmd.ReducedRank, {"rank": number(2), "alpha": number(1e-3),
                                       "metric": array(np.eye(4, dtype=np.float32))}),
):
    verb(f"edmd.{_name}", lambda _make=_make, **s: edmd.solve(gram(), _make(**s)), _settings)
verb("edmd.CrossValidated", lambda solver, **s: edmd.solve(folds(), edmd.CrossValidated(
        solver, **s)), {"solver": thing(lambda: edmd.Ridge())},
     {"grid": sequence(1e-4, 1e-2), "rule": text("min"), "folds": number(3)}, weight=0.5)
verb("edmd.low_rank", edmd.low_rank, {"statistics": thing(gram),
     "solver": thing(lambda: edmd.ReducedRank(2))}, weight=0.5)
verb("edmd.total", edmd.total, {"stacked": thing(folds)}, weight=0.3)
verb("edmd.leave_one_out", edmd.leave_one_out, {"stacked": thing(folds)}, weight=0.3)
verb("edmd.unwrap", edmd.unwrap, {"solution": thing(koopman)}, {"allow": sequence(0, 1)},
     weight=0.2)
verb("edmd.generator", edmd.generator,
     {"psi": thing(lambda: ob.Monomials(2)), "x": array(X), "drift": function(lambda x: -x)},
     {"diffusion": function(lambda x: jnp.eye(D)), "weights": array(W),
      "batch_size": number(10)}, weight=0.5)
