"""What the contest is made of: originals, variants, and one point after another."""

import dataclasses
import json
import math
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from koopjax import export, models
from koopjax._core import check_finite
from koopjax.compress._budget import Budget, BudgetTooSmall, Inapplicable, smallest_of
from koopjax.compress._problem import ScoreFn, cut
from koopjax.compress._result import Compressed
from koopjax.compress.contest._points import Point
from koopjax.compress.methods._registry import METHODS
from koopjax.compress.training._finetune import Training
from koopjax.compress.training._recipe_lanes import finetuned_lanes
from koopjax.compress.training._recipes import Recipe, finetuned, recipe, start

FLOAT = "fine-tuned"


@dataclasses.dataclass(eq=False)
class Contest:
    """The originals, the data and what is finished; `task` is found where it is None."""

    model: Any
    data: Any
    training: Training
    tuning: Training
    value_bits: tuple[float, ...]
    keep: Callable[[Point, Compressed], None] | None = None
    recipes: Mapping[str, Recipe] = dataclasses.field(default_factory=dict)
    at: Any = None
    task: str | None = None
    score_fn: ScoreFn | None = None

    def __post_init__(self) -> None:
        self.rows: Any = None
        #: Whether the networks are trained by a function, rather than one given.
        self.made = not isinstance(self.model, tuple) and _is_maker(self.model)
        self._models: dict[tuple[int, bool], Any] = {}
        self._begun: tuple[Any, Any] = (None, None)
        #: Seeds that are trained at once.
        self.together: Sequence[int] = ()
        as_arrays = lambda *names: tuple(jnp.asarray(getattr(self.data, n)) for n in names)
        self.train: Any = as_arrays("x_train", "y_train")
        self.val: Any = as_arrays("x_val", "y_val")
        self.test: Any = as_arrays("x_test", "y_test")
        pairs = zip(self.train, self.val, strict=True)
        self.all: Any = tuple(jnp.concatenate(pair) for pair in pairs)
        for name, (x, _) in {"train": self.train, "val": self.val, "test": self.test}.items():
            check_finite(f"x_{name} (pareto)", x)

    def fingerprint(self) -> dict[str, Any]:
        """What must be the same for a ledger to go on."""
        arrays = [np.ascontiguousarray(a) for a in (*self.train, *self.val, *self.test)]
        own: dict[str, Any] = {}
        if self.at is not None:
            ends = self.at if isinstance(self.at, list | tuple) else (self.at, "output")
            own["at"] = [getattr(end, "name", end) for end in ends]
        if self.score_fn is not None:
            own["score_fn"] = getattr(self.score_fn, "__name__", "score_fn")
        if not self.made:
            leaves = [np.asarray(a) for a in jax.tree.leaves(models.form_of(self.model)[1])]
            own["model"] = [[list(a.shape), zlib.crc32(a.tobytes())] for a in leaves]
        return {
            "data": [[list(a.shape), a.dtype.name, zlib.crc32(a.tobytes())] for a in arrays],
            "training": dataclasses.asdict(self.training),
            "tuning": dataclasses.asdict(self.tuning), **own,
        }  # fmt: skip

    def original(self, seed: int, everything: bool) -> Any:
        """The network of a seed, trained on the training images with or without validation's."""
        key = (seed, everything) if self.made else (0, True)
        if key not in self._models:
            # A contest goes seed by seed, or through all of them again and again.
            self._models = {} if len(self._models) > len(self.together) + 1 else self._models
            data = self.all if everything else self.train
            maker: Any = self.model
            self._models[key] = maker(seed, *data) if self.made else self.model
        return self._models[key]

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
        x, y = self.test
        return models.score(model, x, y, self.task, self.score_fn)

    def account(self, seed: int) -> dict[str, Any]:
        """The original's row, made once."""
        row = self.rows.find("original", seed=seed)
        if row is None:
            model = self.original(seed, True)
            if self.at is not None:  # an unknown cut before anything is compressed
                cut(model, self.val[0], self.at)
            row = {
                "seed": seed, "accuracy": self._score(model),
                "stored_bytes": export.stored_bytes(model),
            }  # fmt: skip
            self.rows.add("original", row)
        return row

    def point(
        self, track: str, method: str, budget: str, seed: int, first: int, places: Sequence[str]
    ) -> Point:
        """One point: from the ledger, or made, where lanes are wanted with those of all seeds."""
        at: dict[str, Any] = {"track": track, "method": method, "budget": budget}
        if self._held(at, seed) is None:
            seeds = [seed]
            if track != "one-shot":
                seeds = [s for s in self.together if self._held(at, s) is None] or seeds
            self._make(at, seeds, first, places)
        return Point(**self.rows.find("point", **at, seed=seed))

    def _held(self, at: Mapping[str, str], seed: int) -> dict[str, Any] | None:
        """The point in the ledger; None where it was made with settings that are tried no more."""
        row = self.rows.find("point", **at, seed=seed)
        if row is None or row["accuracy"] is None or at["track"] == "one-shot":
            return row
        variants = _plain(self.recipe(at["method"]).variants)
        names = {name for variant in variants for name in variant}
        own = {name: value for name, value in row["settings"].items() if name in names}
        bits = row["settings"].get("value_bits")
        return row if own in variants and bits in (None, *self.value_bits) else None

    def _make(
        self, at: Mapping[str, str], seeds: Sequence[int], first: int, places: Sequence[str]
    ) -> None:
        """Compress the networks of some seeds, measure, and put the points into the ledger."""
        track, method, budget = at["track"], at["method"], at["budget"]
        originals = [self.account(seed) for seed in seeds]
        settings: dict[str, Any] = {}
        made: Sequence[Compressed | None]
        try:
            if track != "one-shot":
                settings = self.variant(track, method, budget, first, places)
            began, note = time.perf_counter(), ""
            made = self._run(track, method, budget, seeds, settings, everything=True)
            seconds = (time.perf_counter() - began) / len(seeds)
        except (BudgetTooSmall, Inapplicable) as error:
            if len(seeds) > 1:  # one lane's file may be some bytes longer than the others'
                for seed in seeds:
                    self._make(at, [seed], first, places)
                return
            made, seconds, note = [None] * len(seeds), 0.0, str(error)
        for seed, original, one in zip(seeds, originals, made, strict=True):
            report = None if one is None else one.report
            point = Point(
                **at, seed=seed, family=self.recipe(method).family,
                accuracy=None if one is None else self._score(one.model),
                ratio=None if report is None else original["stored_bytes"] / report.stored_bytes,
                stored_bytes=None if report is None else report.stored_bytes,
                parameters=None if report is None else report.parameters,
                original_accuracy=original["accuracy"], seconds=seconds,
                settings={} if report is None else report.as_dict()["settings"], note=note,
            )  # fmt: skip
            if self.keep is not None and one is not None:
                self.keep(point, one)
            self.rows.add("point", point.as_dict())

    def variant(
        self, track: str, method: str, budget: str, first: int, places: Sequence[str]
    ) -> dict[str, Any]:
        """The settings chosen on the validation split of the first seed, at the nearest budget.

        Where the method has no form at that budget, they are chosen at the point's own.

        Raises:
            BudgetTooSmall: it has none there either.
        """
        place = min(places, key=lambda other: abs(self._logarithm(other) - self._logarithm(budget)))
        try:
            return self._variant_at(track, method, place, first, places)
        except BudgetTooSmall:
            if place == budget:
                raise
        return self._variant_at(track, method, budget, first, places)

    def _variant_at(
        self, track: str, method: str, place: str, first: int, places: Sequence[str]
    ) -> dict[str, Any]:
        """The settings chosen at a budget; from the ledger where the same were tried for them."""
        variants = [dict(v) for v in self.recipe(method).variants]
        if track == "any-bits" and not self.recipe(method).any_bits:
            # The rate and the shape of the float track at a size with about as many entries.
            looser = str(Budget(ratio=max(self._ratio(place) / 4, 1.0)))
            known = self.rows.of("variant")
            known = [r["budget"] for r in known if (r["track"], r["method"]) == (FLOAT, method)]
            base = self.variant(FLOAT, method, looser, first, known or places)
            variants = [{**base, "value_bits": bits} for bits in self.value_bits]
        held = self.rows.find("variant", track=track, method=method, budget=place)
        if held is not None and held["tried"] == _plain(variants):
            if held["settings"] is None:
                raise BudgetTooSmall(held["note"])
            return held["settings"]
        best: tuple[float, float] | None = None
        chosen: dict[str, Any] | None = None
        scores: list[float | None] = []
        small: list[BudgetTooSmall] = []
        for settings in variants:
            try:
                (made,) = self._run(track, method, place, [first], settings, everything=False)
            except BudgetTooSmall as error:  # another variant may have a smaller form
                scores.append(None)
                small.append(error)
                continue
            report = made.report
            score = (report.score, -(report.divergence or 0.0))
            scores.append(report.score)
            if best is None or score > best:
                best, chosen = score, settings
        row = {"track": track, "method": method, "budget": place, "settings": chosen}
        row |= {"tried": variants, "scores": scores}
        if chosen is None:
            limit = Budget.parse(place).bytes(self.account(first)["stored_bytes"])
            error = smallest_of(small, method, limit, self.account(first)["stored_bytes"])
            self.rows.add("variant", {**row, "note": str(error)})
            raise error
        self.rows.add("variant", row)
        return chosen

    def _run(
        self, track: str, method: str, budget: str, seeds: Sequence[int],
        settings: dict[str, Any], *, everything: bool,
    ) -> list[Compressed]:  # fmt: skip
        """The compressed networks of some seeds; of several at once in a trained track alone."""
        originals = [self.original(seed, everything) for seed in seeds]
        x, y = self.all if everything else self.train
        if self.task is None:  # labels say it, and what follows may not have them
            like = models.output_like(originals[0], self.test[0])
            self.task, _ = models.read_task(like, self.test[1], score_fn=self.score_fn)
        keys: list[Array] = [jax.random.key(1000 + seed) for seed in seeds]
        how = self.recipe(method)
        at = self.at if how.family == "koopman" else None
        if track == "one-shot":
            one = METHODS[method](originals[0], x, budget, at=at, task=self.task, key=keys[0])
            return [one]
        settings = dict(settings)
        bits = settings.pop("value_bits", None)
        free = track == "label-free"
        # Validation data choose a variant; at the end there is nothing left to choose.
        common: Any = {
            "labels": None if free else y, "validation": self.val[0] if free else self.val,
            "variant": settings, "value_bits": bits,
            "training": self.training if everything else self.tuning, "task": self.task,
            "score_fn": None if free else self.score_fn,
        }  # fmt: skip
        if len(seeds) > 1:
            return finetuned_lanes(
                method, originals, x, budget, at=at, keys=keys, how=how, **common
            )
        how = self._starting(how, (track, method, budget, seeds[0], everything), at, bits)
        return [finetuned(method, originals[0], x, budget, key=keys[0], how=how, **common)]

    def _starting(self, how: Recipe, which: tuple[Any, ...], at: Any, bits: Any) -> Recipe:
        """A recipe whose variants share where they start if they differ in how they train.

        The problem that it is given has the room that few bits allow for already.
        """

        def begun(problem: Any, key: Array, **settings: Any) -> Any:
            asked = (*which, bits, repr(sorted(settings.items())))
            if self._begun[0] != asked:
                self._begun = (asked, start(how, which[1], problem, settings, key, at))
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

    leaves = jax.tree.leaves(model)
    alone = len(leaves) == 1 and leaves[0] is model  # no pytree, but a function
    return callable(model) and alone and not isinstance(model, nnx.Module)


def _plain(settings: Any) -> Any:
    """As the ledger's JSON gives it back."""
    return json.loads(json.dumps(list(settings)))
