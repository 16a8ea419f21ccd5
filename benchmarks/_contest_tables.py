"""The contest's tables, and those of the other measurements of compression, in Markdown."""

import json
import statistics

from koopjax.plot import pareto

NAMES = {"digits": "digits (8×8)", "mnist": "MNIST", "fashion_mnist": "Fashion-MNIST"}
#: Methods of the contest, in the order of the table; others follow under their own names.
CONTEST = {
    "koopman": "Koopman",
    "koopman_chain": "Koopman, a chain of two",
    "koopman_sparse": "Koopman, sparse projection",
    "koopman_trained": "Koopman, projection trained through the solve (label-free)",
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
    "small_network_axes": "the same behind the Koopman methods' projection",
}
TRACKS = {
    "one-shot": "one-shot: no labels, the network itself not trained",
    "label-free": "label-free: distilled without labels",
    "fine-tuned": "fine-tuned, float32 values",
    "any-bits": "fine-tuned, any bits",
}
#: What the README shows of it.
SHOWN = {
    "one-shot": ("10x", "20x", "30x"),
    "fine-tuned": ("10x", "30x", "100x"),
    "any-bits": ("50x", "150x"),
}
PICTURED = ("mnist", "fashion_mnist")
NOTE = (
    "Test accuracy in % at the same bytes of the whole network's file, the best at each size in "
    "bold; {spread}; a dash: not run, or no form so small. Settings are chosen on validation "
    "images, of four variants for every method, in any bits of three for those whose values are "
    "put on grids as they train (`benchmarks/pareto.py`). Trained, "
    "magnitude pruning goes by plain or by layer-adaptive (LAMP) scores, as validation has it. "
    "K-means and deep compression were made again once their codebooks became the least-squares "
    "optimum, which they gain little by: the contest's last table has both."
)


def pareto_table(results):
    """The contest in short: picture, and a table for each track and data set at a few sizes."""
    shown = {name: r for name, r in results.items() if name in PICTURED} or results
    parts = _tables(shown, SHOWN)
    if not parts:
        return "No results yet (`benchmarks/pareto.py` makes them)."
    names = " and ".join(NAMES[name] for name in shown)
    image = (
        f"![Accuracy against how many times smaller the file is, on {names}]"
        "(benchmarks/results/pareto.png)"
    )
    more = (
        "All sizes, label-free training and the digits: [contest](benchmarks/results/contest.md)."
    )
    return "\n\n".join([image, *parts, f"{_note(shown)} {more}"])


def full(results):
    """All tables of the contest."""
    budgets = {
        track: _in_order([row for r in results.values() for row in _rows(r, track)])
        for track in TRACKS
    }
    head = "# The contest at equal stored bytes\n\nWritten by `python benchmarks/readme.py`."
    return "\n\n".join([head, *_tables(results, budgets), _note(results), *anew(results)]) + "\n"


ANEW = (
    "**Made anew.** Codebooks are now the optimum of one-dimensional k-means, by dynamic "
    "programming, and the ridge of deep compression is in units of each input; before, codebooks "
    "came by Lloyd's steps from quantiles, with up to 5.4 times the least squared error. The old "
    "code and the new on the same networks, where the originals' accuracies are the same; where "
    "they differ, the old code stopped with an error on these networks, and its rows are of "
    "another machine's. The rows above are the new ones."
)


def anew(results):
    """Points that were made again because their method has changed, with those before."""
    head = ["made anew, networks", "", "budget", "before", "(original)", "now", "(original)"]
    lines = [head, ["---"] * 3 + ["---:"] * 4]
    for name, result in results.items():
        now = {(p["track"], p["method"], p["budget"], p["seed"]): p for p in result["points"]}
        groups = {}
        for point in result.get("before", []):
            key = point["track"], point["method"], point["budget"]
            if (*key, point["seed"]) in now:
                groups.setdefault(key, []).append((point, now[*key, point["seed"]]))
        for (track, method, budget), pairs in sorted(
            groups.items(), key=lambda one: (*one[0][:2], float(one[0][2].rstrip("x")))
        ):
            # Those before may be of other networks, where the old code has none of these.
            cells = [
                _mean([pair[k][what] for pair in pairs])
                for k in (0, 1)
                for what in ("accuracy", "original_accuracy")
            ]
            head = f"{NAMES[name]} ({len(pairs)}), {track}"
            lines.append([head, CONTEST.get(method, method), budget, *cells])
    return [ANEW, _markdown(lines)] if len(lines) > 2 else []


