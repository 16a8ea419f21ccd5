"""Figures drawn from plain arrays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.patches import Circle

from koopjax._core import expected, read
from koopjax.plot._style import COLOURS, GRID, INK, MUTED, colour, new_figure, numbers, style

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
    with style():
        figure = new_figure(6.4, 3.4)
        axes = figure.subplots()
        for name, curve in curves.items():
            s = np.sort(np.abs(numbers("singular values", curve)).ravel())[::-1]
            s = s[s > _ROUNDING * s[0]] if s.size else s
            if not s.size:
                continue
            s = s / s[0] if normalise else s
            marker = "o" if s.size <= 40 else None
            axes.plot(
                np.arange(1, s.size + 1), s, color=colour(name), label=name, marker=marker, ms=3.5
            )
        axes.set_yscale("log")
        axes.set_xlabel("index")
        axes.set_ylabel("singular value / largest" if normalise else "singular value")
        axes.grid(True, axis="y")
        axes.margins(x=0.02)
        if len(curves) > 1:
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
    with style():
        figure = new_figure(5.6 if residuals is not None else 4.6, 4.4)
        axes = figure.subplots()
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
            raise ValueError(
                f"expected square confusion matrices of one size, got {m.shape}, "
                "try counts of (true, answered) pairs"
            )
    if isinstance(classes, str) or not isinstance(classes, Iterable | None):
        raise expected("a sequence of classes", f"{classes!r:.60}", "('cat', 'dog')")
    labels = [str(c) for c in (classes if classes is not None else range(len(matrices[0])))]
    with style():
        side = 3.5 if len(matrices[0]) <= 12 else 4.6
        figure = new_figure(side * len(matrices), side + 0.1)
        all_axes = np.atleast_1d(figure.subplots(1, len(matrices)))
        for axes, m, title in zip(all_axes, matrices, titles, strict=False):
            _one_confusion(axes, m, labels, title)
        all_axes[0].set_ylabel("true class")
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
    with style():
        figure = new_figure(1.15 * columns + 0.2, 1.65 * rows)
        grid = figure.subplots(rows, columns, squeeze=False)
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
        "loss": {n: c for n, c in curves.items() if "loss" in n},
        "accuracy": {n: c for n, c in curves.items() if "accuracy" in n},
    }
    panels = {kind: members for kind, members in panels.items() if members}
    if not panels:
        raise ValueError(
            f"expected curves named *loss* or *accuracy*, got {sorted(history)}, "
            "try the history that models.train returns"
        )
    with style():
        figure = new_figure(3.4 * len(panels), 2.9)
        for axes, (kind, members) in zip(
            np.atleast_1d(figure.subplots(1, len(panels))), panels.items(), strict=True
        ):
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
