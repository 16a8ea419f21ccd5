"""From ladders and compressed models to the dictionary that is written as results.json."""

from __future__ import annotations

import json
import sys
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from koopjax.cli import _networks as networks
from koopjax.cli._app import UserError

Results = dict[str, Any]


def begin(dataset: Any, seeds: Sequence[int], how: Any | None, network: Any, full: Any) -> Results:
    """What every results file starts with; `full` is the dataset with its images."""
    from koopjax import models, report

    name = models.name_of(network.model)
    model = {
        "name": name or type(network.model).__name__,
        "path": network.path.name,
        "crc32": zlib.crc32(network.path.read_bytes()),
    }
    return {
        "dataset": dataset.name,
        "seed": seeds[0],
        "seeds": list(seeds),
        "command": " ".join(["koopjax", *sys.argv[1:]]),
        "data": {
            "train": len(dataset.y_train),
            "validation": len(dataset.y_val),
            "test": len(dataset.y_test),
            "shape": list(full.shape),
        },
        "model": model | ({"config": network.model.config} if name else {}),
        "original": {},
        "replaced": [],
        "compressed": [],
        "settings": networks.training_settings(how) if how else {},
        "versions": report.versions(),
        "timing": {},
    }


def climb(
    nets: Sequence[Any],
    data: Any,
    *,
    progress: Callable[[int, int, str], None],
    **settings: Any,
) -> tuple[list[Any], Any]:
    """A ladder for each network, and their summary.

    The ridges are chosen for the first network and kept for the others, and the bytes, which hardly
    differ between seeds, are measured for the first.
    """
    import jax

    from koopjax import analysis

    ladders: list[Any] = []
    for i, network in enumerate(nets):

        def told(done: int, total: int, what: str, i: int = i) -> None:
            progress(i * total + done, len(nets) * total, what)

        ladders.append(
            analysis.ladder(
                network.model, data.x_train, data.x_val, data.y_val, data.x_test, data.y_test,
                key=jax.random.key(network.seed), stored=i == 0,
                choices=ladders[0].choices if ladders else None,
                progress=told, **settings,
            )
        )  # fmt: skip
    return ladders, analysis.summarize(ladders)


def add_ladders(results: Results, ladders: Sequence[Any], summary: Any, full: Any) -> None:
    """Put a summary into the results: rows, sentence, finding, and pictures of the first seed."""
    found = summary.to_dict()
    first = {rung.key: rung for rung in ladders[0].rungs}
    for row in found["replaced"]:
        row["stored_bytes"] = first[row["dictionary"], row["rank"], row["truncation"]].stored_bytes
    original = found["original"] | {"stored_bytes": ladders[0].original["stored_bytes"]}
    results["original"] = original
    results["replaced"] = found["replaced"]
    results["span"] = found["span"]
    results["tolerance"] = summary.tolerance
    one = len(ladders) == 1
    results["sentence"] = ladders[0].sentence() if one else summary.sentence()
    least = summary.least()
    if least is not None:
        keys = ("dictionary", "rank", "truncation", "target")
        results["finding"] = {key: least[key] for key in keys}
    results["singular_values"] = {
        name: np.asarray(values, np.float64).tolist()
        for name, values in ladders[0].singular_values.items()
        if not name.endswith("to the logits")
    }
    add_pictures(results, ladders[0], compared(summary), full)


def compared(summary: Any) -> str:
    """The dictionary that the confusion and the disagreements are shown for: the finding's, or the
    most accurate one if the finding is a null or missing."""
    least = summary.least()
    if least is not None and not least["null"]:
        return least["dictionary"]
    rows = [row for row in summary.rows if row["rank"] is None and row["target"] == "state"]
    return max(rows, key=lambda row: row["accuracy"])["dictionary"]


