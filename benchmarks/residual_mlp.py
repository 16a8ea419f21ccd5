"""The rival's setting: four residual layers of width 784 on MNIST, replaced by a Koopman block.

The network is `h = relu(W x + b)`, four times `h + relu(W h + b)`, then logits; trained on images
moved at random by up to two pixels. The block takes the residual layers' place, from the first
residual stream to the logits: leading coordinates, their products up to degree two, K.

    python benchmarks/residual_mlp.py --data-dir DIR --seeds 3 --cache DIR

Rows: "closed form" is least squares alone (on images and moved copies, without labels);
"distilled" trains that block on to answer as the network does. Settings come from a network that
has not seen the 5,000 validation images (`--choose`); then networks are trained on all 60,000 and
the test images are used once. A run that was interrupted goes on where it stopped.
"""

import argparse
import json
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
from _timing import versions
from flax import nnx

from koopjax import compress, data, edmd, export, models, nn, observables, surgery

RESULTS = pathlib.Path(__file__).parent / "results"
CUTS = ("embed/relu", "output")
TRAINING = {"batch_size": 256, "learning_rate": 1e-3, "weight_decay": 0.1, "warmup": 0.05}
EPOCHS, REACH, WIDTH, DEPTH = 16, 2, 784, 4
#: Samples, moved copies among them, of the closed form.
FITTED = 120_000
#: Of the block: coordinates, ridge; samples whose Jacobians give the coordinates; moved copies.
RANK, RIDGE, JACOBIANS, COPIES = 80, 1e-4, 1000, 3
DISTILLATION = {"epochs": 8, "batch_size": 256, "learning_rate": 1e-3, "temperature": 2.0}
STUDENT = {1: 6.314, 2: 2.920, 3: 2.353, 4: 2.132}


class ResidualMLP(nnx.Module):
    """`h = relu(W x + b)`, then `h + relu(W h + b)` a layer, then logits.

    Args:
        d_in: width of the input.
        width: of the residual stream.
        depth: number of residual layers.
        classes: number of logits.
        rngs: source of the initial weights.
    """

    def __init__(self, d_in, width, depth, classes, *, rngs):
        self.embed = nnx.Linear(d_in, width, rngs=rngs)
        self.blocks = nnx.List([nnx.Linear(width, width, rngs=rngs) for _ in range(depth)])
        self.head = nnx.Linear(width, classes, rngs=rngs)

    def __call__(self, x):
        """Logits of flat images."""
        h = nnx.relu(self.embed(x))
        for block in self.blocks:
            h = h + nnx.relu(block(h))
        return self.head(h)


class Moved(nnx.Module):
    """A network whose images move at random by up to `reach` pixels while it is trained."""

    def __init__(self, network, side, reach, rngs):
        self.network, self.side, self.reach, self.rngs = network, side, reach, rngs
        self.deterministic = False  # what `train()` and `eval()` set

    def __call__(self, x):
        """Logits."""
        if not self.deterministic:
            offsets = jax.random.randint(self.rngs.shift(), (len(x), 2), 0, 2 * self.reach + 1)
            x = move(x, offsets, self.side, self.reach)
        return self.network(x)


def move(x, offsets, side, reach):
    """Flat images moved by `offsets - reach` pixels, zeros coming in."""
    images = jnp.pad(x.reshape(-1, side, side), ((0, 0), (reach, reach), (reach, reach)))
    cut = lambda image, at: jax.lax.dynamic_slice(image, (at[0], at[1]), (side, side))
    return jax.vmap(cut)(images, offsets).reshape(x.shape)


