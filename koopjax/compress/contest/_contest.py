"""What the contest is made of: originals, variants, and one point after another."""

import dataclasses
import functools
import json
import math
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from koopjax import export, models
from koopjax._core import Ledger, check_finite
from koopjax.compress._problem import Problem, ScoreFn, cut, pose
from koopjax.compress._result import Budget, BudgetTooSmall, Compressed, Inapplicable
from koopjax.compress.methods._registry import METHODS
from koopjax.compress.training._finetune import Training
from koopjax.compress.training._recipes import (
    Recipe,
    best_of,
    candidates,
    finetuned,
    finetuned_lanes,
    recipe,
)

FLOAT = "fine-tuned"
#: Of a point, what is None where there is no network.
MEASURED = ("accuracy", "ratio", "stored_bytes", "parameters")
Pair = tuple[Array, Array]


@dataclasses.dataclass(frozen=True)
class Rules:
    """What a contest lays down beside its data and its tracks.

    Args:
        task: "classification" or "regression"; found from the model's output and the test labels
            where left out. What is called accuracy is R² for a regression.
        score_fn: `score_fn(outputs, labels)` in place of accuracy and R²; the label-free and
            one-shot tracks choose without it.
        tuning: training while variants are chosen, such as fewer epochs; as all else without.
        tune_at: budgets at which variants are chosen, others take those of the nearest; default all
            that are asked for.
        value_bits: of the any-bits track, tried as variants of the best fine-tuned settings.
        recipes: of one's own, by name: methods to compare with, or other variants of the library's
            (such as the cuts of another network). They may be named in `methods`.
        lanes: train the seeds of a point at once, as lanes of one vmapped scan, with one order of
            samples for all; None: where there is an accelerator. On few CPU cores it is slower,
            since batched products of small matrices are slow there.
    """

    task: str | None = None
    score_fn: ScoreFn | None = None
    tuning: Training | None = None
    tune_at: Sequence[Any] | None = None
    value_bits: Sequence[float] = (3.0, 4.0, 5.0)
    recipes: Mapping[str, Recipe] | None = None
    lanes: bool | None = None

    def recipe(self, method: str) -> Recipe:
        """The caller's recipe of a method, or the library's."""
        own = self.recipes or {}
        return own[method] if method in own else recipe(method)


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


class Splits(NamedTuple):
    """Samples and labels; `all` is those to train on with those to choose by."""

    train: Pair
    val: Pair
    test: Pair
    all: Pair

    @classmethod
    def of(cls, data: Any) -> "Splits":
        """Those of a data set."""
        pair = lambda part: tuple(jnp.asarray(getattr(data, f"{name}_{part}")) for name in "xy")
        train, val, test = (pair(part) for part in ("train", "val", "test"))
        for name, (x, _) in {"train": train, "val": val, "test": test}.items():
            check_finite(f"x_{name} (pareto)", x)
        both = tuple(jnp.concatenate(pair) for pair in zip(train, val, strict=True))
        return cls(train, val, test, both)  # pyright: ignore[reportArgumentType]


def networks(model: Any, data: Splits, held: int) -> Callable[[int, bool], Any]:
    """The network of a seed, trained with (True) or without the samples to choose by."""
    if not is_trainer(model):
        return lambda seed, everything: model
    made = lambda seed, everything: model(seed, *(data.all if everything else data.train))
    return functools.lru_cache(maxsize=held)(made)


def is_trainer(model: Any) -> bool:
    """Whether it is a function, and so trains networks: models are modules, pairs and pytrees."""
    if isinstance(model, nnx.Module | tuple):
        return False
    leaves = jax.tree.leaves(model)
    return callable(model) and len(leaves) == 1 and leaves[0] is model


