"""A dictionary taken apart: named arrays on one side, a hashable structure on the other."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from koopjax import forms
from koopjax.nn._variables import is_variable
from koopjax.observables import Neural


class Structure:
    """What of a dictionary is no array: its tree, and the path of each of its arrays.

    Two structures are equal where their trees are, so a module that holds one can be a static
    argument of `jax.jit`.
    """

    def __init__(
        self,
        treedef: Any,
        paths: tuple[tuple[str, ...], ...],
        kinds: tuple[Any, ...],
        constant: tuple[bool, ...],
    ):
        self.treedef = treedef
        self.paths = paths
        self.constant = constant  # leaves that never train
        self.kinds = kinds  # the Variable class of leaves that are Variables, else None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Structure) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash((self.paths, self.kinds))

    def __repr__(self) -> str:
        names = ", ".join("/".join(path) for path in self.paths)
        return f"Structure({names})"

    def _key(self) -> tuple[Any, ...]:
        return self.treedef, self.paths, self.kinds, self.constant

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
        leaves = []
        for path in self.paths:
            node = nested
            for name in path:
                node = node[name]
            leaves.append(node)
        return leaves


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
    constant = tuple(is_constant(psi, path) for path, _ in pairs)
    return Structure(treedef, paths, kinds, constant), leaves


def as_nodes(nested: dict[str, Any]) -> nnx.Dict:
    """Nested dicts of Variables as NNX nodes, so that their paths show in `nnx.state`."""
    return nnx.Dict({name: as_nodes(v) if isinstance(v, dict) else v for name, v in nested.items()})


def is_constant(psi: Any, path: Sequence[Any]) -> bool:
    """Whether a leaf is no parameter: the running statistics of a `Neural` dictionary."""
    node = psi
    for entry in path:
        name = getattr(entry, "name", None)
        if isinstance(node, Neural):
            return name == "rest"
        if name is not None:
            node = getattr(node, name, None)
        else:
            key: Any = getattr(entry, "idx", getattr(entry, "key", None))
            if not isinstance(node, list | tuple | dict):
                return False
            node = node[key]
    return False
