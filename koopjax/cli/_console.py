"""What the commands print: tables on standard output, progress on standard error."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from koopjax.cli._app import check_interrupted, mistakes

# Standard output that is not a terminal has no width of its own; tables should not be folded there.
_PIPE_WIDTH = 118


def console(json_file: Path | None = None) -> Any:
    """Where tables go: standard output, or standard error when that carries the JSON."""
    from rich.console import Console

    stream = sys.stderr if str(json_file) == "-" else sys.stdout
    wide = None if stream.isatty() or "COLUMNS" in os.environ else _PIPE_WIDTH
    return Console(file=stream, width=wide, highlight=False, soft_wrap=False)


def _logged(label: str, total: float | None = None, each: bool = False) -> Callable[..., None]:
    """A stage in a log."""
    print(f"koopjax: {label} ...", file=sys.stderr, flush=True)

    def told(done: float, note: str = "") -> None:
        check_interrupted()
        if each:
            print(f"koopjax: {done:g}/{total:g} {note}", file=sys.stderr, flush=True)

    return told


@contextlib.contextmanager
def progress() -> Iterator[Callable[..., Callable[..., None]]]:
    """Progress bars on standard error, gone when done; in a log, one line a stage.

    Yields a function `stage(label, total=None, each=False)` that begins a stage, ends the one
    before, and returns `advance(done, note="")`; with `each`, a log gets a line for every advance,
    as a stage of hours needs.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    err = Console(stderr=True, highlight=False)
    if not err.is_terminal:
        yield _logged
        return
    bars = Progress(
        TextColumn("{task.description:<34}"),
        BarColumn(bar_width=28),
        TimeElapsedColumn(),
        TextColumn("[dim]{task.fields[note]}"),
        console=err,
        transient=True,
    )

    def stage(label: str, total: float | None = None, each: bool = False) -> Callable[..., None]:
        del each  # a bar shows its latest note
        for task in bars.tasks[-1:]:
            finished = task.total or 1.0
            bars.update(task.id, total=finished, completed=finished)
            bars.stop_task(task.id)
        here = bars.add_task(label, total=total, note="")

        def advance(done: float, note: str = "") -> None:
            check_interrupted()
            bars.update(here, completed=done, note=note)

        return advance

    with bars:
        yield stage


def emit(json_file: Path | None, value: Any) -> None:
    """Write JSON to a file, or to standard output for `-`; nothing for None."""
    from koopjax import report

    if json_file is None:
        return
    text = report.to_json(value) if isinstance(value, dict) else json.dumps(value, indent=1) + "\n"
    if str(json_file) == "-":
        print(text, end="")
    else:
        with mistakes("--json"):
            report.write_atomically(json_file, text)


def table(title: str | None, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Any:
    """A rich table: the first column left, a column whose name begins with "<" left too."""
    from rich import box
    from rich.table import Table

    made = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for i, name in enumerate(columns):
        left = i == 0 or name.startswith("<")
        made.add_column(
            name.removeprefix("<"), justify="left" if left else "right", no_wrap=not left or i == 0
        )
    for row in rows:
        made.add_row(*(str(cell) for cell in row))
    return made


def figure(value: float | None, digits: int = 4) -> str:
    """A number of a table."""
    return "–" if value is None else f"{value:.{digits}f}"


def plus_minus(row: Mapping[str, Any], key: str = "accuracy", digits: int = 4) -> str:
    """Mean ± standard deviation over seeds."""
    mean, std = row.get(key), row.get(f"{key}_std")
    if mean is None:
        return "–"
    return figure(mean, digits) + (f" ± {std:.{digits}f}" if std else "")
