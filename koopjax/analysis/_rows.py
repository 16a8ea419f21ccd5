"""Rows of figures, one a replacement of a span: the least, in words, in columns, over seeds.

A row is what `Rung.to_dict` gives. Those of tensor trains have a `degree` besides.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from koopjax._core import aligned, expected, read_numbers

Row = dict[str, Any]

# 95 % quantiles of Student's t for 1, 2, ... degrees of freedom; beyond, the normal one corrected.
_T95 = (
    6.314, 2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860, 1.833, 1.812, 1.796, 1.782, 1.771,
    1.761, 1.753, 1.746, 1.740, 1.734, 1.729, 1.725, 1.721, 1.717, 1.714, 1.711, 1.708, 1.706,
    1.703, 1.701, 1.699, 1.697,
)  # fmt: skip
_SPREAD = ("accuracy", "agreement", "kl", "r2")
_MEANS = (*_SPREAD, "numbers", "stored_bytes", "condition")


def key_of(row: Row) -> tuple[str, int | None, str]:
    """What tells rows apart: dictionary, rank, truncation."""
    return row["dictionary"], row["rank"], row["truncation"]


def name_of(row: Row) -> str:
    """Readable, such as `degree 2 at rank 9`."""
    if row["rank"] is None:
        return row["dictionary"]
    plain = " (plain SVD)" if row["truncation"] == "svd" else ""
    return f"{row['dictionary']} at rank {row['rank']}{plain}"


def find(
    rows: Sequence[Row], dictionary: str, rank: int | None, truncation: str | None = None
) -> int:
    """Where a row stands; cut in the output's metric if a rank but no truncation is given."""
    kind = ("none" if rank is None else "output") if truncation is None else truncation
    keys = [key_of(row) for row in rows]
    if (dictionary, rank, kind) not in keys:
        names = ", ".join(repr(name) for name in dict.fromkeys(key[0] for key in keys))
        got = f"{dictionary!r}, rank {rank}, truncation {kind!r}"
        raise expected(f"a rung among {names} with one of the ladder's ranks", got)
    return keys.index((dictionary, rank, kind))


def least(
    rows: Sequence[Row], original: Row, tolerance: float, measure: str = "loss"
) -> Row | None:
    """The row of fewest numbers (of tensor trains: least degree, then rank) within a tolerance.

    The loss is that of accuracy, without labels of agreement. Rows that map to the output replace
    more than the span and stay out.
    """

    def lost(row: Row) -> float:
        if measure in row:
            return row[measure]
        whole = original["accuracy"]
        return 1 - row["agreement"] if whole is None else whole - row["accuracy"]

    inside = [row for row in rows if row["target"] == "state" and lost(row) <= tolerance]
    order = lambda row: (row["degree"], row["rank"]) if "degree" in row else (row["numbers"],)
    return min(inside, key=order, default=None)


def sentence(
    rows: Sequence[Row], original: Row, span: Sequence[str], tolerance: float, measure: str = "loss"
) -> str:
    """The `least` row in one sentence, or the nearest where none is within the tolerance."""
    found, latent = least(rows, original, tolerance, measure), rows[0].get("latent")
    what = "agreement" if original["accuracy"] is None else "accuracy"
    # For a regression both are R².
    named = what if original.get("task", "classification") == "classification" else _R2[what]
    seeds = len(original.get("accuracies", ()))

    def shown(row: Row) -> str:
        return f"{row[what]:.4f}" + (f" ± {row[f'{what}_std']:.4f}" if seeds > 1 else "")

    def name(row: Row) -> str:
        if latent is None:
            return name_of(row)
        return f"degree {row['degree']} at tensor-train rank {row['rank']}"

    over = [] if latent is None else [f"{latent} latent coordinates"]
    over += [f"{seeds} seeds"] if seeds > 1 else []
    text = f"From {span[0]!r} to {span[1]!r}" + (f" over {' and '.join(over)}" if over else "")
    if found is None:
        kind = "rung" if latent is None else "tensor train"
        best = max(rows, key=lambda row: row[what])
        return (
            f"{text}, no {kind} stays within {tolerance:g} of the original; the nearest is "
            f"{name(best)} with {named} {shown(best)}."
        )
    against = "" if what == "agreement" else f" against {shown(original)}"
    return (
        f"{text}, {name(found)} is enough to stay within {tolerance:g}: {named} "
        f"{shown(found)}{against}, {round(found['numbers']):,} numbers."
    )


