"""One pass over the data: arrays in blocks, streams, folds, the devices of a mesh."""

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from koopjax._core import (
    as_dtype,
    check_dictionary,
    expected,
    has_float64,
    held_leaves,
    is_tracing,
    is_wide,
    precise_as,
    promoted,
    pytree,
    static,
    traced,
    working_dtype,
)
from koopjax.edmd._inputs import (
    batches_of,
    check_arrays,
    check_batch_size,
    check_mesh,
    check_stream,
    fold_layout,
    peek,
)
from koopjax.edmd._memory import check_memory, observed_dtype
from koopjax.edmd._statistics import KINDS, Gram, RFactor, Statistics, merge_stacked
from koopjax.observables import Observables, require_rowwise

# Rows in a block hold about this many numbers: large enough for the product to run at full rate,
# small enough that a block stays a small part of memory.
BLOCK_NUMBERS = 2**25


@pytree
class Lift:
    """Both dictionaries of a regression, and which state is carried along as further targets.

    Attributes:
        psi: dictionary of the snapshots before.
        target: dictionary of the snapshots after; None for the same.
        state: "" for nothing, "x" to append the snapshots before to the targets, "y" for those
            after (static). A readout is then regressed out of the same statistics.
        same: the snapshots after are those before, so Ψ is evaluated once (static).
    """

    psi: Any
    target: Any = None
    state: str = static(default="")
    same: bool = static(default=False)

    def __call__(self, x: Any, y: Any) -> tuple[Any, Any]:
        """Lifted snapshots before and after, `(n, p)` and `(n, q)`."""
        psi_x = _lifted(self.psi, x)
        if self.same and self.target is None and not self.state:
            return psi_x, psi_x
        psi_y = _lifted(self.psi if self.target is None else self.target, y)
        if self.state:
            extra = x if self.state == "x" else y
            dtype = promoted(psi_y.dtype, extra.dtype)
            psi_y = jnp.concatenate([psi_y.astype(dtype), extra.astype(dtype)], axis=1)
        return psi_x, psi_y

    def sizes(self, d: int, d_out: int) -> tuple[int, int]:
        """`(p, q)` for inputs of these sizes, without evaluating anything."""
        extra = {"": 0, "x": d, "y": d_out}[self.state]
        after = self.psi if self.target is None else self.target
        return int(self.psi.size(d)), int(after.size(d_out)) + extra


def _lifted(psi: Any, x: Any) -> Any:
    """`psi(x)`, of a callable of the user's own as of an `Observables`: each row by itself."""
    if not isinstance(psi, Observables):
        require_rowwise(psi, _call, x)
    return psi(x)


def _call(psi: Any, x: Any) -> Any:
    return psi(x)


