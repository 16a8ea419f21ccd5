"""Whether a model draws random numbers or changes its state, seen in what it computes."""

import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import jax.extend.core as jex

from koopjax._core import note
from koopjax.forms._inference import DRAWS_NUMBERS

_DATA, _STREAM, _DRAWN, _FIXED = 1, 2, 4, 8
_DRAWS = ("random_bits", "rng_bit_generator", "rng_uniform", "random_gamma")


def trace_inference(
    key: Hashable,
    observed: Callable[[Any, Any], tuple[Any, list[Any]]],
    leaves: Any,
    x: Any,
    streams: Sequence[bool],
    refuse: Callable[[str], Exception],
) -> tuple[Any, Any]:
    """Trace a model, note what it computes, and refuse it if it is being trained by the look of it.

    Training shows in draws from a random stream and in state that the data change. A draw from a
    key that is the same in every call is a mask if it grows with the batch, and refused; if it does
    not, it is a constant, such as random features.

    Args:
        key: what `version` finds the model by.
        observed: gives the output and what the call has changed, from leaves and input.
        leaves, x: arrays or their shapes.
        streams: which of the leaves are the state of a random stream.
        refuse: makes an error of what the model does.

    Returns:
        The closed jaxpr, and the shapes of the output.
    """

    def trace(x: Any) -> tuple[Any, Any, list[tuple[int, ...]]]:
        run = lambda *values: observed(*values)  # JAX would remember the trace of `observed`
        with jax.disable_jit(False):  # its calls carry names; the equations may well run without it
            closed, (out, _) = jax.make_jaxpr(run, return_shape=True)(leaves, x)
        draws: list[tuple[int, ...]] = []
        flags = [_STREAM if stream else 0 for stream in streams]
        flags += [_DATA] * (len(closed.jaxpr.invars) - len(flags))
        found, outputs = _reach(closed, flags, draws), len(jax.tree.leaves(out))
        if any(flag & _DRAWN for flag in found[:outputs]):
            raise refuse(DRAWS_NUMBERS)
        if any(flag & _DATA for flag in found[outputs:]):
            raise refuse("one whose state is changed by its data, as BatchNorm does in training")
        return closed, out, draws if any(flag & _FIXED for flag in found[:outputs]) else []

    closed, out, draws = trace(x)
    if draws and trace(jax.ShapeDtypeStruct((x.shape[0] + 1, *x.shape[1:]), x.dtype))[2] != draws:
        raise refuse(DRAWS_NUMBERS)
    note(key, observed, leaves, x, closed=closed)
    return closed, out


def _reach(closed: Any, flags: list[int], draws: list[tuple[int, ...]]) -> list[int]:
    """What each result of a jaxpr depends on, as each operand does."""
    jaxpr = getattr(closed, "jaxpr", closed)
    known = dict.fromkeys(jaxpr.constvars, 0) | dict(zip(jaxpr.invars, flags, strict=True))

    def read(atom: Any) -> int:
        return 0 if isinstance(atom, jex.Literal) else known[atom]

    for equation in jaxpr.eqns:
        operands = [read(atom) for atom in equation.invars]
        results = _through(equation, operands, draws)
        known.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _through(equation: Any, operands: list[int], draws: list[tuple[int, ...]]) -> list[int]:
    name, params = equation.primitive.name, equation.params
    together = functools.reduce(int.__or__, operands, 0)
    if name in _DRAWS and not together & _DATA:
        if not together & _STREAM:
            draws.append(tuple(equation.outvars[0].aval.shape))
        return [together | (_DRAWN if together & _STREAM else _FIXED)] * len(equation.outvars)
    if name == "scan":
        first, last = params["num_consts"], params["num_consts"] + params["num_carry"]
        return _settled(params["jaxpr"], operands, slice(first, last), draws)
    if name == "while":
        skip = params["cond_nconsts"]
        first = params["body_nconsts"]
        tested = operands[:skip] + operands[skip + first :]
        test = _reach(params["cond_jaxpr"], tested, draws)[0]
        loop = slice(first, len(operands) - skip)
        return [f | test for f in _settled(params["body_jaxpr"], operands[skip:], loop, draws)]
    if name == "cond":
        branches = [_reach(branch, operands[1:], draws) for branch in params["branches"]]
        each = zip(*branches, strict=True)
        return [functools.reduce(int.__or__, flags, operands[0]) for flags in each]
    inner = [p for p in params.values() if isinstance(p, jex.Jaxpr | jex.ClosedJaxpr)]
    if len(inner) == 1 and len(getattr(inner[0], "jaxpr", inner[0]).invars) == len(operands):
        return _reach(inner[0], operands, draws)
    return [together] * len(equation.outvars)


def _settled(
    body: Any, operands: list[int], loop: slice, draws: list[tuple[int, ...]]
) -> list[int]:
    """The flags of a loop's results once what it carries has taken in all that reaches it."""
    operands, count = list(operands), loop.stop - loop.start
    while True:
        results = _reach(body, operands, [])
        carried = [a | b for a, b in zip(operands[loop], results[:count], strict=True)]
        if carried == operands[loop]:
            return _reach(body, operands, draws)
        operands[loop] = carried
