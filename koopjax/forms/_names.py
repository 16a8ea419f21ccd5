"""Names for the arrays of a tree."""

from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx


def named_leaves(tree: Any) -> list[tuple[tuple[Any, ...], Any, nnx.Variable | None]]:
    """The leaves of a tree in its order, each with its path and the Variable that holds it.

    Args:
        tree: any pytree; a Variable in it, such as in the state of an `nnx.Module`, is no level of
            the path, and what it holds may be a tree itself.
    """
    found = []
    is_variable = lambda node: isinstance(node, nnx.Variable)
    for path, node in jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_variable)[0]:
        holder = node if is_variable(node) else None
        for inner, leaf in jax.tree_util.tree_flatten_with_path(node)[0]:
            found.append(((*path, *inner[1:]), leaf, holder))  # inner[0] is a Variable's `value`
    return found


def spell(path: Sequence[Any]) -> tuple[str, ...]:
    """A path of JAX as text, level by level."""
    names = (getattr(k, "key", getattr(k, "name", getattr(k, "idx", k))) for k in path)
    return tuple(str(name) for name in names)


def joined(path: Sequence[Any]) -> str:
    """A path as one name, such as `layers.0.kernel`."""
    names = spell(path)
    # A splice of a splice: the parts' own dictionaries are no level of the model.
    return ".".join(name for name in names if name != "parameters" or len(names) == 1)


def unique(names: Sequence[str]) -> tuple[str, ...]:
    """Names with a number behind all but the first that is alike."""
    seen: dict[str, int] = {}
    out = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        out.append(name if seen[name] == 1 else f"{name}@{seen[name]}")
    return tuple(out)
