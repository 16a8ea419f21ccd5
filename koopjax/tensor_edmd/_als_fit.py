"""A fit by alternating least squares as one compiled program, and where it starts."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from koopjax import tt
from koopjax._core import (
    ILL_CONDITIONED,
    NONFINITE_DATA,
    NONFINITE_SOLUTION,
    SUCCESS,
    expected,
    is_tracing,
    masked_qr,
    semidefinite_root,
    worst,
)
from koopjax.tensor_edmd._als_sweep import Problem, run
from koopjax.tensor_edmd._padded import PaddedKoopman, feasible, stacked_factors
from koopjax.tensor_edmd._result import TensorInfo, TensorKoopman

#: Shares of an output's spread which rounding may come to, in products and in cores that are kept.
SPREAD, KEPT = 1e-3, 0.05


@functools.partial(jax.jit, static_argnames="size")
def fit_padded(
    fitter: Any, rank: Any, key: Any, alpha: Any, rtol: Any, given: Any, *, size: int
) -> PaddedKoopman:
    """Everything in one compilation, from an `AlsFitter`; without its dictionary."""
    psi, x, stored = fitter.psi, fitter.x, np.dtype(fitter.x.dtype)
    narrow, wide = fitter.settings.dtype, fitter.wide
    rank = jnp.asarray(rank).astype(jnp.int32)
    alpha, rtol = jnp.asarray(alpha).astype(wide), jnp.asarray(rtol).astype(wide)
    # Without a ridge the units of the functions are free, so that no products of them underflow.
    values = stacked_factors(psi, x.astype(narrow))
    largest = _largest(values)
    units = jnp.where(alpha > 0, 1, _units(largest))
    problem = _problem(fitter, values, units, rank, key, alpha, rtol, size)
    given = None if given is None else _in_units(given, units)
    swept = run(problem, given, size=size, settings=fitter.settings, wide=wide)
    best, hardest, d = swept.best, swept.hardest, len(units)
    best = best._replace(
        core=best.core * units[best.position][None, :, None, None],
        cores=best.cores * units[:, None, :, None],
    )
    exact = largest if narrow == wide else _largest(stacked_factors(psi, x.astype(wide)))
    exact = jnp.where(alpha > 0, 0, exact)
    rounded = _rounded_away(fitter.y, largest, exact, stored) | _out_of_range(best, stored)
    targets, root = problem.targets, problem.metric
    finite = jnp.all(jnp.isfinite(problem.factors[0])) & jnp.all(jnp.isfinite(targets[0]))
    solved = jnp.isfinite(best.score) & jnp.all(jnp.isfinite(best.core))
    totals = jnp.stack([_power(targets[0], root), _power(targets[-1], root)])
    totals = jnp.where(totals > 0, totals, 1)
    info = TensorInfo(
        condition=hardest.condition,
        residual=jnp.sqrt(best.train / totals[0]),
        alpha=alpha,
        count=jnp.asarray(x.shape[0], jnp.int32),
        history=jnp.sqrt(swept.history / totals[None, :]),
        method="als",
    )
    here = (jnp.arange(d) == best.position)[:, None, None, None]
    return PaddedKoopman(
        psi=None,
        cores=jnp.where(here, 0, best.cores),
        output=best.core,
        position=best.position,
        ranks=best.ranks,
        requested=rank,
        info=info,
        validation=jnp.sqrt(best.validation / totals[1]),
        damping=hardest.damping,
        damped=hardest.damped,
        sweeps=swept.sweeps,
        result=worst(
            jnp.where(finite, SUCCESS, NONFINITE_DATA),
            jnp.where(finite & ~solved, NONFINITE_SOLUTION, SUCCESS),
            jnp.where((hardest.damping > 0) | rounded, ILL_CONDITIONED, SUCCESS),
        ),
    )


def _in_blocks(array: Array, block: int) -> Array:
    """`(..., n, m)` to `(..., blocks, block, m)`, filled up with zeros."""
    *head, n, m = array.shape
    count = -(-n // block)
    fill = [(0, 0)] * len(head) + [(0, count * block - n), (0, 0)]
    return jnp.pad(array, fill).reshape(*head, count, block, m)


def _problem(
    fitter: Any,
    values: Array,
    units: Array,
    rank: Array,
    key: Any,
    alpha: Array,
    rtol: Array,
    size: int,
) -> Problem:
    """Samples in blocks, bounds on the ranks, and numbers to start from."""
    settings, wide, modes = fitter.settings, fitter.wide, fitter.modes
    narrow, block, d, n = settings.dtype, settings.batch_size, len(modes), max(modes)
    sets = [(values, fitter.y)]
    if fitter.x_val is not None:
        sets.append((stacked_factors(fitter.psi, fitter.x_val.astype(narrow)), fitter.y_val))
    factors, targets = [], []
    for a, b in sets:
        rows = min(block, len(b))
        factors.append(_in_blocks(a, rows) * units[:, None, None, :])
        targets.append(_in_blocks(b.astype(narrow), rows))
    limits, one = jnp.asarray(feasible(modes, size), jnp.int32), jnp.ones(1, jnp.int32)
    inner = jnp.broadcast_to(rank, (d - 1,)) if rank.ndim == 0 else rank
    first = jnp.minimum(limits, jnp.concatenate([one, jnp.maximum(inner, 1), one]))
    root = jnp.eye(fitter.y.shape[1], dtype=wide)
    if fitter.metric is not None:
        root = semidefinite_root(fitter.metric.astype(wide)).symmetric
    return Problem(
        factors=tuple(factors),
        targets=tuple(targets),
        modes=(jnp.arange(n)[None, :] < jnp.asarray(modes)[:, None]).astype(wide),
        first=first,
        most=limits if settings.adaptive else first,
        spare=_random_directions(key, d, size, n, narrow),
        alpha=alpha,
        metric=root,
        rtol=rtol / max(1.0, (d - 1) ** 0.5) if settings.adaptive else jnp.zeros((), wide),
        count=jnp.asarray(fitter.x.shape[0], wide),
        floor=(100 * float(jnp.finfo(narrow).eps)) ** 2 * _power(targets[-1], root),
    )


@jax.jit
def distance(y: Array) -> Array:
    """How far outputs lie from the origin in units of their spread, at most; of what varies."""
    y = jax.lax.stop_gradient(y).astype(jax.dtypes.canonicalize_dtype(np.float64))
    mean, spread = jnp.abs(jnp.mean(y, axis=0)), jnp.std(y, axis=0)
    varies = spread > 4 * jnp.finfo(y.dtype).eps * mean
    return jnp.max(jnp.where(varies, mean / jnp.where(varies, spread, 1), 0))


def _largest(values: Array) -> Array:
    """The largest value of every function, `(d, n)`."""
    return jnp.max(jnp.abs(jax.lax.stop_gradient(values)), axis=1)


def _units(largest: Array) -> Array:
    """Powers of two that bring the functions' largest values near 1."""
    usable = jnp.isfinite(largest) & (largest > 0)
    exponents = jnp.frexp(jnp.where(usable, largest, 1))[1]
    return jnp.ldexp(jnp.ones((), largest.dtype), 1 - exponents)


