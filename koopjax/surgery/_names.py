"""Names for the values of a model, from its tags and from the parameters that it last consumed."""

import collections
import itertools
import math
from typing import Any

import jax.numpy as jnp

from koopjax.forms import Definition
from koopjax.surgery._flatten import Flat, Node, variables

#: Names that people use, for primitives that are called otherwise.
_FRIENDLY = {"reduce_window_max": "max_pool", "reduce_window_sum": "sum_pool"}

#: A parameter, or one slice of it along the leading axis: `(path, index or None)`.
Use = tuple[str, int | None]


class Naming:
    """Which parameters each equation consumes, and the names that follow.

    A value takes the name of the layer whose last parameter has just been consumed (`layers.0`);
    before that, of the parameter (`layers.0.kernel`); after it, of the layer and the operation
    (`layers.0/relu`). A `checkpoint_name` tag wins; `tagged` are the variables that a tag renames,
    each with the tag's result, which stands for it.
    """

    def __init__(self, flat: Flat, definition: Definition, dependent: set[Any]):
        self._dependent = dependent
        self._uses: dict[Any, frozenset[Use]] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._counted: set[str] = set()
        self._labels: dict[Any, str] = {}
        self._tags: dict[Any, str] = {}
        self.tagged: dict[Any, Any] = {}
        self._unfinished: set[Any] = set()
        self._consumers: list[int] = []
        for path, kind, variable in zip(
            definition.paths, definition.kinds, flat.inputs, strict=False
        ):
            self._register(path, variable, counted=kind.__name__ == "Param")
        for position, variable in enumerate(flat.constant_variables):
            aval = variable.aval
            if aval.shape and jnp.issubdtype(aval.dtype, jnp.inexact):
                self._register(f"constants.{position}", variable, counted=False)
        self._layers = _layers(self._shapes)
        self._atomic: set[int] = set()
        for node in flat.nodes:
            self._visit(node, None)

    def _register(self, path: str, variable: Any, *, counted: bool) -> None:
        self._uses[variable] = frozenset([(path, None)])
        self._shapes[path] = tuple(variable.aval.shape)
        if counted:
            self._counted.add(path)

    def _visit(self, node: Node, label: str | None) -> bool:
        """Propagate uses through a node; whether it consumes parameters or holds a tag."""
        equation = node.equation
        if node.inner is None:
            self._propagate(equation)
            if node.sealed:
                self._labels.update((v, str(_label(equation))) for v in equation.outvars)
            tag = equation.primitive.name == "name"
            if tag:
                self._tags[equation.outvars[0]] = str(equation.params["name"])
                self.tagged.update((v, equation.outvars[0]) for v in variables(equation.invars))
            return tag or bool(self.consumed(equation))
        own = _label(equation)
        opened = [self._visit(inner, own) for inner in node.inner]
        if own is not None and not any(opened):
            self._atomic.add(id(node))
            # The outermost call is visited last, and wins.
            self._labels.update(dict.fromkeys(equation.outvars, own))
        return any(opened)

    def _propagate(self, equation: Any) -> None:
        operands = variables(equation.invars)
        if any(v in self._dependent for v in operands):
            return
        uses = frozenset().union(*(self._uses.get(v, frozenset()) for v in operands))
        uses = _sliced(equation, uses, self._shapes)
        self._uses.update(dict.fromkeys(equation.outvars, uses))

    def is_atomic(self, node: Node) -> bool:
        """Whether a call consumes no parameter and holds no tag, so that it counts as one step."""
        return id(node) in self._atomic

    def consumed(self, equation: Any) -> frozenset[Use]:
        """Parameters that an equation on the data reads, directly or by what is made of them."""
        operands = variables(equation.invars)
        if not any(v in self._dependent for v in operands):
            return frozenset()
        return frozenset().union(*(self._uses.get(v, frozenset()) for v in operands))

    def count(self, uses: set[Use]) -> int:
        """Numbers in a set of parameters, each counted once."""
        whole = {path for path, index in uses if index is None and path in self._counted}
        total = sum(math.prod(self._shapes[path]) for path in whole)
        for path, index in uses:
            if index is not None and path in self._counted and path not in whole:
                total += math.prod(self._shapes[path][1:])
        return total

    def ends_layer(self, variable: Any, position: int) -> bool:
        """Whether a layer is complete here, bias or scale included, and another is to come."""
        around = self._consumers and self._consumers[0] <= position < self._consumers[-1]
        return bool(around) and variable not in self._unfinished

    def names(
        self, equations: list[Any], separating: dict[Any, int], output: Any
    ) -> dict[Any, str]:
        """A unique name for each value computed from the data, those of cuts chosen first."""
        bases = self._bases(equations)
        order = [v for v in bases if v in separating]
        order.sort(key=lambda v: v not in self._tags)  # tags keep their name as it is
        order += [v for v in bases if v not in separating]
        seen = collections.Counter({"input": 1, "output": 1})
        names: dict[Any, str] = {}
        for variable in order:
            base = bases[variable]
            if base == "output" and variable is output:
                names[variable] = base
                continue
            seen[base] += 1
            names[variable] = base if seen[base] == 1 else f"{base}@{seen[base]}"
        return {variable: names[variable] for variable in bases}

    def _bases(self, equations: list[Any]) -> dict[Any, str]:
        consumers = [(k, self.consumed(equation)) for k, equation in enumerate(equations)]
        self._consumers = [k for k, uses in consumers if uses]
        stages = self._stages([(k, uses) for k, uses in consumers if uses])
        bases: dict[Any, str] = {}
        here, whole = "input", True
        for position, equation in enumerate(equations):
            here, whole = stages.get(position, (here, whole))
            for variable in equation.outvars:
                if variable not in self._dependent:
                    continue
                if not whole:
                    self._unfinished.add(variable)
                if variable in self._tags:
                    bases[variable] = self._tags[variable]
                elif position in stages:
                    bases[variable] = here
                else:
                    name = equation.primitive.name
                    label = self._labels.get(variable, _FRIENDLY.get(name, name))
                    bases[variable] = f"{here}/{label}"
        return bases

    def _stages(self, consumers: list[tuple[int, frozenset[Use]]]) -> dict[int, tuple[str, bool]]:
        """For each equation that consumes parameters its name, and whether its layer is complete.

        Uses of one layer's parameters in a row are a run; the last of a run has the layer's name.
        """
        runs: list[list[tuple[int, frozenset[Use]]]] = []
        current: str | None = None
        seen: set[Use] = set()
        for position, uses in consumers:
            layer = self._layer(uses)
            if layer != current or uses & seen:
                runs.append([])
                current, seen = layer, set()
            runs[-1].append((position, uses))
            seen |= uses
        stages = {}
        for run in runs:
            for position, uses in run[:-1]:
                stages[position] = f"{self._layer(uses)}.{_parameter(uses)}", False
            stages[run[-1][0]] = self._layer(run[-1][1]), True
        return stages

    def _layer(self, uses: frozenset[Use]) -> str:
        """The layer that some parameters have in common."""
        names = sorted(
            self._layers[path] + ("" if index is None else f".{index}") for path, index in uses
        )
        first, last = names[0].split("."), names[-1].split(".")
        pairs = zip(first, last, strict=False)
        shared = [a for a, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)]
        return ".".join(shared) or "params"


