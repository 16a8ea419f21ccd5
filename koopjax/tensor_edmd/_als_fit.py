"""Alternating least squares made ready: data checked, precision decided, one compiled fit."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array

from koopjax._core import (
    ILL_CONDITIONED,
    NONFINITE_DATA,
    NONFINITE_SOLUTION,
    SUCCESS,
    as_flag,
    as_integers,
    as_key,
    as_numbers,
    as_whole,
    cast,
    check_finite,
    check_metric,
    expected,
    has_float64,
    precise_as,
    pytree,
    semidefinite_root,
    static,
    traced,
    working_dtype,
    worst,
)
from koopjax.tensor_edmd._als_start import given_cores, in_units, random_directions
from koopjax.tensor_edmd._als_sweep import Problem, Run, run
from koopjax.tensor_edmd._dictionary import separable
from koopjax.tensor_edmd._padded import PaddedKoopman, feasible, stacked_factors
from koopjax.tensor_edmd._result import TensorInfo

#: Samples in a block of the normal equations, unless asked otherwise.
BLOCK = 4096
#: Unknowns of a local problem: 2^14 of them are a matrix of 2 GiB in float64.
MAX_LOCAL = 2**14
#: Mean of an output in units of its spread beyond which products are in float64.
FAR = 1e3
#: Shares of that spread which rounding may come to, in products and in the cores that are kept.
SPREAD, KEPT = 1e-3, 0.05


@dataclasses.dataclass(frozen=True)
class AlsSettings:
    """How alternating least squares goes about it: static, of all fits that share a compilation.

    Attributes:
        sweeps: largest number of sweeps, there and back each.
        adaptive: solve two cores at once and choose the rank between them by `rtol`, up to
            `max_rank` (the modified scheme, MALS). Finds exact ranks in a few sweeps, where single
            cores need bonds that hold the outputs wherever they are on their way.
        batch_size: samples in a block of the normal equations; None for 4,096.
        patience: sweeps without improvement after which to stop; None for all of them.
        dtype: of the products over samples; None for that of `x`, or float64 where the backend has
            it and the mean of an output is a thousand times its spread.
    """

    sweeps: int = 4
    adaptive: bool = False
    batch_size: int | None = None
    patience: int | None = None
    dtype: Any = None

    def for_data(self, samples: int, dtype: Any, far: bool) -> "AlsSettings":
        """Checked, with blocks of equal sizes and the dtype of the products decided.

        Args:
            samples: to fit.
            dtype: of the states.
            far: whether outputs lie so far from the origin that float32 hides how they vary.
        """
        count = lambda name: as_whole(name, getattr(self, name), 1)
        rows = BLOCK if self.batch_size is None else count("batch_size")
        chosen = np.float64 if far else working_dtype(dtype if self.dtype is None else self.dtype)
        return dataclasses.replace(
            self,
            sweeps=count("sweeps"),
            adaptive=as_flag("adaptive", self.adaptive),
            batch_size=-(-samples // -(-samples // rows)),
            patience=None if self.patience is None else count("patience"),
            dtype=np.dtype(chosen),
        )


@pytree
class AlsFitter:
    """`als` made ready: data checked and precision decided once, then any rank, ridge and key.

    Attributes:
        psi: a `Product`, or a `Compose` that ends in one.
        x: `(n, d)`.
        y: `(n, q)`.
        x_val: `(n_val, d)`, or None.
        y_val: `(n_val, q)`, or None.
        metric: `(q, q)`, or None.
        settings: `AlsSettings`, with nothing left to be decided (static).
        wide: dtype of sums over samples and of factorisations (static).
    """

    psi: Any
    x: Any
    y: Any
    x_val: Any
    y_val: Any
    metric: Any
    settings: AlsSettings = static()
    wide: Any = static()

    @classmethod
    def of(
        cls,
        psi: Any,
        x: Any,
        y: Any,
        settings: AlsSettings,
        x_val: Any = None,
        y_val: Any = None,
        metric: Any = None,
        beside: Any = (),
    ) -> "AlsFitter":
        """From what `als` takes.

        Args:
            psi: see `als`, as all arguments that are not listed here.
            x: `(n, d)`.
            y: `(n, q)`.
            settings: of all fits.
            x_val: `(n_val, d)`.
            y_val: `(n_val, q)`.
            metric: `(q, q)`.
            beside: what else may be traced; then everything runs in the dtype of `x`.
        """
        data = _check_data(psi, x, y, x_val, y_val, metric)
        double = has_float64() and not traced((psi, *data, beside))
        far = False
        if double and settings.dtype is None:
            with jax.enable_x64(True):
                far = float(_distance(data[1])) > FAR
        settings = settings.for_data(data[0].shape[0], data[0].dtype, far)
        wide = np.dtype(np.float64) if double else settings.dtype
        return cls(psi, *data, settings=settings, wide=wide)

    @property
    def modes(self) -> tuple[int, ...]:
        """Mode sizes of the dictionary."""
        return separable(self.psi)[1].modes()

    @property
    def largest_rank(self) -> int:
        """The largest rank that the modes allow."""
        return max(feasible(self.modes, 2**30))

    def require_finite(self) -> None:
        """Raise `ValueError` if there is NaN or infinity in the samples."""
        for name in ("x", "y", "x_val", "y_val"):
            if getattr(self, name) is not None:
                check_finite(name, getattr(self, name))

    def size(self, max_rank: int) -> int:
        """The rank that cores are padded to; raises where a local problem would be too large."""
        size = min(as_whole("max_rank", max_rank, 1), self.largest_rank)
        most = max(self.modes)
        local = (size * most) ** 2 if self.settings.adaptive else size**2 * most
        if local > MAX_LOCAL:
            raise expected(
                f"at most {MAX_LOCAL:,} unknowns in a local problem",
                f"{local:,}",
                "a smaller max_rank",
            )
        return size

    def fit(
        self,
        rank: ArrayLike,
        key: Array,
        *,
        max_rank: int,
        alpha: ArrayLike = 0.0,
        rtol: ArrayLike = 1e-8,
        init: Any = None,
    ) -> PaddedKoopman:
        """One fit, in the dtype of `x`; jits and vmaps, for arguments see `als_padded`."""
        size, bonds = self.size(max_rank), len(self.modes) - 1
        rank = rank if isinstance(rank, jax.Array) else as_integers("rank", rank)
        if jnp.shape(rank) not in ((), (bonds,)):
            raise expected(f"one rank, or {bonds} of them", f"shape {jnp.shape(rank)}")
        key = as_key("als", key)
        given = None
        if init is not None:
            given = given_cores(init, self.modes, size, self.settings.dtype)
        with precise_as(self.wide) if has_float64() else jax.enable_x64(False):
            fields = _fit(self, rank, key, alpha, rtol, given, size=size)
        return PaddedKoopman(self.psi, *cast(fields, self.x.dtype))


def _rows(name: str, array: Any) -> Array:
    array = as_numbers(name, array)
    if array.ndim != 2 or 0 in array.shape:
        raise expected(f"{name} of shape (samples, coordinates), not empty", f"shape {array.shape}")
    return array


def _check_data(psi: Any, x: Any, y: Any, x_val: Any, y_val: Any, metric: Any) -> tuple[Any, ...]:
    """Arrays of matching shapes, which the dictionary takes."""
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
    product.modes(width)
    return x, y, x_val, y_val, metric


def _in_blocks(array: Array, block: int) -> Array:
    """`(..., n, m)` to `(..., blocks, block, m)`, filled up with zeros."""
    *head, n, m = array.shape
    count = -(-n // block)
    fill = [(0, 0)] * len(head) + [(0, count * block - n), (0, 0)]
    return jnp.pad(array, fill).reshape(*head, count, block, m)


@functools.partial(jax.jit, static_argnames="size")
def _fit(
    fitter: AlsFitter, rank: Any, key: Any, alpha: Any, rtol: Any, given: Any, *, size: int
) -> Any:
    """Everything in one compilation; the fields of a `PaddedKoopman` but its dictionary."""
    psi, x, stored = fitter.psi, fitter.x, np.dtype(fitter.x.dtype)
    narrow, wide = fitter.settings.dtype, fitter.wide
    rank = jnp.asarray(rank).astype(jnp.int32)
    alpha, rtol = jnp.asarray(alpha).astype(wide), jnp.asarray(rtol).astype(wide)
    # Without a ridge the units of the functions are free, so that no products of them underflow.
    largest = _largest_values(psi, x.astype(narrow))
    units = jnp.where(alpha > 0, 1, _units(largest))
    problem = _problem(fitter, units, rank, key, alpha, rtol, size)
    given = None if given is None else in_units(given, units)
    swept = run(problem, given, size=size, settings=fitter.settings, wide=wide)
    factors, targets = problem.factors[0], problem.targets[0]
    finite = jnp.all(jnp.isfinite(factors)) & jnp.all(jnp.isfinite(targets))
    best = swept.best
    best = best._replace(
        core=best.core * units[best.position][None, :, None, None],
        cores=best.cores * units[:, None, :, None],
    )
    swept = swept._replace(best=best)
    exact = jnp.where(alpha > 0, 0, _largest_values(psi, x.astype(wide)))
    rounded = _rounded_away(fitter.y, largest, exact, stored) | _out_of_range(best, stored)
    return _fields(swept, problem, rank, x.shape[0], finite, rounded)


def _problem(
    fitter: AlsFitter, units: Array, rank: Array, key: Any, alpha: Array, rtol: Array, size: int
) -> Problem:
    """Samples in blocks, bounds on the ranks, and numbers to start from."""
    settings, wide, modes = fitter.settings, fitter.wide, fitter.modes
    narrow, block, d, n = settings.dtype, settings.batch_size, len(modes), max(modes)
    sets = [(fitter.x, fitter.y)]
    if fitter.x_val is not None:
        sets.append((fitter.x_val, fitter.y_val))
    sizes = [block, min(block, sets[-1][0].shape[0])]
    factors = [stacked_factors(fitter.psi, a.astype(narrow)) for a, _ in sets]
    factors = tuple(_in_blocks(f, b) for f, b in zip(factors, sizes, strict=False))
    factors = tuple(f * units[:, None, None, :] for f in factors)
    targets = tuple(
        _in_blocks(b.astype(narrow), size) for (_, b), size in zip(sets, sizes, strict=False)
    )
    limits, one = jnp.asarray(feasible(modes, size), jnp.int32), jnp.ones(1, jnp.int32)
    inner = jnp.broadcast_to(rank, (d - 1,)) if rank.ndim == 0 else rank
    first = jnp.minimum(limits, jnp.concatenate([one, jnp.maximum(inner, 1), one]))
    root = jnp.eye(fitter.y.shape[1], dtype=wide)
    if fitter.metric is not None:
        root = semidefinite_root(fitter.metric.astype(wide)).symmetric
    return Problem(
        factors=factors,
        targets=targets,
        modes=(jnp.arange(n)[None, :] < jnp.asarray(modes)[:, None]).astype(wide),
        first=first,
        most=limits if settings.adaptive else first,
        spare=random_directions(key, d, size, n, narrow),
        alpha=alpha,
        metric=root,
        rtol=rtol / max(1.0, (d - 1) ** 0.5) if settings.adaptive else jnp.zeros((), wide),
        count=jnp.asarray(fitter.x.shape[0], wide),
        floor=(100 * float(jnp.finfo(narrow).eps)) ** 2 * _power(targets[-1], root),
    )


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
    swept: Run, problem: Problem, rank: Array, count: int, finite: Any, rounded: Any
) -> Any:
    best, d = swept.best, swept.best.cores.shape[0]
    targets, root = problem.targets, problem.metric
    totals = jnp.stack([_power(targets[0], root), _power(targets[-1], root)])
    totals = jnp.where(totals > 0, totals, 1)
    history = jnp.sqrt(swept.history / totals[None, :])
    info = TensorInfo(
        condition=swept.hardest.condition,
        residual=jnp.sqrt(best.train / totals[0]),
        alpha=problem.alpha,
        count=jnp.asarray(count, jnp.int32),
        history=history,
        method="als",
    )
    here = (jnp.arange(d) == best.position)[:, None, None, None]
    solved = jnp.isfinite(best.score) & jnp.all(jnp.isfinite(best.core))
    code = worst(
        jnp.where(finite, SUCCESS, NONFINITE_DATA),
        jnp.where(finite & ~solved, NONFINITE_SOLUTION, SUCCESS),
        jnp.where((swept.hardest.damping > 0) | rounded, ILL_CONDITIONED, SUCCESS),
    )
    cores = jnp.where(here, 0, best.cores)
    validation = jnp.sqrt(best.validation / totals[1])
    return (
        cores, best.core, best.position, best.ranks, rank, info, validation, swept.hardest.damping,
        swept.hardest.damped, swept.sweeps, code,
    )  # fmt: skip
