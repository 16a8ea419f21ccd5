"""The contest on a convolutional network and a small vision transformer, whole models.

Trained on 10,000 images for few epochs, so that the table takes minutes on two cores; `--full`
trains on all images, for a GPU:

    python benchmarks/architectures.py --dataset fashion_mnist --data-dir DIR --architecture cnn
    python benchmarks/architectures.py --dataset fashion_mnist --data-dir DIR --architecture vit \
        --full --seeds 5

A Koopman matrix may stand for any span: from the input, or from a feature map or token stream, to
the logits. Which one is a variant, chosen on validation images like the settings of every method.
"""

import argparse
import dataclasses
import json
import pathlib
import time

import jax
import jax.numpy as jnp
from _timing import versions
from flax import nnx

from koopjax import compress, data, models

HERE = pathlib.Path(__file__).parent
#: Images, epochs of the original, of a compression, and of one while choosing.
FEW, EPOCHS, TRAINED, CHOOSING = 10_000, 5, 8, 4
#: Cuts that a span may begin at (None: the whole model), with directions of each axis of the state.
SPANS = {
    "cnn": ((None, (10, 10)), ("norms.0/max_pool", (7, 7, 6))),
    "vit": ((None, (10, 10)), ("blocks.0.contract/add", (16, 12))),
}


def arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="fashion_mnist")
    parser.add_argument("--data-dir", default=None)
    parser.add_argument("--architecture", choices=sorted(SPANS), default="cnn")
    parser.add_argument("--budgets", default="10x,30x")
    parser.add_argument("--methods", default="koopman,koopman_chain,fisher,magnitude")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--out", default=str(HERE / "results"))
    return parser.parse_args()


def recipes(architecture: str) -> dict[str, compress.Recipe]:
    """The library's Koopman recipes with this architecture's spans as variants."""
    found = {}
    for name, hidden in (("koopman", {}), ("koopman_chain", {"hidden": (16,)})):
        variants = tuple(
            {"learning_rate": rate, "coordinates": 28, "factors": factors, "at": at, **hidden}
            for at, factors in SPANS[architecture]
            for rate in (5e-3, 1e-2)
        )
        found[name] = dataclasses.replace(compress.RECIPES[name], variants=variants)
    return found


def main() -> None:
    """Run what is missing and write the results."""
    args = arguments()
    dataset = data.load(args.dataset, args.data_dir)
    if not args.full:
        few = {name: getattr(dataset, name)[:FEW] for name in ("x_train", "y_train")}
        dataset = dataclasses.replace(dataset, **few)
    scale = 2 if args.full else 1

    def network(seed: int, x: jax.Array, y: jax.Array) -> nnx.Module:
        build = models.CNN if args.architecture == "cnn" else models.ViT
        model = build(dataset.shape, dataset.classes, rngs=nnx.Rngs(seed))
        made = models.train(
            model, x, y, key=jax.random.key(seed), epochs=scale * EPOCHS, batch_size=64,
            learning_rate=2e-3, warmup=0.05,
        ).model  # fmt: skip
        made.eval()
        return made

    start = time.time()

    def show(done: int, total: int, point: compress.Point) -> None:
        print(
            f"[{time.time() - start:5.0f} s {done}/{total}] {point.budget} {point.method} "
            f"seed {point.seed}: {point.accuracy} {point.note} {dict(point.settings)}", flush=True,
        )  # fmt: skip

    name = f"architecture_{args.architecture}_{args.dataset}{'_full' if args.full else ''}"
    result = compress.pareto(
        network, dataset, args.methods.split(","), args.budgets.split(","), range(args.seeds),
        training=compress.Training(epochs=scale * TRAINED, batch_size=64),
        tuning=compress.Training(epochs=scale * CHOOSING, batch_size=64),
        recipes=recipes(args.architecture), ledger=pathlib.Path(args.out) / f"{name}.jsonl",
        progress=show,
    )  # fmt: skip
    results = {
        "dataset": args.dataset, "architecture": args.architecture, "full": args.full,
        "images": int(jnp.shape(dataset.x_train)[0]), "versions": versions(),
        "originals": {str(s): dict(o) for s, o in result.originals.items()},
        "summary": result.summary(), "points": [p.as_dict() for p in result.points],
    }  # fmt: skip
    (pathlib.Path(args.out) / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