def arguments():
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="mnist")
    parser.add_argument("--data-dir", default=None)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cache", default=None, help="folder for trained networks")
    parser.add_argument("--choose", action="store_true", help="measure on validation images only")
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--rank", type=int, default=RANK)
    parser.add_argument("--copies", type=int, default=COPIES, help="moved copies of the images")
    parser.add_argument("--distil-epochs", type=int, default=DISTILLATION["epochs"])
    parser.add_argument("--distil-rate", type=float, default=DISTILLATION["learning_rate"])
    parser.add_argument("--temperature", type=float, default=DISTILLATION["temperature"])
    parser.add_argument("--out", default=str(RESULTS))
    return parser.parse_args()


def trained(args, x, y, classes, seed, name):
    """One network, from the cache where it is there."""
    side = round(x.shape[1] ** 0.5)
    model = ResidualMLP(x.shape[1], args.width, DEPTH, classes, rngs=nnx.Rngs(seed))
    path = None if args.cache is None else pathlib.Path(args.cache) / f"{name}.koop"
    if path is not None and path.exists():
        return export.load(path, model=model)
    show = lambda epoch, metrics: print(
        name, epoch, {k: round(v, 4) for k, v in metrics.items()}, flush=True
    )
    model = models.train(
        Moved(model, side, REACH, nnx.Rngs(shift=seed)), x, y, key=jax.random.key(seed),
        epochs=args.epochs, progress=show, **TRAINING,
    ).model.network  # fmt: skip
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        export.save(model, path)
    return model


def copies(x, count, key):
    """The images, and moved copies of them."""
    side = round(x.shape[1] ** 0.5)
    out = [jnp.asarray(x)]
    for k in jax.random.split(key, count):
        offsets = jax.random.randint(k, (len(x), 2), 0, 2 * REACH + 1)
        out.append(jax.jit(move, static_argnums=(2, 3))(out[0], offsets, side, REACH))
    return jnp.concatenate(out)


def in_parts(run, x, rows=5000):
    """`run` over many samples, a part at a time."""
    step = jax.jit(run)
    return jnp.concatenate([step(x[i : i + rows]) for i in range(0, len(x), rows)])


