"""The contest: methods × budgets × seeds, one-shot and fine-tuned, resumable, under one account."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from koopjax._core import expected
from koopjax.compress._budget import Budget
from koopjax.compress._problem import ScoreFn
from koopjax.compress._result import Compressed
from koopjax.compress.contest._contest import Contest
from koopjax.compress.contest._points import Pareto, Point
from koopjax.compress.contest._rows import Rows
from koopjax.compress.methods._registry import METHODS
from koopjax.compress.training._finetune import Training
from koopjax.compress.training._recipes import RECIPES, Recipe, recipe

#: Tracks: how a method may use the data, and what its file may hold.
TRACKS = ("one-shot", "label-free", "fine-tuned", "any-bits")


def pareto(
    model: Any,
    data: Any,
    methods: Sequence[str] | None = None,
    budgets: Sequence[Any] = ("10x", "30x", "100x"),
    seeds: Sequence[int] = (0,),
    *,
    at: Any = None,
    task: str | None = None,
    score_fn: ScoreFn | None = None,
    tracks: Sequence[str] = ("fine-tuned",),
    training: Training | None = None,
    tuning: Training | None = None,
    tune_at: Sequence[Any] | None = None,
    value_bits: Sequence[float] = (3.0, 4.0, 5.0),
    recipes: Mapping[str, Recipe] | None = None,
    ledger: str | os.PathLike | None = None,
    progress: Callable[[int, int, Point], None] | None = None,
    keep: Callable[[Point, Compressed], None] | None = None,
    lanes: bool | None = None,
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
        task: "classification" or "regression"; found from the model's output and the test labels
            where left out. What is called accuracy is R² for a regression.
        score_fn: `score_fn(outputs, labels)` in place of accuracy and R²; the label-free and
            one-shot tracks choose without it.
        tracks: "one-shot" (closed form, no labels), "label-free" (distilled without labels),
            "fine-tuned" (distilled with labels), "any-bits" (the same, values quantised).
        training: shared settings of the trained tracks.
        tuning: the same for choosing variants, such as fewer epochs.
        tune_at: budgets at which variants are chosen, others take those of the nearest; default all
            of `budgets`.
        value_bits: of the any-bits track, tried as variants of the best fine-tuned settings.
        recipes: of one's own, by name: methods to compare with, or other variants of the library's
            (such as the cuts of another network). They may be named in `methods`.
        ledger: file to keep every finished piece in (JSON lines); an interrupted run goes on from
            it, and one with more budgets, methods or seeds adds to it. What was made with variants
            that a recipe has no more is made anew; whether a function trains the networks that it
            trained before, a ledger can't know.
        progress: called as `progress(done, total, point)` after each point.
        keep: called with a new point and the compressed network, to save the one that is wanted,
            before the point goes to the ledger; not for points that are in the ledger already.
        lanes: train the seeds of a point at once, as lanes of one vmapped scan, with one order of
            samples for all; None: where there is an accelerator. On few CPU cores it is slower,
            since batched products of small matrices are slow there.

    Returns:
        A `Pareto`.

    Raises:
        ValueError: an unknown method or track, a malformed budget (before anything is run), bad
            data, or a ledger of another contest.
    """
    own = dict(recipes or {})
    _check_lists(
        tracks=tracks, budgets=budgets, seeds=seeds, value_bits=value_bits, methods=methods,
        tune_at=tune_at,
    )  # fmt: skip
    seeds = list(dict.fromkeys(int(seed) for seed in seeds))
    for track in tracks:
        if track not in TRACKS:
            raise expected(f"tracks among {', '.join(TRACKS)}", repr(track))
    wanted = {track: _methods(track, methods, own) for track in tracks}
    parsed = list(dict.fromkeys(str(Budget.parse(budget)) for budget in budgets))
    places = parsed if tune_at is None else [str(Budget.parse(budget)) for budget in tune_at]
    training = training or Training()
    lanes = jax.default_backend() != "cpu" if lanes is None else lanes
    contest = Contest(model, data, training, tuning or training, tuple(value_bits), keep, own, at,
                      task, score_fn)  # fmt: skip
    contest.together = seeds if lanes else []
    with Rows(ledger, contest.fingerprint()) as rows:
        contest.rows = rows
        jobs = [
            (track, method, budget, seed)
            for seed in seeds
            for track in tracks
            for budget in parsed
            for method in wanted[track]
        ]
        points = []
        for track, method, budget, seed in jobs:
            point = contest.point(track, method, budget, seed, seeds[0], places)
            points.append(point)
            if progress is not None:
                progress(len(points), len(jobs), point)
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


def _methods(track: str, methods: Sequence[str] | None, own: Mapping[str, Recipe]) -> list[str]:
    if methods is None:
        if track == "one-shot":
            return [name for name, method in METHODS.items() if not method.any_bits]
        return list({**RECIPES, **own})
    for name in methods:
        if track == "one-shot" and name not in METHODS:
            raise expected(f"one-shot methods among {', '.join(METHODS)}", repr(name))
        if name not in own:
            recipe(name)
    return list(methods)
