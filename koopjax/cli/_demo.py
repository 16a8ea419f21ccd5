"""The whole way in under a minute: train, analyse, replace, compress, report."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import click

from koopjax.cli import _console as show, _networks as networks, _results as study
from koopjax.cli._app import main, mistakes, options, writable_folder
from koopjax.cli._commands import emit
from koopjax.cli._study import compressed_table, compression_sentence, ladder_table

# A hidden layer of 64 has 2,145 products up to degree 2, one of 100 has 5,151: the wider one costs
# minutes where this costs seconds, and shows nothing else on images of 64 pixels.
_WIDTH = 64
_RANKS = (4, 8, 10, 16)


@main.command()
@options("dataset", "data-dir", "download", "seed")
@click.option(
    "--seeds", type=click.IntRange(1, 100), default=5, show_default=True,
    help="Networks, from --seed on.",
)  # fmt: skip
@click.option("--budget", default="8x", show_default=True, metavar="SIZE", help="30x or 64KiB.")
@options("out", "json")
def demo(
    dataset: str, data_dir: Path | None, download: bool, seed: int, seeds: int, budget: str,
    out: Path, json_file: Path | None,
) -> None:  # fmt: skip
    """Train on handwritten digits, find out how nonlinear the network is, make it smaller.

    Under a minute on two cores with the embedded digits. Everything is done anew each time.
    """
    full = networks.load_dataset(dataset, data_dir, download)
    writable_folder(out)
    from koopjax import analysis, compress

    with mistakes("--budget"):
        compress.Budget.parse(budget)
    how = networks.recipe(full, "mlp", None)
    sizes = how.config["sizes"]
    if len(full.y_train) < 10_000:
        sizes = (sizes[0], *([_WIDTH] * (len(sizes) - 2)), sizes[-1])
        how = dataclasses.replace(how, config={"sizes": sizes})
    data = networks.as_taken_by(how, full)
    dictionaries = analysis.default_dictionaries(directions=10, centers=300, features=500)
    times = [time.perf_counter()]
    with show.progress() as stage:
        told = networks.telling(stage(f"training {seeds} networks", how.epochs))
        nets = networks.train_lanes(how, full, range(seed, seed + seeds), out, told)
        times.append(time.perf_counter())
        advance = stage("replacing the middle layers", seeds * len(dictionaries))
        ladders, summary = study.climb(
            nets, data, dictionaries=dictionaries, ranks=_RANKS,
            progress=lambda done, total, what: advance(done, what),
        )  # fmt: skip
        results = study.begin(data, [network.seed for network in nets], how, nets[0], full)
        study.add_ladders(results, ladders, summary, full)
        times.append(time.perf_counter())
        told_methods = stage("compressing", len(compress.METHODS))
        study.add_compressed(
            results, nets[0], data, out, budgets=[budget], methods=list(compress.METHODS), at=None,
            progress=lambda done, total, row: told_methods(done, row.method),
        )  # fmt: skip
        times.append(time.perf_counter())
        stage("writing the report")
        names = ("train", "analyze", "compress")
        results["timing"] = {
            name: b - a for name, a, b in zip(names, times, times[1:], strict=False)
        }
        path, page = study.write(results, out)
    emit(json_file, results)
    console = show.console(json_file)
    console.print(ladder_table(results))
    console.print(compressed_table(results))
    console.print(f"[bold]{results['sentence']}")
    console.print(compression_sentence(results))
    console.print(f"results: {path}\nreport: {page}", soft_wrap=True)
