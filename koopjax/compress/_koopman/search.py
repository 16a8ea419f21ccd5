"""The search for projection, dictionary, rank and ridge within a number of bytes."""

import dataclasses
import math
import time

import numpy as np
from jaxtyping import Float, Int

from koopjax._core import ridge_solve, semidefinite_root
from koopjax.compress._koopman.block import (
    Directions,
    Setting,
    active,
    array_bytes,
    entries,
    most_observables,
    of_pilot,
    product_factors,
    products,
    read_from,
)
from koopjax.compress._koopman.span import ROWS, Span
from koopjax.compress._problem import Score
from koopjax.compress.gram._select import backward

#: Samples an observable in the search, and the least number of them.
PER_OBSERVABLE, FEWEST = 20, 6_000
#: Most coordinates: their quadratic dictionary has a thousand products.
MOST_COORDINATES = 44
#: Ridges tried, relative to the number of samples (the products have about unit variance).
RIDGES = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1)
#: Coordinates tried, as multiples of those whose products all have room.
FACTORS = (1.2, 1.45, 1.75)
#: Ranks of K tried, as shares of the number of outputs.
RANKS = (0.9, 0.8, 0.6)


@dataclasses.dataclass
class Tally:
    """Settings compared so far, and passes left out since some `seconds` (None: any) were over."""

    seconds: float | None = None
    start: float = dataclasses.field(default_factory=time.monotonic)
    tried: int = 0
    skipped: int = 0

    def over(self, need: float = 0.0) -> bool:
        """Whether less than `need` seconds are left."""
        return self.seconds is not None and time.monotonic() - self.start >= self.seconds - need


