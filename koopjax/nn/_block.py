"""The Koopman block as an NNX module: dictionary, then operator."""

import math
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float

from koopjax._core import as_array, as_dtype, expected
from koopjax.nn._dictionary import (
    as_nodes,
    check_modes,
    ends_in_product,
    product_factors,
    take_apart,
)
from koopjax.nn._operators import Dense, Operator, precision_name
from koopjax.nn._tt import TT
from koopjax.nn._variables import is_variable, make_variable, retag, trainable_parts


class KoopmanBlock(nnx.Module):
    """A layer that lifts its input, maps it linearly and reads it out: `psi(x) K`.

    Args:
        psi: dictionary; its arrays become Variables under `dictionary/`, those of a `Neural`
            dictionary among them.
        operator: one of `nn.OPERATORS`, such as `Dense`, `LowRank` or `Sparse`, or a matrix
            `(p, q)`. A `TT` behind a `Product`, or a `Compose` that ends in one, is contracted with
            its factors; the observables are never formed.
        trainable: which parts an optimizer of `nnx.Param` changes: `True` (both), `False`,
            `"dictionary"`, `"operator"`, or a tuple of names. The others are `Frozen`; so are
            integers everywhere. The operator given is copied, not tagged in place.
        dtype: dtype to compute in; none promotes input and parameters, as Flax layers do.
        param_dtype: dtype to store floating parameters in; none keeps theirs.
        precision: of the operator's products; none keeps the operator's own.

    The block takes `(d,)`, `(n, d)` or `(..., d)` and changes the last axis alone.

    Example:
        >>> import jax.numpy as jnp
        >>> from koopjax import nn, observables
        >>> block = nn.KoopmanBlock(observables.Identity(), 2 * jnp.eye(2))
        >>> block(jnp.ones((3, 2))).shape
        (3, 2)
    """

    def __init__(
        self,
        psi: Any,
        operator: Operator | ArrayLike,
        *,
        trainable: bool | str | tuple[str, ...] = True,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike | None = None,
        precision: Any = None,
    ):
        if not callable(psi):
            raise expected("a dictionary that can be called", type(psi).__name__)
        parts = trainable_parts(trainable)
        structure, leaves = take_apart(psi)
        train = "dictionary" in parts
        variables = [
            retag(leaf, train and not constant, param_dtype)
            if is_variable(leaf)
            else make_variable(leaf, train and not constant, param_dtype)
            for leaf, constant in zip(leaves, structure.constant, strict=True)
        ]
        self.structure = structure
        self.dictionary = as_nodes(structure.nest(variables))
        if not isinstance(operator, nnx.Module):
            operator = Dense(operator)
        if isinstance(operator, TT) and ends_in_product(psi):
            check_modes(psi, operator.modes[0])
        self.operator = retag(operator, "operator" in parts, param_dtype)
        self.dtype = None if dtype is None else as_dtype("dtype", dtype)
        if dtype is not None:
            self.operator.dtype = self.dtype
        if precision is not None:
            self.operator.precision = precision_name(precision)

    @property
    def psi(self) -> Any:
        """The dictionary with the block's present arrays."""
        held = self.structure.flat(self.dictionary)
        return self.structure.build([v.get_value() for v in held], self.dtype)

    def __call__(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch q"]:
        """`psi(x) K` along the last axis."""
        return apply_block(self.psi, self.operator, x, self.dtype)

    @property
    def out_features(self) -> int:
        """Width of the output, `q`."""
        return self.operator.out_features

    def lift(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch p"]:
        """The observables alone, `psi(x)`."""
        return apply_block(self.psi, jnp.asarray, x, self.dtype)


def apply_block(psi: Any, operator: Any, x: ArrayLike, dtype: DTypeLike | None) -> Array:
    """`operator(psi(x))` along the last axis, for any number of batch axes, in a dtype or any.

    Of a product dictionary before an operator that takes its factors no product is formed.
    """
    x = as_array("the states", x)
    x = x if dtype is None else x.astype(dtype)
    if x.ndim == 0:
        raise expected("states of shape (..., d)", "a scalar", "x[None]")
    batch = x.shape[:-1]
    contracts = getattr(operator, "apply_product", None)
    if contracts is not None and ends_in_product(psi):
        flat = x.reshape(math.prod(batch), x.shape[-1])
        out = contracts(product_factors(psi, flat, dtype))
        return out.reshape(*batch, out.shape[-1])
    flat = x if x.ndim <= 2 else x.reshape(-1, x.shape[-1])
    lifted = psi(flat)
    out = operator(lifted if dtype is None else lifted.astype(dtype))
    return out.reshape(*batch, out.shape[-1])
