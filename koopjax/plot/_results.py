"""Figures drawn from the dictionary that is written as results.json."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.lines import Line2D

from koopjax._core import expected
from koopjax.plot import _trains
from koopjax.plot._arrays import bond_singular_values, confusion, disagreements, singular_values
from koopjax.plot._style import GRID, INK, MUTED, band, colour, decades, drawing, log_ticks

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
_TRUNCATIONS = {"output": "truncated in the output's metric", "svd": "truncated by plain SVD"}


def _spread(row: Row) -> float:
    return float(row.get("accuracy_std") or 0.0)


def _name(row: Row) -> str:
    return str(row["dictionary"])


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
    if not isinstance(results, Mapping) or not isinstance(results.get("replaced"), Sequence):
        got = type(results).__name__
        raise expected("results with rows under replaced", got, "report.load(path)")
    rows = [row for row in results["replaced"] if row.get("rank") is None]
    if not rows:
        what = "at least one row of full rank in results['replaced']"
        raise expected(what, "none", "results of `koopjax analyze`")
    original = results["original"]
    reference, band = float(original["accuracy"]), _spread(original)
    accuracy = np.array([float(row["accuracy"]) for row in rows])
    near = [reference - max(band, 0.004), reference + max(band, 0.004)]
    for row in rows:
        if not row.get("null") and row["accuracy"] > reference - 0.15:
            near += [row["accuracy"] - _spread(row), row["accuracy"] + _spread(row)]
    low, high = min(near), max(near)
    margin = 0.08 * (high - low)
    panels = {"sharey": True, "width_ratios": (1, 1.7)}
    with drawing(7.4, 1.15 + 0.34 * len(rows), 1, 2, **panels) as (figure, (whole, close)):
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
        raise expected("rows with a rank in results['replaced']", "none", "--ranks 4,8,16")
    kinds = [kind for kind in _TRUNCATIONS if any(row.get("truncation") == kind for row in rows)]
    reference = float(results["original"]["accuracy"])
    names = list(dict.fromkeys(_name(row) for row in rows))
    with drawing(7.4, 3.4, 1, len(kinds), sharey=True, squeeze=False) as (figure, (panels,)):
        for axes, kind in zip(panels, kinds, strict=True):
            axes.axhline(reference, color=INK, lw=1.1)
            for name in names:
                chosen = [r for r in rows if _name(r) == name and r.get("truncation") == kind]
                chosen.sort(key=lambda row: row["rank"])
                dress = {"color": colour(name), "label": name, "marker": "o", "ms": 4}
                band(axes, [row["rank"] for row in chosen], chosen, "accuracy_std", **dress)
            log_ticks(axes, _thin(sorted({int(row["rank"]) for row in rows})), base=2)
            axes.set_xlabel("rank of K")
            axes.set_title(_TRUNCATIONS[kind])
            axes.set_ylim(0, 1.02)
            axes.grid(True, axis="y")
        panels[0].set_ylabel("test accuracy")
        # In the first panel the curves are high, so its lower corner is free.
        panels[0].legend(loc="lower right")
    return figure


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
        what = "rows in results['compressed']"
        raise expected(what, "none", "results of `koopjax compress`")
    groups: dict[str, list[Row]] = {}
    for row in rows:
        name = str(row["method"]) + (", fine-tuned" if row.get("finetuned") else "")
        groups.setdefault(name, []).append(row)
    original = results["original"]
    with drawing(7.0, 3.6) as (figure, axes):
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
        sizes = [row["stored_bytes"] / 1024 for row in (original, *rows)]
        log_ticks(axes, decades(min(sizes), max(sizes), (1, 2, 5), 1.25))
        axes.set_xlabel("size of the file, KiB")
        axes.set_ylabel("test accuracy")
        axes.set_ylim(0, 1.04)
        axes.grid(True, axis="y")
        axes.legend(loc="lower right")
    return figure


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
        raise expected("a contest with at least one accuracy", "none", "compress.pareto first")
    grid = [(track, one) for track in chosen for one in contests]
    columns = len(contests) if len(contests) > 1 else min(2, len(chosen))
    lines = -(-len(grid) // columns)
    dress = {name: _dress(name, k) for k, name in enumerate(_koopman_first(known))}
    called = {name: (names or {}).get(name, name.replace("_", " ")) for name in shown}
    wide = 7.0 if columns == 1 else 8.6
    # As many columns of the longest label, at about 0.075 inches a letter, as fit the width.
    across = max(1, min(4, int(wide / (0.075 * max(map(len, called.values())) + 0.7))))
    high = 3.0 * lines + 0.24 * -(-(1 + len(shown)) // across)
    with drawing(wide, high, lines, columns, squeeze=False) as (figure, panels):
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
        band(axes, [float(r["ratio"]) for r in own], own, "std", label=name, **dress[name])
    ratios = [float(row["ratio"]) for row in rows]
    ticks = decades(min(ratios), max(ratios), (1, 2, 3, 5), 1.1)
    coarse = [s for s in ticks if s / 10.0 ** np.floor(np.log10(s)) < 3.5]
    log_ticks(axes, coarse if len(ticks) > 6 and len(coarse) > 1 else ticks, "{:g}×")
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


def figures(results: Row) -> dict[str, Any]:
    """Every figure that these results have the data for, by name: what the report shows.

    >>> figures({"original": {"accuracy": 0.9}, "replaced": [], "compressed": []})
    {}
    """
    within = lambda name, part: (results.get(name) or {}).get(part)
    made: dict[str, Any] = {}
    if any(row.get("rank") is None for row in results.get("replaced") or ()):
        made["accuracy_ladder"] = accuracy_ladder(results)
    if _cut(results):
        made["rank_curve"] = rank_curve(results)
    if results.get("singular_values"):
        made["singular_values"] = singular_values(results["singular_values"])
    if within("plane", "rows"):
        made["plane"] = _trains.plane(results["plane"])
    if within("bonds", "values"):
        made["bond_singular_values"] = bond_singular_values(results["bonds"]["values"])
    if results.get("interactions"):
        made["interaction_spectrum"] = _trains.interaction_spectrum(results["interactions"])
    matrices = results.get("confusion")
    if matrices:
        titles = "original", str(matrices.get("replaced_name", "replaced"))
        names, other = matrices.get("classes"), matrices.get("replaced")
        made["confusion"] = confusion(matrices["original"], names, other=other, titles=titles)
    if within("disagreements", "examples"):
        made["disagreements"] = disagreements(results["disagreements"]["examples"])
    if any(row["accuracy"] is not None for row in within("pareto", "summary") or ()):
        made["pareto"] = pareto(results["pareto"])
    elif any(row["accuracy"] is not None for row in results.get("compressed") or ()):
        made["budget_curve"] = budget_curve(results)
    return made
