"""What a compression is asked for, a budget of bytes, and what it returns: a model, a report."""

import dataclasses
import math
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from koopjax import export, models
from koopjax._core import RESULTS, SUCCESS, as_number, expected, firsts

_UNITS = {"": 1, "b": 1, "kb": 1000, "mb": 1000**2, "gb": 1000**3}
_UNITS |= {"kib": 1024, "mib": 1024**2, "gib": 1024**3}
_PATTERN = re.compile(r"([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*([a-z]*|×)", re.IGNORECASE)
_HOW = "a ratio such as '30x', a size such as '64KiB' or '64kB', or a number of bytes"


@dataclasses.dataclass(frozen=True)
class Budget:
    """A bound on the size of the file that `export.save` writes.

    Exactly one of both fields is set.

    Args:
        ratio: the original's stored bytes over the compressed model's, at least.
        size: bytes, at most.

    Example:
        >>> Budget.parse("30x").bytes(300_000)
        10000
        >>> Budget.parse("64KiB").bytes(300_000)
        65536
        >>> str(Budget.parse("2.5e3"))
        '2500 B'
    """

    ratio: float | None = None
    size: int | None = None

    @classmethod
    def parse(cls, text: Any) -> "Budget":
        """Read a budget.

        Args:
            text: `"30x"` (a ratio), `"64KiB"`, `"64kB"`, `"1.5 MB"` or `"65536"` (bytes), an
                integer number of bytes, or a `Budget`, which is returned as it is.

        Raises:
            ValueError: none of these, not positive, or not finite.
        """
        if isinstance(text, Budget):
            return text
        if not isinstance(text, str):
            if isinstance(text, bool) or not hasattr(text, "__index__"):
                raise expected(f"a budget: {_HOW}", repr(text))
            number, unit = int(text), ""
        elif (match := _PATTERN.fullmatch(text.strip())) is None:
            raise expected(f"a budget: {_HOW}", repr(text))
        else:
            number, unit = float(match[1]), match[2]
        if unit in ("x", "X", "×"):
            if not 0 < number < math.inf:
                raise expected("a positive ratio", repr(text), "'10x'")
            return cls(ratio=number)
        if unit.lower() not in _UNITS:
            raise expected(f"a budget: {_HOW}", f"the unit {unit!r}", "x, B, kB, KiB, MB, MiB")
        if not 1 <= (size := number * _UNITS[unit.lower()]) < math.inf:
            raise expected("a budget of at least one byte", repr(text), "'64KiB' or '10x'")
        return cls(size=int(size))

    def bytes(self, original_bytes: int) -> int:
        """The bound in bytes.

        Args:
            original_bytes: size of the original model's own file.
        """
        for name, value in (("ratio", self.ratio), ("size", self.size)):
            if value is not None and as_number(f"Budget: {name}", value) <= 0:
                raise expected(f"Budget: a {name} above 0", f"{value}", _HOW)
        if self.size is not None:
            return self.size
        if self.ratio is None:
            raise expected("a budget with a ratio or a size", "neither", "Budget.parse('10x')")
        return math.floor(original_bytes / self.ratio)

    def __str__(self) -> str:
        return f"{self.ratio:g}x" if self.size is None else f"{self.size} B"


class BudgetTooSmall(ValueError):
    """No form of a method fits the budget; the one-line message says the smallest that it has.

    Attributes:
        smallest: bytes of that form, where they are known.
    """

    smallest: int | None = None


class Inapplicable(ValueError):
    """A method that doesn't take a model of this kind, whatever the budget."""


def inapplicable(what: str, got: str, suggestion: str) -> Inapplicable:
    """The error in the house form."""
    return Inapplicable(str(expected(what, got, suggestion)))


def too_small(
    method: str, budget: int, smallest: int, original: int | None = None
) -> BudgetTooSmall:
    """The error where no form of a method fits; without the original's bytes it names no ratio."""
    ratio = "" if original is None else f" ({original / smallest:.4g}x)"
    error = BudgetTooSmall(
        f"expected a budget of at least {smallest} bytes{ratio} for {method}, the smallest form "
        f"that it has for this model, got {budget} bytes; try a larger budget or another method"
    )
    error.smallest = smallest
    return error


