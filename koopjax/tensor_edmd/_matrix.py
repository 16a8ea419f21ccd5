"""A weight matrix as a TT matrix, close in the metric of its inputs and outputs."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from koopjax import tt
from koopjax._core import (
    NONFINITE_SOLUTION,
    SUCCESS,
    as_whole,
    check_finite,
    check_metric,
    check_number,
    expected,
    precise_as,
    pytree,
    semidefinite_root,
    static,
    traced,
    working_dtype,
)
from koopjax.tensor_edmd import _matrix_solve as als
from koopjax.tensor_edmd._result import Trained

STARTS = ("whitened", "plain")
#: Eigenvalues below this share of the largest are raised to it where a metric is inverted.
FLOOR = 1e-4


@pytree
class MatrixInfo:
    """What an approximation of a matrix says about itself.

    Attributes:
        error: `‖W − T‖ / ‖W‖` in the norm `‖E‖² = tr(M Eᵀ G E)`.
        start: the same before the first sweep.
        history: the same after each sweep, `(sweeps,)`.
        residual: what is left of the normal equations of the last sweep's cores, relative, the
            largest: how exactly they were solved.
        swaps: rows and columns that traded places, `(2,)`.
        method: "als" (static).
        reason: which start was taken, which rank was clipped, why it stopped (static).
    """

    error: Any
    start: Any
    history: Any
    residual: Any
    swaps: Any
    method: str = static(default="als")
    reason: str = static(default="")


@pytree
class MatrixApproximation(Trained):
    """A TT matrix `T` close to a matrix: `train[s, t] = T[row_order[s], column_order[t]]`.

    Attributes:
        train: `TTMatrix` of the rows and columns in their orders.
        row_order: `(m,)` indices: `x[:, row_order]` is what the train takes.
        column_order: `(n,)` indices: the train gives `(x T)[:, column_order]`. The order of hidden
            units costs nothing: the bias and the next layer's rows are put in the same one.
        info: `MatrixInfo`.
        result: int32 result code, as in `edmd.solve`.
    """

    train: Any
    row_order: Any
    column_order: Any
    info: Any
    result: Any

    def to_dense(self) -> Float[Array, "m n"]:
        """The approximation `T` of the matrix, in the matrix's own order."""
        with precise_as(self.train.dtype):
            return als.in_order(self.train.cores, self.row_order, self.column_order)


