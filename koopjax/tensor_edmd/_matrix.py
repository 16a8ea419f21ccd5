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
    traced,
    working_dtype,
)
from koopjax.tensor_edmd import _matrix_solve as als
from koopjax.tensor_edmd._matrix_problem import Problem, start
from koopjax.tensor_edmd._matrix_result import MatrixApproximation, MatrixInfo


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
    settings = _settings(sweeps, rtol, tol, iterations)
    with precise_as(given.dtype):
        problem, ranks, clipped = _problem(
            given, (row_modes, column_modes), rank, (gram, metric), (row_order, column_order)
        )
        cores, began = start(problem, init, ranks)
        searching = [isinstance(o, str) for o in (row_order, column_order)]
        cores, info = _run(problem, cores, searching, settings)
        reason = "; ".join(part for part in (f"from {began}", clipped, info.reason) if part)
        finite = jnp.stack([jnp.isfinite(core).all() for core in cores]).all()
        return MatrixApproximation(
            tt.TTMatrix(tuple(core.astype(given.dtype) for core in cores)),
            problem.row_order,
            problem.column_order,
            dataclasses.replace(info, reason=reason),
            jnp.where(finite, SUCCESS, NONFINITE_SOLUTION).astype(jnp.int32),
        )


@dataclasses.dataclass(frozen=True)
class Settings:
    """When to stop."""

    sweeps: int
    rtol: float
    tol: float
    iterations: int


def _settings(sweeps: Any, rtol: Any, tol: Any, iterations: Any) -> Settings:
    for name, value in (("rtol", rtol), ("tol", tol)):
        check_number(name, value, 0, np.nextafter(1, 0))
    return Settings(as_whole("sweeps", sweeps, 0), rtol, tol, as_whole("iterations", iterations, 0))


def _problem(
    matrix: Any, modes: Any, rank: Any, metrics: Any, orders: Any
) -> tuple[Problem, tuple[int, ...], str]:
    """Everything checked: the problem, all ranks, and a sentence on what was clipped."""
    rows, columns = _check_modes(matrix.shape, *modes)
    ranks, clipped = tt.clip_ranks([m * n for m, n in zip(rows, columns, strict=True)], rank)
    names = (("gram", "row_order"), ("metric", "column_order"))
    found = []
    dtype = working_dtype(matrix.dtype)
    for size, (of_metric, of_order), metric, order in zip(
        matrix.shape, names, metrics, orders, strict=True
    ):
        check_metric(of_metric, metric, size)
        array = None if metric is None else jnp.asarray(metric, dtype)
        found.append((array, _check_order(of_order, order, size)))
    weight = jnp.asarray(matrix, dtype)
    orders = [chosen for _, chosen in found]
    problem = Problem(weight, found[0][0], found[1][0], (rows, columns), orders)
    return problem, ranks, clipped or ""


def _run(
    problem: Problem, cores: Any, searching: list[bool], settings: Settings
) -> tuple[Any, MatrixInfo]:
    """Sweeps, with searches between them; the last two are left to the cores alone."""
    cores = als.right_orthogonal(cores)
    arrays = problem.ordered()
    first = before = als.error(cores, *arrays)
    history, swaps = [], np.zeros(2, np.int64)
    residual, why = jnp.zeros((), first.dtype), f"stopped after {settings.sweeps} sweeps"
    for number in range(settings.sweeps):
        cores, now, residual = als.sweep(
            cores, *arrays, *problem.factors(*arrays[1:]), settings.tol, settings.iterations,
        )  # fmt: skip
        history.append(now)
        traded = 0
        if any(searching) and number < settings.sweeps - 2:
            counts = problem.reorder(cores, *searching)
            swaps, traded = swaps + counts, counts.sum()
            arrays = problem.ordered() if traded else arrays
        if not traded and before - now <= settings.rtol * before:
            why = f"converged to rtol after {number + 1} sweeps"
            break
        before = now
    series = jnp.stack(history) if history else jnp.zeros(0, first.dtype)
    last = history[-1] if history else first
    return cores, MatrixInfo(last, first, series, residual, swaps, reason=why)


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
