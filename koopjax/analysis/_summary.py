"""Ladders of several seeds as one table: means, standard deviations, intervals of the losses."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from koopjax._core import expected, read_numbers
from koopjax.analysis._rungs import Ladder, measure_name, text_table

# 95 % quantiles of Student's t for 1, 2, ... degrees of freedom; beyond, the normal one corrected.
_T95 = (
    6.314, 2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860, 1.833, 1.812, 1.796, 1.782, 1.771,
    1.761, 1.753, 1.746, 1.740, 1.734, 1.729, 1.725, 1.721, 1.717, 1.714, 1.711, 1.708, 1.706,
    1.703, 1.701, 1.699, 1.697,
)  # fmt: skip
_MEANS = ("accuracy", "agreement", "kl", "r2", "numbers", "stored_bytes", "condition")


def one_sided(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean, and one-sided 95 % lower and upper bounds on it, by Student's t.

    Each bound alone holds with 95 %. With one value the bounds are infinite.

    Example:
        >>> [round(v, 3) for v in one_sided([1.0, 2.0, 3.0])]
        [2.0, 0.314, 3.686]
    """
    array = np.asarray(read_numbers("values", values), np.float64)
    if array.ndim != 1 or not array.size:
        raise expected("at least one value", f"shape {array.shape}")
    mean = float(array.mean())
    if array.size == 1:
        return mean, -math.inf, math.inf
    free = array.size - 1
    t = _T95[free - 1] if free <= len(_T95) else 1.645 + 1.524 / free
    half = t * float(array.std(ddof=1)) / math.sqrt(array.size)
    return mean, mean - half, mean + half


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
        kind = ("none" if rank is None else "output") if truncation is None else truncation
        for row in self.rows:
            if (row["dictionary"], row["rank"], row["truncation"]) == (dictionary, rank, kind):
                return row
        names = list(dict.fromkeys(row["dictionary"] for row in self.rows))
        raise expected(
            f"a row among {', '.join(map(repr, names))} with one of the ladder's ranks",
            f"{dictionary!r}, rank {rank}, truncation {kind!r}",
        )

    def least(
        self, tolerance: float | None = None, *, confident: bool = False
    ) -> dict[str, Any] | None:
        """The row of fewest numbers within a tolerance on the mean loss.

        Args:
            tolerance: the ladders' own if left out.
            confident: compare the upper 95 % bound of the loss instead of its mean.
        """
        tolerance = self.tolerance if tolerance is None else tolerance
        measure = "loss_upper" if confident else "loss"
        inside = [r for r in self.rows if r["target"] == "state" and r[measure] <= tolerance]
        return min(inside, key=lambda row: row["numbers"], default=None)

    def sentence(self, tolerance: float | None = None, *, confident: bool = False) -> str:
        """The finding over all seeds in one sentence; arguments as for `least`."""
        tolerance = self.tolerance if tolerance is None else tolerance
        found = self.least(tolerance, confident=confident)
        what = "accuracy" if self.original["accuracy"] is not None else "agreement"
        named = measure_name(self.original)
        shown = lambda row: f"{row[what]:.4f} ± {row[f'{what}_std']:.4f}"
        span = f"From {self.span[0]!r} to {self.span[1]!r} over {self.seeds} seeds"
        if found is None:
            best = max(self.rows, key=lambda row: row[what])
            return (
                f"{span}, no rung stays within {tolerance:g} of the original; the nearest is "
                f"{_name(best)} with {named} {shown(best)}."
            )
        against = "" if what == "agreement" else f" against {shown(self.original)}"
        return (
            f"{span}, {_name(found)} is enough to stay within {tolerance:g}: {named} "
            f"{shown(found)}{against}, {round(found['numbers']):,} numbers."
        )

    def table(self) -> str:
        """The rows as text in columns."""
        return text_table(self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON can hold it."""
        return {
            "original": dict(self.original),
            "span": {"start": self.span[0], "stop": self.span[1]},
            "seeds": self.seeds,
            "tolerance": self.tolerance,
            "sentence": self.sentence(),
            "replaced": [{k: _plain(v) for k, v in row.items()} for row in self.rows],
        }


def _plain(value: Any) -> Any:
    """JSON has no infinity: a bound that is none becomes null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _name(row: dict[str, Any]) -> str:
    if row["rank"] is None:
        return row["dictionary"]
    plain = " (plain SVD)" if row["truncation"] == "svd" else ""
    return f"{row['dictionary']} at rank {row['rank']}{plain}"


def _spread(values: list[Any]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


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
    dicts = [found if isinstance(found, dict) else found.to_dict() for found in ladders]
    if not dicts:
        raise expected("at least one ladder", "none")
    accuracies = [found["original"]["accuracy"] for found in dicts]
    labelled = accuracies[0] is not None
    if any((a is not None) is not labelled for a in accuracies):
        raise expected("ladders that all have labels, or none", "some of each")
    key = lambda row: (row["dictionary"], row["rank"], row["truncation"])
    tables = [{key(row): row for row in found["replaced"]} for found in dicts]
    rows = [
        _merge([table[k] for table in tables], accuracies)
        for k in tables[0]
        if all(k in table for table in tables)
    ]
    first = dicts[0]
    original = {
        **first["original"],
        "accuracy": float(np.mean(accuracies)) if labelled else None,
        "accuracy_std": _spread(accuracies) if labelled else None,
        "accuracies": accuracies,
    }
    span = (first["span"]["start"], first["span"]["stop"])
    return Summary(rows, original, len(dicts), span, first["tolerance"])


def _merge(rows: list[dict[str, Any]], accuracies: list[Any]) -> dict[str, Any]:
    """One row of means from the same rung of every seed."""
    merged = dict(rows[0])
    for name in _MEANS:
        # Bytes may have been measured for some seeds only: they depend on shapes, hardly on values.
        values = [row[name] for row in rows if row[name] is not None]
        merged[name] = float(np.mean(values)) if values else None
        if not values:
            continue
        if name in ("accuracy", "agreement", "kl", "r2"):
            merged[f"{name}_std"] = _spread(values)
    gravest = max(rows, key=lambda row: row["result"])
    merged["result"], merged["message"] = gravest["result"], gravest["message"]
    if merged["accuracy"] is not None:
        merged["accuracies"] = [row["accuracy"] for row in rows]
        losses = [whole - row["accuracy"] for whole, row in zip(accuracies, rows, strict=True)]
    else:
        losses = [1 - row["agreement"] for row in rows]
    mean, lower, upper = one_sided(losses)
    merged.update(loss=mean, loss_std=_spread(losses), loss_lower=lower, loss_upper=upper)
    return merged
