"""The Koopman matrix itself: the span from the first hidden layer to the logits in few bytes.

Trains 784-100-100-100-10, replaces layers 2 to 4 by products of the
100 activations with chosen entries of K, and measures span ratios (bytes of the layers' own file
over those of the block's) and pruning curves of K on all 5,151 products, dense to 1 % of its
entries:

    python benchmarks/koopman_matrix.py --dataset mnist --data-dir DIR --seeds 5 --cache DIR
    python benchmarks/koopman_matrix.py --plot

Settings and ridges are chosen on 5,000 held-out training images, with a network that has not seen
them; then everything is fitted on all 60,000 and the test images are used once. Closed form: least
squares alone, float32. A run that was interrupted goes on where it stopped.
"""

import argparse
import functools
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
RECIPES = {"digits": ((64, 64, 64), 60, 64)}
USUAL = ((100, 100, 100), 20, 128)
CUTS = ("layers.0/relu", "output")
BUDGETS = (5, 10, 20, 40)
#: Rows that backward elimination leaves for the choice of entries.
ROWS = 400
#: Tried on validation images; (temperature, floor) of the softmax's metric.
METRICS = ((3.0, 0.03), (6.0, 0.03))
SHARES = (1.0, 0.5, 0.3, 0.2, 0.1, 0.05, 0.03, 0.02, 0.01)
RIDGES = {
    "magnitude": (1e-4, 1e-3, 1e-2, 1e-1, 1.0),
    "wanda": (1e-4, 1e-3, 1e-2, 1e-1, 1.0),
    "obs": (1e-4, 1e-3, 1e-2),
}
RIDGE = 1e-3
#: Products that a screening on so many samples leaves of all.
SCREENED, SAMPLES = 1500, 12_000
FORMS = ("backward", "forward", "rank 8", "rank 6")
#: What values may take of a file, the rest being indices and header.
SHARES_OF_FILE = np.arange(0.6, 1.0, 0.01)
CHOICE_SEED = 1000
# One-sided 95 % point of Student's t, by degrees of freedom.
STUDENT = {1: 6.314, 2: 2.920, 3: 2.353, 4: 2.132, 5: 2.015, 6: 1.943, 7: 1.895, 8: 1.860, 9: 1.833}


def arguments():
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="mnist")
    parser.add_argument("--data-dir", default=None)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--cache", default=None, help="folder for trained networks")
    parser.add_argument("--budgets", default=",".join(map(str, BUDGETS)))
    parser.add_argument("--curves", type=int, default=5, help="seeds with pruning curves")
    parser.add_argument("--plot", action="store_true", help="draw what is in the results")
    parser.add_argument("--out", default=str(RESULTS))
    return parser.parse_args()


def trained(name, x, y, seed, classes, cache):
    """One network, from the cache where it is there."""
    path = None if cache is None else pathlib.Path(cache) / f"{name}_{seed}.koop"
    if path is not None and path.exists():
        return export.load(path)
    hidden, epochs, batch = RECIPES.get(name, USUAL)
    model = models.MLP((x.shape[1], *hidden, classes), rngs=nnx.Rngs(seed))
    key = jax.random.key(seed)
    model = models.train(model, x, y, key=key, epochs=epochs, batch_size=batch).model
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        export.save(model, path)
    return model


def span_bytes(model):
    """The file of the replaced layers alone."""
    own = models.MLP(model.sizes[1:], rngs=nnx.Rngs(0))
    for layer, given in zip(own.layers, model.layers[1:], strict=True):
        nnx.update(layer, nnx.state(given))
    return export.stored_bytes(own)


def centred(logits):
    """Logits without what they have in common, which softmax does not see."""
    return logits - jnp.mean(logits, axis=1, keepdims=True)


