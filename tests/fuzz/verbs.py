"""The table of public verbs: how each is called rightly, and what it should give."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Argument:
    """An argument: its kind (a key of `values.KINDS`), and a right value."""

    kind: str
    make: Callable[[], Any]


@dataclasses.dataclass(frozen=True)
class Verb:
    """A public verb.

    Attributes:
        name: room and verb.
        call: the verb, which takes its arguments by name.
        needed: the arguments that are always given.
        optional: those that are given at times.
        wanted: what a call should give, of the arguments in float64; None where it can't say.
        part: what of the result is compared.
        look: at what of the result NaN would mean a mistake.
        tolerance: relative to the largest entry.
        grows: whether steps follow each other, so that states far out leave the range.
        weight: how often it is drawn; less for verbs that take long.
    """

    name: str
    call: Callable[..., Any]
    needed: dict[str, Argument]
    optional: dict[str, Argument]
    wanted: Callable[..., Any] | None = None
    part: Callable[[Any], Any] = lambda result: result
    look: Callable[[Any], Any] = lambda result: result
    tolerance: float = 2e-3
    grows: bool = False
    weight: float = 1.0

    @property
    def room(self) -> str:
        return self.name.split(".")[0]


VERBS: dict[str, Verb] = {}


def verb(
    name: str,
    call: Callable[..., Any],
    needed: dict[str, Argument],
    optional: dict[str, Argument] | None = None,
    **settings: Any,
) -> None:
    """Enter a verb into the table."""
    assert name not in VERBS, name
    VERBS[name] = Verb(name, call, needed, optional or {}, **settings)


def array(value: Any) -> Argument:
    return Argument("array", lambda: value)


def number(value: Any) -> Argument:
    return Argument("number", lambda: value)


def text(value: str) -> Argument:
    return Argument("text", lambda: value)


def sequence(*values: Any) -> Argument:
    return Argument("sequence", lambda: tuple(values))


def thing(make: Callable[[], Any]) -> Argument:
    """An object, made anew for each call, or shared where making it is dear."""
    return Argument("object", make)


def flag(value: bool) -> Argument:
    return Argument("flag", lambda: value)


def function(value: Callable[..., Any]) -> Argument:
    return Argument("function", lambda: value)


_rng = np.random.default_rng(0)
N, D = 24, 3
X = _rng.uniform(-1, 1, (N, D)).astype(np.float32)
A = _rng.normal(size=(D, D)).astype(np.float32) / 2
Y = (X @ A + 0.1 * np.sin(X)).astype(np.float32)
W = _rng.uniform(0.5, 2, N).astype(np.float32)
LABELS = _rng.integers(0, 2, N)
SQUARE = (_rng.normal(size=(6, 6)) / 2).astype(np.float32)
GRAM = (np.float64(X).T @ np.float64(X)) / N
CROSS = (np.float64(X).T @ np.float64(Y)) / N


def key() -> Argument:
    import jax

    return Argument("key", lambda: jax.random.key(0))