def _label(equation: Any) -> str | None:
    """The name of the function that a call runs, `None` for rematerialisation."""
    primitive, params = equation.primitive.name, equation.params
    if primitive in ("jit", "pjit"):
        name = str(params.get("name", ""))
    elif primitive.startswith("custom_"):
        inner = params.get("call_jaxpr", params.get("fun_jaxpr", params.get("call")))
        inner = getattr(inner, "jaxpr", inner)
        name = str(inner.debug_info.func_name)
    else:
        return None
    return name.strip("_") if name.strip("_").isidentifier() else primitive


def _sliced(
    equation: Any, uses: frozenset[Use], shapes: dict[str, tuple[int, ...]]
) -> frozenset[Use]:
    """One step's slice of stacked parameters is a use of that step alone."""
    if equation.primitive.name != "slice" or len(uses) != 1:
        return uses
    ((path, index),) = uses
    start, limit = equation.params["start_indices"], equation.params["limit_indices"]
    shape = equation.invars[0].aval.shape
    rest_whole = not any(start[1:]) and tuple(limit[1:]) == tuple(shape[1:])
    if index is not None or not shape or not rest_whole or limit[0] - start[0] != 1:
        return uses
    if tuple(shape) != shapes[path] or shape[0] == 1:
        return uses
    return frozenset([(path, int(start[0]))])


def _parameter(uses: frozenset[Use]) -> str:
    return "+".join(sorted({path.rpartition(".")[2] for path, _ in uses}))


def _layers(shapes: dict[str, tuple[int, ...]]) -> dict[str, str]:
    """The layer that each parameter belongs to: what holds it.

    A parameter at the top is its own layer, and so is each matrix in a list of several; a list of
    one matrix and a vector is a layer.
    """
    matrices = collections.Counter(
        path.rpartition(".")[0]
        for path, shape in shapes.items()
        if path.rpartition(".")[2].isdigit() and len(shape) > 1
    )
    layers = {}
    for path in shapes:
        holder, _, last = path.rpartition(".")
        alone = not holder or holder == "constants" or (last.isdigit() and matrices[holder] > 1)
        layers[path] = path if alone else holder
    return layers