def _rounded_away(y: Array, largest: Array, exact: Array, stored: Any) -> Array:
    """Whether rounding hides how outputs vary, or a function that has values is as good as 0."""
    eps = jnp.maximum(jnp.finfo(largest.dtype).eps / SPREAD, jnp.finfo(stored).eps / KEPT)
    hidden = (exact > 0) & (largest < jnp.finfo(largest.dtype).tiny)
    return (distance(y) * eps > 1) | jnp.any(hidden)


def _out_of_range(best: Any, stored: Any) -> Array:
    """Whether two neighbouring cores together, as a contraction may merge them, overflow."""
    top = jnp.max(jnp.abs(best.cores), axis=(1, 2, 3))
    top = jnp.log(top.at[best.position].set(jnp.max(jnp.abs(best.core))))
    return jnp.any(top[1:] + top[:-1] > jnp.log(jnp.finfo(stored).max))


def _power(y: Array, root: Array) -> Array:
    return jnp.sum((y.astype(root.dtype) @ root) ** 2)


def _random_directions(key: Array, d: int, size: int, modes: int, dtype: Any) -> Array:
    """Normal numbers `(d, size modes, size)`, each from its indices, so that padding adds only."""
    fold = jax.vmap(jax.random.fold_in, (None, 0))
    folds = jax.vmap(fold, (0, None))
    keys = folds(fold(key, jnp.arange(d)), jnp.arange(size))
    keys = jax.vmap(folds, (0, None))(keys, jnp.arange(size))
    draw = lambda k: jax.random.normal(k, (modes,), dtype)
    out = jax.vmap(jax.vmap(jax.vmap(draw)))(keys)
    return out.swapaxes(2, 3).reshape(d, size * modes, size)


