"""A matrix with its metrics in an order that changes, and the cores to start from."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from koopjax import tt
from koopjax._core import expected, matmul, semidefinite_root
from koopjax.tensor_edmd import _matrix_order as order, _matrix_solve as als

STARTS = ("whitened", "plain")
#: Eigenvalues below this share of the largest are raised to it where a metric is inverted.
FLOOR = 1e-4


class Problem:
    """The matrix and its metrics, in an order of rows and columns that changes on the way."""

    def __init__(self, weight: Array, gram: Any, metric: Any, modes: Any, orders: Any) -> None:
        self.weight, self.gram, self.metric = weight, gram, metric
        self.modes = modes
        self.row_order, self.column_order = orders

    def ordered(self) -> tuple[Array, Any, Any]:
        """Matrix, Gram matrix and output metric in the present order."""
        p, q = self.row_order, self.column_order
        gram = None if self.gram is None else self.gram[p][:, p]
        metric = None if self.metric is None else self.metric[q][:, q]
        return self.weight[p][:, q], gram, metric

    def factors(self, gram: Any, metric: Any) -> tuple[Any, Any]:
        """Kronecker factors of both metrics."""
        dtype = self.weight.dtype
        rows, columns = self.modes
        return (
            als.kronecker_factors(gram, rows, dtype),
            als.kronecker_factors(metric, columns, dtype),
        )

    def reorder(self, cores: tuple[Array, ...], rows: bool, columns: bool) -> np.ndarray:
        """Let rows and columns trade places where that lowers the error; how many did."""
        swaps = np.zeros(2, np.int64)
        approximation = als.full_matrix(cores)
        for axis, wanted in enumerate((rows, columns)):
            if not wanted:
                continue
            weight, gram, metric = self.ordered()
            a, k, r, energy = _assignment(approximation, weight, gram, metric, axis)
            slots, swaps[axis] = order.search(a, k, r, float(energy))
            if axis == 0:
                self.row_order = order.moved(self.row_order, slots)
            else:
                self.column_order = order.moved(self.column_order, slots)
        return swaps


@jax.jit
def _assignment_rows(t: Array, weight: Array, gram: Any, metric: Any) -> tuple[Array, ...]:
    a = jnp.eye(t.shape[0], dtype=t.dtype) if gram is None else gram
    right = t.T if metric is None else matmul(metric, t.T)
    target = als.weigh(gram, weight, None)
    energy = jnp.vdot(weight, als.weigh(gram, weight, metric))
    return a, matmul(t, right), matmul(target, right), energy


def _assignment(t: Array, weight: Array, gram: Any, metric: Any, axis: int) -> tuple[Any, ...]:
    """What `order.search` needs, for rows or (transposed) for columns."""
    if axis == 0:
        return _assignment_rows(t, weight, gram, metric)
    return _assignment_rows(t.T, weight.T, metric, gram)


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


def start(problem: "Problem", init: Any, ranks: Any) -> tuple[tuple[Array, ...], str]:
    """Cores to begin with, the better of two where the caller has none, and which they are."""
    weight, gram, metric = problem.ordered()
    row_modes, column_modes = problem.modes
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
        factors = problem.factors(gram, metric)
        starts["whitened"] = _whitened_start(weight, *factors, row_modes, column_modes, ranks)
    errors = {name: float(als.error(c, weight, gram, metric)) for name, c in starts.items()}
    best = min(errors, key=lambda name: errors[name])
    return starts[best], f"{best} TT-SVD"
