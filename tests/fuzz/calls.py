"""Calls of public verbs with one or two arguments that are wrong, and what becomes of them."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import signal
import tempfile
import traceback
import warnings
from typing import Any

import numpy as np

from tests.fuzz import values
from tests.fuzz.judge import Hang, Outcome, alarm, judge_error, judge_result
from tests.fuzz.verbs import VERBS, Verb

# in this order, which the numbers of calls depend on
for _name in ("fits", "trains", "networks", "tools"):
    importlib.import_module(f"tests.fuzz.{_name}")
_EMPTY = tempfile.mkdtemp(prefix="fuzz")
NAMES = list(VERBS)
WEIGHTS = np.array([v.weight for v in VERBS.values()])


@dataclasses.dataclass(frozen=True)
class Call:
    """A call: the verb, the optional arguments that are given, and what is wrong with which."""

    verb: str
    given: tuple[str, ...] = ()
    changes: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        wrong = "; ".join(f"{k} = {how}" for k, how in self.changes)
        extra = [k for k in self.given if k not in dict(self.changes)]
        also = f", with {', '.join(extra)}" if extra else ""
        return f"{self.verb}({wrong or 'as it should be'}{also})"


def prepare() -> None:
    """Nothing: what calls need is made as it is needed."""


def draw(seed: int, number: int) -> Call:
    """The call of a number: the same for the same seed, whatever was called before."""
    rng = np.random.default_rng([seed, number])
    verb = VERBS[NAMES[rng.choice(len(NAMES), p=WEIGHTS / WEIGHTS.sum())]]
    names = [*verb.needed, *verb.optional]
    count = min(len(names), int(rng.choice([0, 1, 2], p=[0.1, 0.7, 0.2])))
    wrong = [names[i] for i in rng.choice(len(names), count, replace=False)] if count else []
    given = tuple(k for k in verb.optional if k in wrong or rng.random() < 0.1)
    changes = tuple((k, values.change(_kind(verb, k), rng)) for k in wrong)
    return Call(verb.name, given, changes)


def _kind(verb: Verb, name: str) -> str:
    return (verb.needed | verb.optional)[name].kind


def arguments(call: Call) -> dict[str, Any] | None:
    """The arguments; none where a change does not apply to the right value."""
    verb = VERBS[call.verb]
    made = {k: a.make() for k, a in verb.needed.items()}
    made |= {k: verb.optional[k].make() for k in call.given}
    rng = np.random.default_rng(0)
    for name, how in call.changes:
        try:
            with np.errstate(all="ignore"):
                made[name] = values.apply(_kind(verb, name), how, made[name], rng)
        except (TypeError, ValueError, IndexError, AttributeError, KeyError):
            return None
    return made


def run(call: Call, limit: float = 60.0, show: bool = False) -> Outcome | None:
    """What becomes of a call within so many seconds of computing; none where there is none."""
    verb = VERBS[call.verb]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # a number is dropped
        warnings.filterwarnings("error", category=np.exceptions.ComplexWarning)
        given = arguments(call)
        if given is None:
            return None
        signal.signal(signal.SIGPROF, alarm)
        signal.setitimer(signal.ITIMER_PROF, limit)
        try:
            with contextlib.chdir(_EMPTY):  # a word may be taken for a file's name
                result = verb.call(**given)
            signal.setitimer(signal.ITIMER_PROF, 0)
        except (Exception, Hang) as error:
            signal.setitimer(signal.ITIMER_PROF, 0)
            if show:
                traceback.print_exc()
            return judge_error(error, bool(call.changes))
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        return judge_result(verb, result, given)
