"""Operators put together from what is stored, to run as fast as a dense network."""

import functools
import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from koopjax._core import expected, is_tracing
from koopjax.nn._block import KoopmanBlock
from koopjax.nn._dictionary import ends_in_product
from koopjax.nn._operators import Dense, Operator
from koopjax.nn._stored import Clustered, Quantized, Sparse
from koopjax.nn._tt import TT
from koopjax.observables import Compose, Kronecker, Project

#: Forms that are decoded; `LowRank` takes fewer operations as it is.
STORED: tuple[Any, ...] = (Sparse, Clustered, Quantized, TT)
#: Entries of the largest matrix that is put together (256 MiB in float32).
LARGEST = 1 << 26


def decoded(module: Any, *, largest: int = LARGEST) -> Any:
    """A copy to serve: stored forms of an operator (entries, codes, cores) as dense matrices.

    What is small in a file need not be fast to run: a gather, a codebook or a chain of small cores
    costs more than one product at the sizes of a layer. Decode once after `export.load` and run
    that; keep the stored form to save or to train. A block's `Kronecker` and the `Project` behind
    it become one projection, where that takes about as many operations. `LowRank` stays, being
    cheaper as it is, and so does a `TT` on a product dictionary, whose matrix nobody can form.

    Args:
        module: an NNX module with operators anywhere in it, or an operator.
        largest: entries of the largest matrix to put together; what is larger stays as it is.

    Returns:
        A copy with the same values up to rounding. Its dense matrices take more bytes in a file.

    Raises:
        ValueError: not an NNX module, or traced arrays.

    Example:
        >>> import jax.numpy as jnp
        >>> from koopjax import nn
        >>> small = nn.Clustered(jnp.array([0.5, -1.0]), jnp.array([[0, 1, 0], [1, 1, 0]]))
        >>> nn.decoded(small)(jnp.ones(2))
        Array([-0.5, -2. ,  1. ], dtype=float32)
    """
    if not isinstance(module, nnx.Module):
        raise expected("an nnx.Module to decode", type(module).__name__)
    if is_tracing(nnx.state(module)):
        raise expected("concrete arrays to decode", "traced ones", "decoded outside jit")
    made = nnx.clone(module)
    convert = functools.partial(_served, largest=largest)
    for _, node in list(nnx.iter_modules(made)):
        if isinstance(node, KoopmanBlock):
            continue
        for name, child in list(vars(node).items()):
            if isinstance(child, KoopmanBlock | Operator):
                setattr(node, name, convert(child))
    return convert(made)


def _served(node: Any, largest: int) -> Any:
    """An operator or block to run; anything else as it is."""
    if isinstance(node, KoopmanBlock):
        psi = node.psi
        held = node.operator if ends_in_product(psi) else _dense(node.operator, largest)
        return KoopmanBlock(_folded(psi), held, dtype=node.dtype)
    return _dense(node, largest)


def _folded(psi: Any) -> Any:
    """A dictionary with neighbouring projections multiplied out."""
    parts: list[Any] = []
    for part in _parts(psi):
        first = parts[-1] if parts else None
        joined = _joined(first, part)
        parts = [*parts, part] if joined is None else [*parts[:-1], joined]
    return functools.reduce(Compose, parts)


def _parts(psi: Any) -> list[Any]:
    return [*_parts(psi.first), *_parts(psi.then)] if isinstance(psi, Compose) else [psi]


def _joined(first: Any, then: Any) -> Any:
    """One projection for two, or None where that takes more than twice the products."""
    if not isinstance(then, Project) or then.mean is not None:
        return None
    if isinstance(first, Kronecker):
        rows, columns = zip(*(jnp.shape(factor) for factor in first.factors), strict=True)
        # The last axis is contracted first.
        products = sum(math.prod(rows[: k + 1]) * math.prod(columns[k:]) for k in range(len(rows)))
        wide = functools.partial(functools.reduce, np.kron, map(_float64, first.factors))
        width, mean = math.prod(rows), None
    elif isinstance(first, Project):
        width, products = len(first.matrix), first.matrix.size
        wide, mean = functools.partial(_float64, first.matrix), first.mean
    else:
        return None
    if width * then.matrix.shape[1] > 2 * (products + then.matrix.size):
        return None
    return Project(jnp.asarray(wide() @ _float64(then.matrix), then.matrix.dtype), mean)


def _float64(array: Any) -> np.ndarray:
    return np.asarray(array, np.float64)


def _dense(operator: Any, largest: int) -> Any:
    """The dense operator of a stored one, unless it is too large."""
    if not isinstance(operator, STORED):
        return operator
    if math.prod((operator.in_features, operator.out_features)) > largest:
        return operator
    matrix = operator.tt_matrix if isinstance(operator, TT) else operator
    bias = None if operator.bias is None else operator.bias.get_value()
    return Dense(matrix.to_dense(), bias, dtype=operator.dtype, precision=operator.precision)
