"""Tensor trains in the place of the middle layers of an MLP: the plane, chosen points, spectra.

    python benchmarks/tensor_trains.py --dataset mnist --data-dir DIR --seeds 5

A network trained on the training images chooses on the validation images two points of all
degrees, ranks and numbers of latent coordinates: (a) the one of least divergence among those with
at most a tenth of the numbers of the full quadratic K, and (b) the least degree, then rank, then
number of latent coordinates within half a point of the original. Seed 0 shows the whole plane, all
seeds the two points, beside the full quadratic K that `nonlinearity.py` fitted in the same
networks; the test images are used once. Each part is written as it finishes; a second call goes on
with those that are missing.
"""

import argparse
import functools
import json
import os
import pathlib
import platform
import sys
import time

import flax
import jax
import numpy as np
from flax import nnx
from nonlinearity import COMMON, RECIPES, finite, rounded, train, write

from koopjax import analysis, data, export, models

LATENTS = (8, 16)
DEGREES = (1, 2, 3)
PLANE_RANKS = (1, 2, 4, 6, 8, 10, 12)
ALPHA = 1e-5
#: Numbers of the full quadratic K on 100 units: 5,151 observables, 100 targets.
QUADRATIC = 5151 * 100
RESULTS = pathlib.Path(__file__).resolve().parent / "results"
CUTS = (2, 4, 6, 8, 9, 10, 12)


def settings_of(name):
    """Everything that the figures depend on besides the code and the seeds."""
    return {
        **RECIPES[name],
        **COMMON,
        "latents": LATENTS,
        "degrees": DEGREES,
        "ranks": PLANE_RANKS,
        "alpha": ALPHA,
        "family": "legendre",
        "sweeps": 2,
        "samples": {"plane": 4000, "points": 12_000},
        "tolerance": 0.005,
        "choice_seed": 1000,
    }


def network(name, settings, sets, seed, cache):
    """One network; trained on the training images alone for the choice, else on all."""
    choice = seed == settings["choice_seed"]
    x, y = (sets.x_train, sets.y_train) if choice else sets.train_and_val()
    path = None if cache is None else cache / f"{name}-{seed}.koopjax"
    if path is not None and path.exists():
        sizes = (x.shape[1], *settings["hidden"], sets.classes)
        return export.load(path, model=models.MLP(sizes, rngs=nnx.Rngs(0)))
    model = train(name, settings, x, y, seed, sets.classes)
    if path is not None:
        export.save(model, path)
    return model


@functools.cache
def prepared(name, seed, cache, data_dir):
    """The data, the network of a seed, and what it is fitted and measured on."""
    settings = settings_of(name)
    sets = data.load(name, data_dir).flat()
    model = network(name, settings, sets, seed, cache)
    if seed == settings["choice_seed"]:
        return sets, model, sets.x_train, sets.x_val, sets.y_val
    return sets, model, sets.train_and_val()[0], sets.x_test, sets.y_test


def sweep(where, settings, degree, ranks, latent, samples, stored):
    """One degree of a plane."""
    name, seed, cache, data_dir = where
    _, model, x, x_test, y_test = prepared(name, seed, cache, data_dir)
    started = time.perf_counter()
    show = lambda done, total, what: print(
        f"    {time.perf_counter() - started:6.1f} s  {done}/{total}  {what}", file=sys.stderr
    )
    return analysis.plane(
        model, x, None, x_test, y_test, key=jax.random.key(20_000 + seed), degrees=(degree,),
        ranks=ranks, choices={(degree, r): settings["alpha"] for r in ranks}, latent=latent,
        family=settings["family"], sweeps=settings["sweeps"], tolerance=settings["tolerance"],
        max_samples=samples, reference=None, stored=stored, progress=show,
    )  # fmt: skip


def part_of_plane(where, settings, degree, latent):
    """All ranks of a degree."""
    stored = where[1] != settings["choice_seed"]
    samples = settings["samples"]["plane"]
    plane = sweep(where, settings, degree, tuple(settings["ranks"]), latent, samples, stored)
    return {"original": plane.original, "rows": [point.to_dict() for point in plane.points]}


def compared(where, settings):
    """Nulls and the affine dictionary, which cost little."""
    name, seed, cache, data_dir = where
    _, model, x, x_test, y_test = prepared(name, seed, cache, data_dir)
    found = analysis.ladder(
        model, x, None, None, x_test, y_test, key=jax.random.key(10_000 + seed), ranks=(),
        dictionaries={"affine": analysis.default_dictionaries()["affine"]}, logits=False,
        choices={"affine": 1e-5}, stored=seed == 0, tolerance=settings["tolerance"],
    )  # fmt: skip
    return {"original": found.original, "rows": found.rows(), "span": list(found.span)}


