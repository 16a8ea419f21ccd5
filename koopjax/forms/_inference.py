"""How a model is told that it is not being trained, and what is said where it doesn't listen."""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax.numpy as jnp
from flax import errors

from koopjax._core import expected

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

    Args:
        function: a function or a callable object; what a `functools.partial` has bound is left.
        fields: others to leave, which the function has as fields.
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

    Args:
        model: any; one with arguments bound by position is left as it is.
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

    Args:
        function: the model, or what it calls.
        fields: the modes that it has as fields.
        x: the input.
        arguments, keywords: the whole call, where it is known to be `function(*arguments)`.
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
