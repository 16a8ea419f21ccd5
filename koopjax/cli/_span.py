"""A trained network and a span of its layers, from the options that name them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from koopjax.cli import _networks as networks
from koopjax.cli._app import UserError, mistakes, writable_folder

MODEL = ("dataset", "data-dir", "download", "model", "architecture", "epochs", "seed")
_SPAN = (
    click.option("--from", "start", metavar="CUT", help="Where the span starts (koopjax cuts)."),
    click.option("--to", "stop", metavar="CUT", help="Where the span ends."),
)


def span_options(command: Any) -> Any:
    """--from and --to."""
    for option in reversed(_SPAN):
        command = option(command)
    return command


def numbers_from(option: str, text: str) -> tuple[int, ...]:
    """A comma-separated list of whole numbers from 1."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    # a number of more digits is no rank, and Python refuses to read one of thousands
    if not parts or not all(p.isdecimal() and len(p) < 10 and int(p) > 0 for p in parts):
        raise UserError(f"{option}: expected whole numbers from 1, got {text[:60]!r}, try 4,8,16")
    return tuple(int(part) for part in parts)


def find_span(model: Any, x: Any, start: str | None, stop: str | None) -> tuple[str, str]:
    """The cuts that were named, the middle layers' where not; checked by splitting there."""
    from koopjax import surgery

    with mistakes("--from, --to"):
        if start is None or stop is None:
            middle = surgery.middle(model, x)
            start, stop = start or middle[0], stop or middle[1]
        surgery.split(model, x, (start, stop))
    return start, stop


def prepare(
    dataset: str,
    data_dir: Path | None,
    download: bool,
    model_file: Path | None,
    architecture: str,
    epochs: int | None,
    seeds: Sequence[int],
    out: Path,
    stage: Callable[..., Any],
) -> tuple[Any, Any, Any, list[Any]]:
    """The dataset with images, the same as the network takes it, the recipe, and the networks."""
    full = networks.load_dataset(dataset, data_dir, download)
    if model_file is not None:
        model, data = networks.read(model_file, full)
        size = model_file.stat().st_size
        writable_folder(out)
        return full, data, None, [networks.Network(model, seeds[0], model_file, size)]
    how = networks.recipe(full, architecture, epochs)
    writable_folder(out)
    nets = networks.obtain(how, full, seeds, out, stage)
    return full, networks.as_taken_by(how, full), how, nets
