"""How a model is told that it is not being trained, and how it is seen that it listened."""

import contextlib
import functools
import inspect
import operator
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
from flax import errors, linen, nnx

from koopjax._core._arrays import expected
from koopjax._core._pytree import Static
from koopjax._core._watch import note

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


def inference_arguments(function: Callable[..., Any]) -> dict[str, bool]:
    """Those of the arguments that a function takes, set for inference.

    Args:
        function: a function or a callable object; what a `functools.partial` has bound is left, and
            what a Linen module has as a field, which its argument may only stand in for.
    """
    bound = function.keywords if isinstance(function, functools.partial) else {}
    names = _parameters(function)
    left = {*bound, *_fields(function)}
    return {n: value for n, value in INFERENCE.items() if n in names and n not in left}


def _fields(function: Callable[..., Any]) -> list[str]:
    """Modes set as fields of a Linen module, which `linen.merge_param` refuses as arguments too."""
    module = getattr(function, "__self__", None)
    if not isinstance(module, linen.Module):
        return []
    optional = [name for name, p in _parameters(function).items() if p.default is None]
    return [n for n in INFERENCE if n in optional and getattr(module, n, None) is not None]


def _parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    try:
        return dict(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # a builtin without a signature takes none of them
        return {}


def unbind(model: Any) -> tuple[Any, dict[str, Any]]:
    """A model without the `functools.partial` by which its mode was bound, and what it binds.

    Args:
        model: any; one with arguments bound by position is left as it is.
    """
    plain = type(model) is functools.partial and not model.args
    return (model.func, dict(model.keywords)) if plain else (model, {})


#: What a model in training mode is said to do.
_DRAWS_NUMBERS = "one that draws random numbers in each call, as Dropout does in training"


class ModeError(ValueError):
    """A model that is not in inference mode, or needs more arguments than its input."""


def _mode_error(got: str, function: Any) -> ModeError:
    """The refusal of a model that is not in inference mode, with the arguments that it has."""
    known = [n for n, p in _parameters(function).items() if p.default is not p.empty]
    named = ", ".join(f"{name}=..." for name in known) or "is_train=False"
    hint = f"binding its mode, functools.partial(model, {named}), or setting its attribute"
    if fields := _fields(function):
        hint = "the module made with " + ", ".join(f"{n}={INFERENCE[n]}" for n in fields)
    return ModeError(str(expected("a model in inference mode", got, hint)))


@contextlib.contextmanager
def clear_words(function: Any, x: Any, *arguments: Any, **keywords: Any) -> Iterator[None]:
    """Say in one line what keeps a model from taking its input.

    Args:
        function: the model, or what it calls.
        x: the input.
        arguments, keywords: the whole call, where it is known to be `function(*arguments)`.
    """
    _check_signature(function, arguments, keywords)
    try:
        yield
    except errors.ModifyScopeVariableError as error:
        got = "one that changes its variables, as BatchNorm does in training"
        raise _mode_error(got, function) from error
    except errors.InvalidRngError as error:
        raise _mode_error(_DRAWS_NUMBERS, function) from error
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
        raise ModeError(
            str(
                expected(
                    "a model of one input array",
                    f"one that takes ({', '.join(needed)}): {error}",
                    "functools.partial(model, name=value) for what is the same in every batch, or "
                    "one array of all inputs side by side, taken apart in the function",
                )
            )
        ) from error


def take_bound(model: Any) -> tuple[Any, tuple[tuple[str, Static], ...]]:
    """A model without the `functools.partial` around its module, and what that binds.

    Args:
        model: in any form; where nothing is bound, or to a function alone, it is left as it is.
    """
    pair = isinstance(model, tuple) and len(model) == 2
    code, bound = unbind(model[0] if pair else model)
    if isinstance(code, linen.Module) and not pair and code.scope is not None:
        module, variables = code.unbind()  # of `module.bind(variables)`
        return (module, variables), tuple((name, Static(v)) for name, v in bound.items())
    if not isinstance(code, nnx.Module | linen.Module):
        return model, ()
    fixed = tuple((name, Static(value)) for name, value in bound.items())
    return (code, model[1]) if pair else code, fixed


def put_bound(code: Any, bound: tuple[tuple[str, Static], ...]) -> Any:
    """A module with what was bound to it, the reverse of `take_bound`."""
    values = {name: value.value for name, value in bound}
    return functools.partial(code, **values) if bound else code


def called(model: Any) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """What a model in any form calls, its arguments before the input, and those that are bound."""
    pair = isinstance(model, tuple)
    code, bound = unbind(model[0] if pair else model)
    if isinstance(code, linen.Module):
        return code.__call__, (), bound
    return code, model[1:] if pair else (), bound


def infer(model: Any, x: Any) -> tuple[Any, list[Any]]:
    """The output of a model in inference mode, and the arrays by which the call changes its state.

    Args:
        model: an `nnx.Module` in evaluation mode, `(linen_module, variables)`,
            `(function, params)`, or a callable; the code may be in a `functools.partial`.
        x: one batch.

    Raises:
        ValueError: it does not take the input, or is seen to be in training mode.
    """
    code, arguments, bound = called(model)
    keywords = {**inference_arguments(code), **bound}
    with clear_words(code, x, *arguments, x, **keywords):
        module = getattr(code, "__self__", None)
        if isinstance(module, linen.Module) and code == module.__call__:
            return module.apply(model[1], x, mutable=False, **keywords), []
        return _call_observed(code, *arguments, x, **keywords)


def _call_observed(model: Any, *arguments: Any, **keywords: Any) -> tuple[Any, list[Any]]:
    """The value of a call, and the arrays that it has put into the Variables of an `nnx.Module`.

    Random streams and sown intermediates do not count.
    """
    held = []
    if isinstance(model, nnx.Module):
        nodes = (node for _, node in nnx.iter_graph(model) if isinstance(node, nnx.Variable))
        kept = [node for node in nodes if not isinstance(node, nnx.RngState | nnx.Intermediate)]
        held = [(node, jax.tree.leaves(node.get_raw_value())) for node in kept]
    out = model(*arguments, **keywords)
    changed = []
    for variable, before in held:
        after = jax.tree.leaves(variable.get_raw_value())
        same = len(before) == len(after) and all(map(operator.is_, before, after))
        changed += [] if same else after
    return out, changed


_DATA, _STREAM, _DRAWN, _FIXED = 1, 2, 4, 8
_DRAWS = ("random_bits", "rng_bit_generator", "rng_uniform", "random_gamma")


def trace_inference(
    key: Hashable,
    observed: Callable[..., tuple[Any, list[Any]]],
    *arguments: Any,
    streams: Sequence[bool],
    model: Callable[[], Any],
) -> tuple[Any, Any]:
    """Trace a model, note what it computes, and refuse it if it is being trained by the look of it.

    Training shows in draws from a random stream and in state that the data change. A draw from a
    key that is the same in every call is a mask if it grows with the batch, and refused; if it does
    not, it is a constant, such as random features.

    Args:
        key: what `version` finds the model by.
        observed: gives the output and what the call has changed, as `infer` does.
        arguments: of `observed`, arrays or their shapes; the last is the input.
        streams: which of the leaves before the input are the state of a random stream.
        model: makes the model, for the advice.

    Returns:
        The closed jaxpr, and the shapes of the output.

    Raises:
        ModeError: draws, or changed state.
    """

    def trace(x: Any) -> tuple[Any, Any, list[tuple[int, ...]]]:
        run = lambda *values: observed(*values)  # JAX would remember the trace of `observed`
        with jax.disable_jit(False):  # its calls carry names; the equations may well run without it
            closed, (out, _) = jax.make_jaxpr(run, return_shape=True)(*arguments[:-1], x)
        draws: list[tuple[int, ...]] = []
        flags = [_STREAM if stream else 0 for stream in streams]
        flags += [_DATA] * (len(closed.jaxpr.invars) - len(flags))
        found, outputs = _reach(closed, flags, draws), len(jax.tree.leaves(out))
        if any(flag & _DRAWN for flag in found[:outputs]):
            raise _mode_error(_DRAWS_NUMBERS, called(model())[0])
        if any(flag & _DATA for flag in found[outputs:]):
            got = "one whose state is changed by its data, as BatchNorm does in training"
            raise _mode_error(got, called(model())[0])
        return closed, out, draws if any(flag & _FIXED for flag in found[:outputs]) else []

    x = arguments[-1]
    closed, out, draws = trace(x)
    if draws and trace(jax.ShapeDtypeStruct((x.shape[0] + 1, *x.shape[1:]), x.dtype))[2] != draws:
        raise _mode_error(_DRAWS_NUMBERS, called(model())[0])
    note(key, observed, *arguments, closed=closed)
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
