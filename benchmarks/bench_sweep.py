"""Sweeps against single fits: all ranks of a regression, and tensor-train ranks 1 to 16.

`python benchmarks/bench_sweep.py` times, by turns in one process,

- all ranks of a reduced-rank regression from one set of statistics against one rank;
- `sweep.train_ranks` at tensor-train ranks 1 to 16 against 16 single fits with exact cores, both
  compiled before; lanes one after another ("map") and, with `--vmap`, batched.

The seconds of their compilations are those of the first calls, by JAX's own events (tracing,
lowering and the backend's compilation), each of the two sides in a fresh process. The fits of both
are compared in float64.
"""

import argparse
import json
import pathlib
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
from _timing import in_subprocess, interleaved, summary, write

from koopjax import edmd, sweep, tensor_edmd
from koopjax.observables import Polynomial1D, Product

PARTS = (
    "/jax/core/compile/jaxpr_trace_duration",
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "/jax/core/compile/backend_compile_duration",
)
RANKS = range(1, 17)
ALPHA = 1e-3


def statistics(n: int, p: int, q: int, kind: type) -> edmd.Gram | edmd.RFactor:
    """Of random snapshots with a few strong directions and noise, float64."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, p))
    y = x @ rng.normal(size=(p, q)) * 0.9 ** np.arange(q) + rng.normal(size=(n, q))
    with jax.enable_x64(True):
        return kind.from_batch(jnp.asarray(x), jnp.asarray(y))


def reduced(given: argparse.Namespace) -> dict:
    """All ranks against one, for Gram matrices and R factors."""
    out = {}
    for name, kind in (("gram", edmd.Gram), ("rfactor", edmd.RFactor)):
        stats = statistics(2 * given.observables, given.observables, given.outputs, kind)
        rank = given.outputs // 2
        runs = {
            "all_ranks": lambda s=stats: sweep.reduced_ranks(s, alpha=ALPHA).family.left,
            "one_rank": lambda s=stats, r=rank: (
                edmd.solve(s, edmd.ReducedRank(r, None, ALPHA)).value
            ),
            "one_rank_factors": lambda s=stats, r=rank: edmd.low_rank(
                s, edmd.ReducedRank(r, None, ALPHA)
            ),
        }
        times = interleaved(runs, given.repeats)
        rows = {key: summary(value) for key, value in times.items()}
        ratios = [a / b for a, b in zip(times["all_ranks"], times["one_rank"], strict=True)]
        out[name] = {
            **rows,
            "ranks": given.outputs,
            "ratio_of_best": rows["all_ranks"]["best_s"] / rows["one_rank"]["best_s"],
            "ratio_of_medians": rows["all_ranks"]["median_s"] / rows["one_rank"]["median_s"],
            "ratio_by_turn": ratios,
        }
    return out


def problem(given: argparse.Namespace) -> tuple:
    """Snapshots of a smooth map of several coordinates, float64."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(given.samples, given.coordinates))
    y = np.tanh(x @ rng.normal(size=(given.coordinates, given.targets)))
    psi = Product.of(Polynomial1D(given.degree, family="hermite"), given.coordinates)
    with jax.enable_x64(True):
        return psi, jnp.asarray(x), jnp.asarray(y)


def swept(data: tuple, given: argparse.Namespace, lanes: str) -> sweep.TrainTable:
    """All ranks in one call."""
    key = jax.random.key(0)
    return sweep.train_ranks(*data, RANKS, key, alpha=ALPHA, sweeps=given.sweeps, lanes=lanes)


def single(data: tuple, given: argparse.Namespace, rank: int) -> tensor_edmd.PaddedKoopman:
    """One rank, without padding."""
    return tensor_edmd.als_padded(
        *data, rank, jax.random.key(0), max_rank=rank, alpha=ALPHA, sweeps=given.sweeps
    )


def first_calls(given: argparse.Namespace, which: str) -> dict:
    """Child process: seconds that the first calls spend on compiling, and how many programs."""
    data = problem(given)
    seconds: list[float] = []
    programs: list[str] = []

    def listen(event: str, duration: float, **about: object) -> None:
        if event in PARTS:
            seconds.append(duration)
        if event == PARTS[-1]:
            programs.append(str(about.get("fun_name")))

    jax.monitoring.register_event_duration_secs_listener(listen)
    start = time.perf_counter()
    if which == "sweep":
        swept(data, given, "map")
    else:
        for rank in RANKS:
            jax.block_until_ready(single(data, given, rank).output)
    wall = time.perf_counter() - start
    large = [name for name in programs if "run_lanes" in name or "_fit" in name]
    return {"compile_s": sum(seconds), "first_calls_wall_s": wall, "compilations": len(large)}