def _mean(accuracies):
    known = [100 * a for a in accuracies if a is not None]
    if not known:
        return "–"
    spread = f" ± {statistics.stdev(known):.1f}" if len(known) > 1 else ""
    return f"{statistics.mean(known):.1f}{spread}"


def show_pareto(results):
    """The contest's figure: MNIST and Fashion-MNIST side by side, digits where they are alone."""
    chosen = [r for name, r in results.items() if name in PICTURED] or list(results.values())
    present = {row["track"] for r in chosen for row in r["summary"]}
    names = {method: title.split(" (")[0] for method, title in CONTEST.items()}
    return pareto(chosen, names=names, tracks=[t for t in SHOWN if t in present])


def measured(folder):
    """What was measured beside the contest, as far as it has run."""
    parts = [
        _span(_read(folder, "koopman_matrix_{}", PICTURED)),
        _residual(_read(folder, "residual_mlp_{}", ("mnist",))),
        _architectures(_read(folder, "architecture_{}_fashion_mnist", ("cnn", "vit"))),
        _latency(_read(folder, "{}", ("compressed_latency",))),
    ]
    return "\n\n".join(part for part in parts if part)


def _read(folder, pattern, names):
    paths = {name: folder / f"{pattern.format(name)}.json" for name in names}
    return {n: json.loads(p.read_text(encoding="utf-8")) for n, p in paths.items() if p.exists()}


def _span(results):
    """Points lost where the span alone is compressed."""
    if not results:
        return ""
    budgets = next(iter(results.values()))["budgets"]
    lines = [["points lost", *(f"{b}x" for b in budgets)], ["---", *["---:"] * len(budgets)]]
    titles = {"entries": "entries of K chosen", "backward": "whole observables chosen"}
    for name, result in results.items():
        by_key = {(row["form"], row["budget"]): row for row in result["summary"]}
        for form, title in titles.items():
            rows = [by_key.get((form, b)) for b in budgets]
            lines.append([f"{NAMES[name]}, {title}", *map(_lost, rows)])
    counts = " and ".join(f"{len(r['seeds'])} ({NAMES[name]})" for name, r in results.items())
    if len({len(r["seeds"]) for r in results.values()}) == 1:
        counts = str(len(next(iter(results.values()))["seeds"]))
    note = (
        "The span alone, from the first hidden layer's activations to the logits, at so many times "
        "fewer bytes than its layers take: a quadratic K by least squares, nothing trained; points "
        f"of test accuracy lost, mean ± standard deviation over {counts} networks "
        "(`benchmarks/koopman_matrix.py`)."
    )
    curves = any("curves" in seed for result in results.values() for seed in result["seeds"])
    picture = (
        "![Accuracy against the share of K's entries that are kept, by OBS, Wanda and magnitude]"
        "(benchmarks/results/koopman_matrix.png)"
    )
    return "\n\n".join([note, _markdown(lines), *([picture] if curves else [])])


def _residual(results):
    """The residual network, in words."""
    if not results:
        return ""
    (result,) = results.values()
    by_form = {row["form"]: row for row in result["summary"]}
    whole = [100 * seed["accuracy"] for seed in result["seeds"]]
    closed, distilled = by_form["closed form"], by_form["distilled"]
    return (
        f"Four residual layers of width {result['width']} on MNIST "
        f"({statistics.mean(whole):.2f} %, {len(whole)} networks), replaced by one quadratic "
        f"Koopman block in 1/{1 / distilled['share_of_replaced']:.0f} of their bytes: "
        f"{_lost(closed)} points lost in closed form, {_lost(distilled)} after distillation "
        "(`benchmarks/residual_mlp.py`)."
    )


def _architectures(results):
    """Whole convolutional networks and vision transformers."""
    if not results:
        return ""
    titles = {"cnn": "CNN", "vit": "ViT"}
    columns = [(name, budget) for name, r in results.items() for budget in _in_order(r["summary"])]
    whole = {
        name: 100
        * statistics.mean({p["seed"]: p["original_accuracy"] for p in r["points"]}.values())
        for name, r in results.items()
    }
    head = [f"{titles[name]} ({whole[name]:.1f}), {budget}" for name, budget in columns]
    lines = [["whole model on Fashion-MNIST", *head], ["---", *["---:"] * len(columns)]]
    rows = {
        (name, row["method"], row["budget"]): row
        for name, r in results.items()
        for row in r["summary"]
    }
    methods = {method for _, method, _ in rows}
    for method in [m for m in CONTEST if m in methods]:
        cells = [rows.get((name, method, budget)) for name, budget in columns]
        best = [
            max(_points(rows.get((name, m, budget))) or 0.0 for m in methods)
            for name, budget in columns
        ]
        lines.append([CONTEST[method], *(_cell(c, b) for c, b in zip(cells, best, strict=True))])
    images = next(iter(results.values()))["images"]
    kinds = {"cnn": "convolutional networks", "vit": "small vision transformers"}
    counts = sorted({row["seeds"] for row in rows.values()})
    note = (
        f"{' and '.join(kinds[name] for name in results).capitalize()}, trained in minutes on "
        f"{images:,} images, fine-tuned, {'/'.join(map(str, counts))} networks of each "
        "(`benchmarks/architectures.py`; `--full` trains on all images)."
    )
    return f"{note}\n\n{_markdown(lines)}"


