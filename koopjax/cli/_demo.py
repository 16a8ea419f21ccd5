"""The whole way in under a minute: train, analyse, replace, compress, report."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from koopjax.cli import _console as show, _networks as networks, _results as study
from koopjax.cli._app import main, options, writable_folder
from koopjax.cli._commands import emit
from koopjax.cli._compress import check_budget, compressed_table, compression_sentence
from koopjax.cli._study import ladder_table

# A hidden layer of 48 has 1,225 products up to degree 2, one of 100 has 5,151: the wider one costs
# minutes where this costs seconds, and is no more accurate on images of 64 pixels.
_WIDTH = 48
_RANKS = (4, 8, 10)
_ALPHAS = (1e-4, 1e-2, 1.0)
# Those that take seconds; `koopjax compress` has them all.
_METHODS = ("koopman", "magnitude", "obs", "whitened_svd")


def dictionaries() -> dict[str, Callable[[Any], Any]]:
    """The demo's ladder: few observables, and the same number for every seed.

    The defaults of `analysis` leave dead units out, so that each seed has shapes, and compilations,
    of its own; here dead units stay as zeros, and four networks of five compile nothing.
    """
    import jax.numpy as jnp

    from koopjax import observables as obs

    def lifted(build: Callable[[Any, Any], Any]) -> Callable[[Any], Any]:
        def factory(data: Any) -> Any:
            scale = obs.Standardize.fit(data.x)
            return obs.Compose(scale, build(scale(data.x), data.key))

        return factory

    def degree_three(data: Any) -> Any:
        first = obs.Project.pca(data.x, 10, metric=data.metric, whiten=True)
        third = jnp.arange(math.comb(12, 2), math.comb(13, 3), dtype=jnp.int32)
        products = obs.Select(obs.Compose(first, obs.Monomials(3)), third)
        quadratic = obs.Compose(obs.Standardize.fit(data.x), obs.Monomials(2))
        return obs.Concat(quadratic, products)

    return {
        "affine": lifted(lambda z, key: obs.Monomials(1)),
        "degree 2": lifted(lambda z, key: obs.Monomials(2)),
        "degree 3, leading 10": degree_three,
        "rbf": lifted(
            lambda z, key: obs.Concat(obs.Monomials(1), obs.GaussianRBF.fit(z, 300, key))
        ),
    }


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
    check_budget(budget)
    how = networks.recipe(full, "mlp", None)
    sizes = how.config["sizes"]
    if len(full.y_train) < 10_000:
        sizes = (sizes[0], *([_WIDTH] * (len(sizes) - 2)), sizes[-1])
        how = dataclasses.replace(how, config={"sizes": sizes})
    data = networks.as_taken_by(how, full)
    ladder = dictionaries()
    times = [time.perf_counter()]
    with show.progress() as stage:
        told = networks.telling(stage(f"training {seeds} networks", how.epochs))
        nets = networks.train_lanes(how, full, range(seed, seed + seeds), out, told)
        times.append(time.perf_counter())
        advance = stage("replacing the middle layers", seeds * len(ladder))
        ladders, summary = study.climb(
            nets, data, dictionaries=ladder, alphas=_ALPHAS, ranks=_RANKS,
            progress=lambda done, total, what: advance(done, what),
        )  # fmt: skip
        results = study.begin(data, [network.seed for network in nets], how, nets[0], full)
        study.add_ladders(results, ladders, summary, full)
        times.append(time.perf_counter())
        told_methods = stage("compressing", len(_METHODS))
        study.add_compressed(
            results, nets[0], data, out, budgets=[budget], methods=_METHODS, at=None,
            progress=lambda done, total, row: told_methods(done, row["method"]),
        )  # fmt: skip
        times.append(time.perf_counter())
        stage("writing the report")
        names = ("train", "analyze", "compress")
        results["timing"] = {
            name: b - a for name, a, b in zip(names, times, times[1:], strict=False)
        }
        path, page = study.write(results, out, alone=True)
    emit(json_file, results)
    console = show.console(json_file)
    console.print(ladder_table(results, svd=False))
    console.print(compressed_table(results))
    console.print(f"[bold]{results['sentence']}")
    console.print(compression_sentence(results))
    console.print(f"results: {path}\nreport: {page}", soft_wrap=True)
