"""Tensor trains: their algebra, the fits over product dictionaries, sweeps over ranks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from koopjax import analysis, edmd, observables as ob, sweep, tensor_edmd, tt
from tests.goldens.golden_fits import GRADIENTS, HELD, MIX, WIDE, X, Y, spectrum

#: Solved in single precision.
LOOSE = {"kernel": 1e-4, "kernel landmarks": 1e-4}

rng = np.random.default_rng(20240218)


def drawn(*shape):
    return rng.normal(size=shape).astype(np.float32)


KEY = jax.random.key
METRIC = 0.5 * np.eye(3, dtype=np.float32) + MIX @ MIX.T
VECTORS = [[drawn(n) for n in (4, 3, 4)] for _ in range(3)]
DENSE = sum(0.2**k * np.einsum("i,j,k", *v) for k, v in enumerate(VECTORS)).astype(np.float32)
OTHER = drawn(4, 3, 4)
MATRIX, INPUTS = drawn(6, 6), drawn(12, 6)


def product():
    return ob.Product.of(ob.Polynomial1D(2, "legendre"), 3)


def told(fit):
    """What a fit over a product dictionary predicts, and says of itself."""
    return {
        "prediction": fit.predict(HELD),
        "ranks": fit.ranks,
        "numbers": fit.numbers,
        **{name: getattr(fit.info, name) for name in ("condition", "residual", "alpha", "count")},
        "method": fit.info.method,
        "result": fit.result,
    }


def function_major():
    psi = tensor_edmd.FunctionMajor(product())
    return {"values": psi(HELD), "names": psi.names(3), "modes": psi.modes(3)}


def mandy():
    fit = tensor_edmd.mandy(product(), X, Y, alpha=0.1)
    values = np.concatenate([np.asarray(v) for v in fit.singular_values()])
    return {**told(fit), "values": values}


def mandy_degree():
    """Of latent coordinates, to a total degree, the rank cut."""
    psi = ob.Compose(tensor_edmd.latent(X, rank=3), product())
    return told(tensor_edmd.mandy(psi, X, Y, total_degree=2, max_rank=2))


def amuset(method):
    fit = tensor_edmd.amuset(product(), X, Y, rtol=1e-6, max_rank=6, method=method)
    out = {"ranks": fit.ranks, "result": fit.result, **spectrum(fit.eigenvalues())}
    out |= {"condition": fit.info.condition, "residual": fit.info.residual}
    if method == "hosvd":
        states = np.asarray(fit.eigenfunctions(HELD)) @ np.asarray(fit.modes())
        out |= {"states": states.real, "residuals": fit.residuals(X, Y)}
    return out


def als():
    """Ranks by tolerance, the best on validation samples in a metric; shares of the variance."""
    fit = tensor_edmd.als(
        product(), X, Y, 1, KEY(1), alpha=0.1, sweeps=3, adaptive=True, rtol=0.03, max_rank=4,
        x_val=HELD, y_val=HELD @ MIX, metric=METRIC,
    )  # fmt: skip
    shares = analysis.interaction_spectrum(fit, X)
    return {
        **told(fit),
        "history": fit.info.history,
        "orders": [*shares.orders, shares.beyond],
        "pairs": shares.pairs,
    }


def kernel(**settings):
    fit = tensor_edmd.kernel(product(), X, Y, **settings)
    numbers = ("condition", "residual", "alpha", "count", "landmarks", "method", "dtype")
    out = {name: getattr(fit.info, name) for name in numbers}
    out |= {} if fit.info.scores is None else {"scores": fit.info.scores}
    return {**out, "prediction": fit.predict(HELD), "result": fit.result, "numbers": fit.numbers}


def latent():
    """Projections of every kind and orders, as what they make of states."""
    make = tensor_edmd.latent
    return {
        "pca": make(X, rank=2)(HELD),
        "output": make(X, Y, rank=2, kind="output", metric=METRIC, order="correlation")(HELD),
        "active": make(X, rank=2, kind="active_subspace", gradients=GRADIENTS)(HELD),
        "correlation": np.asarray(tensor_edmd.order_by_correlation(WIDE).indices),
        "chain": np.asarray(tensor_edmd.order_by_correlation(WIDE, method="chain").indices),
        "binned": np.asarray(tensor_edmd.order_by_mutual_information(WIDE, bins=3).indices),
    }


def approximate():
    """A matrix in the metric of inputs, its rows put in order."""
    gram = INPUTS.T @ INPUTS / len(INPUTS)
    fit = tensor_edmd.approximate(
        MATRIX, (2, 3), (3, 2), 2, gram=gram, row_order="search", sweeps=4
    )
    return {
        "dense": fit.to_dense(),
        "ranks": fit.ranks,
        "rows": np.asarray(fit.row_order),
        "history": fit.info.history,
        "start": fit.info.start,
        "result": fit.result,
    }


def columns(table):
    return {name: table[name] for name in table.columns}


def reduced_ranks():
    halves = slice(0, 30), slice(30, 60)
    psi, target = ob.Monomials(2), ob.Identity()
    train, held = (edmd.accumulate(psi, X[i], Y[i], target=target) for i in halves)
    table = sweep.ranks(train, [1, 2], metric=METRIC, alpha=[0.1, 1.0], validation=held)
    left, right = (np.asarray(a) for a in table.fit(2, 0.1))
    best = table.best("validation_error")["rank"]
    return {**columns(table), "matrix": left @ right, "best": best}


def train_ranks():
    """ALS at several ranks and seeds, padded to one size."""
    table = sweep.ranks(product(), X, Y, [1, 3], KEY(0), alpha=[0.1, 1.0], sweeps=2, buckets=(3,))
    return {**columns(table), "prediction": table.fit(3, 0.1).predict(HELD)}


def ridge(x, y, alpha, degree):
    k = jnp.sum(x**degree * y) / (jnp.sum(x ** (2 * degree)) + alpha)
    return {"slope": k, "fitted": k * x[:3, 0]}


def grid():
    axes = {"degree": [1, 3], "alpha": [0.1, 1.0, 10.0]}
    table = sweep.grid(ridge, axes, data=(X, Y), static="degree", chunk=2)
    return {**columns(table), "fitted": np.array(table.arrays["fitted"])}


def dense():
    """A tensor as a train, rounded by tolerance and by rank."""
    exact, info = tt.from_dense(DENSE, return_info=True)
    rounded, lost = tt.round(tt.from_dense(OTHER), rtol=0.3, return_info=True)
    trains = {"exact": exact, "loose": tt.from_dense(DENSE, rtol=0.03), "rounded": rounded}
    return {
        **{f"{name} ranks": train.ranks for name, train in trains.items()},
        **{name: train.to_dense() for name, train in trains.items()},
        "error": [info.error, lost.error],
        "clipped": tt.round(exact, max_rank=50, return_info=True)[1].clipped,
        "values": np.concatenate([np.asarray(s) for s in tt.singular_values(exact)]),
    }


def algebra():
    a, b = tt.from_dense(DENSE, max_rank=2), tt.from_dense(OTHER, max_rank=2)
    matrix = tt.matrix_from_dense(MATRIX, (2, 3), (3, 2), max_rank=3)
    total = tt.add(a, b)
    return {
        "sum": total.to_dense(),
        "truncated": tt.truncate(tt.pad(total, 4), 2).to_dense(),
        "numbers": [tt.dot(a, b), tt.norm(a)],
        "entries": tt.entries(a, np.array([[0, 1, 2], [3, 2, 0]])),
        "matrix": matrix.to_dense(),
        "applied": tt.apply_matrix(matrix, INPUTS),
    }


def quantized():
    row = tt.rank_one([np.cos(np.arange(16, dtype=np.float32)), np.ones(4, np.float32)])
    found = tt.quantize(row)
    return {
        "ranks": found.ranks,
        "dense": found.to_dense(),
        "back": found.to_dense().reshape(16, 4),
    }


def crossed():
    train, info = tt.cross(lambda i: 1 / (1 + i.sum(axis=1)), (6,) * 4, KEY(0), rtol=1e-3)
    return {"ranks": train.ranks, "dense": train.to_dense()[::2, ::2, ::2], "done": info.converged}


CASES = {
    "function major": function_major,
    "mandy": mandy,
    "mandy degree": mandy_degree,
    "amuset": functools.partial(amuset, "hosvd"),
    "amuset kernel": functools.partial(amuset, "kernel"),
    "als": als,
    "kernel": functools.partial(kernel, alpha=[1.0, 30.0], x_val=HELD, y_val=HELD @ MIX),
    "kernel landmarks": functools.partial(
        kernel, alpha=1.0, method="nystrom", centers=X[:12], tolerance=1e-6
    ),
    "latent": latent,
    "approximate": approximate,
    "reduced ranks": reduced_ranks,
    "train ranks": train_ranks,
    "grid": grid,
    "dense": dense,
    "algebra": algebra,
    "quantized": quantized,
    "cross": crossed,
}
