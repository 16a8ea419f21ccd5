"""What a file says of its architecture: a short tree of names and settings, and back to a model.

A node is a list. Its first entry tells the kind: the name of an example model, or one letter for
what the library builds itself. Names and settings are stored, shapes that follow from them are
not.
"""

import itertools
from typing import Any

import jax
import numpy as np
from flax import nnx

from koopjax import nn, observables, surgery
from koopjax.export._claims import LAYERS_LIMIT
from koopjax.export._dictionaries import NEURAL, build_psi, psi_node
from koopjax.export._examples import (
    Take,
    Unknown,
    build_example,
    example_bytes,
    example_node,
    freeze,
    plain,
    trim,
)
from koopjax.export._operators import build_operator, operator_node, trains
from koopjax.export._walk import Entry, Path, arrays_of, spell, to_jax

BLOCK, STACK, OPERATOR, DICTIONARY, SPLICED, TEMPLATE = "K", "S", "O", "D", "P", "T"

Coded = tuple[list[Any], list[Entry]]


def describe_node(model: Any) -> Coded:
    """Node and arrays of a model that can be rebuilt by name.

    The model is rebuilt from its node at once, and where that is not the very same structure, a
    changed attribute included, it counts as unknown: a file never loads as another model.

    Raises:
        Unknown: where it can't be rebuilt; the file then holds arrays alone.
    """
    if isinstance(model, observables.Observables):
        node, entries = psi_node(model, ())
        return [DICTIONARY, node], entries
    if not isinstance(model, nnx.Module):
        raise Unknown(type(model).__name__)
    node, entries = _module_node(model, ())
    if {spell(path) for entry in entries for path in entry.covers} == set(arrays_of(model)):
        if len(node[0]) > 1:  # example models are compared while they are described
            return node, entries
        values = iter([entry.value for entry in entries])
        made = build_node(node, (), lambda path, shape, dtype: next(values))
        if nnx.split(made)[0] == nnx.split(model)[0]:
            return node, entries
    raise Unknown(f"a changed {type(model).__name__}")


def _module_node(model: nnx.Module, path: Path) -> Coded:
    if type(model) is nn.KoopmanBlock:
        return _block_node(model, path)
    if type(model) is nn.Stack:
        if len(model.operators) > LAYERS_LIMIT:
            raise Unknown(f"a stack of {len(model.operators)} operators")
        coded = [
            operator_node(operator, (*path, "operators", i))
            for i, operator in enumerate(model.operators)
        ]
        entries = [entry for _, arrays in coded for entry in arrays]
        return [STACK, [node for node, _ in coded], list(model.activations)], entries
    if isinstance(model, nn.Operator):
        node, entries = operator_node(model, path)
        return [OPERATOR, node], entries
    if type(model) is surgery.Spliced:
        return _spliced_node(model, path)
    node, entries = example_node(model)
    return node, [Entry((*path, *e.path), e.value, e.shape, e.dtype) for e in entries]


def build_node(node: list[Any], path: Path, take: Take) -> Any:
    """The model of a node; `take(path, shape, dtype)` gives its arrays in stored order.

    Raises:
        UnknownName: a name that this version does not know.
    """
    kind = node[0]
    if kind == DICTIONARY:
        return build_psi(node[1], path, take)
    if kind == BLOCK:
        return _build_block(node, path, take)
    if kind == STACK:
        if len(node[1]) > LAYERS_LIMIT:
            raise IndexError(f"a stack of {len(node[1])} operators")
        operators = [
            build_operator(n, (*path, "operators", i), take) for i, n in enumerate(node[1])
        ]
        return nn.Stack(operators, node[2])
    if kind == OPERATOR:
        return build_operator(node[1], path, take)
    if kind == SPLICED:
        return _build_spliced(node, path, take)
    return build_example(node, lambda where, *known: take((*path, *where), *known))


def built_beside(node: Any) -> int:
    """Bytes that `build_node` makes beside the arrays of the file, of models that it cuts."""
    if not isinstance(node, list) or not node:
        return 0
    own = example_bytes(node[1]) if node[0] in (SPLICED, NEURAL) else 0
    return own + sum(built_beside(part) for part in node)


