"""The contest: Koopman and conventional compression of one network at equal stored bytes.

Trains 784-100-100-100-10 for each seed, chooses every method's settings on 5,000 held-out training
images of the first seed (the same number of variants for each method), compresses with all 60,000,
and measures once on the test images. Every finished piece is kept in a ledger, so that an
interrupted run goes on and later ones add seeds, methods and budgets:

    python benchmarks/pareto.py --dataset mnist --data-dir DIR --tracks fine-tuned \
        --budgets 8x,10x,20x,30x,50x,100x,200x --seeds 1

A method that has changed is made again with `--again NAME,...`: its points of these tracks, budgets
and seeds leave the ledger and stay in the results under "before", beside the new ones. On networks
of another machine the old code gives them anew, with the same `--cache`: `--before` names its JSON.

One rival is made here: `small_network_axes`, a small ReLU network behind the very projection that
the Koopman methods have, so that one sees what the projection does and what the products.
"""

import argparse
import itertools
import json
import pathlib
import platform
import time

import flax
import jax
from flax import nnx

from koopjax import compress, data, export, models, nn

HERE = pathlib.Path(__file__).parent
#: Hidden layers, epochs of the original, of a trained compression, and of one while choosing.
HIDDEN, EPOCHS, TRAINED, CHOOSING = (100, 100, 100), 20, 20, 10
#: Epochs and samples a step for the embedded digits, which are few.
DIGITS = {"epochs": 60, "batch_size": 32}


