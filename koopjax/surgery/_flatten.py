"""A jaxpr as a tree of equations whose calls can be opened where a cut lies inside them."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp

from koopjax._core import run_equation

#: Primitives that run one jaxpr on their operands, and the parameter which holds it.
CALLS = {
    **dict.fromkeys(("jit", "pjit", "checkpoint", "remat", "remat2"), "jaxpr"),
    **dict.fromkeys(("closed_call", "core_call"), "call_jaxpr"),
    **dict.fromkeys(("custom_jvp_call", "custom_vjp_call"), "call_jaxpr"),
    "custom_vjp_call_jaxpr": "fun_jaxpr",
    "custom_vmap_call": "call",
}

#: Calls with a derivative or mapping rule of their own, which opening them would lose.
_SEALED = ("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr", "custom_vmap_call")


def variables(atoms: Any) -> list[Any]:
    """The variables among the operands of an equation."""
    return [atom for atom in atoms if not isinstance(atom, jex.Literal)]


@dataclasses.dataclass(frozen=True, eq=False)
class Node:
    """An equation, and for a call the equations inside it over the same variables.

    A call runs as it stands, with its rematerialisation, unless a cut lies strictly inside; then
    its `inner` nodes take its place. No cut lies inside a call with a rule of its own.
    """

    equation: Any
    inner: "tuple[Node, ...] | None" = None
    defined: frozenset[Any] = frozenset()

    @property
    def sealed(self) -> bool:
        """Whether the call has a derivative or mapping rule of its own."""
        return self.equation.primitive.name in _SEALED

    def flat(self) -> Iterator[Any]:
        """The innermost equations, in order."""
        if self.inner is None:
            yield self.equation
        else:
            for node in self.inner:
                yield from node.flat()


@dataclasses.dataclass(frozen=True, eq=False)
class Flat:
    """A flattened jaxpr: `outputs` from `inputs` and `constants` through `nodes`."""

    source: Any
    inputs: tuple[Any, ...]
    constant_variables: tuple[Any, ...]
    constants: tuple[Any, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[Any, ...]


#: Arrays that the traced function closes over, each once: the variable and the value, by its id.
_Constants = dict[int, tuple[Any, Any]]


def _constant(constants: _Constants, value: Any, aval: Any) -> Any:
    """The variable of an array that is closed over."""
    return constants.setdefault(id(value), (jex.Var(aval), value))[0]


def flatten(closed: Any) -> Flat:
    """Rename a closed jaxpr's variables apart and open its calls."""
    constants: _Constants = {}
    inputs = tuple(jex.Var(v.aval) for v in closed.jaxpr.invars)
    nodes, outputs = _walk(closed, inputs, constants)
    pairs = constants.values()
    return Flat(
        closed.jaxpr, inputs, tuple(v for v, _ in pairs), tuple(a for _, a in pairs), nodes, outputs
    )


def _walk(
    closed: Any, operands: Sequence[Any], constants: _Constants
) -> tuple[tuple[Node, ...], tuple[Any, ...]]:
    """The nodes of a jaxpr over the caller's variables, and its results."""
    jaxpr = closed.jaxpr
    # A literal operand keeps its place in the call but reads as itself inside.
    names = dict(zip(jaxpr.invars, operands, strict=True))
    for variable, value in zip(jaxpr.constvars, closed.consts, strict=True):
        names[variable] = _constant(constants, value, variable.aval)

    def read(atom: Any) -> Any:
        if not isinstance(atom, jex.Literal):
            return names[atom]
        if getattr(atom.val, "ndim", 0) > 0:  # an array kept in the text of the jaxpr
            return _constant(constants, atom.val, atom.aval)
        return atom

    nodes = []
    for equation in jaxpr.eqns:
        operands = [read(atom) for atom in equation.invars]
        inner = _inner_jaxpr(equation)
        if inner is None or len(inner.jaxpr.invars) != len(operands):
            results = [jex.Var(v.aval) for v in equation.outvars]
            names.update(zip(equation.outvars, results, strict=True))
            made = equation.replace(invars=operands, outvars=results)
            nodes.append(Node(made, None, frozenset(results)))
        else:
            nodes.append(_open(equation, inner, operands, names, constants))
    return tuple(nodes), tuple(read(atom) for atom in jaxpr.outvars)


