"""Forms of the Koopman matrix in a block: dense and low-rank, as NNX modules."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import dtypes
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float

from koopjax._core import expected, on_device
from koopjax.nn import functional
from koopjax.nn._variables import Frozen

default_kernel_init = nnx.initializers.lecun_normal()
default_bias_init = nnx.initializers.zeros_init()


class Operator(nnx.Module):
    """An affine map of the last axis in some stored form; `arrays` names its parameters in order.

    Attributes:
        arrays: names of the parameters, the optional bias last.
        dtype: dtype to compute in; none promotes input and parameters.
        precision: of the products.
    """

    arrays: tuple[str, ...] = ()
    dtype: Any
    precision: Any
    bias: Any

    def _setup(
        self,
        values: dict[str, Any],
        dtype: Any,
        param_dtype: Any,
        precision: Any,
        constants: dict[str, Any] | None = None,
    ) -> None:
        for name, value in values.items():
            array = None if value is None else on_device(value, param_dtype)
            setattr(self, name, nnx.data(None) if array is None else nnx.Param(array))
        for name, value in (constants or {}).items():
            setattr(self, name, Frozen(jnp.asarray(value)))
        self.dtype = None if dtype is None else jnp.dtype(dtype)
        self.precision = precision_name(precision)

    def _values(self, x: ArrayLike) -> tuple[Any, ...]:
        held = [getattr(self, name) for name in self.arrays]
        arrays = [None if v is None else v.get_value() for v in held]
        return tuple(dtypes.promote_dtype((jnp.asarray(x), *arrays), dtype=self.dtype))

    @property
    def in_features(self) -> int:
        """Width of the input, `p`."""
        raise NotImplementedError

    @property
    def out_features(self) -> int:
        """Width of the output, `q`."""
        raise NotImplementedError

    @property
    def use_bias(self) -> bool:
        """Whether the map has a constant part of its own."""
        return self.bias is not None

    def flops(self, n: int) -> int:
        """Operations of the products for `n` samples, two a multiplication."""
        raise NotImplementedError


class Dense(Operator):
    """A dense operator: `x K + b`.

    Args:
        matrix: `(p, q)`, acting from the right.
        bias: `(q,)`, or none.
        dtype: dtype to compute in; none promotes input and parameters.
        param_dtype: dtype to store in; none keeps that of the arrays.
        precision: of the product; the default keeps every digit on every backend.

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
        precision: Any = functional.PRECISION,
    ):
        check_matrix("matrix", matrix)
        check_bias(bias, jnp.shape(matrix)[1])
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
        precision: Any = functional.PRECISION,
    ) -> "Dense":
        """A random operator to train from scratch.

        Args:
            key: random key.
            p: width of the input.
            q: width of the output.
            use_bias: whether to add a bias.
            kernel_init: initializer of the matrix.
            bias_init: initializer of the bias.
            dtype: as in the constructor.
            param_dtype: dtype of the parameters.
            precision: as in the constructor.
        """
        key_matrix, key_bias = jax.random.split(key)
        matrix = kernel_init(key_matrix, (p, q), param_dtype)
        bias = bias_init(key_bias, (q,), param_dtype) if use_bias else None
        return cls(matrix, bias, dtype=dtype, precision=precision)

    @property
    def in_features(self) -> int:
        """Width of the input, `p`."""
        return self.matrix.shape[0]

    @property
    def out_features(self) -> int:
        """Width of the output, `q`."""
        return self.matrix.shape[1]

    def flops(self, n: int) -> int:
        """`2 n p q`."""
        return 2 * n * self.in_features * self.out_features

    def __call__(self, x: Float[Array, "*batch p"]) -> Float[Array, "*batch q"]:
        """`x K + b` along the last axis."""
        x, matrix, bias = self._values(x)
        return functional.apply_dense(x, matrix, bias, precision=self.precision)


class LowRank(Operator):
    """An operator in two thin factors: `x L R + b`, contracted in the cheaper order.

    Args:
        left: `(p, r)`.
        right: `(r, q)`.
        bias: `(q,)`, or none.
        dtype: dtype to compute in; none promotes input and parameters.
        param_dtype: dtype to store in; none keeps that of the arrays.
        precision: of the products; the default keeps every digit on every backend.
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
        precision: Any = functional.PRECISION,
    ):
        check_matrix("left", left)
        check_matrix("right", right)
        if jnp.shape(left)[1] != jnp.shape(right)[0]:
            raise expected("factors (p, r) and (r, q)", f"{jnp.shape(left)} and {jnp.shape(right)}")
        check_bias(bias, jnp.shape(right)[1])
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
        precision: Any = functional.PRECISION,
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
            dtype: as in the constructor.
            param_dtype: dtype of the parameters.
            precision: as in the constructor.
        """
        key_left, key_right, key_bias = jax.random.split(key, 3)
        left = kernel_init(key_left, (p, rank), param_dtype)
        right = kernel_init(key_right, (rank, q), param_dtype)
        bias = bias_init(key_bias, (q,), param_dtype) if use_bias else None
        return cls(left, right, bias, dtype=dtype, precision=precision)

    @property
    def in_features(self) -> int:
        """Width of the input, `p`."""
        return self.left.shape[0]

    @property
    def out_features(self) -> int:
        """Width of the output, `q`."""
        return self.right.shape[1]

    @property
    def rank(self) -> int:
        """Inner width of the factors, `r`."""
        return self.left.shape[1]

    def flops(self, n: int) -> int:
        """Operations for `n` samples in the cheaper order."""
        p, q, r = self.in_features, self.out_features, self.rank
        return 2 * min(n * r * (p + q), p * q * (n + r))

    def __call__(self, x: Float[Array, "*batch p"]) -> Float[Array, "*batch q"]:
        """`x L R + b` along the last axis."""
        x, left, right, bias = self._values(x)
        return functional.apply_low_rank(x, left, right, bias, precision=self.precision)


def precision_name(precision: Any) -> Any:
    """A precision by its name, so that operators of one precision have equal structure."""
    return precision.name.lower() if isinstance(precision, jax.lax.Precision) else precision


def check_matrix(name: str, value: ArrayLike) -> None:
    """Raise unless a value has two axes."""
    if jnp.ndim(value) != 2:
        raise expected(f"{name} to be a matrix", f"an array of shape {jnp.shape(value)}")


def check_bias(bias: ArrayLike | None, q: int) -> None:
    """Raise unless a bias is a vector of width `q`, or none."""
    if bias is not None and jnp.shape(bias) != (q,):
        raise expected(f"a bias of shape ({q},)", f"one of shape {jnp.shape(bias)}")
