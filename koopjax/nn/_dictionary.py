"""Dictionaries in a block: taken apart into named arrays and a structure, or into factors."""

import dataclasses
import functools
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from koopjax import forms, tensor_edmd
from koopjax._core import expected
from koopjax.nn._variables import is_variable
from koopjax.observables import Compose, Neural, Product

STACKED_FROM = 8  # equal families from which they are evaluated as one


@dataclasses.dataclass(frozen=True, repr=False)
class Structure:
    """What of a dictionary is no array: its tree, and the path of each of its arrays.

    Two structures are equal where their trees are, so a module that holds one can be a static
    argument of `jax.jit`.
    """

    treedef: Any
    paths: tuple[tuple[str, ...], ...]
    kinds: tuple[Any, ...]  # the Variable class of leaves that are Variables, else None
    constant: tuple[bool, ...]  # leaves that never train

    def __hash__(self) -> int:
        return hash((self.paths, self.kinds))

    def __repr__(self) -> str:
        names = ", ".join("/".join(path) for path in self.paths)
        return f"Structure({names})"

    def build(self, values: Sequence[Any], dtype: Any = None) -> Any:
        """The dictionary with these array values, floating ones in `dtype` where it is given.

        Leaves that were Variables become Variables of their own kind again, whether a block
        trains them or not: the network in a `Neural` dictionary expects what it was made with.
        """
        leaves = []
        for value, kind in zip(values, self.kinds, strict=True):
            if dtype is not None and jnp.issubdtype(value.dtype, jnp.floating):
                value = value.astype(dtype)
            leaves.append(value if kind is None else kind(value))
        return jax.tree_util.tree_unflatten(self.treedef, leaves)

    def nest(self, leaves: Sequence[Any]) -> dict[str, Any]:
        """The leaves as nested dicts along their paths."""
        nested: dict[str, Any] = {}
        for path, leaf in zip(self.paths, leaves, strict=True):
            node = nested
            for name in path[:-1]:
                node = node.setdefault(name, {})
            node[path[-1]] = leaf
        return nested

    def flat(self, nested: Any) -> list[Any]:
        """The leaves of nested dicts, in the order of the tree."""
        return [functools.reduce(operator.getitem, path, nested) for path in self.paths]


def take_apart(psi: Any) -> tuple[Structure, list[Any]]:
    """Structure and leaves of a dictionary; Python numbers among them become arrays.

    A Python float takes the dtype of the dictionary's first floating array, so that a float64
    dictionary stays one and a stored one comes back the same.
    """
    pairs, treedef = jax.tree_util.tree_flatten_with_path(psi, is_leaf=is_variable)
    leaves = [leaf for _, leaf in pairs]
    dtypes = [
        leaf.dtype
        for leaf in leaves
        if hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)
    ]
    float_dtype = dtypes[0] if dtypes else jnp.float32
    leaves = [
        jnp.asarray(leaf, float_dtype if isinstance(leaf, float) else None)
        if isinstance(leaf, bool | int | float)
        else leaf
        for leaf in leaves
    ]
    paths = tuple(forms.spell(path) for path, _ in pairs)
    kinds = tuple(type(leaf) if is_variable(leaf) else None for leaf in leaves)
    return Structure(treedef, paths, kinds, constants(psi)), leaves


def as_nodes(nested: dict[str, Any]) -> nnx.Dict:
    """Nested dicts of Variables as NNX nodes, so that their paths show in `nnx.state`."""
    return nnx.Dict({name: as_nodes(v) if isinstance(v, dict) else v for name, v in nested.items()})


def constants(psi: Any) -> tuple[bool, ...]:
    """Which leaves are no parameters: the running statistics of a `Neural` dictionary."""
    found = []
    for node in jax.tree.leaves(psi, is_leaf=lambda n: is_variable(n) or isinstance(n, Neural)):
        pairs = jax.tree_util.tree_flatten_with_path(node, is_leaf=is_variable)[0]
        found += [isinstance(node, Neural) and path[0].name == "rest" for path, _ in pairs]
    return tuple(found)


def ends_in_product(psi: Any) -> bool:
    """Whether a dictionary is a `Product`, or a `Compose` that ends in one."""
    while isinstance(psi, Compose):
        psi = psi.then
    return isinstance(psi, Product)


def check_modes(psi: Any, row_modes: tuple[int, ...]) -> None:
    """Raise where a product dictionary has other modes than a TT operator behind it."""
    _, product = tensor_edmd.separable(psi)
    modes = product.modes()
    if modes != tuple(row_modes):
        raise expected(
            f"a TT operator of row modes {modes}, the sizes of the dictionary's families",
            f"{tuple(row_modes)}",
        )


def product_factors(psi: Any, x: Array, dtype: Any = None) -> list[Array] | Array:
    """Each family at its coordinate: `d` arrays `(n, m_k)`, or one `(d, n, m)` for equal families.

    Many equal families (of one class and one shape of parameters) are evaluated as one, by `vmap`,
    which compiles as fast as one of them.

    Args:
        psi: a `Product`, or a `Compose` that ends in one.
        x: `(n, d)`.
        dtype: of the result; none keeps it.
    """
    front, product = tensor_edmd.separable(psi)
    for part in front:
        x = part(x)
    if x.ndim == 2 and len(product.factors) == x.shape[1] and _alike(product.factors):
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *product.factors)
        factors = jax.vmap(lambda family, t: family(t[:, None]))(stacked, x.T)
        return factors if dtype is None else factors.astype(dtype)
    several = product.factors_at(x)
    return several if dtype is None else [f.astype(dtype) for f in several]


def _alike(factors: Any) -> bool:
    if len(factors) < STACKED_FROM:
        return False
    first = jax.tree.structure(factors[0])
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(factors[0])]
    return all(
        jax.tree.structure(f) == first and [np.shape(v) for v in jax.tree.leaves(f)] == shapes
        for f in factors[1:]
    )
