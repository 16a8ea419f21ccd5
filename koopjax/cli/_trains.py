"""Tensor trains on the command line: sweep, and what analyze adds with --format tt."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from koopjax.cli import _console as show, _results as study
from koopjax.cli._app import UserError, main, mistakes, options
from koopjax.cli._commands import emit
from koopjax.cli._span import MODEL, find_span, numbers_from, prepare, span_options

#: Where the ledger of a sweep lies, below --out.
LEDGER = "sweep"

_PLANE = (
    click.option("--degrees", default="1,2,3", show_default=True, metavar="D,D",
                 help="Degrees of the polynomials of each latent coordinate."),
    click.option("--latent", type=click.IntRange(1, 64), default=8, show_default=True,
                 help="Latent coordinates, the leading ones."),
    click.option("--memory-limit", metavar="SIZE",
                 help="Memory for the sweep, such as 2GiB; it goes in chunks [default: none]."),
)  # fmt: skip


def plane_options(command: Any) -> Any:
    """--degrees, --latent and --memory-limit."""
    for option in reversed(_PLANE):
        command = option(command)
    return command


def check_plane(
    degrees: str, ranks: str, latent: int, memory_limit: str | None, option: str = "--ranks"
) -> dict[str, Any]:
    """The settings of a plane as the library takes them; mistakes before any work."""
    from koopjax.sweep import bytes_of

    with mistakes("--memory-limit"):
        bytes_of(memory_limit)
    return {
        "degrees": numbers_from("--degrees", degrees),
        "ranks": numbers_from(option, ranks),
        "latent": latent,
        "memory_limit": memory_limit,
    }


def check_latent(model: Any, data: Any, at: tuple[str, str], latent: int) -> None:
    """Refuse more latent coordinates than the state before the span has."""
    from koopjax import surgery

    cuts = {cut.name: cut for cut in surgery.cut_points(model, data.x_test[:1])}
    shape = cuts[at[0]].sample_shape if at[0] in cuts else data.x_test.shape[1:]
    if len(shape) == 1 and latent > shape[0]:
        raise UserError(
            f"--latent: expected at most {shape[0]}, the units at {at[0]!r}, got {latent}"
        )


def add_plane(
    results: study.Results,
    nets: Sequence[Any],
    data: Any,
    out: Path,
    stage: Any,
    *,
    ladders: Sequence[Any] | None,
    at: tuple[str, str],
    tolerance: float,
    **settings: Any,
) -> None:
    """The planes of all networks, put into the results; a memory limit too small is a mistake."""
    check_latent(nets[0].model, data, at, settings["latent"])
    advance = stage("sweeping degrees and ranks", 1.0)
    try:
        study.add_plane(
            results, nets, data, ladders=ladders, at=at, tolerance=tolerance,
            ledger=out / LEDGER, progress=lambda done, total, what: advance(done / total, what),
            **settings,
        )  # fmt: skip
    except ValueError as error:
        if "memory limit" not in str(error):
            raise
        raise UserError(f"--memory-limit: {error}") from error


def plane_table(results: Mapping[str, Any]) -> Any:
    """Degrees and nulls by rows, ranks by columns; accuracies."""
    plane = results["plane"]
    ranks = sorted({row["rank"] for row in plane["rows"]})
    what = "agreement" if plane["original"]["accuracy"] is None else "accuracy"
    least = plane["least"] or {}
    rows: list[list[str]] = [["[bold]original", show.plus_minus(plane["original"])]]
    rows += [
        [f"{'[dim]' * row['null']}{row['dictionary']}", show.plus_minus(row, what)]
        for row in plane["nulls"]
    ]
    rows = [[*row, *[""] * (len(ranks) - 1)] for row in rows]
    for degree in sorted({row["degree"] for row in plane["rows"]}):
        own = {row["rank"]: row for row in plane["rows"] if row["degree"] == degree}
        cells = []
        for rank in ranks:
            found = least == {"degree": degree, "rank": rank}
            text = show.figure(own[rank][what]) if rank in own else ""
            cells.append(f"{'[bold green]' * found}{text}")
        rows.append([f"degree {degree}, rank", *cells])
    title = (
        f"{results['dataset']}: {plane['span']['start']} → {plane['span']['stop']} replaced by "
        f"tensor trains over {plane['latent']} coordinates"
    )
    return show.table(title, ["in its place", *map(str, ranks)], rows)


@main.command()
@options(*MODEL)
@click.option("--seeds", type=click.IntRange(1, 100), default=1, show_default=True,
              help="Networks, from --seed on.")  # fmt: skip
@span_options
@plane_options
@click.option("--ranks", default="1,2,4,6,8", show_default=True, metavar="R,R")
@click.option(
    "--tolerance", type=click.FloatRange(0, 1), default=0.005, show_default=True,
    help="Accuracy that the finding may lose.",
)  # fmt: skip
@options("out", "json")
def sweep(
    dataset: str, data_dir: Path | None, download: bool, model_file: Path | None, architecture: str,
    epochs: int | None, seed: int, seeds: int, start: str | None, stop: str | None, degrees: str,
    latent: int, memory_limit: str | None, ranks: str, tolerance: float, out: Path,
    json_file: Path | None,
) -> None:  # fmt: skip
    """Which degree, which tensor-train rank? Sweep both in the place of a span of layers.

    An interrupted sweep goes on when the same command is given again: what is finished lies in a
    ledger below --out.
    """
    settings = check_plane(degrees, ranks, latent, memory_limit)
    if model_file is not None and seeds > 1:
        raise UserError(
            "--seeds: expected 1 with --model, which is one network, try without --seeds"
        )
    begun = time.perf_counter()
    with show.progress() as stage:
        full, data, how, nets = prepare(
            dataset, data_dir, download, model_file, architecture, epochs,
            range(seed, seed + seeds), out, stage,
        )  # fmt: skip
        trained = time.perf_counter()
        at = find_span(nets[0].model, data.x_test[:1], start, stop)
        results = study.begin(data, [network.seed for network in nets], how, nets[0], full)
        add_plane(
            results, nets, data, out, stage, ladders=None, at=at, tolerance=tolerance, **settings
        )
        ended = time.perf_counter()
        results["timing"] = {"train": trained - begun, "sweep": ended - trained}
        _, page = study.write(results, out)
    emit(json_file, results)
    console = show.console(json_file)
    console.print(plane_table(results))
    console.print(f"[bold]{results['plane']['sentence']}")
    console.print(results["interactions"]["sentence"])
    console.print(f"report: {page}", soft_wrap=True)
