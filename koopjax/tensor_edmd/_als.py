"""Alternating least squares: a tensor train fitted core by core, all outputs in one train."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from koopjax._core import (
    ILL_CONDITIONED,
    NONFINITE_DATA,
    NONFINITE_SOLUTION,
    SUCCESS,
    as_flag,
    as_integers,
    as_key,
    as_numbers,
    cast,
    check_finite,
    check_metric,
    check_number,
    expected,
    has_float64,
    own_rules,
    read_numbers,
    semidefinite_root,
    traced,
    working_dtype,
    worst,
)
from koopjax.tensor_edmd._als_start import given_cores, in_units, random_directions
from koopjax.tensor_edmd._als_sweep import Problem, Run, run
from koopjax.tensor_edmd._dictionary import separable
from koopjax.tensor_edmd._padded import PaddedKoopman, feasible, stacked_factors
from koopjax.tensor_edmd._result import TensorInfo, TensorKoopman

#: Samples in a block of the normal equations, unless asked otherwise.
BLOCK = 4096
#: Unknowns of a local problem: 2^14 of them are a matrix of 2 GiB in float64.
MAX_LOCAL = 2**14
#: Largest rank of an adaptive fit, unless asked otherwise.
ADAPTIVE_RANK = 16
#: Mean of an output in units of its spread beyond which products are in float64.
FAR = 1e3
#: Shares of that spread which rounding may come to, in products and in the cores that are kept.
SPREAD, KEPT = 1e-3, 0.05


@own_rules()
def als(
    psi: Any,
    x: Float[Array, "n d"],
    y: Float[Array, "n q"],
    rank: Any,
    key: Array,
    *,
    alpha: float = 0.0,
    sweeps: int = 4,
    x_val: Any = None,
    y_val: Any = None,
    metric: Any = None,
    adaptive: bool = False,
    rtol: float = 1e-8,
    max_rank: int | None = None,
    batch_size: int | None = None,
    patience: int | None = None,
    init: Any = None,
    dtype: Any = None,
) -> TensorKoopman:
    """Fit one tensor train to all outputs, core by core: `min ‖Ψ(x) K − y‖² + α ‖K‖²`.

    A sweep goes through the cores from left to right and back. The core being solved carries the
    output index; its neighbours are orthogonal, so that `‖K‖` is the norm of that core and the
    ridge is a true one. Solved, it is split by a singular value decomposition in the metric of the
    data and of the outputs, which chooses the directions that stay behind anew each time; what is
    left moves on with the outputs. Every core that was solved is a complete fit: the one that does
    best is returned, with its outputs where they were.

    Args:
        psi: `Product`, or a `Compose` that ends in one.
        x: `(n, d)`.
        y: `(n, q)`, any number of outputs.
        rank: TT rank, or one for each of the `d - 1` bonds; clipped to what the modes allow, which
            `info.reason` says. With `adaptive` the rank of the random start.
        key: of the random start.
        alpha: ridge, absolute, on all entries of the tensor.
        sweeps: largest number of sweeps, there and back each.
        x_val: `(n_val, d)`; with validation data the best fit is the one with the least error
            there, else the one with the least `‖Ψ(x) K − y‖² + α ‖K‖²`.
        y_val: `(n_val, q)`.
        metric: `(q, q)`, positive semidefinite: errors are `e M eᵀ`, which decides what a rank
            keeps and which fit is best.
        adaptive: solve two cores at once and choose the rank between them by `rtol`, up to
            `max_rank` (the modified scheme, MALS). Finds exact ranks in a few sweeps, where single
            cores need bonds that hold the outputs wherever they are on their way.
        rtol: share of the norm, in the metric of the data, that all splits together may cut off;
            only where `adaptive`.
        max_rank: largest rank where `adaptive`; else a padding, within which other ranks need no
            other compilation. The default is the largest of `rank`, and at least 16 if adaptive.
        batch_size: samples in a block of the normal equations.
        patience: sweeps without improvement after which to stop.
        init: `TensorKoopman`, `TTMatrix` or `TensorTrain` over the same modes to start from.
        dtype: of the products over samples; `None` for that of `x`, or float64 where the backend
            has it and the mean of an output is a thousand times its spread.

    Returns:
        `TensorKoopman`. `info.history` has training and validation error of the best core of every
        half sweep; `info.condition` is that of the worst local problem, scaled to a unit diagonal
        (from pivots: a lower bound). Local problems too ill-conditioned for a Cholesky
        factorisation are damped: `result` is then `ILL_CONDITIONED`, and `info.reason` says how
        many and by how much. It is that too where rounding hides how outputs far from the origin
        vary, or makes a function's values zero; move or scale the data then.

    Numerics:
        `n (r² m)²` operations for each of `2 d` solves a sweep, `(r² m²)²` where adaptive; memory
        `2 n d r` numbers for the interfaces and `batch_size r² m` for the equations. Sums over
        blocks and factorisations are in float64 where the backend has it, products in `dtype`:
        float32 squares the condition it can bear, about 1e5 without a ridge. Interfaces are
        scaled to unit mean square, so that hundreds of cores neither underflow nor overflow.
        Without a ridge functions are scaled too: units of the coordinates do not matter.

    Raises:
        ValueError: shapes or modes that do not match, empty data, NaN or infinity, a rank below 1.

    Example:
        >>> import jax
        >>> from koopjax.observables import Polynomial1D, Product
        >>> x = jax.random.normal(jax.random.key(0), (200, 3))
        >>> y = x[:, :1] * x[:, 1:2] + x[:, 2:]
        >>> fit = als(Product.of(Polynomial1D(1), 3), x, y, 2, jax.random.key(1))
        >>> fit.ranks, bool(fit.info.residual < 1e-4)
        ((1, 2, 2, 1), True)

    Reference:
        Holtz, Rohwedder, Schneider (2012), SIAM J. Sci. Comput. 34, for both schemes; the moving
        output index is that of block tensor trains, as Stoudenmire and Schwab (2016) use it.
    """
    ranks = np.asarray(rank)
    if ranks.size == 0 or not np.issubdtype(ranks.dtype, np.integer) or np.min(ranks) < 1:
        raise expected("TT ranks that are whole numbers, at least 1", f"{rank}")
    check_number("alpha", alpha)
    check_number("rtol", rtol)
    adaptive = as_flag("adaptive", adaptive)
    for name, value in (("x", x), ("y", y), ("x_val", x_val), ("y_val", y_val)):
        if value is not None:
            check_finite(name, read_numbers(name, value))
    padding = max_rank or max(int(np.max(ranks)), ADAPTIVE_RANK if adaptive else 1)
    fit = als_padded(
        psi, x, y, ranks.astype(np.int32), key, max_rank=padding, alpha=alpha, sweeps=sweeps,
        x_val=x_val, y_val=y_val, metric=metric, adaptive=adaptive, rtol=rtol,
        batch_size=batch_size, patience=patience, init=init, dtype=dtype,
    )  # fmt: skip
    return fit.unpad()


@own_rules()
def als_padded(
    psi: Any,
    x: Float[Array, "n d"],
    y: Float[Array, "n q"],
    rank: ArrayLike,
    key: Array,
    *,
    max_rank: int,
    alpha: ArrayLike = 0.0,
    sweeps: int = 4,
    x_val: Any = None,
    y_val: Any = None,
    metric: Any = None,
    adaptive: bool = False,
    rtol: ArrayLike = 1e-8,
    batch_size: int | None = None,
    patience: int | None = None,
    init: Any = None,
    dtype: Any = None,
) -> PaddedKoopman:
    """`als` with cores padded to `max_rank`: jits, and vmaps over rank, ridge, key and data.

    A lane of rank `r` is the fit that `als` makes at rank `r`: random numbers belong to indices,
    and padding takes no part in any step. All lanes cost what `max_rank` costs.

    Args:
        psi: see `als`, as all arguments that are not listed here.
        x: `(n, d)`.
        y: `(n, q)`.
        rank: TT rank, or `(d - 1,)` of them; an array, so that it may be a lane's own.
        key: of the random start.
        max_rank: padded rank (static); larger ranks are clipped to it.
        alpha: ridge, an array.
        sweeps: static, as are `adaptive`, `batch_size`, `patience` and the dtypes.
        x_val: `(n_val, d)`.
        y_val: `(n_val, q)`.
        metric: `(q, q)`.
        adaptive: see `als`.
        rtol: see `als`; an array.
        batch_size: see `als`.
        patience: see `als`; lanes wait for the last one.
        init: concrete, see `als`.
        dtype: see `als`.

    Returns:
        `PaddedKoopman`, its `result` `NONFINITE_DATA` where the data are not finite.

    Numerics:
        Called with concrete arrays, sums over samples and all factorisations are in float64 where
        the backend has it. Under a transformation everything runs in the dtype of `x`.
    """
    _check_counts(max_rank, sweeps, batch_size, patience)
    data, modes = _check_data(psi, x, y, x_val, y_val, metric)
    d, size = len(modes), min(max_rank, _largest(modes))
    local = (size * max(modes)) ** 2 if adaptive else size**2 * max(modes)
    if local > MAX_LOCAL:
        raise expected(
            f"at most {MAX_LOCAL:,} unknowns in a local problem", f"{local:,}", "a smaller max_rank"
        )
    rank = rank if isinstance(rank, jax.Array) else as_integers("rank", rank)
    if jnp.shape(rank) not in ((), (d - 1,)):
        raise expected(f"one rank, or {d - 1} of them", f"shape {jnp.shape(rank)}")
    samples = data[0].shape[0]
    block = -(-samples // -(-samples // (batch_size or BLOCK)))
    narrow = working_dtype(data[0].dtype if dtype is None else dtype)
    key = as_key("als", key)
    staged = traced((psi, *data, rank, key, alpha, rtol))
    if dtype is None and not staged and has_float64():
        with jax.enable_x64(True):
            narrow = np.float64 if float(_distance(data[1])) > FAR else narrow
    start = None if init is None else given_cores(init, modes, size, narrow)
    wide = np.dtype(narrow if staged or not has_float64() else np.float64)
    compute = functools.partial(
        _fit, psi, *data, rank, key, alpha, rtol, start, size=size, sweeps=sweeps, block=block,
        adaptive=adaptive, patience=patience, narrow=np.dtype(narrow), wide=wide,
        stored=np.dtype(data[0].dtype),
    )  # fmt: skip
    if staged:
        return PaddedKoopman(psi, *compute())
    with jax.enable_x64(True) if has_float64() else jax.enable_x64(False):
        fit = compute()
    return PaddedKoopman(psi, *cast(fit, data[0].dtype))


def _largest(modes: tuple[int, ...]) -> int:
    return max(feasible(modes, 2**30))


def _check_counts(max_rank: Any, sweeps: Any, batch_size: Any, patience: Any) -> None:
    named = {"max_rank": max_rank, "sweeps": sweeps, "batch_size": batch_size, "patience": patience}
    for name, value in named.items():
        if value is None and name in ("batch_size", "patience"):
            continue
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
            raise expected(f"{name} a whole number, at least 1", repr(value))


def _rows(name: str, array: Any) -> Array:
    array = as_numbers(name, array)
    if array.ndim != 2 or 0 in array.shape:
        raise expected(f"{name} of shape (samples, coordinates), not empty", f"shape {array.shape}")
    return array


def _check_data(
    psi: Any, x: Any, y: Any, x_val: Any, y_val: Any, metric: Any
) -> tuple[tuple[Any, ...], tuple[int, ...]]:
    """Arrays of matching shapes, and the modes of the dictionary."""
    x, y = _rows("x", x), _rows("y", y)
    if len(x) != len(y):
        raise expected("as many rows in y as in x", f"{len(y)} and {len(x)}")
    if (x_val is None) != (y_val is None):
        raise expected("x_val and y_val together", "one of them")
    if x_val is not None:
        x_val, y_val = _rows("x_val", x_val), _rows("y_val", y_val)
        if len(x_val) != len(y_val) or x_val.shape[1] != x.shape[1] or y_val.shape[1] != y.shape[1]:
            raise expected(
                f"validation data (m, {x.shape[1]}) and (m, {y.shape[1]})",
                f"{x_val.shape} and {y_val.shape}",
            )
    q = y.shape[1]
    metric = None if metric is None else as_numbers("metric", metric)
    check_metric("metric", metric, q)
    front, product = separable(psi)
    width = x.shape[1]
    for part in front:
        width = part.size(width)
    return (x, y, x_val, y_val, metric), product.modes(width)


def _in_blocks(array: Array, block: int) -> Array:
    """`(..., n, m)` to `(..., blocks, block, m)`, filled up with zeros."""
    *head, n, m = array.shape
    count = -(-n // block)
    fill = [(0, 0)] * len(head) + [(0, count * block - n), (0, 0)]
    return jnp.pad(array, fill).reshape(*head, count, block, m)


@functools.partial(
    jax.jit,
    static_argnames=("size", "sweeps", "block", "adaptive", "patience", "narrow", "wide", "stored"),
)
def _fit(
    psi: Any,
    x: Array,
    y: Array,
    x_val: Any,
    y_val: Any,
    metric: Any,
    rank: Any,
    key: Any,
    alpha: Any,
    rtol: Any,
    given: Any,
    *,
    size: int,
    sweeps: int,
    block: int,
    adaptive: bool,
    patience: int | None,
    narrow: Any,
    wide: Any,
    stored: Any,
) -> Any:
    """Everything in one compilation; the fields of a `PaddedKoopman` but its dictionary."""
    modes = separable(psi)[1].modes()
    d, n, q = len(modes), max(modes), y.shape[1]
    sets = [(x, y)] if x_val is None else [(x, y), (x_val, y_val)]
    sizes = [block, min(block, sets[-1][0].shape[0])]
    factors = [stacked_factors(psi, a.astype(narrow)) for a, _ in sets]
    factors = tuple(_in_blocks(f, b) for f, b in zip(factors, sizes, strict=False))
    targets = tuple(
        _in_blocks(b.astype(narrow), size) for (_, b), size in zip(sets, sizes, strict=False)
    )
    rank = jnp.asarray(rank).astype(jnp.int32)
    limits = jnp.asarray(feasible(modes, size), jnp.int32)
    one = jnp.ones(1, jnp.int32)
    inner = jnp.broadcast_to(rank, (d - 1,)) if rank.ndim == 0 else rank
    first = jnp.minimum(limits, jnp.concatenate([one, jnp.maximum(inner, 1), one]))
    root = jnp.eye(q, dtype=wide)
    if metric is not None:
        root = semidefinite_root(metric.astype(wide)).symmetric
    alpha, rtol = jnp.asarray(alpha).astype(wide), jnp.asarray(rtol).astype(wide)
    # Without a ridge the units of the functions are free, so that no products of them underflow.
    largest = _largest_values(psi, x.astype(narrow))
    units = jnp.where(alpha > 0, 1, _units(largest))
    factors = tuple(f * units[:, None, None, :] for f in factors)
    problem = Problem(
        factors=factors,
        targets=targets,
        modes=(jnp.arange(n)[None, :] < jnp.asarray(modes)[:, None]).astype(wide),
        first=first,
        most=limits if adaptive else first,
        spare=random_directions(key, d, size, n, narrow),
        alpha=alpha,
        metric=root,
        rtol=rtol / max(1.0, (d - 1) ** 0.5) if adaptive else jnp.zeros((), wide),
        count=jnp.asarray(x.shape[0], wide),
        floor=(100 * float(jnp.finfo(narrow).eps)) ** 2 * _power(targets[-1], root),
    )
    given = None if given is None else in_units(given, units)
    swept = run(
        problem, given, size=size, sweeps=sweeps, adaptive=adaptive, patience=patience, wide=wide
    )
    finite = jnp.all(jnp.isfinite(factors[0])) & jnp.all(jnp.isfinite(targets[0]))
    best = swept.best
    best = best._replace(
        core=best.core * units[best.position][None, :, None, None],
        cores=best.cores * units[:, None, :, None],
    )
    swept = swept._replace(best=best)
    exact = jnp.where(alpha > 0, 0, _largest_values(psi, x.astype(wide)))
    rounded = _rounded_away(y, largest, exact, stored) | _out_of_range(best, stored)
    return _fields(swept, targets, root, rank, alpha, x.shape[0], finite, rounded)


@jax.jit
def _distance(y: Array) -> Array:
    """How far outputs lie from the origin in units of their spread, at most; of what varies."""
    y = jax.lax.stop_gradient(y).astype(jax.dtypes.canonicalize_dtype(np.float64))
    mean, spread = jnp.abs(jnp.mean(y, axis=0)), jnp.std(y, axis=0)
    varies = spread > 4 * jnp.finfo(y.dtype).eps * mean
    return jnp.max(jnp.where(varies, mean / jnp.where(varies, spread, 1), 0))


def _largest_values(psi: Any, x: Array) -> Array:
    """The largest value of every function, `(d, n)`."""
    return jnp.max(jnp.abs(jax.lax.stop_gradient(stacked_factors(psi, x))), axis=1)


def _units(largest: Array) -> Array:
    """Powers of two that bring the functions' largest values near 1."""
    usable = jnp.isfinite(largest) & (largest > 0)
    exponents = jnp.frexp(jnp.where(usable, largest, 1))[1]
    return jnp.ldexp(jnp.ones((), largest.dtype), 1 - exponents)


