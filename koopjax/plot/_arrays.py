"""Figures drawn from plain arrays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, LogNorm, Normalize
from matplotlib.patches import Circle

from koopjax._core import expected, read
from koopjax.plot._style import COLOURS, GRID, INK, MUTED, colour, drawing, numbers

# Relative size below which a singular value of a float32 matrix is rounding error (dead units).
_ROUNDING = 1e-7


def singular_values(values: Mapping[str, Any] | Any, *, normalise: bool = True) -> Any:
    """Singular values of one or more Koopman matrices, largest first, on a logarithmic axis.

    A cliff says that a smaller rank would do; a straight slope says that each rank buys its share.
    Values that float32 cannot tell from zero are left out.

    Args:
        values: `(r,)` array, or a mapping from a dictionary's name to such an array.
        normalise: divide each curve by its largest value.

    Returns:
        A `matplotlib.figure.Figure` with one line per array.
    """
    curves = dict(values) if isinstance(values, Mapping) else {"K": values}
    with drawing(6.4, 3.4) as (figure, axes):
        for name, curve in curves.items():
            s = _falling(curve, normalise, _ROUNDING)
            marker = "o" if s.size <= 40 else None
            dress = {"color": colour(name), "label": name, "marker": marker, "ms": 3.5}
            if s.size:
                axes.plot(np.arange(1, s.size + 1), s, **dress)
        _as_singular_values(axes, normalise)
        axes.margins(x=0.02)
        if len(curves) > 1:
            axes.legend()
    return figure


def _falling(values: Any, normalise: bool, rounding: float) -> np.ndarray:
    """Magnitudes, the largest first, without those that rounding cannot tell from zero."""
    s = np.sort(np.abs(numbers("singular values", values)).ravel())[::-1]
    s = s[s > rounding * s[0]] if s.size else s
    return s / s[0] if normalise and s.size else s


def _as_singular_values(axes: Any, normalise: bool) -> None:
    axes.set_yscale("log")
    axes.set_xlabel("index")
    axes.set_ylabel("singular value / largest" if normalise else "singular value")
    axes.grid(True, axis="y")


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
    curves = [_falling(curve, normalise, 1e-15) for curve in values]
    if not any(curve.size for curve in curves):
        raise ValueError(
            "expected singular values at one bond or more, got none, "
            "try analysis.bond_singular_values(fit)"
        )
    # The lightest fifth of the scale would vanish on a white page.
    scale, last = colormaps["viridis"], max(1, len(curves) - 1)
    with drawing(6.4, 3.4) as (figure, axes):
        for k, curve in enumerate(curves):
            dress = {"color": scale(0.82 * k / last), "ms": 3.5, "lw": 1.3}
            if curve.size:
                index = np.arange(1, curve.size + 1)
                axes.plot(index, curve, "o-", label=f"bond {k + 1}", **dress)
        _as_singular_values(axes, normalise)
        axes.xaxis.get_major_locator().set_params(integer=True)
        if len(curves) > 6:
            cut = LinearSegmentedColormap.from_list("bonds", scale(np.linspace(0, 0.82, 64)))
            mappable = ScalarMappable(Normalize(1, len(curves)), cut)
            bar = figure.colorbar(mappable, ax=axes, label="bond", pad=0.02)
            bar.locator.set_params(integer=True)
        elif len(curves) > 1:
            axes.legend()
    return figure


def spectrum(eigenvalues: Any, residuals: Any = None, *, exact: Any = None) -> Any:
    """Koopman eigenvalues in the complex plane, with the unit circle.

    Args:
        eigenvalues: `(p,)`, real or complex.
        residuals: `(p,)` ResDMD residuals, in colour (logarithmic): dark points can be trusted.
        exact: eigenvalues known in closed form, drawn as open circles around the estimates.

    Returns:
        A `matplotlib.figure.Figure` with equal scales on both axes.
    """
    z: Any = np.atleast_1d(numbers("eigenvalues", eigenvalues, np.complex128))
    with drawing(5.6 if residuals is not None else 4.6, 4.4) as (figure, axes):
        axes.axhline(0, color=GRID, lw=0.8, zorder=0)
        axes.axvline(0, color=GRID, lw=0.8, zorder=0)
        axes.add_patch(Circle((0, 0), 1, fill=False, ec=MUTED, lw=1.0, ls=(0, (4, 3)), zorder=1))
        if residuals is None:
            axes.scatter(z.real, z.imag, s=28, color=COLOURS["degree 2"], zorder=3)
        else:
            r = numbers("residuals", residuals)
            if r.shape != z.shape or not r.size:
                raise expected("a residual for each eigenvalue", f"{r.shape} for {z.shape}")
            high = max(float(np.max(r, where=np.isfinite(r), initial=0.0)), 1e-15)
            # The colours are for telling good from bad; one exact pair must not use them all up.
            low = max(float(r.min()), 1e-6 * high)
            below = bool((r < low).any())
            r = np.clip(r, low, high)
            norm = LogNorm(low, high if high > low else low * 10)
            order = np.argsort(-r)
            points = axes.scatter(
                z.real[order], z.imag[order], c=r[order], s=32, cmap="cividis", norm=norm,
                edgecolor="white", linewidth=0.4, zorder=3,
            )  # fmt: skip
            ends = "min" if below else "neither"
            figure.colorbar(points, ax=axes, label="residual", shrink=0.85, extend=ends)
        if exact is not None:
            e: Any = np.atleast_1d(numbers("exact", exact, np.complex128))
            axes.scatter(
                e.real, e.imag, s=95, facecolor="none", edgecolor=INK, lw=1.0, zorder=4,
                label="closed form",
            )  # fmt: skip
            axes.legend(loc="upper left")
        reach = 1.12 * max(1.0, float(np.abs(z).max(initial=0.0)))
        axes.set_xlim(-reach, reach)
        axes.set_ylim(-reach, reach)
        axes.set_aspect("equal")
        axes.locator_params(nbins=5)
        axes.set_xlabel("Re λ")
        axes.set_ylabel("Im λ")
    return figure


def _one_confusion(axes: Any, matrix: np.ndarray, labels: Sequence[str], title: str) -> None:
    """A matrix of counts: correct ones in grey on the diagonal, mistakes in colour off it."""
    n = len(matrix)
    wrong = np.where(np.eye(n, dtype=bool), 0.0, matrix).astype(np.float64)
    top = max(6.0, wrong.max())  # a single slip stays pale
    # Transparent where there is nothing, so that the picture sits on light and dark pages.
    picture = np.zeros((n, n, 4))
    picture[..., :3] = np.array([0xD5, 0x5E, 0x00]) / 255
    picture[..., 3] = np.where(wrong > 0, 0.18 + 0.82 * np.sqrt(wrong / top), 0.0)
    picture[np.eye(n, dtype=bool)] = [0.42, 0.45, 0.5, 0.14]
    axes.imshow(picture, interpolation="nearest")
    if n <= 20:
        for i in range(n):
            for j in range(n):
                if matrix[i, j]:
                    axes.text(
                        j, i, str(int(matrix[i, j])), ha="center", va="center", fontsize=7.5,
                    )  # fmt: skip
    step = max(1, n // 20)
    long = max(len(label) for label in labels) > 2
    axes.set_xticks(range(0, n, step), labels[::step], rotation=90 if long else 0)
    axes.set_yticks(range(0, n, step), labels[::step])
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_xlabel("answered")
    axes.set_title(title)


def confusion(
    matrix: Any,
    classes: Sequence[Any] | None = None,
    *,
    other: Any = None,
    titles: tuple[str, str] = ("original", "replaced"),
) -> Any:
    """Confusion matrices as counts: rows are the true classes, columns the answers.

    Correct answers are grey; only mistakes carry colour, so a good network is a quiet picture.

    Args:
        matrix: `(c, c)` counts.
        classes: names of the classes, default 0, 1, ...
        other: a second `(c, c)` matrix, drawn beside the first.
        titles: what the two matrices are of.
    """
    matrices = [np.asarray(read("counts", m)) for m in (matrix, other) if m is not None]
    for m in matrices:
        if m.ndim != 2 or m.shape != (len(matrices[0]),) * 2:
            what = "square confusion matrices of one size"
            raise expected(what, f"{m.shape}", "counts of (true, answered) pairs")
    if isinstance(classes, str) or not isinstance(classes, Iterable | None):
        raise expected("a sequence of classes", f"{classes!r:.60}", "('cat', 'dog')")
    labels = [str(c) for c in (classes if classes is not None else range(len(matrices[0])))]
    side, count = 3.5 if len(matrices[0]) <= 12 else 4.6, len(matrices)
    with drawing(side * count, side + 0.1, 1, count, squeeze=False) as (figure, panels):
        for axes, m, title in zip(panels[0], matrices, titles, strict=False):
            _one_confusion(axes, m, labels, title)
        panels[0, 0].set_ylabel("true class")
    return figure


def disagreements(examples: Sequence[Mapping[str, Any]], *, limit: int = 12) -> Any:
    """Pictures on which the original and the replaced network give different answers.

    Args:
        examples: mappings with `pixels` (nested lists or an array, `(h, w)` or `(h, w, c)`), and
            `label`, `original`, `replaced` (the true class and the two answers).
        limit: the most pictures drawn.
    """
    shown = list(examples)[:limit]
    columns = min(6, max(1, len(shown)))
    rows = max(1, -(-len(shown) // columns))
    size = 1.15 * columns + 0.2, 1.65 * rows
    with drawing(*size, rows, columns, squeeze=False) as (figure, grid):
        for axes in grid.ravel():
            axes.axis("off")
        for axes, example in zip(grid.ravel(), shown, strict=False):
            pixels = np.asarray(example["pixels"], np.float64)
            grey = pixels.ndim == 2 or pixels.shape[-1] == 1
            image = pixels.reshape(pixels.shape[:2]) if grey else pixels
            top = max(float(image.max(initial=0.0)), 1e-12)
            axes.imshow(image / top, cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
            axes.set_title(
                f"is {example['label']}\n{example['original']} → {example['replaced']}",
                fontsize=8.5, loc="center", fontweight="normal",
            )  # fmt: skip
    return figure


def training(history: Mapping[str, Sequence[float]] | Sequence[Mapping[str, float]]) -> Any:
    """Loss and accuracy by epoch, in two panels.

    Args:
        history: one mapping from name to value for each epoch (what `models.train` returns), or
            one from name to curve; names that contain "accuracy" go to the right panel, names that
            contain "loss" to the left.
    """
    if not isinstance(history, Mapping):
        if not isinstance(history, Sequence) or not all(isinstance(e, Mapping) for e in history):
            raise expected(
                "one mapping for each epoch, or one of curves",
                type(history).__name__,
                "the history that models.train returns",
            )
        names = dict.fromkeys(name for epoch in history for name in epoch)
        history = {name: [epoch[name] for epoch in history if name in epoch] for name in names}
    curves = {name: numbers(name, c) for name, c in history.items() if np.size(c)}
    if any(curve.ndim != 1 for curve in curves.values()):
        raise expected("one number an epoch", f"shapes {[c.shape for c in curves.values()]}")
    panels = {
        kind: {name: curve for name, curve in curves.items() if kind in name}
        for kind in ("loss", "accuracy")
        if any(kind in name for name in curves)
    }
    if not panels:
        raise ValueError(
            f"expected curves named *loss* or *accuracy*, got {sorted(history)}, "
            "try the history that models.train returns"
        )
    with drawing(3.4 * len(panels), 2.9, 1, len(panels), squeeze=False) as (figure, grid):
        for axes, (kind, members) in zip(grid[0], panels.items(), strict=True):
            for i, (name, curve) in enumerate(members.items()):
                hue = (COLOURS["affine"], COLOURS["degree 2"], COLOURS["degree 3"])[i % 3]
                axes.plot(np.arange(1, curve.size + 1), curve, label=name, color=hue)
            axes.set_title(kind)
            axes.set_xlabel("epoch")
            axes.grid(True, axis="y")
            if kind == "loss" and all((c > 0).all() for c in members.values()):
                axes.set_yscale("log")
            if len(members) > 1:
                axes.legend()
    return figure