def search(span: Span, room: int, tally: Tally) -> list[tuple[Score, Setting]]:
    """The best setting of each number of entries that fits into `room` bytes, best first.

    A coarse grid of them with the pilot's directions, the network's own Jacobian directions at the
    best place, then finer steps, cubic products where the coordinates are few, and lower ranks.
    When the time is over, the best so far is returned, of one pass at least.
    """
    state = _Search(span, room, tally)
    mean, covariance = span.moments
    most = state.most_coordinates()
    first = active(covariance, span.slopes(ROWS), min(span.d, max(most, 32)))
    pilot = of_pilot(mean, first, span.h[:ROWS], span.y[:ROWS], state.root, most)
    sizes = _sizes(span, room)
    if room >= 1.5 * span.least + 60:  # else another form's header may be more than there is room
        orders = entries(covariance, pilot, min(most, 24), sizes)
        # The likeliest number of entries first, for searches that end early.
        for k in sorted(range(len(orders)), key=lambda k: abs(k - len(orders) // 2)):
            state.attempt(pilot, orders[k], most, 2)
    if not state.by_size:  # room for a line in one entry alone
        state.attempt(pilot, entries(covariance, pilot, 1, [1])[0], 1, 1)
        return state.result()
    best = state.best[1]
    m, r = len(best.kept), best.coordinates
    state.attempt(first, entries(covariance, first, min(most, 24), [m])[0], most, 2)
    chosen = state.best[1].directions
    near = sorted({min(span.d, max(1, round(f * m))) for f in (0.78, 1.0, 1.28)})
    orders = entries(covariance, chosen, r, near)
    ranks = sorted({span.q, *(max(1, math.floor(f * span.q)) for f in RANKS)})
    for kept in orders:
        state.attempt(chosen, kept, most, 2, ranks)
    few = min(state.most_coordinates(3), 12)
    if r <= 10 and few > 1:
        for kept in orders:
            state.attempt(chosen, kept, few, 3)
    return state.result()


def best_ridge(
    span: Span, gram: Float[np.ndarray, "p p"], cross: Float[np.ndarray, "p q"],
    lifted: Float[np.ndarray, "m p"], count: int,
) -> float:  # fmt: skip
    """The ridge of the best score; the largest of those that tie, since noise favours none."""
    scores = []
    for ridge in RIDGES:
        k = ridge_solve(gram, cross, ridge * count)
        scores.append((span.score(lifted @ k.astype(lifted.dtype)), ridge))
    return max(scores)[1]


class _Search:
    """Runs passes over the data and remembers the best setting of each number of entries."""

    def __init__(self, span: Span, limit: int, tally: Tally):
        self.span, self.limit, self.tally = span, limit, tally
        # On the host: every pass has shapes of its own, which would each be compiled for.
        self.rows, self.rows_val = np.asarray(span.h[:ROWS]), np.asarray(span.h_val)
        self.targets = np.asarray(span.y[:ROWS], np.float64)
        self.root = semidefinite_root(span.metric).symmetric
        self.by_size: dict[int, tuple[Score, Setting]] = {}
        self.slowest = 0.0
        self.limited = False

    @property
    def best(self) -> tuple[Score, Setting]:
        """The best of all."""
        return max(self.by_size.values(), key=lambda one: one[0])

    def result(self) -> list[tuple[Score, Setting]]:
        """See `search`."""
        found = sorted(self.by_size.values(), key=lambda one: one[0], reverse=True)
        return [(score, dataclasses.replace(s, limited=self.limited)) for score, s in found]

    def most_coordinates(self, degree: int = 2) -> int:
        """So many coordinates that bytes and samples allow their products."""
        n, most = len(self.rows), min(self.span.d, MOST_COORDINATES)
        while most > 1:
            p = math.comb(most + degree, degree)
            # More products than there is room for leave a choice to the elimination.
            room = 4 * self.span.q * p <= 1.6 * self.limit
            if room and p <= max(n // 2, most + 2):
                break
            self.limited |= room
            most -= 1
        return most

    def attempt(
        self, directions: Directions, kept: Int[np.ndarray, " m"], most: int, degree: int,
        ranks: list[int] | None = None,
    ) -> None:  # fmt: skip
        """A pass over the data, unless time is short; it answers all numbers of coordinates."""
        if self.by_size and self.tally.over(self.slowest):
            self.tally.skipped += 1
            return
        start, span, m = time.monotonic(), self.span, len(kept)
        widest = min(most, math.ceil(FACTORS[-1] * self._whole(m, most, degree, span.q)))
        mean, covariance = span.moments
        full = read_from(covariance, directions, kept)[:, :widest]
        table, shift = product_factors(widest, degree), (mean @ full).astype(np.float32)
        matrix, rows = full.astype(np.float32), max(FEWEST, PER_OBSERVABLE * table.shape[1])
        lift = lambda h: products(h @ matrix - shift, table)
        psi, lifted = lift(self.rows[:rows]).astype(np.float64), lift(self.rows_val)
        gram, cross = psi.T @ psi, psi.T @ self.targets[:rows]
        ridge = best_ridge(span, gram, cross, lifted, len(psi))
        for rank in ranks or [span.q]:
            for r in self._coordinates(m, widest, degree, rank):
                columns = np.flatnonzero(table.max(axis=0) <= r)  # of the leading r alone
                p = most_observables(self.limit, span.d, span.q, m, r, len(columns), rank)
                if p >= 2 and (rank == span.q or rank < p):
                    part = gram[np.ix_(columns, columns)]
                    stay, k = backward(
                        part, cross[columns], [p], ridge * len(psi), (0,), share=0.05
                    )[p]
                    if rank < span.q:
                        k = self._cut(part[np.ix_(stay, stay)], k, rank)
                    score = span.score(lifted[:, columns[stay]] @ k.astype(np.float32))
                    self.tally.tried += 1
                    if m not in self.by_size or score > self.by_size[m][0]:
                        setting = Setting(directions, kept, r, degree, stay, rank, ridge)
                        self.by_size[m] = score, setting
        self.slowest = max(self.slowest, time.monotonic() - start)

    def _whole(self, m: int, most: int, degree: int, rank: int) -> int:
        """So many coordinates as leave room for all their products."""
        totals = {r: math.comb(r + degree, degree) for r in range(1, most + 1)}
        d, q = self.span.d, self.span.q
        fits = lambda r: array_bytes(d, q, m, r, totals[r], totals[r], rank) <= self.limit
        return max((r for r in totals if fits(r)), default=1)

    def _coordinates(self, m: int, most: int, degree: int, rank: int) -> list[int]:
        """As many as leave room for all their products, and some more of which some must go."""
        whole, d, q = self._whole(m, most, degree, rank), self.span.d, self.span.q
        wider = {min(most, math.ceil(factor * whole)) for factor in FACTORS}
        total = lambda r: math.comb(r + degree, degree)
        left = lambda r: most_observables(self.limit, d, q, m, r, total(r), rank)
        return sorted({whole, *(r for r in wider if left(r) > r)})

    def _cut(self, gram: np.ndarray, k: np.ndarray, rank: int) -> np.ndarray:
        """Reduced rank of the prediction in the target's metric."""
        weighted = k @ self.root
        _, vectors = np.linalg.eigh(weighted.T @ gram @ weighted)
        leading = vectors[:, -rank:]
        return weighted @ leading @ leading.T @ np.linalg.inv(self.root)


def _sizes(span: Span, limit: int) -> list[int]:
    """Numbers of entries to try: a geometric grid between what a few coordinates can do with."""
    numbers = max(limit // 4, 1)
    low = min(span.d, max(1, round(math.sqrt(numbers) / 1.5)))
    high = min(span.d, max(low, numbers // 4))
    grid = np.geomspace(low, high, 1 if high == low else 6)
    return sorted({round(float(value)) for value in grid} | {min(low, max(1, numbers // 20))})