def fingerprint(
    model: Any, data: Splits, at: Any, training: Training, rules: Rules
) -> dict[str, Any]:
    """What must be the same for a ledger to go on."""
    crc = lambda array: zlib.crc32(np.ascontiguousarray(array).tobytes())
    arrays = [np.asarray(a) for a in (*data.train, *data.val, *data.test)]
    own: dict[str, Any] = {}
    if at is not None:
        ends = at if isinstance(at, list | tuple) else (at, "output")
        own["at"] = [getattr(end, "name", end) for end in ends]
    if rules.score_fn is not None:
        own["score_fn"] = getattr(rules.score_fn, "__name__", "score_fn")
    if not is_trainer(model):
        leaves = [np.asarray(a) for a in jax.tree.leaves(models.form_of(model)[1])]
        own["model"] = [[list(a.shape), crc(a)] for a in leaves]
    return {
        "data": [[list(a.shape), a.dtype.name, crc(a)] for a in arrays],
        "training": dataclasses.asdict(training),
        "tuning": dataclasses.asdict(rules.tuning or training), **own,
    }  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class Contest:
    """A contest on its data; what is finished is in its rows."""

    network: Callable[[int, bool], Any]
    data: Splits
    at: Any
    training: Training
    rules: Rules
    rows: Ledger
    first: int  # the seed on whose network variants are chosen
    places: Sequence[str]  # budgets at which they are
    together: Sequence[int]  # seeds that are trained at once
    keep: Callable[[Point, Compressed], None] | None = None  # called with what is new

    def originals(self, seeds: Sequence[int]) -> dict[int, dict[str, Any]]:
        """Accuracy and bytes of the networks of these seeds."""
        return {row["seed"]: row for row in self.rows.of("original") if row["seed"] in seeds}

    def chosen(self) -> dict[tuple[str, str, str], Any]:
        """The settings chosen on validation data."""
        found = self.rows.of("variant")
        named = lambda row: (row["track"], row["method"], row["budget"])
        return {named(row): row["settings"] for row in found if row["settings"] is not None}

    def _score(self, model: Any) -> float:
        """On the test data."""
        x, y = self.data.test
        return models.score(model, x, y, self.rules.task, self.rules.score_fn)

    def account(self, seed: int) -> dict[str, Any]:
        """The original's row, made once."""
        row = self.rows.find("original", seed=seed)
        if row is None:
            model = self.network(seed, True)
            if self.at is not None:  # an unknown cut before anything is compressed
                cut(model, self.data.val[0], self.at)
            row = {
                "seed": seed, "accuracy": self._score(model),
                "stored_bytes": export.stored_bytes(model),
            }  # fmt: skip
            self.rows.add("original", row)
        return row

    def point(self, track: str, method: str, budget: str, seed: int) -> Point:
        """One point: from the ledger, or made, where lanes are wanted with those of all seeds."""
        at: dict[str, Any] = {"track": track, "method": method, "budget": budget}
        if self._held(at, seed) is None:
            seeds = [seed]
            if track != "one-shot":
                seeds = [s for s in self.together if self._held(at, s) is None] or seeds
            self._make(at, seeds)
        row = self.rows.find("point", **at, seed=seed)
        assert row is not None
        return Point(**row)

    def _held(self, at: Mapping[str, str], seed: int) -> dict[str, Any] | None:
        """The point in the ledger; None where it was made with settings that are tried no more."""
        row = self.rows.find("point", **at, seed=seed)
        if row is None or row["accuracy"] is None or at["track"] == "one-shot":
            return row
        variants = _plain(self.rules.recipe(at["method"]).variants)
        names = {name for variant in variants for name in variant}
        own = {name: value for name, value in row["settings"].items() if name in names}
        bits = row["settings"].get("value_bits")
        return row if own in variants and bits in (None, *self.rules.value_bits) else None

    def _make(self, at: Mapping[str, str], seeds: Sequence[int]) -> None:
        """Compress the networks of some seeds, measure, and put the points into the ledger."""
        originals = [self.account(seed) for seed in seeds]
        made: Sequence[Compressed | None]
        try:
            settings = {} if at["track"] == "one-shot" else self.variant(**at)
            began, note = time.perf_counter(), ""
            made = self._compress(**at, seeds=seeds, settings=settings)
            seconds = (time.perf_counter() - began) / len(seeds)
        except (BudgetTooSmall, Inapplicable) as error:
            if len(seeds) > 1:  # one lane's file may be some bytes longer than the others'
                for seed in seeds:
                    self._make(at, [seed])
                return
            made, seconds, note = [None] * len(seeds), 0.0, str(error)
        for seed, original, one in zip(seeds, originals, made, strict=True):
            measured: dict[str, Any] = dict.fromkeys(MEASURED)
            if one is not None:
                report = one.report
                measured = {
                    "accuracy": self._score(one.model), "parameters": report.parameters,
                    "ratio": original["stored_bytes"] / report.stored_bytes,
                    "stored_bytes": report.stored_bytes, "settings": report.as_dict()["settings"],
                }  # fmt: skip
            point = Point(
                **at, seed=seed, family=self.rules.recipe(at["method"]).family,
                original_accuracy=original["accuracy"], seconds=seconds, note=note, **measured,
            )  # fmt: skip
            if self.keep is not None and one is not None:
                self.keep(point, one)
            self.rows.add("point", point.as_dict())

    def variant(
        self, track: str, method: str, budget: str, places: Sequence[str] = ()
    ) -> dict[str, Any]:
        """The settings chosen on the validation split of the first seed, at the nearest budget."""
        apart = lambda place: abs(math.log(self._ratio(place)) - math.log(self._ratio(budget)))
        place = min(places or self.places, key=apart)
        try:
            return self._variant_at(track, method, place)
        except BudgetTooSmall:  # at the point's own budget there may be a form
            if place == budget:
                raise
        return self._variant_at(track, method, budget)

    def _variant_at(self, track: str, method: str, place: str) -> dict[str, Any]:
        """The settings chosen at a budget; from the ledger where the same were tried for them."""
        how = self.rules.recipe(method)
        variants = [dict(v) for v in how.variants]
        if track == "any-bits" and not how.any_bits:
            # The rate and the shape of the float track at a size with about as many entries.
            looser = str(Budget(ratio=max(self._ratio(place) / 4, 1.0)))
            known = self.rows.of("variant")
            known = [r["budget"] for r in known if (r["track"], r["method"]) == (FLOAT, method)]
            base = self.variant(FLOAT, method, looser, known)
            variants = [{**base, "value_bits": bits} for bits in self.rules.value_bits]
        held = self.rows.find("variant", track=track, method=method, budget=place)
        if held is not None and held["tried"] == _plain(variants):
            if held["settings"] is None:
                raise BudgetTooSmall(held["note"])
            return held["settings"]
        problem = self._problem(track, method, place, self.first, everything=False)
        key = _key(self.first)
        tried = candidates(
            how, problem, variants, key, [jax.random.fold_in(key, 0)] * len(variants),
            self._span(how), self.rules.tuning or self.training,
        )  # fmt: skip
        scores = [one.score.value if one.error is None else None for one in tried]
        row = {"track": track, "method": method, "budget": place, "settings": None}
        row |= {"tried": variants, "scores": scores}
        try:
            chosen = dict(best_of(tried, problem).settings)
        except BudgetTooSmall as error:
            self.rows.add("variant", {**row, "note": str(error)})
            raise
        self.rows.add("variant", {**row, "settings": chosen})
        return chosen

    def _span(self, how: Recipe) -> Any:
        return self.at if how.family == "koopman" else None

    def _given(self, track: str, everything: bool) -> dict[str, Any]:
        """Labels, validation data and scores as a trained track may use them."""
        _, y = self.data.all if everything else self.data.train
        if track == "label-free":
            return {"labels": None, "validation": self.data.val[0], "score_fn": None}
        # Validation data choose a variant; at the end there is nothing left to choose.
        return {"labels": y, "validation": self.data.val, "score_fn": self.rules.score_fn}

    def _task(self, model: Any) -> str:
        """As the test labels say it, since what follows may not have labels."""
        like = models.output_like(model, self.data.test[0])
        return models.read_task(
            like, self.data.test[1], self.rules.task, score_fn=self.rules.score_fn
        )[0]

    def _problem(
        self, track: str, method: str, budget: str, seed: int, *, everything: bool
    ) -> Problem:
        """A trained track's problem of a seed."""
        model = self.network(seed, everything)
        x, _ = self.data.all if everything else self.data.train
        return pose(
            method, model, x, budget, key=_key(seed), task=self._task(model),
            **self._given(track, everything),
        )  # fmt: skip

    def _compress(
        self, track: str, method: str, budget: str, seeds: Sequence[int],
        settings: Mapping[str, Any],
    ) -> list[Compressed]:  # fmt: skip
        """The compressed networks of some seeds; of several at once in a trained track alone."""
        how, (x, _) = self.rules.recipe(method), self.data.all
        at, keys = self._span(how), [_key(seed) for seed in seeds]
        if len(seeds) > 1:
            problems = [self._problem(track, method, budget, s, everything=True) for s in seeds]
            labels = self._given(track, True)["labels"]
            return finetuned_lanes(
                how, problems, x, labels, variant=settings, keys=keys, at=at,
                training=self.training,
            )  # fmt: skip
        model = self.network(seeds[0], True)
        task = self._task(model)
        if track == "one-shot":
            return [METHODS[method](model, x, budget, at=at, task=task, key=keys[0])]
        return [
            finetuned(
                method, model, x, budget, at=at, key=keys[0], how=how, variant=settings,
                training=self.training, task=task, **self._given(track, True),
            )
        ]  # fmt: skip

    def _ratio(self, budget: str) -> float:
        parsed = Budget.parse(budget)
        if parsed.ratio is not None:
            return parsed.ratio
        rows = self.rows.of("original")
        return rows[0]["stored_bytes"] / (parsed.size or 1)


def _key(seed: int) -> Array:
    return jax.random.key(1000 + seed)


def _plain(settings: Any) -> Any:
    """As the ledger's JSON gives it back."""
    return json.loads(json.dumps(list(settings)))
