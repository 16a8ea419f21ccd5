"""Dictionaries made of dictionaries: side by side, one after another, a choice of columns."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from koopjax._core import check_dictionary, expected, is_tracing, pytree, read
from koopjax.observables._base import Observables, evaluate, input_names


@pytree
class Concat(Observables):
    """Dictionaries side by side: `psi(x) = [psi_1(x), psi_2(x), ...]`.

    Args:
        *parts: dictionaries on the same coordinates, or one list of them. Columns that occur in
            several parts (such as a constant) occur several times.

    Example:
        >>> Concat(Identity(), Orthogonal(1)).names(1)
        ['x0', '1', 'he1(x0)']
    """

    parts: Any

    def __init__(self, *args: Any, parts: Any = None) -> None:
        """Collect the parts; JAX rebuilds by keyword, so `parts=` is taken as it comes."""
        if parts is None:
            single = len(args) == 1 and isinstance(args[0], list | tuple)
            parts = tuple(args[0]) if single else args
        object.__setattr__(self, "parts", parts)

    def size(self, d: int) -> int:
        """The sum of the parts' sizes."""
        if not isinstance(self.parts, tuple) or not self.parts:
            raise expected("at least one dictionary in Concat", "none", "Concat(psi_1, psi_2)")
        for part in self.parts:
            check_dictionary("a part of Concat", part)
        return sum(part.size(d) for part in self.parts)

    def names(self, d: int, inputs: Sequence[str] | None = None) -> list[str]:
        """The parts' names, one after another."""
        self.size(d)
        names = input_names(d, inputs)
        return [name for part in self.parts for name in part.names(d, names)]

    def _evaluate(self, x: Float[Array, "n d"]) -> Array:
        return jnp.concatenate([evaluate(part, x) for part in self.parts], axis=1)


@pytree
class Compose(Observables):
    """One dictionary after another: `psi(x) = then(first(x))`.

    Args:
        first: often `Standardize.fit(x)` or `Project(matrix)`, or a `Compose` of both.
        then: a dictionary on as many coordinates as `first` has observables.

    Example:
        >>> Compose(Monomials(1), Identity()).names(2)
        ['1', 'x0', 'x1']
    """

    first: Any
    then: Any

    def size(self, d: int) -> int:
        """The size of `then` on the observables of `first`."""
        check_dictionary("the first of Compose", self.first)
        check_dictionary("what Compose does then", self.then)
        return self.then.size(self.first.size(d))

    def names(self, d: int, inputs: Sequence[str] | None = None) -> list[str]:
        """The names of `then`, in terms of those of `first`."""
        self.size(d)
        inner = self.first.names(d, inputs)
        return self.then.names(len(inner), inner)

    def _evaluate(self, x: Float[Array, "n d"]) -> Array:
        return evaluate(self.then, evaluate(self.first, x))

    def _columns(self, x: Float[Array, "n d"], indices: Array) -> Array:
        return columns(self.then, evaluate(self.first, x), indices)


@pytree
class Select(Observables):
    """A choice of the columns of a dictionary.

    Args:
        psi: the dictionary.
        indices: `(m,)` integers in `[0, p)`; their number is part of the shape, their values are a
            leaf, so that `vmap` runs over choices. Repetitions are allowed.

    Numerics:
        Polynomial, radial and Fourier dictionaries evaluate the chosen columns only: `m` columns
        of a quadratic dictionary on 784 coordinates cost `m` products, not 308,505.

    Example:
        >>> Select(Monomials(2), [0, 4]).names(2)
        ['1', 'x0*x1']
    """

    psi: Any
    indices: Any

    def __post_init__(self) -> None:
        """Take a plain sequence as an array: a list would be a tree of numbers."""
        if isinstance(self.indices, list | tuple | range):
            object.__setattr__(self, "indices", np.asarray(self.indices))

    def size(self, d: int) -> int:
        """The number of indices."""
        check_dictionary("the dictionary of Select", self.psi)
        indices, p = self.indices, self.psi.size(d)
        if not isinstance(indices, jax.ShapeDtypeStruct):
            indices = read("the indices of Select", indices)
        if len(indices.shape) != 1 or not jnp.issubdtype(indices.dtype, jnp.integer):
            raise expected(
                "one axis of integer indices in Select",
                f"{indices.dtype} of shape {indices.shape}",
                "numpy.flatnonzero for a mask",
            )
        if isinstance(indices, np.ndarray | jax.Array) and not is_tracing(indices):
            values = np.asarray(indices)
            bad = values[(values < 0) | (values >= p)]
            if bad.size:
                raise expected(f"indices in [0, {p}) in Select", f"{bad[0]}")
        return jnp.shape(indices)[0]

    def names(self, d: int, inputs: Sequence[str] | None = None) -> list[str]:
        """The chosen names; the indices must be concrete."""
        if is_tracing(self.indices):
            raise expected("concrete indices for names", "traced ones", "names outside jit")
        self.size(d)
        names = self.psi.names(d, inputs)
        return [names[int(i)] for i in np.asarray(self.indices)]

    def _evaluate(self, x: Float[Array, "n d"]) -> Array:
        return columns(self.psi, x, jnp.asarray(self.indices))

    def _columns(self, x: Float[Array, "n d"], indices: Array) -> Array:
        return columns(self.psi, x, jnp.take(jnp.asarray(self.indices), indices))


def columns(psi: Any, x: Array, indices: Array) -> Array:
    """Some columns of any dictionary, by the shortest way that it knows."""
    if isinstance(psi, Observables):
        return psi._columns(x, indices)
    return jnp.take(evaluate(psi, x), indices, axis=1)