def _rounded_away(y: Array, largest: Array, exact: Array, stored: Any) -> Array:
    """Whether rounding hides how outputs vary, or a function that has values is as good as 0."""
    eps = jnp.maximum(jnp.finfo(largest.dtype).eps / SPREAD, jnp.finfo(stored).eps / KEPT)
    hidden = (exact > 0) & (largest < jnp.finfo(largest.dtype).tiny)
    return (_distance(y) * eps > 1) | jnp.any(hidden)


def _out_of_range(best: Any, stored: Any) -> Array:
    """Whether two neighbouring cores together, as a contraction may merge them, overflow."""
    top = jnp.max(jnp.abs(best.cores), axis=(1, 2, 3))
    top = jnp.log(top.at[best.position].set(jnp.max(jnp.abs(best.core))))
    return jnp.any(top[1:] + top[:-1] > jnp.log(jnp.finfo(stored).max))


def _power(y: Array, root: Array) -> Array:
    return jnp.sum((y.astype(root.dtype) @ root) ** 2)


def _fields(
    swept: Run, targets: Any, root: Array, rank: Array, alpha: Array, count: int, finite: Any,
    rounded: Any,
) -> Any:  # fmt: skip
    best, d = swept.best, swept.best.cores.shape[0]
    totals = jnp.stack([_power(targets[0], root), _power(targets[-1], root)])
    totals = jnp.where(totals > 0, totals, 1)
    history = jnp.sqrt(swept.history / totals[None, :])
    info = TensorInfo(
        condition=swept.condition,
        residual=jnp.sqrt(best.train / totals[0]),
        alpha=alpha,
        count=jnp.asarray(count, jnp.int32),
        history=history,
        method="als",
    )
    here = (jnp.arange(d) == best.position)[:, None, None, None]
    solved = jnp.isfinite(best.score) & jnp.all(jnp.isfinite(best.core))
    code = worst(
        jnp.where(finite, SUCCESS, NONFINITE_DATA),
        jnp.where(finite & ~solved, NONFINITE_SOLUTION, SUCCESS),
        jnp.where((swept.damping > 0) | rounded, ILL_CONDITIONED, SUCCESS),
    )
    cores = jnp.where(here, 0, best.cores)
    validation = jnp.sqrt(best.validation / totals[1])
    return (
        cores, best.core, best.position, best.ranks, rank, info, validation, swept.damping,
        swept.damped, swept.sweeps, code,
    )  # fmt: skip
