"""Alternating least squares: a tensor train fitted core by core, all outputs in one train."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from koopjax._core import (
    as_flag,
    as_integers,
    as_key,
    as_numbers,
    as_whole,
    cast,
    check_finite,
    check_metric,
    check_number,
    expected,
    has_float64,
    own_rules,
    precise_as,
    pytree,
    static,
    traced,
    working_dtype,
)
from koopjax.tensor_edmd._als_fit import distance, fit_padded, given_cores
from koopjax.tensor_edmd._dictionary import check_states, separable
from koopjax.tensor_edmd._padded import PaddedKoopman, feasible
from koopjax.tensor_edmd._result import TensorKoopman

#: Largest rank of an adaptive fit, unless asked otherwise.
ADAPTIVE_RANK = 16
#: Samples in a block of the normal equations, unless asked otherwise.
BLOCK = 4096
#: Unknowns of a local problem: 2^14 of them are a matrix of 2 GiB in float64.
MAX_LOCAL = 2**14
#: Mean of an output in units of its spread beyond which products are in float64.
FAR = 1e3


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
            samples: how many to fit.
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
        """From what `als` takes, which see.

        Args:
            psi, x, y, x_val, y_val, metric: as for `als`.
            settings: of all fits.
            beside: what else may be traced; then everything runs in the dtype of `x`.
        """
        data = _checked(psi, x, y, x_val, y_val, metric)
        double = has_float64() and not traced((psi, *data, beside))
        far = False
        if double and settings.dtype is None:
            with jax.enable_x64(True):
                far = float(distance(data[1])) > FAR
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
            fit = fit_padded(self, rank, key, alpha, rtol, given, size=size)
        return dataclasses.replace(cast(fit, self.x.dtype), psi=self.psi)


def _rows(name: str, array: Any) -> Array:
    array = as_numbers(name, array)
    if array.ndim != 2 or 0 in array.shape:
        raise expected(f"{name} of shape (samples, coordinates), not empty", f"shape {array.shape}")
    return array


def _checked(psi: Any, x: Any, y: Any, x_val: Any, y_val: Any, metric: Any) -> tuple[Any, ...]:
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
    metric = None if metric is None else as_numbers("metric", metric)
    check_metric("metric", metric, y.shape[1])
    check_states(psi, x)
    return x, y, x_val, y_val, metric


@own_rules()
def als(
    psi: Any,
    x: Float[Array, "n d"],
    y: Float[Array, "n q"],
    rank: Any,
    key: Array,
    *,
    alpha: float = 0.0,
    x_val: Any = None,
    y_val: Any = None,
    metric: Any = None,
    rtol: float = 1e-8,
    max_rank: int | None = None,
    init: Any = None,
    **settings: Any,
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
        x_val: `(n_val, d)`; with validation data the best fit is the one with the least error
            there, else the one with the least `‖Ψ(x) K − y‖² + α ‖K‖²`.
        y_val: `(n_val, q)`.
        metric: `(q, q)`, positive semidefinite: errors are `e M eᵀ`, which decides what a rank
            keeps and which fit is best.
        rtol: share of the norm, in the metric of the data, that all splits together may cut off;
            only where `adaptive`.
        max_rank: largest rank where `adaptive`; else a padding, within which other ranks need no
            other compilation. The default is the largest of `rank`, and at least 16 if adaptive.
        init: `TensorKoopman`, `TTMatrix` or `TensorTrain` over the same modes to start from.
        **settings: fields of `AlsSettings` (`sweeps=4`, `adaptive=False`, `batch_size`,
            `patience`, `dtype`).

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
    fitter = AlsFitter.of(psi, x, y, AlsSettings(**settings), x_val, y_val, metric)
    fitter.require_finite()
    least = ADAPTIVE_RANK if fitter.settings.adaptive else 1
    padding = max_rank or max(int(np.max(ranks)), least)
    fit = fitter.fit(
        ranks.astype(np.int32), key, max_rank=padding, alpha=alpha, rtol=rtol, init=init
    )
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
    x_val: Any = None,
    y_val: Any = None,
    metric: Any = None,
    rtol: ArrayLike = 1e-8,
    init: Any = None,
    **settings: Any,
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
        x_val: `(n_val, d)`.
        y_val: `(n_val, q)`.
        metric: `(q, q)`.
        rtol: see `als`; an array.
        init: concrete, see `als`.
        **settings: see `als`; static. With `patience` lanes wait for the last one.

    Returns:
        `PaddedKoopman`, its `result` `NONFINITE_DATA` where the data are not finite.

    Numerics:
        Called with concrete arrays, sums over samples and all factorisations are in float64 where
        the backend has it. Under a transformation everything runs in the dtype of `x`.
    """
    beside = rank, key, alpha, rtol
    fitter = AlsFitter.of(psi, x, y, AlsSettings(**settings), x_val, y_val, metric, beside)
    return fitter.fit(rank, key, max_rank=max_rank, alpha=alpha, rtol=rtol, init=init)
