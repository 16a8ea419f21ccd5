"""What the commands make of networks, put into the dictionary that is written as results.json."""

from __future__ import annotations

import contextlib
import json
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from koopjax.cli import _console as show, _networks as networks
from koopjax.cli._app import Given, UserError, mistakes

Results = dict[str, Any]


class Work:
    """Networks, their data (`full` with images, `data` as they take it), and what becomes of them.

    `stage` begins a stage of the progress, `how` is the recipe (None for a network that was given);
    `results` are written in the end, `shown` is printed.
    """

    def __init__(self, given: Given, stage: Any, full: Any, data: Any, how: Any, nets: Any) -> None:
        """Begin with what every results file starts with."""
        from koopjax import models, report

        self.given, self.stage, self.shown = given, stage, []
        self.full, self.data, self.how, self.nets = full, data, how, nets
        first, sizes = nets[0], {"train": "y_train", "validation": "y_val", "test": "y_test"}
        name = models.name_of(first.model)
        self.results: Results = {
            "dataset": data.name,
            "seed": first.seed,
            "seeds": [network.seed for network in nets],
            "command": " ".join(["koopjax", *sys.argv[1:]]),
            "data": {
                **{part: len(getattr(data, labels)) for part, labels in sizes.items()},
                "shape": list(full.shape),
            },
            "model": {
                "name": name or type(first.model).__name__,
                "path": first.path.name,
                "crc32": zlib.crc32(first.path.read_bytes()),
                **({"config": first.model.config} if name else {}),
            },
            "original": {},
            "replaced": [],
            "compressed": [],
            "settings": networks.training_settings(how) if how else {},
            "versions": report.versions(),
            "timing": {},
        }

    def span(self, start: str | None, stop: str | None) -> tuple[str, str]:
        """The cuts that were named, the middle layers' where not; checked by splitting there."""
        from koopjax import surgery

        model, x = self.nets[0].model, self.data.x_test[:1]
        with mistakes("--from, --to"):
            if start is None or stop is None:
                middle = surgery.middle(model, x)
                start, stop = start or middle[0], stop or middle[1]
            surgery.split(model, x, (start, stop))
        return start, stop

    def each(self, label: str, total: float, make: Callable[..., Any]) -> list[Any]:
        """What `make(network, key=, stored=, choices=, progress=)` gives for each network.

        The ridges are chosen for the first network and kept for the others, and the bytes, which
        hardly differ between seeds, are measured for the first.
        """
        import jax

        advance, found = self.stage(label, total), []
        for i, network in enumerate(self.nets):

            def told(done: int, count: int, what: str, i: int = i) -> None:
                advance(total * (i + done / count) / len(self.nets), what)

            choices = found[0].choices if found else None
            key = jax.random.key(network.seed)
            found.append(make(network, key=key, stored=i == 0, choices=choices, progress=told))
        return found

    def finish(self, alone: bool = False) -> None:
        """Write results.json, report.html with pictures, and what is printed.

        What other commands wrote there is kept, unless this one stands `alone`.
        """
        from koopjax import plot, report

        given, results = self.given, self.results
        if not alone:
            with contextlib.suppress(OSError, ValueError):
                results.update(merged(results, report.load(given.out)))
        path, page = report.save(results, given.out, plot.figures(results))
        show.emit(given.json_file, results)
        console = show.console(given.json_file)
        for each in self.shown:
            console.print(each)
        written = f"results: {path}\n" if alone else ""
        console.print(f"{written}report: {page}", soft_wrap=True)


@contextlib.contextmanager
def work(given: Given, verb: str, usual: int = 1) -> Iterator[Work]:
    """The networks that the options name, trained if need be; afterwards all is written."""
    begun = time.perf_counter()
    with show.progress() as stage:
        made = Work(given, stage, *networks.obtain(given, given.every_seed(usual), stage))
        trained = time.perf_counter()
        yield made
        ended = time.perf_counter()
    made.results["timing"] = {"train": trained - begun, verb: ended - trained}
    made.finish()


def add_ladders(work: Work, dictionaries: Mapping[str, Any], **settings: Any) -> list[Any]:
    """A ladder for each network; rows, sentence, finding, and pictures of the first seed."""
    from koopjax import analysis

    data, results = work.data, work.results
    sets = data.x_train, data.x_val, data.y_val, data.x_test, data.y_test
    ladders = work.each(
        "replacing the span",
        len(work.nets) * len(dictionaries),
        lambda network, **own: analysis.ladder(
            network.model, *sets, dictionaries=dictionaries, **own, **settings
        ),
    )
    summary, first = analysis.summarize(ladders), ladders[0]
    found = summary.to_dict()
    for row, rung in ((row, first.find(*_key(row))) for row in found["replaced"]):
        row["stored_bytes"] = rung.stored_bytes
    results["original"] = found["original"] | {"stored_bytes": first.original["stored_bytes"]}
    results["replaced"], results["span"] = found["replaced"], found["span"]
    results["tolerance"] = summary.tolerance
    results["sentence"] = (first if len(ladders) == 1 else summary).sentence()
    least = summary.least()
    if least is not None:
        results["finding"] = {**dict(zip(_KEYS, _key(least), strict=True)), "target": "state"}
    results["singular_values"] = {
        name: np.asarray(values, np.float64).tolist()
        for name, values in first.singular_values.items()
        if not name.endswith("to the logits")
    }
    # Compared: the finding's dictionary, or the most accurate one if that is a null or missing.
    if least is None or least["null"]:
        whole = [r for r in summary.rows if r["rank"] is None and r["target"] == "state"]
        least = max(whole, key=lambda row: row["accuracy"])
    _add_pictures(results, first, least["dictionary"], work.full)
    return ladders


