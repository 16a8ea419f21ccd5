"""What the verbs share: precision, checks of modes, ranks and numbers, views of a TT matrix."""

from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from koopjax._core import as_numbers, check_number, expected, read, traced
from koopjax.tt._padded import PaddedTT
from koopjax.tt._precision import precise
from koopjax.tt._trains import TensorTrain, TTMatrix

#: A mode may have so many places: what an index of 32 bits reaches.
MOST_SIZE = 2**31 - 1

T = TypeVar("T", TensorTrain, TTMatrix, PaddedTT)


def as_floating(name: str, array: Any) -> Array:
    """A real or complex floating array; integers become the default float."""
    listed = not hasattr(array, "dtype")
    array = read(name, array)
    if not jnp.issubdtype(array.dtype, jnp.inexact):
        return as_numbers(name, array)
    if array.dtype.itemsize < 2:
        raise expected(f"numbers of 16 bits or more in {name}", f"dtype {array.dtype}")
    if listed:  # numbers of Python have no digits of their own to keep
        return jnp.asarray(array)
    with precise(jax.ShapeDtypeStruct((), array.dtype)):
        return jnp.asarray(array)


@jax.jit
def _finite_on_device(leaves: list[Any]) -> Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves])


def _finite(leaves: list[Any]) -> np.ndarray:
    """Whether each array is finite; in NumPy where that copies nothing, so nothing is compiled."""
    near = all(not isinstance(a, jax.Array) or _on_host(a) for a in leaves)
    if near:
        return np.asarray([np.isfinite(np.asarray(leaf)).all() for leaf in leaves])
    with precise(leaves):
        return np.asarray(_finite_on_device(leaves))


def _on_host(array: jax.Array) -> bool:
    return all(device.platform == "cpu" for device in array.devices())


def check_train(name: str, train: Any) -> None:
    """Raise unless this is a train whose cores chain and, where they can be looked at, are finite.

    Ranks and modes of zero, ranks that do not meet and NaN are all refused here.
    """
    if not isinstance(train, TensorTrain | TTMatrix | PaddedTT):
        raise expected(
            f"a TensorTrain, TTMatrix or PaddedTT as {name}",
            type(train).__name__,
            "tt.from_dense(array), tt.matrix_from_dense(array, row_modes, column_modes)",
        )
    train.validate()
    cores = list(train.cores) if isinstance(train.cores, tuple) else [train.cores]
    if traced(cores):
        return
    finite = _finite(cores)
    if not finite.all():
        where = "" if isinstance(train, PaddedTT) else f", core {int(np.argmin(finite))} among them"
        raise expected(
            f"finite cores in {name}",
            f"NaN or infinite entries{where}",
            "a larger ridge, or standardised data, where the cores come from a fit",
        )


def check_same(verb: str, a: Any, b: Any) -> None:
    """Raise unless two trains are of one kind and have the same modes."""
    check_train("the first train", a)
    check_train("the second train", b)
    if type(a) is not type(b):
        raise expected(
            f"two trains of one kind in {verb}",
            f"{type(a).__name__} and {type(b).__name__}",
            "tt.pad or tt.unpad on one of them",
        )
    if isinstance(a, PaddedTT):
        first, second = (a.cores.shape[0], a.cores.shape[2]), (b.cores.shape[0], b.cores.shape[2])
        if first == second and not traced(a.mode_mask, b.mode_mask):
            first, second = a.modes, b.modes
    elif isinstance(a, TensorTrain):
        first, second = a.modes, b.modes
    else:
        first, second = (a.row_modes, a.column_modes), (b.row_modes, b.column_modes)
    if first != second:
        raise expected(f"equal modes in {verb}", f"{first} and {second}", "trains of one shape")


def check_modes(modes: Sequence[int]) -> tuple[int, ...]:
    """Mode sizes as a tuple of integers, at least one of them, each at least 1."""
    given = read("the modes", modes)
    if given.ndim != 1 or not np.issubdtype(given.dtype, np.integer):
        raise expected("mode sizes as a sequence of whole numbers", f"{modes!r:.60}", "(2, 3, 4)")
    modes = tuple(int(n) for n in given)
    if not modes or min(modes) < 1 or max(modes) > MOST_SIZE:
        raise expected(f"at least one mode, each of size 1 to {MOST_SIZE}", f"modes {modes}")
    return modes


def check_rtol(rtol: Any) -> float:
    """A relative tolerance as a float: finite and not negative."""
    check_number("rtol", rtol)
    return float(rtol)


def check_dtype(dtype: Any) -> np.dtype:
    """A real or complex floating dtype."""
    try:
        found = np.dtype(dtype)
    except (TypeError, ValueError):
        found = None
    if found is None or not jnp.issubdtype(found, jnp.inexact):
        raise expected("a real or complex floating dtype", f"{dtype!r:.60}", "jnp.float32")
    return found


def check_precision(precision: Any) -> None:
    """Raise unless `jax.lax` knows this precision."""
    names = {"default", "high", "highest", "fastest", "bfloat16", "bfloat16_3x", "tensorfloat32"}
    known = isinstance(precision, str) and precision in names | {"float32"}
    pair = isinstance(precision, tuple) and len(precision) == 2
    if not (known or pair or precision is None or isinstance(precision, jax.lax.Precision)):
        raise expected("a precision of JAX", f"{precision!r:.60}", "precision='highest'")


def as_train(train: Any) -> TensorTrain:
    """A TT matrix as the train of its merged modes `m_k n_k`; a tensor train as it is."""
    if isinstance(train, TTMatrix):
        return TensorTrain(tuple(c.reshape(c.shape[0], -1, c.shape[-1]) for c in train.cores))
    return train


def like(train: TensorTrain, original: T) -> T:
    """The inverse of `as_train`: merged modes split as in the original."""
    if isinstance(original, TTMatrix):
        shapes = zip(original.row_modes, original.column_modes, strict=True)
        return TTMatrix(
            tuple(
                c.reshape(c.shape[0], m, n, c.shape[-1])
                for c, (m, n) in zip(train.cores, shapes, strict=True)
            )
        )
    return train  # pyright: ignore[reportReturnType]
