"""The search for projection, dictionary, rank and ridge within a number of bytes."""

import dataclasses
import math
import time
from typing import Any

import numpy as np

from koopjax._core import ridge_solve, semidefinite_root
from koopjax.compress._eliminate import backward
from koopjax.compress._koopman_span import Clock, Found, Span
from koopjax.compress._problem import Problem, Score
from koopjax.compress._projection import (
    Directions,
    Entries,
    Moments,
    active,
    entries,
    moments,
    of_pilot,
    product_factors,
    products,
)
from koopjax.compress._setting import Setting, array_bytes, most_observables

#: Most samples that the search looks at; the last fit takes all.
ROWS = 24_000
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


@dataclasses.dataclass(frozen=True, eq=False)
class _Pass:
    """Statistics of one number of entries: answers all smaller settings by submatrices.

    `last` is the largest index of a coordinate in each product, -1 for the constant.
    """

    entries: Entries
    directions: Directions
    size: int
    coordinates: int
    degree: int
    gram: np.ndarray
    cross: np.ndarray
    lifted_val: np.ndarray
    last: np.ndarray
    count: float
    ridge: float

    def columns(self, coordinates: int) -> np.ndarray:
        """The products of the leading coordinates alone."""
        return np.flatnonzero(self.last < coordinates)


