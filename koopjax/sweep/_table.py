"""The result of a sweep: a row a point, to look at, to choose from, to write down."""

import csv
import dataclasses
import io
import json
import math
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Shaped

from koopjax._core import (
    aligned,
    check_number,
    existing,
    expected,
    plain,
    read_json,
    write_whole,
)

SHOWN = 40
DIRECTIONS = ("minimum", "maximum")


@dataclasses.dataclass(frozen=True)
class Pivot:
    """A column of a table over the plane of two others; `np.asarray` gives its values.

    Attributes:
        values: `(rows, columns)`, NaN where the table has no such point.
        rows: values of the first axis, in the order of the table.
        columns: values of the second.
    """

    values: np.ndarray
    rows: tuple[Any, ...]
    columns: tuple[Any, ...]

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        """The values, for NumPy."""
        return np.array(self.values, dtype=dtype, copy=copy)

    @property
    def shape(self) -> tuple[int, int]:
        """Of the values."""
        return len(self.rows), len(self.columns)


def _written(text: str, path: str | os.PathLike[str] | None) -> str:
    """The text, in a file too where one is named."""
    if path is not None:
        target = pathlib.Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_whole(target, text.encode())
    return text


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return "" if value is None else str(value)


@dataclasses.dataclass(frozen=True)
class Table:
    """A row for each point of a sweep: its place on the axes, then what was computed there.

    Attributes:
        rows: dicts of Python's own values, in the order of the points.
        axes: names of the columns that are axes.
        arrays: outputs that are not scalars, name to one entry a row.

    Example:
        >>> table = Table([{"rank": 1, "error": 0.5}, {"rank": 2, "error": 0.1}], ("rank",))
        >>> table.best("error", "minimum")["rank"]
        2
        >>> print(table)
        rank  error
           1    0.5
           2    0.1
    """

    rows: list[dict[str, Any]]
    axes: tuple[str, ...] = ()
    arrays: dict[str, list[Any]] = dataclasses.field(default_factory=dict)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of all columns, the axes first."""
        names = dict.fromkeys(self.axes)
        for row in self.rows:
            names.update(dict.fromkeys(row))
        return tuple(names)

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Over the rows."""
        return iter(self.rows)

    def __getitem__(self, name: str) -> Shaped[np.ndarray, " rows"]:
        """A column as an array."""
        self._check(name)
        return np.asarray([row.get(name) for row in self.rows])

    def _check(self, *names: str) -> None:
        for name in names:
            if name not in self.columns:
                raise expected(f"a column among {list(self.columns)}", repr(name))

    def where(self, **values: Any) -> "Table":
        """The rows with these values, `table.where(degree=2)`."""
        self._check(*values)
        for name, value in values.items():
            if np.ndim(value) or np.ma.is_masked(value):
                raise expected(f"one value of {name}", f"{value!r:.60}")
        fits = lambda row: all(row.get(name) == value for name, value in values.items())
        kept = [i for i, row in enumerate(self.rows) if fits(row)]
        arrays = {name: [entries[i] for i in kept] for name, entries in self.arrays.items()}
        return Table([self.rows[i] for i in kept], self.axes, arrays)

    def best(
        self,
        column: str,
        direction: str = "minimum",
        *,
        within: float | None = None,
        least: str | Sequence[str] = (),
    ) -> dict[str, Any]:
        """The row with the least or the largest value; or the cheapest row that is close to it.

        Args:
            column: to judge by; rows where it is NaN are passed over.
            direction: "minimum" or "maximum".
            within: how far from the best value a row may be, absolute; needs `least`.
            least: column or columns (the first counts most) that are to be as small as possible
                among the rows within that distance, such as "numbers".

        Returns:
            The row; the first of equals.

        Raises:
            ValueError: an unknown column or direction, or no finite value.
        """
        if not isinstance(least, Sequence):
            raise expected("a column or columns as least", f"{least!r:.60}", "least='numbers'")
        wanted = (least,) if isinstance(least, str) else tuple(least)
        self._check(column, *wanted)
        if direction not in DIRECTIONS:
            raise expected(f"a direction in {DIRECTIONS}", repr(direction))
        if (within is not None) != bool(wanted):
            raise expected("within= and least= together", "one of them", "least='numbers'")
        if within is not None:
            check_number("the distance within=", within)
        sign = 1 if direction == "minimum" else -1
        values = [(row, row.get(column)) for row in self.rows]
        sound = [(row, sign * v) for row, v in values if v is not None and not math.isnan(v)]
        if not sound:
            raise expected(f"a number in column {column!r}", "NaN in every row")
        top = min(value for _, value in sound)
        if within is None:
            return next(row for row, value in sound if value == top)
        # Slack for rounding, so that 0.88 is within 0.02 of 0.90.
        slack = 1e-12 * max(abs(top), within)
        near = [row for row, value in sound if value - top <= within + slack]
        return min(near, key=lambda row: tuple(row[name] for name in wanted))

    def mean_over(self, axis: str) -> "Table":
        """Mean and standard deviation over an axis, such as the seeds.

        Args:
            axis: the axis that goes; rows that agree on all others are taken together.

        Returns:
            Table: each number's mean under its name, its standard deviation (with n - 1; NaN for
            one row) under the name with `_std`, the number of rows as `count`; of whole-numbered
            `result` codes the gravest. Arrays are left out.
        """
        if axis not in self.axes:
            raise expected(f"an axis among {list(self.axes)}", repr(axis))
        others = tuple(name for name in self.axes if name != axis)
        groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
        for row in self.rows:
            groups.setdefault(tuple(row[name] for name in others), []).append(row)
        rows = []
        for place, members in groups.items():
            out: dict[str, Any] = dict(zip(others, place, strict=True))
            for name in self.columns:
                if name not in self.axes and name != "result":
                    out.update(_spread(name, [row.get(name) for row in members]))
            if all("result" in row for row in members):
                out["result"] = max(row["result"] for row in members)
            rows.append({**out, "count": len(members)})
        return Table(rows, others)

    def pivot(self, rows: str, columns: str, values: str) -> Pivot:
        """A column over the plane of two others.

        Args:
            rows, columns: what runs down and across.
            values: what stands in the cells.

        Raises:
            ValueError: an unknown column, or several rows for one cell.
        """
        self._check(rows, columns, values)
        cells: dict[tuple[Any, Any], Any] = {}
        for row in self.rows:
            place = row[rows], row[columns]
            if place in cells:
                raise expected(
                    f"one row for each ({rows}, {columns})",
                    f"several at {place}",
                    "table.mean_over(axis) or table.where(axis=value) first",
                )
            cells[place] = row.get(values)
        down, across = (tuple(dict.fromkeys(place[side] for place in cells)) for side in (0, 1))
        plane = np.array([[cells.get((d, a)) for a in across] for d in down], np.float64)
        return Pivot(plane.reshape(len(down), len(across)), down, across)

    def to_dict(self, *, arrays: bool = False) -> dict[str, Any]:
        """Plain values, for JSON; None where a number is NaN or infinite.

        Args:
            arrays: whether outputs that are not scalars come along, as nested lists.
        """
        out: dict[str, Any] = {
            "axes": list(self.axes),
            "columns": list(self.columns),
            "rows": plain(self.rows),
        }
        return {**out, "arrays": jax.tree.map(plain, self.arrays)} if arrays else out

    def to_json(self, path: str | os.PathLike[str] | None = None, *, arrays: bool = False) -> str:
        """The table as JSON text, written to a file where one is named; returns the text."""
        text = json.dumps(self.to_dict(arrays=arrays), indent=1, allow_nan=False) + "\n"
        return _written(text, path)

    def to_csv(self, path: str | os.PathLike[str] | None = None) -> str:
        """The table as comma-separated text, written to a file where one is named."""
        out = io.StringIO()
        writer = csv.DictWriter(out, self.columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return _written(out.getvalue(), path)

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> "Table":
        """The table that `to_json` wrote (numbers that were NaN as NaN)."""
        read = read_json("a table", existing("a table that to_json wrote", path))
        known = isinstance(read, dict) and {"axes", "columns", "rows"} <= set(read)
        lists = known and all(isinstance(read[name], list) for name in ("axes", "rows"))
        if not lists or not all(isinstance(row, dict) for row in read["rows"]):
            raise expected("a table that to_json wrote", f"{path} with other content")
        rows = [
            {k: math.nan if v is None and k not in read["axes"] else v for k, v in row.items()}
            for row in read["rows"]
        ]
        return cls(rows, tuple(read["axes"]), read.get("arrays", {}))

    def __str__(self) -> str:
        """Aligned columns; the middle of a long table left out."""
        names = self.columns
        shown = [[_shown(row.get(name)) for name in names] for row in self.rows]
        if len(shown) > SHOWN:
            half = SHOWN // 2
            shown = [*shown[:half], ["..."] * len(names), *shown[-half:]]
        return aligned([names, *shown])


@dataclasses.dataclass(frozen=True)
class RankTable(Table):
    """A table over ranks, with the fits."""

    def fit(self, rank: int, alpha: float | None = None) -> Any:
        """One of the fits.

        Args:
            rank: its rank.
            alpha: its ridge; may be left out where there is one.
        """
        raise NotImplementedError


def _spread(name: str, values: list[Any]) -> dict[str, Any]:
    """Mean and standard deviation of a column; the common value of one that holds no numbers."""
    if not all(isinstance(v, int | float) for v in values):
        return {name: values[0]} if len({str(v) for v in values}) == 1 else {}
    numbers = np.asarray(values, np.float64)
    spread = float(np.std(numbers, ddof=1)) if len(values) > 1 else math.nan
    return {name: float(np.mean(numbers)), f"{name}_std": spread}
