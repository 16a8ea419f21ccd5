"""The contest: methods × budgets × seeds, one-shot and fine-tuned, resumable, under one account."""

import dataclasses
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from koopjax._core import Ledger, expected
from koopjax.compress._result import Budget, Compressed
from koopjax.compress.contest._contest import (
    MEASURED,
    Contest,
    Point,
    Rules,
    Splits,
    fingerprint,
    networks,
)
from koopjax.compress.methods._registry import METHODS
from koopjax.compress.training._finetune import Training
from koopjax.compress.training._recipes import RECIPES

#: Tracks: how a method may use the data, and what its file may hold.
TRACKS = ("one-shot", "label-free", "fine-tuned", "any-bits")


@dataclasses.dataclass(frozen=True)
class Pareto:
    """All points, and what was chosen before the test data were touched.

    Attributes:
        points: in the order of track, budget, method, seed.
        variants: by `(track, method, budget)`, the settings chosen on validation data.
        originals: by seed, accuracy and stored bytes of the networks.
    """

    points: Sequence[Point]
    variants: Mapping[tuple[str, str, str], Mapping[str, Any]]
    originals: Mapping[int, Mapping[str, Any]]

    def summary(self) -> list[dict[str, Any]]:
        """A row for each track, budget and method: mean and standard deviation over seeds.

        Over those seeds whose network has a form so small; the note says for how many it has none.
        """
        rows = []
        for group in dict.fromkeys((p.track, p.budget, p.method) for p in self.points):
            same = [p for p in self.points if (p.track, p.budget, p.method) == group]
            done: list[Any] = [p for p in same if p.accuracy is not None]
            note = next((p.note for p in same if p.accuracy is None), "")
            if 0 < len(done) < len(same):
                note = f"none for {len(same) - len(done)} of {len(same)} networks: {note}"
            mean = lambda values: statistics.mean(values) if values else None
            means = {name: mean([getattr(p, name) for p in done]) for name in MEASURED[1:]}
            rows.append(
                {
                    "track": group[0], "budget": group[1], "method": group[2],
                    "family": same[0].family, "seeds": len(done),
                    "accuracy": mean([p.accuracy for p in done]),
                    "std": statistics.stdev(p.accuracy for p in done) if len(done) > 1 else None,
                    "lost": mean([p.original_accuracy - p.accuracy for p in done]), **means,
                    "seconds": mean([p.seconds for p in done or same]), "note": note,
                }
            )  # fmt: skip
        return rows


def pareto(
    model: Any,
    data: Any,
    methods: Sequence[str] | None = None,
    budgets: Sequence[Any] = ("10x", "30x", "100x"),
    seeds: Sequence[int] = (0,),
    *,
    at: Any = None,
    tracks: Sequence[str] = ("fine-tuned",),
    training: Training | None = None,
    rules: Rules | None = None,
    ledger: str | os.PathLike | None = None,
    progress: Callable[[int, int, Point], None] | None = None,
    keep: Callable[[Point, Compressed], None] | None = None,
    **settings: Any,
) -> Pareto:
    """Compress a network by several methods to several sizes, from several seeds, and compare.

    In each track and for each method, a variant of the method's settings is chosen on the
    validation split of the first seed, from four variants for every method of the library (from
    `value_bits` in the any-bits track, where the method isn't of any bits itself); then the network
    of each seed is compressed with all training data, and measured once on the test data.

    Args:
        model: `model(seed, x, y)` trains the original from a seed; or a trained model of any form,
            which is then the same for all seeds.
        data: `data.Dataset`, or anything with `x_train, y_train, x_val, y_val, x_test, y_test`.
        methods: names in `compress.RECIPES` or `compress.METHODS`; without, in the one-shot track
            all of `METHODS` that store float32 (the others are in `compress.ANY_BITS`), and in the
            other tracks all of `RECIPES`.
        budgets: see `Budget.parse`.
        seeds: of originals, students and draws; a list or a range.
        at: a cut or a pair of cuts that bounds what the Koopman methods replace, as for
            `surgery.split`; from the input to the output without. The others compress the whole
            network, whose bytes are counted for all.
        tracks: "one-shot" (closed form, no labels), "label-free" (distilled without labels),
            "fine-tuned" (distilled with labels), "any-bits" (the same, values quantised).
        training: shared settings of the trained tracks.
        rules: a `Rules`; or its fields as keywords (`task, score_fn, tuning, tune_at, value_bits,
            recipes, lanes`).
        ledger: file to keep every finished piece in (JSON lines); an interrupted run goes on from
            it, and one with more budgets, methods or seeds adds to it. What was made with variants
            that a recipe has no more is made anew; whether a function trains the networks that it
            trained before, a ledger can't know.
        progress: called as `progress(done, total, point)` after each point.
        keep: called with a new point and the compressed network, to save the one that is wanted,
            before the point goes to the ledger; not for points that are in the ledger already.

    Returns:
        A `Pareto`.

    Raises:
        ValueError: an unknown method or track, a malformed budget (before anything is run), bad
            data, or a ledger of another contest.
    """
    rules = dataclasses.replace(rules or Rules(), **settings)
    _check_lists(
        tracks=tracks, budgets=budgets, seeds=seeds, value_bits=rules.value_bits, methods=methods,
        tune_at=rules.tune_at,
    )  # fmt: skip
    seeds = list(dict.fromkeys(int(seed) for seed in seeds))
    for track in tracks:
        if track not in TRACKS:
            raise expected(f"tracks among {', '.join(TRACKS)}", repr(track))
    wanted = {track: _methods(track, methods, rules) for track in tracks}
    parsed = list(dict.fromkeys(str(Budget.parse(budget)) for budget in budgets))
    places = [str(Budget.parse(budget)) for budget in rules.tune_at or parsed]
    training, splits = training or Training(), Splits.of(data)
    lanes = jax.default_backend() != "cpu" if rules.lanes is None else rules.lanes
    together = seeds if lanes else []
    with Ledger(ledger, fingerprint(model, splits, at, training, rules)) as rows:
        contest = Contest(
            networks(model, splits, len(together) + 2), splits, at, training, rules, rows,
            seeds[0], places, together, keep,
        )  # fmt: skip
        jobs = [
            (track, method, budget, seed)
            for seed in seeds
            for track in tracks
            for budget in parsed
            for method in wanted[track]
        ]
        points = []
        for job in jobs:
            points.append(contest.point(*job))
            if progress is not None:
                progress(len(points), len(jobs), points[-1])
        order = {key: k for k, key in enumerate(jobs)}
        place = lambda p: order[p.track, p.method, p.budget, p.seed]
        points.sort(key=lambda p: (tracks.index(p.track), parsed.index(p.budget), place(p)))
        return Pareto(points, contest.chosen(), contest.originals(seeds))


def _check_lists(**lists: Any) -> None:
    """Refuse what is neither None nor a list of at least one."""
    for name, values in lists.items():
        if values is not None and (
            isinstance(values, str) or not hasattr(values, "__len__") or not len(values)
        ):
            raise expected(f"pareto: {name} as a list of at least one", repr(values))


def _methods(track: str, methods: Sequence[str] | None, rules: Rules) -> list[str]:
    if methods is None:
        if track == "one-shot":
            return [name for name, method in METHODS.items() if not method.any_bits]
        return list({**RECIPES, **(rules.recipes or {})})
    for name in methods:
        if track == "one-shot" and name not in METHODS:
            raise expected(f"one-shot methods among {', '.join(METHODS)}", repr(name))
        rules.recipe(name)
    return list(methods)
