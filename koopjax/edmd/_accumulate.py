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
    expected,
    held_leaves,
    is_tracing,
    is_wide,
    precise_as,
    promoted,
    pytree,
    static,
)
from koopjax.edmd._folds import merge_stacked
from koopjax.edmd._inputs import batches_of, check_mesh
from koopjax.edmd._memory import check_memory
from koopjax.edmd._statistics import Gram, RFactor, Statistics
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


_from_arrays = jax.jit(_scan, static_argnames=("kind", "dtype", "batch", "folds"))


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


def _stream(
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
    """Statistics of validated arrays or a stream; float64 is asked for where the sums need it."""
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
            return _stream(lift, x, batch_size=batch_size, memory_limit=memory_limit, **options)
        n, width = x.shape[0], sum(lift.sizes(x.shape[1], y.shape[1]))
        batch = batch_size or block_rows(n, width, kind, folds)
        check_memory(lift, x.shape, y.shape, kind, dtype, batch, folds, memory_limit)
        if mesh is not None:
            return _on_mesh(lift, x, y, weights, batch_size=batch_size, **options)
        batch = -(-min(batch, n) // (folds or 1)) * (folds or 1)
        return _from_arrays(lift, x, y, weights, kind=kind, dtype=dtype, batch=batch, folds=folds)