def _block_node(block: nn.KoopmanBlock, path: Path) -> Coded:
    held = block.structure.flat(block.dictionary)
    psi, entries = psi_node(
        block.structure.build([v.get_value() for v in held]), (*path, "dictionary")
    )
    operator, more = operator_node(block.operator, (*path, "operator"))
    dtype = None if block.dtype is None else np.dtype(block.dtype).name
    node = [BLOCK, psi, operator, trains(held), dtype]
    return trim(node, [None, None, None, 0, None]), entries + more


def _build_block(node: list[Any], path: Path, take: Take) -> nn.KoopmanBlock:
    _, psi_node, coded, trained, dtype = [*node, *[None, None, None, 0, None][len(node) :]]
    psi = build_psi(psi_node, (*path, "dictionary"), take)
    operator = build_operator(coded, (*path, "operator"), take)
    parts = (("dictionary",) if trained else ()) + (("operator",) if coded[0] & 1 else ())
    made = nn.KoopmanBlock(psi, operator, trainable=parts, dtype=dtype)
    made.operator.dtype = operator.dtype
    return made


# Spliced models: the original by name, the cuts, the block, and the arrays that are still used.

HEAD, TAIL = 1, 2
DEFAULTS = [None, None, None, None, None, HEAD | TAIL, None, "float32", None, False, None]


def _spliced_node(model: surgery.Spliced, path: Path) -> Coded:
    base, arrays = example_node(model.skeleton())
    inner, where = model.block, (*path, "block")
    if type(inner) is surgery.Positionwise:
        inner, where = inner.block, (*where, "block")
    block, entries = _module_node(inner, where)
    segment = model.head.code
    trains = sum(
        bit
        for bit, stage in ((HEAD, model.head), (TAIL, model.tail))
        if not any(isinstance(v, nn.Frozen) for v in stage.parameters.values())
    )
    node = [
        SPLICED,
        base,
        list(model.at),
        block,
        plain(segment.shape),
        trains,
        plain(model.sample_axes),
        np.dtype(segment.dtype).name,
        segment.batch,
        segment.unroll,
        _dtypes(arrays),
    ]
    entries = entries + [
        Entry((*path, *name), value, tuple(value.shape), value.dtype)
        for name, value in _outer(model)
    ]
    return trim(node, DEFAULTS), entries


def _dtypes(arrays: list[Entry]) -> Any:
    """The dtypes of a base model's arrays where they are not what its config gives."""
    names = [np.dtype(entry.value.dtype).name for entry in arrays]
    if all(name == np.dtype(e.dtype).name for name, e in zip(names, arrays, strict=True)):
        return None
    return names[0] if len(set(names)) == 1 else names


def _outer(model: surgery.Spliced) -> list[tuple[Path, Any]]:
    """The arrays of head and tail, by path."""
    named = [(tuple(name.split("/")), value) for name, value in arrays_of(model).items()]
    return [(name, value) for name, value in named if name[0] != "block"]


def _build_spliced(node: list[Any], path: Path, take: Take) -> surgery.Spliced:
    full = freeze(node[4:])
    shape, trains, axes, dtype, batch, unroll, kinds = [*full, *DEFAULTS[4 + len(full) :]]
    where = (*path, "block") if axes is None else (*path, "block", "block")
    block = build_node(node[3], where, take)
    # The cuts are found on arrays of the saved dtypes, which the stages then expect.
    named = itertools.repeat(kinds) if kinds is None or isinstance(kinds, str) else iter(kinds)
    zeros = lambda name, like, kind: to_jax(np.zeros(like, next(named) or kind))
    base = build_example(node[1], zeros)
    x = jax.ShapeDtypeStruct((batch or 2, *shape), dtype)
    names = (("head", HEAD), ("tail", TAIL))
    trainable = ("block", *(name for name, bit in names if trains & bit))
    made = surgery.splice(
        base, x, node[2], block, sample_axes=axes, trainable=trainable, unroll=unroll
    )
    variables = dict(nnx.to_flat_state(nnx.state(made)))
    for name, value in _outer(made):
        array = take((*path, *name), tuple(value.shape), value.dtype)
        variables[name].set_value(array)
    nnx.update(made, nnx.from_flat_state(variables))
    return made