def _latency(results):
    """Latency of stored forms over that of the original."""
    if not results:
        return ""
    (result,) = results.values()
    keys = ("stored_1", "decoded_1", "stored_256", "decoded_256")
    lines = [
        ["form", "smaller", "batch 1", "decoded", "batch 256", "decoded"],
        ["---", *["---:"] * 5],
    ]
    for name, row in result["networks"].items():
        if name != "original":
            times = [f"{row[key]['over_original']:.2f}" for key in keys]
            lines.append([name.replace("_", " "), f"{row['ratio']:.1f}x", *times])
    note = (
        "Time of a call over the original's, in one run, as stored and after `nn.decoded`, which "
        "puts stored entries, codes and cores together once (`benchmarks/compressed_latency.py`)."
    )
    return f"{note}\n\n{_markdown(lines)}"


def _tables(results, budgets):
    """A heading for each track and a table for each data set."""
    parts = []
    for track, sizes in budgets.items():
        tables = [_contest(NAMES[name], r, track, sizes) for name, r in results.items()]
        tables = [_markdown(lines) for lines in tables if lines]
        if tables:
            parts += [f"**{TRACKS[track][0].upper()}{TRACKS[track][1:]}**", *tables]
    return parts


def _contest(title, result, track, budgets):
    """Lines of one data set's table in a track."""
    by_key = {
        (row["method"], row["budget"]): row for row in _rows(result, track)
        if row["budget"] in budgets
    }  # fmt: skip
    names = {method for method, _ in by_key}
    if not names:
        return []
    best = {b: max((_points(by_key.get((name, b))) or 0.0) for name in names) for b in budgets}
    ours = (p for p in result["points"] if p["track"] == track)
    networks = {p["seed"]: p["original_accuracy"] for p in ours}
    whole = [100 * accuracy for accuracy in networks.values()]
    spread = f" ± {statistics.stdev(whole):.1f}" if len(whole) > 1 else ""
    lines = [
        [f"{title} (original {statistics.mean(whole):.1f}{spread})", *budgets],
        ["---", *["---:"] * len(budgets)],
    ]
    for method in [m for m in CONTEST if m in names] + sorted(names - CONTEST.keys()):
        cells = [_cell(by_key.get((method, b)), best[b]) for b in budgets]
        lines.append([CONTEST.get(method, method), *cells])
    return lines


def _note(results):
    seeds = sorted({w["seeds"] for r in results.values() for w in r["summary"] if w["seeds"]})
    several = [str(count) for count in seeds if count > 1]
    spread = f"mean ± standard deviation over {' or '.join(several)} networks"
    if min(seeds) == 1:
        spread += ", of one where no deviation is given"
    return NOTE.format(spread="of one network each" if max(seeds) == 1 else spread)


def _rows(result, track):
    return [row for row in result["summary"] if row["track"] == track]


def _in_order(rows):
    return sorted({row["budget"] for row in rows}, key=lambda b: float(b.rstrip("x")))


def _lost(row):
    if row is None:
        return "–"
    spread = "" if row["std"] is None else f" ± {row['std']:.2f}"
    # No minus sign in front of a zero.
    return f"{round(row['points_lost'], 2) + 0.0:.2f}{spread}"


def _cell(row, best):
    points = _points(row)
    if points is None:
        return "–"
    spread = "" if row["std"] is None else f" ± {100 * row['std']:.1f}"
    return f"**{points:.1f}{spread}**" if points == best else f"{points:.1f}{spread}"


def _points(row):
    """Accuracy as it is printed, so that a tie is seen as one."""
    known = row is not None and row["accuracy"] is not None
    return round(100 * row["accuracy"], 1) if known else None


def _markdown(lines):
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