@dataclasses.dataclass(frozen=True)
class Report:
    """The account of a compression.

    Attributes:
        method: name in `METHODS`.
        budget: as it was asked for, in words.
        budget_bytes: the same in bytes.
        stored_bytes: size of the file that `export.save` writes; never above `budget_bytes`.
        original_bytes: size of the original's own file.
        parameters: non-zero numbers in the compressed model.
        settings: what was chosen, by name (projection, observables, rank, ridge, ...).
        why: one sentence on how it was chosen.
        score: on the validation data; see `measure`.
        measure: of a classification "accuracy" where labels were given, else "agreement" with the
            original's answers; of a regression "r2" of the original's outputs, labels or not; or
            the name of the caller's `score_fn`.
        divergence: mean KL of the original's softmax to the compressed one's there; None for a
            regression.
        task: how the output is read, "classification" or "regression".
        candidates: how many settings were compared.
        result: result code of the numerics (`koopjax._core.RESULTS`); 0 is success.
        notes: advice, such as too few samples; empty where there is none.
    """

    method: str
    budget: str
    budget_bytes: int
    stored_bytes: int
    original_bytes: int
    parameters: int
    settings: dict[str, Any]
    why: str
    score: float
    measure: str
    divergence: float | None = None
    task: str = "classification"
    candidates: int = 1
    result: int = SUCCESS
    notes: tuple[str, ...] = ()

    @property
    def ratio(self) -> float:
        """Original over compressed bytes, the whole model."""
        return self.original_bytes / self.stored_bytes

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists, for JSON."""
        out = {**dataclasses.asdict(self), "ratio": self.ratio, "notes": list(self.notes)}
        return {name: _plain(value) for name, value in out.items()}

    def __str__(self) -> str:
        chosen = ", ".join(f"{name} {value}" for name, value in self.settings.items())
        text = (
            f"{self.method}: {self.stored_bytes:,} of {self.original_bytes:,} bytes "
            f"({self.ratio:.1f}x), validation {self.measure} {self.score:.4f}; {chosen}"
        )
        return "\n".join([text, *self.notes])


class Compressed(NamedTuple):
    """A compressed model and its report.

    Attributes:
        model: a Flax model: jit, grad, train, `export.save` and `export.load` work on it.
        report: a `Report`.
    """

    model: Any
    report: Report


def finish(
    model: Any, *, method: str, budget: Budget, original_bytes: int, result: int = SUCCESS,
    notes: tuple[str, ...] = (), advice: tuple[str, ...] = (), **account: Any,
) -> Compressed:  # fmt: skip
    """Measure the file, make sure that it fits, and write the report."""
    limit, stored = budget.bytes(original_bytes), export.stored_bytes(model)
    if stored > limit:  # a fault of the method's search, never of the user's
        raise AssertionError(f"{method} made a file of {stored} bytes for a budget of {limit}")
    if result != SUCCESS and not advice:
        advice = (RESULTS[result],)
    report = Report(
        method=method, budget=str(budget), budget_bytes=limit, stored_bytes=stored,
        original_bytes=original_bytes, parameters=count_nonzero(model), result=result,
        notes=(*advice, *notes), **account,
    )  # fmt: skip
    return Compressed(model, report)


def entropy(share: float) -> float:
    """Bits an entry of a mask with this share of ones."""
    if share <= 0 or share >= 1:
        return 0.0
    return -share * math.log2(share) - (1 - share) * math.log2(1 - share)


def count_nonzero(model: Any) -> int:
    """Non-zero floating numbers among the arrays of a model; what two names share counts once."""
    _, *arrays = models.form_of(model)
    floating = lambda leaf: jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(arrays) if floating(leaf)]
    return int(sum(np.count_nonzero(leaves[place]) for place in set(firsts(leaves))))


def count_tied(model: Any) -> int:
    """How many parameters are the very array of another."""
    leaves = jax.tree.leaves(models.form_of(model)[1])
    return len(leaves) - len(set(firsts(leaves)))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _plain(v) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value.item() if hasattr(value, "item") else value
