"""The kinds of models, and a model of any of them taken apart."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from flax import nnx

from koopjax._core import Static, expected, native, version
from koopjax.forms._definition import Constant, Definition, is_floating, is_pair, unique
from koopjax.forms._inference import unbind
from koopjax.forms._linen import Linen
from koopjax.forms._nnx import NNX
from koopjax.forms._tree import Tree

#: Asked in this order; the last takes whatever can be called.
KINDS: list[type[Definition]] = [NNX, Linen, Tree]


def _kind_of(model: Any) -> tuple[type[Definition] | None, Any, dict[str, Any]]:
    """The kind of a model, the model without the `functools.partial` around it, what that binds."""
    pair = is_pair(model)
    code, bound = unbind(model[0] if pair else model)
    plain = (code, model[1]) if pair else code
    kind = next((kind for kind in KINDS if kind.takes(plain)), None)
    return (kind, plain, bound) if kind is not None and kind.keeps_bound else (kind, model, {})


def define(model: Any, *, exposed: bool = False) -> tuple[Definition, list[Any]]:
    """Take a model apart, as it is at this moment: what it closes over may have changed since.

    Args:
        model: an `nnx.Module`, `(linen_module, variables)`, `(function, params)`, or a callable
            pytree.
        exposed: whether the definition is to be of the model in inference mode, and all that it
            computes with to be among the leaves.

    Returns:
        The static definition, and the leaves.

    Raises:
        ValueError: none of these.
    """
    kind, plain, bound = _kind_of(model)
    if kind is None:
        raise expected(
            "a model: an nnx.Module, (linen_module, variables), (function, params) or a callable",
            type(model).__name__,
            "one of these",
        )
    code, tree = kind.parts(kind.exposed(plain) if exposed else plain)
    outline, rows = kind.outlined(code, tree)
    leaves = [native("a parameter", leaf) for _, leaf, _ in rows]
    kinds = tuple(
        Constant if issubclass(held, nnx.Param) and not is_floating(leaf) else held
        for leaf, (_, _, held) in zip(leaves, rows, strict=True)
    )
    made = kind(
        None if code is None else Static(code), outline, unique([name for name, _, _ in rows]),
        kinds, tuple((name, Static(value)) for name, value in bound.items()),
    )  # fmt: skip
    return dataclasses.replace(made, version=version(made)), leaves


def form_of(model: Any) -> tuple[Definition, Any, Any]:
    """A model as `(definition, params, rest)`: what training moves, and all other arrays.

    Args:
        model: as for `define`.

    Returns:
        The definition, and both as pytrees of the model's own structure; `definition.merge` puts
        them together again.

    Raises:
        ValueError: as `define`.
    """
    definition, leaves = define(model)
    return definition, *definition.divide(leaves)


class Opened(NamedTuple):
    """A model, or any pytree, with all its leaves as they are.

    Attributes:
        code: what the tree goes into, `None` where nothing is.
        tree: everything else.
        build: makes the model of another tree of that structure.
        own_order: whether the order of the leaves is the model's, not that of the library behind.
    """

    code: Any
    tree: Any
    build: Callable[[Any], Any]
    own_order: bool


def opened(model: Any) -> Opened:
    """Open a model of any kind, or any other pytree, without a look at its leaves."""
    kind, plain, bound = _kind_of(model)
    kind = kind or Tree
    code, tree = kind.parts(plain)
    return Opened(code, tree, lambda tree: kind.join(code, tree, bound), kind.own_order)
