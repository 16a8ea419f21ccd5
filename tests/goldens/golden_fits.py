"""Dictionaries of observables, and EDMD fits on them by every solver."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx

from koopjax import edmd, observables as ob

rng = np.random.default_rng(20240217)
D = 3


def drawn(*shape, scale=1.0):
    return (scale * rng.normal(size=shape)).astype(np.float32)


X = drawn(60, D, scale=0.7)
MIX = np.array([[0.9, 0.35, 0.0], [-0.3, 0.7, 0.2], [0.1, 0.0, 0.4]], np.float32)
Y = (X @ MIX + 0.2 * np.tanh(X) * X[:, [1, 2, 0]] + 0.01 * drawn(60, D)).astype(np.float32)
HELD = drawn(8, D, scale=0.7)
WIDE = drawn(60, 6)
WEIGHTS = rng.uniform(0.5, 2.0, size=60).astype(np.float32)
CENTERS = drawn(6, D)
DIRECTIONS = drawn(D, 3)
HIDDEN = drawn(D, 4, scale=0.5)
ROOT = drawn(10, 10, scale=0.3)


def entries(columns):
    """A dictionary with one array for each name from rows that all have these names."""
    return {name: np.array([row[name] for row in columns]) for name in columns[0]}


def spectrum(values):
    """Eigenvalues whatever the order among those of one modulus: moduli, and sums of powers."""
    values = np.asarray(values, np.complex128)
    return {
        "moduli": np.abs(values),
        "powers": np.array([np.sum(values**k) for k in range(1, 5)]).real,
    }


class LinenNet(linen.Module):
    """One layer, its weights given."""

    @linen.compact
    def __call__(self, x):
        return linen.tanh(linen.Dense(4)(x))


def nnx_net():
    layer = nnx.Linear(D, 4, rngs=nnx.Rngs(0))
    layer.kernel[...] = jnp.asarray(HIDDEN)
    return nnx.Sequential(layer, jnp.tanh)


def pair(x):
    return jnp.stack([x[0] * x[1], jnp.sin(x[2])])


def scaled(params, x):
    return x * params[None, :]


MIXED = [ob.Trigonometric(1, 0.5), ob.CosSin(0.7), ob.Gaussian1D(np.array([-1.0, 1.0]), 0.8)]
LINEN = {"params": {"Dense_0": {"kernel": HIDDEN, "bias": np.zeros(4, np.float32)}}}
GRADIENTS = np.cos(X) * np.array([[1.0, 0.2, 0.5]], np.float32)

#: Of ten observables each, so that all solves share their programs.
TEN = {
    "monomials": lambda: ob.Monomials(2),
    "hermite": lambda: ob.Orthogonal(2),
    "standardized": lambda: ob.Compose(ob.Standardize.fit(X), ob.Monomials(2)),
    "rbf": lambda: ob.Concat(ob.Monomials(1), ob.GaussianRBF(CENTERS, 1.5)),
    "fourier": lambda: ob.Concat(ob.Monomials(1), ob.RandomFourier(DIRECTIONS, 2.0, 6)),
    "product": lambda: ob.Select(ob.Product(MIXED), [0, 1, 2, 4, 5, 7, 9, 11, 13, 16]),
    "kernel": lambda: ob.ProductKernel.fit(ob.Product.of(ob.CosSin(0.4), D), X[:10]),
    "neural": lambda: ob.Concat(ob.Monomials(1), ob.Neural(nnx_net()), ob.Custom(pair, 2)),
}
DICTIONARIES = {
    **TEN,
    "identity": ob.Identity,
    "monomials 3": lambda: ob.Monomials(3),
    "hermite 3": lambda: ob.Orthogonal(3),
    "legendre": lambda: ob.Orthogonal(3, "legendre"),
    "chebyshev": lambda: ob.Orthogonal(3, "chebyshev"),
    "rbf widths": lambda: ob.GaussianRBF(CENTERS, np.linspace(0.5, 1.5, 6)),
    "rbf fitted": lambda: ob.GaussianRBF.fit(X, 5, jax.random.key(1)),
    "fourier drawn": lambda: ob.RandomFourier.create(jax.random.key(2), D, 5, 1.5),
    "polynomials": lambda: ob.Product([ob.Polynomial1D(2, f) for f in ("hermite", "legendre")]
                                      + [ob.Polynomial1D(1, "chebyshev")]),
    "mixed": lambda: ob.Product(MIXED),
    "kernel mixed": lambda: ob.ProductKernel(ob.Product(MIXED), CENTERS, 0),
    "linen": lambda: ob.Neural((LinenNet(), LINEN)),
    "function": lambda: ob.Neural((scaled, np.array([1.0, 2.0, 3.0], np.float32))),
    "custom": lambda: ob.Custom(pair, 2, labels=("a", "b")),
    "custom params": lambda: ob.Custom(scaled, D, np.array([2.0, 1.0, 0.5], np.float32)),
    "range": lambda: ob.Compose(ob.Standardize.fit_range(X), ob.Orthogonal(2, "chebyshev")),
    "shift": lambda: ob.Standardize(np.arange(3.0, dtype=np.float32)),
    "pca": lambda: ob.Project.pca(X, 2, whiten=True),
    "pca metric": lambda: ob.Project.pca(X, 2, metric=MIX @ MIX.T),
    "active": lambda: ob.Project.active_subspace(X, GRADIENTS, 2),
    "nested": lambda: ob.Compose(
        ob.Standardize.fit(X),
        ob.Compose(ob.Project.pca(X, 2), ob.Concat(ob.Orthogonal(2), ob.Identity())),
    ),
    "select": lambda: ob.Select(ob.Monomials(3), [19, 4, 4, 0]),
}  # fmt: skip


def evaluated(name):
    psi = DICTIONARIES[name]()
    return {"values": psi(HELD), "names": psi.names(D), "size": psi.size(D)}


def kronecker():
    psi = ob.Kronecker.fit(WIDE, (2, 3), (1, 2))
    return {"values": psi(WIDE[:8]), "names": psi.names(6), "size": psi.size(6)}


def sizes():
    """What is known before there are data."""
    known = ob.fits(ob.Monomials(2), 100, 2**20)
    return {
        "largest": [ob.largest_degree(50, 10_000), ob.largest_dimension(3, 10_000)],
        "bytes": ob.bytes_needed(ob.Monomials(3), 60, 20),
        "fits": [known.ok, known.size, known.needed, known.largest],
        "columns": ob.contains_state(ob.Monomials(2), D),
    }


ALPHAS, RANKS = [1e-3, 1.0, 100.0], [2, 9]
SOLVERS = {
    "ridge": edmd.Ridge(0.1),
    "relative": edmd.Ridge(relative=0.01),
    "truncated": edmd.TruncatedSVD(4),
    "metric": edmd.ReducedRank(3, ROOT @ ROOT.T, 0.1),
    "ridge validated": edmd.CrossValidated(edmd.Ridge(), ALPHAS),
    "both validated": edmd.CrossValidated(
        edmd.ReducedRank(1), {"alpha": ALPHAS, "rank": RANKS}, "one_se"
    ),
}
NUMBERS = ("rank", "condition", "cancellation", "residual", "alpha", "count")


def about(info, result):
    return {name: np.asarray(getattr(info, name)) for name in NUMBERS} | {
        "result": np.asarray(result),
        "statistics": info.statistics,
        "dtype": info.dtype,
    }


def solved(name, kind, solvers):
    """Several solvers from the statistics of one dictionary."""
    psi = TEN[name]()
    folds = edmd.accumulate(psi, X, Y, statistics=kind, folds=5)
    whole, lifted = edmd.total(folds), np.asarray(psi(HELD))
    rows, scores = [], []
    for label in solvers:
        solver = SOLVERS[label]
        chosen = solver.folds is not None
        found = edmd.solve(folds if chosen else whole, solver)
        matrix = np.asarray(found.value, np.float32)
        told = about(found.info, found.result)
        rows.append({"matrix": matrix, "prediction": lifted @ matrix, **told})
        scores += [np.ravel(found.info.scores)] if chosen else []
    return entries(rows) | ({"scores": np.concatenate(scores)} if scores else {})


def operator():
    """A fit by the statistics that it chooses itself, and what is asked of it."""
    fit = edmd.fit(TEN["standardized"](), X, Y, solver=edmd.Ridge(0.1))
    functions, modes = np.asarray(fit.eigenfunctions(HELD)), np.asarray(fit.modes())
    return {
        "prediction": fit.predict(HELD),
        "readout": fit.readout,
        "reason": fit.info.reason,
        **about(fit.info, fit.result),
        **spectrum(fit.eigenvalues()),
        "states": (functions @ modes).real,
        "dual": (np.conj(np.asarray(fit.left)).T @ np.asarray(fit.right)).real,
        "steps": fit.predict(HELD, 3),
        "residuals": fit.residuals(X, Y),
    }


def rectangular():
    """Onto the state: with weights, from a stream, without a ridge."""
    psi, solver, state = ob.Monomials(2), edmd.Ridge(0.1), ob.Identity()
    batches = [(X[:30], Y[:30]), (X[30:], Y[30:])]
    fits = {
        "state": edmd.fit(psi, X, Y, target=state, solver=solver),
        "weighted": edmd.fit(psi, X, Y, target=state, solver=solver, weights=WEIGHTS),
        "stream": edmd.fit(psi, batches, target=state, solver=solver),
        "plain": edmd.fit(psi, X, Y, target=state, statistics="gram"),
    }
    rows = [
        {"matrix": fit.matrix, "reason": fit.info.reason, **about(fit.info, fit.result)}
        for fit in fits.values()
    ]
    return {"fits": list(fits), "prediction": fits["state"].predict(HELD), **entries(rows)}


def statistics(kind):
    """Sums, selections and multiples, as second moments."""
    psi = TEN["monomials"]()
    folds = edmd.accumulate(psi, X, Y, statistics=kind, folds=5, weights=WEIGHTS)
    whole = edmd.total(folds)
    forms = {
        "total": whole,
        "scaled": whole.scale(2.0),
        "selected": whole.select(np.array([0, 3, 9]), np.array([1, 2])),
        "targets": whole.of_targets(4),
    }
    out = {}
    for name, form in forms.items():
        gram = form.to_gram()
        out |= {name: np.asarray(gram.cross, np.float32), f"{name} count": np.asarray(gram.count)}
    return out


def drift(x):
    return x @ jnp.asarray(MIX - 1.5 * np.eye(D, dtype=np.float32))


def generator():
    fit = edmd.generator(ob.Monomials(2), X, drift, 0.3 * MIX, solver=edmd.Ridge(1e-3))
    return {
        **spectrum(fit.eigenvalues()),
        "falling": np.asarray(fit.eigenvalues()).real,
        "matrix": fit.matrix,
        "prediction": fit.predict(HELD, 0.5),
        **about(fit.info, fit.result),
    }


CASES = {
    **{f"psi {name}": functools.partial(evaluated, name) for name in DICTIONARIES},
    "psi kronecker": kronecker,
    "sizes": sizes,
    **{f"solve {name}": functools.partial(solved, name, "gram", SOLVERS) for name in TEN},
    "solve factors": functools.partial(solved, "monomials", "rfactor", ("ridge", "truncated")),
    "fit": operator,
    "fit onto the state": rectangular,
    "gram": functools.partial(statistics, "gram"),
    "generator": generator,
}
