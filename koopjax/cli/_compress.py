"""The command compress; with training or several seeds the contest of `compress.pareto`."""

from __future__ import annotations

import dataclasses
import re
import statistics
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from koopjax.cli import _console as show, _networks as networks
from koopjax.cli._app import MODEL, Given, UserError, main, mistakes, names_from, options, parts_of
from koopjax.cli._results import Work, add_compressed, work

#: Tracks in the order of `compress.pareto`, spelled out so that --help imports nothing heavy.
TRACKS = ("one-shot", "label-free", "fine-tuned", "any-bits")
#: Folder of the ledgers, below --out.
LEDGER = "pareto"


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
    chosen = choose(names_from("--tracks", tracks, list(TRACKS)), methods)
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
            add_contest(job, chosen, sizes, at, finetune_epochs or given.epochs)
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


def choose(tracks: Sequence[str], methods: str | None) -> dict[str, list[str]]:
    """The methods of each track; refused where a track is left with none."""
    from koopjax import compress

    trained = list(compress.RECIPES)
    known = {t: list(compress.METHODS) if t == "one-shot" else trained for t in tracks}
    if methods is None:
        return known
    able = {t: [*compress.METHODS, *([] if t == "one-shot" else trained)] for t in tracks}
    every = list(dict.fromkeys(name for names in able.values() for name in names))
    wanted = names_from("--methods", methods, every)
    chosen = {t: [name for name in wanted if name in able[t]] for t in tracks}
    for track, names in chosen.items():
        if not names:
            raise UserError(
                f"--methods: expected some for the track {track}, got none, "
                f"try {', '.join(known[track])}"
            )
    return chosen


