"""What became of a call: right, refused in the house's words, or one of the ways to be wrong."""

from __future__ import annotations

import dataclasses
import linecache
import pathlib
import types
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import koopjax
from tests.fuzz.values import GivesNaN
from tests.fuzz.verbs import Verb

#: Fields in which NaN stands for what was not asked for.
UNMEASURED = ("info", "validation", "history")
PACKAGE = str(pathlib.Path(koopjax.__file__).parent)
HERE = str(pathlib.Path(__file__).parent)

#: Classes of outcomes. The first four are as they should be.
RIGHT = ("right", "flagged", "refused", "own")
#: Numbers left the range of their dtype in a result that carries no code: visible, not flagged.
VISIBLE = ("overflow",)
WRONG = (
    "silent NaN",
    "wrong value",
    "right call refused",
    "foreign error",
    "obscure error",
    "assertion",
    "out of memory",
    "hang",
    "crash",
)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a call.

    Attributes:
        kind: one of `RIGHT`, `VISIBLE`, `WRONG`.
        where: file and line of the package: where it raised, or which verb gave it.
        message: of the error, or how far a value is off.
    """

    kind: str
    where: str = ""
    message: str = ""


class Hang(BaseException):
    """Raised by the alarm."""


def alarm(number: int, frame: Any) -> None:
    """The handler of the signal that ends a call."""
    raise Hang


def judge_error(error: BaseException, changed: bool) -> Outcome:
    """The outcome of a call that raised."""
    frames = []
    trace = error.__traceback__
    while trace is not None:
        frames.append((trace.tb_frame.f_code.co_filename, trace.tb_lineno))
        trace = trace.tb_next
    inner = frames[-1]
    ours = [f for f in frames if f[0].startswith(PACKAGE)]
    last = ours[-1] if ours else inner
    where = f"{_short(last[0])}:{last[1]}"
    first = (str(error).strip() or "(no message)").splitlines()[0][:300]
    message = f"{type(error).__name__}: {first}"
    if isinstance(error, Hang):
        return Outcome("hang", where, "no answer in time")
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        return Outcome("out of memory", where, message)
    if isinstance(error, AssertionError):
        return Outcome("assertion", where, message)
    # A function of the caller's raised, or was called with arguments that it does not take.
    if inner[0].startswith(HERE) or "<lambda>() " in message:
        return Outcome("own", where, message)
    said = _raises_itself(inner) and "expected" in str(error)
    if said and isinstance(error, ValueError | TypeError | LookupError | OSError | ArithmeticError):
        return Outcome("refused" if changed else "right call refused", where, message)
    return Outcome("obscure error" if inner[0].startswith(PACKAGE) else "foreign error", where,
                   message)  # fmt: skip


def _short(path: str) -> str:
    return path.removeprefix(str(pathlib.Path(PACKAGE).parent) + "/")


def _raises_itself(place: tuple[str, int]) -> bool:
    """Whether a line of the package says `raise`, so that no function of others raised there."""
    path, line = place
    return path.startswith(PACKAGE) and linecache.getline(path, line).lstrip().startswith("raise")


def leaves(value: Any, depth: int = 0) -> Iterator[np.ndarray]:
    """All arrays of numbers in a result or an argument, whatever holds them."""
    if depth > 8 or value is None or isinstance(value, str | bytes | type | types.FunctionType):
        return
    if isinstance(value, np.ma.MaskedArray):
        yield np.ma.getdata(value)
    elif isinstance(value, bool | int | float | complex | np.generic | np.ndarray):
        yield np.asarray(value) if not _wide(value) else np.asarray(0.0)
    elif isinstance(value, jax.Array):
        if not jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            yield np.asarray(value)
    elif isinstance(value, nnx.Variable):
        yield from leaves(value.get_value(), depth + 1)
    elif isinstance(value, nnx.Module):
        yield from leaves(jax.tree.leaves(nnx.state(value)), depth + 1)
    elif isinstance(value, dict):
        for part in value.values():
            yield from leaves(part, depth + 1)
    elif isinstance(value, list | tuple | set):
        for part in value:
            yield from leaves(part, depth + 1)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            if field.name in UNMEASURED:
                continue
            yield from leaves(getattr(value, field.name, None), depth + 1)
    elif hasattr(value, "values") and hasattr(value, "columns"):
        yield np.asarray(value.values)


def _wide(value: Any) -> bool:
    return isinstance(value, int) and abs(value) > 2**63


def _float(array: np.ndarray) -> np.ndarray | None:
    """As float64 or complex128; none where it holds no numbers."""
    if array.dtype.kind in "iufb" or array.dtype.name.startswith(("bfloat", "float8")):
        return array.astype(np.float64)
    if array.dtype.kind == "c":
        return array.astype(np.complex128)
    if array.dtype.kind == "O":
        try:
            return array.astype(np.float64)
        except (TypeError, ValueError):
            return None
    return None


def finite(value: Any) -> bool:
    """Whether all numbers in an argument are finite."""
    found = (_float(array) for array in leaves(value))
    return all(bool(np.all(np.isfinite(a))) for a in found if a is not None)


def flagged(result: Any, depth: int = 0) -> bool:
    """Whether a result carries a code that is not success."""
    if depth > 4:
        return False
    if isinstance(result, tuple | list):
        return any(flagged(part, depth + 1) for part in result)
    code = getattr(result, "result", None)
    if code is None and dataclasses.is_dataclass(result):
        return any(
            flagged(getattr(result, f.name, None), depth + 1) for f in dataclasses.fields(result)
        )
    try:
        return code is not None and bool(np.any(np.asarray(code) != 0))
    except (TypeError, ValueError):
        return False


def _has_code(result: Any) -> bool:
    parts = result if isinstance(result, tuple | list) else (result,)
    return any(hasattr(part, "result") for part in parts)


def _huge(arguments: dict[str, Any]) -> bool:
    """Whether a number among the arguments has no square in float32."""
    found = (_float(array) for value in arguments.values() for array in leaves(value))
    return any(bool(np.any(np.abs(a) > 1e19)) for a in found if a is not None)


def judge_result(verb: Verb, result: Any, arguments: dict[str, Any]) -> Outcome:
    """The outcome of a call that returned."""
    name = verb.name
    if flagged(result):
        return Outcome("flagged")
    hidden = [k for k, v in arguments.items() if np.ma.is_masked(v)]
    if hidden:
        return Outcome("wrong value", name, f"hidden entries of {hidden[0]} were taken as numbers")
    if all(finite(v) for v in arguments.values()):
        numbers = [a for a in map(_float, leaves(verb.look(result))) if a is not None]
        lost = any(bool(np.any(np.isnan(a))) for a in numbers)
        if any(isinstance(v, GivesNaN) for v in arguments.values()):
            return Outcome("own")
        if lost and (_has_code(result) or not (verb.grows or _huge(arguments))):
            return Outcome("silent NaN", name, "NaN from finite arguments")
        if lost:
            return Outcome("overflow", name, "NaN of numbers whose squares overflow")
        if any(bool(np.any(np.isinf(a))) for a in numbers):
            return Outcome("overflow", name, "infinite from finite arguments")
        if verb.wanted is not None:
            return _compare(verb, result, arguments)
    return Outcome("right")


def _compare(verb: Verb, result: Any, arguments: dict[str, Any]) -> Outcome:
    assert verb.wanted is not None
    with np.errstate(all="ignore"):
        try:
            want = verb.wanted(**{k: plain(v) for k, v in arguments.items()})
        except (TypeError, ValueError, IndexError, np.linalg.LinAlgError, AttributeError):
            return Outcome("right", "", "not compared")
    if want is None:
        return Outcome("right", "", "not compared")
    got, want = np.asarray(verb.part(result)), np.asarray(want)
    if got.shape != want.shape:
        return Outcome("wrong value", verb.name, f"shape {got.shape} for {want.shape}")
    got = got.astype(np.complex128 if got.dtype.kind == "c" else np.float64)
    largest = float(np.max(np.abs(want), initial=0.0))
    # below and above this float32 may have nothing better
    if not np.isfinite(largest) or largest > 1e37 or largest < 1e-36:
        return Outcome("right", "", "not compared")
    off = float(np.max(np.abs(got - want), initial=0.0)) / largest
    short = any(a.dtype.itemsize <= 2 for value in arguments.values() for a in leaves(value))
    if not off <= (0.02 if short else verb.tolerance):
        return Outcome("wrong value", verb.name, f"off by {off:.2g} of the largest")
    return Outcome("right")


def plain(value: Any) -> Any:
    """An array argument as NumPy's float64 (or complex) array, anything else as it is."""
    if hasattr(value, "values") and hasattr(value, "columns"):
        value = value.values
    if isinstance(value, np.ma.MaskedArray):
        value = np.ma.getdata(value)
    if isinstance(value, np.ndarray | jax.Array | list):
        if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            return value
        made = _float(np.asarray(value))
        return value if made is None else np.asarray(made)
    if isinstance(value, tuple) and value and isinstance(value[0], np.ndarray):
        return np.asarray(value, np.float64)
    return value
