"""Example models in a file: a name and a config give every path and shape."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx

from koopjax import models
from koopjax._core import expected
from koopjax.export._claims import LAYERS_LIMIT, count, sizes
from koopjax.export._file import UnknownName
from koopjax.export._walk import Entry, arrays_of, fill

MODES = ["built", "eval", "train"]  # the place is what the file holds: append only

Take = Callable[..., Any]  # (path, shape, dtype) -> the next array; shape and dtype where known


class Unknown(Exception):
    """A model that can't be rebuilt from names and settings; the message says what part."""


@functools.lru_cache(maxsize=64)
def _skeleton(name: str, config: tuple[tuple[str, Any], ...], mode: int) -> tuple[Any, Any]:
    made = nnx.eval_shape(lambda: models.build(name, dict(config), nnx.Rngs(0)))
    if MODES[mode] == "eval":
        made.eval()
    elif MODES[mode] == "train":
        made.train()
    return nnx.split(made)


def example_node(model: nnx.Module) -> tuple[list[Any], list[Entry]]:
    """Node and arrays of an example model whose structure is what its config gives."""
    name = models.name_of(model)
    if name is None:
        raise Unknown(type(model).__name__)
    config = freeze(dict(model.config))  # pyright: ignore[reportAttributeAccessIssue]
    try:
        _few_layers(dict(config))
    except IndexError as error:
        raise Unknown(f"a {name} with {error}") from None
    graph = nnx.split(model)[0]
    for mode in range(len(MODES)):
        skeleton = _skeleton(name, config, mode)
        if skeleton[0] == graph:
            break
    else:
        raise Unknown(f"a changed {name}")
    node = [name, dict(config)] if mode == 0 else [name, dict(config), mode]
    expect = arrays_of(nnx.merge(*skeleton))
    held = arrays_of(model)
    if set(expect) != set(held):
        raise Unknown(f"a changed {name}")
    entries = [
        Entry(tuple(path.split("/")), held[path], tuple(like.shape), like.dtype)
        for path, like in expect.items()
    ]
    return node, entries


def build_example(node: list[Any], take: Take) -> nnx.Module:
    """The example model of a node."""
    name, config = node[0], freeze(node[1])
    skeleton = _empty(node)
    expect = arrays_of(skeleton)
    arrays = {
        path: take(tuple(path.split("/")), tuple(like.shape), like.dtype)
        for path, like in expect.items()
    }
    made = fill(skeleton, arrays)
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(nnx.state(made))):
        # random streams are no part of the file: take fresh ones
        whole = models.build(name, dict(config), nnx.Rngs(0))
        nnx.update(made, nnx.state(whole, nnx.RngState))
    return made


def _empty(node: list[Any]) -> nnx.Module:
    """The example model of a node, with shapes in place of its arrays."""
    if node[0] not in models.REGISTRY:
        raise UnknownName(node[0])
    _few_layers(node[1])
    mode = count(node[2], "mode") if len(node) > 2 else 0
    return nnx.merge(*_skeleton(node[0], freeze(node[1]), mode))


def example_bytes(node: list[Any]) -> int:
    """The bytes of all arrays of the example model of a node."""
    held = arrays_of(_empty(node)).values()
    return sum(math.prod(like.shape) * np.dtype(like.dtype).itemsize for like in held)


def _few_layers(config: dict[str, Any]) -> None:
    """Refuse settings that ask for more layers than one waits for, or that are no counts."""
    for name, value in config.items():
        if isinstance(value, list | tuple):
            sizes(value, LAYERS_LIMIT, name)
        else:
            count(value, name, LAYERS_LIMIT if name == "depth" else 1 << 40)


def plain(value: Any) -> Any:
    """A setting as msgpack takes it."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple):
        return [plain(part) for part in value]
    raise Unknown(f"a setting of type {type(value).__name__}")


def trim(node: list[Any], defaults: list[Any]) -> list[Any]:
    """A node without the settings at its end that are the defaults."""
    end = len(node)
    while (
        end > 1
        and type(node[end - 1]) is type(defaults[end - 1])
        and (node[end - 1] == defaults[end - 1])
    ):
        end -= 1
    return node[:end]


def freeze(value: Any) -> Any:
    """Settings as hashable values: lists as tuples, a config as sorted-by-appearance pairs."""
    if isinstance(value, dict):
        return tuple((key, freeze(v)) for key, v in value.items())
    if isinstance(value, list | tuple):
        return tuple(freeze(v) for v in value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise expected("settings of plain numbers, strings and tuples", type(value).__name__)