_KEYS = ("dictionary", "rank", "truncation")


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[key] for key in _KEYS)


def _add_pictures(results: Results, ladder: Any, name: str, full: Any, limit: int = 12) -> None:
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


#: Where the ledger of a sweep lies, below --out.
LEDGER = "sweep"


def add_plane(work: Work, ladders: Sequence[Any] | None, **settings: Any) -> None:
    """A plane for each network, and what their tensor trains are made of.

    The spectrum is that of the least point within the tolerance, of the last one where none is.
    """
    from koopjax import analysis

    data, results = work.data, work.results
    sets = data.x_train, data.x_val, data.x_test, data.y_test
    seeds = {network.seed: i for i, network in enumerate(work.nets)}

    def plane(network: Any, **own: Any) -> Any:
        return analysis.plane(
            network.model, *sets, reference=ladders[seeds[network.seed]] if ladders else "all",
            ledger=work.given.out / LEDGER / f"seed-{network.seed}", **own, **settings,
        )  # fmt: skip

    with mistakes("--memory-limit", about="memory limit"):
        planes = work.each("sweeping degrees and ranks", 1.0, plane)
    results["plane"] = found = analysis.summarize_planes(planes)
    least = found["least"] or {k: found["rows"][-1][k] for k in ("degree", "rank")}
    place = least["degree"], least["rank"]
    spectra = [one.spectrum(*place) for one in planes]
    results["interactions"] = {**analysis.summarize_spectra(spectra), **least}
    bonds = planes[0].bond_singular_values(*place)
    results["bonds"] = {**least, "values": [values.tolist() for values in bonds]}
    if not results["original"]:
        results.update({key: found[key] for key in ("original", "span", "sentence")})


def add_compressed(
    work: Work, budgets: Sequence[str], methods: Sequence[str], at: Any = None
) -> None:
    """Compress the network, save each result, load it again, and measure what was loaded."""
    from koopjax import compress, models

    network, data, results = work.nets[0], work.data, work.results
    pairs = [(compress.Budget.parse(b), compress.METHODS[m], m) for b in budgets for m in methods]
    advance = work.stage("compressing", len(pairs))
    whole = models.accuracy(network.model, data.x_test, data.y_test)
    rows: list[dict[str, Any]] = []
    for budget, method, name in pairs:
        row = {"method": name, "budget": str(budget)}
        row |= _compressed(network, data, work.given.out, budget, method, at)
        # Seeds differ by more than a good compression loses: each is held against its own original.
        rows.append({**row, "original_accuracy": whole, "seed": network.seed})
        advance(len(rows), f"{name} {budget}")
    done = [row for row in rows if row["accuracy"] is not None]
    if not done:
        known = [row for row in rows if row["smallest"] is not None]
        least = min(known, key=lambda row: row["smallest"], default=None)
        said = f"{least['method']} needs {least['smallest']} bytes" if least else rows[0]["note"]
        raise UserError(f"--budget: expected a size that a method has a form of, got none: {said}")
    results["original"] = results["original"] or network.original(data, whole)
    results["compressed"] += rows
    koopman = [row for row in done if row["method"].startswith("koopman")]
    results["best"] = max(koopman or done, key=lambda row: row["accuracy"])


def _compressed(network, data, out: Path, budget, method, at) -> dict[str, Any]:
    """What a method makes of a network: the figures of its file, or why there is none."""
    import jax

    from koopjax import compress, models

    (x, _), key = data.train_and_val(), jax.random.key(network.seed)
    task, _ = models.read_task(models.output_like(network.model, data.x_test), data.y_test)
    lacking = ("ratio", "stored_bytes", "accuracy", "smallest", "settings", "why")
    row = {**dict.fromkeys(lacking), "note": "", "finetuned": False}
    made, began = None, time.perf_counter()
    try:
        made = method(network.model, x, budget, at=at, key=key, task=task)
    except (compress.BudgetTooSmall, compress.Inapplicable) as error:
        row |= {"note": str(error), "smallest": getattr(error, "smallest", None)}
    row["seconds"] = time.perf_counter() - began
    if made is not None:
        size, account = str(budget).replace(" ", ""), made.report.as_dict()
        path = out / f"{network.path.stem}-{made.report.method}-{size}.koopjax"
        stored, row["accuracy"] = networks.saved(made.model, path, data)
        row |= {"ratio": network.stored_bytes / stored, "stored_bytes": stored, "path": path.name}
        row |= {name: account[name] for name in ("settings", "why")}
    return row


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