def add_pictures(results: Results, ladder: Any, name: str, full: Any, limit: int = 12) -> None:
    """Confusion matrices, and test images on which the answers differ."""
    from koopjax import analysis

    names = list(full.class_names) or [str(c) for c in range(full.classes)]
    answers = ladder.answers
    counts = lambda key: analysis.confusion(ladder.labels, answers[key], full.classes).tolist()
    results["confusion"] = {
        "classes": names,
        "original": counts("original"),
        "replaced": counts(name),
        "replaced_name": name,
    }
    differ = ladder.disagreements(name)
    results["disagreements"] = {
        "dictionary": name,
        "count": len(differ),
        "of": len(ladder.labels),
        "examples": [
            {
                # Eight bits are enough for a picture, and short in the file.
                "pixels": np.round(255 * full.x_test[i]).astype(int).tolist(),
                "label": names[int(ladder.labels[i])],
                "original": names[int(answers["original"][i])],
                "replaced": names[int(answers[name][i])],
            }
            for i in differ[:limit]
        ],
    }


def add_plane(
    results: Results,
    nets: Sequence[Any],
    data: Any,
    *,
    ladders: Sequence[Any] | None,
    progress: Callable[[int, int, str], None],
    ledger: Path | None,
    **settings: Any,
) -> list[Any]:
    """A plane for each network, and what their tensor trains are made of, put into the results.

    The ridges are chosen for the first network and kept for the others. The spectrum is that of the
    least point within the tolerance, of the last one where none is.
    """
    import jax

    from koopjax import analysis

    planes: list[Any] = []
    for i, network in enumerate(nets):

        def told(done: int, total: int, what: str, i: int = i) -> None:
            progress(i * total + done, len(nets) * total, what)

        planes.append(
            analysis.plane(
                network.model, data.x_train, data.x_val, data.x_test, data.y_test,
                key=jax.random.key(network.seed), stored=i == 0, progress=told,
                choices=planes[0].choices if planes else None,
                reference=ladders[i] if ladders else "all",
                ledger=None if ledger is None else ledger / f"seed-{network.seed}", **settings,
            )
        )  # fmt: skip
    found = analysis.summarize_planes(planes)
    results["plane"] = found
    least = found["least"] or {k: found["rows"][-1][k] for k in ("degree", "rank")}
    place = least["degree"], least["rank"]
    spectra = [one.spectrum(*place) for one in planes]
    results["interactions"] = {**analysis.summarize_spectra(spectra), **least}
    bonds = planes[0].bond_singular_values(*place)
    results["bonds"] = {**least, "values": [values.tolist() for values in bonds]}
    if not results["original"]:
        results["original"] = found["original"]
        results["span"] = found["span"]
        results["sentence"] = found["sentence"]
    return planes


def parameters(network: Any, data: Any) -> int:
    """How many numbers a network has."""
    from koopjax import surgery

    return surgery.cut_points(network.model, data.x_test[:1])[-1].parameters


def add_compressed(
    results: Results,
    network: Any,
    data: Any,
    out: Path,
    *,
    budgets: Sequence[str],
    methods: Sequence[str],
    at: Any,
    progress: Callable[[int, int, Mapping[str, Any]], None],
) -> None:
    """Compress the network, save each result, load it again, and measure what was loaded."""
    from koopjax import compress, models

    pairs = [(compress.Budget.parse(b), compress.METHODS[m], m) for b in budgets for m in methods]
    whole = models.accuracy(network.model, data.x_test, data.y_test)
    # Seeds differ by more than a good compression loses: each is held against its own original.
    whose = {"original_accuracy": whole, "seed": network.seed}
    rows: list[dict[str, Any]] = []
    for budget, method, name in pairs:
        row = {"method": name, "budget": str(budget)}
        rows.append({**row, **_compressed(network, data, out, budget, method, at), **whose})
        progress(len(rows), len(pairs), rows[-1])
    done = [row for row in rows if row["accuracy"] is not None]
    if not done:
        known = [row for row in rows if row["smallest"] is not None]
        least = min(known, key=lambda row: row["smallest"], default=None)
        said = f"{least['method']} needs {least['smallest']} bytes" if least else rows[0]["note"]
        raise UserError(f"--budget: expected a size that a method has a form of, got none: {said}")
    if not results["original"]:
        results["original"] = {
            "accuracy": whole,
            "stored_bytes": network.stored_bytes,
            "parameters": parameters(network, data),
        }
    results["compressed"] += rows
    koopman = [row for row in done if row["method"].startswith("koopman")]
    results["best"] = max(koopman or done, key=lambda row: row["accuracy"])


