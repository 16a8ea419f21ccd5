"""Tensor trains and TT matrices with exact ranks, as pytrees of cores."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped

from koopjax._core import expected, pytree, read, read_numbers
from koopjax.tt._precision import floating_dtype


def _check_cores(kind: str, cores: tuple[Any, ...], ndim: int) -> None:
    """Raise unless cores chain: right number of axes, ranks that meet, ranks of 1 at the ends."""
    known = isinstance(cores, tuple) and all(
        hasattr(core, "shape") and hasattr(core, "dtype") for core in cores
    )
    if not known:
        raise expected(f"a list of arrays as cores of a {kind}", f"{cores!r:.60}")
    if not cores:
        raise expected(f"at least one core in a {kind}", "none")
    for core in cores:
        check_core_dtype(kind, core.dtype)
    shapes = [tuple(jnp.shape(core)) for core in cores]
    for k, shape in enumerate(shapes):
        if len(shape) != ndim or 0 in shape:
            raise expected(f"core {k} of a {kind} with {ndim} axes, none empty", f"shape {shape}")
    for k in range(len(shapes) - 1):
        if shapes[k][-1] != shapes[k + 1][0]:
            raise expected(
                f"equal ranks where core {k} meets core {k + 1}",
                f"shapes {shapes[k]} and {shapes[k + 1]}",
            )
    if shapes[0][0] != 1 or shapes[-1][-1] != 1:
        raise expected("ranks of 1 at both ends", f"{shapes[0][0]} and {shapes[-1][-1]}")


def check_core_dtype(kind: str, dtype: Any) -> None:
    """Raise unless the verbs compute in this dtype, or in floats in place of it."""
    number = jnp.issubdtype(dtype, jnp.number) or jnp.issubdtype(dtype, jnp.bool_)
    if not number or (jnp.issubdtype(dtype, jnp.inexact) and dtype.itemsize < 2):
        raise expected(
            f"numbers of 16 bits or more as cores of a {kind}",
            f"dtype {dtype}",
            "core.astype(jnp.float32)",
        )


def read_core(name: str, core: Any) -> Any:
    """What a user wrote down as a core, read by the door: NumPy's floats, integers as such.

    Arrays of JAX stay as they are, and so does all else that JAX puts in their place where it
    rebuilds a tree.
    """
    written = isinstance(core, list) or hasattr(core, "__array__")
    if not written or isinstance(core, jax.Array | np.generic) or hasattr(core, "__jax_array__"):
        return core
    core = read(name, core)
    return core if jnp.issubdtype(core.dtype, jnp.inexact) else read_numbers(name, core)


class _Train:
    """What both kinds share."""

    cores: Any

    def __post_init__(self) -> None:
        """Take a list as a tuple, so that equal trains have equal tree structures; read NumPy."""
        if isinstance(self.cores, list | tuple):
            cores = tuple(read_core(f"core {k}", core) for k, core in enumerate(self.cores))
            object.__setattr__(self, "cores", cores)

    @property
    def order(self) -> int:
        """Number of cores, `d`."""
        return len(self.cores)

    @property
    def ranks(self) -> tuple[int, ...]:
        """TT ranks `(r_0, ..., r_d)`, 1 at both ends."""
        return (*(int(core.shape[0]) for core in self.cores), int(self.cores[-1].shape[-1]))

    @property
    def numbers(self) -> int:
        """How many numbers the cores hold."""
        return sum(math.prod(core.shape) for core in self.cores)

    @property
    def dtype(self) -> Any:
        """The dtype of the cores, promoted to a common one; outside x64 NumPy's are float32.

        But for numbers that float32 does not hold: what has those is computed in float64.
        """
        return floating_dtype(*self.cores)


@pytree
class TensorTrain(_Train):
    """A tensor as a chain of cores: `A[i_1, ..., i_d] = G_1[i_1] G_2[i_2] ... G_d[i_d]`.

    Args:
        cores: `d` arrays `(r_{k-1}, n_k, r_k)`, with `r_0 = r_d = 1`.

    Reference: Oseledets (2011), SIAM J. Sci. Comput. 33, equation 1.2.
    """

    cores: Any

    def validate(self) -> "TensorTrain":
        """Raise `ValueError` unless the cores chain; returns the train."""
        _check_cores("TensorTrain", self.cores, 3)
        return self

    @property
    def modes(self) -> tuple[int, ...]:
        """Mode sizes `(n_1, ..., n_d)`: the shape of the tensor."""
        return tuple(int(core.shape[1]) for core in self.cores)

    def to_dense(self) -> Shaped[Array, "..."]:
        """The full tensor of shape `modes`."""
        from koopjax.tt._dense import dense

        return dense(self)

    def __getitem__(self, index: Any) -> Any:
        """A part of the tensor, as `slice_` takes it: `train[1, :, 2:4]`."""
        from koopjax.tt._parts import slice_

        return slice_(self, index)


@pytree
class TTMatrix(_Train):
    """A matrix between tensor spaces as a chain of cores, acting from the right.

    `M[(i_1 ... i_d), (j_1 ... j_d)] = G_1[i_1, j_1] ... G_d[i_d, j_d]`, multi-indices in C order.
    A tensor with one output index is the case of column modes `(1, ..., q, ..., 1)`.

    Args:
        cores: `d` arrays `(r_{k-1}, m_k, n_k, r_k)`, with `r_0 = r_d = 1`.
    """

    cores: Any

    def validate(self) -> "TTMatrix":
        """Raise `ValueError` unless the cores chain; returns the matrix."""
        _check_cores("TTMatrix", self.cores, 4)
        return self

    @property
    def row_modes(self) -> tuple[int, ...]:
        """Modes of the rows `(m_1, ..., m_d)`: what a row vector is contracted over."""
        return tuple(int(core.shape[1]) for core in self.cores)

    @property
    def column_modes(self) -> tuple[int, ...]:
        """Modes of the columns `(n_1, ..., n_d)`."""
        return tuple(int(core.shape[2]) for core in self.cores)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the matrix, `(∏ m_k, ∏ n_k)`."""
        return math.prod(self.row_modes), math.prod(self.column_modes)

    def to_dense(self) -> Shaped[Array, "p q"]:
        """The full matrix `(∏ m_k, ∏ n_k)`."""
        from koopjax.tt._dense import dense_matrix

        return dense_matrix(self)
