"""Writes the README's tables and picture from the JSON in `benchmarks/results`.

python benchmarks/readme.py          rewrite them
python benchmarks/readme.py --check  say whether they are up to date, and exit 1 if not
"""

import argparse
import json
import pathlib
import re
import statistics
import sys

from matplotlib.figure import Figure

from koopjax.plot import COLOURS, pareto, plane

HERE = pathlib.Path(__file__).resolve().parent
README = HERE.parent / "README.md"
RESULTS = HERE / "results"
NAMES = {"digits": "digits (8×8)", "mnist": "MNIST", "fashion_mnist": "Fashion-MNIST"}
ROWS = [
    ("identity", None, "none"),
    ("mean", None, "none"),
    ("affine", None, "none"),
    ("affine", 8, "svd"),
    ("affine", 8, "output"),
    ("degree 2", None, "none"),
    ("degree 2", 8, "svd"),
    ("degree 2", 8, "output"),
    ("degree 2", 10, "output"),
    ("degree 3, leading 18", None, "none"),
    ("rbf", None, "none"),
    ("random fourier", None, "none"),
    ("degree 2, to the logits", None, "none"),
]
#: One-shot methods of the first table.
METHODS = {
    "koopman": "Koopman (projection → dictionary → K)",
    "koopman_span": "Koopman, first layer kept (chosen observables)",
    "magnitude": "magnitude pruning",
    "whitened_svd": "activation-whitened SVD",
}
#: Methods of the contest, in the order of the table; others follow under their own names.
CONTEST = {
    "koopman": "Koopman",
    "koopman_chain": "Koopman, a chain of two",
    "koopman_sparse": "Koopman, sparse projection",
    "koopman_trained": "Koopman, projection trained through the solve",
    "fisher": "gradual pruning by Fisher information",
    "magnitude": "magnitude pruning",
    "wanda": "Wanda pruning",
    "obs": "OBS pruning",
    "svd": "SVD",
    "whitened_svd": "activation-whitened SVD",
    "tensor_train": "tensor trains of the weights",
    "kmeans": "k-means codebooks",
    "int8": "int8",
    "int4": "int4",
    "deep_compression": "deep compression (pruned, codebook, coded)",
    "small_network": "a smaller network, distilled",
    "small_network_pruned": "a smaller network, distilled and pruned",
}
TRACKS = {
    "one-shot": "one-shot, closed form: no labels, no training",
    "label-free": "label-free: distilled without labels",
    "fine-tuned": "fine-tuned, float32 values",
    "any-bits": "fine-tuned, any bits",
}


def load(kind):
    """The results of one kind by data set, those that are there."""
    found = {}
    for name in NAMES:
        path = RESULTS / f"{kind}_{name}.json"
        if path.exists():
            found[name] = json.loads(path.read_text(encoding="utf-8"))
    return found


def nonlinearity_table(results):
    """What stands in the middle layers' place, and what accuracy is left."""
    seeds = {r["summary"]["seeds"] for r in results.values()}
    head = ["in the place of the middle layers", *(NAMES[name] for name in results)]
    lines = [head, ["---", *(["---:"] * len(results))]]

    def cell(row, count):
        spread = f" ± {100 * row['accuracy_std']:.2f}" if count > 1 else ""
        return f"{100 * row['accuracy']:.2f}{spread}"

    lines.append(
        [
            "(the original)",
            *(cell(r["summary"]["original"], r["summary"]["seeds"]) for r in results.values()),
        ]
    )
    for dictionary, rank, truncation in ROWS:
        cells = []
        for result in results.values():
            match = [
                row
                for row in result["summary"]["replaced"]
                if (row["dictionary"], row["rank"], row["truncation"])
                == (dictionary, rank, truncation)
            ]
            cells.append(cell(match[0], result["summary"]["seeds"]) if match else "–")
        how = {"none": "", "svd": " by plain SVD", "output": " in the output's metric"}[truncation]
        null = " (null)" if dictionary in ("identity", "mean") else ""
        lines.append([f"{dictionary}{null}" + (f", rank {rank}{how}" if rank else ""), *cells])
    note = (
        f"Test accuracy in %, mean ± standard deviation over {'/'.join(map(str, sorted(seeds)))} "
        "seeds; every K is fitted without labels, its ridge chosen on validation images "
        "(`benchmarks/nonlinearity.py`)."
    )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{note}"


def compression_table(results):
    """One-shot methods at equal bytes of the stored file; nothing where the contest has them."""
    contests = load("pareto")
    held = [n for n, r in contests.items() if any(w["track"] == "one-shot" for w in r["summary"])]
    results = {name: result for name, result in results.items() if name not in held}
    if not results:
        return ""
    budgets = sorted(
        {row["budget"] for r in results.values() for row in r["summary"]},
        key=lambda b: float(b.rstrip("x")),
    )
    budgets = [b for b in ("5x", "10x", "20x", "30x", "50x") if b in budgets]
    parts = []
    for name, result in results.items():
        by_key = {(row["method"], row["budget"]): row for row in result["summary"]}
        accuracies = [o["accuracy"] for o in result["originals"].values()]
        whole = 100 * sum(accuracies) / len(accuracies)
        lines = [
            [f"{NAMES[name]} ({whole:.2f}, {len(accuracies)} seed(s))", *budgets],
            ["---", *(["---:"] * len(budgets))],
        ]
        for method, title in METHODS.items():
            if not any((method, b) in by_key for b in budgets):
                continue
            lines.append([title, *(_percent(by_key.get((method, b))) for b in budgets)])
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    note = (
        "Test accuracy in % of the whole network stored in at most that part of the original's "
        "bytes, one-shot: no labels, no fine-tuning (`benchmarks/compression_table.py`)."
    )
    return "\n\n".join([*parts, note])


