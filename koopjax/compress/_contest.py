"""What the contest is made of: originals, variants, and one point after another."""

import dataclasses
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
from koopjax.compress._budget import Budget, BudgetTooSmall
from koopjax.compress._finetune import Training
from koopjax.compress._methods import ANY_BITS, METHODS
from koopjax.compress._points import Point
from koopjax.compress._problem import cut
from koopjax.compress._recipe_lanes import finetuned_lanes
from koopjax.compress._recipes import Recipe, finetuned, recipe, start
from koopjax.compress._result import Compressed

FLOAT = "fine-tuned"


@dataclasses.dataclass(eq=False)
class Contest:
    """The originals, the data and what is finished."""

    model: Any
    data: Any
    training: Training
    tuning: Training
    value_bits: tuple[float, ...]
    keep: Callable[[Point, Compressed], None] | None = None
    recipes: Mapping[str, Recipe] = dataclasses.field(default_factory=dict)
    at: Any = None

    def __post_init__(self) -> None:
        self.rows: Any = None
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

    def fingerprint(self) -> dict[str, Any]:
        """What must be the same for a ledger to go on."""
        arrays = [np.ascontiguousarray(a) for a in (*self.train, *self.val, *self.test)]
        span = {}
        if self.at is not None:
            ends = self.at if isinstance(self.at, list | tuple) else (self.at, "output")
            span["at"] = [getattr(end, "name", end) for end in ends]
        return {
            "data": [[list(a.shape), a.dtype.name, zlib.crc32(a.tobytes())] for a in arrays],
            "training": dataclasses.asdict(self.training),
            "tuning": dataclasses.asdict(self.tuning), **span,
        }  # fmt: skip

    def original(self, seed: int, everything: bool) -> Any:
        """The network of a seed, trained on the training images with or without validation's."""
        given = isinstance(self.model, tuple) or not _is_maker(self.model)
        key = (0, True) if given else (seed, everything)
        if key not in self._models:
            # A contest goes seed by seed, or through all of them again and again.
            self._models = {} if len(self._models) > len(self.together) + 1 else self._models
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
        """One point: from the ledger, or made, where lanes are wanted with those of all seeds."""
        at: dict[str, Any] = {"track": track, "method": method, "budget": budget}
        if self.rows.find("point", **at, seed=seed) is None:
            seeds = [seed]
            if track != "one-shot":
                lacking = [
                    s for s in self.together if self.rows.find("point", **at, seed=s) is None
                ]
                seeds = lacking or seeds
            self._make(at, seeds, first, places)
        return Point(**self.rows.find("point", **at, seed=seed))

    def _make(
        self, at: Mapping[str, str], seeds: Sequence[int], first: int, places: Sequence[str]
    ) -> None:
        """Compress the networks of some seeds, measure, and put the points into the ledger."""
        track, method, budget = at["track"], at["method"], at["budget"]
        if self.at is not None:  # an unknown cut before anything is compressed
            cut(self.original(seeds[0], True), self.val[0], self.at)
        originals = [self.account(seed) for seed in seeds]
        settings: dict[str, Any] = {}
        made: Sequence[Compressed | None]
        try:
            if track != "one-shot":
                settings = self.variant(track, method, budget, first, places)
            began, note = time.perf_counter(), ""
            made = self._run(track, method, budget, seeds, settings, everything=True)
            seconds = (time.perf_counter() - began) / len(seeds)
        except BudgetTooSmall as error:
            if len(seeds) > 1:  # one lane's file may be some bytes longer than the others'
                for seed in seeds:
                    self._make(at, [seed], first, places)
                return
            made, seconds, note = [None] * len(seeds), 0.0, str(error)
        for seed, original, one in zip(seeds, originals, made, strict=True):
            report = None if one is None else one.report
            point = Point(
                **at, seed=seed, family=self.recipe(method).family,
                accuracy=None if one is None else models.accuracy(one.model, *self.test),
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
        if best is None:
            raise min(small, key=lambda error: error.smallest)
        row = {"track": track, "method": method, "budget": place, "settings": chosen}
        self.rows.add("variant", {**row, "tried": variants, "scores": scores})
        return chosen

    def _run(
        self, track: str, method: str, budget: str, seeds: Sequence[int],
        settings: dict[str, Any], *, everything: bool,
    ) -> list[Compressed]:  # fmt: skip
        """The compressed networks of some seeds; of several at once in a trained track alone."""
        originals = [self.original(seed, everything) for seed in seeds]
        x, y = self.all if everything else self.train
        keys: list[Array] = [jax.random.key(1000 + seed) for seed in seeds]
        if track == "one-shot":
            return [METHODS[method](originals[0], x, budget, at=self.at, key=keys[0])]
        settings = dict(settings)
        bits = settings.pop("value_bits", None)
        free = track == "label-free"
        # Validation data choose a variant; at the end there is nothing left to choose.
        common: Any = {
            "labels": None if free else y, "validation": self.val[0] if free else self.val,
            "variant": settings, "value_bits": bits,
            "training": self.training if everything else self.tuning,
        }  # fmt: skip
        if len(seeds) > 1:
            how = self.recipe(method)
            return finetuned_lanes(
                method, originals, x, budget, at=self.at, keys=keys, how=how, **common
            )
        how = self._starting(method, budget, seeds[0], everything)
        return [finetuned(method, originals[0], x, budget, key=keys[0], how=how, **common)]

    def _starting(self, method: str, budget: str, seed: int, everything: bool) -> Recipe:
        """The method's recipe; variants that differ in how they train share where they start."""
        how = self.recipe(method)

        def begun(problem: Any, key: Array, **settings: Any) -> Any:
            which = (method, budget, seed, everything, repr(sorted(settings.items())))
            if self._begun[0] != which:
                self._begun = (which, start(how, method, problem, settings, key, self.at))
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
