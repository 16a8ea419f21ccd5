"""The command compress."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from koopjax.cli import _console as show, _contest as contest, _results as study
from koopjax.cli._app import UserError, main, mistakes, names_from, options
from koopjax.cli._commands import emit
from koopjax.cli._span import MODEL, find_span, prepare, span_options


def compressed_table(results: Mapping[str, Any]) -> Any:
    """Methods by budgets."""
    rows = [
        (
            row["method"],
            row["budget"],
            "–" if row["ratio"] is None else f"{row['ratio']:.1f}x",
            "–" if row["stored_bytes"] is None else f"{row['stored_bytes']:,}",
            show.figure(row["accuracy"]),
            f"{row['seconds']:.1f} s",
            row["note"],
        )
        for row in results["compressed"]
    ]
    columns = ("method", "<budget", "ratio", "bytes", "accuracy", "time", "<note")
    whole = results["compressed"][0]["original_accuracy"]
    stored = results["original"]["stored_bytes"]
    title = f"compressed one-shot (seed {results['seed']}: {stored:,} bytes, accuracy {whole:.4f})"
    return show.table(title, columns, rows)


def budgets_from(texts: tuple[str, ...]) -> list[str]:
    """Budgets given one by one or separated by commas, checked."""
    budgets = [part.strip() for text in texts for part in text.split(",") if part.strip()]
    if not budgets:
        raise UserError("--budget: expected at least one size, got none, try 30x or 64KiB")
    for budget in budgets:
        check_budget(budget)
    return budgets


def check_budget(budget: str) -> None:
    """Refuse what is no budget, and a bare number, which may be a ratio or bytes."""
    from koopjax import compress

    with mistakes("--budget"):
        compress.Budget.parse(budget)
    if budget.strip().replace(".", "", 1).isdigit():
        raise UserError(
            f"--budget: expected a ratio or a size with its unit, got {budget}, "
            f"try {budget}x (so many times smaller) or {budget}B (bytes)"
        )


@main.command()
@options(*MODEL)
@click.option("--seeds", type=click.IntRange(1, 100), default=1, show_default=True,
              help="Networks, from --seed on.")  # fmt: skip
@click.option(
    "--budget", "budgets", multiple=True, default=("10x",), show_default=True, metavar="SIZE",
    help="30x (a ratio) or 64KiB (of the file); may be repeated, or a list 10x,30x.",
)  # fmt: skip
@click.option(
    "--tracks", default="one-shot", show_default=True, metavar="A,B",
    help="one-shot, label-free (distilled), fine-tuned (with labels), any-bits (and quantised).",
)  # fmt: skip
@click.option(
    "--methods", metavar="A,B",
    help="Such as koopman,magnitude,obs,whitened_svd [default: all of each track].",
)  # fmt: skip
@click.option(
    "--finetune-epochs", type=click.IntRange(1), metavar="N",
    help="Epochs of each trained compression [default: --epochs, else by dataset].",
)  # fmt: skip
@span_options
@options("out", "json")
def compress(
    dataset: str, data_dir: Path | None, download: bool, model_file: Path | None, architecture: str,
    epochs: int | None, seed: int, seeds: int, budgets: tuple[str, ...], tracks: str,
    methods: str | None, finetune_epochs: int | None, start: str | None, stop: str | None,
    out: Path, json_file: Path | None,
) -> None:  # fmt: skip
    """Make the network smaller; without --tracks one-shot: no labels, no training.

    Every result is saved, loaded again and measured. --from and --to bound the span that all
    methods compress, leaving the rest as it is; without, the whole network from its input to its
    logits.

    With a trained track or several seeds, methods compete at equal bytes: each one's settings are
    chosen on validation images, the test images are used once. --from and --to then bound what the
    Koopman methods replace; the others have the whole network. That takes long; an interrupted
    contest goes on when the same command is given again.
    """
    sizes = budgets_from(budgets)
    chosen = contest.choose(names_from("--tracks", tracks, list(contest.TRACKS)), methods)
    plain = list(chosen) == ["one-shot"] and seeds == 1
    begun = time.perf_counter()
    with show.progress() as stage:
        one = [seed] if model_file is not None else range(seed, seed + seeds)
        full, data, how, nets = prepare(
            dataset, data_dir, download, model_file, architecture, epochs, one, out, stage
        )
        if model_file is not None:
            nets = [dataclasses.replace(nets[0], seed=seed + k) for k in range(seeds)]
        trained = time.perf_counter()
        results = study.begin(data, [network.seed for network in nets], how, nets[0], full)
        at = None
        if start or stop:
            at = find_span(nets[0].model, data.x_test[:1], start or "input", stop or "output")
        if plain:
            advance = stage("compressing", len(sizes) * len(chosen["one-shot"]))
            study.add_compressed(
                results, nets[0], data, out, budgets=sizes, methods=chosen["one-shot"], at=at,
                progress=lambda done, total, row: advance(done, f"{row['method']} {row['budget']}"),
            )  # fmt: skip
            results["sentence"] = compression_sentence(results)
        else:
            made, paths = contest.run(
                nets, how, data, out, methods=chosen, budgets=sizes, at=at,
                epochs=finetune_epochs or epochs, stage=stage,
            )  # fmt: skip
            if set(chosen) != {"one-shot"}:
                results["settings"]["fine_tuning"] = contest.told(data, finetune_epochs or epochs)
            contest.add(results, made, paths, study.parameters(nets[0], data))
        told = results["sentence"]
        ended = time.perf_counter()
        results["timing"] = {"train": trained - begun, "compress": ended - trained}
        _, page = study.write(results, out)
    emit(json_file, results)
    console = show.console(json_file)
    console.print(compressed_table(results) if plain else contest.table(results))
    console.print(f"[bold]{told}")
    console.print(f"report: {page}", soft_wrap=True)


def compression_sentence(results: Mapping[str, Any]) -> str:
    """The smaller model, in one sentence."""
    best = results["best"]
    return (
        f"A smaller Flax model on disk, loaded again and measured: {best['path']}, "
        f"{best['stored_bytes']:,} bytes ({best['ratio']:.1f}x smaller), accuracy "
        f"{best['accuracy']:.4f} against its original's {best['original_accuracy']:.4f} "
        f"({best['method']})."
    )
