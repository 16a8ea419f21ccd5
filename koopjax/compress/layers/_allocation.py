"""A budget divided over layers: by forms of rising size and falling error, or entry by entry."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from koopjax import export
from koopjax.compress._problem import Problem, Score

#: Most splits that are scored.
TRIALS = 100
#: Moves of the climb, in rungs, the largest first.
STEPS = (6, 3, 1)


@dataclasses.dataclass(frozen=True, eq=False)
class Rung:
    """One form of a layer, its bytes up to a constant."""

    size: int
    error: float  # of its output
    kernel: np.ndarray  # [b; W]
    form: Any = None  # what is stored where that is not the kernel
    note: Any = None  # its settings for the report


def frontier(rungs: Sequence[Rung]) -> list[Rung]:
    """Those that no smaller one betters, by size."""
    out: list[Rung] = []
    for rung in sorted(rungs, key=lambda r: (r.size, r.error)):
        if not out or rung.error < out[-1].error:
            out.append(rung)
    return out


def largest(low: Any, high: Any, fits: Callable[[Any], bool], width: float) -> Any:
    """The largest number that fits, up to a width, by bisection; `low` is taken to fit."""
    if fits(high):
        return high
    while high - low > width:
        middle = (low + high) // 2 if isinstance(low, int) else (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def lamp(size: np.ndarray) -> np.ndarray:
    """The square of each entry over the sum of the squares that are not smaller, in its array."""
    order = np.argsort(-size, axis=None, kind="stable")
    squares = size.ravel()[order].astype(np.float64) ** 2
    out = np.empty(size.size)
    out[order] = squares / np.maximum(np.cumsum(squares), np.finfo(np.float64).tiny)
    return out.reshape(size.shape)


class Ladders:
    """The rungs of all layers, a frontier each, and the split of the budget among them.

    `build` makes the model to store of one rung a layer, `probe` one of equal outputs that is
    cheaper.
    """

    def __init__(
        self, problem: Problem, rungs: list[list[Rung]], build: Callable[[list[Rung]], Any],
        probe: Callable[[list[Rung]], Any] | None = None,
    ):  # fmt: skip
        self.problem, self.rungs = problem, rungs
        self.build, self.probe = build, probe or build
        self.tried: dict[tuple[int, ...], Score] = {}
        lowest = (0,) * len(rungs)
        least = export.stored_bytes(build(self.at(lowest)))
        self._base = least - sum(r[0].size for r in rungs)
        if least > problem.limit:
            raise problem.too_small(least)

    def at(self, place: Sequence[int]) -> list[Rung]:
        """The rungs at a place."""
        return [r[k] for r, k in zip(self.rungs, place, strict=True)]

    def fits(self, place: Sequence[int]) -> bool:
        """Whether what a place takes is within the budget."""
        taken = self._base + sum(rung.size for rung in self.at(place))
        return taken <= self.problem.limit

    def score(self, place: tuple[int, ...]) -> Score:
        """Validation score of a place; each is scored once."""
        if place not in self.tried:
            self.tried[place] = self.problem.score_model(self.probe(self.at(place)))
        return self.tried[place]

    def best(self, trials: int = TRIALS) -> tuple[Score, list[Rung]]:
        """The best of so many places, from equal errors and from the least sum of errors."""
        # The lowest rungs of at most one error for all, and those of least `error + price · size`.
        alike = lambda rungs, most: next(
            (k for k, r in enumerate(rungs) if r.error <= most), len(rungs) - 1
        )
        cheap = lambda rungs, price: int(np.argmin([r.error + price * r.size for r in rungs]))
        starts = [self.fill(self._by(pick)) for pick in (alike, cheap)]
        place = self._climb(max(starts, key=self.score), trials)
        while export.stored_bytes(self.build(self.at(place))) > self.problem.limit:
            place = self._down(place)  # sizes add up but for the padding of a coding
        return self.score(place), self.at(place)

    def fill(self, place: tuple[int, ...]) -> tuple[int, ...]:
        """Spend what is left of the budget where a byte takes most error away."""
        while True:
            gains = []
            for i, rungs in enumerate(self.rungs):
                here = rungs[place[i]]
                for k in range(place[i] + 1, len(rungs)):
                    moved = _replaced(place, i, k)
                    if not self.fits(moved):
                        break
                    slope = (here.error - rungs[k].error) / max(rungs[k].size - here.size, 1)
                    gains.append((slope, moved))
            if not gains:
                return place
            place = max(gains)[1]

    def _by(self, pick: Callable[[list[Rung], float], int]) -> tuple[int, ...]:
        """The place that fits at the least price, where `pick` goes up as the price falls."""
        place = lambda level: tuple(pick(rungs, float(np.exp(-level))) for rungs in self.rungs)
        return place(largest(-10.0, 60.0, lambda level: self.fits(place(level)), 1e-13))

    def _climb(self, place: tuple[int, ...], trials: int) -> tuple[int, ...]:
        """Give the bytes of one layer to another while that helps."""
        pairs = list(itertools.permutations(range(len(place)), 2))
        for step in STEPS:
            better = True
            while better:
                better = False
                for i, j in pairs:
                    moved = self._move(place, i, j, step)
                    if moved is None or len(self.tried) >= trials:
                        continue
                    if self.score(moved) > self.score(place):
                        place, better = moved, True
        return place

    def _move(self, place: tuple[int, ...], i: int, j: int, step: int) -> tuple[int, ...] | None:
        if place[i] < step:
            return None
        down = _replaced(place, i, place[i] - step)
        ups = (_replaced(down, j, k) for k in range(len(self.rungs[j]) - 1, place[j], -1))
        return next((up for up in ups if self.fits(up)), None)

    def _down(self, place: tuple[int, ...]) -> tuple[int, ...]:
        """One rung lower where that costs least."""
        lower = [_replaced(place, i, k - 1) for i, k in enumerate(place) if k]
        return min(lower, key=lambda p: sum(rung.error for rung in self.at(p)))


def divided(
    problem: Problem, ladders: Iterable[tuple[str, list[list[Rung]]]], trials: int,
    build: Callable[[list[Rung]], Any], probe: Callable[[list[Rung]], Any] | None = None,
) -> tuple[Score, list[Rung], str, int]:  # fmt: skip
    """The best split of several named sets of ladders, its name, and how many were tried."""
    found, tried = [], 0
    for name, rungs in ladders:
        one = Ladders(problem, rungs, build, probe)
        found.append((*one.best(trials), name))
        tried += len(one.tried)
    return *max(found, key=lambda best: best[0]), tried


def _replaced(place: tuple[int, ...], i: int, k: int) -> tuple[int, ...]:
    return (*place[:i], k, *place[i + 1 :])