def screened(psi, x, y, size, ridge=RIDGE):
    """The observables most correlated with what those taken before leave over, `SCREENED / 15` at
    a time: far more than will be kept, without the Gram matrix of all of them."""
    f = np.array(jax.jit(psi)(x))
    f /= np.sqrt(np.maximum(np.einsum("np,np->p", f, f) / len(f), 1e-12))
    y, rest = np.asarray(y), np.asarray(y)
    taken = np.zeros(0, int)
    while len(taken) < size:
        gain = np.sum((f.T @ rest) ** 2, axis=1)
        gain[taken] = -1.0
        more = np.argsort(-gain, kind="stable")[: min(max(size // 15, 1), size - len(taken))]
        taken = np.concatenate([taken, more])
        some = f[:, taken]
        system = (some.T @ some).astype(np.float64) + ridge * len(f) * np.eye(len(taken))
        rest = y - some @ np.linalg.solve(system, some.T @ y).astype(np.float32)
    return np.sort(taken)


class Products:
    """Moments of the most useful products of the activations, in one pass over the data.

    Args:
        h: `(n, d)` activations.
        logits: of the original.
        size: how many of the `(d + 1)(d + 2) / 2` products; None for all.
        scaling: of the activations; none takes them as they are, which spares a file the scaling.
    """

    def __init__(self, h, logits, size, scaling=None):
        target = centred(logits)
        first = scaling or observables.Identity()
        psi = observables.Compose(first, observables.Monomials(2))
        index = np.arange(psi.size(h.shape[1]))
        if size is not None and size < len(index):
            index = screened(psi, h[:SAMPLES], target[:SAMPLES], size)
        self.index = index.astype(np.uint16)
        self.psi = observables.Compose(first, observables.Select(psi.then, self.index))
        # Sums of float32 bear relative ridges from 1e-4 on, and take a third of the time.
        stats = edmd.accumulate(
            self.psi, h, target, target=observables.Identity(), accumulate_dtype=jnp.float32
        )
        # Observables of unit second moment, so that one ridge suits all.
        gram, count = np.asarray(stats.gram, np.float64), float(stats.count)
        self.unit = 1 / np.sqrt(np.maximum(np.diag(gram) / count, 1e-12))
        self.gram = gram * self.unit[:, None] * self.unit[None, :] / count
        self.cross = np.asarray(stats.cross) * self.unit[:, None] / count
        self.stats = edmd.Gram(
            self.gram, self.cross, np.asarray(stats.target_gram) / count, np.float64(count)
        )

    def rows(self, sizes, forward=False):
        """Products by backward elimination or forward selection: `{size: indices}`."""
        choose = compress.select_forward if forward else compress.select_observables
        return dict(zip(sizes, choose(self.stats, sizes, alpha=RIDGE), strict=True))

    def fit(self, rows):
        """Ridge solution on chosen products, for products as they are."""
        system = self.gram[np.ix_(rows, rows)] + RIDGE * np.eye(len(rows))
        return self.unit[rows][:, None] * np.linalg.solve(system, self.cross[rows])

    def reduced(self, rows, rank):
        """The same in two factors: reduced-rank regression on centred logits."""
        system = self.gram[np.ix_(rows, rows)] + RIDGE * np.eye(len(rows))
        k = np.linalg.solve(system, self.cross[rows])
        _, vectors = np.linalg.eigh(k.T @ system @ k)
        leading = vectors[:, -rank:]
        return self.unit[rows][:, None] * (k @ leading), leading.T


def block_of(products, rows, k):
    """A block of the products whose rows of K are not zero; `rows` rise."""
    if isinstance(k, tuple):
        operator = nn.LowRank(*(jnp.asarray(part, jnp.float32) for part in k))
    else:
        live = np.any(k != 0, axis=1)
        rows, operator = rows[live], nn.Dense(jnp.asarray(k[live], jnp.float32))
    psi = observables.Select(observables.Monomials(2), products.index[rows])
    return nn.KoopmanBlock(psi, operator)


def gauge(k):
    """The last logit at zero: the same softmax with a column less to store."""
    return k - k[:, -1:]


def best_fit(make, sizes, limit):
    """The block of the largest size whose file fits, by bisection, and its bytes."""
    low, high, best = 0, len(sizes), (None, None)
    while low < high:
        middle = (low + high) // 2
        block = make(sizes[middle])
        stored = export.stored_bytes(block)
        if stored <= limit:
            best, low = (block, stored), middle + 1
        else:
            high = middle
    return best


def row_forms(products, limits, forms, count):
    """Blocks of whole rows of K by form and limit, and the rows that the choice of entries takes.

    Forms are "backward", "forward" and "rank N"; one elimination serves all but "forward".
    """
    ranks = {form: int(form.split()[-1]) for form in forms if form.startswith("rank")}
    near = {
        (form, limit): sizes_near(min(limit // (4 * ranks.get(form, 9)), len(products.unit)))
        for form in forms
        for limit in limits
    }
    sizes = sorted({count} | {n for (form, _), ns in near.items() if form != "forward" for n in ns})
    backward = products.rows(sizes)
    out = {}
    for (form, limit), some in near.items():
        rank = ranks.get(form)
        chosen = products.rows(some, forward=True) if form == "forward" else backward
        make = functools.partial(row_block, products, chosen, rank)
        out[form, limit] = best_fit(make, some, limit)
    return out, backward[count]


def row_block(products, chosen, rank, size):
    """A block of whole rows, K in one matrix or two factors."""
    rows = chosen[size]
    k = products.reduced(rows, rank) if rank else gauge(products.fit(rows))
    return block_of(products, rows, k)


def sizes_near(top):
    """Numbers of rows that may fit where `top` rows would without indices and header."""
    return sorted({max(top - step, 9) for step in range(0, 48, 2)})


def entry_form(products, h, logits, limits, metric, rows):
    """Blocks of chosen entries of K by limit; `metric` None for plain least squares."""
    psi = observables.Select(observables.Monomials(2), products.index[rows])
    if metric is None:
        q, unit = logits.shape[1], 1 / products.unit[rows]
        gram = products.gram[np.ix_(rows, rows)] * unit[:, None] * unit[None, :]
        wide = gram[:, None, :, None] * (np.eye(q) - 1 / q)[None, :, None, :]
        moments = wide, products.cross[rows] * unit[:, None]
    else:
        temperature, floor = metric
        moments = compress.softmax_moments(
            jax.jit(psi)(h), logits, temperature=temperature, floor=floor
        )
    sizes = {
        limit: sorted({min(int(share * limit / 4), moments[1].size) for share in SHARES_OF_FILE})
        for limit in limits
    }
    every = sorted({size for many in sizes.values() for size in many}, reverse=True)
    found = dict(zip(every, compress.select_entries(*moments, every), strict=True))
    make = lambda size: block_of(products, rows, found[size])
    return {limit: best_fit(make, many, limit) for limit, many in sizes.items()}


def accuracy(outputs, labels):
    """Share of right answers."""
    return float(np.mean(np.argmax(np.asarray(outputs), axis=1) == np.asarray(labels)))


def curve_scores(products, h, labels, ridges, shares):
    """Accuracy of pruned matrices by method: `{method: {ridge: [a share each]}}`."""
    lifted = np.asarray(jax.jit(products.psi)(h)) * products.unit.astype(np.float32)
    out = {}
    for method, many in ridges.items():
        out[method] = {}
        for ridge in many:
            (found,) = compress.matrix_curves(
                products.gram, products.cross, shares, alpha=ridge, methods=[method]
            ).values()
            scores = [accuracy(lifted @ k.astype(np.float32), labels) for k in found]
            out[method][f"{ridge:g}"] = scores
            print(f"  {method} ridge {ridge:g}", *(f"{score:.4f}" for score in scores), flush=True)
    return out


def choose(args, dataset, budgets):
    """Forms, metric and ridges, on held-out images."""
    start = time.perf_counter()
    model = trained(f"{args.dataset}_choice", dataset.x_train, dataset.y_train, CHOICE_SEED,
                    dataset.classes, args.cache)  # fmt: skip
    head, span, _ = surgery.split(model, dataset.x_train[:2], at=CUTS)
    h, h_val = (jax.jit(head)(jnp.asarray(a)) for a in (dataset.x_train, dataset.x_val))
    logits = jax.jit(span)(h)
    labels = dataset.y_val
    reference, whole = accuracy(jax.jit(span)(h_val), labels), span_bytes(model)
    limits = [whole // budget for budget in budgets]
    products = Products(h, logits, SCREENED)
    count = min(ROWS, len(products.unit) // 2)
    forms, rows = row_forms(products, limits, FORMS, count)
    for metric in (None, *METRICS):
        name = "entries, plain" if metric is None else f"entries, softmax {metric[0]:g}"
        found = entry_form(products, h, logits, limits, metric, rows)
        forms |= {(name, limit): made for limit, made in found.items()}
    table = []
    for (form, limit), (block, size) in forms.items():
        if block is not None:
            lost = 100 * (reference - accuracy(block(h_val), labels))
            table.append({"form": form, "budget": budgets[limits.index(limit)], "bytes": size,
                          "span_ratio": whole / size, "points_lost": lost})  # fmt: skip
            print("  ", form, f"{whole / size:.1f}x", f"{lost:.2f} points lost", flush=True)
    mean = {
        metric: np.mean([r["points_lost"] for r in table if r["form"].endswith(f"x {metric[0]:g}")])
        for metric in METRICS
    }
    return {
        "seed": CHOICE_SEED, "images": len(dataset.x_train), "accuracy": reference, "forms": table,
        "metric": min(mean, key=mean.get), "rows": count,
        "seconds": time.perf_counter() - start,
    }  # fmt: skip


def measure(args, dataset, seed, choice, budgets):
    """One network: blocks at every budget, on the test images."""
    start = time.perf_counter()
    x, y = dataset.train_and_val()
    model = trained(args.dataset, x, y, seed, dataset.classes, args.cache)
    head, span, _ = surgery.split(model, x[:2], at=CUTS)
    h, h_test = (jax.jit(head)(jnp.asarray(a)) for a in (x, dataset.x_test))
    logits, labels = jax.jit(span)(h), dataset.y_test
    reference, whole = accuracy(jax.jit(span)(h_test), labels), span_bytes(model)
    limits = [whole // budget for budget in budgets]
    products = Products(h, logits, SCREENED)
    forms, few = row_forms(products, limits, FORMS[:1], choice["rows"])
    found = entry_form(products, h, logits, limits, choice["metric"], few)
    forms |= {("entries", limit): made for limit, made in found.items()}
    rows = []
    for (form, limit), (block, size) in forms.items():
        if block is None:
            continue
        spliced = surgery.splice(model, x[:2], CUTS, block)
        value = models.accuracy(spliced, dataset.x_test, labels)
        rows.append({
            "seed": seed, "form": form, "budget": budgets[limits.index(limit)],
            "accuracy": value, "points_lost": 100 * (reference - value), "stored_bytes": size,
            "span_ratio": whole / size,
            "entries": int(np.count_nonzero(block.operator.matrix[...])),
            "observables": block.operator.in_features,
        })  # fmt: skip
        print(args.dataset, seed, form, f"{whole / size:.2f}x {100 * (reference - value):.2f}",
              flush=True)  # fmt: skip
    out = {"seed": seed, "accuracy": reference, "span_bytes": whole, "rows": rows}
    return out | {"seconds": time.perf_counter() - start}


def curves_of(args, dataset, seed, choice):
    """One network: pruning curves of K, each at its ridge, on the test images."""
    x, y = dataset.train_and_val()
    model = trained(args.dataset, x, y, seed, dataset.classes, args.cache)
    head, span, _ = surgery.split(model, x[:2], at=CUTS)
    h, h_test = (jax.jit(head)(jnp.asarray(a)) for a in (x, dataset.x_test))
    scaled = Products(h, jax.jit(span)(h), None, observables.Standardize.fit(h))
    ridges = {method: (ridge,) for method, ridge in choice["ridges"].items()}
    scores = curve_scores(scaled, h_test, dataset.y_test, ridges, SHARES)
    return {method: next(iter(by.values())) for method, by in scores.items()}


def choose_ridges(args, dataset):
    """The ridge of each method of pruning, on held-out images."""
    model = trained(f"{args.dataset}_choice", dataset.x_train, dataset.y_train, CHOICE_SEED,
                    dataset.classes, args.cache)  # fmt: skip
    head, span, _ = surgery.split(model, dataset.x_train[:2], at=CUTS)
    h, h_val = (jax.jit(head)(jnp.asarray(a)) for a in (dataset.x_train, dataset.x_val))
    scaled = Products(h, jax.jit(span)(h), None, observables.Standardize.fit(h))
    curves = curve_scores(scaled, h_val, dataset.y_val, RIDGES, SHARES)
    best = {
        method: float(max(by, key=lambda ridge, by=by: np.mean(by[ridge])))
        for method, by in curves.items()
    }
    return {"curves": curves, "ridges": best}


def summary(seeds):
    """Mean, standard deviation and the one-sided 95 % bound of the points lost."""
    out = []
    rows = [row for seed in seeds for row in seed["rows"]]
    for form, budget in dict.fromkeys((row["form"], row["budget"]) for row in rows):
        same = [row for row in rows if (row["form"], row["budget"]) == (form, budget)]
        lost = np.array([row["points_lost"] for row in same])
        n = len(lost)
        spread = float(np.std(lost, ddof=1)) if n > 1 else None
        bound = None
        if spread is not None and n - 1 in STUDENT:
            bound = float(lost.mean() + STUDENT[n - 1] * spread / np.sqrt(n))
        out.append({
            "form": form, "budget": budget, "seeds": n, "points_lost": float(lost.mean()),
            "std": spread, "upper_95": bound,
            "accuracy": float(np.mean([row["accuracy"] for row in same])),
            "span_ratio": float(np.mean([row["span_ratio"] for row in same])),
        })  # fmt: skip
    return out


def plot(out):
    """Pruning curves of all data sets there are results of."""
    from koopjax.plot import COLOURS
    from koopjax.plot._style import INK, MUTED, new_figure, style

    found = [
        json.loads(path.read_text())
        for name in ("mnist", "fashion_mnist")
        if (path := out / f"koopman_matrix_{name}.json").exists()
    ]
    found = [one for one in found if any("curves" in seed for seed in one["seeds"])]
    if not found:
        raise SystemExit(f"expected results with pruning curves in {out}, got none; run it first")
    titles = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST"}
    colours = {"magnitude": COLOURS["magnitude"], "wanda": COLOURS["whitened_svd"],
               "obs": COLOURS["koopman"]}  # fmt: skip
    labels = {"magnitude": "magnitude", "wanda": "Wanda", "obs": "OBS, refitted"}
    with style():
        figure = new_figure(4.0 * len(found), 3.4)
        for axes, results in zip(
            figure.subplots(1, len(found), squeeze=False)[0], found, strict=True
        ):
            seeds = [seed for seed in results["seeds"] if "curves" in seed]
            original = np.array([seed["accuracy"] for seed in seeds])
            axes.axhspan(original.mean() - original.std(), original.mean() + original.std(),
                         color=MUTED, alpha=0.22, lw=0)  # fmt: skip
            axes.axhline(original.mean(), color=INK, lw=1.1, label="original")
            for method in ("obs", "wanda", "magnitude"):
                values = np.array([seed["curves"][method] for seed in seeds])
                mean, std = values.mean(0), values.std(0, ddof=1) if len(seeds) > 1 else 0.0
                percent = 100 * np.array(results["shares"])
                axes.plot(percent, mean, "o-", color=colours[method], label=labels[method], ms=4)
                axes.fill_between(percent, mean - std, mean + std, color=colours[method],
                                  alpha=0.18, lw=0)  # fmt: skip
            axes.set_xscale("log")
            axes.set_xticks([1, 3, 10, 30, 100], ["1", "3", "10", "30", "100"])
            axes.minorticks_off()
            axes.invert_xaxis()
            axes.set_xlabel("entries of K kept, %")
            axes.set_title(f"{titles[results['dataset']]}, {len(seeds)} seeds")
            axes.grid(True, axis="y")
        figure.axes[0].set_ylabel("test accuracy")
        figure.axes[0].legend(loc="lower left")
    figure.savefig(out / "koopman_matrix.png", dpi=150)


def main():
    """Run what is missing and write the results after each network."""
    args = arguments()
    out = pathlib.Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    if args.plot:
        return plot(out)
    path = out / f"koopman_matrix_{args.dataset}.json"
    results = json.loads(path.read_text()) if path.exists() else {"seeds": []}
    budgets = [int(budget) for budget in args.budgets.split(",")]
    dataset = data.load(args.dataset, args.data_dir).flat()
    hidden, epochs, batch = RECIPES.get(args.dataset, USUAL)

    def write():
        record = {
            "benchmark": "koopman_matrix", "dataset": args.dataset, "hidden": hidden,
            "epochs": epochs, "batch_size": batch, "budgets": budgets, "shares": SHARES,
            "ridge_of_selection": RIDGE,
            "screened": SCREENED, "observables_of_curves": "all",
            "rows": ROWS, "dtype": "float32", "closed_form": True,
            "versions": versions(), "device": jax.devices()[0].platform,
            "summary": summary(results["seeds"]), **results,
        }  # fmt: skip
        partial = path.with_suffix(".tmp")
        partial.write_text(json.dumps(record, indent=1) + "\n")
        partial.replace(path)

    if "choice" not in results:
        results["choice"] = choose(args, dataset, budgets)
        write()
    for seed in range(args.seeds):
        if all(done["seed"] != seed for done in results["seeds"]):
            results["seeds"].append(measure(args, dataset, seed, results["choice"], budgets))
            write()
    if args.curves and "ridges" not in results["choice"]:
        results["choice"] |= choose_ridges(args, dataset)
        write()
    for done in results["seeds"][: args.curves]:
        if "curves" not in done:
            done["curves"] = curves_of(args, dataset, done["seed"], results["choice"])
            write()


if __name__ == "__main__":
    main()
