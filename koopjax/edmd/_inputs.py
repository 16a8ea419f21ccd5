"""Snapshots as they come in: checks with one clear message each, streams cut into equal batches."""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from koopjax._core import check_finite, expected, is_tracing


def check_dictionary(name: str, psi: Any) -> None:
    """Raise unless this is callable and tells its size: what the protocol of a dictionary asks."""
    # A class is callable and has the method too, but settings are missing.
    if isinstance(psi, type) or not callable(psi) or not callable(getattr(psi, "size", None)):
        raise expected(
            f"a dictionary with size(d) as {name}, see koopjax.observables",
            f"{getattr(psi, '__name__', type(psi).__name__)}",
            "observables.Custom(function, size) for a function of your own",
        )


def as_rows(name: str, x: Any) -> Any:
    """A real floating array `(n, d)`; integers become the default float."""
    array = x if isinstance(x, jax.Array | np.ndarray) or is_tracing(x) else np.asarray(x)
    if array.ndim != 2:
        raise expected(
            f"{name} of shape (n, d), a row for each sample",
            f"shape {tuple(array.shape)}",
            "x.reshape(len(x), -1), or x[:, None] for one coordinate",
        )
    if array.shape[0] == 0:
        raise expected(
            f"at least one sample in {name}", "an empty batch", "checking how the data were read"
        )
    if jnp.issubdtype(array.dtype, jnp.floating):
        return jnp.asarray(array)
    if jnp.issubdtype(array.dtype, jnp.integer) or array.dtype == bool:
        return jnp.asarray(array).astype(jnp.result_type(float))
    raise expected(f"real numbers in {name}", f"dtype {array.dtype}", "x.astype(jnp.float32)")


def as_pair(x: Any, y: Any) -> tuple[Any, Any]:
    """Snapshots before and after: as many of one as of the other; identity is kept."""
    same = y is x
    x = as_rows("x", x)
    y = x if same else as_rows("y", y)
    if x.shape[0] != y.shape[0]:
        raise expected(
            "as many rows in y as in x",
            f"{x.shape[0]} and {y.shape[0]}",
            "pairing each snapshot with its successor: x = s[:-1], y = s[1:]",
        )
    return x, y


def as_weights(weights: Any, n: int) -> Any:
    """Weights `(n,)`, finite and not negative, with at least one positive; None stays None."""
    if weights is None:
        return None
    weights = jnp.asarray(weights)
    if weights.shape != (n,):
        raise expected(f"weights of shape ({n},)", f"shape {weights.shape}", "one for each sample")
    if not jnp.issubdtype(weights.dtype, jnp.floating):
        weights = weights.astype(jnp.result_type(float))
    if is_tracing(weights):
        return weights
    known = np.asarray(weights)
    if not (np.isfinite(known).all() and known.min() >= 0 and known.max() > 0):
        raise expected(
            "finite weights, not negative and not all zero",
            f"a range from {known.min()} to {known.max()}",
        )
    return weights


def check_arrays(x: Any, y: Any, weights: Any, target: Any) -> tuple[Any, Any, Any, bool]:
    """Validated `(x, y, weights)`, and whether y is x with the same dictionary on both sides."""
    same = y is x and target is None
    x, y = as_pair(x, y)
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
    return x, y, as_weights(weights, x.shape[0]), same


def fold_layout(folds: Any, x: Any, y: Any, weights: Any) -> tuple[int | None, Any, Any, Any]:
    """Rows in the order in which row i belongs to fold `i mod k`.

    A number of folds means that order already. Explicit fold numbers sort the rows so, with
    repeated rows of weight zero where a fold has fewer than the largest.
    """
    n = x.shape[0]
    if folds is None:
        return None, x, y, weights
    if isinstance(folds, int | np.integer):
        if not 2 <= folds <= n:
            raise expected(
                f"a number of folds from 2 to the number of samples, {n}", f"{folds}", "folds=5"
            )
        return int(folds), x, y, weights
    numbers = np.asarray(folds)
    if numbers.shape != (n,) or not np.issubdtype(numbers.dtype, np.integer) or numbers.min() < 0:
        raise expected(
            f"fold numbers: ({n},) integers from 0",
            f"{numbers.dtype} of shape {numbers.shape}",
            "a number of folds",
        )
    k = int(numbers.max()) + 1
    members = [np.flatnonzero(numbers == fold) for fold in range(k)]
    if k < 2 or min(len(m) for m in members) == 0:
        raise expected("at least two folds, none of them empty", f"sizes {[*map(len, members)]}")
    longest = max(len(m) for m in members)
    rows = np.stack([np.resize(m, longest) for m in members], axis=1).ravel()
    real = np.stack([np.arange(longest) < len(m) for m in members], axis=1).ravel()
    base = jnp.ones(n, x.dtype) if weights is None else weights
    ordered = jnp.where(jnp.asarray(real), base[rows], 0)
    x_rows = x[rows]
    return k, x_rows, x_rows if y is x else y[rows], ordered


def _unpack(item: Any) -> tuple[Any, Any, Any]:
    if not isinstance(item, tuple | list) or len(item) not in (2, 3):
        raise expected(
            "an iterable of pairs (x, y), or triples with weights, where y is not given",
            f"an item of type {type(item).__name__}",
            "passing y, or an iterator of batches",
        )
    x, y = as_pair(item[0], item[1])
    return x, y, as_weights(item[2] if len(item) == 3 else None, x.shape[0])


def peek(pairs: Any) -> tuple[Iterable, tuple[Any, Any]]:
    """The first pair of a stream, and the stream with it put back.

    Raises:
        ValueError: not an iterable of pairs, or empty.
    """
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
    x, y, _ = _unpack(first)
    return itertools.chain([first], iterator), (x, y)


def batches_of(
    pairs: Iterable, batch_size: int | None, quantum: int
) -> Iterator[tuple[Any, Any, Any]]:
    """Batches of one size: cut where they are larger, padded by weight zero where smaller.

    One size means one compilation. Padding repeats a row, so every observable stays finite.

    Args:
        pairs: iterable of `(x, y)` or `(x, y, weights)`.
        batch_size: rows of a batch; None takes those of the first.
        quantum: the size is rounded up to a multiple of this (folds, devices).
    """
    size = None if batch_size is None else -(-batch_size // quantum) * quantum
    widths = None
    for item in pairs:
        x, y, weights = _unpack(item)
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