def approximate(
    matrix: Float[Array, "m n"],
    row_modes: Sequence[int],
    column_modes: Sequence[int],
    rank: int | Sequence[int],
    *,
    gram: Float[Array, "m m"] | None = None,
    metric: Float[Array, "n n"] | None = None,
    row_order: Int[Array, " m"] | str | None = None,
    column_order: Int[Array, " n"] | str | None = None,
    sweeps: int = 20,
    rtol: float = 1e-4,
    tol: float = 1e-6,
    iterations: int = 8,
    init: Any = None,
) -> MatrixApproximation:
    """The TT matrix that is closest in the metric of the data: `min tr(M (W − T)ᵀ G (W − T))`.

    With `G = Xᵀ X / n` the error is that of the layer's output on the data, `‖X (W − T)‖² / n`;
    with M as well, that of what the network makes of it (`analysis.output_metric` of what follows
    the layer). Alternating least squares: each core is solved with the others held and orthogonal,
    so that the error never rises. No labels, and no training of the network.

    Which rows and columns stand next to each other decides what a train can say. With `"search"`
    they trade places between sweeps, wherever that lowers the same error. The order of columns is
    free in a network, since the next layer's rows can be put in it; that of rows is a table of `m`
    indices beside the cores (or is put into the layer before).

    Args:
        matrix: `(m, n)`, acting from the right: `y = x W`.
        row_modes: `d` sizes whose product is `m`.
        column_modes: `d` sizes whose product is `n`.
        rank: one rank for all bonds, or `d - 1`; clipped to what the modes allow, which
            `info.reason` says.
        gram: positive semidefinite, of the inputs; the identity by default. Centred
            (`G - mean meanᵀ`), it goes with a bias that takes up the shift `mean (W - T)`.
        metric: positive semidefinite, of the outputs; the identity by default.
        row_order: an order to use, `"search"`, or the natural one.
        column_order: likewise.
        sweeps: at most so many, there and back each.
        rtol: stop where a sweep lowers the error by less than this share and nothing moves.
        tol: relative residual at which a core counts as solved.
        iterations: at most so many steps of conjugate gradients a core; few are best while the
            neighbours still move, many where `W` is a TT matrix already.
        init: a `TTMatrix` of the modes and ranks to start from; `"plain"`: TT-SVD of W;
            `"whitened"`: TT-SVD in the Kronecker product of the metrics' partial traces; by
            default the better of these two.

    Returns:
        `MatrixApproximation`: `.train`, `.row_order`, `.column_order`, `.to_dense()`, `.info`,
        `.result`; in the dtype of the matrix.

    Numerics:
        In the dtype of the matrix, at least float32. A core's normal equations are never formed:
        conjugate gradients start from the core there is, preconditioned by the Kronecker product of
        small matrices that they would be for separable metrics; a step costs
        `2 m n (m + n)` operations. A search costs `2 m³` or `2 n³` a batch of swaps, on the host.

    Raises:
        ValueError: modes that do not multiply to the shape (it says which would), a rank below 1,
            NaN, a metric of another shape, unsymmetric or indefinite, an order that is none, a call
            under jit.

    Example:
        >>> import numpy as np
        >>> weight = np.kron(np.ones((2, 3)), np.arange(4.0).reshape(2, 2))
        >>> found = approximate(weight, (2, 2), (3, 2), 1)
        >>> found.ranks, float(found.info.error) < 1e-6
        ((1, 1, 1), True)

    Reference: Holtz, Rohwedder & Schneider (2012), SIAM J. Sci. Comput. 34 (alternating least
    squares); Novikov, Podoprikhin, Osokin & Vetrov (2015), NeurIPS 28 (weights as TT matrices).
    """
    given: Any = matrix if hasattr(matrix, "dtype") else np.asarray(matrix)
    if traced(given, gram, metric):
        raise expected(
            "concrete values in approximate, which looks at them on the host", "a call under jit"
        )
    _check_matrix(given)
    for name, value in (("rtol", rtol), ("tol", tol)):
        check_number(name, value, 0, np.nextafter(1, 0))
    sweeps, iterations = as_whole("sweeps", sweeps, 0), as_whole("iterations", iterations, 0)
    m, n = given.shape
    modes = _check_modes(given.shape, row_modes, column_modes)
    ranks, clipped = tt.clip_ranks([i * j for i, j in zip(*modes, strict=True)], rank)
    check_metric("gram", gram, m)
    check_metric("metric", metric, n)
    orders = _check_order("row_order", row_order, m), _check_order("column_order", column_order, n)
    searching = [isinstance(o, str) for o in (row_order, column_order)]
    with precise_as(given.dtype):
        problem = _Ordered(given, gram, metric, modes, orders)
        cores, began = _start(problem, init, ranks)
        problem, cores, info = _swept(problem, cores, searching, sweeps, rtol, tol, iterations)
        reason = "; ".join(part for part in (f"from {began}", clipped, info.reason) if part)
        info = dataclasses.replace(info, reason=reason)
        finite = all(np.isfinite(np.asarray(core)).all() for core in cores)
        code = jnp.int32(SUCCESS if finite else NONFINITE_SOLUTION)
        train = tt.TTMatrix(tuple(core.astype(given.dtype) for core in cores))
        rows, columns = problem.orders
        return MatrixApproximation(train, rows, columns, info, code)


