"""One pass over the data: arrays in blocks, streams, folds, the devices of a mesh."""

import dataclasses
import functools
import math
import operator
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from koopjax._core import (
    as_whole,
    available_bytes,
    expected,
    held_leaves,
    is_tracing,
    precise_as,
    promoted,
    pytree,
    static,
)
from koopjax.edmd._inputs import batches_of
from koopjax.edmd._statistics import Gram, RFactor, Statistics, merge_stacked
from koopjax.observables import Observables, fits, require_rowwise

# Rows in a block hold about this many numbers: large enough for the product to run at full rate,
# small enough that a block stays a small part of memory.
BLOCK_NUMBERS = 2**25
# Square matrices alive at the same time in the solve: statistics, scaled copy, factor, right-hand
# sides, work space of LAPACK.
COPIES = 4


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
        require_rowwise(psi, operator.call, x)
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
    if folds is None:
        return carry.update(psi_x, psi_y, weights)
    split = lambda a: jnp.swapaxes(a.reshape(-1, folds, *a.shape[1:]), 0, 1)
    # Of the same observables on both sides, one product serves for all.
    after = None if psi_y is psi_x else split(psi_y)
    update = jax.vmap(lambda c, a, b, w: c.update(a, a if b is None else b, w))
    return update(carry, split(psi_x), after, split(weights))


def _scan(
    lift: Lift, x: Any, y: Any, weights: Any, kind: type, dtype: Any, batch: int, folds: int | None
) -> Any:
    """Fold blocks of rows into the statistics; memory is one block, whatever n."""
    n = x.shape[0]
    # Multiplying every lifted row by a one costs some percent of the product itself: where there
    # are no weights, the rows left over make a block of their own instead of a padded one.
    plain = weights is None and folds is None
    count, rest = divmod(n, batch) if plain else (-(-n // batch), 0)

    def rows_of(a: Any, start: Any) -> Any:
        if batch == n:
            return a
        if plain:
            return jax.lax.dynamic_slice_in_dim(a, start, batch)
        # The last block repeats the last row with weight zero: no copy of the data is padded.
        return a[jnp.minimum(start + jnp.arange(batch), n - 1)]

    def step(carry: Any, start: Any) -> tuple[Any, None]:
        w = None
        if not plain:
            w = (start + jnp.arange(batch) < n).astype(dtype)
            if weights is not None:
                w = jnp.where(w > 0, rows_of(weights, start).astype(dtype), 0)
        y_rows = None if lift.same else rows_of(y, start)
        return _absorb(carry, lift, rows_of(x, start), y_rows, w, folds), None

    carry = _empty(kind, lift, x, y, dtype, folds)
    if count == 1:
        carry, _ = step(carry, 0)
    else:
        # Rematerialised, so that a gradient keeps no lifted block either.
        body = jax.checkpoint(step, prevent_cse=False)
        carry, _ = jax.lax.scan(body, carry, batch * jnp.arange(count))
    if rest:
        carry = _absorb(carry, lift, x[-rest:], None if lift.same else y[-rest:], None, None)
    return carry


from_arrays = jax.jit(_scan, static_argnames=("kind", "dtype", "batch", "folds"))


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


def on_mesh(lift, x, y, weights, *, kind, dtype, batch_size, folds, mesh: Mesh) -> Any:
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


def from_stream(
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
            part = on_mesh(
                lift, x, y, weights, kind=kind, dtype=dtype, batch_size=None, folds=folds,
                mesh=mesh,
            )  # fmt: skip
            carry = _merge_batch(jax.device_put(carry, part.count.sharding), part)
        # Without waiting, a fast reader would queue batches until memory is full.
        jax.block_until_ready(carry)
    if carry is None:
        raise expected("at least one batch", "an empty stream", "checking how the data are read")
    return carry


def planned_bytes(p: int, q: int, kind: type, dtype: Any, rows: int, folds: int | None) -> int:
    """Bytes of accumulation and solve: statistics, their copies, and one lifted block."""
    statistics = p * p + p * q + q * q if kind is Gram else (p + q) ** 2
    numbers = 2 * statistics * (folds or 1) + COPIES * p * (p + q) + 2 * rows * (p + q)
    return numbers * jnp.dtype(dtype).itemsize


def check_memory(
    lift: Any, x: Any, y: Any, kind: type, dtype: Any, rows: int, folds: int | None, limit: Any
) -> None:
    """Refuse a fit of snapshots of shapes `x` and `y` that has no room, naming sizes that have."""
    p, q = lift.sizes(x[1], y[1])
    limit = available_bytes() if limit is None else as_whole("memory_limit", limit, 1, 2**63)
    needed = planned_bytes(p, q, kind, dtype, rows, folds)
    if needed <= limit:
        return
    # The most observables whose plan fits, with targets in the same proportion; by bisection.
    targets = lambda k: k * q // max(p, 1) + 1
    plan = lambda k: planned_bytes(k, targets(k), kind, dtype, min(rows, 256), folds)
    largest, beyond = 0, 2
    while plan(beyond) <= limit:
        largest, beyond = beyond, 2 * beyond
    while beyond - largest > 1:
        middle = (largest + beyond) // 2
        largest, beyond = (middle, beyond) if plan(middle) <= limit else (largest, middle)
    # One square of float32 with that many rows: the advice of `fits` for just that number.
    ideas = fits(lift.psi, x[1], 4 * largest**2, squares=1).advice
    raise expected(
        f"a dictionary whose statistics fit in {limit / 2**30:.3g} GiB",
        f"{_number(p)} observables before and {_number(q)} after, "
        f"which need {_gibibytes(needed)} GiB",
        f"{ideas or 'fewer targets'} (at most {largest:,} observables fit)",
    )


def observed_dtype(lift: Any, x: Any, y: Any, memory_limit: Any = None) -> Any:
    """The floating dtype in which the observables come out; refuses those that can't fit."""
    # Before tracing, because a dictionary of absurd size may build its index tables there.
    check_memory(lift, x.shape, y.shape, Gram, jnp.float32, 1, None, memory_limit)
    row = lambda a: jax.ShapeDtypeStruct((1, *a.shape[1:]), a.dtype)
    with precise_as(promoted(x.dtype, y.dtype)):
        before, after = jax.eval_shape(held_leaves(lift), row(x), row(y))
    p, q = lift.sizes(x.shape[1], y.shape[1])
    if before.shape != (1, p) or after.shape != (1, q):
        raise expected(
            f"observables of shapes (1, {p}) and (1, {q}) from one sample, as their sizes say",
            f"{before.shape} and {after.shape}",
            "correcting size(d) of the dictionary",
        )
    return promoted(before.dtype, after.dtype)


def _number(n: int) -> str:
    """A count in full, or its power of ten where digits say nothing (products of dictionaries)."""
    return f"{n:,}" if n < 10**15 else f"over 10^{int(math.log10(n))}"


def _gibibytes(n: int) -> str:
    # Integers go beyond what a float holds.
    return f"{n / 2**30:.3g}" if n < 2**80 else _number(n // 2**30)
