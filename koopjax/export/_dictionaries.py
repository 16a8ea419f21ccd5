"""Dictionaries in a file: class names and settings, arrays left out.

The node of a dictionary is its class name and its fields in order: a static field as it is, an
array as an empty byte string, another dictionary as its node, a sequence as a list that starts with
the number 0, or with 1, their number and one node where several dictionaries have the same. Fields
at the end that have their defaults are left out.
"""

import dataclasses
from typing import Any

import jax
import numpy as np
from flax import nnx

from koopjax import nn, observables
from koopjax.export._claims import PARTS_LIMIT, count
from koopjax.export._examples import Take, Unknown, build_example, example_node, plain, trim
from koopjax.export._file import UnknownName
from koopjax.export._walk import Entry

ARRAY = b""
NEURAL = "Neural"
WRITTEN_OUT, REPEATED = 0, 1  # what a sequence starts with


def psi_node(psi: Any, path: tuple[Any, ...]) -> tuple[list[Any], list[Entry]]:
    """Node and arrays of a dictionary; its arrays may be Variables."""
    cls = type(psi)
    if getattr(observables, cls.__name__, None) is not cls or not dataclasses.is_dataclass(psi):
        raise Unknown(f"{cls.__module__}.{cls.__qualname__}")
    if cls is observables.Neural:
        return _neural_node(psi, path)
    node: list[Any] = [cls.__name__]
    defaults: list[Any] = [None]
    entries: list[Entry] = []
    for field in dataclasses.fields(psi):
        value = getattr(psi, field.name)
        if field.metadata.get("static"):
            node.append(plain(value))
        else:
            sub, more = _data_node(value, (*path, field.name))
            node.append(sub)
            entries += more
        missing = field.default is dataclasses.MISSING
        defaults.append(_Never if missing else field.default)
    if _parts(node) > PARTS_LIMIT:
        raise Unknown(f"more than {PARTS_LIMIT} dictionaries in one")
    return trim(node, defaults), entries


def _data_node(value: Any, path: tuple[Any, ...]) -> tuple[Any, list[Entry]]:
    if value is None:
        return None, []
    if isinstance(value, nnx.Variable):
        return ARRAY, [Entry(path, value.get_value())]
    if isinstance(value, np.ndarray | jax.Array | np.generic | float | int):
        return ARRAY, [Entry(path, value)]
    if isinstance(value, observables.Observables):
        return psi_node(value, path)
    if isinstance(value, tuple | list):
        # a sequence starts with a number, a dictionary with a name
        nodes: list[Any] = [WRITTEN_OUT]
        entries: list[Entry] = []
        for i, part in enumerate(value):
            node, more = _data_node(part, (*path, i))
            nodes.append(node)
            entries += more
        same = (
            len(nodes) > 2 and isinstance(nodes[1], list) and all(n == nodes[1] for n in nodes[2:])
        )
        return ([REPEATED, len(value), nodes[1]] if same else nodes), entries
    raise Unknown(f"{type(value).__name__} in a dictionary")


def _neural_node(psi: Any, path: tuple[Any, ...]) -> tuple[list[Any], list[Entry]]:
    """A network that is known by name inside a dictionary; anything else isn't."""
    if isinstance(psi.module, tuple):
        raise Unknown("a Neural dictionary of a function or a Linen module")
    node, _ = example_node(psi.module)
    structure, leaves = nn.take_apart(psi)
    like = nn.take_apart(_build_neural(node, np.zeros))[1]
    entries = [
        Entry((*path, *where), _value(leaf), tuple(_value(a).shape), _value(a).dtype)
        for where, leaf, a in zip(structure.paths, leaves, like, strict=True)
    ]
    return [NEURAL, node], entries


def _build_neural(node: list[Any], zeros: Any) -> Any:
    return observables.Neural(build_example(node, lambda path, shape, dtype: zeros(shape, dtype)))


def _value(leaf: Any) -> Any:
    return leaf.get_value() if isinstance(leaf, nnx.Variable) else leaf


def build_psi(node: list[Any], path: tuple[Any, ...], take: Take) -> Any:
    """The dictionary of a node.

    Raises:
        UnknownName: a dictionary that this version does not know.
        IndexError: settings that none has, or more dictionaries in one than anyone stores.
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
        structure, leaves = nn.take_apart(_build_neural(node[1], np.zeros))
        arrays = []
        for where, leaf in zip(structure.paths, leaves, strict=True):
            like = _value(leaf)
            array = take((*path, *where), tuple(like.shape), like.dtype)
            arrays.append(array)
        return structure.build(arrays)
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


class _Never:
    """A default that no value equals."""