def pareto_table(results):
    """The contest: a table for each track and data set, the best at each budget in bold."""
    parts = []
    present = [t for t in TRACKS if any(_rows(r, t) for r in results.values())]
    for track in present:
        ratios = {
            row["budget"]: row["ratio"] for r in results.values() for row in _rows(r, track)
            if row["ratio"] is not None
        }  # fmt: skip
        budgets = sorted(ratios, key=ratios.__getitem__)
        parts.append(f"**{TRACKS[track][0].upper()}{TRACKS[track][1:]}**")
        for name, result in results.items():
            lines = _contest(NAMES[name], result, track, budgets)
            if lines:
                parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    if not parts:
        return "No results yet (`benchmarks/pareto.py` makes them)."
    seeds = sorted({w["seeds"] for r in results.values() for w in r["summary"] if w["seeds"]})
    spread = f"mean ± standard deviation over {max(seeds)} seeds"
    if min(seeds) == 1:
        spread += ", of one network where no deviation is given"
    if max(seeds) == 1:
        spread = "of one network each"
    note = (
        "Test accuracy in % at the same bytes of the whole network's file, the best at each size "
        f"in bold; {spread}; a dash: not "
        "run, or no form so small. Settings are chosen on validation images, the same number of "
        "variants for every method (`benchmarks/pareto.py`)."
    )
    drawn = [NAMES[name] for name in results if name != "digits"] or ["digits"]
    image = (
        f"![Accuracy against how many times smaller the file is, on {' and '.join(drawn)}]"
        "(benchmarks/results/pareto.png)"
    )
    return "\n\n".join([image, *parts, note])


def _rows(result, track):
    return [row for row in result["summary"] if row["track"] == track]


def _contest(title, result, track, budgets):
    """Lines of one data set's table in a track."""
    by_key = {(row["method"], row["budget"]): row for row in _rows(result, track)}
    names = {method for method, _ in by_key}
    if not names:
        return []
    best = {
        budget: max((_points(by_key.get((name, budget))) or 0.0) for name in names)
        for budget in budgets
    }
    whole = [100 * one["accuracy"] for one in result["originals"].values()]
    spread = f" ± {statistics.stdev(whole):.1f}" if len(whole) > 1 else ""
    lines = [
        [f"{title} (original {statistics.mean(whole):.1f}{spread})", *budgets],
        ["---", *(["---:"] * len(budgets))],
    ]
    for method in [m for m in CONTEST if m in names] + sorted(names - CONTEST.keys()):
        cells = []
        for budget in budgets:
            row = by_key.get((method, budget))
            first = _points(row) is not None and _points(row) == best[budget]
            cells.append(f"**{_percent(row)}**" if first else _percent(row))
        lines.append([CONTEST.get(method, method), *cells])
    return lines


def _points(row):
    """Accuracy as it is printed, so that a tie is seen as one."""
    known = row is not None and row["accuracy"] is not None
    return round(100 * row["accuracy"], 1) if known else None


def show_pareto(results):
    """The contest's figure: MNIST and Fashion-MNIST side by side, digits where they are alone."""
    chosen = [r for name, r in results.items() if name != "digits"] or list(results.values())
    names = {method: CONTEST[method].split(" (")[0] for method in CONTEST}
    return pareto(chosen, names=names)


ORDERS = ("single coordinates", "pairs", "triples")


def tensor_train_table(results):
    """Tensor trains in the middle layers' place, and what interactions they hold."""
    summaries = {name: r["summary"] for name, r in results.items()}
    seeds = max((s["seeds"] for s in summaries.values()), default=0)

    def accuracy(values):
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        return f"{100 * statistics.mean(values):.2f} ± {100 * spread:.2f}"

    def point(summary, kind):
        row = summary[kind]
        return (
            f"{accuracy(row['accuracies'])}: degree {row['degree']}, rank {row['rank']}, "
            f"{row['latent']} coordinates, {row['most_numbers']:,} numbers"
        )

    lines = [
        ["in the place of the middle layers", *(NAMES[name] for name in summaries)],
        ["---"] * (len(summaries) + 1),
        ["(the original)", *(accuracy(s["original"]["accuracies"]) for s in summaries.values())],
        [
            "points lost by the full quadratic K, 515,100 numbers",
            *(f"{s['quadratic_loss']['mean']:.2f}" for s in summaries.values()),
        ],
        [
            "tensor train, at most a tenth of them",
            *(point(s, "chosen") for s in summaries.values()),
        ],
        [
            "least degree and rank within half a point on validation images",
            *(point(s, "least") for s in summaries.values()),
        ],
    ]
    for order, what in enumerate(ORDERS):
        cells = []
        for summary in summaries.values():
            spectrum = summary["chosen"]["spectrum"]
            mean, spread = spectrum["orders"][order], spectrum["orders_std"][order]
            cells.append(f"{100 * mean:.1f} ± {100 * spread:.1f} %")
        lines.append([f"share of the output's variance from {what}", *cells])
    note = (
        f"Test accuracy in %, mean ± standard deviation over {seeds} seeds; degree, rank and "
        "coordinates chosen on validation images (`benchmarks/tensor_trains.py`)."
    )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{note}"


