"""Example models and dictionaries in a file: names and settings, arrays left out.

A name and a config give every path and shape of an example model. The node of a dictionary is its
class name and its fields in order: a static field as it is, an array as an empty byte string,
another dictionary as its node, a sequence as a list that starts with the number 0, or with 1, their
number and one node where several dictionaries have the same. Fields at the end that have their
defaults are left out.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx

from koopjax import models, nn, observables
from koopjax._core import expected
from koopjax.export._file import LAYERS_LIMIT, PARTS_LIMIT, UnknownName, count, sizes
from koopjax.export._walk import arrays_of, fill

MODES = ["built", "eval", "train"]  # the place is what the file holds: append only
ARRAY = b""
NEURAL = "Neural"
WRITTEN_OUT, REPEATED = 0, 1  # what a sequence starts with

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


def example_node(model: nnx.Module) -> list[Any]:
    """The node of an example model whose structure is what its config gives."""
    name = models.name_of(model)
    if name is None:
        raise Unknown(type(model).__name__)
    config = freeze(dict(model.config))  # pyright: ignore[reportAttributeAccessIssue]
    try:
        _few_layers(dict(config))
    except IndexError as error:
        raise Unknown(f"a {name} with {error}") from None
    graph = nnx.split(model)[0]
    mode = next((k for k in range(len(MODES)) if _skeleton(name, config, k)[0] == graph), None)
    if mode is None:
        raise Unknown(f"a changed {name}")
    node = [name, dict(config), mode] if mode else [name, dict(config)]
    if set(arrays_of(empty(node))) != set(arrays_of(model)):
        raise Unknown(f"a changed {name}")
    return node


def take_example(node: list[Any], take: Take) -> tuple[nnx.Module, dict[str, Any]]:
    """The example model of a node with shapes for arrays, and its arrays by name."""
    skeleton = empty(node)
    arrays = {
        name: take(tuple(name.split("/")), tuple(like.shape), like.dtype)
        for name, like in arrays_of(skeleton).items()
    }
    return skeleton, arrays


def build_example(node: list[Any], take: Take) -> nnx.Module:
    """The example model of a node."""
    made = fill(*take_example(node, take))
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(nnx.state(made))):
        # random streams are no part of the file: take fresh ones
        whole = models.build(node[0], dict(freeze(node[1])), nnx.Rngs(0))
        nnx.update(made, nnx.state(whole, nnx.RngState))
    return made


def empty(node: list[Any]) -> nnx.Module:
    """The example model of a node, with shapes in place of its arrays."""
    if node[0] not in models.REGISTRY:
        raise UnknownName(node[0])
    _few_layers(node[1])
    mode = count(node[2], "mode") if len(node) > 2 else 0
    return nnx.merge(*_skeleton(node[0], freeze(node[1]), mode))


def example_bytes(node: list[Any]) -> int:
    """The bytes of all arrays of the example model of a node."""
    held = arrays_of(empty(node)).values()
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
    same = lambda a, b: type(a) is type(b) and a == b
    while end > 1 and same(node[end - 1], defaults[end - 1]):
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


def psi_node(psi: Any) -> list[Any]:
    """The node of a dictionary; its arrays may be Variables."""
    cls = type(psi)
    if getattr(observables, cls.__name__, None) is not cls:
        raise Unknown(f"{cls.__module__}.{cls.__qualname__}")
    if isinstance(psi, observables.Neural):
        if isinstance(psi.module, tuple):
            raise Unknown("a Neural dictionary of a function or a Linen module")
        return [NEURAL, example_node(psi.module)]
    node: list[Any] = [cls.__name__]
    for field in dataclasses.fields(psi):
        value = getattr(psi, field.name)
        node.append(plain(value) if field.metadata.get("static") else _data_node(value))
    if _parts(node) > PARTS_LIMIT:
        raise Unknown(f"more than {PARTS_LIMIT} dictionaries in one")
    # dataclasses.MISSING, of a field without a default, is of a type that no setting has
    return trim(node, [None, *(field.default for field in dataclasses.fields(psi))])


def _data_node(value: Any) -> Any:
    if value is None:
        return None
    if isinstance(value, nnx.Variable | np.ndarray | jax.Array | np.generic | float | int):
        return ARRAY
    if isinstance(value, observables.Observables):
        return psi_node(value)
    if isinstance(value, tuple | list):
        # a sequence starts with a number, a dictionary with a name
        nodes = [_data_node(part) for part in value]
        same = len(nodes) > 1 and isinstance(nodes[0], list) and all(n == nodes[0] for n in nodes)
        return [REPEATED, len(nodes), nodes[0]] if same else [WRITTEN_OUT, *nodes]
    raise Unknown(f"{type(value).__name__} in a dictionary")


def build_psi(node: list[Any], path: tuple[Any, ...], take: Take) -> Any:
    """The dictionary of a node.

    An `UnknownName` for one that this version does not know, an `IndexError` for settings that none
    has, or more dictionaries in one than anyone stores.
    """
    if _parts(node) > PARTS_LIMIT:
        raise IndexError(f"more than {PARTS_LIMIT} dictionaries in one")
    return _build(node, path, take)


def _parts(node: Any) -> int:
    """How many entries a node has when it is written out."""
    if not isinstance(node, list) or not node:
        return 1
    if node[0] == REPEATED and type(node[0]) is int:
        _, number, part = node
        return count(number, "number of dictionaries", PARTS_LIMIT) * _parts(part)
    return 1 + sum(_parts(part) for part in node)


def _build(node: list[Any], path: tuple[Any, ...], take: Take) -> Any:
    cls = getattr(observables, node[0], None)
    kinds = observables.Observables, observables.Univariate
    if not (isinstance(cls, type) and issubclass(cls, kinds) and dataclasses.is_dataclass(cls)):
        raise UnknownName(f"dictionary {node[0]}")
    if cls is observables.Neural:
        zeros = lambda where, shape, dtype: np.zeros(shape, dtype)
        structure, leaves = nn.take_apart(observables.Neural(build_example(node[1], zeros)))
        likes = [leaf.get_value() if isinstance(leaf, nnx.Variable) else leaf for leaf in leaves]
        known = zip(structure.paths, likes, strict=True)
        return structure.build([take((*path, *p), tuple(a.shape), a.dtype) for p, a in known])
    given = {}
    for field, value in zip(dataclasses.fields(cls), node[1:], strict=False):
        if not field.metadata.get("static"):
            value = _build_data(value, (*path, field.name), take)
        elif field.type in (int, "int"):
            count(value, field.name)
        elif field.type not in (str, "str") or not isinstance(value, str):
            raise IndexError(f"{field.name} of {value!r:.40} of a {node[0]}")
        given[field.name] = value
    return cls(**given)


def _build_data(node: Any, path: tuple[Any, ...], take: Take) -> Any:
    if node is None:
        return None
    if node == ARRAY:
        return take(path, None, None)
    if isinstance(node[0], str):
        return _build(node, path, take)
    parts = [node[2]] * node[1] if node[0] == REPEATED else node[1:]
    return tuple(_build_data(part, (*path, i), take) for i, part in enumerate(parts))