def _compressed(
    network: Any, data: Any, out: Path, budget: Any, method: Any, at: Any
) -> dict[str, Any]:
    """What a method makes of a network: the figures of its file, or why there is none."""
    import jax

    from koopjax import compress, export, models

    found: dict[str, Any] = dict.fromkeys(("ratio", "stored_bytes", "accuracy"))
    (x, _), key = data.train_and_val(), jax.random.key(network.seed)
    like = models.output_like(network.model, data.x_test)
    task, _ = models.read_task(like, data.y_test)
    began = time.perf_counter()
    try:
        made = method(network.model, x, budget, at=at, key=key, task=task)
        seconds = time.perf_counter() - began
    except (compress.BudgetTooSmall, compress.Inapplicable) as error:
        told = {"note": str(error), "smallest": getattr(error, "smallest", None)}
        told |= {"settings": None, "why": None}
        seconds = time.perf_counter() - began
    else:
        size = str(budget).replace(" ", "")
        path = out / f"{network.path.stem}-{made.report.method}-{size}.koopjax"
        stored = export.save(made.model, path)
        # An architecture that has no name of its own loads into the model it was saved from.
        again = export.load(path, model=made.model)
        accuracy = models.accuracy(again, data.x_test, data.y_test)
        found = {"ratio": network.stored_bytes / stored, "stored_bytes": stored}
        found["accuracy"] = accuracy
        account = made.report.as_dict()
        told = {"note": "", "smallest": None, "path": path.name}
        told |= {name: account[name] for name in ("settings", "why")}
    return {**found, "seconds": seconds, "finetuned": False, **told}


# What belongs to the networks that the span was replaced in, and goes with those rows.
_WITH_LADDER = (
    "seeds", "original", "replaced", "span", "tolerance", "sentence", "finding",
    "singular_values", "confusion", "disagreements",
)  # fmt: skip

_WITH_COMPRESSED = ("best", "pareto")


def merged(new: Results, old: Mapping[str, Any]) -> Results:
    """The results of a command together with what other commands left in the same folder.

    Kept where data set, first seed and the first network's file are the same; what the new command
    made replaces what an earlier run of it made.
    """
    whose = lambda results: json.dumps([results.get(k) for k in ("dataset", "seed", "model")])
    if whose(new) != whose(old):
        return new
    made = {key: value for key, value in new.items() if value not in ({}, [])}
    stale = {
        *(_WITH_LADDER if new["replaced"] else ()),
        *(_WITH_COMPRESSED if new["compressed"] else ()),
    }
    both = {**{key: value for key, value in old.items() if key not in stale}, **made}
    if not new["replaced"]:
        # Other commands look at one network where the ladder has several.
        both |= {key: old[key] for key in _WITH_LADDER if old.get("replaced") and key in old}
    both["timing"] = {**(old.get("timing") or {}), **new["timing"]}
    both["settings"] = {**(old.get("settings") or {}), **new["settings"]}
    both["command"] = " && ".join(_commands(old, new))
    return {**{key: both.get(key) for key in new}, **both}


def _commands(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Command lines that the results come from, the latest of each command."""
    verb = lambda line: line.split()[1:2]
    lines = [line for line in str(old.get("command") or "").split(" && ") if line]
    return [*(line for line in lines if verb(line) != verb(new["command"])), new["command"]]


def earlier(out: Path) -> dict[str, Any]:
    """What lies in the folder already; nothing where that is no file of results."""
    from koopjax import report

    try:
        return report.load(out)
    except (OSError, ValueError):
        return {}


def write(results: Results, out: Path, *, alone: bool = False) -> tuple[Path, Path]:
    """results.json and report.html, with pictures.

    Args:
        results: of one command; what it kept of earlier ones is put in.
        out: folder.
        alone: replace what other commands wrote there.
    """
    from koopjax import plot, report

    if not alone:
        results.update(merged(results, earlier(out)))
    return report.save(results, out, plot.figures(results))