def _swept(
    problem: "_Ordered", cores: Any, searching: Sequence[bool], sweeps: int, rtol: float,
    tol: float, iterations: int,
) -> tuple["_Ordered", Any, MatrixInfo]:  # fmt: skip
    """Sweeps with searches between them; the last two are left to the cores alone."""
    cores = als.right_orthogonal(cores)
    first = before = problem.error(cores)
    history, swaps, residual = [], np.zeros(2, np.int64), 0.0
    why = f"stopped after {sweeps} sweeps"
    for number in range(sweeps):
        cores, now, residual = als.sweep(cores, *problem.arrays, *problem.factors, tol, iterations)
        history.append(float(now))
        traded = np.zeros(2, np.int64)
        for axis in (0, 1):
            if searching[axis] and number < sweeps - 2:
                problem, traded[axis] = problem.searched(cores, axis)
        swaps += traded
        if not traded.any() and before - history[-1] <= rtol * before:
            why = f"converged to rtol after {number + 1} sweeps"
            break
        before = history[-1]
    number = lambda value: jnp.asarray(value, problem.arrays[0].dtype)
    last = number([first, *history][-1])
    found = MatrixInfo(last, number(first), number(history), number(residual), swaps, reason=why)
    return problem, cores, found


class _Ordered:
    """A matrix and its metrics in an order of rows and columns.

    Attributes:
        arrays: the matrix, the Gram matrix and the output metric, in this order.
        factors: Kronecker factors of both metrics.
        orders: of rows and of columns.
    """

    arrays: tuple[Array, Any, Any]
    factors: tuple[Any, Any]

    def __init__(self, weight: Any, gram: Any, metric: Any, modes: Any, orders: Any) -> None:
        self.given, self.orders = (weight, gram, metric, modes), orders
        self.modes: tuple[Any, Any] = modes
        dtype, (p, q) = working_dtype(weight.dtype), orders
        # Put in order on the host, where nothing is compiled for it.
        gram, metric = (
            None if a is None else np.asarray(a)[order][:, order]
            for a, order in ((gram, p), (metric, q))
        )
        put = lambda a: jnp.asarray(a.astype(dtype))
        held = [None if a is None else put(a) for a in (gram, metric)]
        self.arrays = put(np.asarray(weight)[p][:, q]), held[0], held[1]
        rows, columns = map(als.kronecker_factors, (gram, metric), modes)
        self.factors = tuple(map(put, rows)), tuple(map(put, columns))

    def error(self, cores: Any) -> float:
        """Relative, of a train in this order."""
        return float(als.error(cores, *self.arrays))

    def searched(self, cores: Any, axis: int) -> tuple["_Ordered", int]:
        """Rows (0) or columns (1) traded where that lowers the error, and how many did."""
        a, k, r, energy = als.assignment(cores, *self.arrays, columns=bool(axis))
        slots, swaps = als.search(a, k, r, float(energy))
        orders = list(self.orders)
        orders[axis] = orders[axis][np.argsort(slots)]
        return _Ordered(*self.given, orders), swaps


def _whitened_start(
    weight: Any, rows: Any, columns: Any, row_modes: Any, column_modes: Any, ranks: Any
) -> tuple[Array, ...]:
    """TT-SVD of `R W C` with Kronecker roots R, C of the metrics, which the cores then lose again.

    A Kronecker product acts on each core alone, so the way back costs no rank.
    """
    host = np.asarray(weight, np.float64).reshape(*row_modes, *column_modes)
    inverse = []
    for axis, factor in enumerate([*rows, *columns]):
        root = semidefinite_root(np.asarray(factor, np.float64), FLOOR)
        host = np.moveaxis(np.tensordot(root.symmetric, host, (1, axis)), 0, axis)
        inverse.append(root.inverse)
    whitened = host.reshape(weight.shape)
    train = tt.matrix_from_dense(whitened, row_modes, column_modes, ranks)
    back = zip(train.cores, inverse[: len(rows)], inverse[len(rows) :], strict=True)
    cores = [np.einsum("aijb,ip,jq->apqb", np.asarray(c), g, m) for c, g, m in back]
    return tuple(jnp.asarray(core, weight.dtype) for core in cores)


