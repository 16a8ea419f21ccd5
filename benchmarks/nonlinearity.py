"""How much nonlinearity the middle layers of an MLP need: the headline table, over seeds.

    python benchmarks/nonlinearity.py --dataset mnist --data-dir DIR --seeds 5

A network trained on the training images chooses, on the validation images, the ridge of every
dictionary and the best dictionary. Then, for each seed, a network is trained on all of them, the
ladder is fitted with those choices, and the test images are used once. Seeds are written as they
finish; a second call goes on with those that are missing.
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
import jax.numpy as jnp
import numpy as np
from flax import nnx

from koopjax import analysis, data, models

RANKS = (1, 2, 4, 6, 8, 9, 10, 12, 16, 32)
ALPHAS = (1e-5, 1e-3, 1e-2, 1e-1, 1.0)
RECIPES = {
    "digits": {"hidden": (64, 64, 64), "epochs": 60, "batch_size": 64},
    "mnist": {"hidden": (100, 100, 100), "epochs": 20, "batch_size": 128},
    "fashion_mnist": {"hidden": (100, 100, 100), "epochs": 20, "batch_size": 128},
}
COMMON = {"learning_rate": 2e-3, "weight_decay": 0.3}


def settings_of(name, sums):
    """Everything that the figures depend on besides the code and the seeds."""
    return {
        **RECIPES[name],
        **COMMON,
        "ranks": RANKS,
        "alphas": ALPHAS,
        "dictionaries": {"directions": 18, "centers": 1000, "features": 1000},
        "sums": sums,
        "tolerance": 0.003,
        "choice_seed": 1000,
    }


def write(path, value):
    """JSON, whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(partial, path)


def rounded(value):
    """Floats to seven digits, all through."""
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(v) for v in value]
    return float(f"{value:.7g}") if isinstance(value, float) else value


def train(name, settings, x, y, seed, classes):
    """One network."""
    sizes = (x.shape[1], *settings["hidden"], classes)
    model = models.MLP(sizes, rngs=nnx.Rngs(seed))
    return models.train(
        model,
        x,
        y,
        key=jax.random.key(seed),
        epochs=settings["epochs"],
        batch_size=settings["batch_size"],
        learning_rate=settings["learning_rate"],
        weight_decay=settings["weight_decay"],
    ).model


def climb(model, settings, x_train, x_val, x_test, y_test, seed, **rest):
    """One ladder."""
    started = time.perf_counter()
    show = lambda done, total, what: print(
        f"    {time.perf_counter() - started:6.1f} s  {done}/{total}  {what}", file=sys.stderr
    )
    return analysis.ladder(
        model,
        x_train,
        x_val,
        None,
        x_test,
        y_test,
        key=jax.random.key(10_000 + seed),
        dictionaries=analysis.default_dictionaries(**settings["dictionaries"]),
        ranks=settings["ranks"],
        tolerance=settings["tolerance"],
        accumulate_dtype=jnp.dtype(settings["sums"]),
        progress=show,
        **rest,
    )


def choose(name, settings, sets):
    """Ridges and the best dictionary, by what the validation images say."""
    seed = settings["choice_seed"]
    model = train(name, settings, sets.x_train, sets.y_train, seed, sets.classes)
    found = climb(
        model, settings, sets.x_train, sets.x_val, sets.x_val, sets.y_val, seed,
        alphas=settings["alphas"], refit=False, stored=False,
    )  # fmt: skip
    full = [r for r in found.rungs if r.rank is None and not r.null and r.target == "state"]
    return {
        "ridges": found.choices,
        "best": min(full, key=lambda r: r.kl).dictionary,
        "validation": [r.to_dict() for r in full],
        "validation_original": found.original["accuracy"],
    }


def one_seed(name, settings, sets, choices, seed):
    """Train on all labelled images, fit with the choices made, use the test images once."""
    started = time.perf_counter()
    x, y = sets.train_and_val()
    model = train(name, settings, x, y, seed, sets.classes)
    trained = time.perf_counter()
    found = climb(
        model, settings, x, None, sets.x_test, sets.y_test, seed,
        choices=choices["ridges"], stored=seed == 0,
    )  # fmt: skip
    record = {
        "seed": seed,
        "train_seconds": trained - started,
        "ladder_seconds": time.perf_counter() - trained,
        "disagreements": {n: len(found.disagreements(n)) for n in found.answers if n != "original"},
        **found.to_dict(),
    }
    if seed:
        del record["singular_values"]
    return rounded(record)


def bars(summary, best):
    """The figures that the project promises, in points of accuracy, with one-sided 95 % bounds."""
    points = lambda row: {
        "mean": 100 * row["loss"],
        "lower95": 100 * row["loss_lower"],
        "upper95": 100 * row["loss_upper"],
    }
    whole, cut = summary.find("degree 2"), summary.find("degree 2", 10)
    more = [a - b for a, b in zip(whole["accuracies"], cut["accuracies"], strict=True)]
    mean, low, high = analysis.one_sided(more)
    return {
        "original_accuracy": summary.original["accuracy"],
        "original_accuracies": summary.original["accuracies"],
        "quadratic_loss": points(whole),
        "rank_10_further_loss": {"mean": 100 * mean, "lower95": 100 * low, "upper95": 100 * high},
        "best_dictionary": best,
        "best_dictionary_loss": points(summary.find(best)),
    }


def finite(value):
    """Infinite bounds of a single seed as null."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    return None if isinstance(value, float) and not np.isfinite(value) else value


def main():
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", choices=sorted(RECIPES), default="mnist")
    parser.add_argument("--data-dir", help="folder of idx, idx.gz or npz files")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("benchmarks/results"))
    parser.add_argument(
        "--sums",
        choices=("float32", "float64"),
        help="dtype of the Gram sums (default: float64 up to 10,000 samples, else float32)",
    )
    args = parser.parse_args()
    if args.seeds < 1:
        parser.error("expected --seeds of at least 1")
    sets = data.load(args.dataset, args.data_dir).flat()
    sums = args.sums or ("float64" if len(sets.x_train) <= 10_000 else "float32")
    settings = json.loads(json.dumps(settings_of(args.dataset, sums)))
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"nonlinearity_{args.dataset}.json"
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
        state["choices"] = rounded(choose(args.dataset, settings, sets))
        write(path, state)
    records = state.setdefault("per_seed", [])
    for seed in range(args.seeds):
        if any(record["seed"] == seed for record in records):
            continue
        print(f"seed {seed}", file=sys.stderr)
        records.append(one_seed(args.dataset, settings, sets, state["choices"], seed))
        write(path, state)
    records.sort(key=lambda record: record["seed"])
    summary = analysis.summarize(records[: args.seeds])
    state["summary"] = rounded(summary.to_dict())
    state["bars"] = rounded(finite(bars(summary, state["choices"]["best"])))
    write(path, state)
    print(summary.table())
    print(summary.sentence())
    print(json.dumps(state["bars"], indent=1))


if __name__ == "__main__":
    main()
