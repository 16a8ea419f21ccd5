"""Figures drawn from the dictionary that is written as results.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from koopjax._core import expected
from koopjax.plot import _pareto, _trains
from koopjax.plot._arrays import confusion, disagreements, singular_values
from koopjax.plot._style import GRID, INK, MUTED, colour, new_figure, style

Row = Mapping[str, Any]


def _spread(row: Row, key: str = "accuracy") -> float:
    return float(row.get(f"{key}_std") or 0.0)


def _name(row: Row) -> str:
    return str(row["dictionary"])


def _full(results: Row) -> list[Row]:
    """The rungs of the ladder: every row without a rank limit."""
    if not isinstance(results, Mapping) or not isinstance(results.get("replaced"), Sequence):
        raise expected(
            "results with rows under replaced", type(results).__name__, "report.load(path)"
        )
    return [row for row in results["replaced"] if row.get("rank") is None]


def _cut(results: Row) -> list[Row]:
    """Rows whose K is cut to a rank; a tensor train's ranks are another thing, see `plane`."""
    rows = [row for row in results.get("replaced") or () if row.get("rank") is not None]
    return [row for row in rows if row.get("truncation") in _TRUNCATIONS]


def accuracy_ladder(results: Row) -> Any:
    """Test accuracy for each dictionary in the span's place, nulls first, richer ones below.

    Two panels share the rows: the whole range, where the nulls are seen to fail, and the last few
    points below the original, where the dictionaries differ. Bars are one standard deviation over
    seeds, the grey band the original's, the dashed line the tolerance.

    Args:
        results: needs `original.accuracy` and the rows of `replaced` whose `rank` is null.
    """
    rows = _full(results)
    if not rows:
        raise ValueError(
            "expected at least one row of full rank in results['replaced'], got none, "
            "try results of `koopjax analyze`"
        )
    original = results["original"]
    reference, band = float(original["accuracy"]), _spread(original)
    accuracy = np.array([float(row["accuracy"]) for row in rows])
    near = [reference - max(band, 0.004), reference + max(band, 0.004)]
    for row in rows:
        if not row.get("null") and row["accuracy"] > reference - 0.15:
            near += [row["accuracy"] - _spread(row), row["accuracy"] + _spread(row)]
    low, high = min(near), max(near)
    margin = 0.08 * (high - low)
    with style():
        figure = new_figure(7.4, 1.15 + 0.34 * len(rows))
        whole, close = figure.subplots(1, 2, sharey=True, width_ratios=(1, 1.7))
        y = np.arange(len(rows))
        for axes in (whole, close):
            axes.axvspan(reference - band, reference + band, color=MUTED, alpha=0.22, lw=0)
            axes.axvline(reference, color=INK, lw=1.1)
            axes.hlines(y, 0, 2, color=GRID, lw=0.8, zorder=0)
            axes.tick_params(axis="y", length=0)
            axes.spines["left"].set_visible(False)
        for i, row in enumerate(rows):
            for axes in (whole, close):
                inside = axes is whole or low - margin <= accuracy[i] <= high + margin
                if inside:
                    hollow = row.get("target") == "logits"
                    axes.errorbar(
                        accuracy[i], i, xerr=_spread(row) or None, fmt="o",
                        color=colour(_name(row)), mfc="white" if hollow else None, ms=6.5,
                        mew=1.6, capsize=3, lw=1.6, zorder=3,
                    )  # fmt: skip
                else:
                    axes.annotate(
                        f"◂ {accuracy[i]:.3f}", (0, i), xycoords=("axes fraction", "data"),
                        xytext=(3, 0), textcoords="offset points", va="center", fontsize=8.5,
                        color=colour(_name(row)),
                    )  # fmt: skip
        tolerance = results.get("tolerance")
        if tolerance:
            close.axvline(reference - float(tolerance), color=MUTED, lw=1.0, ls=(0, (4, 3)))
        whole.set_xlim(0, 1.02)
        close.set_xlim(low - margin, high + margin)
        close.locator_params(axis="x", nbins=5)
        whole.set_yticks(y, [_name(row) for row in rows])
        whole.set_ylim(len(rows) - 0.4, -0.6)
        whole.set_title("test accuracy")
        close.set_title(f"the same, close to the original ({reference:.3f})")
    return figure


def rank_curve(results: Row) -> Any:
    """Test accuracy against the rank of K, one line a dictionary.

    Two panels: truncated in the metric of the network's output (reduced-rank regression), and by
    plain SVD of K. Bands are one standard deviation over seeds, the black line is the original.

    Args:
        results: needs `original.accuracy` and the rows of `replaced` that have a `rank`; rows that
            map to the logits are left out where others are there.
    """
    rows = _cut(results)
    rows = [row for row in rows if row.get("target") != "logits"] or rows
    if not rows:
        raise ValueError(
            "expected rows with a rank in results['replaced'], got none, try --ranks 4,8,16"
        )
    kinds = [kind for kind in _TRUNCATIONS if any(row.get("truncation") == kind for row in rows)]
    reference = float(results["original"]["accuracy"])
    names = list(dict.fromkeys(_name(row) for row in rows))
    with style():
        figure = new_figure(7.4, 3.4)
        panels = np.atleast_1d(figure.subplots(1, len(kinds), sharey=True))
        for axes, kind in zip(panels, kinds, strict=True):
            axes.axhline(reference, color=INK, lw=1.1)
            for name in names:
                chosen = [r for r in rows if _name(r) == name and r.get("truncation") == kind]
                _rank_line(axes, name, sorted(chosen, key=lambda row: row["rank"]))
            ranks = _thin(sorted({int(row["rank"]) for row in rows}))
            axes.set_xscale("log", base=2)
            axes.set_xticks(ranks, [str(r) for r in ranks])
            axes.minorticks_off()
            axes.set_xlabel("rank of K")
            axes.set_title(_TRUNCATIONS[kind])
            axes.set_ylim(0, 1.02)
            axes.grid(True, axis="y")
        panels[0].set_ylabel("test accuracy")
        # In the first panel the curves are high, so its lower corner is free.
        panels[0].legend(loc="lower right")
    return figure


