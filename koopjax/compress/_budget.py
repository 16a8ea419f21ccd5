"""How many bytes a compressed model may take: absolute, or as a share of the original's file."""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

from koopjax._core import as_number, expected

_UNITS = {
    "": 1,
    "b": 1,
    "kb": 1000,
    "mb": 1000**2,
    "gb": 1000**3,
    "kib": 1024,
    "mib": 1024**2,
    "gib": 1024**3,
}
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
        if isinstance(text, str):
            return cls._of_text(text)
        if isinstance(text, bool) or not hasattr(text, "__index__"):
            raise expected(f"a budget: {_HOW}", repr(text))
        return cls._of_size(int(text), text)

    @classmethod
    def _of_text(cls, text: str) -> "Budget":
        match = _PATTERN.fullmatch(text.strip())
        if match is None:
            raise expected(f"a budget: {_HOW}", repr(text))
        number, unit = float(match[1]), match[2].lower()
        if unit in ("x", "×"):
            if not 0 < number < math.inf:
                raise expected("a positive ratio", repr(text), "'10x'")
            return cls(ratio=number)
        if unit not in _UNITS:
            raise expected(f"a budget: {_HOW}", f"the unit {match[2]!r}", "x, B, kB, KiB, MB, MiB")
        return cls._of_size(number * _UNITS[unit], text)

    @classmethod
    def _of_size(cls, size: float, text: Any) -> "Budget":
        if not 1 <= size < math.inf:
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


def smallest_of(
    errors: Sequence[BudgetTooSmall], name: str, limit: int, original_bytes: int
) -> BudgetTooSmall:
    """The error of all variants, by that which needs least."""
    known = [error.smallest for error in errors if error.smallest is not None]
    return too_small(name, limit, min(known), original_bytes) if known else errors[0]
