"""Figures about tensor trains: the plane of degrees and ranks, and interactions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.patches import Rectangle

from koopjax.plot._style import COLOURS, GRID, INK, MUTED, colour, drawing

Row = Mapping[str, Any]
# Text on a coloured cell keeps its colour on dark pages, so it is none of the page's own colours.
_DARK, _LIGHT = "#22272e", "#fdfdfe"
_GROUPS = (COLOURS["affine"], COLOURS["degree 2"], COLOURS["degree 3"], COLOURS["rbf"])


def _plain(value: Any) -> Any:
    """The dictionary of a result that has one."""
    return value.to_dict() if hasattr(value, "to_dict") else value


def _short(count: float) -> str:
    """A number of numbers in four letters: 950, 3.2k, 51k."""
    if count < 1000:
        return f"{count:.0f}"
    return f"{count / 1000:.1f}k" if count < 10_000 else f"{count / 1000:.0f}k"


def plane(plane: Any) -> Any:
    """Accuracy over the plane of degree and tensor-train rank, as a heat map with figures.

    A cell holds the test accuracy in per cent and, below it, the numbers that the block stores. The
    colour is the accuracy lost against the original, on a logarithmic scale; the outlined cell has
    the least degree, and at that the least rank, within the tolerance.

    Args:
        plane: an `analysis.Plane`, or its dictionary (`results["plane"]`).

    Returns:
        A `matplotlib.figure.Figure`.
    """
    found = _plain(plane)
    rows = [row for row in found["rows"] if row.get("accuracy", row.get("agreement")) is not None]
    if not rows:
        raise ValueError("expected at least one row in the plane, got none, try analysis.plane")
    what = "accuracy" if rows[0].get("accuracy") is not None else "agreement"
    whole = found["original"]["accuracy"] if what == "accuracy" else 1.0
    degrees = sorted({int(row["degree"]) for row in rows})
    ranks = sorted({int(row["rank"]) for row in rows})
    by_cell = {(int(row["degree"]), int(row["rank"])): row for row in rows}
    lost = np.full((len(degrees), len(ranks)), np.nan)
    for (degree, rank), row in by_cell.items():
        lost[degrees.index(degree), ranks.index(rank)] = 100 * (whole - row[what])
    size = max(4.2, 1.9 + 0.72 * len(ranks)), 1.6 + 0.62 * len(degrees)
    with drawing(*size) as (figure, axes):
        norm = LogNorm(0.1, 100.0)
        edges = [np.arange(len(side) + 1) - 0.5 for side in (ranks, degrees)]
        mesh = axes.pcolormesh(
            *edges, np.clip(lost, 0.1, 100.0), norm=norm, cmap="cividis_r", edgecolor=GRID, lw=0.6
        )
        for (degree, rank), row in by_cell.items():
            i, j = degrees.index(degree), ranks.index(rank)
            shade = norm(np.clip(lost[i, j], 0.1, 100.0))
            ink = _LIGHT if shade > 0.5 else _DARK
            texts = (-0.1, f"{100 * row[what]:.1f}", 9.5), (0.26, _short(row["numbers"]), 7.0)
            for down, text, points in texts:
                place = {"ha": "center", "va": "center", "fontsize": points}
                axes.text(j, i + down, text, color=ink, **place)
        least = found.get("least")
        if least:
            corner = (ranks.index(least["rank"]) - 0.5, degrees.index(least["degree"]) - 0.5)
            axes.add_patch(
                Rectangle(corner, 1, 1, fill=False, ec=COLOURS["degree 2"], lw=2.4, zorder=5)
            )
        axes.set_xticks(range(len(ranks)), [str(r) for r in ranks])
        axes.set_yticks(range(len(degrees)), [str(d) for d in degrees])
        axes.tick_params(length=0)
        axes.spines[["left", "bottom"]].set_visible(False)
        axes.invert_yaxis()
        axes.set_xlabel("tensor-train rank")
        axes.set_ylabel("degree")
        # In two lines, since a plane of few ranks is narrow.
        axes.set_title(f"{what}, %, and numbers stored\n(original {100 * whole:.1f})", fontsize=9.5)
        bar = figure.colorbar(mesh, ax=axes, label="points lost", pad=0.02)
        bar.set_ticks([0.1, 1, 10, 100], labels=["≤0.1", "1", "10", "100"])
        bar.minorticks_off()
    return figure


def _seeds(spectra: Any) -> Any:
    """One summary, of one spectrum or of several seeds'."""
    if isinstance(spectra, Sequence):
        from koopjax.analysis import summarize_spectra

        return summarize_spectra(spectra)
    return _plain(spectra)


