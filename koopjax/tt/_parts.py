"""Parts of trains: entries, slices and partial contractions."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Shaped

from koopjax._core import as_whole, check_finite, expected, read, traced
from koopjax.tt._precision import einsum, precise
from koopjax.tt._range import even, lifted, shift
from koopjax.tt._support import as_floating
from koopjax.tt._trains import TensorTrain, check_train, train_of


def _require_train(train: Any) -> None:
    if not isinstance(train, TensorTrain):
        raise expected("a TensorTrain", type(train).__name__, "tt.unpad for padded trains")
    check_train("the train", train)


def contract_modes(train: TensorTrain, vectors: Mapping[int, Any]) -> Any:
    """Some modes summed against vectors, the others left: `Σ_i A[..., i, ...] v[i]`.

    Args:
        train: `TensorTrain`.
        vectors: mode index (negative from the end) to an array `(n_k,)`; nothing is conjugated.

    Returns:
        `TensorTrain` of the modes that are left; a scalar array where none is.

    Raises:
        ValueError: a mode outside the train, one given twice, a vector of another length.

    Example:
        >>> import jax.numpy as jnp
        >>> train = rank_one([jnp.ones(2), jnp.ones(3), jnp.ones(4)])
        >>> contract_modes(train, {1: jnp.ones(3)}).to_dense().tolist()[0]
        [3.0, 3.0, 3.0, 3.0]
    """
    _require_train(train)
    d = train.order
    found: dict[int, Any] = {}
    if not isinstance(vectors, Mapping):
        raise expected("a dict from modes to vectors", type(vectors).__name__, "{0: vector}")
    for key, vector in vectors.items():
        k = as_whole("a mode", key, -d, d - 1)
        if k % d in found:
            raise expected(f"different modes between {-d} and {d - 1}", f"{sorted(vectors)}")
        vector = as_floating(f"the vector of mode {k}", vector)
        if tuple(vector.shape) != (train.modes[k],):
            raise expected(
                f"a vector of shape ({train.modes[k]},) for mode {k}", f"{tuple(vector.shape)}"
            )
        check_finite(f"the vector of mode {k}", vector)
        found[k % d] = vector
    with precise(train, found):
        return _contract_modes(train, found)


@jax.jit
def _contract_modes(train: TensorTrain, vectors: dict[int, Array]) -> Any:
    return train_of(
        einsum("anb,n->ab", core, vectors[k]) if k in vectors else core
        for k, core in enumerate(even(train).cores)
    )


def slice_(train: TensorTrain, index: Any) -> Any:
    """The part of a tensor that an index selects, as NumPy's basic indexing does: `A[1, :, 2:4]`.

    Also written `train[1, :, 2:4]`.

    Args:
        train: `TensorTrain`.
        index: an integer, a slice, `...`, or a tuple of them; integers drop their mode. Static.

    Returns:
        `TensorTrain` of the modes that are left; a scalar array where none is.

    Raises:
        IndexError: an integer outside its mode, or too many indices.
        ValueError: an empty slice, or an index of another kind.

    Example:
        >>> import jax.numpy as jnp
        >>> slice_(rank_one([jnp.ones(3), jnp.ones(3), jnp.ones(5)]), (1, ..., slice(2, 4))).modes
        (3, 2)
    """
    _require_train(train)
    return train[index]


def entries(train: TensorTrain, indices: Int[Any, "m d"]) -> Shaped[Array, " m"]:
    """Single entries of the tensor, many at a time.

    Args:
        train: `TensorTrain`.
        indices: integers `(m, d)`, a multi-index a row, none negative.

    Returns:
        `(m,)`. Costs `2 m Σ r²` operations.

    Raises:
        ValueError: another shape or dtype; concrete indices outside the modes. Traced indices are
            clipped to the modes, as everywhere in JAX.

    Example:
        >>> import jax.numpy as jnp
        >>> entries(rank_one([jnp.arange(3.0), jnp.arange(4.0)]), jnp.asarray([[2, 3]])).tolist()
        [6.0]
    """
    _require_train(train)
    indices = read("the indices", indices)
    if indices.ndim != 2 or indices.shape[1] != train.order:
        raise expected(f"indices of shape (m, {train.order})", f"shape {tuple(indices.shape)}")
    if not jnp.issubdtype(indices.dtype, jnp.integer):
        raise expected("integer indices", f"dtype {indices.dtype}")
    if not traced(indices) and indices.shape[0]:
        host = np.asarray(indices)
        if (host < 0).any() or (host >= np.asarray(train.modes)[None, :]).any():
            raise expected(
                f"indices inside modes {train.modes}",
                f"values from {host.min(axis=0).tolist()} to {host.max(axis=0).tolist()}",
            )
    with precise(train):
        return _entries(train, jnp.asarray(indices))


@jax.jit
def _entries(train: TensorTrain, indices: Array) -> Array:
    cores, e = even(train).cores, jnp.zeros(len(indices), jnp.int32)
    left = jnp.take(cores[0][0], indices[:, 0], axis=0, mode="clip")
    for k, core in enumerate(cores[1:], start=1):
        left, e = lifted(left, e, axis=1)
        chosen = jnp.take(core, indices[:, k], axis=1, mode="clip")
        left = einsum("sa,asb->sb", left, chosen)
    return shift(left[:, 0], e)
