"""The command analyze."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from koopjax.cli import _console as show, _results as study, _trains as trains
from koopjax.cli._app import UserError, main, options
from koopjax.cli._commands import emit
from koopjax.cli._span import MODEL, find_span, numbers_from, prepare, span_options


def choose_dictionaries(text: str | None, known: Mapping[str, Any]) -> dict[str, Any]:
    """Dictionaries by the beginnings of their names, `-` or `_` for a space; all for None."""
    if text is None:
        return dict(known)
    chosen = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
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
    rows: list[Sequence[str]] = [
        (
            "[bold]original",
            "",
            show.plus_minus(original),
            "",
            "",
            "",
            "",
            f"{original['stored_bytes']:,}",
        )
    ]
    least = results.get("finding") or {}
    for row in results["replaced"]:
        if (row["rank"] is not None and row["target"] != "state") or row["truncation"] == "tt":
            continue
        if row["truncation"] == "svd" and not svd:
            continue
        style = "[dim]" if row["null"] else ""
        if least and all(row[key] == value for key, value in least.items()):
            style = "[bold green]"
        rank = (
            "" if row["rank"] is None else f"{row['rank']}{' (SVD)' * (row['truncation'] == 'svd')}"
        )
        rows.append(
            (
                f"{style}{row['dictionary']}{' (null)' * row['null']}",
                f"{style}{rank}",
                f"{style}{show.plus_minus(row)}",
                f"{style}{show.figure(row['agreement'])}",
                f"{style}{show.figure(row['kl'])}",
                f"{style}{show.figure(row['r2'], 3)}",
                f"{style}{round(row['numbers']):,}",
                f"{style}{row['stored_bytes']:,}",
            )
        )
    columns = ("dictionary", "rank", "accuracy", "agreement", "KL", "R²", "numbers", "bytes")
    seeds = len(results["seeds"])
    title = f"{results['dataset']}: {results['span']['start']} → {results['span']['stop']}"
    return show.table(f"{title} replaced by K, {seeds} seed{'s' * (seeds > 1)}", columns, rows)


@main.command()
@options(*MODEL)
@click.option("--seeds", type=click.IntRange(1, 100), help="Networks, from --seed on [default: 3].")
@span_options
@click.option(
    "--dictionaries", metavar="A,B",
    help="Which dictionaries: affine, degree-2, degree-3, rbf, random-fourier [default: all].",
)  # fmt: skip
@click.option("--ranks", default="2,4,8,10,16,32,64", show_default=True, metavar="R,R")
@click.option(
    "--tolerance", type=click.FloatRange(0, 1), default=0.003, show_default=True,
    help="Accuracy that the finding may lose.",
)  # fmt: skip
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
@click.option(
    "--latent", type=click.IntRange(1, 64), default=8, show_default=True,
    help="Latent coordinates, with --format tt.",
)  # fmt: skip
@options("out", "json")
def analyze(
    dataset: str, data_dir: Path | None, download: bool, model_file: Path | None, architecture: str,
    epochs: int | None, seed: int, seeds: int | None, start: str | None, stop: str | None,
    dictionaries: str | None, ranks: str, tolerance: float, form: str, degrees: str, tt_ranks: str,
    latent: int, out: Path, json_file: Path | None,
) -> None:  # fmt: skip
    """How nonlinear is a span of layers? Replace it by K on ever richer dictionaries.

    Networks are trained by the default recipe, or found in --out from an earlier run. With --format
    tt, tensor trains of all degrees and ranks too, and the interactions that they are made of.
    """
    from koopjax import analysis

    chosen = choose_dictionaries(dictionaries, analysis.default_dictionaries())
    cut_at = numbers_from("--ranks", ranks)
    settings = trains.check_plane(degrees, tt_ranks, latent, None, "--tt-ranks")
    if model_file is not None and (seeds or 1) > 1:
        raise UserError(
            "--seeds: expected 1 with --model, which is one network, try without --seeds"
        )
    count = 1 if model_file is not None else seeds or 3
    begun = time.perf_counter()
    with show.progress() as stage:
        full, data, how, nets = prepare(
            dataset, data_dir, download, model_file, architecture, epochs,
            range(seed, seed + count), out, stage,
        )  # fmt: skip
        trained = time.perf_counter()
        at = find_span(nets[0].model, data.x_test[:1], start, stop)
        advance = stage("replacing the span", count * len(chosen))
        ladders, summary = study.climb(
            nets, data, at=at, dictionaries=chosen, ranks=cut_at, tolerance=tolerance,
            progress=lambda done, total, what: advance(done, what),
        )  # fmt: skip
        results = study.begin(data, [network.seed for network in nets], how, nets[0], full)
        study.add_ladders(results, ladders, summary, full)
        if form == "tt":
            trains.add_plane(
                results, nets, data, out, stage, ladders=ladders, at=at, tolerance=tolerance,
                **settings,
            )  # fmt: skip
            results["replaced"] += results["plane"]["rows"]
        ended = time.perf_counter()
        results["timing"] = {"train": trained - begun, "analyze": ended - trained}
        _, page = study.write(results, out)
    emit(json_file, results)
    console = show.console(json_file)
    console.print(ladder_table(results))
    console.print(f"[bold]{results['sentence']}")
    if form == "tt":
        console.print(trains.plane_table(results))
        console.print(results["plane"]["sentence"])
        console.print(results["interactions"]["sentence"])
    console.print(f"report: {page}", soft_wrap=True)
