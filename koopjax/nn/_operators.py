"""Forms of the Koopman matrix in a block: what all share, dense and low-rank, as NNX modules."""

import functools
import math
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.nnx.nn import dtypes
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float

from koopjax._core import (
    as_array,
    as_dtype,
    as_flag,
    as_key,
    as_whole,
    check_finite,
    expected,
    is_tracing,
    on_device,
    read,
)
from koopjax.nn._variables import Frozen

default_kernel_init = nnx.initializers.lecun_normal()
default_bias_init = nnx.initializers.zeros_init()
PRECISION = "highest"  # a fitted K loses its digits in bfloat16 or TF32 products
PRECISIONS = ("default", "high", "highest")


class Operator(nnx.Module):
    """An affine map of the last axis in some stored form; `arrays` names its parameters in order.

    A form says its `widths`, and in `_map` what it does with its arrays. All forms take

        dtype: dtype to compute in; none promotes input and parameters.
        param_dtype: dtype to store floating parameters in; none keeps that of the arrays.
        precision: of the products, as `jax.lax.Precision` takes it; the default keeps every digit
            on every backend.

    Attributes:
        arrays: names of the parameters, the optional bias last.
        frozen: those of them that never train, such as indices.
        dtype: dtype to compute in; none promotes input and parameters.
        precision: of the products.
    """

    arrays: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()
    dtype: Any
    precision: Any
    bias: Any
    _map: Any

    def _setup(self, values: dict[str, Any], dtype: Any, param_dtype: Any, precision: Any) -> None:
        for name, value in values.items():
            if name in self.frozen:
                held = Frozen(jnp.asarray(value))
            elif value is None:
                held = nnx.data(None)
            else:
                held = nnx.Param(as_parameter(name, value, param_dtype))
            setattr(self, name, held)
        self.dtype = None if dtype is None else as_dtype("dtype", dtype)
        self.precision = precision_name(precision)

    def _promoted(self, inputs: Any) -> tuple[Any, dict[str, Any]]:
        """Inputs and arrays in the dtype to compute in, places and codes as they are."""
        held = {name: values_of(getattr(self, name)) for name in self.arrays}
        free = {name: value for name, value in held.items() if name not in self.frozen}
        leaves, tree = jax.tree.flatten((inputs, free))
        leaves = dtypes.promote_dtype(tuple(leaves), dtype=self.dtype)
        inputs, free = jax.tree.unflatten(tree, leaves)
        return inputs, {**held, **free}

    def __call__(self, x: Float[Array, "*batch p"]) -> Float[Array, "*batch q"]:
        """`x K + b` along the last axis."""
        x, arrays = self._promoted(as_parameter("x", x, None))
        if x.ndim == 0 or x.shape[-1] != self.in_features:
            raise expected(
                f"{self.in_features} observables, the rows of the operator",
                f"an array of shape {x.shape}",
                "the dictionary and the state that the operator was fitted with",
            )
        bias = arrays.pop("bias")
        return plus(self._map(x, **arrays), bias)

    @property
    def widths(self) -> tuple[int, int]:
        """Of input and output, `(p, q)`."""
        raise NotImplementedError

    @property
    def in_features(self) -> int:
        """Width of the input, `p`."""
        return self.widths[0]

    @property
    def out_features(self) -> int:
        """Width of the output, `q`."""
        return self.widths[1]

    @property
    def use_bias(self) -> bool:
        """Whether the map has a constant part of its own."""
        return self.bias is not None

    def flops(self, n: int) -> int:
        """Operations of the products for `n` samples, two a multiplication: `2 n p q`."""
        p, q = self.widths
        return 2 * n * p * q


def values_of(held: Any) -> Any:
    """The array of a Variable, those of a list of them, or none."""
    if isinstance(held, nnx.List):
        return tuple(variable.get_value() for variable in held)
    return None if held is None else held.get_value()


def plus(out: Array, bias: Array | None) -> Array:
    """A bias added along the last axis."""
    return out if bias is None else out + bias.reshape((1,) * (out.ndim - 1) + bias.shape)


