"""Projection by a Kronecker product: coordinates of a state that has axes of its own."""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from koopjax._core import as_whole, expected, matmul, precise_as, pytree
from koopjax.observables._base import Observables, data_rows, input_names, like, require_dimension


@pytree
class Kronecker(Observables):
    """Coordinates of an array along directions of each axis: `psi(x) = x (A_1 ⊗ ... ⊗ A_k)`.

    A state of `n_1 n_2 ... n_k` entries, the last axis fastest, is multiplied by a matrix along
    each of its axes: an image of 28 x 28 by `A_1ᵀ X A_2`. `Σ n_i r_i` numbers stand for a
    projection of `Π n_i` by `Π r_i`, and give coordinates that see the whole array.

    Args:
        factors: matrices `(n_i, r_i)`, one an axis.

    Example:
        >>> import jax.numpy as jnp
        >>> psi = Kronecker((jnp.ones((2, 1)), jnp.eye(3)))
        >>> psi(jnp.arange(6.0))
        Array([3., 5., 7.], dtype=float32)

    Reference: De Lathauwer, De Moor & Vandewalle (2000), "A multilinear singular value
        decomposition", definition 8 (mode products).
    """

    factors: tuple[Any, ...]

    @classmethod
    def fit(cls, x: Any, shape: Sequence[int], ranks: Sequence[int]) -> "Kronecker":
        """Leading directions of each axis: the truncated higher-order SVD of centred data.

        Args:
            x: `(n, d)` data.
            shape: sizes of the axes, `d` in all.
            ranks: directions an axis, at most its size.

        Numerics:
            A covariance an axis in float64 on the host, `O(n d max n_i)`.

        Raises:
            ValueError: sizes that do not multiply to `d`, or ranks above them.
        """
        x = data_rows("the data of Kronecker.fit", x)
        shape = tuple(as_whole("an axis", n, 1) for n in _several("shape", shape))
        ranks = tuple(as_whole("a rank", r, 1) for r in _several("ranks", ranks))
        if math.prod(shape) != x.shape[1] or len(ranks) != len(shape):
            raise expected(
                f"axes of {x.shape[1]} entries in all, and a rank for each", f"{shape} and {ranks}"
            )
        if not all(1 <= r <= n for r, n in zip(ranks, shape, strict=True)):
            raise expected(f"ranks from 1 to {shape}", f"{ranks}")
        rows = np.asarray(x, np.float64)
        states = (rows - rows.mean(axis=0)).reshape(len(rows), *shape)
        factors = []
        for axis, rank in enumerate(ranks, 1):
            unfolded = np.moveaxis(states, axis, 0).reshape(shape[axis - 1], -1)
            _, vectors = np.linalg.eigh(unfolded @ unfolded.T)
            leading = vectors[:, ::-1][:, :rank]
            signs = np.sign(leading[np.argmax(np.abs(leading), axis=0), np.arange(rank)])
            with precise_as(x.dtype):
                factors.append(jnp.asarray(leading * signs, x.dtype))
        return cls(tuple(factors))

    def size(self, d: int) -> int:
        """The product of the numbers of directions."""
        shapes = [jnp.shape(a) for a in self.factors]
        if not shapes or any(len(shape) != 2 for shape in shapes):
            raise expected("matrices (n_i, r_i) in Kronecker", f"shapes {shapes}")
        require_dimension("Kronecker", d, math.prod(shape[0] for shape in shapes))
        return math.prod(shape[1] for shape in shapes)

    def names(self, d: int, inputs: Sequence[str] | None = None) -> list[str]:
        """Names such as `u0_2`: a direction of each axis."""
        input_names(d, inputs)
        self.size(d)
        ranks = [jnp.shape(a)[1] for a in self.factors]
        return ["u" + "_".join(map(str, place)) for place in np.ndindex(*ranks)]

    def _evaluate(self, x: Float[Array, "n d"]) -> Array:
        # The last axis at any time is contracted and becomes the first of the results.
        out = x
        for factor in reversed(self.factors):
            n, r = jnp.shape(factor)
            rest = math.prod(out.shape[1:]) // n  # said, since a batch may be empty
            rows = out.reshape(len(x) * rest, n)
            out = matmul(rows, like(factor, x)).reshape(len(x), rest, r)
            out = jnp.moveaxis(out, 2, 1)
        return out.reshape(len(x), math.prod(out.shape[1:]))


def _several(name: str, values: Any) -> Sequence[Any]:
    if isinstance(values, str | bytes) or np.ndim(values) != 1:
        raise expected(f"a sequence of whole numbers as {name}", f"{values!r:.60}")
    return values
