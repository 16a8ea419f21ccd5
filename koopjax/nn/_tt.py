"""The Koopman matrix as a tensor train: an operator of small cores."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float

from koopjax import tt
from koopjax._core import as_dtype, as_flag, as_whole, check_finite, expected
from koopjax.nn._operators import (
    PRECISION,
    Operator,
    as_parameter,
    check_bias,
    default_bias_init,
    plus,
    split_key,
    values_of,
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
        dtype, param_dtype, precision: as in `Operator`.
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
        precision: Any = PRECISION,
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
        precision: Any = PRECISION,
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
            dtype, param_dtype, precision, form: as in the constructor.
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
        return tt.TTMatrix(values_of(self.cores))

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
        return tt.contraction_order(self.ranks, *self.modes, n, kind=kind, form=self.form).flops

    def _map(self, x: Array, cores: tuple[Array, ...]) -> Array:
        rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
        how = {"precision": self.precision, "form": self.form}
        out = tt.apply_matrix(tt.TTMatrix(cores), rows, **how)
        return out.reshape(*x.shape[:-1], self.out_features)

    def apply_product(self, factors: Any) -> Float[Array, "n q"]:
        """`(f_1 ⊗ ... ⊗ f_d) M + b`, contracted factor by factor.

        Args:
            factors: `d` arrays `(n, m_k)`, or one `(d, n, m)`.
        """
        factors, arrays = self._promoted(factors)
        train, how = tt.TTMatrix(arrays["cores"]), {"precision": self.precision, "form": self.form}
        return plus(tt.contract(train, factors, **how), arrays["bias"])


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
        through = init == "identity" and k != output
        scale = NOISE if through else (ranks[k] * ranks[k + 1]) ** -0.5
        scale = math.exp(logs) if init == "normal" else scale
        cores.append(_random_core(one, scale, shape=shape, through=through, dtype=dtype))
    return cores


@partial(jax.jit, static_argnames=("shape", "through", "dtype"))
def _random_core(key: Array, scale: Any, *, shape: Any, through: bool, dtype: Any) -> Array:
    core = jax.random.normal(key, shape, dtype) * jnp.asarray(scale, dtype)
    if through:
        core = core.at[:, 0].add(jnp.eye(shape[0], shape[3], dtype=dtype)[:, None, :])
    return core
