"""The Koopman matrix as a tensor train: an operator of small cores."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.nnx.nn import dtypes
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float

from koopjax import tt
from koopjax._core import as_dtype, as_flag, as_whole, check_finite, expected
from koopjax.nn import functional
from koopjax.nn._operators import (
    Operator,
    as_parameter,
    check_bias,
    default_bias_init,
    split_key,
)

INITS = ("normal", "identity")
NOISE = 1e-2  # standard deviation around the identity


class TT(Operator):
    """An operator as a TT matrix: `x M + b` with `M[(i_1...i_d), (j_1...j_d)] = G_1 ... G_d`.

    Two uses. On a plain vector of width `∏ m_k` (a weight matrix in TT format) the vector is
    reshaped and contracted with the cores. In a `KoopmanBlock` whose dictionary is a `Product`,
    or a `Compose` that ends in one, the block contracts the factors of the dictionary with the
    cores: neither the `∏ m_k` observables nor the matrix are formed.

    Args:
        cores: `d` arrays `(r_{k-1}, m_k, n_k, r_k)`, ranks 1 at both ends.
        bias: `(∏ n_k,)`, or none.
        dtype: dtype to compute in; none promotes input and parameters.
        param_dtype: dtype to store in; none keeps that of the arrays.
        precision: of the products; the default keeps every digit on every backend.
        form: order of contraction, one of `tt.FORMS`; `"auto"` takes the one that
            `tt.contraction_order` expects to be fastest for the shapes, while tracing. `nn.tune`
            measures instead and fixes it.

    Example:
        >>> import jax.numpy as jnp
        >>> cores = [jnp.ones((1, 2, 1, 1)), jnp.ones((1, 3, 4, 1))]
        >>> TT(cores)(jnp.ones((5, 6))).shape
        (5, 4)
    """

    arrays = ("cores", "bias")
    cores: Any

    def __init__(
        self,
        cores: Sequence[ArrayLike],
        bias: ArrayLike | None = None,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike | None = None,
        precision: Any = functional.PRECISION,
        form: str = "auto",
    ):
        if not isinstance(cores, Sequence):
            raise expected("cores as a sequence of arrays", type(cores).__name__)
        held = [as_parameter(f"core {k}", core, param_dtype) for k, core in enumerate(cores)]
        train = tt.TTMatrix(tuple(held)).validate()
        check_bias(bias, train.shape[1])
        if form not in tt.FORMS:
            raise expected(f"a form among {list(tt.FORMS)}", repr(form))
        self._setup({"bias": bias}, dtype, param_dtype, precision)
        self.cores = nnx.List([nnx.Param(core) for core in train.cores])
        self.form = form

    @classmethod
    def from_train(cls, train: Any, bias: ArrayLike | None = None, **settings: Any) -> "TT":
        """The operator of a `tt.TTMatrix`, on the same arrays.

        Args:
            train: the TT matrix; NaN cores are refused.
            bias: `(q,)`, or none.
            **settings: those of the constructor.
        """
        for k, core in enumerate(train.cores):
            check_finite(f"core {k}", core)
        return cls(train.cores, bias, **settings)

    @classmethod
    def create(
        cls,
        key: Array,
        row_modes: Sequence[int],
        column_modes: Sequence[int],
        rank: int | Sequence[int],
        *,
        use_bias: bool = False,
        init: str = "normal",
        bias_init: Any = default_bias_init,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        precision: Any = functional.PRECISION,
        form: str = "auto",
    ) -> "TT":
        """A random operator to train from scratch.

        Args:
            key: random key.
            row_modes: `(m_1, ..., m_d)`, whose product is the width of the input.
            column_modes: `(n_1, ..., n_d)`, whose product is the width of the output.
            rank: all inner ranks, or `d - 1` of them; those above the feasible maximum are cut.
            use_bias: whether to add a bias.
            init: `"normal"` gives the matrix entries of variance `1 / ∏ m_k`, for plain vectors;
                `"identity"` passes the first function of each coordinate on unchanged but for a
                little noise, and is random in the core with the outputs: for product dictionaries,
                however long.
            bias_init: initializer of the bias.
            dtype: as in the constructor.
            param_dtype: dtype of the parameters.
            precision: as in the constructor.
            form: as in the constructor.
        """
        if init not in INITS:
            raise expected(f"an init among {list(INITS)}", repr(init))
        row_modes, column_modes = as_modes("row", row_modes), as_modes("column", column_modes)
        if len(row_modes) != len(column_modes):
            raise expected("as many row modes as column modes", f"{row_modes} and {column_modes}")
        param_dtype = as_dtype("param_dtype", param_dtype)
        sizes = [m * n for m, n in zip(row_modes, column_modes, strict=True)]
        ranks, _ = tt.clip_ranks(sizes, rank if len(sizes) > 1 else 1)
        key_cores, key_bias = split_key(key, 2)
        cores = _random_cores(key_cores, row_modes, column_modes, ranks, init, param_dtype)
        q = math.prod(column_modes)
        bias = bias_init(key_bias, (q,), param_dtype) if as_flag("use_bias", use_bias) else None
        return cls(cores, bias, dtype=dtype, precision=precision, form=form)

    @property
    def tt_matrix(self) -> Any:
        """The present cores as a `tt.TTMatrix`."""
        return tt.TTMatrix(tuple(core.get_value() for core in self.cores))

    @property
    def ranks(self) -> tuple[int, ...]:
        """TT ranks, ones at the ends included."""
        return self.tt_matrix.ranks

    @property
    def modes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Row modes and column modes."""
        train = self.tt_matrix
        return train.row_modes, train.column_modes

    @property
    def widths(self) -> tuple[int, int]:
        """Of input and output, `(∏ m_k, ∏ n_k)` (exact, however large)."""
        return self.tt_matrix.shape

    def flops(self, n: int, kind: str = "vector") -> int:
        """Operations for `n` samples in the order that is taken.

        Args:
            n: samples.
            kind: `"vector"`, or `"product"` for the factors of a product dictionary.
        """
        rows, columns = self.modes
        order = tt.contraction_order(self.ranks, rows, columns, n, kind=kind, form=self.form)
        return order.flops

    def _promoted(self, inputs: Sequence[Any]) -> tuple[Any, tuple[Any, ...], Any]:
        cores = [core.get_value() for core in self.cores]
        bias = self._value("bias")
        held = dtypes.promote_dtype((*inputs, *cores, bias), dtype=self.dtype)
        k = len(inputs)
        return held[:k], held[k:-1], held[-1]

    def __call__(self, x: Float[Array, "*batch p"]) -> Float[Array, "*batch q"]:
        """`x M + b` along the last axis."""
        (x,), cores, bias = self._promoted((as_parameter("x", x, None),))
        return functional.apply_tt(x, cores, bias, precision=self.precision, form=self.form)

    def apply_product(self, factors: Any) -> Float[Array, "n q"]:
        """`(f_1 ⊗ ... ⊗ f_d) M + b`, contracted factor by factor.

        Args:
            factors: `d` arrays `(n, m_k)`, or one `(d, n, m)`.
        """
        several = isinstance(factors, list | tuple)
        given, cores, bias = self._promoted(factors if several else (factors,))
        return functional.apply_tt_product(
            given if several else given[0], cores, bias, precision=self.precision, form=self.form
        )