_R2 = {"accuracy": "R² against the labels", "agreement": "agreement (R²)"}
_COLUMNS = ("accuracy", "agreement", "kl", "r2", "numbers", "stored_bytes")


def _cell(row: Row, column: str) -> str:
    value = row.get(column)
    if value is None:
        return "-"
    if column in ("numbers", "stored_bytes"):
        return f"{round(value):,}"
    spread = row.get(f"{column}_std")
    return f"{value:.4f}" + ("" if spread is None else f" ± {spread:.4f}")


def table(rows: Sequence[Row]) -> str:
    """Rows as aligned text."""
    lines = [["dictionary", "rank", "truncation", *_COLUMNS, "note"]]
    for row in rows:
        note = "" if row["message"] == "success" else row["message"].split(",")[0].split(".")[0]
        rank = "full" if row["rank"] is None else str(row["rank"])
        cells = [_cell(row, column) for column in _COLUMNS]
        lines.append([row["dictionary"], rank, row["truncation"], *cells, note])
    return aligned(lines, left=(0, 2, len(lines[0]) - 1))


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


def moments(name: str, values: Sequence[Any]) -> dict[str, Any]:
    """Mean and sample standard deviation (0 for one value) under a name and `..._std`.

    Values may be lists of numbers, which are taken together place by place.
    """
    array = np.asarray(values, np.float64)
    spread = array.std(axis=0, ddof=1) if len(array) > 1 else np.zeros(array.shape[1:])
    return {name: array.mean(axis=0).tolist(), f"{name}_std": spread.tolist()}


def originals(dicts: Sequence[Row], what: str) -> Row:
    """The original over seeds: mean and spread of the accuracies, which are listed too."""
    if not dicts:
        raise expected(f"at least one {what}", "none")
    accuracies = [found["original"]["accuracy"] for found in dicts]
    labelled = accuracies[0] is not None
    if any((a is not None) is not labelled for a in accuracies):
        raise expected(f"{what}s that all have labels, or none", "some of each")
    mean = moments("accuracy", accuracies) if labelled else {"accuracy_std": None}
    return {**dicts[0]["original"], **mean, "accuracies": accuracies}


def over_seeds(tables: Sequence[Sequence[Row]], accuracies: Sequence[Any]) -> list[Row]:
    """Rows that all seeds have: means, spreads, the paired loss against each seed's original."""
    by_key = [{key_of(row): row for row in rows} for rows in tables]
    common = [key for key in by_key[0] if all(key in known for known in by_key)]
    return [_merged([known[key] for known in by_key], accuracies) for key in common]


def _merged(rows: list[Row], accuracies: Sequence[Any]) -> Row:
    merged = dict(rows[0])
    for name in _MEANS:
        # Bytes may have been measured for some seeds only: they depend on shapes, hardly on values.
        values = [row[name] for row in rows if row[name] is not None]
        mean = moments(name, values) if values else {name: None}
        merged.update(mean if name in _SPREAD else {name: mean[name]})
    gravest = max(rows, key=lambda row: row["result"])
    merged["result"], merged["message"] = gravest["result"], gravest["message"]
    if merged["accuracy"] is not None:
        merged["accuracies"] = [row["accuracy"] for row in rows]
        losses = [whole - row["accuracy"] for whole, row in zip(accuracies, rows, strict=True)]
    else:
        losses = [1 - row["agreement"] for row in rows]
    _, lower, upper = one_sided(losses)
    return {**merged, **moments("loss", losses), "loss_lower": lower, "loss_upper": upper}
