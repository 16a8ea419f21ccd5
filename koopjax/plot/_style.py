"""One palette and one set of axes defaults for every figure."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from koopjax._core import expected, read

INK = "#20252c"
MUTED = "#6b7480"
GRID = "#d9dee4"

COLOURS: dict[str, str] = {
    "affine": "#0072b2",
    "degree 2": "#d55e00",
    "degree 3": "#009e73",
    "rbf": "#c2609a",
    "random fourier": "#b8860b",
    "koopman": "#d55e00",
    "koopman_chain": "#a8123e",
    "koopman_sparse": "#b8860b",
    "koopman_trained": "#c2609a",
    "magnitude": "#0072b2",
    "whitened_svd": "#009e73",
    "fisher": "#3f3fa0",
    "obs": "#2b8cbe",
    "wanda": "#5b7c2b",
    "svd": "#2f8f74",
    "tensor_train": "#7a5195",
    "small_network": "#8a929c",
    "small_network_pruned": "#4d5560",
    "identity": "#8a929c",
    "mean": "#8a929c",
    "original": INK,
}
"""Okabe and Ito's colour-blind-safe hues, one for each dictionary and method, the same in every
figure. The two hues that are weak on white (pink, orange) are darkened."""

_SPARE = ("#56b4e9", "#7a5195", "#5b7c2b", "#a0522d")

_RC: Any = {
    "font.size": 10.0,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 10.0,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.linewidth": 0.8,
    "figure.facecolor": "white",
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 9.0,
    "ytick.labelsize": 9.0,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 9.0,
    "lines.linewidth": 1.8,
    "lines.markersize": 5.0,
}


def colour(name: str) -> str:
    """The colour of a dictionary or method: the longest known name in it, else a fixed spare.

    >>> colour("degree 2") == colour("degree 2, to the logits")
    True
    """
    if not isinstance(name, str):
        raise expected("the name of a dictionary or method", f"{name!r:.60}")
    plain = name.lower().replace("_", " ").replace("-", " ")
    known = [key for key in COLOURS if key.replace("_", " ") in plain]
    if known:
        return COLOURS[max(known, key=len)]
    if "fourier" in plain:
        return COLOURS["random fourier"]
    if "gaussian" in plain:
        return COLOURS["rbf"]
    return _SPARE[zlib.crc32(plain.encode(errors="replace")) % len(_SPARE)]


def numbers(name: str, value: Any, dtype: Any = np.float64) -> Any:
    """What a user calls an array, as float64 or another dtype."""
    array = np.asarray(read(name, value))
    if array.dtype.kind == "c" and np.dtype(dtype).kind != "c":
        raise expected(f"real numbers in {name}", f"dtype {array.dtype}", "their absolute values")
    return array.astype(dtype)


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Figure defaults while artists are made; matplotlib's own settings come back afterwards."""
    with matplotlib.rc_context(_RC):
        yield


def new_figure(width: float, height: float) -> Any:
    """An empty figure, in inches, laid out so that labels never overlap the axes."""
    return Figure(figsize=(width, height), layout="constrained")


@contextlib.contextmanager
def drawing(
    width: float, height: float, lines: int = 1, columns: int = 1, **settings: Any
) -> Iterator[tuple[Any, Any]]:
    """A figure in the house's style, and its panels (one alone, or an array of them)."""
    with style():
        figure = new_figure(width, height)
        yield figure, figure.subplots(lines, columns, **settings)


def band(axes: Any, x: Sequence[float], rows: Sequence[Any], key: str, **dress: Any) -> None:
    """A line of accuracies with a band of one standard deviation, which rows hold under `key`."""
    mean = np.array([row["accuracy"] for row in rows], float)
    std = np.array([row.get(key) or 0.0 for row in rows], float)
    axes.plot(x, mean, **dress)
    axes.fill_between(x, mean - std, mean + std, color=dress["color"], alpha=0.15, lw=0)


def log_ticks(axes: Any, ticks: Sequence[float], form: str = "{:g}", base: int = 10) -> None:
    """A logarithmic axis with these ticks alone."""
    axes.set_xscale("log", base=base)
    axes.set_xticks(ticks, [form.format(tick) for tick in ticks])
    axes.minorticks_off()


def decades(low: float, high: float, steps: Sequence[int], reach: float) -> list[float]:
    """These steps × powers of ten that cover a range, and a factor beyond; its end if none does."""
    known = [step * 10.0**e for e in range(-3, 8) for step in steps]
    return [s for s in known if low / reach <= s <= high * reach] or [low]
