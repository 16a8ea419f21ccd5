"""Snapshots as they come in: checks with one clear message each, streams cut into equal batches."""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from koopjax._core import (
    as_integers,
    as_pair,
    as_whole,
    check_finite,
    expected,
    held,
    is_tracing,
    read_numbers,
)


def read_weights(weights: Any, x: Any) -> Any:
    """Weights `(n,)`, finite and not negative; in float64 where the snapshots `x` are."""
    n, weights = x.shape[0], read_numbers("weights", weights)
    weights = weights if x.dtype == np.float64 else held("weights", weights)
    if weights.shape != (n,):
        raise expected(f"weights of shape ({n},)", f"shape {weights.shape}", "one for each sample")
    if not is_tracing(weights) and getattr(weights, "is_fully_addressable", True):
        known = np.asarray(weights)
        if not (np.isfinite(known) & (known >= 0)).all():
            raise expected(
                "finite weights, not negative and not all zero",
                f"a range from {known.min()} to {known.max()}",
            )
    return weights


def as_weights(weights: Any, x: Any) -> Any:
    """As `read_weights`, with at least one positive; None stays None."""
    if weights is None:
        return None
    weights = read_weights(weights, x)
    xp: Any = np if getattr(weights, "is_fully_addressable", True) else jnp
    with jax.ensure_compile_time_eval():
        if not is_tracing(weights) and not bool(xp.any(xp.asarray(weights) > 0)):
            raise expected("finite weights, not negative and not all zero", "zeros alone")
    return weights


def check_stream(weights: Any, folds: Any) -> int | None:
    """The number of folds of a stream; raises on what is known of arrays alone."""
    if weights is not None or np.ndim(folds) != 0:
        raise expected(
            "weights and fold numbers only beside arrays",
            "them beside a stream",
            "triples (x, y, weights) and a number of folds",
        )
    return None if folds is None else as_whole("folds", folds, 2)


def check_mesh(mesh: Any, *arrays: Any) -> None:
    """Raise where data of this process alone meet a mesh that spans several processes."""
    if not isinstance(mesh, Mesh):
        raise expected("a jax.sharding.Mesh as mesh", f"{type(mesh).__name__}", "mesh=None")
    here = all(device.process_index == jax.process_index() for device in mesh.devices.flat)
    local = lambda a: not is_tracing(a) and getattr(a, "is_fully_addressable", True)
    if not here and any(map(local, arrays)):
        raise expected(
            "global arrays x and y, as the mesh spans several processes",
            "data of one process (an array of its own, or a stream)",
            "jax.make_array_from_process_local_data(sharding, rows) for x and for y",
        )


def check_arrays(
    x: Any, y: Any, weights: Any, target: Any, *trees: Any
) -> tuple[Any, Any, Any, bool]:
    """Validated `(x, y, weights)`, and whether y is x with the same dictionary on both sides.

    The trees are what the snapshots meet, see `as_pair`.
    """
    same = y is x and target is None
    x, y = as_pair(x, y, target, *trees)
    if target is None and x.shape[1] != y.shape[1]:
        raise expected(
            f"y with the {x.shape[1]} coordinates of x, where the dictionary is the same",
            f"{y.shape[1]}",
            "target=Identity(), or another dictionary for y",
        )
    # Evaluated now even under jit, where operations on constants would be staged.
    with jax.ensure_compile_time_eval():
        check_finite("x", x)
        if y is not x:
            check_finite("y", y)
    return x, y, as_weights(weights, x), same


