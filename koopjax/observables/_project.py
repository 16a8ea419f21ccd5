"""Projections: coordinates along directions of the state, or of each of its axes."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from koopjax._core import (
    as_flag,
    as_states,
    as_whole,
    check_integer,
    check_metric,
    expected,
    has_float64,
    in_float64,
    is_tracing,
    matmul,
    precise_as,
    promoted,
    pytree,
    read_numbers,
    semidefinite_root,
)
from koopjax.observables._base import (
    Observables,
    data_rows,
    input_names,
    like,
    require_axes,
    require_dimension,
)


@pytree
class Project(Observables):
    """Coordinates along directions: `psi(x) = (x - mean) @ matrix`.

    Args:
        matrix: `(d, r)` directions as columns.
        mean: `(d,)`, or `None` for the origin.

    Example:
        >>> import jax.numpy as jnp
        >>> Project(jnp.array([[1.0], [2.0]]))(jnp.array([3.0, 4.0]))
        Array([11.], dtype=float32)
    """

    matrix: Any
    mean: Any = None
    prefix = "u"

    @classmethod
    def pca(cls, x: Any, rank: int, *, metric: Any = None, whiten: bool = False) -> "Project":
        """Leading principal directions, in an optional metric on the states.

        With covariance `S` and metric `M = L Lᵀ`, the directions are `L u` for the leading
        eigenvectors `u` of `Lᵀ S L`: of all rank-`r` approximations of the states they leave the
        least mean squared error `E[(x - x̂)ᵀ M (x - x̂)]`. Without a metric, plain PCA.

        Args:
            x: `(n, d)` data.
            rank: number of directions, at most `d`.
            metric: `(d, d)` symmetric, positive semidefinite.
            whiten: scale the projected data to unit variance along each direction.

        Numerics:
            Covariance and eigenvectors in float64 where the backend has it; `O(n d² + d³)`. The
            largest entry of each direction is positive. Directions beyond the rank of the data
            carry nothing and are not scaled up by `whiten`.
        """
        whiten = as_flag("whiten", whiten)
        x = data_rows("the data of Project.pca", x)
        _check_rank(rank, x.shape[1])
        check_metric("metric", metric, x.shape[1])
        metric = None if metric is None else read_numbers("the metric", metric)
        mean, matrix = _precisely(_directions, x, metric, whiten=whiten)
        return cls(matrix[:, :rank], mean)

    @classmethod
    def active_subspace(
        cls, x: Any, gradients: Any, rank: int, *, weighted: bool = True, whiten: bool = False
    ) -> "Project":
        """Directions along which a function of the states changes most.

        With `C = E[Jᵀ J]`, the mean squared Jacobian. `weighted=True` is `pca` in the metric `C`:
        directions that matter to the function *and* along which the data vary, which is what a
        projection before a dictionary needs. `weighted=False` gives the eigenvectors of `C`, the
        classical active subspace.

        Args:
            x: `(m, d)` states; their mean becomes the origin. `None` with `weighted=False`: no
                mean is taken off.
            gradients: `(n, d)` gradients of a scalar function, or `(n, q, d)` Jacobians, at
                samples of the same distribution.
            rank: number of directions, at most `d`.
            weighted: see above.
            whiten: as in `pca`; needs `weighted=True`.

        Reference:
            P. G. Constantine, "Active Subspaces", SIAM 2015.
        """
        weighted, whiten = as_flag("weighted", weighted), as_flag("whiten", whiten)
        gradients = as_states("the gradients", gradients)
        if gradients.ndim not in (2, 3) or gradients.shape[0] == 0:
            raise expected("gradients (n, d) or Jacobians (n, q, d)", f"shape {gradients.shape}")
        d = gradients.shape[-1]
        rows = data_rows("the gradients", gradients.reshape(-1, d))
        _check_rank(rank, d)
        # A mean over samples, a sum over outputs.
        metric = _precisely(_second_moment, rows, gradients.shape[0])
        if weighted:
            if x is None:
                raise expected("states x for a weighted active subspace", "None", "weighted=False")
            x = data_rows("the states", x)
            if x.shape[1] != d:
                raise expected(f"states with {d} coordinates", f"shape {x.shape}")
            return cls.pca(x, rank, metric=metric, whiten=whiten)
        if whiten:
            raise expected("weighted=True for whitened directions", "weighted=False")
        matrix = _precisely(_eigenvectors, metric)[:, :rank]
        if x is None:
            return cls(matrix)
        x = data_rows("the states", x)
        with precise_as(x.dtype):
            return cls(matrix, jnp.mean(jnp.asarray(x), axis=0))

    def size(self, d: int) -> int:
        """The number of directions."""
        known, rank = require_axes("the matrix of Project", self.matrix, 2)
        require_dimension("Project", d, known)
        if self.mean is not None and jnp.shape(self.mean) != (d,):
            raise expected(f"a mean of shape ({d},) in Project", f"shape {jnp.shape(self.mean)}")
        return rank

    def _evaluate(self, x: Float[Array, "n d"]) -> Array:
        centred = x if self.mean is None else x - like(self.mean, x)[None, :]
        return matmul(centred, like(self.matrix, x))

    def _columns(self, x: Float[Array, "n d"], indices: Array) -> Array:
        return Project(jnp.take(jnp.asarray(self.matrix), indices, axis=1), self.mean)._evaluate(x)


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


def _check_rank(rank: int, d: int) -> None:
    check_integer("the rank", rank, 1)
    if rank > d:
        raise expected(f"a rank from 1 to {d}, the number of coordinates", f"{rank}")


def _precisely(function: Any, *args: Any, **kwargs: Any) -> Any:
    """Run in float64 where that can be had, and bring the results back to the first dtype."""
    dtype = args[0].dtype
    if is_tracing(*args) or not has_float64():
        wide = promoted(dtype, jnp.float32)
        args = tuple(a.astype(wide) if hasattr(a, "astype") else a for a in args)
        return jax.tree.map(lambda a: a.astype(dtype), function(*args, **kwargs))
    with in_float64(True):
        args = tuple(jnp.asarray(a, jnp.float64) if hasattr(a, "shape") else a for a in args)
        out = jax.tree.map(np.asarray, function(*args, **kwargs))
    with precise_as(dtype):
        return jax.tree.map(lambda a: jnp.asarray(a, dtype), out)


@jax.jit
def _second_moment(rows: Array, count: Any) -> Array:
    """Of the rows, up to a factor."""
    # In units of the largest: only the directions matter, and squares leave the range of float32.
    rows = rows / jnp.maximum(jnp.max(jnp.abs(rows)), jnp.finfo(rows.dtype).tiny)
    return matmul(rows.T, rows) / count


@jax.jit
def _eigenvectors(symmetric: Array) -> Array:
    """Eigenvectors by falling eigenvalue, the largest entry of each positive."""
    _, vectors = jnp.linalg.eigh(symmetric)
    return _signed(vectors[:, ::-1])


def _signed(vectors: Array) -> Array:
    largest = jnp.argmax(jnp.abs(vectors), axis=0)
    sign = jnp.sign(jnp.take_along_axis(vectors, largest[None, :], axis=0))
    return vectors * jnp.where(sign == 0, 1, sign)


@functools.partial(jax.jit, static_argnames="whiten")
def _directions(x: Array, metric: Array | None, *, whiten: bool) -> tuple[Array, Array]:
    mean = jnp.mean(x, axis=0)
    centred = x - mean[None, :]
    unit = jnp.maximum(jnp.max(jnp.abs(centred)), jnp.finfo(x.dtype).tiny)
    covariance = matmul((centred / unit).T, centred / unit) / x.shape[0]
    root = jnp.eye(x.shape[1], dtype=x.dtype)
    if metric is not None:
        root = semidefinite_root(metric).half
    _, vectors = jnp.linalg.eigh(matmul(root.T, matmul(covariance, root)))
    matrix = _signed(matmul(root, vectors[:, ::-1]))
    if metric is not None:
        norm = jnp.linalg.norm(matrix, axis=0)
        # Directions that the metric does not see stay at zero instead of being blown up.
        seen = norm > jnp.finfo(x.dtype).eps * jnp.max(norm)
        matrix = jnp.where(seen[None, :], matrix / jnp.where(seen, norm, 1)[None, :], 0)
    if whiten:
        variance = jnp.sum(matrix * matmul(covariance, matrix), axis=0)
        # Beside what its own terms leave by rounding, not beside directions in other units.
        eps = jnp.finfo(x.dtype).eps
        rounding = x.shape[1] * eps * jnp.diagonal(covariance) + (8 * eps * mean / unit) ** 2
        carries = variance > jnp.sum(matrix**2 * rounding[:, None], axis=0)
        scale = jnp.sqrt(jnp.where(carries, variance, 1))
        matrix = matrix / scale[None, :] / jnp.where(carries, unit, 1)[None, :]
    return mean, matrix