def _start(problem: _Ordered, init: Any, ranks: Any) -> tuple[tuple[Array, ...], str]:
    """Cores to begin with, the better of two where the caller has none, and which they are."""
    weight, (row_modes, column_modes) = problem.arrays[0], problem.modes
    if isinstance(init, tt.TTMatrix):
        found = init.row_modes, init.column_modes, init.ranks
        if found != (row_modes, column_modes, ranks):
            raise expected(
                f"an init of modes {row_modes} and {column_modes} and ranks {ranks}", f"{found}"
            )
        return tuple(jnp.asarray(core, weight.dtype) for core in init.cores), "the given cores"
    if init not in (None, *STARTS):
        raise expected(f"init a TTMatrix or one of {STARTS}", repr(init))
    starts: dict[str, tuple[Array, ...]] = {}
    if init != "whitened":
        plain = tt.matrix_from_dense(weight, row_modes, column_modes, ranks)
        starts["plain"] = plain.cores
    if init != "plain":
        starts["whitened"] = _whitened_start(weight, *problem.factors, *problem.modes, ranks)
    best = min(starts, key=lambda name: problem.error(starts[name]))
    return starts[best], f"{best} TT-SVD"


def _modes_of(size: int, d: int) -> tuple[int, ...]:
    """A split of a size into `d` modes that are as equal as its primes allow."""
    modes, rest, factor = [1] * d, size, 2
    primes = []
    while rest > 1:
        while rest % factor == 0:
            primes.append(factor)
            rest //= factor
        factor = factor + 1 if factor * factor <= rest else max(rest, factor + 1)
    for prime in sorted(primes, reverse=True):
        modes[modes.index(min(modes))] *= prime
    return tuple(sorted(modes, reverse=True))


def _check_modes(shape: Sequence[int], rows: Any, columns: Any) -> tuple[Any, Any]:
    """Row and column modes as tuples of integers whose products are the shape."""
    out = []
    for name, size, modes in (("row", shape[0], rows), ("column", shape[1], columns)):
        if not isinstance(modes, Sequence | np.ndarray) or isinstance(modes, str):
            raise expected(f"a sequence of {name} modes", f"{modes!r:.60}", f"{_modes_of(size, 2)}")
        whole = all(isinstance(m, int | np.integer) and m >= 1 for m in modes)
        if not whole or not len(modes) or math.prod(modes) != size:
            fits = _modes_of(size, max(len(modes), 1))
            raise expected(
                f"{name} modes of at least 1 that multiply to {size}", f"{tuple(modes)}", f"{fits}"
            )
        out.append(tuple(int(m) for m in modes))
    if len(out[0]) != len(out[1]):
        d = max(map(len, out))
        short = 0 if len(out[0]) < d else 1
        raise expected(
            "as many row modes as column modes", f"{out[0]} and {out[1]}",
            f"{('row', 'column')[short]}_modes={_modes_of(shape[short], d)}",
        )  # fmt: skip
    return out[0], out[1]


def _check_matrix(matrix: Any) -> None:
    """Two axes, none of them empty, floating, and finite."""
    shape = tuple(np.shape(matrix))
    if len(shape) != 2 or 0 in shape:
        raise expected("a matrix with two axes, none empty", f"shape {shape}")
    if not jnp.issubdtype(matrix.dtype, jnp.floating):
        raise expected("a matrix of real floating-point numbers", f"dtype {matrix.dtype}")
    check_finite("the matrix", matrix)


def _check_order(name: str, order: Any, size: int) -> np.ndarray:
    """An order as an array of indices, each once; the natural one for None and "search"."""
    if order is None or (isinstance(order, str) and order == "search"):
        return np.arange(size)
    given = np.asarray(order)
    if given.shape != (size,) or not np.array_equal(np.sort(given), np.arange(size)):
        raise expected(
            f'{name} None, "search", or every index below {size} once',
            repr(order) if isinstance(order, str) else f"an array of shape {given.shape}",
        )
    return given.astype(np.int64)
