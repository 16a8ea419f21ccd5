"""results.json, and report.html beside it: one file, nothing loaded from elsewhere."""

from __future__ import annotations

import base64
import io
import json
import os
import platform
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from koopjax._core import as_path, existing, expected, plain, read_json, write_whole
from koopjax._extras import needed

# The colours that figures use for text, axes, grids and hollow markers become the page's own, so
# that one picture serves the light, the dark and the printed page.
_PAGE_COLOURS = {
    "#20252c": "currentColor",
    "#6b7480": "var(--muted)",
    "#d9dee4": "var(--line)",
    "#ffffff": "var(--page)",
}


def versions() -> dict[str, str]:
    """Versions of python, koopjax and the libraries whose arithmetic the results depend on."""
    from importlib import metadata

    import koopjax

    found = {name: metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax", "numpy")}
    return {"koopjax": koopjax.__version__, **found, "python": platform.python_version()}


def to_json(results: Mapping[str, Any]) -> str:
    """The results as JSON text, one top-level field a line, arrays and scalars as plain numbers.

    >>> to_json({"seed": 0, "original": {"accuracy": float("nan")}})
    '{\\n"seed": 0,\\n"original": {"accuracy": null}\\n}\\n'
    """
    fields = (f"{json.dumps(k)}: {_field(v)}" for k, v in plain(results).items())
    return "{\n" + ",\n".join(fields) + "\n}\n"


def _field(value: Any) -> str:
    """A list of rows gets a line for each row, anything else one line."""
    if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
        return "[\n" + ",\n".join("  " + json.dumps(row) for row in value) + "\n]"
    return json.dumps(value)


def write_atomically(path: str | os.PathLike[str], content: str | bytes) -> int:
    """Write a file by renaming a finished temporary one over it; returns the bytes written.

    An interruption or a full disk leaves the previous file as it was and no litter beside it.
    """
    target = as_path("the file to write", path)
    if not target.name or target.is_dir():
        raise expected("a path of the file to write", f"the folder {target}", "a file in it")
    if not isinstance(content, str | bytes):
        raise expected("text or bytes to write", type(content).__name__)
    try:
        data = content.encode() if isinstance(content, str) else content
    except UnicodeEncodeError as error:
        raise expected("text that UTF-8 can hold", str(error)[:80]) from None
    target.parent.mkdir(parents=True, exist_ok=True)
    write_whole(target, data)
    return len(data)


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Results from a results.json, or from the folder that holds one.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: not the JSON of a results file.
    """
    source = as_path("results", path)
    if source.is_dir():
        source = source / "results.json"
    results = read_json("results", existing("a results.json", source, "koopjax demo first"))
    if not isinstance(results, dict) or "original" not in results or "dataset" not in results:
        raise expected(
            f"the fields dataset and original in {source}",
            "another file",
            "a results.json written by koopjax demo, analyze or compress",
        )
    return results


def _svg(name: str, figure: Any) -> str:
    """A figure as inline SVG that takes the page's colours; the text itself if it is text."""
    if isinstance(figure, str):
        return figure
    matplotlib = needed("matplotlib", "report")
    buffer = io.StringIO()
    # The salt keeps ids of clip paths apart between figures of one page, and the same every time.
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    # One scale for all figures, so that their letters have one size; narrower on narrow pages.
    points = float(text.split('viewBox="0 0 ', 1)[1].split(" ", 1)[0])
    text = text.replace("<svg ", f'<svg style="max-width:{1.6 * points:.0f}px" ', 1)
    # Without a title of its own a picture is silent to a screen reader.
    text = text.replace("<svg ", f'<svg role="img" aria-label="{name.replace("_", " ")}" ', 1)
    for fixed, page in _PAGE_COLOURS.items():
        text = text.replace(fixed, page)
    # Identifiers are global in a page: glyphs and axes of two figures would share theirs.
    text = re.sub(r'id="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', text)
    return re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", text)


def _picture(pixels: Any) -> str:
    """An image as a data address: ink dark on light for grey ones, colours as they are."""
    image = needed("PIL.Image", "report")

    a = np.asarray(pixels, np.float64)
    a = a.reshape(a.shape[:2]) if a.ndim == 3 and a.shape[-1] == 1 else a
    a = a / max(float(a.max(initial=0.0)), 1e-12)
    a = 1.0 - a if a.ndim == 2 else a
    buffer = io.BytesIO()
    image.fromarray(np.round(255 * a).astype(np.uint8)).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def human_bytes(count: float) -> str:
    """Bytes as people write them.

    >>> human_bytes(512), human_bytes(65536)
    ('512 B', '64.0 KiB')
    """
    if count < 1024:
        return f"{int(count)} B"
    return f"{count / 1024:.1f} KiB" if count < 1024**2 else f"{count / 1024**2:.1f} MiB"


def _number(value: float, digits: int = 3) -> str:
    """A figure of a table; very small positive and very large ones in powers of ten."""
    if abs(value) >= 1e5 or 0 < value < 10.0**-digits:
        return f"{value:.1e}"
    return f"{value:.{digits}f}"


def _pm(row: Mapping[str, Any], key: str, digits: int = 4) -> str:
    """Mean ± standard deviation, the latter only where there is one."""
    mean, std = row.get(key), row.get(f"{key}_std")
    if mean is None:
        return "–"
    return _number(mean, digits) + (f" ± {_number(std, digits)}" if std else "")


def _lost(whole: float | None, row: Mapping[str, Any]) -> str:
    """Points of accuracy below the original."""
    value = row.get("accuracy")
    return "–" if whole is None or value is None else f"{round(100 * (whole - value), 2) + 0.0:.2f}"


def _template() -> Any:
    jinja2 = needed("jinja2", "report")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("koopjax.report", "templates"), autoescape=True,
        undefined=jinja2.ChainableUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip

    def or_dash(write: Callable[..., str]) -> Callable[..., str]:
        """Fields that the results lack are written as a dash."""
        lacking = lambda value: value is None or isinstance(value, jinja2.Undefined)
        return lambda value, *rest: "–" if lacking(value) else write(value, *rest)

    integer = lambda value: f"{int(value):,}"
    written = {"human_bytes": human_bytes, "number": _number, "integer": integer}
    environment.filters.update({name: or_dash(write) for name, write in written.items()})
    environment.filters["picture"] = _picture
    environment.globals["pm"] = _pm
    return environment.get_template("report.html")


#: What tells the rows of `replaced` apart: text, a number or nothing.
_KEYS = ("dictionary", "rank", "truncation", "target")


def _rows(results: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The rows of `replaced`, each known to be one."""
    rows = results.get("replaced") or []
    for row in rows if isinstance(rows, list) else [rows]:
        known = isinstance(row, Mapping) and "dictionary" in row
        if not known or any(isinstance(row.get(key), list | Mapping) for key in _KEYS):
            wanted = "rows with a dictionary by name and a rank in 'replaced'"
            raise expected(wanted, f"{row!r:.60}")
    return rows


def _finding(results: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The row that the finding names: dictionary and rank of `results["finding"]`."""
    wanted = results.get("finding") or {}
    same = lambda row: all(row.get(key) == wanted[key] for key in _KEYS if key in wanted)
    rows = results.get("replaced") or () if wanted else ()
    return next((row for row in rows if same(row)), None)


def _ranked(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Rows with a rank limit, by dictionary (as they come), truncation and rank."""
    ranked = [row for row in rows if row.get("rank") is not None]
    names = [row["dictionary"] for row in ranked]
    place = lambda row: (names.index(row["dictionary"]), str(row.get("truncation")), row["rank"])
    return sorted(ranked, key=place)


def _contest(results: Mapping[str, Any]) -> dict[str, Any]:
    """The original and the rows of each track, the best at each budget marked; {} for none."""
    contest = results.get("pareto") or {}
    rows = contest.get("summary") or ()
    if not rows:
        return {}
    values = [one["accuracy"] for one in contest["originals"].values()]
    best: dict[tuple[str, str], float] = {}
    for row in rows:
        place = row["track"], row["budget"]
        best[place] = max(best.get(place, 0.0), row["accuracy"] or 0.0)
    tracks: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        first = row["accuracy"] == best[row["track"], row["budget"]]
        shown = {**row, "accuracy_std": row.get("std"), "first": first}
        tracks.setdefault(row["track"], []).append(shown)
    return {
        "accuracy": statistics.mean(values),
        "accuracy_std": statistics.stdev(values) if len(values) > 1 else None,
        "seeds": len(values),
        "tracks": list(tracks.items()),
    }


def render(results: Mapping[str, Any], figures: Mapping[str, Any] | None = None) -> str:
    """The report as HTML text.

    Args:
        results: see `koopjax.report`.
        figures: by name, matplotlib figures (what `koopjax.plot.figures(results)` returns) or SVG
            text. Sections whose figure is missing show their table alone.
    """
    figures = figures or {}
    results = plain(results)
    fields = ("original", "finding")
    if not isinstance(results, Mapping) or not all(
        isinstance(results.get(field), Mapping | None) for field in fields
    ):
        got = type(results).__name__
        raise expected("the results of a run, a mapping", got, "koopjax analyze, or report.load")
    replaced, finding = _rows(results), _finding(results)
    return _template().render(
        r=results,
        figures={name: _svg(name, figure) for name, figure in figures.items()},
        full=[row for row in replaced if row.get("rank") is None],
        ranked=_ranked(replaced),
        finding=finding,
        contest=_contest(results),
        rungs=[row for row in replaced if row.get("rank") is None or row is finding],
        lost=lambda row, whole=None: _lost(whole or results["original"].get("accuracy"), row),
        seeds=len(results.get("seeds") or [results.get("seed")]),
    )


def write(
    results: Mapping[str, Any],
    path: str | os.PathLike[str],
    figures: Mapping[str, Any] | None = None,
) -> Path:
    """Write the report as one self-contained file, whole or not at all; returns its path.

    Args:
        results, figures: as `render` takes them.
    """
    write_atomically(path, render(results, figures))
    return Path(path)


def save(
    results: Mapping[str, Any],
    directory: str | os.PathLike[str],
    figures: Mapping[str, Any] | None = None,
) -> tuple[Path, Path]:
    """Write results.json and report.html into a folder; returns their paths.

    Args:
        figures: as `write` takes them.
    """
    folder = as_path("a folder", directory)
    write_atomically(folder / "results.json", to_json(results))
    write(results, folder / "report.html", figures)
    return folder / "results.json", folder / "report.html"
