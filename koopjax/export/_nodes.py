"""What a file says of its architecture: a short tree of names and settings, and back to a model.

A node is a list. Its first entry tells the kind: the name of an example model, or one letter for
what the library builds itself. Names and settings are stored, shapes that follow from them are
not. The arrays follow in the order in which a model is built from its node, which is done once
when it is saved: so the order is written down in one place.
"""

import functools
import itertools
from typing import Any

import jax
import numpy as np
from flax import nnx

from koopjax import models, nn, observables, surgery
from koopjax.export._file import LAYERS_LIMIT
from koopjax.export._named import (
    NEURAL,
    Take,
    Unknown,
    build_example,
    build_psi,
    empty,
    example_bytes,
    example_node,
    freeze,
    plain,
    psi_node,
    take_example,
    trim,
)
from koopjax.export._operators import build_operator, operator_node, places_of, trains
from koopjax.export._walk import Entry, Path, arrays_of, spell, to_jax

BLOCK, STACK, OPERATOR, DICTIONARY, SPLICED, TEMPLATE = "K", "S", "O", "D", "P", "T"
BLOCK_DEFAULTS = [None, None, None, 0, None]
HEAD, TAIL = 1, 2
SPLICED_DEFAULTS = [
    None, None, None, None, None, HEAD | TAIL, None, "float32", None, False, None,
]  # fmt: skip


def describe_node(model: Any) -> tuple[list[Any], list[Entry]]:
    """Node and arrays of a model that can be rebuilt by name.

    The model is rebuilt from its node at once, and where that is not the very same structure, a
    changed attribute included, it counts as unknown: a file never loads as another model.

    Raises:
        Unknown: where it can't be rebuilt; the file then holds arrays alone.
    """
    if isinstance(model, observables.Observables):
        node = [DICTIONARY, psi_node(model)]
    elif isinstance(model, nnx.Module):
        node = _module_node(model)
    else:
        raise Unknown(type(model).__name__)
    held = arrays_of(model)
    left = set(held)
    entries: list[Entry] = []

    def give(path: Path, shape: Any, dtype: Any) -> Any:
        name, value = spell(path), held.get(spell(path))
        if value is None and path[-1:] == ("places",):
            value = places_of(functools.reduce(_inside, path[:-1], model))
            left.difference_update(spell((*path[:-1], part)) for part in ("rows", "columns"))
        elif value is None:
            raise Unknown(f"a changed {type(model).__name__}")
        left.discard(name)
        entries.append(Entry(name, value, shape, dtype))
        return value

    if node[0] in models.REGISTRY:  # compared while they are described
        take_example(node, give)
        same = True
    else:
        made = build_node(node, (), give)
        is_module = isinstance(model, nnx.Module)
        same = not is_module or nnx.split(made)[0] == nnx.split(model)[0]
    if left or not same:
        raise Unknown(f"a changed {type(model).__name__}")
    return node, entries


def _inside(node: Any, part: Any) -> Any:
    return node[part] if isinstance(part, int) else getattr(node, part)


def _module_node(model: nnx.Module) -> list[Any]:
    if type(model) is nn.KoopmanBlock:
        variables = model.structure.flat(model.dictionary)
        psi = psi_node(model.structure.build([v.get_value() for v in variables]))
        dtype = None if model.dtype is None else np.dtype(model.dtype).name
        node = [BLOCK, psi, operator_node(model.operator), trains(variables), dtype]
        return trim(node, BLOCK_DEFAULTS)
    if type(model) is nn.Stack:
        if len(model.operators) > LAYERS_LIMIT:
            raise Unknown(f"a stack of {len(model.operators)} operators")
        return [STACK, list(map(operator_node, model.operators)), list(model.activations)]
    if isinstance(model, nn.Operator):
        return [OPERATOR, operator_node(model)]
    if type(model) is surgery.Spliced:
        return _spliced_node(model)
    return example_node(model)


def build_node(node: list[Any], path: Path, take: Take) -> Any:
    """The model of a node; `take(path, shape, dtype)` gives its arrays in stored order.

    Raises:
        UnknownName: a name that this version does not know.
    """
    kind = node[0]
    if kind == DICTIONARY:
        return build_psi(node[1], path, take)
    if kind == BLOCK:
        _, psi_coded, coded, trained, dtype = [*node, *BLOCK_DEFAULTS[len(node) :]]
        psi = build_psi(psi_coded, (*path, "dictionary"), take)
        operator = build_operator(coded, (*path, "operator"), take)
        parts = (("dictionary",) if trained else ()) + (("operator",) if coded[0] & 1 else ())
        made = nn.KoopmanBlock(psi, operator, trainable=parts, dtype=dtype)
        made.operator.dtype = operator.dtype
        return made
    if kind == STACK:
        if len(node[1]) > LAYERS_LIMIT:
            raise IndexError(f"a stack of {len(node[1])} operators")
        where = [(*path, "operators", i) for i in range(len(node[1]))]
        operators = [build_operator(n, at, take) for n, at in zip(node[1], where, strict=True)]
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


# Spliced models: the original by name, the cuts, the block, and the arrays that are still used.


def _spliced_node(model: surgery.Spliced) -> list[Any]:
    skeleton, segment, block = model.skeleton(), model.head.code, model.block
    base = example_node(skeleton)
    stages = ((HEAD, model.head), (TAIL, model.tail))
    frozen = lambda stage: any(isinstance(v, nn.Frozen) for v in stage.parameters.values())
    # The dtypes of the original's arrays where they are not what its config gives.
    held, given = arrays_of(skeleton), arrays_of(empty(base))
    kinds: Any = [np.dtype(held[name].dtype).name for name in given]
    if kinds == [np.dtype(like.dtype).name for like in given.values()]:
        kinds = None
    elif len(set(kinds)) == 1:
        kinds = kinds[0]
    node = [
        SPLICED,
        base,
        list(model.at),
        _module_node(block.block if type(block) is surgery.Positionwise else block),
        plain(segment.shape),
        sum(bit for bit, stage in stages if not frozen(stage)),
        plain(model.sample_axes),
        np.dtype(segment.dtype).name,
        segment.batch,
        segment.unroll,
        kinds,
    ]
    return trim(node, SPLICED_DEFAULTS)


def _build_spliced(node: list[Any], path: Path, take: Take) -> surgery.Spliced:
    full = freeze(node[4:])
    shape, trained, axes, dtype, batch, unroll, kinds = [*full, *SPLICED_DEFAULTS[4 + len(full) :]]
    where = (*path, "block") if axes is None else (*path, "block", "block")
    block = build_node(node[3], where, take)
    # The cuts are found on arrays of the saved dtypes, which the stages then expect.
    named = itertools.repeat(kinds) if kinds is None or isinstance(kinds, str) else iter(kinds)
    zeros = lambda name, like, kind: to_jax(np.zeros(like, next(named) or kind))
    base = build_example(node[1], zeros)
    x = jax.ShapeDtypeStruct((batch or 2, *shape), dtype)
    names = (("head", HEAD), ("tail", TAIL))
    trainable = ("block", *(name for name, bit in names if trained & bit))
    made = surgery.splice(
        base, x, node[2], block, sample_axes=axes, trainable=trainable, unroll=unroll
    )
    variables = dict(nnx.to_flat_state(nnx.state(made)))
    for spelled, value in arrays_of(made).items():
        name = tuple(spelled.split("/"))
        if name[0] != "block":
            array = take((*path, *name), tuple(value.shape), value.dtype)
            variables[name].set_value(array)
    nnx.update(made, nnx.from_flat_state(variables))
    return made
