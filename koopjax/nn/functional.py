"""The functional core of Koopman blocks: pure functions that the NNX and Linen modules call."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, Int

from koopjax import tt
from koopjax._core import as_array, expected
from koopjax.nn._door import by_door
from koopjax.nn._product import ends_in_product, product_factors

__all__ = [
    "apply_block",
    "apply_clustered",
    "apply_dense",
    "apply_low_rank",
    "apply_quantized",
    "apply_sparse",
    "apply_tt",
    "apply_tt_product",
    "clustered_matrix",
    "low_rank_order",
    "quantized_matrix",
    "sparse_matrix",
    "sparse_order",
]

PRECISION = "highest"  # a fitted K loses its digits in bfloat16 or TF32 products

# Multiplications of a dense product that take as long as one of another kind, measured on CPU.
GATHERED = 55  # one multiplication of gathered numbers, summed by segments
PLACED = 150  # a number that is put into a matrix of zeros
ENTRY = 20  # an entry of that matrix, written and read once


@by_door("x", "matrix", "bias")
def apply_dense(
    x: Float[Array, "*batch p"],
    matrix: Float[Array, "p q"],
    bias: Float[Array, " q"] | None = None,
    *,
    precision: Any = PRECISION,
) -> Float[Array, "*batch q"]:
    """Dense operator: `x K + b`.

    Args:
        x: lifted states.
        matrix: `K`, acting from the right.
        bias: `b`, or none.
        precision: of the product, as `jax.lax.Precision` takes it; the default keeps every digit.

    Returns:
        `(..., q)` in the promoted dtype. Costs `2 n p q` operations.
    """
    _check_axes("the matrix", matrix, 2)
    _check_width(x, matrix.shape[0])
    return _add(jnp.matmul(x, matrix, precision=precision), bias)


def low_rank_order(n: int, p: int, q: int, rank: int) -> str:
    """Which order of contraction needs fewer multiplications for `n` rows.

    Args:
        n: rows of `x`.
        p: width of `x`.
        q: width of the result.
        rank: inner width of the factors.

    Returns:
        `"factors"` for `(x L) R`, `n r (p + q)`; `"product"` for `x (L R)`, `p q (n + r)`.

    Example:
        >>> low_rank_order(1000, 100, 100, 5), low_rank_order(1000, 100, 10, 10)
        ('factors', 'product')
    """
    return "factors" if n * rank * (p + q) <= p * q * (n + rank) else "product"


@by_door("x", "left", "right", "bias")
def apply_low_rank(
    x: Float[Array, "*batch p"],
    left: Float[Array, "p r"],
    right: Float[Array, "r q"],
    bias: Float[Array, " q"] | None = None,
    *,
    precision: Any = PRECISION,
) -> Float[Array, "*batch q"]:
    """Low-rank operator: `x L R + b`, contracted in the cheaper order.

    The shapes decide the order while tracing, so batches of different sizes may differ in their
    last bits.

    Args:
        x: lifted states.
        left: `L`.
        right: `R`.
        bias: `b`, or none.
        precision: of the products, as in `apply_dense`.

    Returns:
        `(..., q)` in the promoted dtype.
    """
    _check_width(x, left.shape[0])
    p, rank = left.shape
    rows = max(1, x.size // p) if p else 1
    if low_rank_order(rows, p, right.shape[1], rank) == "factors":
        inner = jnp.matmul(x, left, precision=precision)
        return _add(jnp.matmul(inner, right, precision=precision), bias)
    return apply_dense(x, jnp.matmul(left, right, precision=precision), bias, precision=precision)


def sparse_order(n: int, p: int, q: int, nonzero: int) -> str:
    """Which way to multiply `n` rows with a sparse matrix is expected to be faster.

    Args:
        n: rows of `x`.
        p: width of `x`.
        q: width of the result.
        nonzero: stored entries.

    Returns:
        `"gather"` for products of the stored entries alone, summed by column; `"matrix"` for a
        dense product with the matrix, put together each time. The dense product is so much better
        at using the machine that it wins from a few rows on, unless very few entries are stored.

    Example:
        >>> sparse_order(1, 784, 100, 1500), sparse_order(256, 784, 100, 7840)
        ('gather', 'matrix')
    """
    gather = GATHERED * n * nonzero
    return "gather" if gather <= PLACED * nonzero + (ENTRY + n) * p * q else "matrix"


@by_door("values", "rows", "columns")
def sparse_matrix(
    values: Float[Array, " k"],
    rows: Int[Array, " k"],
    columns: Int[Array, " k"],
    shape: tuple[int, int],
) -> Float[Array, "p q"]:
    """The dense matrix of coordinates.

    Args:
        values: the stored entries.
        rows: where they are, sorted by row, then by column, none twice.
        columns: likewise.
        shape: `(p, q)`.
    """
    # unsigned bytes can't hold the size 256 that the bounds of an index are compared with
    places = rows.astype(jnp.int32), columns.astype(jnp.int32)
    zeros = jnp.zeros(shape, values.dtype)
    return zeros.at[places].set(
        values, indices_are_sorted=True, unique_indices=True, mode="promise_in_bounds"
    )


@by_door("x", "values", "rows", "columns", "bias")
def apply_sparse(
    x: Float[Array, "*batch p"],
    values: Float[Array, " k"],
    rows: Int[Array, " k"],
    columns: Int[Array, " k"],
    shape: tuple[int, int],
    bias: Float[Array, " q"] | None = None,
    *,
    precision: Any = PRECISION,
) -> Float[Array, "*batch q"]:
    """Sparse operator: `x K + b`, in the way that `sparse_order` gives.

    The shapes decide while tracing, so batches of different sizes may differ in their last bits.

    Args:
        x: lifted states.
        values: the stored entries of `K`.
        rows: where they are, sorted by row, then by column, none twice.
        columns: likewise.
        shape: `(p, q)`.
        bias: `b`, or none.
        precision: of the dense product, as in `apply_dense`.

    Returns:
        `(..., q)` in the promoted dtype.
    """
    p, q = shape
    _check_width(x, p)
    n = math.prod(x.shape[:-1])
    if sparse_order(n, p, q, values.shape[0]) == "matrix":
        matrix = sparse_matrix(values, rows, columns, shape)
        return apply_dense(x, matrix, bias, precision=precision)
    gathered = jnp.take(x.reshape(n, p).T, rows.astype(jnp.int32), axis=0, mode="clip")
    products = gathered * values[:, None]
    out = jax.ops.segment_sum(products, columns.astype(jnp.int32), q).T
    return _add(out.reshape(*x.shape[:-1], q), bias)


@by_door("codebook", "codes")
def clustered_matrix(
    codebook: Float[Array, " k"], codes: Int[Array, "p q"], *, zero: bool = False
) -> Float[Array, "p q"]:
    """The dense matrix of a codebook: `codebook[codes]`.

    Args:
        codebook: the values.
        codes: which of them each entry is.
        zero: hold the first value at zero, gradients included.
    """
    _check_axes("the codebook", codebook, 1)
    _check_axes("codes", codes, 2)
    if zero:
        # a mask costs nothing where writing one number would be an operation of its own
        codebook = jnp.where(jnp.arange(codebook.shape[0]) == 0, 0, codebook)
    return jnp.take(codebook, codes.astype(jnp.int32), axis=0, mode="clip")


@by_door("x", "codebook", "codes", "bias")
def apply_clustered(
    x: Float[Array, "*batch p"],
    codebook: Float[Array, " k"],
    codes: Int[Array, "p q"],
    bias: Float[Array, " q"] | None = None,
    *,
    zero: bool = False,
    precision: Any = PRECISION,
) -> Float[Array, "*batch q"]:
    """Operator on a codebook: `x codebook[codes] + b`.

    Args:
        x: lifted states.
        codebook: the values.
        codes: which of them each entry is.
        bias: `b`, or none.
        zero: hold the first value at zero, gradients included.
        precision: of the product, as in `apply_dense`.

    Returns:
        `(..., q)` in the promoted dtype.
    """
    _check_axes("codes", codes, 2)
    _check_width(x, codes.shape[0])
    matrix = clustered_matrix(codebook, codes, zero=zero)
    return apply_dense(x, matrix, bias, precision=precision)


@by_door("codes", "scale")
def quantized_matrix(codes: Int[Array, "p q"], scale: Float[Array, "a b"]) -> Float[Array, "p q"]:
    """The dense matrix of integers and scales: `codes * scale`.

    Args:
        codes: small integers.
        scale: `(1, 1)`, `(1, q)` (a column) or `(p, 1)` (a row).
    """
    _check_scale(codes, scale)
    return codes.astype(scale.dtype) * scale


@by_door("x", "codes", "scale", "bias")
def apply_quantized(
    x: Float[Array, "*batch p"],
    codes: Int[Array, "p q"],
    scale: Float[Array, "a b"],
    bias: Float[Array, " q"] | None = None,
    *,
    precision: Any = PRECISION,
) -> Float[Array, "*batch q"]:
    """Quantised operator: `(x codes) * scale + b`, or `(x * scale) codes + b` by rows.

    Args:
        x: lifted states.
        codes: small integers.
        scale: `(1, 1)`, `(1, q)` (a column) or `(p, 1)` (a row).
        bias: `b`, or none.
        precision: of the product, as in `apply_dense`.

    Returns:
        `(..., q)` in the promoted dtype.
    """
    _check_scale(codes, scale)
    _check_width(x, codes.shape[0])
    line = scale.reshape((1,) * (x.ndim - 1) + (-1,))
    if scale.shape[0] > 1:
        return apply_dense(x * line, codes.astype(x.dtype), bias, precision=precision)
    return _add(jnp.matmul(x, codes.astype(x.dtype), precision=precision) * line, bias)


@by_door("x", "bias")
def apply_tt(
    x: Float[Array, "*batch p"],
    cores: Sequence[Any],
    bias: Float[Array, " q"] | None = None,
    *,
    precision: Any = PRECISION,
    form: str = "auto",
) -> Float[Array, "*batch q"]:
    """TT operator on plain vectors: `x M + b`, contracted in the cheapest order.

    Args:
        x: `(..., ∏ m_k)`.
        cores: `d` arrays `(r_{k-1}, m_k, n_k, r_k)`.
        bias: `b`, or none.
        precision: of the products, as in `apply_dense`.
        form: order of contraction, as in `tt.contraction_order`.

    Returns:
        `(..., ∏ n_k)` in the promoted dtype.
    """
    train = tt.TTMatrix(tuple(cores))
    p, q = train.shape
    _check_width(x, p)
    rows = x.reshape(math.prod(x.shape[:-1]), p)
    out = tt.apply_matrix(train, rows, precision=precision, form=form)
    return _add(out.reshape(*x.shape[:-1], q), bias)


@by_door("bias")
def apply_tt_product(
    factors: Any,
    cores: Sequence[Any],
    bias: Float[Array, " q"] | None = None,
    *,
    precision: Any = PRECISION,
    form: str = "auto",
) -> Float[Array, "n q"]:
    """TT operator on a product dictionary: `(f_1 ⊗ ... ⊗ f_d) M + b`, in one fused pass.

    Args:
        factors: `d` arrays `(n, m_k)`, or one `(d, n, m)`.
        cores: `d` arrays `(r_{k-1}, m_k, n_k, r_k)`.
        bias: `b`, or none.
        precision: of the products, as in `apply_dense`.
        form: order of contraction, as in `tt.contraction_order`.

    Returns:
        `(n, ∏ n_k)` in the promoted dtype.
    """
    out = tt.contract(tt.TTMatrix(tuple(cores)), factors, precision=precision, form=form)
    return _add(out, bias)


def apply_block(
    psi: Callable[[Array], Array],
    operator: Callable[[Array], Array],
    x: ArrayLike,
    *,
    dtype: DTypeLike | None = None,
) -> Float[Array, "*batch q"]:
    """Koopman block: `operator(psi(x))` for a state, a batch, or any number of batch axes.

    Where `psi` is a `Product`, or a `Compose` that ends in one, and the operator has
    `apply_product` (`nn.TT`), the factors of the dictionary go to the operator and the products
    are never formed.

    Args:
        psi: dictionary, called on `(d,)` or `(n, d)`.
        operator: map of the last axis, `p` to `q`.
        x: `(d,)`, `(n, d)` or `(..., d)`.
        dtype: dtype to compute in; none promotes input and parameters.

    Returns:
        `(..., q)`.
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


def _check_axes(name: str, array: Array, axes: int) -> None:
    if array.ndim != axes:
        raise expected(f"{name} with {axes} axes", f"shape {array.shape}")


def _check_scale(codes: Array, scale: Array) -> None:
    _check_axes("codes", codes, 2)
    p, q = codes.shape
    if scale.shape not in {(1, 1), (1, q), (p, 1)}:
        raise expected(f"a scale of shape (1, 1), (1, {q}) or ({p}, 1)", f"shape {scale.shape}")


def _check_width(x: Array, p: int) -> None:
    if x.ndim == 0 or x.shape[-1] != p:
        raise expected(
            f"{p} observables, the rows of the operator",
            f"an array of shape {x.shape}",
            "the dictionary and the state that the operator was fitted with",
        )


def _add(out: Array, bias: Array | None) -> Array:
    if bias is None:
        return out
    if bias.shape not in {(), out.shape[-1:]}:
        raise expected(f"a bias of shape {out.shape[-1:]}", f"shape {bias.shape}")
    return out + bias.reshape((1,) * (out.ndim - 1) + bias.shape)
