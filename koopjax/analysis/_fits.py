"""From one pass over the snapshots to every dictionary, ridge, target, truncation and rank."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from koopjax import edmd, observables
from koopjax._core import (
    ILL_CONDITIONED,
    NONFINITE_SOLUTION,
    SUCCESS,
    expected,
    has_float64,
    matmul,
    precise,
    pytree,
    semidefinite_root,
)
from koopjax.analysis._scores import evaluate, in_blocks, run
from koopjax.analysis._span import Flow, Span

#: Ridges that are tried, in units of the mean squared column norm of the dictionary.
ALPHAS = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
# Up to this many observables the least eigenvalue is computed; above, zero bounds it from below.
EXACT = 1024


@pytree
class Forms:
    """A Koopman matrix in factors whose leading parts are its truncations.

    Attributes:
        matrix: `(p, q)`.
        values: singular values of K.
        svd: `(left, right)` by plain singular values.
        output: `(left, right)` by the prediction in the output's metric.
    """

    matrix: Any
    values: Any
    svd: Any
    output: Any


@dataclasses.dataclass(frozen=True)
class Fit:
    """One dictionary solved for one target.

    Attributes:
        psi: the dictionary.
        target: "state" or "logits".
        alpha: relative ridge.
        forms: `Forms` of the Koopman matrix, in the dtype of the snapshots.
        condition: bound on the condition number of the ridge problem.
        result: result code.
    """

    psi: Any
    target: str
    alpha: float
    forms: Any
    condition: float
    result: int


def _truncations(k: Array, cross: Array, metric: Array | None) -> Forms:
    """All truncations of K from K, `Ψxᵀ Ψy` and the metric (None: the identity).

    With a ridge `(G + αI) K = C`, so `Kᵀ C` is the Gram matrix of the (augmented) prediction: its
    eigenvectors in the metric are those of reduced-rank regression, without G.
    """
    u, s, vt = jnp.linalg.svd(k, full_matrices=False)
    metric = jnp.eye(k.shape[1], dtype=k.dtype) if metric is None else metric
    # Directions that the metric ignores keep a small weight of their own.
    found = semidefinite_root(metric, float(jnp.finfo(metric.dtype).eps) ** 0.75)
    root, inverse = found.symmetric, found.inverse
    energy = matmul(matmul(root, matmul(k.T, cross)), root)
    w = jnp.linalg.eigh((energy + energy.T) / 2)[1][:, ::-1][:, : s.shape[0]]
    output = (matmul(matmul(k, root), w), matmul(w.T, inverse))
    return Forms(k, s, (u * s[None, :], vt), output)


def _condition(gram: Array, ridge: Array) -> Array:
    """Condition number of the ridge problem, in singular values; an upper bound for large p."""
    p = gram.shape[0]
    if p <= EXACT:
        values = jnp.linalg.eigvalsh(gram)
        low, high = jnp.maximum(values[0], 0), values[-1]
    else:
        # Power iteration: accurate to a few per cent, which is enough for a condition number.
        tiny = jnp.finfo(gram.dtype).tiny
        step = lambda _, v: (w := matmul(gram, v)) / jnp.maximum(jnp.linalg.norm(w), tiny)
        v = jax.lax.fori_loop(0, 20, step, jnp.ones((p, 1), gram.dtype))
        low, high = jnp.zeros((), gram.dtype), jnp.linalg.norm(matmul(gram, v))
    return jnp.sqrt((high + ridge) / jnp.maximum(low + ridge, jnp.finfo(gram.dtype).tiny))


def _ridge(gram: Array, cross: Array, alpha: Array) -> tuple[Array, Array]:
    """`(G + αI)⁻¹ C` for a ridge relative to the mean squared column norm, and the absolute ridge.

    Without the diagnosis of `edmd.solve`: a ladder solves for many ridges, and the singular values
    of thousands of observables for each would cost more than everything else together. Columns
    are scaled to unit norm for the Cholesky factor; NaN where it breaks down, which is flagged.
    """
    ridge = alpha * jnp.mean(jnp.diagonal(gram))
    d = jax.lax.rsqrt(jnp.diagonal(gram) + ridge)
    scaled = d[:, None] * gram * d[None, :] + jnp.diag(ridge * d * d)
    factor = (jnp.linalg.cholesky(scaled, symmetrize_input=False), True)
    return d[:, None] * jax.scipy.linalg.cho_solve(factor, d[:, None] * cross), ridge


@functools.partial(jax.jit, static_argnames=("size", "dtype"))
def _solve(stats: edmd.Gram, alpha: Array, *, size: int, dtype: Any) -> Array:
    return _ridge(stats.gram[:size, :size], stats.cross[:size], alpha)[0].astype(dtype)


@functools.partial(jax.jit, static_argnames=("size", "columns", "dtype"))
def _fit(
    stats: edmd.Gram, alphas: Array, metric: Array, *, size: int, columns: tuple, dtype: Any
) -> list[tuple[Forms, Array, Array]]:
    """For each target the truncations, the condition, and whether all is finite."""
    gram, found = stats.gram[:size, :size], []
    for i, (target, start, stop) in enumerate(columns):
        cross = stats.cross[:size, start:stop]
        k, ridge = _ridge(gram, cross, alphas[i])
        forms = _truncations(k, cross, metric.astype(k.dtype) if target == "state" else None)
        forms = jax.tree.map(lambda a: a.astype(dtype), forms)
        found.append((forms, _condition(gram, ridge), jnp.isfinite(k).all()))
    return found


def _fits_of(psi, stats, size, alphas, columns, metric, dtypes) -> dict[str, Fit]:
    """One dictionary of a size for every target.

    The dtypes are those of the results, rounded to once, and of the sums, which the result codes
    judge by.
    """
    dtype, sums = dtypes
    spans = tuple((t, c.start, c.stop) for t, c in columns.items())
    with precise(stats):
        ridges = np.asarray([alphas[t] for t in columns], stats.dtype)
        found = _fit(stats, ridges, metric, size=size, columns=spans, dtype=dtype)
    eps = float(jnp.finfo(sums).eps)
    fits = {}
    for target, (forms, condition, finite) in zip(columns, found, strict=True):
        condition = float(condition)
        code = SUCCESS if condition**2 * eps <= eps**0.5 else ILL_CONDITIONED
        code = code if finite else NONFINITE_SOLUTION
        fits[target] = Fit(psi, target, alphas[target], forms, condition, code)
    return fits


def _is_leading(child: Any, parent: Any, x: Any) -> bool:
    """Whether a dictionary's columns are the first ones of another, as far as samples tell."""
    size = child.size(x.shape[1])
    if size >= parent.size(x.shape[1]):
        return False
    some = np.asarray(x)[:: max(1, x.shape[0] // 16)][:16]
    first, second = (np.asarray(run(psi, some)) for psi in (child, parent))
    return np.array_equal(first, second[:, :size])


def _sources(psis: Mapping[str, Any], x: Any) -> dict[str, str]:
    """For each dictionary the one whose statistics hold its own as a leading submatrix.

    Polynomials of rising degree are nested, so one pass for the richest answers all of them.
    """
    found: dict[str, str] = {}
    for name in sorted(psis, key=lambda name: -psis[name].size(x.shape[1])):
        parents = [n for n in found if found[n] == n and _is_leading(psis[name], psis[n], x)]
        found[name] = parents[0] if parents else name
    return found


_merge = jax.jit(edmd.Gram.merge)


def _coded(psi: Any, left: Array, x: Array) -> Array:
    return matmul(psi(x), left)


def encode(psi: Any, left: Any, x: Any) -> np.ndarray:
    """`Ψ(x) L`."""
    return in_blocks(jax.tree_util.Partial(_coded, psi, left), x)


@dataclasses.dataclass(frozen=True)
class Fitting:
    """How dictionaries are fitted: keywords of `ladder`, which documents them."""

    alphas: Sequence[float] = ALPHAS
    choices: Mapping[str, float] | None = None
    choose: str = "kl"
    refit: bool = True
    weights: Any = None
    accumulate_dtype: Any = None
    memory_limit: int | None = None
    progress: Callable[[int, int, str], None] | None = None

    def check(self, span: Span) -> None:
        """Raise on a setting out of range, or one that does not go with the span's data."""
        alphas, weights = self.alphas, self.weights
        if not len(alphas) or any(not alpha > 0 for alpha in alphas):
            raise expected("at least one ridge, all above 0", f"{tuple(alphas)}", "alphas=(1e-3,)")
        if self.choose not in ("kl", "accuracy"):
            raise expected("choose='kl' or 'accuracy'", repr(self.choose))
        if self.choose == "accuracy" and span.y_val is None:
            raise expected("y_val to choose by accuracy", "none", "choose='kl'")
        rows = span.train.before.shape[0]
        if weights is not None and np.shape(weights) != (rows,):
            raise expected(f"weights of shape ({rows},)", f"{np.shape(weights)}")


def fit_all(
    psis: Mapping[str, Any], span: Span, columns: dict[str, slice], metric: Any, how: Fitting
) -> dict[str, Fit]:
    """Fit all dictionaries; one pass over the data for each family of nested ones.

    `columns` says where each target stands among all: those of the state, then of the output.
    """
    train, val = span.train, span.val
    origin = _sources(psis, train.before)
    dtype = jnp.dtype(train.before.dtype)
    sums = how.accumulate_dtype or (jnp.float64 if has_float64() else dtype)
    fits: dict[str, Fit] = {}
    done = 0
    for source in dict.fromkeys(origin.values()):
        first = _gather(psis[source], train, how.weights, columns, how)
        both = first
        if val is not None and how.refit:
            more = _gather(psis[source], val, None, columns, how)
            with precise(first):
                both = _merge(first, more)
        for name in [n for n in psis if origin[n] == source]:
            if how.progress is not None:
                how.progress(done, len(psis), name)
            psi, done = psis[name], done + 1
            size = psi.size(train.before.shape[1])
            alpha = _chosen(how.choices, name, columns)
            if alpha is None:
                alpha = _choose(first, size, psi, span, columns, how)
            made = _fits_of(psi, both, size, alpha, columns, metric, (dtype, sums))
            fits.update({_label(name, target): one for target, one in made.items()})
    if how.progress is not None:
        how.progress(done, len(psis), "done")
    return {_label(n, t): fits[_label(n, t)] for n in psis for t in columns}


def _label(name: str, target: str) -> str:
    return name if target == "state" else f"{name}, to the logits"


def _gather(psi: Any, flow: Flow, weights: Any, columns: Any, how: Fitting) -> Any:
    """Statistics against the state and, where asked for, the output beside it; best in float64."""
    both = "logits" in columns
    stats = edmd.accumulate(
        psi, flow.before,
        jnp.concatenate([flow.after, flow.output], axis=1) if both else flow.after,
        target=observables.Identity(), weights=weights,
        accumulate_dtype=how.accumulate_dtype, memory_limit=how.memory_limit,
    )  # fmt: skip
    wide = has_float64() and stats.dtype != jnp.float64
    return stats.astype(jnp.float64) if wide else stats


def _chosen(choices: Any, name: str, columns: Any) -> dict[str, float] | None:
    if choices is None:
        return None
    missing = [_label(name, t) for t in columns if _label(name, t) not in choices]
    if missing:
        raise expected(f"a ridge for {missing[0]!r} among the choices", f"{sorted(choices)}")
    return {t: float(choices[_label(name, t)]) for t in columns}


def _choose(stats, size, psi, span, columns, how) -> dict[str, float]:
    """For each target the ridge of least divergence (or most accuracy) on validation samples."""
    val, by_accuracy = span.val, how.choose == "accuracy"
    labels, score_fn = (span.y_val, span.score_fn) if by_accuracy else (None, None)
    best: dict[str, tuple[float, float]] = {}
    for alpha in how.alphas:
        with precise(stats):
            ridge, kind = np.asarray(alpha, stats.dtype), jnp.dtype(val.before.dtype)
            k = _solve(stats, ridge, size=size, dtype=kind)
        rows = encode(psi, k, val.before)
        for target, cols in columns.items():
            output = span.output(rows[:, cols]) if target == "state" else rows[:, cols]
            found = evaluate(output, val.output, labels, task=span.task, score_fn=score_fn)
            loss = -found["accuracy"] if by_accuracy else found["kl"]
            loss = loss if np.isfinite(loss) else np.inf
            if target not in best or loss < best[target][0]:
                best[target] = (loss, float(alpha))
    return {target: alpha for target, (_, alpha) in best.items()}
