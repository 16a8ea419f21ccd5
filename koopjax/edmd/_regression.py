"""A regression made ready: data checked, dictionaries sized, and one pass over it."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from koopjax._core import (
    as_dtype,
    check_dictionary,
    expected,
    has_float64,
    precise_as,
    traced,
    working_dtype,
)
from koopjax.edmd._accumulate import Lift, run
from koopjax.edmd._inputs import (
    check_arrays,
    check_batch_size,
    check_stream,
    fold_layout,
    peek,
)
from koopjax.edmd._memory import observed_dtype
from koopjax.edmd._statistics import KINDS, Statistics
from koopjax.observables import contains_state


@dataclasses.dataclass(frozen=True)
class Regression:
    """Validated data and dictionaries, and how they are to be gone through.

    Attributes:
        lift: both dictionaries and the state carried along.
        columns: where the state is among the observables, for a readout without regression; None
            where it has to be regressed or is not asked for.
        source: snapshots before, or the stream with its first batch put back.
        again: the same for a second pass; None where there can't be one.
        y: snapshots after; None for a stream.
        weights: of the samples.
        folds: number of folds to stack, or None.
        sizes: `(p, q)` without the state carried along.
        widths: `(d, d_out)`.
        dtype: of the observables.
        batch_size, mesh, accumulate_dtype, memory_limit: as in `accumulate`.
    """

    lift: Lift
    columns: np.ndarray | None
    source: Any
    again: Any
    y: Any
    weights: Any
    folds: Any
    sizes: tuple[int, int]
    widths: tuple[int, int]
    dtype: Any
    batch_size: int | None
    mesh: Mesh | None
    accumulate_dtype: Any
    memory_limit: int | None

    @property
    def staged(self) -> bool:
        """Whether values can't be looked at."""
        return traced(self.lift, None if self.y is None else self.source, self.y, self.weights)

    @property
    def data(self) -> tuple[Any, Any, Any, Any]:
        """What `run` goes through."""
        return self.lift, self.source, self.y, self.weights

    def plan(self, kind: type) -> dict[str, Any]:
        """How `run` goes through it."""
        return {
            "kind": kind,
            "dtype": self._sum_dtype(),
            "batch_size": self.batch_size,
            "folds": self.folds,
            "mesh": self.mesh,
            "memory_limit": self.memory_limit,
        }

    def _sum_dtype(self) -> Any:
        """The dtype of the sums: as asked, else float64 where it can be had."""
        if self.accumulate_dtype is not None:
            asked = as_dtype("accumulate_dtype", self.accumulate_dtype)
            return jnp.dtype(working_dtype(asked))
        if self.staged or not has_float64():
            return jnp.dtype(working_dtype(self.dtype))
        return jnp.dtype("float64")


def prepare(
    lift: Lift, x: Any, y: Any, weights: Any, folds: Any, *, batch_size: Any, **options: Any
) -> Regression:
    """Validate data and sizes before anything is allocated."""
    check_dictionary("psi", lift.psi)
    if lift.target is not None:
        check_dictionary("target", lift.target)
    batch_size = check_batch_size(batch_size)
    same = False
    if y is None:
        folds = check_stream(weights, folds)
        source, probe = peek(x, lift)
        again = None if iter(x) is x else x
    else:
        x, y, weights, same = check_arrays(x, y, weights, lift.target, lift)
        source, probe, again = x, (x, y), x
    widths = probe[0].shape[1], probe[1].shape[1]
    lift, columns = _without_regression(lift, widths)
    lift = dataclasses.replace(lift, same=same and not lift.state)
    dtype = observed_dtype(lift, *probe, options["memory_limit"])
    if y is not None:
        folds, source, y, weights = fold_layout(folds, source, y, weights)
        again = source
    sizes = Lift(lift.psi, lift.target).sizes(*widths)
    return Regression(
        lift, columns, source, again, y, weights, folds, sizes, widths, dtype, batch_size, **options
    )


def _without_regression(lift: Lift, widths: tuple[int, int]) -> tuple[Lift, np.ndarray | None]:
    """A lift that does not carry the state where it is among the observables, and its columns.

    Read off, the state is exact whatever the ridge; regressed, it would be shrunk a second time.
    """
    if not lift.state:
        return lift, None
    before = lift.state == "x" or lift.target is None
    psi, d = (lift.psi, widths[0]) if before else (lift.target, widths[1])
    columns = contains_state(psi, d)
    return lift if columns is None else dataclasses.replace(lift, state=""), columns


def kind_of(statistics: Any) -> type:
    """The class of statistics that a name or a class stands for."""
    if isinstance(statistics, str) and statistics in KINDS:
        return KINDS[statistics]
    if isinstance(statistics, type) and statistics in KINDS.values():
        return statistics
    raise expected(
        "statistics 'auto', 'gram', 'rfactor', edmd.Gram or edmd.RFactor", repr(statistics)
    )


def accumulate(
    psi: Any,
    x: Any,
    y: Any = None,
    *,
    target: Any = None,
    statistics: Any = "gram",
    folds: Any = None,
    weights: Any = None,
    batch_size: int | None = None,
    mesh: Mesh | None = None,
    accumulate_dtype: Any = None,
    memory_limit: int | None = None,
) -> Statistics:
    """Statistics of lifted snapshots in one pass, from which every solver works.

    From one pass come all ridges, ranks, folds and smaller dictionaries: see `solve`,
    `CrossValidated` and `Gram.select`.

    Args:
        psi: dictionary of the snapshots before.
        x: snapshots before `(n, d)`, or an iterable of pairs `(x, y)` (or triples with weights);
            then `y` and `weights` stay None and memory does not depend on how many there are.
        y: snapshots after `(n, d_out)`. The same object as `x` (with `target=None`): Ψ is
            evaluated once and one product serves.
        target: dictionary of the snapshots after; None for `psi`.
        statistics: "gram" or "rfactor", or the classes themselves.
        folds: None; a number k, which puts sample i into fold `i mod k`; or `(n,)` fold numbers
            (blocks of a time series, say). The result is then stacked by fold.
        weights: `(n,)`, not negative.
        batch_size: rows lifted at a time; None chooses by size.
        mesh: rows are divided over all its devices; Gram matrices are summed (`psum`), R factors
            gathered and merged as a tree.
        accumulate_dtype: dtype of the sums. None: float64 where the backend has it, the caller's
            dtype under jit, vmap or grad.
        memory_limit: bytes that statistics and blocks may take; None: what the machine has free.

    Returns:
        `Gram` or `RFactor`. In float64 where x64 is off, use its methods (which know), or
        `.astype(jnp.float32)` before mixing it into float32 computations.

    Raises:
        ValueError: wrong shapes, no samples, NaN or infinity in concrete arrays, or a dictionary
            too large for the memory (the message says what would fit).

    Example:
        >>> import jax.numpy as jnp
        >>> from koopjax import edmd, observables
        >>> x = jnp.linspace(-1.0, 1.0, 50)[:, None]
        >>> edmd.accumulate(observables.Monomials(2), x, 0.5 * x).sizes
        (3, 3)
    """
    kind = kind_of(statistics)
    regression = prepare(
        Lift(psi, target), x, y, weights, folds, batch_size=batch_size, mesh=mesh,
        accumulate_dtype=accumulate_dtype, memory_limit=memory_limit,
    )  # fmt: skip
    with precise_as(regression.dtype):
        return run(*regression.data, **regression.plan(kind))
