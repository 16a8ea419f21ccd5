"""What a file says of its architecture: a short tree of names and settings, and back to a model.

A node is a list. Its first entry tells the kind: the name of an example model, or one letter for
what the library builds itself. Names and settings are stored, shapes that follow from them are
not.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx

from koopjax import models, nn, observables
from koopjax._core import expected
from koopjax.export._walk import Entry, arrays_of, fill, spell

BLOCK, STACK, OPERATOR, DICTIONARY, TEMPLATE = "K", "S", "O", "D", "T"
ARRAY = b""  # stands for an array in the node of a dictionary
FORMS = ["dense", "low_rank"]  # the place is what the file holds: append only
MODES = ["built", "eval", "train"]

Take = Callable[..., np.ndarray]


class Unknown(Exception):
    """A model that can't be rebuilt from names and settings; the message says what part."""


def describe_node(model: Any) -> tuple[list[Any], list[Entry]]:
    """Node and arrays of a model that can be rebuilt by name.

    Raises:
        Unknown: where it can't be; the file then holds arrays alone.
    """
    if isinstance(model, observables.Observables):
        node, entries = _psi_node(model, ())
        return [DICTIONARY, node], entries
    if not isinstance(model, nnx.Module):
        raise Unknown(type(model).__name__)
    node, entries = _module_node(model)
    if {spell(e.path) for e in entries} != set(arrays_of(model)):
        raise Unknown(f"{type(model).__name__} with other arrays than its settings give")
    return node, entries


def _module_node(model: nnx.Module) -> tuple[list[Any], list[Entry]]:
    if type(model) is nn.KoopmanBlock:
        return _block_node(model)
    if type(model) is nn.Stack:
        nodes, entries = [], []
        for i, operator in enumerate(model.operators):
            node, arrays = _operator_node(operator, ("operators", i))
            nodes.append(node)
            entries += arrays
        return [STACK, nodes, list(model.activations)], entries
    if isinstance(model, nn.Operator):
        node, entries = _operator_node(model, ())
        return [OPERATOR, node], entries
    return _example_node(model)


def build_node(node: list[Any], take: Take) -> Any:
    """The model of a node; `take(path, shape, dtype)` gives its arrays in stored order."""
    kind = node[0]
    if kind == DICTIONARY:
        return _build_psi(node[1], (), take)
    if kind == BLOCK:
        return _build_block(node, take)
    if kind == STACK:
        operators = [_build_operator(n, ("operators", i), take) for i, n in enumerate(node[1])]
        return nn.Stack(operators, node[2])
    if kind == OPERATOR:
        return _build_operator(node[1], (), take)
    return _build_example(node, take)


# Example models: a name and a config give every path and shape.


@functools.lru_cache(maxsize=64)
def _skeleton(name: str, config: tuple[tuple[str, Any], ...], mode: int) -> tuple[Any, Any]:
    made = nnx.eval_shape(lambda: models.build(name, dict(config), nnx.Rngs(0)))
    if MODES[mode] == "eval":
        made.eval()
    elif MODES[mode] == "train":
        made.train()
    return nnx.split(made)


def _example_node(model: nnx.Module) -> tuple[list[Any], list[Entry]]:
    name = models.name_of(model)
    if name is None:
        raise Unknown(type(model).__name__)
    config = freeze(dict(model.config))  # pyright: ignore[reportAttributeAccessIssue]
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


def _build_example(node: list[Any], take: Take) -> nnx.Module:
    name, config = node[0], freeze(node[1])
    if name not in models.REGISTRY:
        raise LookupError(name)
    mode = node[2] if len(node) > 2 else 0
    skeleton = nnx.merge(*_skeleton(name, config, mode))
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


# Operators and blocks.


def _operator_node(operator: Any, path: tuple[Any, ...]) -> tuple[list[Any], list[Entry]]:
    names = {cls: name for name, cls in nn.OPERATORS.items()}
    form = names.get(type(operator))
    if form not in FORMS:
        raise Unknown(type(operator).__name__)
    held = [(name, getattr(operator, name)) for name in operator.arrays]
    held = [(name, v) for name, v in held if v is not None]
    bits = FORMS.index(form) << 2 | int(operator.use_bias) << 1 | _trains(v for _, v in held)
    precision = operator.precision
    node = [
        bits,
        None if operator.dtype is None else np.dtype(operator.dtype).name,
        "" if precision == "highest" else _precision(precision),
    ]
    entries = [Entry((*path, name), v.get_value()) for name, v in held]
    return trim(node, [None, None, ""]), entries


def _build_operator(node: list[Any], path: tuple[Any, ...], take: Take) -> nn.Operator:
    bits, dtype, precision = [*node, *[None, None, ""][len(node) :]]
    if bits >> 2 >= len(FORMS):
        raise LookupError(f"operator form {bits >> 2}")
    cls = nn.OPERATORS[FORMS[bits >> 2]]
    names = [name for name in cls.arrays if name != "bias" or bits & 2]
    arrays = {name: take((*path, name), None, None) for name in names}
    precision = "highest" if precision == "" else precision
    made = cls(**arrays, dtype=dtype, precision=precision)  # pyright: ignore[reportCallIssue]
    return made if bits & 1 else nn.freeze(made)