def as_modes(side: str, modes: Any) -> tuple[int, ...]:
    """Row or column modes as integers of at least 1."""
    if not isinstance(modes, Sequence | np.ndarray) or isinstance(modes, str | bytes):
        raise expected(f"{side} modes as a sequence of integers", f"{modes!r:.60}")
    return tuple(as_whole(f"each {side} mode", mode, 1) for mode in modes)


def _random_cores(
    key: Array,
    row_modes: Sequence[int],
    column_modes: Sequence[int],
    ranks: Sequence[int],
    init: str,
    dtype: Any,
) -> list[Array]:
    d = len(row_modes)
    output = max(range(d), key=lambda k: column_modes[k])
    # with every entry of variance v_k, the matrix has variance ∏ v_k times the product of ranks
    logs = -(sum(map(math.log, row_modes)) + sum(map(math.log, ranks))) / (2 * d)
    cores = []
    for k, one in enumerate(jax.random.split(key, d)):
        shape = (ranks[k], row_modes[k], column_modes[k], ranks[k + 1])
        noise = jax.random.normal(one, shape, dtype)
        if init == "normal":
            cores.append(noise * jnp.asarray(math.exp(logs), dtype))
        elif k == output:
            cores.append(noise * jnp.asarray((ranks[k] * ranks[k + 1]) ** -0.5, dtype))
        else:
            through = jnp.eye(ranks[k], ranks[k + 1], dtype=dtype)
            cores.append((NOISE * noise).at[:, 0, :, :].add(through[:, None, :]).astype(dtype))
    return cores
