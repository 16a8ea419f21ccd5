"""The shapes of a tensor train in a file: a few numbers for all cores."""

from typing import Any

from koopjax.export._claims import LAYERS_LIMIT, count, sizes


def train_node(operator: Any) -> list[Any]:
    """`[d, row modes, column modes, inner ranks]` of a TT operator, equal numbers as one.

    Column modes with all outputs in one core are `[k, q]`, `k` negative: counted from the end.
    """
    rows, columns = operator.modes
    d = len(rows)
    at = max(range(d), key=lambda k: columns[k])
    single = d > 2 and all(c == 1 for k, c in enumerate(columns) if k != at)
    shorter = [at - d, columns[at]] if single else _run(columns)
    return [d, _run(rows), shorter, _run(operator.ranks[1:-1])]


def train_shapes(node: Any) -> list[tuple[int, int, int, int]]:
    """The shapes of the cores of a node: the reverse of `train_node`."""
    d, rows, columns, ranks = node
    count(d, "number of cores", LAYERS_LIMIT)
    if isinstance(columns, list) and len(columns) == 2 and columns[0] < 0:
        at, q = columns
        columns = [1] * d
        columns[at] = q
    rows, columns = _spread(rows, d), _spread(columns, d)
    ranks = [1, *_spread(ranks, d - 1), 1]
    return [(ranks[k], rows[k], columns[k], ranks[k + 1]) for k in range(d)]


def _run(numbers: Any) -> Any:
    """Equal numbers as that number, others as a list."""
    numbers = [int(n) for n in numbers]
    return numbers[0] if numbers and len(set(numbers)) == 1 else numbers


def _spread(run: Any, number: int) -> list[int]:
    return sizes([run] * number if isinstance(run, int) else run, LAYERS_LIMIT, "sizes of cores")
