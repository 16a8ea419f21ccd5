"""The contest: methods × budgets × seeds, one-shot and fine-tuned, resumable, under one account."""

import dataclasses
import math
import os
import statistics
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from koopjax import export, models
from koopjax._core import expected
from koopjax.compress._budget import Budget, BudgetTooSmall
from koopjax.compress._finetune import Training
from koopjax.compress._methods import ANY_BITS, METHODS
from koopjax.compress._recipes import RECIPES, Recipe, finetuned, one_shot, recipe
from koopjax.compress._result import Compressed
from koopjax.compress._rows import Rows

#: Tracks: how a method may use the data, and what its file may hold.
TRACKS = ("one-shot", "label-free", "fine-tuned", "any-bits")
FLOAT = "fine-tuned"


@dataclasses.dataclass(frozen=True)
class Point:
    """One compressed network of the contest, or why there is none.

    Attributes:
        track: see `TRACKS`.
        method, budget, seed: which.
        family: kind of method; see `Recipe`.
        accuracy: on the test data, used once; None where the method has no form so small.
        ratio, stored_bytes, parameters: of the file.
        original_accuracy: of the network that was compressed.
        seconds: that the method took.
        settings: what was chosen.
        note: why there is no result.
    """

    track: str
    method: str
    budget: str
    seed: int
    family: str
    accuracy: float | None
    ratio: float | None
    stored_bytes: int | None
    parameters: int | None
    original_accuracy: float
    seconds: float
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return dataclasses.asdict(self)


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
        """A row for each track, budget and method: mean and standard deviation over seeds."""
        rows = []
        for group in dict.fromkeys((p.track, p.budget, p.method) for p in self.points):
            same = [p for p in self.points if (p.track, p.budget, p.method) == group]
            done = [p for p in same if p.accuracy is not None]
            values = [p.accuracy for p in done if p.accuracy is not None]
            lost = [p.original_accuracy - p.accuracy for p in done if p.accuracy is not None]
            rows.append(
                {
                    "track": group[0], "budget": group[1], "method": group[2],
                    "family": same[0].family, "seeds": len(values),
                    "accuracy": statistics.mean(values) if values else None,
                    "std": statistics.stdev(values) if len(values) > 1 else None,
                    "lost": statistics.mean(lost) if lost else None,
                    "ratio": statistics.mean([p.ratio or 0.0 for p in done]) if done else None,
                    "stored_bytes": _mean([p.stored_bytes for p in done]),
                    "parameters": _mean([p.parameters for p in done]),
                    "seconds": statistics.mean([p.seconds for p in same]),
                    "note": "" if done else same[0].note,
                }
            )  # fmt: skip
        return rows


def pareto(
    model: Any,
    data: Any,
    methods: Sequence[str] | None = None,
    budgets: Sequence[Any] = ("10x", "30x", "100x"),
    seeds: Iterable[int] = (0,),
    *,
    tracks: Sequence[str] = ("fine-tuned",),
    training: Training | None = None,
    tuning: Training | None = None,
    tune_at: Sequence[Any] | None = None,
    value_bits: Sequence[float] = (3.0, 4.0, 5.0),
    recipes: Mapping[str, Recipe] | None = None,
    ledger: str | os.PathLike | None = None,
    progress: Callable[[int, int, Point], None] | None = None,
    keep: Callable[[Point, Compressed], None] | None = None,
) -> Pareto:
    """Compress a network by several methods to several sizes, from several seeds, and compare.

    In each track and for each method, a variant of the method's settings is chosen on the
    validation split of the first seed, from as many variants for every method; then the network of
    each seed is compressed with all training data, and measured once on the test data.

    Args:
        model: `model(seed, x, y)` trains the original from a seed; or a trained model of any form,
            which is then the same for all seeds.
        data: `data.Dataset`, or anything with `x_train, y_train, x_val, y_val, x_test, y_test`.
        methods: names in `compress.RECIPES` or `compress.METHODS`; without, in the one-shot track
            all of `METHODS` that store float32 (the others are in `compress.ANY_BITS`), and in the
            other tracks all of `RECIPES`.
        budgets: see `Budget.parse`.
        seeds: of originals, students and draws.
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
            it, and one with more budgets, methods or seeds adds to it.
        progress: called as `progress(done, total, point)` after each point.
        keep: called with a new point and the compressed network, to save the one that is wanted,
            before the point goes to the ledger; not for points that are in the ledger already.

    Returns:
        A `Pareto`.

    Raises:
        ValueError: an unknown method or track, a malformed budget (before anything is run), bad
            data, or a ledger of another contest.
    """
    seeds = list(seeds)
    for track in tracks:
        if track not in TRACKS:
            raise expected(f"tracks among {', '.join(TRACKS)}", repr(track))
    own = dict(recipes or {})
    wanted = {track: _methods(track, methods, own) for track in tracks}
    parsed = [str(Budget.parse(budget)) for budget in budgets]
    places = parsed if tune_at is None else [str(Budget.parse(budget)) for budget in tune_at]
    if not seeds or not parsed:
        raise expected("at least one budget and one seed", f"{len(parsed)} and {len(seeds)}")
    training = training or Training()
    contest = _Contest(model, data, training, tuning or training, tuple(value_bits), keep, own)
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
        return Pareto(points, contest.chosen(), contest.originals())


