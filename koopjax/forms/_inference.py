"""How a model is told that it is not being trained, and what is said where it doesn't listen."""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
from flax import errors, nnx

from koopjax._core import expected, note

#: Arguments by which a model is told so, with the value that says it.
INFERENCE = {
    "train": False,
    "training": False,
    "is_training": False,
    "is_train": False,
    "deterministic": True,
    "use_running_average": True,
    "inference": True,
}


def inference_arguments(function: Callable[..., Any], fields: Sequence[str]) -> dict[str, bool]:
    """Those of the arguments that a function takes, set for inference.

    What a `functools.partial` has bound is left, and so are `fields`, which the function has.
    """
    bound = function.keywords if isinstance(function, functools.partial) else {}
    names, left = _parameters(function), {*bound, *fields}
    return {n: value for n, value in INFERENCE.items() if n in names and n not in left}


def set_fields(module: Any) -> tuple[str, ...]:
    """Modes set as fields of a Linen module, which `linen.merge_param` refuses as arguments too."""
    optional = [name for name, p in _parameters(module.__call__).items() if p.default is None]
    return tuple(n for n in INFERENCE if n in optional and getattr(module, n, None) is not None)


def _parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    try:
        return dict(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # a builtin without a signature takes none of them
        return {}


def unbind(model: Any) -> tuple[Any, dict[str, Any]]:
    """A model without the `functools.partial` by which its mode was bound, and what it binds.

    One with arguments bound by position is left as it is.
    """
    plain = type(model) is functools.partial and not model.args
    return (model.func, dict(model.keywords)) if plain else (model, {})


#: What a model in training mode is said to do.
DRAWS_NUMBERS = "one that draws random numbers in each call, as Dropout does in training"


class ModeError(ValueError):
    """A model that is not in inference mode, or needs more arguments than its input."""


def mode_error(got: str, function: Any, fields: Sequence[str]) -> ModeError:
    """The refusal of a model that is not in inference mode, with the arguments that it has."""
    known = [n for n, p in _parameters(function).items() if p.default is not p.empty]
    named = ", ".join(f"{name}=..." for name in known) or "is_train=False"
    hint = f"binding its mode, functools.partial(model, {named}), or setting its attribute"
    if fields:
        hint = "the module made with " + ", ".join(f"{n}={INFERENCE[n]}" for n in fields)
    return ModeError(str(expected("a model in inference mode", got, hint)))


@contextlib.contextmanager
def clear_words(
    function: Any, fields: Sequence[str], x: Any, *arguments: Any, **keywords: Any
) -> Iterator[None]:
    """Say in one line what keeps a model from taking its input.

    The whole call is `function(*arguments, **keywords)`; `fields` are the modes that it has as
    fields.
    """
    _check_signature(function, arguments, keywords)
    try:
        yield
    except errors.ModifyScopeVariableError as error:
        got = "one that changes its variables, as BatchNorm does in training"
        raise mode_error(got, function, fields) from error
    except errors.InvalidRngError as error:
        raise mode_error(DRAWS_NUMBERS, function, fields) from error
    except (
        TypeError, ValueError, AssertionError, LookupError, OverflowError, errors.FlaxError,
    ) as error:  # fmt: skip
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if first.startswith("expected "):  # clear already
            raise
        kind = f"{jnp.result_type(x)}{list(jnp.shape(x))}"
        raise expected(
            f"a model that takes an input {kind}",
            f"one that fails there ({type(error).__name__}: {first[:200]})",
            "an input of the shape and dtype that it was made for",
        ) from error


def _check_signature(function: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*arguments, **keywords)
    except TypeError as error:
        needed = [n for n, p in signature.parameters.items() if p.default is p.empty]
        refusal = expected(
            "a model of one input array",
            f"one that takes ({', '.join(needed)}): {error}",
            "functools.partial(model, name=value) for what is the same in every batch, or "
            "one array of all inputs side by side, taken apart in the function",
        )
        raise ModeError(str(refusal)) from error


# Whether a model draws random numbers or changes its state, seen in what it computes.

_DATA, _STREAM, _DRAWN, _FIXED = 1, 2, 4, 8
_DRAWS = ("random_bits", "rng_bit_generator", "rng_uniform", "random_gamma")


def trace_inference(definition: Any, leaves: Any, x: Any) -> tuple[Any, Any]:
    """The closed jaxpr of a `Definition` and the shapes of its output; notes what it computes.

    Refused if it is being trained by the look of it: training shows in draws from a random stream
    and in state that the data change. A draw from a key that is the same in every call is a mask if
    it grows with the batch, and refused; if it does not, it is a constant, such as random features.
    """
    observed = definition.observed

    def refuse(got: str) -> ModeError:
        call = definition.called(leaves)
        return mode_error(got, call.code, call.fields)

    def trace(x: Any) -> tuple[Any, Any, list[tuple[int, ...]]]:
        run = lambda *values: observed(*values)  # JAX would remember the trace of `observed`
        with jax.disable_jit(False):  # its calls carry names; the equations may well run without it
            closed, (out, _) = jax.make_jaxpr(run, return_shape=True)(leaves, x)
        draws: list[tuple[int, ...]] = []
        streams = (issubclass(kind, nnx.RngState) for kind in definition.kinds)
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
    note(definition.unversioned(), observed, leaves, x, closed=closed)
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