def fold_layout(folds: Any, x: Any, y: Any, weights: Any) -> tuple[int | None, Any, Any, Any]:
    """Rows in the order in which row i belongs to fold `i mod k`.

    A number of folds means that order already. Explicit fold numbers sort the rows so, with
    repeated rows of weight zero where a fold has fewer than the largest.
    """
    n = x.shape[0]
    if folds is None:
        return None, x, y, weights
    if is_tracing(folds):
        raise expected("fold numbers that can be looked at", "traced ones", "a number of folds")
    numbers = np.asarray(as_integers("folds", folds))
    if numbers.ndim == 0:
        if not 2 <= numbers <= n:
            raise expected(
                f"a number of folds from 2 to the number of samples, {n}", f"{folds}", "folds=5"
            )
        return int(numbers), x, y, weights
    if numbers.shape != (n,) or numbers.min() < 0 or numbers.max() >= n:
        raise expected(
            f"fold numbers: ({n},) integers from 0, one for each sample",
            f"shape {numbers.shape}"
            + (f" from {numbers.min()} to {numbers.max()}" if numbers.size else ""),
            "a number of folds",
        )
    k = int(numbers.max()) + 1
    members = [np.flatnonzero(numbers == fold) for fold in range(k)]
    if k < 2 or min(len(m) for m in members) == 0:
        raise expected("at least two folds, none of them empty", f"sizes {[*map(len, members)]}")
    longest = max(len(m) for m in members)
    rows = np.stack([np.resize(m, longest) for m in members], axis=1).ravel()
    real = np.stack([np.arange(longest) < len(m) for m in members], axis=1).ravel()
    base = jnp.ones(n, jnp.float32) if weights is None else weights
    ordered = jnp.where(jnp.asarray(real), base[rows], 0)
    x_rows = x[rows]
    return k, x_rows, x_rows if y is x else y[rows], ordered


def check_sound(sound: Any, where: str) -> None:
    """Raise where finite data are known to have given NaN or infinity."""
    if not is_tracing(sound) and not bool(sound):
        raise expected(
            "finite observables on finite data",
            f"NaN or infinity in the {where}",
            "cleaning the snapshots, or a Standardize against overflow in the dictionary",
        )


def _unpack(item: Any, trees: tuple[Any, ...]) -> tuple[Any, Any, Any]:
    if not isinstance(item, tuple | list) or len(item) not in (2, 3):
        raise expected(
            "an iterable of pairs (x, y), or triples with weights, where y is not given",
            f"an item of type {type(item).__name__}",
            "passing y, or an iterator of batches",
        )
    x, y = as_pair(item[0], item[1], *trees)
    return x, y, as_weights(item[2] if len(item) == 3 else None, x)


def peek(pairs: Any, *trees: Any) -> tuple[Iterable, tuple[Any, Any]]:
    """The first pair of a stream as `as_pair` gives it, and the stream with it put back."""
    if hasattr(pairs, "shape") or not isinstance(pairs, Iterable):
        raise expected(
            "y beside an array x, or x as an iterable of pairs",
            f"x of type {type(pairs).__name__} alone",
            "passing y",
        )
    iterator = iter(pairs)
    first = next(iterator, None)
    if first is None:
        raise expected("at least one batch", "an empty stream", "checking how the data are read")
    x, y, _ = _unpack(first, trees)
    return itertools.chain([first], iterator), (x, y)


def batches_of(
    pairs: Iterable, batch_size: int | None, quantum: int, *trees: Any
) -> Iterator[tuple[Any, Any, Any]]:
    """Batches of one size: cut where they are larger, padded by weight zero where smaller.

    One size means one compilation. Padding repeats a row, so every observable stays finite. The
    size, that of the first without `batch_size`, is a multiple of `quantum` (folds, devices).
    """
    size = None if batch_size is None else -(-batch_size // quantum) * quantum
    widths = None
    for item in pairs:
        x, y, weights = _unpack(item, trees)
        if widths is None:
            widths = x.shape[1], y.shape[1]
        elif widths != (x.shape[1], y.shape[1]):
            raise expected(
                f"batches with {widths[0]} and {widths[1]} coordinates as at first",
                f"{x.shape[1]} and {y.shape[1]}",
            )
        weights = np.ones(x.shape[0], np.float32) if weights is None else weights
        size = size or -(-x.shape[0] // quantum) * quantum
        for start in range(0, x.shape[0], size):
            rows = np.minimum(start + np.arange(size), x.shape[0] - 1)
            valid = start + np.arange(size) < x.shape[0]
            if valid.all() and size == x.shape[0]:
                yield x, y, weights
            else:
                yield x[rows], y[rows], jnp.where(jnp.asarray(valid), weights[rows], 0)