def one_point(where, settings, point):
    """One chosen point in one network: its row, spectrum, bonds, and its bonds cut."""
    name, seed, cache, data_dir = where
    sets = prepared(name, seed, cache, data_dir)[0]
    place = point["degree"], point["rank"]
    samples = settings["samples"]["points"]
    plane = sweep(where, settings, place[0], (place[1],), point["latent"], samples, True)
    cuts = {
        str(kept): models.accuracy(plane.cut(*place, kept), sets.x_test, sets.y_test)
        for kept in CUTS
        if kept < place[1]
    }
    return {
        **plane.points[0].to_dict(),
        "cut": cuts,
        "spectrum": plane.spectrum(*place).to_dict(),
        "bonds": [values.tolist() for values in plane.bond_singular_values(*place)],
    }


def one_seed(where, settings, steps):
    """Both points in one network, and what they are compared with."""
    chosen = choose(steps, settings)
    rows = {kind: one_point(where, settings, chosen[kind]) for kind in ("chosen", "least")}
    return {**compared(where, settings), **rows}


def choose(steps, settings):
    """The two points, by what the validation images say."""
    parts = [steps[f"validation {name}"] for name, _ in plane_parts(settings)]
    points = [row for part in parts for row in part["rows"]]
    whole = parts[0]["original"]["accuracy"]
    small = [p for p in points if p["numbers"] <= QUADRATIC / 10]
    near = [p for p in points if whole - p["accuracy"] <= settings["tolerance"]]
    best = min(small, key=lambda p: p["kl"])
    least = min(near or [best], key=lambda p: (p["degree"], p["rank"], p["latent"]))
    place = lambda p: {k: p[k] for k in ("latent", "degree", "rank", "accuracy")}
    return {"chosen": place(best), "least": place(least), "validation_original": whole}


def plane_parts(settings):
    """Names and settings of the parts of all planes."""
    for latent in settings["latents"]:
        for degree in settings["degrees"]:
            yield f"latent {latent} degree {degree}", {"latent": latent, "degree": degree}


def plan(args, settings):
    """What is to be done, in order: a name, and a function of what is done already."""
    where = lambda seed: (args.dataset, seed, args.cache, args.data_dir)
    choice = settings["choice_seed"]
    part = functools.partial(part_of_plane, settings=settings)
    for name, which in plane_parts(settings):
        yield f"validation {name}", lambda _, w=which: part(where(choice), **w)
    for seed in range(args.seeds):
        yield f"seed {seed}", lambda steps, s=seed: one_seed(where(s), settings, steps)
    for name, which in plane_parts(settings):
        if which["latent"] == max(settings["latents"]):
            yield f"seed 0 {name}", lambda _, w=which: part(where(0), **w)


def points(values):
    """Mean and one-sided 95 % bounds, in points of accuracy."""
    mean, low, high = analysis.one_sided(values)
    return {"mean": 100 * mean, "lower95": 100 * low, "upper95": 100 * high}


def find(rows, dictionary, rank=None):
    """A row of a ladder."""
    place = dictionary, rank, "none" if rank is None else "output"
    return next(r for r in rows if (r["dictionary"], r["rank"], r["truncation"]) == place)


def quadratics(name, seeds, originals):
    """Rows of the same networks with the full quadratic K in their span, by nonlinearity.py.

    The networks are the same ones, trained by the same recipe from the same seeds: refused where
    the accuracy of an original differs.
    """
    found = json.loads((RESULTS / f"nonlinearity_{name}.json").read_text())
    rows = {r["seed"]: r for r in found["per_seed"]}
    for seed, ours in zip(seeds, originals, strict=True):
        theirs = rows[seed]["original"]["accuracy"]
        if abs(ours - theirs) > 1e-6:
            raise SystemExit(f"seed {seed}: accuracy {ours} here, {theirs} in nonlinearity_{name}")
    return [rows[seed]["replaced"] for seed in seeds]


