"""A traced model: its equations, the places where it can be cut, and the pieces between them."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np

from koopjax._core import expected, is_tracing, trace_context
from koopjax.forms import Definition
from koopjax.surgery._flatten import CALLS, Flat, Node, flatten, make_jaxpr, unroll_scans, variables
from koopjax.surgery._names import Naming

#: `(shape, dtype, weak_type)` of an array: what tracing needs to know of it.
Aval = tuple[tuple[int, ...], Any, bool]

#: Primitives that are linear in each operand; with two operands from the data they are not.
_LINEAR = frozenset((
    "add", "sub", "neg", "mul", "div", "dot_general", "conv_general_dilated", "reshape",
    "transpose", "broadcast_in_dim", "reduce_sum", "concatenate", "slice", "dynamic_slice",
    "squeeze", "convert_element_type", "pad", "gather", "rev", "copy", "name",
    "reduce_window_sum", "cumsum", "stop_gradient", "select_n", "split", "expand_dims",
    "optimization_barrier", "sharding_constraint", "add_any", "real", "imag",
))  # fmt: skip
_BILINEAR = frozenset(("mul", "div", "dot_general", "conv_general_dilated"))

#: Primitives that move or rename numbers without arithmetic.
_FREE = frozenset((
    "broadcast_in_dim", "reshape", "transpose", "squeeze", "slice", "dynamic_slice",
    "dynamic_update_slice", "gather", "concatenate", "pad", "rev", "copy", "convert_element_type",
    "bitcast_convert_type", "iota", "name", "stop_gradient", "select_n", "split",
    "optimization_barrier", "sharding_constraint", "device_put", "expand_dims", "random_bits",
    "random_wrap", "random_unwrap", "eq", "ne", "lt", "le", "gt", "ge", "and", "or", "not",
))  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class Place:
    """A value that the model computes from its data; a cut where it is alone alive."""

    name: str
    variable: Any
    position: int
    primitive: str
    parameters: int
    flops: int
    nonlinear: bool
    hidden: bool


class Program:
    """One model traced at one shape of input.

    `cuts` are the places that separate the model, in order of depth, the last the output; `inner`
    every other value computed from the data; `constants` the arrays that the model closes over.
    """

    def __init__(self, definition: Definition, closed: Any):
        flat = flatten(closed)
        self._flat: Flat = flat
        # Of NumPy's a copy, since the caller may change his in place.
        self.constants = tuple(
            value if isinstance(value, jax.Array) else np.array(value) for value in flat.constants
        )
        self.leaves = flat.inputs[:-1]
        self.input = flat.inputs[-1]
        self.output = flat.outputs[0]
        self._segments: dict[tuple[str, str], Any] = {}
        dependent, equations = _data_dependent(self._flat, self.input, self.output)
        if self.output not in dependent or self.output is self.input:
            raise expected(
                "a model whose output is computed from its input",
                "one that returns a constant or the input itself",
                "a function of x",
            )
        naming = Naming(self._flat, definition, dependent)
        separating = _separating(equations, dependent, self.input, self.output)
        separating = _whole(separating, self._flat.nodes, naming)
        names = naming.names(equations, separating, self.output)
        self.cuts, self.inner = _places(equations, dependent, separating, names, naming)
        self._by_name = {place.name: place for place in self.cuts}

    def cut(self, name: str) -> Any:
        """The cut of a name, `None` where there is none; `"output"` is the last."""
        if name in self._by_name:
            return self._by_name[name]
        return self.cuts[-1] if name == "output" else None

    def variable(self, name: str) -> Any:
        """The variable at a cut; `"input"` is the model's input."""
        cut = self.cut(name)
        if cut is not None:
            return cut.variable
        if name == "input":
            return self.input
        raise expected(
            f"the cut {name!r} at this batch size too",
            ", ".join(place.name for place in self.cuts),
            "the batch size that it was found at",
        )

    def segment(self, start: str, stop: str) -> tuple[Any, tuple[int, ...], tuple[int, ...]]:
        """The equations from one cut to another.

        A closed jaxpr of (leaves used, constants used, value at `start`), the positions of those
        leaves among the model's, and of those constants among `constants`.
        """
        if (start, stop) in self._segments:
            return self._segments[start, stop]
        first, last = self.variable(start), self.variable(stop)
        equations, needed = _between(self._flat.nodes, first, last)
        leaves = tuple(i for i, v in enumerate(self.leaves) if v in needed)
        constants = tuple(i for i, v in enumerate(self._flat.constant_variables) if v in needed)
        inputs = [self.leaves[i] for i in leaves]
        inputs += [self._flat.constant_variables[i] for i in constants]
        missing = needed.difference(inputs, [first])
        if missing:
            raise expected("a later cut after an earlier one", "the reverse", "at=(earlier, later)")
        closed = make_jaxpr(self._flat.source, [*inputs, first], last, equations)
        self._segments[start, stop] = closed, leaves, constants
        return closed, leaves, constants