class Search:
    """Runs passes over the data and remembers the best setting seen."""

    def __init__(self, problem: Problem, span: Span, limit: int, clock: Clock):
        self.problem, self.span, self.limit, self.clock = problem, span, limit, clock
        self.h, self.y = span.h[:ROWS], span.y[:ROWS]
        self.rows, self.rows_val = np.asarray(self.h), np.asarray(span.h_val)
        self.targets = np.asarray(self.y, np.float64)
        self.moment = moments(self.h)
        self.root = semidefinite_root(span.metric).symmetric
        self.best: Found | None = None
        self.by_size: dict[int, Found] = {}
        self.tried = self.skipped = 0
        self.slowest = 0.0
        self.limited = False

    def most_coordinates(self, degree: int = 2) -> int:
        """So many coordinates that bytes and samples allow their products."""
        d, q, n = self.span.d, self.span.q, len(self.h)
        most = min(d, MOST_COORDINATES)
        while most > 1:
            p = math.comb(most + degree, degree)
            # More products than there is room for leave a choice to the elimination.
            room = 4 * q * p <= 1.6 * self.limit
            if room and p <= max(n // 2, most + 2):
                break
            self.limited |= room
            most -= 1
        return most

    def attempt(
        self, ent: Entries, directions: Directions, m: int, r: int, degree: int,
        ranks: tuple[int, ...] | None = None,
    ) -> None:  # fmt: skip
        """A pass and what comes out of it, unless the time is too short for one more."""
        if self.best is not None and self.clock.over(self.slowest):
            self.skipped += 1
            return
        start = time.monotonic()
        self.explore(self.run(ent, directions, m, self._wide(m, r, degree), degree), ranks)
        self.slowest = max(self.slowest, time.monotonic() - start)

    def _wide(self, m: int, most: int, degree: int) -> int:
        """So many coordinates as `explore` looks at."""
        return min(most, math.ceil(FACTORS[-1] * self._whole(m, most, degree, self.span.q)))

    def _whole(self, m: int, most: int, degree: int, rank: int) -> int:
        """So many coordinates as leave room for all their products."""
        d, q, whole = self.span.d, self.span.q, 1
        for r in range(1, most + 1):
            total = math.comb(r + degree, degree)
            if array_bytes(d, q, m, r, total, total, rank) <= self.limit:
                whole = r
        return whole

    def run(self, ent: Entries, directions: Directions, m: int, r: int, degree: int) -> _Pass:
        """One pass over the data."""
        full = ent.read(directions, m)[:, :r]
        shift, table = self.moment.mean @ full, product_factors(r, degree)
        rows = max(FEWEST, PER_OBSERVABLE * table.shape[1])
        # On the host: every pass has shapes of its own, which would each be compiled for.
        matrix, shift = full.astype(np.float32), shift.astype(np.float32)
        lift = lambda h: products(h @ matrix - shift, table)
        psi, y = lift(self.rows[:rows]).astype(np.float64), self.targets[:rows]
        gram, cross, lifted = psi.T @ psi, psi.T @ y, lift(self.rows_val)
        ridge = self._best_ridge(gram, cross, lifted, len(psi))
        last = table.max(axis=0) - 1
        return _Pass(
            ent, directions, m, r, degree, gram, cross, lifted, last, len(psi), ridge
        )  # fmt: skip

    def explore(self, done: _Pass, ranks: tuple[int, ...] | None = None) -> None:
        """Try the numbers of coordinates, observables and ranks that fit, from one pass."""
        d, q = self.span.d, self.span.q
        for rank in ranks or (q,):
            for r in self._coordinates(done, rank):
                columns = done.columns(r)
                p = most_observables(self.limit, d, q, done.size, r, len(columns), rank)
                if p >= 2 and (rank == q or rank < p):
                    self._try(done, r, columns, p, rank)

    def _coordinates(self, done: _Pass, rank: int) -> list[int]:
        """As many as leave room for all their products, and some more of which some must go."""
        d, q = self.span.d, self.span.q
        whole = self._whole(done.size, done.coordinates, done.degree, rank)
        out = {whole}
        for factor in FACTORS:
            r = min(done.coordinates, math.ceil(factor * whole))
            total = math.comb(r + done.degree, done.degree)
            p = most_observables(self.limit, d, q, done.size, r, total, rank)
            if p > r:
                out.add(r)
        return sorted(out)

    def _try(self, done: _Pass, r: int, columns: np.ndarray, p: int, rank: int) -> None:
        gram, cross = done.gram[np.ix_(columns, columns)], done.cross[columns]
        stay, k = backward(gram, cross, [p], done.ridge * done.count, (0,), share=0.05)[p]
        own = stay if len(stay) < len(columns) else np.arange(len(columns))
        if rank < self.span.q:
            k = self._cut(gram[np.ix_(stay, stay)], k, rank)
        score = self._score(done.lifted_val[:, columns[stay]], k)
        self.tried += 1
        before = self.by_size.get(done.size)
        if before is None or score > before.score:
            kept = done.entries.kept[done.size]
            setting = Setting(done.directions, kept, r, done.degree, own, rank, done.ridge)
            found = Found(setting, score, self.moment, done.entries, self.tried)
            self.by_size[done.size] = found
            if self.best is None or score > self.best.score:
                self.best = found

    def result(self) -> Found:
        """The best setting, with the account of the search."""
        best = _require(self.best)
        others = sorted(self.by_size.values(), key=lambda f: f.score, reverse=True)
        return dataclasses.replace(
            best, tried=self.tried, limited=self.limited, skipped=self.skipped,
            others=tuple(f for f in others if f is not best),
        )  # fmt: skip

    def _score(self, lifted: np.ndarray, k: np.ndarray) -> Score:
        return self.problem.score(self.span.outputs_of(lifted @ k.astype(np.float32)))

    def _best_ridge(self, gram: np.ndarray, cross: np.ndarray, lifted: Any, count: float) -> float:
        """The ridge of the best score; the largest of those that tie, since noise favours none."""
        scores = []
        for ridge in RIDGES:
            k = ridge_solve(gram, cross, ridge * count)
            scores.append((self._score(lifted, k), ridge))
        return max(scores)[1]

    def _cut(self, gram: np.ndarray, k: np.ndarray, rank: int) -> np.ndarray:
        """Reduced rank of the prediction in the target's metric."""
        weighted = k @ self.root
        _, vectors = np.linalg.eigh(weighted.T @ gram @ weighted)
        leading = vectors[:, -rank:]
        return weighted @ leading @ leading.T @ np.linalg.inv(self.root)


def search(problem: Problem, span: Span, limit: int, clock: Clock | None = None) -> Found:
    """The best setting whose arrays take at most `limit` bytes.

    Coarse grid over the number of entries with the directions of the pilot, the network's own
    Jacobian directions beside it at the best place, then finer steps with an order of entries made
    for the coordinates found, cubic products where the coordinates are few, and lower ranks. When
    the time is over, the best so far is returned, of one pass at least.
    """
    state = Search(problem, span, limit, clock or Clock())
    metric = span.slopes(ROWS)
    most = state.most_coordinates()
    first = active(state.moment, metric, min(span.d, max(most, 32)))
    pilot = of_pilot(state.moment, first, state.h, state.y, span.metric)
    if pilot.matrix.shape[1] < most:  # the pilot's directions first, then the network's
        pilot = _extend(state.moment, pilot, first)
    sizes = _sizes(span, limit)
    ent = entries(state.moment, pilot, min(most, 24), sizes)
    line = span.least
    if limit >= 1.5 * line + 60:  # else another form's header may be more than there is room for
        for m in _middle_first(sizes):
            state.attempt(ent, pilot, m, most, 2)
    if state.best is None:  # room for a line in one entry alone
        ent = entries(state.moment, pilot, 1, [1])
        state.attempt(ent, pilot, 1, 1, 1)
        return state.result()
    best = state.best
    m, r = len(best.setting.kept), best.setting.coordinates
    if first.name != pilot.name:
        ent = entries(state.moment, first, min(most, 24), [m])
        state.attempt(ent, first, m, most, 2)
    chosen = _require(state.best).setting.directions
    near = sorted({min(span.d, max(1, round(f * m))) for f in (0.78, 1.0, 1.28)})
    ent = entries(state.moment, chosen, r, near)
    q = span.q
    ranks = tuple(sorted({q} | {max(1, math.floor(f * q)) for f in RANKS})) if q > 1 else (1,)
    for size in near:
        state.attempt(ent, chosen, size, most, 2, ranks)
    few = min(state.most_coordinates(3), 12)
    if r <= 10 and few > 1:
        for size in near:
            state.attempt(ent, chosen, size, few, 3)
    return state.result()


def _middle_first(sizes: list[int]) -> list[int]:
    """The likeliest number of entries first, for searches that end early."""
    middle = len(sizes) // 2
    return sorted(sizes, key=lambda m: abs(sizes.index(m) - middle))


def _extend(moment: Moments, pilot: Directions, first: Directions) -> Directions:
    """The pilot's coordinates, then what the network's Jacobians see beside them."""
    size = pilot.matrix.shape[1]
    rest = first.matrix[:, size:]
    matrix = np.concatenate([pilot.matrix, rest], axis=1)
    floor = pilot.importance[-1] if size else 1.0
    importance = np.concatenate([pilot.importance, np.full(rest.shape[1], 0.5 * floor)])
    return Directions(pilot.name, matrix, importance)


def _sizes(span: Span, limit: int) -> list[int]:
    """Numbers of entries to try: a geometric grid between what a few coordinates can do with."""
    numbers = max(limit // 4, 1)
    alive = span.d
    low = min(alive, max(1, round(math.sqrt(numbers) / 1.5)))
    high = min(alive, max(low, numbers // 4))
    count = 1 if high == low else 6
    grid = np.geomspace(low, high, count)
    return sorted({round(float(value)) for value in grid} | {min(low, max(1, numbers // 20))})


def _require(found: Found | None) -> Found:
    if found is None:
        raise AssertionError("the smallest form fits but no setting was tried")
    return found
