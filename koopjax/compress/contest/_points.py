"""Points of the contest, and its table."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Point:
    """One compressed network of the contest, or why there is none.

    Attributes:
        track: see `TRACKS`.
        method, budget, seed: which.
        family: kind of method; see `Recipe`.
        accuracy: on the test data, used once; None where the method has no form so small.
        ratio, stored_bytes, parameters: of the file.
        original_accuracy: of the network that was compressed.
        seconds: that the method took.
        settings: what was chosen.
        note: why there is no result.
    """

    track: str
    method: str
    budget: str
    seed: int
    family: str
    accuracy: float | None
    ratio: float | None
    stored_bytes: int | None
    parameters: int | None
    original_accuracy: float
    seconds: float
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Pareto:
    """All points, and what was chosen before the test data were touched.

    Attributes:
        points: in the order of track, budget, method, seed.
        variants: by `(track, method, budget)`, the settings chosen on validation data.
        originals: by seed, accuracy and stored bytes of the networks.
    """

    points: Sequence[Point]
    variants: Mapping[tuple[str, str, str], Mapping[str, Any]]
    originals: Mapping[int, Mapping[str, Any]]

    def summary(self) -> list[dict[str, Any]]:
        """A row for each track, budget and method: mean and standard deviation over seeds.

        Over those seeds whose network has a form so small; the note says for how many it has none.
        """
        rows = []
        for group in dict.fromkeys((p.track, p.budget, p.method) for p in self.points):
            same = [p for p in self.points if (p.track, p.budget, p.method) == group]
            done = [p for p in same if p.accuracy is not None]
            values = [p.accuracy for p in done if p.accuracy is not None]
            lost = [p.original_accuracy - p.accuracy for p in done if p.accuracy is not None]
            rows.append(
                {
                    "track": group[0], "budget": group[1], "method": group[2],
                    "family": same[0].family, "seeds": len(values),
                    "accuracy": statistics.mean(values) if values else None,
                    "std": statistics.stdev(values) if len(values) > 1 else None,
                    "lost": statistics.mean(lost) if lost else None,
                    "ratio": statistics.mean([p.ratio or 0.0 for p in done]) if done else None,
                    "stored_bytes": _mean([p.stored_bytes for p in done]),
                    "parameters": _mean([p.parameters for p in done]),
                    "seconds": statistics.mean([p.seconds for p in done or same]),
                    "note": _lacking(same),
                }
            )  # fmt: skip
        return rows


def _lacking(points: Sequence[Point]) -> str:
    """Why there is no result, and for how many networks where some have one."""
    without = [p for p in points if p.accuracy is None]
    if not without or len(without) == len(points):
        return without[0].note if without else ""
    return f"none for {len(without)} of {len(points)} networks: {without[0].note}"


def _mean(values: Sequence[int | None]) -> float | None:
    known = [v for v in values if v is not None]
    return statistics.mean(known) if known else None
