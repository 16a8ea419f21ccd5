"""Ladders, and planes, of several seeds as one: means, deviations, bounds of the losses."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from koopjax._core import plain
from koopjax.analysis import _rows as rows_of
from koopjax.analysis._results import Ladder, Plane

#: What is held against the tolerance: the mean loss, or (confident) its upper bound.
_MEASURES = ("loss", "loss_upper")


@dataclasses.dataclass(frozen=True)
class Summary:
    """A ladder over seeds.

    Attributes:
        rows: as the rows of a `Ladder`, with means, `*_std` (sample standard deviation),
            `accuracies` of each seed, and for the paired loss of accuracy against the same seed's
            original `loss`, `loss_std`, `loss_lower`, `loss_upper` (one-sided 95 % bounds).
        original: `accuracy`, `accuracy_std`, `accuracies`, `parameters`, `stored_bytes`.
        seeds: how many.
        span: names of the cuts.
        tolerance: of the ladders.
    """

    rows: list[dict[str, Any]]
    original: dict[str, Any]
    seeds: int
    span: tuple[str, str]
    tolerance: float

    def find(
        self, dictionary: str, rank: int | None = None, truncation: str | None = None
    ) -> dict[str, Any]:
        """One row; arguments as for `Ladder.find`."""
        return self.rows[rows_of.find(self.rows, dictionary, rank, truncation)]

    def least(
        self, tolerance: float | None = None, *, confident: bool = False
    ) -> dict[str, Any] | None:
        """The row of fewest numbers within a tolerance on the mean loss.

        Args:
            tolerance: the ladders' own if left out.
            confident: compare the upper 95 % bound of the loss instead of its mean.
        """
        tolerance = self.tolerance if tolerance is None else tolerance
        return rows_of.least(self.rows, self.original, tolerance, _MEASURES[confident])

    def sentence(self, tolerance: float | None = None, *, confident: bool = False) -> str:
        """The finding over all seeds in one sentence; arguments as for `least`."""
        tolerance = self.tolerance if tolerance is None else tolerance
        measure = _MEASURES[confident]
        return rows_of.sentence(self.rows, self.original, self.span, tolerance, measure)

    def table(self) -> str:
        """The rows as text in columns."""
        return rows_of.table(self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON can hold it."""
        return {
            "original": dict(self.original),
            "span": {"start": self.span[0], "stop": self.span[1]},
            "seeds": self.seeds,
            "tolerance": self.tolerance,
            "sentence": self.sentence(),
            "replaced": plain(self.rows),
        }


def _dicts(found: Sequence[Any]) -> list[dict[str, Any]]:
    return [one if isinstance(one, dict) else one.to_dict() for one in found]


def summarize(ladders: Sequence[Ladder | dict[str, Any]]) -> Summary:
    """Mean and standard deviation of every rung over seeds.

    Args:
        ladders: of models that differ in their seeds alone; `Ladder`s or what their `to_dict`
            gave (read back from JSON, say).

    Returns:
        A `Summary`. Rungs that not all ladders have (a rank beyond one's own) are left out.

    Raises:
        ValueError: no ladders, or some with labels and some without.
    """
    dicts = _dicts(ladders)
    original = rows_of.originals(dicts, "ladder")
    rows = rows_of.over_seeds([found["replaced"] for found in dicts], original["accuracies"])
    span, tolerance = dicts[0]["span"], dicts[0]["tolerance"]
    return Summary(rows, original, len(dicts), (span["start"], span["stop"]), tolerance)


def summarize_planes(planes: Sequence[Plane | dict[str, Any]]) -> dict[str, Any]:
    """Planes of several seeds as one: means, standard deviations, intervals of the losses.

    Args:
        planes: of models that differ in their seeds alone; `Plane`s or what their `to_dict` gave.

    Returns:
        As `Plane.to_dict`, with `..._std` beside the means, `accuracies` by seed, and for the loss
        of accuracy against the same seed's original `loss`, `loss_std`, `loss_lower` and
        `loss_upper` (one-sided 95 % bounds; None for one seed). Points that not all planes have
        are left out.

    Raises:
        ValueError: no planes, or some with labels and some without.
    """
    dicts = _dicts(planes)
    original = rows_of.originals(dicts, "plane")
    first, accuracies = dicts[0], original["accuracies"]
    nulls, rows = (
        rows_of.over_seeds([found[name] for found in dicts], accuracies)
        for name in ("nulls", "rows")
    )
    least = rows_of.least(rows, original, first["tolerance"])
    span = tuple(first["span"].values())
    return {
        **first,
        "original": original,
        "seeds": len(dicts),
        "sentence": rows_of.sentence(rows, original, span, first["tolerance"]),
        "least": None if least is None else {key: least[key] for key in ("degree", "rank")},
        "nulls": plain(nulls),
        "rows": plain(rows),
    }