def _data_dependent(flat: Flat, x: Any, output: Any) -> tuple[set[Any], list[Any]]:
    """Variables computed from `x`, and the equations among them that the output needs."""
    dependent = {x}
    chosen = []
    for node in flat.nodes:
        for equation in node.flat():
            if any(v in dependent for v in variables(equation.invars)):
                dependent.update(equation.outvars)
                chosen.append(equation)
    needed, kept = {output}, []
    for equation in reversed(chosen):
        if any(v in needed for v in equation.outvars):
            needed.update(variables(equation.invars))
            kept.append(equation)
    return dependent & (needed | {x}), kept[::-1]


def _separating(equations: list[Any], dependent: set[Any], x: Any, output: Any) -> dict[Any, int]:
    """Variables which are, at some place, the only ones alive that depend on the data.

    Such a value lies on every path from the input to the output, so the places do not depend on the
    order in which the equations happen to be written.
    """
    last_use = {output: len(equations)}
    for position, equation in enumerate(equations):
        for variable in variables(equation.invars):
            if variable in dependent and variable is not output:
                last_use[variable] = position
    found: dict[Any, int] = {}
    alive = {x}
    for position, equation in enumerate(equations):
        alive.update(v for v in equation.outvars if v in last_use)
        alive = {v for v in alive if last_use.get(v, -1) > position}
        if len(alive) == 1:
            (only,) = alive
            if only is not x:
                found.setdefault(only, position)
    return found


def _whole(found: dict[Any, int], nodes: tuple[Node, ...], naming: Naming) -> dict[Any, int]:
    """Leave out what lies inside a function without parameters, such as an activation.

    A tag inside opens the function, unless it has a rule of its own; a tagged value stands for the
    value that was tagged.
    """
    hidden: set[Any] = set()
    pending = list(nodes)
    while pending:
        node = pending.pop()
        if node.inner is None:
            continue
        if node.sealed or naming.is_atomic(node):
            hidden |= node.defined - set(node.equation.outvars)
        else:
            pending.extend(node.inner)
    found = {variable: position for variable, position in found.items() if variable not in hidden}
    tagged = {source for source, tag in naming.tagged.items() if tag in found}
    return {variable: position for variable, position in found.items() if variable not in tagged}


def _places(
    equations: list[Any],
    dependent: set[Any],
    separating: dict[Any, int],
    names: dict[Any, str],
    naming: Naming,
) -> tuple[tuple[Place, ...], tuple[Place, ...]]:
    """The values that separate the model, and all others computed from the data."""
    cuts: list[Place] = []
    inner: list[Place] = []
    consumed: set[Any] = set()
    operations, nonlinear = 0, False
    for position, equation in enumerate(equations):
        operations += _flops(equation)
        consumed |= naming.consumed(equation)
        nonlinear |= _is_nonlinear(equation, dependent)
        count, primitive = naming.count(consumed), equation.primitive.name
        for variable in equation.outvars:
            if variable not in names:
                continue
            hidden = nonlinear and naming.ends_layer(variable, position)
            known = (primitive, count, operations, nonlinear, hidden)
            place = Place(names[variable], variable, position, *known)
            (cuts if variable in separating else inner).append(place)
            if variable in separating:
                nonlinear = False
    return tuple(cuts), tuple(inner)


def _is_nonlinear(equation: Any, dependent: set[Any]) -> bool:
    name = equation.primitive.name
    if not any(is_floating(v.aval.dtype) for v in equation.outvars):
        return False  # a comparison or an index matters where it is used
    depends = [not isinstance(v, jex.Literal) and v in dependent for v in equation.invars]
    if name not in _LINEAR:
        return True
    if name == "div":
        return depends[1]
    if name == "select_n":  # its predicate comes first
        return depends[0]
    return name in _BILINEAR and sum(depends) > 1