def _open(
    equation: Any, inner: Any, operands: list[Any], names: dict[Any, Any], constants: _Constants
) -> Node:
    nodes, values = _walk(inner, operands, constants)
    defined = frozenset().union(*(node.defined for node in nodes))
    results, taken = [], set()
    for variable, value in zip(equation.outvars, values, strict=True):
        names[variable] = value
        own = not isinstance(value, jex.Literal) and value in defined and value not in taken
        results.append(value if own else jex.Var(variable.aval))
        taken.add(results[-1])
    made = equation.replace(invars=operands, outvars=results)
    node = Node(made, nodes, defined)
    if not node.sealed:
        return node
    # What it hands through, such as a gradient reversal, is a value of its own: read from where it
    # came, it would pass the rule by.
    names.update(zip(equation.outvars, results, strict=True))
    through = not set(results) <= defined
    return Node(made, None, frozenset(results)) if through else node


def _inner_jaxpr(equation: Any) -> Any:
    """The jaxpr that a call runs, closed; `None` for any other equation."""
    inner = equation.params.get(CALLS.get(equation.primitive.name, ""))
    if inner is None or isinstance(inner, jex.ClosedJaxpr):
        return inner
    return jex.ClosedJaxpr(inner, ()) if not inner.constvars else None


def make_jaxpr(source: Any, inputs: Sequence[Any], output: Any, equations: Sequence[Any]) -> Any:
    """A closed jaxpr of one result from equations over common variables, cut out of `source`."""
    effects = frozenset().union(*(equation.effects for equation in equations))
    jaxpr = source.replace(
        constvars=(), invars=inputs, outvars=[output], eqns=equations, effects=effects
    )
    return jex.ClosedJaxpr(jaxpr, ())


def unroll_scans(closed: Any) -> Any:
    """The same jaxpr with every `lax.scan` written out step by step.

    Calls that hold a scan are opened on the way, save those with a rule of their own.
    """
    if not _has_scan(closed.jaxpr):
        return closed
    arguments = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in closed.jaxpr.invars]
    return jax.make_jaxpr(lambda *values: _run_unrolled(closed, values))(*arguments)


def _has_scan(jaxpr: Any) -> bool:
    return any(
        equation.primitive.name == "scan"
        or ((inner := _open_jaxpr(equation)) is not None and _has_scan(inner.jaxpr))
        for equation in jaxpr.eqns
    )


def _open_jaxpr(equation: Any) -> Any:
    """As `_inner_jaxpr`, `None` too for a call with a rule of its own."""
    return None if equation.primitive.name in _SEALED else _inner_jaxpr(equation)


def _run_unrolled(closed: Any, values: Sequence[Any]) -> list[Any]:
    jaxpr = closed.jaxpr
    bound = dict(zip(jaxpr.invars, values, strict=True))
    bound.update(zip(jaxpr.constvars, closed.consts, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, jex.Literal) else bound[atom]

    for equation in jaxpr.eqns:
        operands = [read(atom) for atom in equation.invars]
        inner = _open_jaxpr(equation)
        if equation.primitive.name == "scan":
            results = _run_steps(equation.params, operands)
        elif inner is not None and _has_scan(inner.jaxpr):
            results = _run_unrolled(inner, operands)
        else:
            results = run_equation(jaxpr, equation, operands)
        bound.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _run_steps(params: dict[str, Any], operands: list[Any]) -> list[Any]:
    n_consts, n_carry = params["num_consts"], params["num_carry"]
    consts = operands[:n_consts]
    carry = operands[n_consts : n_consts + n_carry]
    stacked = operands[n_consts + n_carry :]
    steps = range(params["length"])
    rows: dict[int, list[Any]] = {}
    for step in reversed(steps) if params["reverse"] else steps:
        here = [jax.lax.index_in_dim(array, step, keepdims=False) for array in stacked]
        results = _run_unrolled(params["jaxpr"], [*consts, *carry, *here])
        carry, rows[step] = results[:n_carry], results[n_carry:]
    if not rows:
        avals = params["jaxpr"].out_avals[n_carry:]
        return [*carry, *(jnp.zeros((0, *aval.shape), aval.dtype) for aval in avals)]
    outputs = zip(*(rows[step] for step in steps), strict=True)
    return [*carry, *(jnp.stack(output) for output in outputs)]
