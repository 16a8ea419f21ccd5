"""Figures about tensor trains: the plane of degrees and ranks, bonds, interactions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, LogNorm, Normalize
from matplotlib.patches import Rectangle

from koopjax._core import expected
from koopjax.plot._style import COLOURS, GRID, INK, MUTED, colour, new_figure, numbers, style

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
    with style():
        figure = new_figure(max(4.2, 1.9 + 0.72 * len(ranks)), 1.6 + 0.62 * len(degrees))
        axes = figure.subplots()
        norm = LogNorm(0.1, 100.0)
        edges = [np.arange(len(side) + 1) - 0.5 for side in (ranks, degrees)]
        mesh = axes.pcolormesh(
            *edges, np.clip(lost, 0.1, 100.0), norm=norm, cmap="cividis_r", edgecolor=GRID, lw=0.6
        )
        for (degree, rank), row in by_cell.items():
            i, j = degrees.index(degree), ranks.index(rank)
            shade = norm(np.clip(lost[i, j], 0.1, 100.0))
            ink = _LIGHT if shade > 0.5 else _DARK
            axes.text(
                j, i - 0.1, f"{100 * row[what]:.1f}", ha="center", va="center", fontsize=9.5,
                color=ink,
            )  # fmt: skip
            axes.text(
                j, i + 0.26, _short(row["numbers"]), ha="center", va="center", fontsize=7.0,
                color=ink,
            )  # fmt: skip
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


def bond_singular_values(values: Any, *, normalise: bool = True) -> Any:
    """Singular values at every bond of a tensor train, on a logarithmic axis.

    What a bond carries from the coordinates on its left to those on its right. A cliff says that a
    smaller rank would do there.

    Args:
        values: one array of singular values a bond, from the first bond to the last.
        normalise: divide each bond's by its largest.

    Returns:
        A `matplotlib.figure.Figure`, one line a bond, from dark (first) to light (last).
    """
    if not isinstance(values, list | tuple):
        raise expected("a list of singular values, an array a bond", type(values).__name__)
    curves = [np.sort(np.abs(numbers("singular values", v)).ravel())[::-1] for v in values]
    if not any(curve.size and curve[0] > 0 for curve in curves):
        raise ValueError(
            "expected singular values at one bond or more, got none, "
            "try analysis.bond_singular_values(fit)"
        )
    with style():
        figure = new_figure(6.4, 3.4)
        axes = figure.subplots()
        # The lightest fifth of the scale would vanish on a white page.
        scale = colormaps["viridis"]
        shade = lambda k: scale(0.82 * k / max(1, len(curves) - 1))
        for k, curve in enumerate(curves):
            curve = curve[curve > 1e-15 * curve[0]] if curve.size else curve
            if curve.size:
                curve = curve / curve[0] if normalise else curve
                index = np.arange(1, curve.size + 1)
                axes.plot(index, curve, "o-", color=shade(k), ms=3.5, lw=1.3, label=f"bond {k + 1}")
        axes.set_yscale("log")
        axes.set_xlabel("index")
        axes.set_ylabel("singular value / largest" if normalise else "singular value")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(True, axis="y")
        if len(curves) > 6:
            cut = LinearSegmentedColormap.from_list("bonds", scale(np.linspace(0, 0.82, 64)))
            mappable = ScalarMappable(Normalize(1, len(curves)), cut)
            bar = figure.colorbar(mappable, ax=axes, label="bond", pad=0.02)
            bar.locator.set_params(integer=True)
        elif len(curves) > 1:
            axes.legend()
    return figure


def _spectra(spectra: Any) -> dict[str, Any]:
    """Named summaries, whatever came: one spectrum, several seeds' or a mapping of either."""
    if isinstance(spectra, Mapping) and "orders" not in spectra:
        return {str(name): _seeds(one) for name, one in spectra.items()}
    return {"": _seeds(spectra)}


def _seeds(spectra: Any) -> Any:
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
    groups = _spectra(spectra)
    alone = len(groups) == 1 and coordinates > 0
    with style():
        figure = new_figure(7.4 if alone else 5.6, 3.5)
        panels = np.atleast_1d(figure.subplots(1, 2 if alone else 1))
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