def _percent(row):
    if row is None or row["accuracy"] is None:
        return "–"
    spread = "" if row["std"] is None else f" ± {100 * row['std']:.1f}"
    return f"{100 * row['accuracy']:.1f}{spread}"


def picture(results):
    """Test error against the rank of K, one panel a data set."""
    names = [name for name in ("mnist", "fashion_mnist") if name in results]
    figure = Figure(figsize=(8.6, 3.3), dpi=150, layout="constrained")
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    styles = {"output": ("-", "o", "output's metric"), "svd": ("--", "s", "plain SVD")}
    for axes, name in zip(panels, names, strict=True):
        summary = results[name]["summary"]
        whole = 100 * (1 - summary["original"]["accuracy"])
        axes.axhline(whole, color=COLOURS["original"], lw=1.2)
        axes.annotate("original", (1, whole), xytext=(0, -3), textcoords="offset points", va="top")
        for dictionary in ("degree 2", "affine"):
            for kind, (line, marker, title) in styles.items():
                rows = [
                    row
                    for row in summary["replaced"]
                    if (row["dictionary"], row["truncation"]) == (dictionary, kind)
                    and row["rank"] is not None
                    and row["rank"] <= 16
                ]
                rows.sort(key=lambda row: row["rank"])
                axes.errorbar(
                    [row["rank"] for row in rows],
                    [100 * (1 - row["accuracy"]) for row in rows],
                    yerr=[100 * row["accuracy_std"] for row in rows],
                    ls=line,
                    marker=marker,
                    ms=4,
                    lw=1.6,
                    mfc="white" if kind == "svd" else None,
                    color=COLOURS[dictionary],
                    label=f"{dictionary}, {title}",
                )
        axes.set_title(f"{NAMES[name]}: K in the place of the middle layers", loc="left", size=10)
        axes.set_xscale("log", base=2)
        axes.set_xticks([1, 2, 4, 8, 16], ["1", "2", "4", "8", "16"])
        axes.set_xlabel("rank of the Koopman matrix K")
        axes.set_yscale("log")
        ticks = [t for t in (1, 2, 3, 5, 10, 20, 50, 100) if t >= 0.6 * whole]
        axes.set_yticks(ticks, [f"{t} %" for t in ticks])
        axes.minorticks_off()
        axes.set_ylim(0.75 * whole, 100)
        axes.grid(True, axis="y", color="#d9dee4", lw=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("test error")
    panels[-1].legend(loc="upper right", frameon=False, fontsize=8)
    return figure


def show_plane(results):
    """Accuracy over degree and rank in seed 0's network of the first data set."""
    name = next(iter(results))
    steps = results[name]["steps"]
    rows = [
        row for part in steps if part.startswith("seed 0 latent") for row in steps[part]["rows"]
    ]
    figure = plane({"rows": rows, "original": steps["seed 0"]["original"], "tolerance": 0.005})
    figure.axes[0].set_title(f"{NAMES[name]}, {rows[0]['latent']} coordinates", loc="left")
    return figure


def render(text):
    """The README with its tables made anew."""
    tables = {
        "nonlinearity": (nonlinearity_table, load("nonlinearity")),
        "compression": (compression_table, load("compression")),
        "pareto": (pareto_table, load("pareto")),
        "tensor trains": (tensor_train_table, load("tensor_trains")),
    }
    for mark, (make, results) in tables.items():
        pattern = rf"(<!-- {mark} -->\n).*?(<!-- end -->)"
        if not re.search(pattern, text, re.S):
            raise SystemExit(f"README.md has no block <!-- {mark} --> ... <!-- end -->")
        table = make(results)
        text = re.sub(pattern, lambda m, t=table: f"{m[1]}\n{t}\n\n{m[2]}", text, flags=re.S)
    return text


def main():
    """Rewrite, or check."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    old = README.read_text(encoding="utf-8")
    new = render(old)
    if args.check:
        if new != old:
            sys.exit("README.md is not what the results say; run python benchmarks/readme.py")
        return
    README.write_text(new, encoding="utf-8")
    picture(load("nonlinearity")).savefig(RESULTS / "nonlinearity.png")
    contests = load("pareto")
    if contests:
        show_pareto(contests).savefig(RESULTS / "pareto.png", dpi=150)
    planes = load("tensor_trains")
    if planes:
        show_plane(planes).savefig(RESULTS / "plane.png", dpi=150)


if __name__ == "__main__":
    main()