def given_cores(
    init: Any, modes: tuple[int, ...], size: int, dtype: Any
) -> tuple[np.ndarray, np.ndarray]:
    """A known train made orthogonal from the right, its outputs moved to the first core.

    Cores padded to `(d, size, N, size)`, of a larger rank the leading directions, the first core
    unused; and ranks `(d + 1,)`.
    """
    train = init.train if isinstance(init, TensorKoopman) else init
    if is_tracing(train):
        raise expected("concrete cores in init", "traced ones")
    rows = train.row_modes if isinstance(train, tt.TTMatrix) else train.modes
    if tuple(rows) != tuple(modes):
        raise expected(f"a start with modes {modes}", f"{tuple(rows)}", "init=None")
    cores = [np.asarray(core, np.float64) for core in train.cores]
    cores = [core[:, :, None, :] if core.ndim == 3 else core for core in cores]
    d, most = len(cores), max(modes)
    out, ranks = np.zeros((d, size, most, size)), np.ones(d + 1, np.int32)
    carried = np.ones((1, 1, 1))  # (rank, outputs so far, kept)
    for k in range(d - 1, 0, -1):
        core = np.einsum("amqb,bpc->aqpmc", cores[k], carried)
        left, outputs = core.shape[0], core.shape[1] * core.shape[2]
        kept = core.shape[-1]
        u, s, vt = np.linalg.svd(core.reshape(left * outputs, -1), full_matrices=False)
        rank = max(1, min(size, int(np.sum(s > 1e-14 * s[0]))))
        out[k, :rank, : modes[k], :kept] = vt[:rank].reshape(rank, modes[k], kept)
        ranks[k] = rank
        carried = (u[:, :rank] * s[:rank]).reshape(left, outputs, rank)
    return out.astype(dtype), ranks


def _in_units(given: tuple[Any, Any], units: Array) -> tuple[Array, Array]:
    """`given_cores` over functions in other units `(d, N)`, orthogonal from the right again."""
    cores, ranks = jnp.asarray(given[0]), jnp.asarray(given[1])
    size = cores.shape[1]

    def step(carried: Array, part: Any) -> tuple[Array, Array]:
        core, rank, unit = part
        core = jnp.einsum("lnr,rk->lnk", core / unit[None, :, None], carried, precision="highest")
        mask = (jnp.arange(size) < rank).astype(core.dtype)
        q, r = masked_qr(core.reshape(size, -1).T, mask)
        return r.T, q.T.reshape(core.shape)

    one = jnp.eye(size, dtype=cores.dtype)
    return jax.lax.scan(step, one, (cores, ranks[:-1], units), reverse=True)[1], ranks