_TRUNCATIONS = {"output": "truncated in the output's metric", "svd": "truncated by plain SVD"}


def _rank_line(axes: Any, name: str, rows: Sequence[Row]) -> None:
    """One dictionary's curve with a band of one standard deviation."""
    rank = np.array([row["rank"] for row in rows], float)
    mean = np.array([row["accuracy"] for row in rows], float)
    std = np.array([_spread(row) for row in rows])
    axes.plot(rank, mean, "o-", color=colour(name), label=name, ms=4)
    axes.fill_between(rank, mean - std, mean + std, color=colour(name), alpha=0.15, lw=0)


def _thin(ranks: Sequence[int], ratio: float = 1.3) -> list[int]:
    """Ranks far enough apart on a logarithmic axis for their labels not to touch."""
    kept: list[int] = []
    for rank in ranks:
        if not kept or rank >= kept[-1] * ratio:
            kept.append(rank)
    return kept


def budget_curve(results: Row) -> Any:
    """Test accuracy of the compressed networks against the bytes of their files.

    Args:
        results: needs `original` and the rows of `compressed`.
    """
    rows = [row for row in results["compressed"] if row["accuracy"] is not None]
    if not rows:
        raise ValueError(
            "expected rows in results['compressed'], got none, try results of `koopjax compress`"
        )
    groups: dict[str, list[Row]] = {}
    for row in rows:
        name = str(row["method"]) + (", fine-tuned" if row.get("finetuned") else "")
        groups.setdefault(name, []).append(row)
    original = results["original"]
    with style():
        figure = new_figure(7.0, 3.6)
        axes = figure.subplots()
        axes.axhline(original["accuracy"], color=GRID, lw=1.0, zorder=0)
        axes.plot(
            original["stored_bytes"] / 1024, original["accuracy"], "D", color=INK, ms=6,
            label="original", ls="none",
        )  # fmt: skip
        for name, members in groups.items():
            members = sorted(members, key=lambda row: row["stored_bytes"])
            kib = [row["stored_bytes"] / 1024 for row in members]
            axes.errorbar(
                kib, [row["accuracy"] for row in members],
                yerr=[_spread(row) for row in members], fmt="o-", color=colour(name),
                label=name, capsize=3, ms=6,
            )  # fmt: skip
        axes.set_xscale("log")
        ticks = _byte_ticks([original["stored_bytes"], *(row["stored_bytes"] for row in rows)])
        axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
        axes.minorticks_off()
        axes.set_xlabel("size of the file, KiB")
        axes.set_ylabel("test accuracy")
        axes.set_ylim(0, 1.04)
        axes.grid(True, axis="y")
        axes.legend(loc="lower right")
    return figure


def _byte_ticks(sizes: Sequence[float]) -> list[float]:
    """1, 2, 5 × powers of ten of KiB that cover the sizes."""
    low, high = min(sizes) / 1024, max(sizes) / 1024
    steps = [m * 10.0**e for e in range(-3, 8) for m in (1, 2, 5)]
    inside = [s for s in steps if low * 0.8 <= s <= high * 1.25]
    return inside or [low]


def figures(results: Row) -> dict[str, Any]:
    """Every figure that these results have the data for, by name: what the report shows.

    >>> figures({"original": {"accuracy": 0.9}, "replaced": [], "compressed": []})
    {}
    """
    made: dict[str, Any] = {}
    replaced = results.get("replaced") or []
    if any(row.get("rank") is None for row in replaced):
        made["accuracy_ladder"] = accuracy_ladder(results)
    if _cut(results):
        made["rank_curve"] = rank_curve(results)
    if results.get("singular_values"):
        made["singular_values"] = singular_values(results["singular_values"])
    if (results.get("plane") or {}).get("rows"):
        made["plane"] = _trains.plane(results["plane"])
    if (results.get("bonds") or {}).get("values"):
        made["bond_singular_values"] = _trains.bond_singular_values(results["bonds"]["values"])
    if results.get("interactions"):
        made["interaction_spectrum"] = _trains.interaction_spectrum(results["interactions"])
    matrices = results.get("confusion")
    if matrices:
        made["confusion"] = confusion(
            matrices["original"],
            matrices.get("classes"),
            other=matrices.get("replaced"),
            titles=("original", str(matrices.get("replaced_name", "replaced"))),
        )
    examples = (results.get("disagreements") or {}).get("examples")
    if examples:
        made["disagreements"] = disagreements(examples)
    contest = (results.get("pareto") or {}).get("summary") or ()
    if any(row["accuracy"] is not None for row in contest):
        made["pareto"] = _pareto.pareto(results["pareto"])
    elif any(row["accuracy"] is not None for row in results.get("compressed") or ()):
        made["budget_curve"] = budget_curve(results)
    return made
