"""The first table of compression: one-shot methods at equal stored bytes.

Trains 784-100-100-100-10 on all 60,000 training images, compresses it by every method of
`compress.METHODS` without labels, measures once on the test images, and writes one JSON a data set:

    python benchmarks/compression_table.py --dataset mnist --data-dir DIR --seeds 1

Rows carry the ratio of file sizes (whole model, header included), so the figures are those of
files. A run that was interrupted goes on where it stopped.
"""

import argparse
import json
import pathlib
import platform
import statistics
import time

import flax
import jax
import numpy as np
from flax import nnx

from koopjax import compress, data, export, models

SIZES = (784, 100, 100, 100, 10)


def arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="mnist")
    parser.add_argument("--data-dir", default=None)
    parser.add_argument("--budgets", default="4x,5x,8x,10x,15x,20x,30x,50x")
    parser.add_argument("--methods", default=",".join(compress.METHODS))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--out", default=str(pathlib.Path(__file__).parent / "results"))
    return parser.parse_args()


def summary(rows: list[dict]) -> list[dict]:
    """Mean and standard deviation over seeds for each method and budget."""
    out = []
    for method, budget in dict.fromkeys((row["method"], row["budget"]) for row in rows):
        same = [r for r in rows if (r["method"], r["budget"]) == (method, budget)]
        done = [r for r in same if r["accuracy"] is not None]
        values = [r["accuracy"] for r in done]
        out.append(
            {
                "method": method,
                "budget": budget,
                "seeds": len(values),
                "ratio": float(np.mean([r["ratio"] for r in done])) if done else None,
                "accuracy": statistics.mean(values) if values else None,
                "std": statistics.stdev(values) if len(values) > 1 else None,
                "note": same[0]["note"] if not done else "",
            }
        )
    return out


def main() -> None:
    """Run what is missing and write the results after each row."""
    args = arguments()
    path = pathlib.Path(args.out) / f"compression_{args.dataset}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    results = json.loads(path.read_text()) if path.exists() else {"originals": {}, "rows": []}
    dataset = data.load(args.dataset, args.data_dir).flat()
    x, y = dataset.train_and_val()
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        sizes = (dataset.shape[0], *SIZES[1:-1], dataset.classes)
        start = time.perf_counter()
        model = models.MLP(sizes, rngs=nnx.Rngs(seed))
        model = models.train(model, x, y, key=jax.random.key(seed), epochs=args.epochs).model
        results["originals"][str(seed)] = {
            "accuracy": models.accuracy(model, dataset.x_test, dataset.y_test),
            "stored_bytes": export.stored_bytes(model),
            "training_seconds": time.perf_counter() - start,
        }
        print(args.dataset, "seed", seed, results["originals"][str(seed)], flush=True)
        for budget in args.budgets.split(","):
            for method in args.methods.split(","):
                name = str(compress.Budget.parse(budget))
                old = [(r["seed"], r["method"], r["budget"]) for r in results["rows"]]
                if (seed, method, name) in old:
                    continue
                (row,) = compress.table(
                    model, x, (dataset.x_test, dataset.y_test), [budget], [method],
                    key=jax.random.key(1000 + seed),
                )  # fmt: skip
                results["rows"].append({"seed": seed, **row.as_dict()})
                results |= {
                    "dataset": args.dataset, "sizes": list(sizes), "epochs": args.epochs,
                    "finetuned": False, "summary": summary(results["rows"]),
                    "versions": {"jax": jax.__version__, "flax": flax.__version__,
                                 "python": platform.python_version()},
                    "device": str(jax.devices()[0].platform), "dtype": "float32",
                }  # fmt: skip
                path.write_text(json.dumps(results, indent=1) + "\n")
                shown = row.accuracy if row.accuracy is not None else row.note
                print(f"{budget:>5} {method:13} {row.ratio} {shown} {row.seconds:.0f}s", flush=True)


if __name__ == "__main__":
    main()
