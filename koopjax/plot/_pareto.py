"""The contest: ratio against accuracy, a line a method."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.lines import Line2D

from koopjax.plot._style import INK, colour, new_figure, style

Row = Mapping[str, Any]

#: What a track allows, for the titles of the panels.
TRACKS = {
    "one-shot": "one-shot",
    "label-free": "label-free",
    "fine-tuned": "fine-tuned, float32",
    "any-bits": "fine-tuned, any bits",
}
_NAMES = {"digits": "digits", "mnist": "MNIST", "fashion_mnist": "Fashion-MNIST"}
_MARKERS = "svD^vPX<>"
# A method that falls this many times as far as the best one leaves the panel at its lower edge:
# a collapsed curve must not press the others into one line.
_DEEP = 2.5
# The best conventional method is followed so far down.
_FAR = 0.2


def pareto(
    results: Any,
    *,
    tracks: Sequence[str] | None = None,
    methods: Sequence[str] | None = None,
    names: Mapping[str, str] | None = None,
) -> Any:
    """Test accuracy against the compression ratio (logarithmic), one line a method.

    Bands are one standard deviation over seeds, the black line is the original. Koopman methods
    have thick lines with round markers, all others thin ones with other markers. A panel for each
    track, several data sets side by side. What falls far below the best method leaves its panel
    through the lower edge.

    Args:
        results: a `compress.Pareto`, or a mapping with `summary` (rows of `Pareto.summary`),
            `originals` and perhaps `dataset`; or a list of such, one a data set.
        tracks: which, in order; default all that have results.
        methods: which, in order; default all, Koopman methods first.
        names: how methods are called in the legend.

    Returns:
        A `matplotlib.figure.Figure` with a row of panels for each track where there are several
        data sets, else with the tracks side by side.

    Raises:
        ValueError: no results to draw.
    """
    several = not isinstance(results, Mapping) and isinstance(results, Iterable)
    contests = [_contest(one) for one in (results if several else [results])]
    rows = [row for one in contests for row in one["rows"]]
    chosen = [t for t in (tracks or TRACKS) if any(r["track"] == t for r in rows)]
    known = list(dict.fromkeys(row["method"] for row in rows if row["track"] in chosen))
    shown = _koopman_first(known) if methods is None else [m for m in methods if m in known]
    if not chosen or not shown:
        raise ValueError(
            "expected a contest with at least one accuracy, got none, try compress.pareto first"
        )
    grid = [(track, one) for track in chosen for one in contests]
    columns = len(contests) if len(contests) > 1 else min(2, len(chosen))
    lines = -(-len(grid) // columns)
    dress = {name: _dress(name, k) for k, name in enumerate(_koopman_first(known))}
    called = {name: (names or {}).get(name, name.replace("_", " ")) for name in shown}
    with style():
        wide = 7.0 if columns == 1 else 8.6
        across = _legend_columns(called.values(), wide)
        figure = new_figure(wide, 3.0 * lines + 0.24 * -(-(1 + len(shown)) // across))
        panels = figure.subplots(lines, columns, squeeze=False)
        for axes in panels.ravel()[len(grid) :]:
            axes.axis("off")
        for axes, (track, one) in zip(panels.ravel(), grid, strict=False):
            own = [r for r in one["rows"] if r["track"] == track and r["method"] in shown]
            _panel(axes, own, one["accuracy"], shown, dress)
            title = TRACKS.get(track, track)
            axes.set_title(f"{one['name']}, {title}" if one["name"] else title)
        for axes in panels[:, 0]:
            axes.set_ylabel("test accuracy")
        for column in panels.T:
            used = [axes for axes in column if axes.axison]
            for axes in used[-1:]:
                axes.set_xlabel("times smaller than the original's file")
        handles = [Line2D([], [], label=called[name], **dress[name]) for name in shown]
        handles.append(Line2D([], [], color=INK, lw=1.1, label="original"))
        figure.legend(handles=handles, loc="outside lower center", ncols=across)
    return figure


def _contest(results: Any) -> dict[str, Any]:
    """Rows that have an accuracy, the originals' mean accuracy, and the data set's name."""
    read = isinstance(results, Mapping)
    summary = results["summary"] if read else results.summary()
    originals = results["originals"] if read else results.originals
    accuracies = [one["accuracy"] for one in originals.values()]
    dataset = str(results.get("dataset") or "") if read else ""
    return {
        "rows": [row for row in summary if row["accuracy"] is not None],
        "accuracy": float(np.mean(accuracies)) if accuracies else None,
        "name": _NAMES.get(dataset, dataset),
    }


def _koopman_first(names: Iterable[str]) -> list[str]:
    return sorted(names, key=lambda name: not name.startswith("koopman"))


def _legend_columns(labels: Iterable[str], wide: float) -> int:
    """How many columns of the longest label, at about 0.075 inches a letter, fit the width."""
    longest = max(map(len, labels))
    return max(1, min(4, int(wide / (0.075 * longest + 0.7))))


def _dress(name: str, number: int) -> dict[str, Any]:
    """Line, marker and colour of a method."""
    own = name.startswith("koopman")
    hue = colour(name)
    marker = "o" if own else _MARKERS[number % len(_MARKERS)]
    return {
        "color": hue, "marker": marker, "lw": 2.6 if own else 1.2, "ms": 5.5 if own else 4.5,
        "mfc": hue if own else "white", "mec": hue, "mew": 1.2, "zorder": 4 if own else 3,
    }  # fmt: skip


def _panel(
    axes: Any, rows: Sequence[Row], original: float | None, shown: Sequence[str], dress: Any
) -> None:
    if not rows:
        axes.axis("off")
        axes.text(0.5, 0.5, "no results", ha="center", va="center", transform=axes.transAxes)
        return
    if original is not None:
        axes.axhline(original, color=INK, lw=1.1)
    for name in shown:
        own = sorted((r for r in rows if r["method"] == name), key=lambda r: r["ratio"])
        if not own:
            continue
        ratio = np.array([r["ratio"] for r in own], float)
        mean = np.array([r["accuracy"] for r in own], float)
        std = np.array([r.get("std") or 0.0 for r in own], float)
        axes.plot(ratio, mean, label=name, **dress[name])
        low, high = mean - std, mean + std
        axes.fill_between(ratio, low, high, color=dress[name]["color"], alpha=0.15, lw=0)
    ratios = [float(row["ratio"]) for row in rows]
    axes.set_xscale("log")
    ticks = _ratio_ticks(min(ratios), max(ratios))
    axes.set_xticks(ticks, [f"{t:g}×" for t in ticks])
    axes.minorticks_off()
    axes.set_ylim(*_limits(rows, original))
    axes.grid(True, axis="y")


def _limits(rows: Sequence[Row], original: float | None) -> tuple[float, float]:
    """The accuracies worth the room: from the best methods' loss, `_DEEP` times over.

    And down to the best conventional method at the middle size, where that is not too far.
    """
    values = [float(row["accuracy"]) for row in rows]
    top: float = max([*values, *([] if original is None else [original])])
    best: dict[str, float] = {}
    for row in rows:
        best[row["budget"]] = max(best.get(row["budget"], 0.0), float(row["accuracy"]))
    deepest = top - max(_DEEP * (top - min(best.values())), 0.04)
    others: dict[str, float] = {}
    for row in sorted(rows, key=lambda row: row["ratio"]):
        if not row["method"].startswith("koopman"):
            others[row["budget"]] = max(others.get(row["budget"], 0.0), float(row["accuracy"]))
    rival = list(others.values())[(len(others) - 1) // 2] if others else top
    deepest = min(deepest, rival) if rival > top - _FAR else deepest
    low = min(max(min(values), deepest), top - 0.02, top if original is None else original)
    margin = 0.05 * (top - low) + 1e-3
    return low - margin, top + margin


def _ratio_ticks(low: float, high: float) -> list[float]:
    """1, 2, 3, 5 × powers of ten that cover the ratios, few enough to be read."""
    steps = [m * 10.0**e for e in range(-1, 6) for m in (1, 2, 3, 5)]
    inside = [s for s in steps if low * 0.9 <= s <= high * 1.1]
    coarse = [s for s in inside if s / 10.0 ** np.floor(np.log10(s)) < 3.5]
    return (coarse if len(inside) > 6 and len(coarse) > 1 else inside) or [low]