def _block_node(block: nn.KoopmanBlock) -> tuple[list[Any], list[Entry]]:
    held = block.structure.flat(block.dictionary)
    psi, entries = _psi_node(block.structure.build(held), ("dictionary",))
    operator, more = _operator_node(block.operator, ("operator",))
    dtype = None if block.dtype is None else np.dtype(block.dtype).name
    node = [BLOCK, psi, operator, _trains(held), dtype]
    return trim(node, [None, None, None, 0, None]), entries + more


def _build_block(node: list[Any], take: Take) -> nn.KoopmanBlock:
    _, psi_node, operator_node, trains, dtype = [*node, *[None, None, None, 0, None][len(node) :]]
    psi = _build_psi(psi_node, ("dictionary",), take)
    operator = _build_operator(operator_node, ("operator",), take)
    parts = (("dictionary",) if trains else ()) + (("operator",) if operator_node[0] & 1 else ())
    made = nn.KoopmanBlock(psi, operator, trainable=parts, dtype=dtype)
    made.operator.dtype = operator.dtype
    return made


def _trains(variables: Any) -> int:
    return int(any(isinstance(v, nnx.Param) for v in variables))


def _precision(precision: Any) -> Any:
    if precision is None or isinstance(precision, str):
        return precision
    if isinstance(precision, jax.lax.Precision):
        return precision.name.lower()
    raise Unknown(f"precision {precision}")


# Dictionaries: class name and fields, arrays left out.


def _psi_node(psi: Any, path: tuple[Any, ...]) -> tuple[list[Any], list[Entry]]:
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
            node.append(_plain(value))
        else:
            sub, more = _data_node(value, (*path, field.name))
            node.append(sub)
            entries += more
        missing = field.default is dataclasses.MISSING
        defaults.append(_Never if missing else field.default)
    return trim(node, defaults), entries


def _data_node(value: Any, path: tuple[Any, ...]) -> tuple[Any, list[Entry]]:
    if value is None:
        return None, []
    if isinstance(value, nnx.Variable):
        return ARRAY, [Entry(path, value.get_value())]
    if isinstance(value, np.ndarray | jax.Array | np.generic | float | int):
        return ARRAY, [Entry(path, value)]
    if isinstance(value, observables.Observables):
        return _psi_node(value, path)
    if isinstance(value, tuple | list):
        nodes: list[Any] = [0]  # a sequence starts with a number, a dictionary with a name
        entries: list[Entry] = []
        for i, part in enumerate(value):
            node, more = _data_node(part, (*path, i))
            nodes.append(node)
            entries += more
        return nodes, entries
    raise Unknown(f"{type(value).__name__} in a dictionary")


def _neural_node(psi: Any, path: tuple[Any, ...]) -> tuple[list[Any], list[Entry]]:
    """A network that is known by name inside a dictionary; anything else isn't."""
    if psi.definition[0] != "nnx":
        raise Unknown("a Neural dictionary of a function or a Linen module")
    node, _ = _module_node(psi.module)
    if node[0] in (BLOCK, STACK, OPERATOR):
        raise Unknown("a Neural dictionary of a block")
    structure, leaves = nn.take_apart(psi)
    like = nn.take_apart(_build_neural(node, np.zeros))[1]
    entries = [
        Entry((*path, *where), _value(leaf), tuple(_value(a).shape), _value(a).dtype)
        for where, leaf, a in zip(structure.paths, leaves, like, strict=True)
    ]
    return ["Neural", node], entries


def _build_neural(node: list[Any], zeros: Any) -> Any:
    return observables.Neural(build_node(node, lambda path, shape, dtype: zeros(shape, dtype)))


def _value(leaf: Any) -> Any:
    return leaf.get_value() if isinstance(leaf, nnx.Variable) else leaf


def _build_psi(node: list[Any], path: tuple[Any, ...], take: Take) -> Any:
    cls = getattr(observables, node[0], None)
    if not isinstance(cls, type):
        raise LookupError(f"dictionary {node[0]}")
    if cls is observables.Neural:
        structure, leaves = nn.take_apart(_build_neural(node[1], np.zeros))
        arrays = []
        for where, leaf in zip(structure.paths, leaves, strict=True):
            like = _value(leaf)
            array = take((*path, *where), tuple(like.shape), like.dtype)
            is_variable = isinstance(leaf, nnx.Variable)
            arrays.append(type(leaf)(array) if is_variable else array)
        return structure.build(arrays)
    given = {}
    for field, value in zip(dataclasses.fields(cls), node[1:], strict=False):
        if not field.metadata.get("static"):
            value = _build_data(value, (*path, field.name), take)
        given[field.name] = value
    return cls(**given)


def _build_data(node: Any, path: tuple[Any, ...], take: Take) -> Any:
    if node is None:
        return None
    if node == ARRAY:
        return take(path, None, None)
    if isinstance(node[0], str):
        return _build_psi(node, path, take)
    return tuple(_build_data(part, (*path, i), take) for i, part in enumerate(node[1:]))


class _Never:
    """A default that no value equals."""


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
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
