"""A stack of affine maps and activations: what a factored multilayer perceptron becomes."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float

from koopjax._core import expected
from koopjax.nn._operators import Dense, LowRank, Operator
from koopjax.nn._stored import Clustered, Quantized, Sparse
from koopjax.nn._tt import TT

#: The forms of an operator by name.
OPERATORS: dict[str, type[Operator]] = {
    "dense": Dense,
    "low_rank": LowRank,
    "tt": TT,
    "sparse": Sparse,
    "clustered": Clustered,
    "quantized": Quantized,
}

ACTIVATIONS: dict[str, Any] = {
    "identity": lambda x: x,
    "relu": jax.nn.relu,
    "gelu": jax.nn.gelu,
    "silu": jax.nn.silu,
    "tanh": jax.numpy.tanh,
    "sigmoid": jax.nn.sigmoid,
    "softplus": jax.nn.softplus,
    "elu": jax.nn.elu,
    "leaky_relu": jax.nn.leaky_relu,
}


class Stack(nnx.Module):
    """Operators with activations behind them: `x ↦ a_k(... a_1(x K_1 + b_1) ... K_k + b_k)`.

    A perceptron whose layers are factored or mixed in form, which `export` stores by name.

    Args:
        operators: any of `nn.OPERATORS`, usually with a bias, in order.
        activations: names among `nn.ACTIVATIONS`, one an operator; one fewer leaves the last
            operator without.

    Example:
        >>> import jax
        >>> from koopjax import nn
        >>> a, b = jax.random.split(jax.random.key(0))
        >>> layers = [nn.LowRank.create(a, 64, 32, 4, use_bias=True), nn.Dense.create(b, 32, 10)]
        >>> nn.Stack(layers, ("relu",))(jax.numpy.ones((5, 64))).shape
        (5, 10)
    """

    def __init__(self, operators: Sequence[Operator], activations: Sequence[str]):
        if not isinstance(operators, Sequence | nnx.List) or not all(
            isinstance(operator, Operator) for operator in operators
        ):
            raise expected("a sequence of nn.OPERATORS", f"{operators!r:.60}", "[nn.Dense(matrix)]")
        if isinstance(activations, str) or not isinstance(activations, Sequence):
            raise expected("a sequence of activations", f"{activations!r:.60}", '("relu",)')
        names = tuple(activations)
        if len(names) == len(operators) - 1:
            names = (*names, "identity")
        if not operators or len(names) != len(operators):
            raise expected(
                "as many activations as operators, or one fewer",
                f"{len(operators)} operators and {len(activations)} activations",
            )
        for name in names:
            if not isinstance(name, str) or name not in ACTIVATIONS:
                raise expected(f"an activation among {sorted(ACTIVATIONS)}", repr(name))
        for first, then in pairwise(operators):
            if first.out_features != then.in_features:
                raise expected(
                    "operators that fit each other",
                    f"a width of {first.out_features} before one of {then.in_features}",
                )
        self.operators = nnx.List(operators)
        self.activations = names

    def __call__(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch q"]:
        """The stack along the last axis."""
        for operator, name in zip(self.operators, self.activations, strict=True):
            x = ACTIVATIONS[name](operator(x))
        return x
