"""Tensor trains in the place of the middle layers of an MLP: the plane, chosen points, spectra.

    python benchmarks/tensor_trains.py --dataset mnist --data-dir DIR --seeds 5

A network trained on the training images chooses on the validation images two points of all
degrees, ranks and numbers of latent coordinates: (a) the one of least divergence among those with
at most a tenth of the numbers of the full quadratic K, and (b) the least degree, then rank, then
number of latent coordinates within half a point of the original. Seed 0 shows the whole plane, all
seeds the two points, beside the full quadratic K that `nonlinearity.py` fitted in the same
networks; the test images are used once. Seeds are written as they finish; a second call goes on
with those that are missing.
"""

import argparse
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
        "samples": {"plane": 6000, "points": 12_000},
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


def compare(model, settings, x, x_test, y_test, seed):
    """The rows that cost little: nulls and the affine dictionary."""
    return analysis.ladder(
        model, x, None, None, x_test, y_test, key=jax.random.key(10_000 + seed), ranks=(),
        dictionaries={"affine": analysis.default_dictionaries()["affine"]}, logits=False,
        choices={"affine": 1e-5}, stored=seed == 0, tolerance=settings["tolerance"],
    )  # fmt: skip


def sweep(model, settings, x, x_test, y_test, seed, *, degrees, ranks, **rest):
    """One plane."""
    started = time.perf_counter()
    show = lambda done, total, what: print(
        f"    {time.perf_counter() - started:6.1f} s  {done}/{total}  {what}", file=sys.stderr
    )
    return analysis.plane(
        model, x, None, x_test, y_test, key=jax.random.key(20_000 + seed), degrees=degrees,
        ranks=ranks, choices={(d, r): settings["alpha"] for d in degrees for r in ranks},
        family=settings["family"], sweeps=settings["sweeps"], tolerance=settings["tolerance"],
        progress=show, **rest,
    )  # fmt: skip


def choose(name, settings, sets, cache):
    """The two points, by what the validation images say."""
    seed = settings["choice_seed"]
    model = network(name, settings, sets, seed, cache)
    found = compare(model, settings, sets.x_train, sets.x_val, sets.y_val, seed)
    points, started = [], time.perf_counter()
    for latent in settings["latents"]:
        plane = sweep(
            model, settings, sets.x_train, sets.x_val, sets.y_val, seed, latent=latent,
            degrees=settings["degrees"], ranks=settings["ranks"], reference=found, stored=False,
            max_samples=settings["samples"]["plane"],
        )  # fmt: skip
        points += [point.to_dict() for point in plane.points]
        print(plane.table(), file=sys.stderr)
    whole = found.original["accuracy"]
    small = [p for p in points if p["numbers"] <= QUADRATIC / 10]
    near = [p for p in points if whole - p["accuracy"] <= settings["tolerance"]]
    best = min(small, key=lambda p: p["kl"])
    least = min(near or [best], key=lambda p: (p["degree"], p["rank"], p["latent"]))
    place = lambda p: {k: p[k] for k in ("latent", "degree", "rank")}
    return {
        "chosen": place(best),
        "least": place(least),
        "validation": points,
        "validation_original": whole,
        "seconds": time.perf_counter() - started,
    }


def cut(plane, point, sets):
    """Accuracy of a point's train with every bond cut to so many singular values, no refit."""
    made = {}
    for rank in CUTS:
        if rank < point["rank"]:
            trained = plane.cut(point["degree"], point["rank"], rank)
            made[str(rank)] = models.accuracy(trained, sets.x_test, sets.y_test)
    return made


def one_seed(name, settings, sets, choices, seed, cache):
    """Train on all labelled images, fit with the choices made, use the test images once."""
    started = time.perf_counter()
    model = network(name, settings, sets, seed, cache)
    x, _ = sets.train_and_val()
    trained = time.perf_counter()
    found = compare(model, settings, x, sets.x_test, sets.y_test, seed)
    record = {"seed": seed, "original": found.original, "ladder": found.to_dict()["replaced"]}
    for kind in ("chosen", "least"):
        point = choices[kind]
        plane = sweep(
            model, settings, x, sets.x_test, sets.y_test, seed, latent=point["latent"],
            degrees=(point["degree"],), ranks=(point["rank"],), reference=found, stored=True,
            max_samples=settings["samples"]["points"],
        )  # fmt: skip
        place = point["degree"], point["rank"]
        bonds = plane.bond_singular_values(*place)
        record[kind] = {
            **plane.points[0].to_dict(),
            "cut": cut(plane, point, sets),
            "spectrum": plane.spectrum(*place).to_dict(),
            "bonds": [values.tolist() for values in bonds],
        }
    record["seconds"] = {
        "train": trained - started,
        "rest": time.perf_counter() - trained,
    }
    if seed == 0:
        latent = max(settings["latents"])
        record["plane"] = sweep(
            model, settings, x, sets.x_test, sets.y_test, seed, latent=latent,
            degrees=settings["degrees"], ranks=settings["ranks"], reference=found, stored=True,
            max_samples=settings["samples"]["plane"],
        ).to_dict()  # fmt: skip
    return rounded(record)