def _between(nodes: tuple[Node, ...], start: Any, stop: Any) -> tuple[list[Any], set[Any]]:
    """Equations that compute `stop` from `start`, and the variables that they read."""
    needed = {stop}
    kept = []
    pending = list(nodes)
    while pending:
        node = pending.pop()
        own = set(node.equation.outvars)
        inside = start in node.defined or (stop in node.defined and stop not in own)
        if node.inner is not None and inside:
            pending.extend(node.inner)
        elif own & needed and start not in own:
            needed -= own
            needed.update(variables(node.equation.invars))
            kept.append(node.equation)
    return kept[::-1], needed - {start}


def aval_of(leaf: Any) -> Aval:
    """Shape, dtype and weakness of an array, a tracer, a number or a `ShapeDtypeStruct`."""
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return tuple(leaf.shape), leaf.dtype, bool(getattr(leaf, "weak_type", False))
    aval = jax.typeof(leaf)
    return tuple(aval.shape), aval.dtype, bool(getattr(aval, "weak_type", False))


_PROGRAMS: dict[Any, Program] = {}
_MOST_PROGRAMS = 128  # a program keeps the arrays that its model closes over


def trace(
    definition: Definition, leaves: tuple[Aval, ...], x: tuple[tuple[int, ...], Any], unroll: bool
) -> Program:
    """The model traced at a shape and dtype of input; remembered, so each is traced once.

    `leaves` are `aval_of` each of its arrays; `unroll` writes every `lax.scan` out.
    """
    key = definition, leaves, x, unroll, *trace_context(), jax.sharding.get_abstract_mesh()
    if key in _PROGRAMS:
        return _PROGRAMS[key]
    abstract = [jax.ShapeDtypeStruct(shape, dtype, weak_type=weak) for shape, dtype, weak in leaves]
    closed, out = definition.trace(abstract, jax.ShapeDtypeStruct(*x))
    if not isinstance(out, jax.ShapeDtypeStruct):
        raise expected(
            "a model that returns one array",
            f"{type(out).__name__} with {len(jax.tree.leaves(out))} arrays",
            "wrapping it: (lambda params, x: model(params, x)[0], params)",
        )
    program = Program(definition, unroll_scans(closed) if unroll else closed)
    # A model that closes over traced arrays must not outlive their trace.
    if not is_tracing(program.constants):
        if len(_PROGRAMS) >= _MOST_PROGRAMS:
            _PROGRAMS.pop(next(iter(_PROGRAMS)))
        _PROGRAMS[key] = program
    return program


@functools.cache
def is_floating(dtype: Any) -> bool:
    """Whether arrays of a dtype can be differentiated."""
    return bool(jnp.issubdtype(dtype, jnp.inexact))


def _flops(equation: Any) -> int:
    """Operations that one equation performs; a multiply-add counts as two.

    Products and convolutions are exact, reductions count their input, everything else one operation
    an element of its result; a loop counts its steps, a `while` one step, a branch the dearest.
    """
    name, params = equation.primitive.name, equation.params
    shapes: list[Any] = [getattr(atom.aval, "shape", ()) for atom in equation.invars]
    size = sum(math.prod(getattr(v.aval, "shape", ())) for v in equation.outvars)
    if name in _FREE:
        return 0
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        return 2 * size * math.prod(shapes[0][axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel = params["dimension_numbers"].rhs_spec
        spatial = math.prod(shapes[1][axis] for axis in kernel[2:])
        return 2 * size * spatial * shapes[1][kernel[1]]
    if name == "scan":
        return params["length"] * _total(params["jaxpr"])
    if name == "cond":
        return max(_total(branch) for branch in params["branches"])
    if name == "while":
        return _total(params["body_jaxpr"]) + _total(params["cond_jaxpr"])
    if name in CALLS:
        return _total(params[CALLS[name]])
    if name.startswith("reduce_window"):
        window = params.get("window_dimensions")
        return size * math.prod(window) if window else size
    if name.startswith(("reduce", "arg", "cum", "sort", "scatter")):
        return max((math.prod(shape) for shape in shapes), default=0)
    return size


def _total(jaxpr: Any) -> int:
    return sum(_flops(equation) for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns)