class Dense(Operator):
    """A dense operator: `x K + b`.

    Args:
        matrix: `(p, q)`, acting from the right.
        bias: `(q,)`, or none.
        dtype, param_dtype, precision: as in `Operator`.

    Example:
        >>> import jax.numpy as jnp
        >>> Dense(2 * jnp.eye(2))(jnp.ones(2))
        Array([2., 2.], dtype=float32)
    """

    arrays = ("matrix", "bias")
    matrix: Any

    def __init__(
        self,
        matrix: ArrayLike,
        bias: ArrayLike | None = None,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike | None = None,
        precision: Any = PRECISION,
    ):
        check_bias(bias, check_matrix("matrix", matrix)[1])
        self._setup({"matrix": matrix, "bias": bias}, dtype, param_dtype, precision)

    @classmethod
    def create(
        cls,
        key: Array,
        p: int,
        q: int,
        *,
        use_bias: bool = False,
        kernel_init: Any = default_kernel_init,
        bias_init: Any = default_bias_init,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        precision: Any = PRECISION,
    ) -> "Dense":
        """A random operator to train from scratch.

        Args:
            key: random key.
            p: width of the input.
            q: width of the output.
            use_bias: whether to add a bias.
            kernel_init: initializer of the matrix.
            bias_init: initializer of the bias.
            dtype, param_dtype, precision: as in `Operator`.
        """
        inits = kernel_init, bias_init
        arrays = _drawn(key, {"p": p, "q": q}, inits, param_dtype, use_bias)
        return cls(*arrays, dtype=dtype, precision=precision)

    @property
    def widths(self) -> tuple[int, int]:
        """Of input and output, `(p, q)`."""
        return self.matrix.shape

    def _map(self, x: Array, matrix: Array) -> Array:
        return jnp.matmul(x, matrix, precision=self.precision)


class LowRank(Operator):
    """An operator in two thin factors: `x L R + b`, contracted in the cheaper order.

    Args:
        left: `(p, r)`.
        right: `(r, q)`.
        bias: `(q,)`, or none.
        dtype, param_dtype, precision: as in `Operator`.
    """

    arrays = ("left", "right", "bias")
    left: Any
    right: Any

    def __init__(
        self,
        left: ArrayLike,
        right: ArrayLike,
        bias: ArrayLike | None = None,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike | None = None,
        precision: Any = PRECISION,
    ):
        first, then = check_matrix("left", left), check_matrix("right", right)
        if first[1] != then[0]:
            raise expected("factors (p, r) and (r, q)", f"{first} and {then}")
        check_bias(bias, then[1])
        values = {"left": left, "right": right, "bias": bias}
        self._setup(values, dtype, param_dtype, precision)

    @classmethod
    def create(
        cls,
        key: Array,
        p: int,
        q: int,
        rank: int,
        *,
        use_bias: bool = False,
        kernel_init: Any = default_kernel_init,
        bias_init: Any = default_bias_init,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        precision: Any = PRECISION,
    ) -> "LowRank":
        """A random operator of given rank to train from scratch.

        Args:
            key: random key.
            p: width of the input.
            q: width of the output.
            rank: inner width.
            use_bias: whether to add a bias.
            kernel_init: initializer of both factors.
            bias_init: initializer of the bias.
            dtype, param_dtype, precision: as in `Operator`.
        """
        inits = kernel_init, bias_init
        arrays = _drawn(key, {"p": p, "rank": rank, "q": q}, inits, param_dtype, use_bias)
        return cls(*arrays, dtype=dtype, precision=precision)

    @property
    def widths(self) -> tuple[int, int]:
        """Of input and output, `(p, q)`."""
        return self.left.shape[0], self.right.shape[1]

    @property
    def rank(self) -> int:
        """Inner width of the factors, `r`."""
        return self.left.shape[1]

    def flops(self, n: int) -> int:
        """Operations for `n` samples in the cheaper order, which the shapes decide."""
        return 2 * min(self._orders(n))

    def _orders(self, n: int) -> tuple[int, int]:
        """Multiplications of `(x L) R` and of `x (L R)`."""
        (p, q), r = self.widths, self.rank
        return n * r * (p + q), p * q * (n + r)

    def _map(self, x: Array, left: Array, right: Array) -> Array:
        product = functools.partial(jnp.matmul, precision=self.precision)
        by_factors, by_product = self._orders(max(1, math.prod(x.shape[:-1])))
        if by_factors <= by_product:
            return product(product(x, left), right)
        return product(x, product(left, right))


