"""The whole way in under a minute: train, analyse, replace, compress, report."""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Callable
from typing import Any

import click

from koopjax.cli import _console as show, _networks as networks
from koopjax.cli._app import Given, main, options, writable_folder
from koopjax.cli._compress import check_budget, compressed_table, compression_sentence
from koopjax.cli._results import Work, add_compressed, add_ladders
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
@options("dataset", "data-dir", "download", "seed", "seeds", "out", "json")
@click.option("--budget", default="8x", show_default=True, metavar="SIZE", help="30x or 64KiB.")
def demo(given: Given, budget: str) -> None:
    """Train on handwritten digits, find out how nonlinear the network is, make it smaller.

    Under a minute on two cores with the embedded digits. Everything is done anew each time.
    """
    full = networks.load_dataset(given)
    writable_folder(given.out)
    check_budget(budget)
    how = networks.recipe(full, "mlp", None)
    sizes = how.config["sizes"]
    if len(full.y_train) < networks.SMALL:
        sizes = (sizes[0], *([_WIDTH] * (len(sizes) - 2)), sizes[-1])
        how = dataclasses.replace(how, config={"sizes": sizes})
    times = [time.perf_counter()]
    with show.progress() as stage:
        nets = networks.train_lanes(how, full, given.every_seed(5), given.out, stage)
        times.append(time.perf_counter())
        job = Work(given, stage, full, networks.as_taken_by(how, full), how, nets)
        add_ladders(job, dictionaries(), alphas=_ALPHAS, ranks=_RANKS)
        times.append(time.perf_counter())
        add_compressed(job, [budget], _METHODS)
        times.append(time.perf_counter())
    spent = (after - before for before, after in itertools.pairwise(times))
    results = job.results
    results["timing"] = dict(zip(("train", "analyze", "compress"), spent, strict=True))
    job.shown += [ladder_table(results, svd=False), compressed_table(results)]
    job.shown += [f"[bold]{results['sentence']}", compression_sentence(results)]
    job.finish(alone=True)
