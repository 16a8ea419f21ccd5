"""The commands that look: datasets, train, cuts, report."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click

from koopjax.cli import _console as show, _networks as networks
from koopjax.cli._app import Given, UserError, main, mistakes, options, writable_folder


def _list(given: Given, what: str, rows: list[dict[str, Any]], columns: Any, shown: Any) -> None:
    """A list as a table, and as JSON to where it was asked for."""
    show.emit(given.json_file, rows)
    if given.out is not None:
        show.emit(writable_folder(given.out) / f"{what}.json", rows)
    show.console(given.json_file).print(show.table(None, columns, shown))


@main.command()
@click.option("--dataset", "only", metavar="NAME", help="Only this one.")
@options("data-dir", "seed", "list", "json")
def datasets(given: Given, only: str | None) -> None:
    """List the datasets, whether they are here, and where to get them."""
    from koopjax import data

    with mistakes("--data-dir"):
        infos = data.available(given.data_dir)
    if only is not None:
        known = [info.name for info in infos]
        infos = [info for info in infos if info.name == only]
        if not infos:
            raise UserError(f"--dataset: expected one of {', '.join(known)}, got {only!r}")
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
    _list(given, "datasets", [dataclasses.asdict(info) for info in infos], columns, rows)


@main.command("report")
@click.argument("results", type=click.Path(path_type=Path), default=Path("koopjax-out"))
@click.option(
    "--out", "target", type=click.Path(path_type=Path), metavar="PATH",
    help="Folder or .html file to write the page to [default: beside the results].",
)  # fmt: skip
@options("json")
def report_command(given: Given, results: Path, target: Path | None) -> None:
    """Make report.html again from RESULTS, a results.json or the folder that holds one."""
    from koopjax import plot, report

    with mistakes():
        loaded = report.load(results)
    try:
        page = report.render(loaded, plot.figures(loaded))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{results} lacks what a report needs ({error}), try one that koopjax wrote"
        ) from error
    target = target or (results if results.is_dir() else results.parent)
    if target.suffix != ".html":
        target = writable_folder(target) / "report.html"
    report.write_atomically(target, page)
    show.emit(given.json_file, loaded)
    show.console(given.json_file).print(f"report: {target}")


@main.command()
@options("dataset", "data-dir", "download", "architecture", "epochs", "seed", "out", "json")
def train(given: Given) -> None:
    """Train an example network and save it.

    Trained on all labelled images but the test split. An interrupted training goes on when the same
    command is given again. Beside the model lies a .json with its settings, history and accuracy.
    """
    from koopjax import models, report

    data = networks.load_dataset(given)
    writable_folder(given.out)
    how = networks.recipe(data, given.architecture, given.epochs)
    with show.progress() as stage, mistakes():
        network = networks.train(how, data, given.seed, given.out, stage)
    test = networks.as_taken_by(how, data)
    accuracy = models.accuracy(network.model, test.x_test, test.y_test)
    results = {
        "dataset": data.name,
        "seed": given.seed,
        "original": network.original(test, accuracy),
        "model": {"name": given.architecture, "config": how.config, "path": str(network.path)},
        "settings": networks.training_settings(how),
        "history": list(network.history),
        "versions": report.versions(),
    }
    report.write_atomically(network.path.with_suffix(".json"), report.to_json(results))
    show.emit(given.json_file, results)
    show.console(given.json_file).print(
        f"{data.name}, {given.architecture}, seed {given.seed}: test accuracy {accuracy:.4f}, "
        f"{network.stored_bytes:,} bytes\nmodel: {network.path}",
        soft_wrap=True,
    )


@main.command()
@options("dataset", "data-dir", "download", "model", "architecture", "seed", "list", "json")
def cuts(given: Given) -> None:
    """List where a network can be cut, in order of depth.

    Without --model, of a fresh network of --architecture.
    """
    import jax
    import numpy as np
    from flax import nnx

    from koopjax import surgery

    data = networks.load_dataset(given)
    if given.model_file is not None:
        model, data = networks.read(given.model_file, data)
    else:
        how = networks.recipe(data, given.architecture, None)
        model, data = how.build(nnx.Rngs(given.seed)), networks.as_taken_by(how, data)
    fields = [
        {
            "index": point.index,
            "name": point.name,
            "shape": list(point.sample_shape),
            "parameters_before": point.parameters,
            "flops_before": point.flops,
        }
        for point in surgery.cut_points(model, jax.ShapeDtypeStruct((1, *data.shape), np.float32))
    ]
    rows = [
        (f["index"], f["name"], "×".join(map(str, f["shape"])), f"{f['parameters_before']:,}",
         f"{f['flops_before']:,}")
        for f in fields
    ]  # fmt: skip
    columns = ("index", "<name", "<shape", "parameters before", "FLOPs before")
    _list(given, "cuts", fields, columns, rows)