def differences(table: sweep.TrainTable, data: tuple, given: argparse.Namespace) -> dict:
    """Largest differences between the lanes and the single fits."""
    worst = {"predictions": 0.0, "errors": 0.0}
    for row, rank in zip(table.rows, RANKS, strict=True):
        alone = single(data, given, rank)
        mine = np.asarray(table.fit(rank).predict(data[1]))
        other = np.asarray(alone.unpad().predict(data[1]))
        gap = float(np.max(np.abs(mine - other)) / np.max(np.abs(other)))
        worst["predictions"] = max(worst["predictions"], gap)
        worst["errors"] = max(worst["errors"], abs(row["error"] - float(alone.info.residual)))
    return worst


def trains(given: argparse.Namespace) -> dict:
    """Tensor-train ranks 1 to 16 in one call against 16 single fits."""
    data = problem(given)
    runs = {
        "sweep": lambda: swept(data, given, "map"),
        "singles": lambda: [single(data, given, rank).output for rank in RANKS],
    }
    if given.vmap:
        runs["sweep_vmap"] = lambda: swept(data, given, "vmap")
    times = interleaved(runs, given.repeats)
    rows = {name: summary(value) for name, value in times.items()}
    arguments = [f"--{name}={getattr(given, name)}" for name in PROBLEM]
    first = {
        name: in_subprocess(__file__, "--child", name, *arguments) for name in ("sweep", "singles")
    }
    ratio = rows["sweep"]["best_s"] / rows["singles"]["best_s"]
    with_compilations = {
        name: rows[name]["best_s"] + first[name]["compile_s"] for name in ("sweep", "singles")
    }
    out = {
        **rows,
        "first": first,
        "ratio_of_run_times": ratio,
        "ratio_of_medians": rows["sweep"]["median_s"] / rows["singles"]["median_s"],
        "ratio_by_turn": [a / b for a, b in zip(times["sweep"], times["singles"], strict=True)],
        "ratio_with_compilations": with_compilations["sweep"] / with_compilations["singles"],
        "ratio_of_first_calls": first["sweep"]["first_calls_wall_s"]
        / first["singles"]["first_calls_wall_s"],
        "differences": differences(swept(data, given, "map"), data, given),
    }
    if given.vmap:
        out["ratio_of_run_times_vmap"] = rows["sweep_vmap"]["best_s"] / rows["singles"]["best_s"]
    return out


PROBLEM = ("samples", "coordinates", "degree", "targets", "sweeps")


def ledger_cost(given: argparse.Namespace) -> dict:
    """What the ledger costs a small sweep: each chunk forced to the disk."""
    with tempfile.TemporaryDirectory() as folder:
        axes = {"a": np.linspace(0.0, 1.0, 64)}
        function = lambda x, a: {"value": jnp.sum(jnp.sin(a * x))}
        data = (jnp.arange(1000.0),)
        count = iter(range(10**6))
        runs = {
            "without": lambda: sweep.grid(function, axes, data=data, chunk=8),
            "with": lambda: sweep.grid(
                function, axes, data=data, chunk=8, ledger=pathlib.Path(folder) / str(next(count))
            ),
        }
        return {k: summary(v) for k, v in interleaved(runs, given.repeats).items()}


def main() -> None:
    """Parse arguments, measure, write the JSON, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--observables", type=int, default=600)
    parser.add_argument("--outputs", type=int, default=100)
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--coordinates", type=int, default=6)
    parser.add_argument("--degree", type=int, default=2)
    parser.add_argument("--targets", type=int, default=4)
    parser.add_argument("--sweeps", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--vmap", action="store_true", help="time batched lanes too")
    parser.add_argument("--skip-trains", action="store_true")
    parser.add_argument("--child", choices=["sweep", "singles"], help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(first_calls(given, given.child)))
        return
    results = {"settings": vars(given), "reduced_rank": reduced(given)}
    results["ledger"] = ledger_cost(given)
    if not given.skip_trains:
        results["tensor_trains"] = trains(given)
    write("sweep", results)
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
