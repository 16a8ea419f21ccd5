"""Which arrays of a block an optimizer sees: trainable `nnx.Param` or `Frozen`."""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike, DTypeLike

from koopjax._core import as_array, as_dtype, expected

PARTS = ("dictionary", "operator")

M = TypeVar("M")


class Frozen(nnx.Variable):
    """A parameter that is part of the model's state and that no optimizer of `nnx.Param` touches.

    `nnx.Optimizer(model, tx, wrt=nnx.Param)`, `nnx.grad` and `nnx.value_and_grad` pass it by;
    `nnx.state`, `nnx.split` and `export.save` hold it like any other.
    """


def is_variable(value: Any) -> bool:
    """Whether a node is a Variable: the leaves at which trees of modules are cut."""
    return isinstance(value, nnx.Variable)


def make_variable(value: ArrayLike, trainable: bool, dtype: DTypeLike | None = None) -> Any:
    """A Variable of an array: `nnx.Param` for trainable floating numbers, else `Frozen`."""
    array = as_array("a parameter", value)
    inexact = jnp.issubdtype(array.dtype, jnp.inexact)
    if inexact and dtype is not None:
        array = array.astype(as_dtype("param_dtype", dtype))
    return (nnx.Param if trainable and inexact else Frozen)(array)


def retag(tree: M, trainable: bool, dtype: DTypeLike | None = None) -> M:
    """Copy a tree of Variables with `nnx.Param` and `Frozen` exchanged as asked.

    Other kinds, such as the running means of BatchNorm, keep theirs. A Variable that occurs twice
    stays one Variable.
    """
    seen: dict[int, Any] = {}

    def one(leaf: Any) -> Any:
        if not is_variable(leaf):
            return leaf
        if id(leaf) not in seen:
            value = leaf.get_value()
            if not isinstance(leaf, nnx.Param | Frozen):
                seen[id(leaf)] = type(leaf).from_metadata(value, leaf.get_metadata())
            else:
                made = make_variable(value, trainable, dtype)
                seen[id(leaf)] = type(made).from_metadata(made.get_value(), leaf.get_metadata())
        return seen[id(leaf)]

    return jax.tree.map(one, tree, is_leaf=is_variable)


def freeze(module: M) -> M:
    """Copy a module so that no optimizer of `nnx.Param` changes it.

    Args:
        module: any `nnx.Module`, or a tree of them.

    Returns:
        The same module on copies of the Variables, each `nnx.Param` now a `Frozen`.
    """
    return retag(module, trainable=False)


def unfreeze(module: M) -> M:
    """Copy a module so that its floating `Frozen` arrays train: the reverse of `freeze`.

    Args:
        module: any `nnx.Module`, or a tree of them.

    Returns:
        The same module on copies of the Variables, each floating `Frozen` now an `nnx.Param`.
    """
    return retag(module, trainable=True)


def trainable_parts(trainable: bool | str | tuple[str, ...]) -> frozenset[str]:
    """The parts of a block that train: of `True`, `False`, one name or several."""
    if isinstance(trainable, bool):
        return frozenset(PARTS if trainable else ())
    names = (trainable,) if isinstance(trainable, str) else trainable
    if not isinstance(names, tuple | list | set | frozenset) or any(n not in PARTS for n in names):
        raise expected(
            "trainable to be True, False or names among 'dictionary' and 'operator'",
            f"{trainable!r:.60}",
            'trainable="operator"',
        )
    return frozenset(names)