def points(values):
    """Mean and one-sided 95 % bounds, in points of accuracy."""
    mean, low, high = analysis.one_sided(values)
    return {"mean": 100 * mean, "lower95": 100 * low, "upper95": 100 * high}


def find(rows, dictionary, rank=None):
    """A row of a ladder."""
    place = dictionary, rank, "none" if rank is None else "output"
    return next(r for r in rows if (r["dictionary"], r["rank"], r["truncation"]) == place)


def quadratics(results, name, records):
    """Rows of the same networks with the full quadratic K in their span, by nonlinearity.py.

    The networks are the same ones, trained by the same recipe from the same seeds: refused where
    the accuracy of an original differs.
    """
    found = json.loads((results / f"nonlinearity_{name}.json").read_text())
    rows = {r["seed"]: r for r in found["per_seed"]}
    for record in records:
        ours, theirs = (r["original"]["accuracy"] for r in (record, rows[record["seed"]]))
        if abs(ours - theirs) > 1e-6:
            raise SystemExit(
                f"seed {record['seed']}: accuracy {ours} here, {theirs} in nonlinearity_{name}.json"
            )
    return [rows[record["seed"]]["replaced"] for record in records]


def summarise(records, settings, ladders):
    """The figures that were asked for, over seeds."""
    lost = lambda a, b: points([x - y for x, y in zip(a, b, strict=True)])
    originals = [r["original"]["accuracy"] for r in records]
    quadratic = [find(rows, "degree 2")["accuracy"] for rows in ladders]
    summary = {
        "seeds": len(records),
        "original": {"mean": float(np.mean(originals)), "accuracies": originals},
        "quadratic_loss": lost(originals, quadratic),
        "affine_loss": lost(originals, [find(r["ladder"], "affine")["accuracy"] for r in records]),
        "quadratic_numbers": QUADRATIC,
    }
    for kind in ("chosen", "least"):
        accuracies = [r[kind]["accuracy"] for r in records]
        first = records[0][kind]
        summary[kind] = {
            **{k: first[k] for k in ("latent", "degree", "rank", "numbers", "stored_bytes")},
            "most_numbers": max(r[kind]["numbers"] for r in records),
            "part_of_quadratic": max(r[kind]["numbers"] for r in records) / QUADRATIC,
            "accuracies": accuracies,
            "accuracy": float(np.mean(accuracies)),
            "accuracy_std": float(np.std(accuracies, ddof=1)) if len(records) > 1 else None,
            "loss": lost(originals, accuracies),
            "below_quadratic": lost(quadratic, accuracies),
            "cut": {
                rank: lost(originals, [r[kind]["cut"][rank] for r in records])
                for rank in first["cut"]
            },
            "spectrum": analysis.summarize_spectra([r[kind]["spectrum"] for r in records]),
        }
    tolerance = 100 * settings["tolerance"]
    ranks = {
        rank: lost(originals, [find(rows, "degree 2", rank)["accuracy"] for rows in ladders])
        for rank in CUTS
    }
    summary["singular_values_of_quadratic_K"] = ranks
    within = [rank for rank, loss in ranks.items() if loss["mean"] <= tolerance]
    summary["singular_values_that_keep_it"] = min(within, default=None)
    if "plane" in records[0]:
        summary["plane_least"] = records[0]["plane"]["least"]
    return summary


def main():
    """Run what is missing and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", choices=sorted(RECIPES), default="mnist")
    parser.add_argument("--data-dir", help="folder of idx, idx.gz or npz files")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("benchmarks/results"))
    parser.add_argument("--cache", type=pathlib.Path, help="folder to keep trained networks in")
    parser.add_argument("--part", choices=("all", "choose"), default="all")
    args = parser.parse_args()
    if args.seeds < 1:
        parser.error("expected --seeds of at least 1")
    sets = data.load(args.dataset, args.data_dir).flat()
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
    if "choices" not in state:
        print("choosing on the validation images", file=sys.stderr)
        state["choices"] = rounded(choose(args.dataset, settings, sets, args.cache))
        write(path, state)
    if args.part == "choose":
        return
    records = state.setdefault("per_seed", [])
    for seed in range(args.seeds):
        if any(record["seed"] == seed for record in records):
            continue
        print(f"seed {seed}", file=sys.stderr)
        records.append(one_seed(args.dataset, settings, sets, state["choices"], seed, args.cache))
        write(path, state)
    records.sort(key=lambda record: record["seed"])
    kept = records[: args.seeds]
    state["summary"] = rounded(
        json.loads(
            json.dumps(
                finite_all(summarise(kept, settings, quadratics(RESULTS, args.dataset, kept)))
            )
        )
    )
    write(path, state)
    print(json.dumps(state["summary"], indent=1))


def finite_all(value):
    """Infinite bounds of a single seed as null, all through."""
    if isinstance(value, dict):
        return {k: finite_all(v) for k, v in value.items()}
    if isinstance(value, list):
        return [finite_all(v) for v in value]
    return finite(value)


if __name__ == "__main__":
    main()