def _methods(track: str, methods: Sequence[str] | None, own: Mapping[str, Recipe]) -> list[str]:
    if methods is None:
        if track == "one-shot":
            return [name for name in METHODS if name not in ANY_BITS]
        return list({**RECIPES, **own})
    for name in methods:
        if track == "one-shot" and name not in METHODS:
            raise expected(f"one-shot methods among {', '.join(METHODS)}", repr(name))
        if name not in own:
            recipe(name)
    return list(methods)


@dataclasses.dataclass(eq=False)
class _Contest:
    """The originals, the data and what is finished."""

    model: Any
    data: Any
    training: Training
    tuning: Training
    value_bits: tuple[float, ...]
    keep: Callable[[Point, Compressed], None] | None = None
    recipes: Mapping[str, Recipe] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rows: Any = None
        self._models: dict[tuple[int, bool], Any] = {}
        self._begun: tuple[Any, Any] = (None, None)
        as_arrays = lambda *names: tuple(jnp.asarray(getattr(self.data, n)) for n in names)
        self.train: Any = as_arrays("x_train", "y_train")
        self.val: Any = as_arrays("x_val", "y_val")
        self.test: Any = as_arrays("x_test", "y_test")
        pairs = zip(self.train, self.val, strict=True)
        self.all: Any = tuple(jnp.concatenate(pair) for pair in pairs)

    def fingerprint(self) -> dict[str, Any]:
        """What must be the same for a ledger to go on."""
        arrays = [np.ascontiguousarray(a) for a in (*self.train, *self.val, *self.test)]
        return {
            "data": [[list(a.shape), a.dtype.name, zlib.crc32(a.tobytes())] for a in arrays],
            "training": dataclasses.asdict(self.training),
            "tuning": dataclasses.asdict(self.tuning),
        }

    def original(self, seed: int, everything: bool) -> Any:
        """The network of a seed, trained on the training images with or without validation's."""
        given = isinstance(self.model, tuple) or not _is_maker(self.model)
        key = (0, True) if given else (seed, everything)
        if key not in self._models:
            # One at a time: a contest goes seed by seed.
            self._models = {} if len(self._models) > 1 else self._models
            data = self.all if everything else self.train
            maker: Any = self.model
            self._models[key] = self.model if given else maker(seed, *data)
        return self._models[key]

    def originals(self) -> dict[int, dict[str, Any]]:
        """Accuracy and bytes of the networks, by seed."""
        return {row["seed"]: row for row in self.rows.of("original")}

    def chosen(self) -> dict[tuple[str, str, str], Any]:
        """The settings chosen on validation data."""
        found = self.rows.of("variant")
        return {(r["track"], r["method"], r["budget"]): r["settings"] for r in found}

    def account(self, seed: int) -> dict[str, Any]:
        """The original's row, made once."""
        row = self.rows.find("original", seed=seed)
        if row is None:
            model = self.original(seed, True)
            row = {
                "seed": seed, "accuracy": models.accuracy(model, *self.test),
                "stored_bytes": export.stored_bytes(model),
            }  # fmt: skip
            self.rows.add("original", row)
        return row

    def point(
        self, track: str, method: str, budget: str, seed: int, first: int, places: Sequence[str]
    ) -> Point:
        """One point: from the ledger, or made."""
        held = self.rows.find("point", track=track, method=method, budget=budget, seed=seed)
        if held is not None:
            return Point(**held)
        original = self.account(seed)
        settings: dict[str, Any] = {}
        made = None
        try:
            if track != "one-shot":
                settings = self.variant(track, method, budget, first, places)
            began = time.perf_counter()
            made = self._run(track, method, budget, seed, settings, everything=True)
        except BudgetTooSmall as error:
            figures: dict[str, Any] = dict.fromkeys(
                ("accuracy", "ratio", "stored_bytes", "parameters")
            )
            figures |= {"seconds": 0.0, "settings": {}, "note": str(error)}
        else:
            seconds = time.perf_counter() - began
            figures = {
                "accuracy": models.accuracy(made.model, *self.test),
                "ratio": original["stored_bytes"] / made.report.stored_bytes,
                "stored_bytes": made.report.stored_bytes,
                "parameters": made.report.parameters,
                "seconds": seconds, "settings": made.report.as_dict()["settings"],
            }  # fmt: skip
        point = Point(
            track=track, method=method, budget=budget, seed=seed, family=self.recipe(method).family,
            original_accuracy=original["accuracy"], **figures,
        )  # fmt: skip
        if self.keep is not None and made is not None:
            self.keep(point, made)
        self.rows.add("point", point.as_dict())
        return point

    def variant(
        self, track: str, method: str, budget: str, first: int, places: Sequence[str]
    ) -> dict[str, Any]:
        """The settings chosen on the validation split of the first seed, at the nearest budget."""
        place = min(places, key=lambda other: abs(self._logarithm(other) - self._logarithm(budget)))
        held = self.rows.find("variant", track=track, method=method, budget=place)
        if held is not None:
            return held["settings"]
        variants = [dict(v) for v in self.recipe(method).variants]
        if track == "any-bits" and method not in ANY_BITS:
            # The rate and the shape of the float track at a size with about as many entries.
            looser = str(Budget(ratio=max(self._ratio(place) / 4, 1.0)))
            known = self.rows.of("variant")
            known = [r["budget"] for r in known if (r["track"], r["method"]) == (FLOAT, method)]
            base = self.variant(FLOAT, method, looser, first, known or places)
            variants = [{**base, "value_bits": bits} for bits in self.value_bits]
        best: tuple[float, float] | None = None
        chosen: dict[str, Any] = {}
        scores = []
        for settings in variants:
            made = self._run(track, method, place, first, settings, everything=False)
            report = made.report
            score = (report.score, -(report.divergence or 0.0))
            scores.append(report.score)
            if best is None or score > best:
                best, chosen = score, settings
        row = {"track": track, "method": method, "budget": place, "settings": chosen}
        self.rows.add("variant", {**row, "tried": variants, "scores": scores})
        return chosen

    def _run(
        self, track: str, method: str, budget: str, seed: int, settings: dict[str, Any],
        *, everything: bool,
    ) -> Any:  # fmt: skip
        model = self.original(seed, everything)
        x, y = self.all if everything else self.train
        key: Array = jax.random.key(1000 + seed)
        if track == "one-shot":
            return METHODS[method](model, x, budget, key=key)
        settings = dict(settings)
        bits = settings.pop("value_bits", None)
        free = track == "label-free"
        # Validation data choose a variant; at the end there is nothing left to choose.
        return finetuned(
            method, model, x, budget, labels=None if free else y,
            validation=self.val[0] if free else self.val, key=key, variant=settings,
            value_bits=bits,
            training=self.training if everything else self.tuning,
            how=self._starting(method, budget, seed, everything),
        )  # fmt: skip

    def _starting(self, method: str, budget: str, seed: int, everything: bool) -> Recipe:
        """The method's recipe; a one-shot result to start from is made once for all variants."""
        how = self.recipe(method)
        if how.start is not None:
            return how
        which = (method, budget, seed, everything)

        def begun(problem: Any, key: Array, **settings: Any) -> Any:
            if settings:
                raise expected(f"variants of {method} that set learning_rate alone", f"{settings}")
            if self._begun[0] != which:
                self._begun = (which, one_shot(method, problem, key))
            return self._begun[1]

        return dataclasses.replace(how, start=begun)

    def recipe(self, method: str) -> Recipe:
        """The caller's recipe of a method, or the library's."""
        return self.recipes[method] if method in self.recipes else recipe(method)

    def _ratio(self, budget: str) -> float:
        parsed = Budget.parse(budget)
        if parsed.ratio is not None:
            return parsed.ratio
        rows = self.rows.of("original")
        return rows[0]["stored_bytes"] / (parsed.size or 1)

    def _logarithm(self, budget: str) -> float:
        return math.log(self._ratio(budget))


def _is_maker(model: Any) -> bool:
    """Whether it is a function that trains models rather than a model."""
    from flax import nnx

    is_model = isinstance(model, nnx.Module) or bool(jax.tree.leaves(model) != [model])
    return callable(model) and not is_model


def _mean(values: Sequence[int | None]) -> float | None:
    known = [v for v in values if v is not None]
    return statistics.mean(known) if known else None
