"""The commands analyze and sweep: what a span of layers is replaced by, and how well."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import click

from koopjax.cli import _console as show
from koopjax.cli._app import (
    MODEL,
    Given,
    UserError,
    main,
    mistakes,
    numbers_from,
    options,
    parts_of,
)  # fmt: skip
from koopjax.cli._results import Work, add_ladders, add_plane, work


def choose_dictionaries(text: str | None, known: Mapping[str, Any]) -> dict[str, Any]:
    """Dictionaries by the beginnings of their names, `-` or `_` for a space; all for None."""
    if text is None:
        return dict(known)
    chosen = {}
    for part in parts_of(text):
        plain = part.lower().replace("-", " ").replace("_", " ")
        matching = [name for name in known if name.startswith(plain)]
        if len(matching) != 1:
            short = ", ".join(name.split(",")[0] for name in known)
            raise UserError(f"--dictionaries: expected some of {short}, got {part!r}")
        chosen[matching[0]] = known[matching[0]]
    if not chosen:
        raise UserError("--dictionaries: expected at least one name, got none, try affine")
    return chosen


def ladder_table(results: Mapping[str, Any], svd: bool = True) -> Any:
    """The rungs; `svd=False` leaves out what is truncated by plain singular values."""
    original = results["original"]
    first = ("[bold]original", "", show.plus_minus(original), *[""] * 4)
    rows: list[tuple[str, ...]] = [(*first, f"{original['stored_bytes']:,}")]
    least = results.get("finding") or {}
    for row in results["replaced"]:
        if (row["rank"] is not None and row["target"] != "state") or row["truncation"] == "tt":
            continue
        if row["truncation"] == "svd" and not svd:
            continue
        style = "[dim]" if row["null"] else ""
        if least and all(row[key] == value for key, value in least.items()):
            style = "[bold green]"
        plain = " (SVD)" * (row["truncation"] == "svd")
        cells = (
            f"{row['dictionary']}{' (null)' * row['null']}",
            "" if row["rank"] is None else f"{row['rank']}{plain}",
            show.plus_minus(row),
            show.figure(row["agreement"]),
            show.figure(row["kl"]),
            show.figure(row["r2"], 3),
            f"{round(row['numbers']):,}",
            f"{row['stored_bytes']:,}",
        )
        rows.append(tuple(f"{style}{cell}" for cell in cells))
    columns = ("dictionary", "rank", "accuracy", "agreement", "KL", "R²", "numbers", "bytes")
    seeds = len(results["seeds"])
    title = f"{results['dataset']}: {results['span']['start']} → {results['span']['stop']}"
    return show.table(f"{title} replaced by K, {seeds} seed{'s' * (seeds > 1)}", columns, rows)


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


def _tolerance(default: float) -> Callable[[Any], Any]:
    return click.option(
        "--tolerance", type=click.FloatRange(0, 1), default=default, show_default=True,
        help="Accuracy that the finding may lose.",
    )  # fmt: skip


def _latent(help: str) -> Callable[[Any], Any]:
    return click.option(
        "--latent", type=click.IntRange(1, 64), default=8, show_default=True, help=help
    )


def _check_latent(job: Work, at: tuple[str, str], latent: int) -> None:
    """Refuse more latent coordinates than the state before the span has."""
    from koopjax import surgery

    x = job.data.x_test
    cuts = {cut.name: cut for cut in surgery.cut_points(job.nets[0].model, x[:1])}
    shape = cuts[at[0]].sample_shape if at[0] in cuts else x.shape[1:]
    if len(shape) == 1 and latent > shape[0]:
        raise UserError(
            f"--latent: expected at most {shape[0]}, the units at {at[0]!r}, got {latent}"
        )


def _show_plane(job: Work, lead: str = "") -> None:
    results = job.results
    said = f"{lead}{results['plane']['sentence']}", results["interactions"]["sentence"]
    job.shown += [plane_table(results), *said]


@main.command()
@options(*MODEL, "seeds", "from", "to", "out", "json")
@click.option(
    "--dictionaries", metavar="A,B",
    help="Which dictionaries: affine, degree-2, degree-3, rbf, random-fourier [default: all].",
)  # fmt: skip
@click.option("--ranks", default="2,4,8,10,16,32,64", show_default=True, metavar="R,R")
@_tolerance(0.003)
@click.option(
    "--format", "form", type=click.Choice(("dense", "tt")), default="dense", show_default=True,
    help="dense: K whole and cut to ranks; tt: tensor trains of all degrees and ranks as well.",
)  # fmt: skip
@click.option(
    "--degrees", default="1,2", show_default=True, metavar="D,D", help="With --format tt."
)
@click.option(
    "--tt-ranks", default="1,2,4,8", show_default=True, metavar="R,R", help="With --format tt."
)
@_latent("Latent coordinates, with --format tt.")
def analyze(
    given: Given, dictionaries: str | None, ranks: str, tolerance: float, form: str, degrees: str,
    tt_ranks: str, latent: int,
) -> None:  # fmt: skip
    """How nonlinear is a span of layers? Replace it by K on ever richer dictionaries.

    Networks are trained by the default recipe, or found in --out from an earlier run. With --format
    tt, tensor trains of all degrees and ranks too, and the interactions that they are made of.
    """
    from koopjax import analysis

    chosen = choose_dictionaries(dictionaries, analysis.default_dictionaries())
    cut_at = numbers_from("--ranks", ranks)
    plane = {"degrees": numbers_from("--degrees", degrees)}
    plane["ranks"] = numbers_from("--tt-ranks", tt_ranks)
    given.check_one_network()
    with work(given, "analyze", 3) as job:
        common = {"at": job.span(given.start, given.stop), "tolerance": tolerance}
        ladders = add_ladders(job, chosen, ranks=cut_at, **common)
        job.shown += [ladder_table(job.results), f"[bold]{job.results['sentence']}"]
        if form == "tt":
            _check_latent(job, common["at"], latent)
            add_plane(job, ladders, latent=latent, **plane, **common)
            job.results["replaced"] += job.results["plane"]["rows"]
            _show_plane(job)


@main.command()
@options(*MODEL, "seeds", "from", "to", "out", "json")
@click.option("--degrees", default="1,2,3", show_default=True, metavar="D,D",
              help="Degrees of the polynomials of each latent coordinate.")  # fmt: skip
@_latent("Latent coordinates, the leading ones.")
@click.option(
    "--memory-limit", metavar="SIZE",
    help="Memory for the sweep, such as 2GiB; it goes in chunks [default: none].",
)  # fmt: skip
@click.option("--ranks", default="1,2,4,6,8", show_default=True, metavar="R,R")
@_tolerance(0.005)
def sweep(
    given: Given, degrees: str, latent: int, memory_limit: str | None, ranks: str, tolerance: float
) -> None:
    """Which degree, which tensor-train rank? Sweep both in the place of a span of layers.

    An interrupted sweep goes on when the same command is given again: what is finished lies in a
    ledger below --out.
    """
    from koopjax.sweep import bytes_of

    with mistakes("--memory-limit"):
        bytes_of(memory_limit)
    plane = {"degrees": numbers_from("--degrees", degrees)}
    plane["ranks"] = numbers_from("--ranks", ranks)
    given.check_one_network()
    with work(given, "sweep") as job:
        at = job.span(given.start, given.stop)
        _check_latent(job, at, latent)
        add_plane(
            job, None, at=at, latent=latent, tolerance=tolerance, memory_limit=memory_limit, **plane
        )
        _show_plane(job, "[bold]")