def training(count: int, epochs: int | None) -> tuple[Any, Any]:
    """Settings of the trained tracks, and shorter ones for choosing variants, by data set size."""
    from koopjax import compress

    if count < networks.SMALL:
        # Many short epochs of small batches.
        settings = compress.Training(epochs=epochs or 60, batch_size=32)
        return settings, settings
    epochs = epochs or 20
    return compress.Training(epochs=epochs), compress.Training(epochs=max(1, epochs // 2))


def _told(data: Any, epochs: int | None) -> str:
    """The settings of the trained tracks, for the report."""
    how, tuning = training(len(data.y_train), epochs)
    return (
        f"AdamW, cosine, warm-up {100 * how.warmup:g} %, {how.epochs} epochs of batches of "
        f"{how.batch_size} ({tuning.epochs} while settings are chosen), distillation with "
        f"{100 * how.label_weight:g} % of the loss for the labels where there are any"
    )


def _run(job: Work, methods, budgets, at, epochs) -> tuple[Any, dict[tuple[Any, ...], str]]:
    """A `compress.Pareto`, and the file of each point, which was loaded again and measured.

    Settings are chosen on a network of the first seed that has not seen the validation images. An
    interrupted contest goes on from its ledger; what it compressed lies in files already.
    """
    from koopjax import compress

    how, data, nets, out = job.how, job.data, job.nets, job.given.out
    settings, tuning = training(len(data.y_train), epochs)
    stem = nets[0].path.stem.removesuffix(f"-seed{nets[0].seed}")
    if how is None:
        # A network that was given is told apart by its content.
        stem += f"-{zlib.crc32(nets[0].path.read_bytes()):08x}"
    span = [] if at is None else [re.sub(r"[^\w.]+", "_", "_to_".join(at))]
    ledger = out / LEDGER / f"{'-'.join([stem, *span, str(settings.epochs)])}-epochs.jsonl"
    by_seed = {network.seed: network for network in nets}
    total = sum(map(len, methods.values())) * len(budgets) * len(nets)
    advance = job.stage("compressing", total, each=True)

    def network(seed: int, x: Any, y: Any) -> Any:
        if len(y) == len(data.y_train) + len(data.y_val):
            return by_seed[seed].model
        return _without_validation(how, data, seed, out, x, y)

    def path_of(point: Any) -> Path:
        trained = [] if point.track == "one-shot" else [f"{settings.epochs}-epochs"]
        kind = [*span, point.track, *trained, point.method, point.budget.replace(" ", "")]
        return out / f"{'-'.join([stem, f'seed{point.seed}', *kind])}.koopjax"

    def keep(point: Any, made: Any) -> None:
        """Save a network, load it again, and see that it scores as it did."""
        path = path_of(point)
        _, again = networks.saved(made.model, path, data)
        if abs(again - point.accuracy) * len(data.y_test) > 1.5:  # more than one image
            raise AssertionError(f"{path} scores {again}, what was saved in it {point.accuracy}")

    points, variants, originals = [], {}, {}
    for track, names in methods.items():
        offset = len(points)

        def show_point(done: int, count: int, point: Any, offset: int = offset) -> None:
            figure = "no form so small" if point.accuracy is None else f"{point.accuracy:.4f}"
            name = f"{point.track} {point.budget} {point.method} seed {point.seed}: {figure}"
            advance(offset + done, name)

        with mistakes("--out", about="ledger"):
            part = compress.pareto(
                nets[0].model if how is None else network, data, names, budgets, list(by_seed),
                at=at, tracks=(track,), training=settings, tuning=tuning, ledger=ledger,
                keep=keep, progress=show_point,
            )  # fmt: skip
        points += part.points
        variants |= part.variants
        originals |= part.originals
    kept = [(_place(p), path_of(p)) for p in points if p.accuracy is not None]
    paths = {where: path.name for where, path in kept if path.is_file()}
    return compress.Pareto(points, variants, originals), paths


def _place(point: Any) -> tuple[Any, ...]:
    """What tells the points of a contest apart."""
    return point.track, point.budget, point.method, point.seed


def _without_validation(how: Any, data: Any, seed: int, out: Path, x: Any, y: Any) -> Any:
    """The network that settings are chosen on; made once, and kept."""
    import jax
    from flax import nnx

    from koopjax import export, models

    path = out / LEDGER / f"{networks.stem(how, data.name, seed)}-choosing.koopjax"
    if path.is_file():
        return export.load(path)
    model = how.build(nnx.Rngs(seed))
    made = models.train(model, x, y, key=jax.random.key(seed), **how.settings()).model
    path.parent.mkdir(parents=True, exist_ok=True)
    export.save(made, path)
    return made


def add_contest(
    job: Work, methods: Mapping[str, Any], budgets: Sequence[str], at: Any, epochs: int | None
) -> None:
    """A contest of the networks: rows over seeds, points, originals and a sentence.

    Koopman methods replace the span `at`, the whole network for None; without epochs of a trained
    compression there are as many as suit the data set.
    """
    results = job.results
    contest, paths = _run(job, methods, budgets, at, epochs)
    if set(methods) != {"one-shot"}:
        results["settings"]["fine_tuning"] = _told(job.data, epochs)
    originals = [contest.originals[seed] for seed in sorted(contest.originals)]
    accuracies = [one["accuracy"] for one in originals]
    results["original"] = {
        **job.nets[0].original(job.data, statistics.mean(accuracies)),
        "accuracy_std": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
        "accuracies": accuracies,
        "stored_bytes": originals[0]["stored_bytes"],
    }
    summary = contest.summary()
    for row in summary:
        group = row["track"], row["budget"], row["method"]
        same = [p for p in contest.points if _place(p)[:3] == group]
        done = [p for p in same if p.accuracy is not None]
        extra = {
            "accuracy_std": row["std"],
            "accuracies": [p.accuracy for p in done],
            "original_accuracy": statistics.mean(p.original_accuracy for p in done or same),
            "finetuned": row["track"] in ("fine-tuned", "any-bits"),
            "seed": same[0].seed,
            "seeds": [p.seed for p in same],
            "paths": [paths[_place(p)] for p in done if _place(p) in paths],
            "settings": done[0].settings if done else None,
        }
        kept = {key: value for key, value in row.items() if key not in ("seeds", "std")}
        results["compressed"].append(kept | extra)
    results["sentence"] = contest_sentence(summary)
    results["pareto"] = {
        "dataset": results["dataset"],
        "sentence": results["sentence"],
        "originals": {str(seed): dict(one) for seed, one in contest.originals.items()},
        "summary": summary,
        "points": [point.as_dict() for point in contest.points],
    }
    done = [row for row in results["compressed"] if row["accuracy"] is not None]
    if done:
        results["best"] = max(done, key=lambda row: row["accuracy"])


def contest_sentence(summary: Sequence[Mapping[str, Any]]) -> str:
    """What came out at the smallest size of each track: the best method, and the best other kind.

    >>> row = {"track": "one-shot", "budget": "30x", "ratio": 30.2, "std": None}
    >>> contest_sentence([row | {"method": "koopman", "accuracy": 0.95},
    ...           row | {"method": "obs", "accuracy": 0.9}])
    'One-shot at 30x: koopman keeps 0.9500, the best conventional method, obs, 0.9000.'
    """
    koopman = lambda row: row["method"].startswith("koopman")
    parts = []
    for track in dict.fromkeys(row["track"] for row in summary):
        own = [r for r in summary if r["track"] == track and r["accuracy"] is not None]
        if not own:
            parts.append(f"{track.capitalize()}: no method has a form so small.")
            continue
        budget = max(own, key=_times)["budget"]
        own = [row for row in own if row["budget"] == budget]
        own.sort(key=lambda row: -row["accuracy"])
        told = f"{track.capitalize()} at {budget}: {own[0]['method']} keeps {_figure(own[0])}"
        other = next((row for row in own if koopman(row) != koopman(own[0])), None)
        if other is not None:
            kind = "Koopman" if koopman(other) else "conventional"
            told += f", the best {kind} method, {other['method']}, {_figure(other)}"
        parts.append(f"{told}.")
    return " ".join(parts)


def _times(row: Mapping[str, Any]) -> float:
    """How many times smaller than the original the budget of a row is."""
    from koopjax import compress

    budget = compress.Budget.parse(row["budget"])
    if budget.ratio is not None:
        return budget.ratio
    return row["ratio"] * row["stored_bytes"] / (budget.size or 1)


def _figure(row: Mapping[str, Any]) -> str:
    return show.plus_minus({"accuracy": row["accuracy"], "accuracy_std": row["std"]})
