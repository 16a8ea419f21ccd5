"""The command compress."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import click

from koopjax.cli import _console as show, _contest as contest
from koopjax.cli._app import MODEL, Given, UserError, main, mistakes, names_from, options, parts_of
from koopjax.cli._results import add_compressed, work


def compressed_table(results: Mapping[str, Any]) -> Any:
    """Methods by budgets, in a contest by tracks too."""
    compressed, tracks = results["compressed"], "pareto" in results
    rows = [
        (
            row["method"],
            *([row["track"]] if tracks else []),
            row["budget"],
            "–" if row["ratio"] is None else f"{row['ratio']:.1f}x",
            "–" if row["stored_bytes"] is None else f"{row['stored_bytes']:,.0f}",
            show.plus_minus(row),
            f"{row['seconds']:.1f} s",
            row["note"],
        )
        for row in compressed
    ]
    after = ("<budget", "ratio", "bytes", "accuracy", "time", "<note")
    columns = ("method", *(["<track"] if tracks else []), *after)
    if not tracks:
        whole = compressed[0]["original_accuracy"]
        stored = results["original"]["stored_bytes"]
        about = f"one-shot (seed {results['seed']}: {stored:,} bytes, accuracy {whole:.4f})"
        return show.table(f"compressed {about}", columns, rows)
    count = len(results["original"]["accuracies"])
    told = f"{count} seed{'s' * (count > 1)}, original {show.plus_minus(results['original'])}"
    return show.table(f"compressed ({told})", columns, rows)


def budgets_from(texts: tuple[str, ...]) -> list[str]:
    """Budgets given one by one or separated by commas, checked."""
    budgets = [part for text in texts for part in parts_of(text)]
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
@options(*MODEL, "seeds", "from", "to", "out", "json")
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
def compress(
    given: Given, budgets: tuple[str, ...], tracks: str, methods: str | None,
    finetune_epochs: int | None,
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
    sizes, seeds = budgets_from(budgets), given.seeds or 1
    chosen = contest.choose(names_from("--tracks", tracks, list(contest.TRACKS)), methods)
    with work(given, "compress") as job:
        if given.model_file is not None:
            job.nets = [dataclasses.replace(job.nets[0], seed=given.seed + k) for k in range(seeds)]
            job.results["seeds"] = [network.seed for network in job.nets]
        at = None
        if given.start or given.stop:
            at = job.span(given.start or "input", given.stop or "output")
        if list(chosen) == ["one-shot"] and seeds == 1:
            add_compressed(job, sizes, chosen["one-shot"], at)
            job.results["sentence"] = compression_sentence(job.results)
        else:
            contest.add(job, chosen, sizes, at, finetune_epochs or given.epochs)
        job.shown += [compressed_table(job.results), f"[bold]{job.results['sentence']}"]


def compression_sentence(results: Mapping[str, Any]) -> str:
    """The smaller model, in one sentence."""
    best = results["best"]
    return (
        f"A smaller Flax model on disk, loaded again and measured: {best['path']}, "
        f"{best['stored_bytes']:,} bytes ({best['ratio']:.1f}x smaller), accuracy "
        f"{best['accuracy']:.4f} against its original's {best['original_accuracy']:.4f} "
        f"({best['method']})."
    )