def interaction_spectrum(spectra: Any, *, coordinates: int = 12) -> Any:
    """Shares of the output's variance by the order of the interactions, and by coordinate.

    Left, a bar an order; right, for each coordinate what it does alone (filled) and in all
    interactions that it takes part in (outlined). Whiskers are one standard deviation over seeds.

    Args:
        spectra: an `analysis.Spectrum`, several (one a seed), what `analysis.summarize_spectra`
            returns, or a mapping from names to any of these, whose orders are drawn side by side.
        coordinates: the most coordinates drawn, the leading ones; 0 for the left panel alone.

    Returns:
        A `matplotlib.figure.Figure`.
    """
    named = isinstance(spectra, Mapping) and "orders" not in spectra
    groups = {str(n): _seeds(s) for n, s in spectra.items()} if named else {"": _seeds(spectra)}
    alone = len(groups) == 1 and coordinates > 0
    width, count = (7.4, 2) if alone else (5.6, 1)
    with drawing(width, 3.5, 1, count, squeeze=False) as (figure, grid):
        panels = grid[0]
        for i, (name, one) in enumerate(groups.items()):
            _orders(panels[0], one, name, i, len(groups))
        panels[0].set_ylabel("share of the variance, %")
        panels[0].set_xlabel("order of the interaction")
        panels[0].grid(True, axis="y")
        if len(groups) > 1:
            panels[0].legend()
        if alone:
            (only,) = groups.values()
            _coordinates(panels[1], only["coordinates"], coordinates)
    return figure


def _orders(axes: Any, one: Row, name: str, place: int, count: int) -> None:
    """The bars of one spectrum."""
    shares = 100 * np.array([*one["orders"], one["beyond"]], float)
    deviation = [*one.get("orders_std", ()), one.get("beyond_std")]
    spread = 100 * np.array(deviation, float) if len(deviation) > 1 else None
    width = 0.8 / count
    x = np.arange(len(shares)) + (place - (count - 1) / 2) * width
    hue = _GROUPS[place % len(_GROUPS)] if count > 1 else colour("affine")
    axes.bar(x, shares, 0.92 * width, color=hue, label=name or None)
    if spread is not None:
        axes.errorbar(x, shares, yerr=spread, fmt="none", ecolor=INK, capsize=3, lw=1.1)
    for j, share in enumerate(shares if count == 1 else ()):
        top = share + (0.0 if spread is None else spread[j])
        axes.annotate(
            f"{share:.1f}" if share >= 0.05 else "<0.1" if share > 0 else "0", (x[j], top),
            xytext=(0, 3), textcoords="offset points", ha="center", fontsize=8.5,
        )  # fmt: skip
    last = len(one["orders"])
    axes.set_xticks(range(last + 1), [*map(str, range(1, last + 1)), f">{last}"])
    axes.tick_params(axis="x", length=0)
    axes.set_title("variance by order")
    axes.margins(y=0.12)


def _coordinates(axes: Any, rows: Sequence[Row], most: int) -> None:
    """First-order and total indices of the leading coordinates."""
    shown = sorted(rows, key=lambda row: -row["total"])[:most]
    y = np.arange(len(shown))
    value = lambda key: 100 * np.array([row[key] for row in shown], float)
    axes.barh(y, value("total"), 0.7, facecolor="none", edgecolor=MUTED, lw=1.1, label="total")
    axes.barh(y, value("first"), 0.7, color=colour("affine"), label="alone")
    if shown and shown[0].get("total_std") is not None:
        spread = value("total_std")
        axes.errorbar(value("total"), y, xerr=spread, fmt="none", ecolor=INK, capsize=2, lw=1.0)
    axes.set_yticks(y, [str(row["name"]) for row in shown])
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.set_xlabel("share of the variance, %")
    axes.set_title("by coordinate")
    axes.grid(True, axis="x")
    axes.legend(loc="lower right")