class BehindAxes(nnx.Module):
    """A projection along the axes of an image, then ReLU layers."""

    def __init__(self, first: nn.KoopmanBlock, rest: nn.Stack):
        self.first, self.rest = first, rest

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits."""
        return self.rest(nnx.relu(self.first(x)))


def behind_axes(problem, key, *, coordinates, factors, width):
    """A small network that begins as `koopman_student` does: its projection, in closed form."""
    block = compress.koopman_student(
        problem.model, problem.x, coordinates=coordinates, factors=factors, degree=1, key=key
    )
    projection = block.psi.first
    keys = jax.random.split(key)
    normal = jax.nn.initializers.he_normal()
    rank, classes = projection.size(problem.x.shape[1]), problem.teacher.shape[-1]
    zeros = lambda n: jax.numpy.zeros(n, jax.numpy.float32)
    first = nn.Dense(normal(keys[0], (rank, width), jax.numpy.float32), zeros(width))
    last = nn.Dense(normal(keys[1], (width, classes), jax.numpy.float32), zeros(classes))
    return BehindAxes(nn.KoopmanBlock(projection, first), nn.Stack([last], ()))


RIVALS = {
    "small_network_axes": compress.Recipe(
        "small network", behind_axes, "fisher",
        tuple(
            {"learning_rate": rate, "coordinates": k, "factors": factors, "width": 2 * k}
            for k, factors in ((24, (10, 10)), (32, (14, 14)))
            for rate in (1e-2, 2e-2)
        ),
    )
}  # fmt: skip


def arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--data-dir", default=None)
    parser.add_argument("--tracks", default="fine-tuned")
    parser.add_argument("--budgets", default="10x,30x,100x")
    parser.add_argument("--tune-at", default="10x,30x,100x")
    parser.add_argument("--methods", default=None)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--cache", default=None, help="folder for trained networks")
    parser.add_argument("--again", default="", help="methods to make again")
    parser.add_argument("--before", default=None, help="results of the old code for --again")
    parser.add_argument("--out", default=str(HERE / "results"))
    return parser.parse_args()


Key = tuple[str, str, str, int]


def key_of(point: dict) -> Key:
    """What a point is of."""
    return point["track"], point["method"], point["budget"], point["seed"]


def set_aside(ledger: pathlib.Path, again: set[Key], done: set[Key]) -> list[dict]:
    """Take points out of a ledger, and the choices of their settings, unless done before."""
    lines = ledger.read_text().splitlines() if ledger.exists() else []
    rows = [json.loads(line) for line in lines]
    gone = [
        row["row"] for row in rows
        if row.get("kind") == "point" and key_of(row["row"]) in again - done
    ]  # fmt: skip
    chosen = {(point["track"], point["method"]) for point in gone}
    stays = lambda row: (
        row not in gone
        and (
            "settings" not in row
            or "tried" not in row
            or (row["track"], row["method"]) not in chosen
        )
    )
    if gone:
        kept = [
            line
            for line, row in zip(lines, rows, strict=True)
            if "row" not in row or stays(row["row"])
        ]
        ledger.write_text("\n".join(kept) + "\n")
    return gone


def main() -> None:
    """Run what is missing and write the results after each point."""
    args = arguments()
    dataset = data.load(args.dataset, args.data_dir).flat()
    few = args.dataset == "digits"
    sizes = (dataset.shape[0], *HIDDEN, dataset.classes)

    def network(seed: int, x: jax.Array, y: jax.Array) -> nnx.Module:
        path = None
        if args.cache is not None:  # the same network again, whatever machine goes on
            path = pathlib.Path(args.cache) / f"{args.dataset}_{seed}_{len(x)}.koopjax"
            if path.exists():
                return export.load(path)
        model = models.MLP(sizes, rngs=nnx.Rngs(seed))
        settings = DIGITS if few else {"epochs": EPOCHS}
        model = models.train(model, x, y, key=jax.random.key(seed), **settings).model
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            export.save(model, path)
        return model

    kept: dict = DIGITS if few else {"epochs": TRAINED}
    out = pathlib.Path(args.out)
    start = time.time()

    def show(done: int, total: int, point: compress.Point) -> None:
        figure = point.note if point.accuracy is None else f"{point.accuracy:.4f}"
        print(
            f"[{time.time() - start:5.0f} s {done}/{total}] {point.track} {point.budget} "
            f"{point.method} seed {point.seed}: {figure} ({point.stored_bytes} bytes)", flush=True,
        )  # fmt: skip

    tracks, budgets, ledger = (
        args.tracks.split(","), args.budgets.split(","), out / f"pareto_{args.dataset}.jsonl",
    )  # fmt: skip
    path = out / f"pareto_{args.dataset}.json"
    old = json.loads(path.read_text()) if path.exists() else {}
    before = {key_of(point): point for point in old.get("before", [])}
    names = [name for name in args.again.split(",") if name]
    again = set(itertools.product(tracks, names, budgets, range(args.seeds)))
    done = set(before)
    before |= {key_of(point): point for point in set_aside(ledger, again, done)}
    if args.before is not None:
        found = json.loads(pathlib.Path(args.before).read_text())["points"]
        before |= {key_of(point): point for point in found if key_of(point) in again}
    if names:  # before anything is made again, so that an interrupted run can go on
        stay = [point for point in old.get("points", []) if key_of(point) not in again - done]
        old |= {"before": list(before.values()), "points": stay}
        path.write_text(json.dumps(old, indent=1) + "\n")
    result = compress.pareto(
        network, dataset, None if args.methods is None else args.methods.split(","),
        budgets, range(args.seeds), tracks=tracks,
        training=compress.Training(**kept),
        tuning=compress.Training(**(kept if few else {"epochs": CHOOSING})),
        tune_at=args.tune_at.split(","), recipes=RIVALS,
        ledger=ledger, progress=show,
    )  # fmt: skip
    ours = {key_of(p.as_dict()): p.as_dict() for p in result.points}
    held = {key_of(p): p for p in old.get("points", [])}
    merged = compress.Pareto(
        [compress.Point(**p) for p in (held | ours).values()], result.variants, result.originals
    )
    results = {
        "dataset": args.dataset, "sizes": list(sizes), "epochs": EPOCHS, "trained": kept,
        "originals": old.get("originals", {})
        | {str(s): dict(o) for s, o in result.originals.items()},
        "before": list(before.values()),
        "summary": merged.summary(), "points": [p.as_dict() for p in merged.points],
        "variants": [
            {"track": t, "method": m, "budget": b, "settings": dict(s)}
            for (t, m, b), s in result.variants.items()
        ],
        "versions": {"jax": jax.__version__, "flax": flax.__version__,
                     "python": platform.python_version()},
        "device": str(jax.devices()[0].platform), "dtype": "float32",
    }  # fmt: skip
    path.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
