"""The kernel of a product dictionary: inner products with centres, the dictionary never formed."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from koopjax._core import (
    as_key,
    as_numbers,
    as_whole,
    check_integer,
    expected,
    is_tracing,
    matmul,
    promoted,
    pytree,
    static,
)
from koopjax.observables._base import (
    Observables,
    like,
    near_rows,
    require_dimension,
)
from koopjax.observables._product import Product
from koopjax.observables._product_series import (
    exponent_of,
    families,
    orders_for,
    pick,
    values_of,
)

# Kernel values in a block: they stay near the cache, and blocks are large enough for the product.
BLOCK = 2**22
# Coordinates multiplied in one pass over a block, where the kernel is taken factor by factor.
UNROLL = 8
# Up to so many functions a coordinate their products are summed in that same pass.
NARROW = 4
#: Of the series that stands for a kernel; no interval needs more.
MOST_DEGREE = 2**16


@pytree
class ProductKernel(Observables):
    """Inner products of a full product dictionary with that of centres.

    `psi_j(x) = Ψ(x) · Ψ(c_j) = Π_k f_k(x_k) · f_k(c_jk)` for the `Product` dictionary
    `Ψ = f_0 ⊗ f_1 ⊗ ...`, whose `Π m_k` functions are never formed.

    Args:
        product: `Product`.
        centers: `(m, d)`.
        degree, rank: of the Chebyshev series of each factor's logarithm (static); 0 takes the
            kernel factor by factor. `ProductKernel.fit` finds the least that will do.

    Numerics:
        Where every factor is positive on the centres' interval (5 % wider on either side) and its
        logarithm is a polynomial of that degree to rounding, the exponent is one matrix product
        of inner width `rank · d`: `2 n m d rank` operations. This is checked on the values of
        each call; where it does not hold, or a state lies outside, that block of rows takes the
        product factor by factor, `d` passes over the block. Coordinates of one family share an
        interval: standardise them if their ranges differ.

    Example:
        >>> import jax.numpy as jnp
        >>> from koopjax.observables import CosSin, Product, ProductKernel
        >>> psi = ProductKernel(Product.of(CosSin(1.0), 2), jnp.zeros((1, 2)))
        >>> [round(float(v), 4) for v in psi(jnp.array([[0.0, 0.0], [0.5, 0.0]]))[:, 0]]
        [1.0, 0.8776]

    Reference: Klus & Gelß (2019), "Tensor-based algorithms for image classification",
    Algorithms 12 (kernel-based MANDy).
    """

    product: Any
    centers: Any
    degree: int = static(default=8)
    rank: int = static(default=5)
    prefix = "k"

    @classmethod
    def fit(
        cls, product: Product, x: Any, n_centers: int | None = None, key: Array | None = None
    ) -> "ProductKernel":
        """Centres from data, and the degree that their interval needs.

        Args:
            product: `Product` on `d` coordinates.
            x: `(n, d)` data.
            n_centers: a random choice of so many, for which it takes `key`; None: all.
            key: random key.
        """
        x = near_rows("the data of ProductKernel.fit", x)
        if not isinstance(product, Product):
            raise expected("a Product", type(product).__name__, "Product.of(CosSin(), d)")
        product.modes(x.shape[1])
        if n_centers is not None:
            check_integer("n_centers", n_centers, 1)
            if n_centers > x.shape[0]:
                raise expected(f"at most {x.shape[0]} centres, one a sample", f"{n_centers}")
            if key is None:
                raise expected("a random key beside n_centers", "none", "key=jax.random.key(0)")
            key = as_key("ProductKernel.fit", key)
            x = x[jax.random.choice(key, x.shape[0], (n_centers,), replace=False)]
        dtype = promoted(x.dtype, jnp.float32)
        if is_tracing(product, x, jnp.zeros(())):  # the last: under jit all is staged
            return cls(product, x)
        return cls(product, x, *orders_for(product, x, dtype))

    def size(self, d: int) -> int:
        """The number of centres."""
        if not isinstance(self.product, Product):
            got = type(self.product).__name__
            raise expected("a Product in ProductKernel", got, "Product.of(CosSin(), d)")
        shape = jnp.shape(self.centers)
        if len(shape) != 2:
            raise expected("centers of shape (m, d) in ProductKernel", f"shape {shape}")
        as_whole("the degree of ProductKernel", self.degree, 0, MOST_DEGREE)
        check_integer("the rank of ProductKernel", self.rank, min(self.degree, 1))
        require_dimension("ProductKernel", d, shape[1])
        self.product.modes(d)
        return shape[0]

    def times(
        self, x: Float[Array, "n d"], matrix: Float[Array, "m q"], *, rows: int | None = None
    ) -> Float[Array, "n q"]:
        """`psi(x) @ matrix` by blocks of rows; `psi(x)` itself is never held.

        Args:
            x: states.
            matrix: coefficients of the centres.
            rows: in a block; None chooses by size.
        """
        x = as_numbers("the states", x)
        require_dimension("ProductKernel", x.shape[-1], jnp.shape(self.centers)[1])
        wide = x.astype(promoted(x.dtype, jnp.float32))
        matrix = as_numbers("the matrix", matrix).astype(wide.dtype)
        if matrix.ndim != 2 or matrix.shape[0] != jnp.shape(self.centers)[0]:
            wanted = f"a matrix with a row for each of {jnp.shape(self.centers)[0]} centres"
            raise expected(wanted, f"shape {matrix.shape}")
        rows = None if rows is None else as_whole("rows", rows, 1)
        out = over_rows(self, wide, lambda k: matmul(k, matrix), matrix.shape[1], rows)
        return out.astype(x.dtype)

    def _evaluate(self, x: Float[Array, "n d"]) -> Array:
        return over_rows(self, x, lambda k: k, jnp.shape(self.centers)[0], None)

    def _columns(self, x: Float[Array, "n d"], indices: Array) -> Array:
        chosen = jnp.take(jnp.asarray(self.centers), indices, axis=0)
        return ProductKernel(self.product, chosen, self.degree, self.rank)._evaluate(x)


def over_rows(
    psi: ProductKernel, x: Float[Array, "n d"], use: Any, width: int, rows: int | None
) -> Float[Array, "n width"]:
    """What `use` makes of the kernel's blocks `(rows, m)`, one below another: `(n, width)`."""
    n = x.shape[0]
    if n == 0:
        return jnp.zeros((0, width), x.dtype)
    if rows is None:  # about equally large blocks
        most = max(128, BLOCK // max(jnp.shape(psi.centers)[0], 1))
        rows = -(-n // -(-n // most))
    rows = min(rows, n)
    kernel = kernel_of(psi, like(psi.centers, x))
    if rows >= n:
        return use(kernel(x))

    def step(out: Array, start: Array) -> tuple[Array, None]:
        # The last block ends with the last row, and repeats rows of the one before.
        start = jnp.minimum(start, n - rows)
        block = use(kernel(jax.lax.dynamic_slice_in_dim(x, start, rows)))
        return jax.lax.dynamic_update_slice_in_dim(out, block, start, 0), None

    starts = rows * jnp.arange(-(-n // rows))
    return jax.lax.scan(step, jnp.zeros((n, width), x.dtype), starts)[0]


def kernel_of(psi: ProductKernel, centers: Float[Array, "m d"]) -> Any:
    """The function from a block of states to its kernel values."""
    groups = families(psi.product, centers)
    tables = [(indices, values_of(f, pick(centers, indices).T)) for indices, f in groups]

    def factors(x: Array) -> Array:
        values = [values_of(f, pick(x, indices).T) for indices, f in groups]
        return factor_by_factor(values, [table for _, table in tables])

    if psi.degree == 0:
        return factors
    exponent = exponent_of(groups, centers, psi.degree, min(psi.rank, psi.degree))
    right, right_sums = exponent.features(centers)
    right = right * exponent.weights[None, :]

    def exponential(x: Array) -> Array:
        left, sums = exponent.features(x)
        return jnp.exp(matmul(left, right.T) + sums[:, None] + right_sums[None, :])

    def kernel(x: Array) -> Array:
        # Recomputed in a backward pass: what is kept of a product is one block a coordinate.
        forms = jax.checkpoint(exponential), jax.checkpoint(factors)
        return jax.lax.cond(exponent.holds(x), *forms, x)

    return kernel


def factor_by_factor(left: list[Array], right: list[Array]) -> Array:
    """`Π_k left_k right_kᵀ`: families of factors `(k, n, f)` and `(k, m, f)` to `(n, m)`."""

    def step(product: Array, pair: tuple[Array, Array]) -> tuple[Array, None]:
        a, b = pair
        if a.shape[1] > NARROW:
            return product * matmul(a, b.T), None
        inner = [a[:, f][:, None] * b[:, f][None, :] for f in range(a.shape[1])]
        return product * sum(inner[1:], inner[0]), None

    product = jnp.ones((left[0].shape[1], right[0].shape[1]), left[0].dtype)
    for a, b in zip(left, right, strict=True):
        product, _ = jax.lax.scan(step, product, (a, b), unroll=min(UNROLL, a.shape[0]))
    return product
