"""Orders of contraction for TT matrices: what is merged first, from which side, at what cost.

All is decided from static shapes, so it costs nothing at run time. The model of the time is

    seconds = STEP · steps + Σ_products flops / (RATE · rows / (rows + ROWS)) + MOVE · numbers

with `rows` those of each matrix product (a product with one row runs at the speed of memory) and
`numbers` what is written besides the results of products. The constants are of two cores of a
server CPU in float32; on other machines their proportions matter, and `nn.tune` measures instead.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

from koopjax._core import as_whole, expected
from koopjax.tt._checks import check_modes

STEP = 0.6e-6  # one operation that waits for the one before
RATE = 60e9  # large products
ROWS = 12  # of a product that reaches half that rate
MOVE = 0.25e-9  # one number written and read
LOOP = 0.5e-6  # one turn of a scan, on top of its operations

FORMS = ("auto", "chain", "grouped", "dense", "scan", "tree")
SCAN_FROM = 32  # cores from which an unrolled chain takes too long to compile
MERGED_MAX = 2**22  # numbers in a merged core
RUN_MAX = 12  # cores in a run that is merged

Group = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class ContractionOrder:
    """How a TT matrix is applied.

    Attributes:
        form: `"chain"` (core by core), `"grouped"` (runs of cores merged first), `"dense"` (all
            of them), `"scan"` (a loop over padded cores), `"tree"` (pairwise products).
        groups: runs of cores `(start, stop)` that are merged before they meet the input.
        middle: the run where the two sides meet; runs before it are applied from the left, those
            behind it from the right.
        flops: operations of the products (two a multiplication).
        steps: operations that wait for one another.
        seconds: what the model of this module expects.
    """

    form: str
    groups: tuple[Group, ...]
    middle: int
    flops: int
    steps: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class _Cost:
    flops: int = 0
    steps: int = 0
    seconds: float = 0.0

    def __add__(self, other: "_Cost") -> "_Cost":
        return _Cost(
            self.flops + other.flops, self.steps + other.steps, self.seconds + other.seconds
        )


_Found = tuple[_Cost, tuple[Group, ...]]


def product_cost(rows: int, inner: int, out: int, moved: int = 0, steps: int = 1) -> _Cost:
    """The cost of one product `(rows, inner) @ (inner, out)` by the model above."""
    flops = 2 * rows * inner * out
    speed = RATE * rows / (rows + ROWS)
    return _Cost(flops, steps, STEP * steps + flops / speed + MOVE * moved)


class Shapes:
    """Ranks and modes of a TT matrix, and what follows from them."""

    def __init__(self, ranks: Sequence[int], rows: Sequence[int], columns: Sequence[int]):
        self.ranks, self.rows, self.columns = tuple(ranks), tuple(rows), tuple(columns)
        self.order = len(self.rows)
        self._merges: dict[Group, tuple[_Cost, int]] = {}

    @functools.cached_property
    def mirrored(self) -> "Shapes":
        """The same from right to left."""
        return Shapes(self.ranks[::-1], self.rows[::-1], self.columns[::-1])

    def m(self, i: int, j: int) -> int:
        """Rows of the run of cores `i` to `j - 1`."""
        return math.prod(self.rows[i:j])

    def c(self, i: int, j: int) -> int:
        """Columns of that run."""
        return math.prod(self.columns[i:j])

    def size(self, i: int, j: int) -> int:
        """Numbers in the merged core of that run."""
        return self.ranks[i] * self.m(i, j) * self.c(i, j) * self.ranks[j]

    def merge(self, i: int, j: int) -> tuple[_Cost, int]:
        """The cheapest way to merge a run: its cost, and where it is cut first."""
        if j - i == 1:
            return _Cost(), i
        if (i, j) not in self._merges:
            best: tuple[_Cost, int] | None = None
            for k in range(i + 1, j):
                left = self.ranks[i] * self.m(i, k) * self.c(i, k)
                right = self.m(k, j) * self.c(k, j) * self.ranks[j]
                moved = left * right if max(self.columns[k:j]) > 1 else 0
                cost = product_cost(left, self.ranks[k], right, moved)
                cost = cost + self.merge(i, k)[0] + self.merge(k, j)[0]
                if best is None or cost.seconds < best[0].seconds:
                    best = cost, k
            assert best is not None
            self._merges[i, j] = best
        return self._merges[i, j]


# Kinds of input: what it costs to apply a run from the left and in the middle; from the right it is
# the run of the mirrored matrix from the left.


def _lifted(s: Shapes, n: int, i: int, j: int) -> _Cost:
    """The merged factors of a run: outer products."""
    if j - i == 1:
        return _Cost()
    return _Cost(0, j - i - 1, STEP * (j - i - 1) + MOVE * n * s.m(i, j))


def _product_left(s: Shapes, n: int, i: int, j: int) -> _Cost:
    done, out = s.c(0, i), s.c(i, j) * s.ranks[j]
    inner = s.ranks[i] * s.m(i, j)
    return product_cost(n * done, inner, out, n * done * inner, 2) + _lifted(s, n, i, j)


def _product_middle(s: Shapes, n: int, i: int, j: int) -> _Cost:
    cost = _product_left(s, n, i, j)
    if j == s.order:
        return cost
    meeting = s.c(0, s.order) * s.ranks[j]
    return cost + _Cost(2 * n * meeting, 1, STEP + MOVE * n * 2 * meeting)


def _vector_left(s: Shapes, n: int, i: int, j: int) -> _Cost:
    rest, done = s.m(j, s.order), s.c(0, i)
    inner, out = s.ranks[i] * s.m(i, j), s.c(i, j) * s.ranks[j]
    rows = n * done * rest
    moved = rows * (inner + out) if rest > 1 or done > 1 else 0
    return product_cost(rows, inner, out, moved)


def _vector_middle(s: Shapes, n: int, i: int, j: int) -> _Cost:
    """For vectors the last run of either direction; a meeting in the middle gains nothing."""
    if j == s.order:
        return _vector_left(s, n, i, j)
    return _vector_left(s.mirrored, n, s.order - j, s.order - i)


_KINDS = {
    "product": (_product_left, _product_middle),
    "vector": (_vector_left, _vector_middle),
}


def contraction_order(
    ranks: Sequence[int],
    row_modes: Sequence[int],
    column_modes: Sequence[int],
    n: int,
    *,
    kind: str = "product",
    form: str = "auto",
) -> ContractionOrder:
    """The cheapest way to apply a TT matrix to `n` samples, from its shapes alone.

    Runs of neighbouring cores may be merged first (which costs nothing a sample: worth it for
    large batches and small modes), then runs meet the input from the left and from the right. The
    cost is a sum over runs, so dynamic programming over all partitions finds the least; merging
    all is the dense matrix, merging none the plain chain.

    Args:
        ranks: `d + 1` ranks of the matrix.
        row_modes: `d` row modes.
        column_modes: `d` column modes.
        n: samples.
        kind: `"product"` where each sample is a rank-one tensor given by its factors, `"vector"`
            where it is a plain vector of width `∏ row_modes`.
        form: one of `FORMS` to force, `"auto"` for the least expected time. `"scan"` and `"tree"`
            are for products with all columns in one core.

    Returns:
        The order, its operations, steps and expected seconds.

    Example:
        >>> contraction_order((1, 16, 16, 16, 1), (7, 4, 7, 4), (5, 5, 5, 5), 1, kind="vector").form
        'grouped'
    """
    if form not in FORMS:
        raise expected(f"a form among {list(FORMS)}", repr(form))
    if not isinstance(kind, str) or kind not in _KINDS:
        raise expected(f"a kind among {sorted(_KINDS)}", repr(kind))
    ranks = check_modes(ranks, "ranks")
    rows, columns = check_modes(row_modes, "row_modes"), check_modes(column_modes, "column_modes")
    if not len(ranks) - 1 == len(rows) == len(columns):
        got = f"{len(ranks)}, {len(rows)} and {len(columns)}"
        raise expected("d + 1 ranks, d row modes and d column modes", got)
    return _decide(ranks, rows, columns, max(1, as_whole("n", n, 0)), kind, form)


def order_for(matrix: Any, n: int, *, kind: str = "product", form: str = "auto") -> Any:
    """`contraction_order` of a `TTMatrix`."""
    return contraction_order(
        matrix.ranks, matrix.row_modes, matrix.column_modes, n, kind=kind, form=form
    )


@functools.lru_cache(maxsize=4096)
def _decide(
    ranks: tuple[int, ...],
    rows: tuple[int, ...],
    columns: tuple[int, ...],
    n: int,
    kind: str,
    form: str,
) -> ContractionOrder:
    s = Shapes(ranks, rows, columns)
    single = sum(c > 1 for c in columns) <= 1
    if form in ("scan", "tree"):
        if kind != "product" or not single:
            raise expected(
                f"a product dictionary and all outputs in one core for form {form!r}",
                f"{kind} input and column modes {columns}",
                'form="auto"',
            )
        return _padded(s, n, form)
    long = s.order >= SCAN_FROM
    if form != "auto":
        return _partition(s, n, kind, form)
    found = [] if long and single and kind == "product" else [_partition(s, n, kind, "grouped")]
    if kind == "product" and single:
        found += [_padded(s, n, "scan"), _padded(s, n, "tree")] if long else []
    return min(found, key=lambda order: order.seconds)


def _padded(s: Shapes, n: int, form: str) -> ContractionOrder:
    """Scan and tree over cores padded to the largest: cost and place of the outputs."""
    at = output_core(s.columns)
    d, r, m = s.order - 1, max(s.ranks), max(s.rows)
    last = _product_middle(s, n, at, at + 1)
    if form == "scan":
        cost = _Cost()
        for _ in range(d):
            cost = cost + product_cost(n, r * m, r, n * r * m, 2) + _Cost(0, 0, LOOP)
    else:
        cost = product_cost(n, m, d * r * r, n * d * r * r)
        levels = max(1, math.ceil(math.log2(max(2, d))))
        flops = 2 * n * d * r**3
        # many small products at once reach a fraction of the rate of one large
        cost = cost + _Cost(flops, levels, STEP * levels + 8 * flops / RATE)
    cost = cost + last
    groups = tuple((k, k + 1) for k in range(s.order))
    return ContractionOrder(form, groups, at, cost.flops, cost.steps, cost.seconds)


def output_core(columns: Sequence[int]) -> int:
    """Where the outputs are: the core with the most columns, the first of equals."""
    return max(range(len(columns)), key=lambda k: columns[k])


def _partition(s: Shapes, n: int, kind: str, form: str) -> ContractionOrder:
    """The best runs and their middle by dynamic programming."""
    left, middle = _KINDS[kind]
    d, at = s.order, output_core(s.columns)
    single = sum(c > 1 for c in s.columns) <= 1

    def allowed(i: int, j: int) -> bool:
        if form == "dense":
            return (i, j) == (0, d)
        if form == "chain":
            return j - i == 1
        return j - i == 1 or (j - i <= RUN_MAX and s.size(i, j) <= MERGED_MAX)

    def least(found: list[_Found]) -> _Found | None:
        return min(found, key=lambda one: one[0].seconds, default=None)

    def sides(shapes: Shapes, mirrored: bool) -> list[_Found | None]:
        """The cheapest way over each prefix, with its runs; seen from the other end, suffixes."""
        best: list[_Found | None] = [(_Cost(), ())]
        for j in range(1, d + 1):
            found = []
            for i in range(0 if form == "dense" else max(0, j - RUN_MAX), j):
                run, before = (d - j, d - i) if mirrored else (i, j), best[i]
                if before is None or not allowed(*run):
                    continue
                cost = before[0] + left(shapes, n, i, j) + s.merge(*run)[0]
                found.append((cost, (*before[1], run)))
            best.append(least(found))
        return best

    prefix, suffix, found = sides(s, False), sides(s.mirrored, True), []
    for i in range(d):
        for j in range(i + 1, d + 1):
            before, after = prefix[i], suffix[d - j]
            if not allowed(i, j) or before is None or after is None:
                continue
            if kind == "vector" and i > 0 and j < d:
                continue
            if kind == "product" and single and not i <= at < j:
                continue
            total = before[0] + after[0] + middle(s, n, i, j) + s.merge(i, j)[0]
            found.append((total, (*before[1], (i, j), *after[1][::-1]), len(before[1])))
    total, groups, place = min(found, key=lambda one: one[0].seconds)
    name = "dense" if len(groups) == 1 else "chain" if len(groups) == d else "grouped"
    return ContractionOrder(name, groups, place, total.flops, total.steps, total.seconds)