def closed_form(h, logits, span, rank):
    """Leading coordinates of the active subspace, products, K by least squares."""
    slopes = jax.jit(jax.vmap(jax.jacrev(lambda state: span(state[None])[0])))
    places = np.linspace(0, len(h) - 1, JACOBIANS).astype(int)
    parts = np.array_split(places, max(1, JACOBIANS // 100))
    gradients = jnp.concatenate([slopes(h[part]) for part in parts])
    gradients = gradients - jnp.mean(gradients, axis=1, keepdims=True)
    some = h[: 20 * h.shape[1]]
    project = observables.Project.active_subspace(some, gradients, rank, whiten=True)
    # The mean goes behind the product, where it takes `rank` numbers.
    shift = project.mean @ project.matrix
    first = observables.Compose(
        observables.Project(project.matrix),
        observables.Standardize(shift, jnp.ones_like(shift)),
    )
    psi = observables.Compose(first, observables.Monomials(2))
    target = logits[:FITTED] - jnp.mean(logits[:FITTED], axis=1, keepdims=True)
    stats = edmd.accumulate(
        psi, h[:FITTED], target, target=observables.Identity(), accumulate_dtype=jnp.float32
    )
    # On the host: a Gram matrix summed in float32 bears this ridge, solved in float64.
    gram, cross = (np.asarray(a, np.float64) for a in (stats.gram, stats.cross))
    ridge = RIDGE * float(stats.count) * np.eye(len(gram))
    return nn.KoopmanBlock(psi, jnp.asarray(np.linalg.solve(gram + ridge, cross), jnp.float32))


def measure(args, x, y, test, classes, seed, name):
    """One network: closed form, then distilled."""
    start = time.perf_counter()
    model = trained(args, x, y, classes, seed, name)
    head, span, _ = surgery.split(model, x[:2], at=CUTS)
    x_test, y_test = test
    reference = models.accuracy(model, x_test, y_test)
    replaced = export.stored_bytes({"blocks": nnx.to_pure_dict(nnx.state(model.blocks))})
    key = jax.random.key(1000 + seed)
    many = copies(x, args.copies, key)
    h = in_parts(head, many)
    del many
    logits = in_parts(span, h)
    rows = []

    def add(form, block):
        stored = export.stored_bytes(block)
        # The spliced network is what is measured: head, then block.
        value = models.accuracy(surgery.splice(model, x[:2], CUTS, block), x_test, y_test)
        rows.append({
            "seed": seed, "form": form, "accuracy": value,
            "points_lost": 100 * (reference - value), "stored_bytes": stored,
            "share_of_replaced": stored / replaced, "seconds": time.perf_counter() - start,
        })  # fmt: skip
        print(name, form, f"{reference:.4f} -> {value:.4f}, 1/{replaced / stored:.1f}", flush=True)

    block = closed_form(h, logits, span, args.rank)
    add("closed form", block)

    def show(epoch, metrics):
        print(name, "epoch", epoch, f"{metrics['loss']:.4f}", flush=True)

    block = compress.finetune(
        block, h, teacher=logits, key=key, epochs=args.distil_epochs,
        batch_size=DISTILLATION["batch_size"], learning_rate=args.distil_rate,
        temperature=args.temperature, progress=show,
    )  # fmt: skip
    add("distilled", block)
    return {"seed": seed, "accuracy": reference, "replaced_bytes": replaced, "rows": rows}


def summary(seeds):
    """Mean, standard deviation and the one-sided 95 % bound of the points lost."""
    out = []
    rows = [row for seed in seeds for row in seed["rows"]]
    for form in dict.fromkeys(row["form"] for row in rows):
        same = [row for row in rows if row["form"] == form]
        lost = np.array([row["points_lost"] for row in same])
        n, spread = len(lost), float(np.std(lost, ddof=1)) if len(lost) > 1 else None
        bound = None
        if spread is not None and n - 1 in STUDENT:
            bound = float(lost.mean() + STUDENT[n - 1] * spread / np.sqrt(n))
        out.append({
            "form": form, "seeds": n, "points_lost": float(lost.mean()), "std": spread,
            "upper_95": bound, "accuracy": float(np.mean([row["accuracy"] for row in same])),
            "share_of_replaced": float(np.mean([row["share_of_replaced"] for row in same])),
        })  # fmt: skip
    return out


def main():
    """Run what is missing and write the results after each network."""
    args = arguments()
    dataset = data.load(args.dataset, args.data_dir).flat()
    if args.choose:
        measure(args, dataset.x_train, dataset.y_train, (dataset.x_val, dataset.y_val),
                dataset.classes, 0, f"residual_{args.dataset}_choice")  # fmt: skip
        return
    out = pathlib.Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    path = out / (f"residual_mlp_{args.dataset}.json")
    results = json.loads(path.read_text()) if path.exists() else {"seeds": []}
    x, y = dataset.train_and_val()
    for seed in range(args.seeds):
        if any(done["seed"] == seed for done in results["seeds"]):
            continue
        name = f"residual_{args.dataset}_{seed}"
        test = dataset.x_test, dataset.y_test
        results["seeds"].append(measure(args, x, y, test, dataset.classes, seed, name))
        settings = {k: v for k, v in vars(args).items() if k not in ("data_dir", "cache", "out")}
        record = {
            "benchmark": "residual_mlp", "dataset": args.dataset, "width": args.width,
            "depth": DEPTH, "training": {**TRAINING, "epochs": args.epochs, "reach": REACH},
            "settings": settings, "ridge": RIDGE, "versions": versions(),
            "device": jax.devices()[0].platform, "dtype": "float32",
            "summary": summary(results["seeds"]), **results,
        }  # fmt: skip
        partial = path.with_suffix(".tmp")
        partial.write_text(json.dumps(record, indent=1) + "\n")
        partial.replace(path)


if __name__ == "__main__":
    main()
