"""The commands that look: datasets, train, cuts, report."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import click

from koopjax.cli import _console as show, _networks as networks
from koopjax.cli._app import UserError, main, mistakes, options, writable_folder


def emit(json_file: Path | None, value: Any) -> None:
    """Write JSON to a file, or to standard output for `-`; nothing for None."""
    from koopjax import report

    if json_file is None:
        return
    text = report.to_json(value) if isinstance(value, dict) else json.dumps(value, indent=1) + "\n"
    if str(json_file) == "-":
        click.echo(text, nl=False)
    else:
        with mistakes("--json"):
            report.write_atomically(json_file, text)


def list_folder(what: str) -> Any:
    """An --out for a command that only lists."""
    return click.option(
        "--out", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
        help=f"Folder to write {what}.json into as well.",
    )  # fmt: skip


def emit_list(json_file: Path | None, out: Path | None, what: str, value: Any) -> None:
    """A list as JSON, to where it was asked for."""
    emit(json_file, value)
    if out is not None:
        emit(writable_folder(out) / f"{what}.json", value)


@main.command()
@click.option("--dataset", metavar="NAME", help="Only this one.")
@options("data-dir", "seed")
@list_folder("datasets")
@options("json")
def datasets(
    dataset: str | None, data_dir: Path | None, seed: int, out: Path | None, json_file: Path | None
) -> None:
    """List the datasets, whether they are here, and where to get them."""
    from koopjax import data

    del seed  # nothing here is random; taken so that all commands read alike
    with mistakes("--data-dir"):
        infos = data.available(data_dir)
    if dataset is not None:
        known = [info.name for info in infos]
        infos = [info for info in infos if info.name == dataset]
        if not infos:
            raise UserError(f"--dataset: expected one of {', '.join(known)}, got {dataset!r}")
    emit_list(json_file, out, "datasets", [dataclasses.asdict(info) for info in infos])
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
@click.argument("results", type=click.Path(path_type=Path), default=Path("koopjax-out"))
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="PATH",
    help="Folder or .html file to write the page to [default: beside the results].",
)  # fmt: skip
@options("json")
def report_command(results: Path, out: Path | None, json_file: Path | None) -> None:
    """Make report.html again from RESULTS, a results.json or the folder that holds one."""
    from koopjax import plot, report

    with mistakes():
        loaded = report.load(results)
    folder = results if results.is_dir() else results.parent
    try:
        page = report.render(loaded, plot.figures(loaded))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{results} lacks what a report needs ({error}), try one that koopjax wrote"
        ) from error
    target = out or folder
    if target.suffix != ".html":
        target = writable_folder(target) / "report.html"
    report.write_atomically(target, page)
    emit(json_file, loaded)
    show.console(json_file).print(f"report: {target}")


@main.command()
@options("dataset", "data-dir", "download", "architecture", "epochs", "seed", "out", "json")
def train(
    dataset: str,
    data_dir: Path | None,
    download: bool,
    architecture: str,
    epochs: int | None,
    seed: int,
    out: Path,
    json_file: Path | None,
) -> None:
    """Train an example network and save it.

    Trained on all labelled images but the test split. An interrupted training goes on when the same
    command is given again. Beside the model lies a .json with its settings, history and accuracy.
    """
    from koopjax import models, report, surgery

    data = networks.load_dataset(dataset, data_dir, download)
    writable_folder(out)
    how = networks.recipe(data, architecture, epochs)
    with show.progress() as stage:
        told = networks.telling(stage(f"training, seed {seed}", how.epochs))
        with mistakes():
            network = networks.train(how, data, seed, out, told)
    test = networks.as_taken_by(how, data)
    accuracy = models.accuracy(network.model, test.x_test, test.y_test)
    results = {
        "dataset": data.name,
        "seed": seed,
        "original": {
            "accuracy": accuracy,
            "stored_bytes": network.stored_bytes,
            "parameters": surgery.cut_points(network.model, test.x_test[:1])[-1].parameters,
        },
        "model": {"name": architecture, "config": how.config, "path": str(network.path)},
        "settings": networks.training_settings(how),
        "history": list(network.history),
        "versions": report.versions(),
    }
    report.write_atomically(network.path.with_suffix(".json"), report.to_json(results))
    emit(json_file, results)
    show.console(json_file).print(
        f"{data.name}, {architecture}, seed {seed}: test accuracy {accuracy:.4f}, "
        f"{network.stored_bytes:,} bytes\nmodel: {network.path}",
        soft_wrap=True,
    )


@main.command()
@options("dataset", "data-dir", "download", "model", "architecture", "seed")
@list_folder("cuts")
@options("json")
def cuts(
    dataset: str,
    data_dir: Path | None,
    download: bool,
    model_file: Path | None,
    architecture: str,
    seed: int,
    out: Path | None,
    json_file: Path | None,
) -> None:
    """List where a network can be cut, in order of depth.

    Without --model, of a fresh network of --architecture.
    """
    import jax
    import numpy as np
    from flax import nnx

    from koopjax import surgery

    data = networks.load_dataset(dataset, data_dir, download)
    if model_file is not None:
        model, data = networks.read(model_file, data)
    else:
        how = networks.recipe(data, architecture, None)
        model = how.build(nnx.Rngs(seed))
        data = networks.as_taken_by(how, data)
    points = surgery.cut_points(model, jax.ShapeDtypeStruct((1, *data.shape), np.float32))
    fields = [
        {
            "index": point.index,
            "name": point.name,
            "shape": list(point.sample_shape),
            "parameters_before": point.parameters,
            "flops_before": point.flops,
        }
        for point in points
    ]
    emit_list(json_file, out, "cuts", fields)
    rows = [
        (f["index"], f["name"], "×".join(map(str, f["shape"])), f"{f['parameters_before']:,}",
         f"{f['flops_before']:,}")
        for f in fields
    ]  # fmt: skip
    columns = ("index", "<name", "<shape", "parameters before", "FLOPs before")
    show.console(json_file).print(show.table(None, columns, rows))
