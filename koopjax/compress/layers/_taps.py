"""The inputs of linear layers, wherever a model calls them: in a scan, a jit or a remat too."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array

from koopjax import models
from koopjax._core import run_equation

MARK = "koopjax layer "
#: Parameters of a call that hold the jaxpr which runs on its operands.
_BODIES = ("jaxpr", "call_jaxpr", "fun_jaxpr")


@dataclasses.dataclass(frozen=True)
class _Marked:
    """A layer's promotion of dtypes, which all its calls go through, with a mark on the input."""

    mark: str
    promote: Callable[..., Any]

    def __call__(self, args: Sequence[Any], **settings: Any) -> Any:
        """The promoted arrays."""
        x, *others = args
        return self.promote((checkpoint_name(x, self.mark), *others), **settings)


def mark(layers: Sequence[nnx.Linear]) -> None:
    """Mark the inputs of layers, in place; their numbers and their paths stay what they are."""
    for place, layer in enumerate(layers):
        layer.promote_dtype = _Marked(f"{MARK}{place}", layer.promote_dtype)


def inputs(model: Any, x: Any) -> dict[int, Array]:
    """`(rows, m)` inputs of the marked layers that a model calls, by their places.

    All calls of a layer, one under another: over the steps of a scan and where it is used again.
    What runs under a condition is left out, since whether it runs is not known.
    """
    closed = jax.make_jaxpr(functools.partial(models.apply, model))(x)
    found: dict[str, list[Array]] = {}
    _run(closed.jaxpr, closed.consts, [x], found)
    stacked = {
        int(name.removeprefix(MARK)): [rows.reshape(-1, rows.shape[-1]) for rows in several]
        for name, several in found.items()
    }
    return {place: jnp.concatenate(several) for place, several in stacked.items()}


def _mark_of(equation: Any) -> str | None:
    name = str(equation.params.get("name", ""))
    return name if equation.primitive.name == "name" and name.startswith(MARK) else None


def _opened(equation: Any) -> Any:
    """The jaxpr of a call or a scan that holds marks; None for any other equation."""
    for name in _BODIES:
        body = equation.params.get(name)
        if isinstance(body, jex.Jaxpr) and not body.constvars:
            body = jex.ClosedJaxpr(body, ())
        if isinstance(body, jex.ClosedJaxpr) and len(body.jaxpr.invars) == len(equation.invars):
            marked = any(_mark_of(e) or _opened(e) for e in body.jaxpr.eqns)
            return body if marked else None
    return None


def _run(
    jaxpr: Any, consts: Sequence[Any], args: Sequence[Any], found: dict[str, list[Array]]
) -> list[Any]:
    """The outputs of a jaxpr; the marked values are added to those found."""
    held = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))
    read = lambda atom: atom.val if isinstance(atom, jex.Literal) else held[atom]
    for equation in jaxpr.eqns:
        operands = [read(atom) for atom in equation.invars]
        name, body = _mark_of(equation), _opened(equation)
        if name is not None:
            found.setdefault(name, []).extend(operands)
            results = operands
        elif body is None:
            results = run_equation(jaxpr, equation, operands)
        elif equation.primitive.name == "scan":
            results = _scan(body, equation.params, operands, found)
        else:
            results = _run(body.jaxpr, body.consts, operands, found)
        held.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _scan(
    body: Any, params: Any, operands: Sequence[Any], found: dict[str, list[Array]]
) -> list[Any]:
    fixed, carried = params["num_consts"], params["num_consts"] + params["num_carry"]

    def step(carry: Any, row: Any) -> tuple[Any, Any]:
        here: dict[str, list[Array]] = {}
        out = _run(body.jaxpr, body.consts, [*operands[:fixed], *carry, *row], here)
        return out[: params["num_carry"]], (out[params["num_carry"] :], here)

    carry, (rows, seen) = jax.lax.scan(
        step, list(operands[fixed:carried]), list(operands[carried:]),
        length=params["length"], reverse=params["reverse"],
    )  # fmt: skip
    for name, several in seen.items():
        found.setdefault(name, []).extend(several)
    return [*carry, *rows]
