"""The commands that look: datasets, train, cuts, report."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import click

from koopjax.cli import _console as show
from koopjax.cli._app import UserError, main, mistakes, options


def emit(json_file: Path | None, value: Any) -> None:
    """Write JSON to a file, or to standard output for `-`; nothing for None."""
    from koopjax import report

    if json_file is None:
        return
    text = report.to_json(value) if isinstance(value, dict) else json.dumps(value, indent=1) + "\n"
    if str(json_file) == "-":
        click.echo(text, nl=False)
    else:
        report.write_atomically(json_file, text)


@main.command()
@options("data-dir", "json")
def datasets(data_dir: Path | None, json_file: Path | None) -> None:
    """List the datasets, whether they are here, and where to get them."""
    from koopjax import data

    with mistakes("--data-dir"):
        infos = data.available(data_dir)
    emit(json_file, [dataclasses.asdict(info) for info in infos])
    rows = [
        (
            info.name,
            "yes" if info.present else "no",
            "×".join(map(str, info.shape)),
            info.classes,
            f"{info.train:,} / {info.validation:,} / {info.test:,}",
            info.source,
        )
        for info in infos
    ]
    columns = ("dataset", "<here", "image", "classes", "train / validation / test", "<source")
    show.console(json_file).print(show.table(None, columns, rows))


@main.command("report")
@click.argument("results", type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="Where to write the page [default: report.html beside the results].",
)  # fmt: skip
def report_command(results: Path, out: Path | None) -> None:
    """Make report.html again from RESULTS, a results.json or the folder that holds one."""
    from koopjax import plot, report

    with mistakes():
        loaded = report.load(results)
    folder = results if results.is_dir() else results.parent
    try:
        page = report.render(loaded, plot.figures(loaded))
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{results} lacks what a report needs ({error}), try one that koopjax wrote"
        ) from error
    target = out or folder / "report.html"
    report.write_atomically(target, page)
    show.console().print(f"report: {target}")
