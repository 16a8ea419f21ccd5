"""Writes the README's tables and pictures, and all of the contest, from `benchmarks/results`.

python benchmarks/readme.py          rewrite them
python benchmarks/readme.py --check  say whether they are up to date, and exit 1 if not
"""

import argparse
import json
import pathlib
import re
import statistics
import sys

from _contest_tables import NAMES, full, measured, pareto_table, show_pareto
from matplotlib.figure import Figure

from koopjax.plot import COLOURS, plane

HERE = pathlib.Path(__file__).resolve().parent
README = HERE.parent / "README.md"
RESULTS = HERE / "results"
#: All tables of the contest.
TABLES = RESULTS / "contest.md"
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
        "pareto": (pareto_table, load("pareto")),
        "measured": (measured, RESULTS),
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
    contests = load("pareto")
    tables = full(contests)
    if args.check:
        if new != old or TABLES.read_text(encoding="utf-8") != tables:
            sys.exit("README.md is not what the results say; run python benchmarks/readme.py")
        return
    README.write_text(new, encoding="utf-8")
    TABLES.write_text(tables, encoding="utf-8")
    picture(load("nonlinearity")).savefig(RESULTS / "nonlinearity.png")
    if contests:
        show_pareto(contests).savefig(RESULTS / "pareto.png", dpi=150)
    planes = load("tensor_trains")
    if planes:
        show_plane(planes).savefig(RESULTS / "plane.png", dpi=150)


if __name__ == "__main__":
    main()