def _drawn(
    key: Any, sizes: dict[str, int], inits: tuple[Any, Any], dtype: Any, use_bias: Any
) -> list[Any]:
    """Random matrices between sizes that follow each other, and a bias or none."""
    widths = [as_whole(name, size, 1) for name, size in sizes.items()]
    dtype = as_dtype("param_dtype", dtype)
    *keys, key_bias = split_key(key, len(widths))
    arrays = [inits[0](k, s, dtype) for k, s in zip(keys, pairwise(widths), strict=True)]
    has_bias = as_flag("use_bias", use_bias)
    return [*arrays, inits[1](key_bias, (widths[-1],), dtype) if has_bias else None]


def precision_name(precision: Any) -> Any:
    """A precision by its name, so that operators of one precision have equal structure."""
    name = precision.name.lower() if isinstance(precision, jax.lax.Precision) else precision
    if name is None or (isinstance(name, str) and name in PRECISIONS):
        return name
    one = jax.ShapeDtypeStruct((1, 1), jnp.float32)
    try:
        jax.eval_shape(lambda a: jnp.matmul(a, a, precision=name), one)
    except (TypeError, ValueError) as error:
        raise expected(
            "a precision of products as jax.lax.Precision has it", f"{precision!r:.60}", '"highest"'
        ) from error
    return name


def as_parameter(name: str, value: Any, dtype: Any) -> Array:
    """A user's array on the device, in the dtype that parameters are stored in (None: its own)."""
    array = as_array(name, value)
    if jnp.issubdtype(array.dtype, jnp.inexact) and array.dtype.itemsize < 2:
        advice = "nn.Quantized for eight bits"
        raise expected(f"numbers of 16 bits or more as {name}", f"{array.dtype}", advice)
    if dtype is None:
        return array
    short = on_device(array, as_dtype("param_dtype", dtype))
    if not is_tracing(array) and np.isfinite(np.asarray(array)).all():
        check_finite(f"{name} as {short.dtype}", short)
    return short


def split_key(key: Any, count: int) -> Array:
    """So many keys of one, or a refusal of what is no random key."""
    key = as_key("nn", key)
    return jax.random.split(key, count)


def check_matrix(name: str, value: ArrayLike) -> tuple[int, int]:
    """The shape of a value that has two axes; raises for any other."""
    shape = read(name, value).shape
    if len(shape) != 2:
        raise expected(f"{name} to be a matrix", f"an array of shape {shape}")
    return shape


def check_bias(bias: ArrayLike | None, q: int) -> None:
    """Raise unless a bias is a vector of width `q`, or none."""
    if bias is not None and read("bias", bias).shape != (q,):
        raise expected(f"a bias of shape ({q},)", f"one of shape {read('bias', bias).shape}")


def as_indices(name: str, array: ArrayLike, least: int, most: int) -> Any:
    """Integers as an array, NumPy's where they are concrete, after a check of kind and range."""
    array = jnp.asarray(array) if is_tracing(array) else np.asarray(array)
    if array.size and array.dtype.kind not in "iu":
        raise expected(f"{name} of integers", f"{array.dtype}")
    if array.size and not is_tracing(array) and not (least <= array.min() <= array.max() <= most):
        raise expected(f"{name} from {least} to {most}", f"{array.min()} to {array.max()}")
    return array


def check_concrete(what: str, advice: str, *arrays: Any) -> None:
    """Raise where the entries of a matrix are to be looked at and can't be."""
    if is_tracing(*arrays):
        raise expected(f"a concrete {what}", "a traced one", advice)