def summarise(name, steps, settings, count):
    """The figures that were asked for, over seeds."""
    lost = lambda a, b: points([x - y for x, y in zip(a, b, strict=True)])
    seeds = list(range(count))
    known = [steps[f"seed {seed}"] for seed in seeds]
    originals = [one["original"]["accuracy"] for one in known]
    ladders = quadratics(name, seeds, originals)
    quadratic = [find(rows, "degree 2")["accuracy"] for rows in ladders]
    tolerance = 100 * settings["tolerance"]
    ranks = {
        rank: lost(originals, [find(rows, "degree 2", rank)["accuracy"] for rows in ladders])
        for rank in CUTS
    }
    summary = {
        "seeds": count,
        "original": {"mean": float(np.mean(originals)), "accuracies": originals},
        "quadratic_loss": lost(originals, quadratic),
        "affine_loss": lost(originals, [find(one["rows"], "affine")["accuracy"] for one in known]),
        "quadratic_numbers": QUADRATIC,
        "singular_values_of_quadratic_K": ranks,
        "singular_values_that_keep_it": min(
            (rank for rank, loss in ranks.items() if loss["mean"] <= tolerance), default=None
        ),
    }
    for kind in ("chosen", "least"):
        rows = [one[kind] for one in known]
        accuracies = [row["accuracy"] for row in rows]
        summary[kind] = {
            **{k: rows[0][k] for k in ("latent", "degree", "rank", "numbers", "stored_bytes")},
            "most_numbers": max(row["numbers"] for row in rows),
            "part_of_quadratic": max(row["numbers"] for row in rows) / QUADRATIC,
            "accuracies": accuracies,
            "accuracy": float(np.mean(accuracies)),
            "accuracy_std": float(np.std(accuracies, ddof=1)) if count > 1 else None,
            "loss": lost(originals, accuracies),
            "below_quadratic": lost(quadratic, accuracies),
            "cut": {k: lost(originals, [row["cut"][k] for row in rows]) for k in rows[0]["cut"]},
            "spectrum": analysis.summarize_spectra([row["spectrum"] for row in rows]),
        }
    whole = known[0]["original"]
    parts = [steps[name] for name in steps if name.startswith("seed 0 latent")]
    rows = [row for part in parts for row in part["rows"]]
    near = [r for r in rows if whole["accuracy"] - r["accuracy"] <= settings["tolerance"]]
    least = min(near, key=lambda r: (r["degree"], r["rank"]), default=None)
    summary["plane"] = {
        "latent": rows[0]["latent"],
        "least": least and {k: least[k] for k in ("degree", "rank", "accuracy", "numbers")},
        "accuracy": {f"degree {r['degree']}, rank {r['rank']}": r["accuracy"] for r in rows},
    }
    return summary


def main():
    """Run what is missing and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", choices=sorted(RECIPES), default="mnist")
    parser.add_argument("--data-dir", help="folder of idx, idx.gz or npz files")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS)
    parser.add_argument("--cache", type=pathlib.Path, help="folder to keep trained networks in")
    parser.add_argument("--steps", type=int, default=10**6, help="stop after so many parts")
    args = parser.parse_args()
    if args.seeds < 1:
        parser.error("expected --seeds of at least 1")
    settings = json.loads(json.dumps(settings_of(args.dataset)))
    for folder in (args.out, args.cache):
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
    path = args.out / f"tensor_trains_{args.dataset}.json"
    state = {"dataset": args.dataset, "settings": settings}
    if path.exists():
        old = json.loads(path.read_text())
        state = old if old.get("settings") == settings else state
    state["versions"] = {
        "python": platform.python_version(), "jax": jax.__version__, "flax": flax.__version__,
        "numpy": np.__version__,
    }  # fmt: skip
    state["device"] = f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores"
    steps = state.setdefault("steps", {})
    missing = [(name, run) for name, run in plan(args, settings) if name not in steps]
    for name, run in missing[: args.steps]:
        started = time.perf_counter()
        print(name, file=sys.stderr)
        steps[name] = {**rounded(run(steps)), "seconds": time.perf_counter() - started}
        write(path, state)
    if len(missing) > args.steps:
        print(f"{len(missing) - args.steps} parts left", file=sys.stderr)
        return
    state["choices"] = choose(steps, settings)
    summary = summarise(args.dataset, steps, settings, args.seeds)
    state["summary"] = rounded(json.loads(json.dumps(finite_all(summary))))
    write(path, state)
    print(json.dumps(state["summary"], indent=1))


def finite_all(value):
    """Infinite bounds of a single seed as null, all through."""
    if isinstance(value, dict):
        return {str(k): finite_all(v) for k, v in value.items()}
    if isinstance(value, list):
        return [finite_all(v) for v in value]
    return finite(value)


if __name__ == "__main__":
    main()
