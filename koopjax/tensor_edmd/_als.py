"""Alternating least squares: a tensor train fitted core by core, all outputs in one train."""

from typing import Any

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from koopjax._core import (
    check_number,
    expected,
    own_rules,
)
from koopjax.tensor_edmd._als_fit import AlsFitter, AlsSettings
from koopjax.tensor_edmd._padded import PaddedKoopman
from koopjax.tensor_edmd._result import TensorKoopman

#: Largest rank of an adaptive fit, unless asked otherwise.
ADAPTIVE_RANK = 16


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