def block_rows(n: int | None, numbers: int, kind: type, folds: int | None) -> int:
    """Rows in a block: near `BLOCK_NUMBERS` numbers; equal blocks; a multiple of the folds."""
    rows = min(max(BLOCK_NUMBERS // max(numbers, 1), 256), 65536)
    if kind is RFactor:
        # Every block's QR goes over the factor again: tall blocks make that a small part.
        rows = max(rows, 2 * numbers)
    if n is not None:
        rows = -(-n // -(-n // rows))
    return -(-rows // (folds or 1)) * (folds or 1)


def _empty(kind: type, lift: Lift, x: Any, y: Any, dtype: Any, folds: int | None) -> Any:
    """The statistics of no samples, which know the dtype that the observables come in."""
    before, after = jax.eval_shape(lift, x[:1], y[:1])
    unit = kind.empty(before.shape[1], after.shape[1], dtype)
    if jnp.finfo(before.dtype).eps > jnp.finfo(dtype).eps:
        unit = dataclasses.replace(unit, observed=jnp.dtype(before.dtype).name)
    if folds is None:
        return unit
    return jax.tree.map(lambda a: jnp.broadcast_to(a, (folds, *a.shape)), unit)


def _absorb(carry: Any, lift: Lift, x: Any, y: Any, weights: Any, folds: int | None) -> Any:
    """Merge one block of snapshots into the statistics; row i belongs to fold `i mod folds`."""
    psi_x, psi_y = lift(x, y)
    same = psi_y is psi_x
    if folds is None:
        return carry.update(psi_x, psi_y, weights)
    split = lambda a: jnp.swapaxes(a.reshape(-1, folds, *a.shape[1:]), 0, 1)
    if same:
        return jax.vmap(lambda c, a, w: c.update(a, a, w))(carry, split(psi_x), split(weights))
    update = jax.vmap(lambda c, a, b, w: c.update(a, b, w))
    return update(carry, split(psi_x), split(psi_y), split(weights))


def _unweighted(carry: Any, lift: Lift, x: Any, y: Any, batch: int) -> Any:
    """Whole blocks, then the rows left over as a block of their own.

    No weights and no padding: multiplying every lifted row by a one costs some percent of the
    product itself.
    """
    n = x.shape[0]
    whole = n // batch

    def rows(a: Any, start: Any) -> Any:
        return jax.lax.dynamic_slice_in_dim(a, start, batch)

    def step(carry: Any, start: Any) -> tuple[Any, None]:
        y_rows = None if lift.same else rows(y, start)
        return _absorb(carry, lift, rows(x, start), y_rows, None, None), None

    if whole == 1:
        carry, _ = step(carry, 0)
    else:
        # Rematerialised, so that a gradient keeps no lifted block either.
        body = jax.checkpoint(step, prevent_cse=False)
        carry, _ = jax.lax.scan(body, carry, batch * jnp.arange(whole))
    if whole * batch == n:
        return carry
    rest = slice(whole * batch, n)
    return _absorb(carry, lift, x[rest], None if lift.same else y[rest], None, None)


def _scan(
    lift: Lift, x: Any, y: Any, weights: Any, kind: type, dtype: Any, batch: int, folds: int | None
) -> Any:
    """Fold blocks of rows into the statistics; memory is one block, whatever n."""
    n = x.shape[0]
    count = -(-n // batch)
    carry = _empty(kind, lift, x, y, dtype, folds)

    def step(carry: Any, start: Any) -> tuple[Any, None]:
        rows = start + jnp.arange(batch)
        # The last block repeats the last row with weight zero: no copy of the data is padded.
        valid = (rows < n).astype(dtype)
        rows = jnp.minimum(rows, n - 1)
        w = valid if weights is None else jnp.where(valid > 0, weights[rows].astype(dtype), 0)
        y_rows = None if lift.same else y[rows]
        return _absorb(carry, lift, x[rows], y_rows, w, folds), None

    if weights is None and folds is None:
        return _unweighted(carry, lift, x, y, batch)
    if count == 1 and batch == n:
        w = jnp.ones(n, dtype) if weights is None else weights.astype(dtype)
        return _absorb(carry, lift, x, y, w, folds)
    # Rematerialised, so that a gradient keeps no lifted block either.
    carry, _ = jax.lax.scan(
        jax.checkpoint(step, prevent_cse=False), carry, batch * jnp.arange(count)
    )
    return carry


@functools.partial(jax.jit, static_argnames=("kind", "dtype", "batch", "folds"))
def _from_arrays(lift, x, y, weights, *, kind, dtype, batch, folds):
    return _scan(lift, x, y, weights, kind, dtype, batch, folds)


@functools.partial(jax.jit, static_argnames=("kind", "dtype", "batch", "folds", "mesh"))
def _from_mesh(lift, x, y, weights, *, kind, dtype, batch, folds, mesh):
    axes = tuple(mesh.axis_names)
    rows = PartitionSpec(axes)

    def local(lift, x, y, weights):
        part = _scan(lift, x, y, weights, kind, dtype, batch, folds)
        if kind is Gram:
            return jax.lax.psum(part, axes)
        return merge_stacked(jax.lax.all_gather(part, axes))

    # What all_gather and the merges give is the same everywhere, which the type check of varying
    # values can't see.
    mapped = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(PartitionSpec(), rows, rows, rows),
        out_specs=PartitionSpec(),
        check_vma=False,
    )
    return mapped(lift, x, y, weights)


@functools.partial(jax.jit, static_argnames=("folds",), donate_argnames=("carry",))
def _absorb_batch(carry, lift, x, y, weights, *, folds):
    return _absorb(carry, lift, x, y, weights, folds)


@functools.partial(jax.jit, donate_argnames=("carry",))
def _merge_batch(carry, part):
    return carry.merge(part)


def _on_mesh(lift, x, y, weights, *, kind, dtype, batch_size, folds, mesh: Mesh) -> Any:
    """Rows over all devices of a mesh; padded by repeating rows of weight zero."""
    devices = mesh.size
    n = x.shape[0]
    quantum = devices * (folds or 1)
    padded = -(-n // quantum) * quantum
    weights = jnp.ones(n, dtype) if weights is None else weights
    if padded != n:
        fill = lambda a: jnp.concatenate([a, jnp.repeat(a[-1:], padded - n, axis=0)])
        x, y = fill(x), fill(y)
        weights = jnp.concatenate([weights, jnp.zeros(padded - n, weights.dtype)])
    if not is_tracing(x, y, weights):
        sharding = NamedSharding(mesh, PartitionSpec(tuple(mesh.axis_names)))
        x, y, weights = (jax.device_put(a, sharding) for a in (x, y, weights))
        lift = jax.device_put(lift, NamedSharding(mesh, PartitionSpec()))
    local = padded // devices
    p, q = lift.sizes(x.shape[1], y.shape[1])
    batch = batch_size or block_rows(local, p + q, kind, folds)
    batch = min(-(-batch // (folds or 1)) * (folds or 1), local)
    return _from_mesh(
        lift, x, y, weights, kind=kind, dtype=dtype, batch=batch, folds=folds, mesh=mesh
    )


def accumulate_arrays(
    lift: Lift, x: Any, y: Any, weights: Any, *, kind, dtype, batch_size, folds, mesh
) -> Statistics:
    """Statistics of snapshots in memory; all inputs validated."""
    if mesh is not None:
        return _on_mesh(
            lift, x, y, weights, kind=kind, dtype=dtype, batch_size=batch_size, folds=folds,
            mesh=mesh,
        )  # fmt: skip
    n = x.shape[0]
    p, q = lift.sizes(x.shape[1], y.shape[1])
    batch = block_rows(n, p + q, kind, folds) if batch_size is None else min(batch_size, n)
    batch = -(-batch // (folds or 1)) * (folds or 1)
    return _from_arrays(lift, x, y, weights, kind=kind, dtype=dtype, batch=batch, folds=folds)


def accumulate_stream(
    lift: Lift, pairs: Iterable, *, kind, dtype, batch_size, folds, mesh, memory_limit
) -> Statistics:
    """Statistics of a stream of pairs (or triples with weights), in constant memory."""
    carry = None
    quantum = (folds or 1) * (mesh.size if mesh else 1)
    for x, y, weights in batches_of(pairs, batch_size, quantum, lift):
        if carry is None:
            check_memory(lift, x.shape, y.shape, kind, dtype, len(weights), folds, memory_limit)
            carry = _empty(kind, lift, x, y, dtype, folds)
        weights = jnp.asarray(weights, dtype)
        if mesh is None:
            with precise_as(x.dtype):
                carry = _absorb_batch(carry, lift, x, y, weights, folds=folds)
        else:
            part = _on_mesh(
                lift, x, y, weights, kind=kind, dtype=dtype, batch_size=None, folds=folds,
                mesh=mesh,
            )  # fmt: skip
            carry = _merge_batch(jax.device_put(carry, part.count.sharding), part)
        # Without waiting, a fast reader would queue batches until memory is full.
        jax.block_until_ready(carry)
    if carry is None:
        raise expected("at least one batch", "an empty stream", "checking how the data are read")
    return carry


def run(
    lift: Lift, x: Any, y: Any, weights: Any, *, kind, dtype, batch_size, folds, mesh, memory_limit
) -> Statistics:
    """Dispatch to arrays or stream, with float64 asked for locally where the sums need it."""
    if mesh is not None:
        check_mesh(mesh, x, y)
    staged = is_tracing(lift, y, weights)
    fitted = is_wide(lift) and not staged
    # What users wrote down is read as outside; what was fitted in float64 stays in it.
    with precise_as(np.float64 if fitted else np.float32):
        lift = held_leaves(lift)
    options = {"kind": kind, "dtype": dtype, "folds": folds, "mesh": mesh}
    with precise_as(np.float64 if fitted or (dtype == np.float64 and not staged) else np.float32):
        if y is None:
            return accumulate_stream(
                lift, x, batch_size=batch_size, memory_limit=memory_limit, **options
            )
        width = sum(lift.sizes(x.shape[1], y.shape[1]))
        batch = batch_size or block_rows(x.shape[0], width, kind, folds)
        check_memory(lift, x.shape, y.shape, kind, dtype, batch, folds, memory_limit)
        return accumulate_arrays(lift, x, y, weights, batch_size=batch_size, **options)


def kind_of(statistics: Any) -> type:
    """The class of statistics that a name or a class stands for."""
    if isinstance(statistics, str) and statistics in KINDS:
        return KINDS[statistics]
    if isinstance(statistics, type) and statistics in KINDS.values():
        return statistics
    raise expected(
        "statistics 'auto', 'gram', 'rfactor', edmd.Gram or edmd.RFactor", repr(statistics)
    )


def sum_dtype(dtype: Any, accumulate_dtype: Any, traced: bool) -> Any:
    """The dtype statistics are accumulated in: as asked, else float64 where it can be had."""
    if accumulate_dtype is not None:
        return jnp.dtype(working_dtype(as_dtype("accumulate_dtype", accumulate_dtype)))
    if traced or not has_float64():
        return jnp.dtype(working_dtype(dtype))
    return jnp.dtype("float64")


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
    check_dictionary("psi", psi)
    if target is not None:
        check_dictionary("target", target)
    batch_size = check_batch_size(batch_size)
    streamed = y is None
    if streamed:
        folds = check_stream(weights, folds)
        lift = Lift(psi, target)
        x, probe = peek(x, lift)
        dtype = observed_dtype(lift, *probe, memory_limit)
    else:
        x, y, weights, same = check_arrays(x, y, weights, target, psi)
        lift = Lift(psi, target, same=same)
        dtype = observed_dtype(lift, x, y, memory_limit)
        folds, x, y, weights = fold_layout(folds, x, y, weights)
    staged = traced(lift, None if streamed else x, y, weights)
    acc = sum_dtype(dtype, accumulate_dtype, staged)
    with precise_as(dtype):
        return run(
            lift, x, y, weights, kind=kind, dtype=acc, batch_size=batch_size, folds=folds,
            mesh=mesh, memory_limit=memory_limit,
        )  # fmt: skip
