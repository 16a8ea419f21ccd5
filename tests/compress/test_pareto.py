"""The contest: fair, resumable, and true to the files that it measures."""

import dataclasses
import functools
import importlib
import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import linen, nnx

from koopjax import compress, export, models
from koopjax.compress._result import too_small
from tests import nets
from tests.goldens import golden_compress

# `koopjax.compress` has recipes of its own
recipes = importlib.import_module("koopjax.compress.training._recipes")

QUICK = compress.Training(epochs=1, batch_size=64)


@pytest.fixture(scope="module")
def small(digits):
    """A few samples of the digits."""
    parts = {
        name: np.asarray(getattr(digits, name))[:count]
        for name, count in (("x_train", 320), ("y_train", 320), ("x_val", 60), ("y_val", 60),
                            ("x_test", 100), ("y_test", 100))
    }  # fmt: skip
    return SimpleNamespace(**parts)


def trained(seed, x, y):
    """In place of training: the goldens' network, a little moved."""
    del x, y
    model = nnx.clone(golden_compress.network())
    move = lambda a: jax.device_put(np.asarray(a) + 0.02 * nets.normal(*a.shape, seed=seed))
    nnx.update(model, jax.tree.map(move, nnx.state(model)))
    return model


@compress.posed
def narrow(problem: compress.Problem, at=None) -> compress.Compressed:
    """In place of a method that searches: the widest of three small networks that fits."""
    widths = (2, 4, 8)
    made = [nets.filled(lambda w=w: models.MLP((64, w, 10), rngs=nnx.Rngs(0))) for w in widths]
    trials = [
        problem.trial(model, {"width": w, "at": at}) for model, w in zip(made, widths, strict=True)
    ]
    return problem.best(trials, "of three widths the best")


@pytest.fixture(autouse=True)
def cheap_methods(monkeypatch):
    """A method that searches nothing; two variants of one structure, so that little is compiled."""
    monkeypatch.setitem(compress.METHODS, "narrow", compress.Method(narrow, "small network"))
    for name in ("magnitude", "small_network"):
        own = compress.RECIPES[name]
        two = tuple({**own.variants[0], "learning_rate": rate} for rate in (1e-3, 1e-2))
        monkeypatch.setitem(compress.RECIPES, name, dataclasses.replace(own, variants=two))


def contest(data, path, seeds=(0,), progress=None, **settings):
    chosen = {"methods": ["small_network", "magnitude"], "budgets": ["2x"], **settings}
    return compress.pareto(
        trained, data, seeds=seeds, training=QUICK, ledger=path, progress=progress, **chosen
    )


ONE_SHOT = {"methods": ["narrow"], "tracks": ["one-shot"]}


@pytest.mark.slow
def test_points_are_true_of_their_files_and_a_second_call_makes_nothing_anew(small, tmp_path):
    path = tmp_path / "contest.jsonl"
    first = contest(small, path)
    lines = path.read_text().splitlines()
    for point in first.points:
        original = first.originals[0]
        assert point.original_accuracy == original["accuracy"]
        assert point.stored_bytes <= original["stored_bytes"] / 2
        assert point.ratio == original["stored_bytes"] / point.stored_bytes >= 2
        assert 0 <= point.accuracy <= 1
    tried = [json.loads(line)["row"] for line in lines if '"tried"' in line]
    assert [len(row["tried"]) for row in tried] == [2, 2]
    assert all(max(row["scores"]) == row["scores"][row["tried"].index(row["settings"])]
               for row in tried)  # fmt: skip
    again = contest(small, path)
    assert [p.as_dict() for p in again.points] == [p.as_dict() for p in first.points]
    assert path.read_text().splitlines() == lines


def test_an_interrupted_contest_goes_on_with_nothing_lost(small, tmp_path):
    path = tmp_path / "contest.jsonl"

    def stop(done, total, point):
        raise KeyboardInterrupt

    settings = {"budgets": ["4x", "8x"], **ONE_SHOT}
    with pytest.raises(KeyboardInterrupt):
        contest(small, path, progress=stop, **settings)
    before = path.read_text()
    seen = []
    result = contest(small, path, progress=lambda *a: seen.append(a), **settings)
    assert path.read_text().startswith(before)
    assert [done for done, *_ in seen] == [1, 2]
    straight = contest(small, None, **settings)
    assert [(p.budget, p.accuracy, p.stored_bytes) for p in result.points] == [
        (p.budget, p.accuracy, p.stored_bytes) for p in straight.points
    ]


def test_every_recipe_may_try_as_many_variants():
    names = {*compress.RECIPES, *compress.METHODS} - {"magnitude", "small_network"}  # see above
    assert {len(recipes.recipe(name).variants) for name in names} == {4}


def test_the_summary_has_mean_and_deviation_over_seeds(small):
    result = contest(small, None, seeds=(0, 1), **ONE_SHOT)
    (row,) = result.summary()
    values = [p.accuracy for p in result.points]
    assert row["seeds"] == 2
    assert row["accuracy"] == pytest.approx(np.mean(values))
    assert row["std"] == pytest.approx(np.std(values, ddof=1))
    lost = [p.original_accuracy - p.accuracy for p in result.points]
    assert row["lost"] == pytest.approx(np.mean(lost))


def test_a_budget_that_no_form_fits_is_a_row_with_a_note(small):
    result = contest(small, None, budgets=["500x"], **ONE_SHOT)
    (row,) = result.summary()
    assert row["accuracy"] is None
    assert "at least" in row["note"]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"tracks": ["two-shot"]}, "tracks among one-shot"),
        ({"methods": ["magic"]}, "a method among"),
        ({"methods": ["fisher"], "tracks": ["one-shot"]}, "one-shot methods among"),
        ({"budgets": ["30y"]}, "x, B, kB"),
        ({"budgets": []}, "budgets as a list"),
        ({"seeds": ()}, "seeds as a list"),
        ({"seeds": 3}, "seeds as a list"),
        ({"methods": []}, "methods as a list"),
        ({"methods": "magnitude"}, "methods as a list"),
        ({"tracks": ()}, "tracks as a list"),
        ({"tracks": "one-shot"}, "tracks as a list"),
        ({"tune_at": ()}, "tune_at as a list"),
        ({"value_bits": ()}, "value_bits as a list"),
    ],
)
def test_wrong_settings_are_one_clear_error_before_anything_runs(small, wrong, words):
    with pytest.raises(ValueError, match=words):
        contest(small, None, **wrong)


def test_another_contest_is_not_mixed_in(small, tmp_path):
    path = tmp_path / "contest.jsonl"
    contest(small, path, **ONE_SHOT)
    other = SimpleNamespace(**{**vars(small), "x_train": small.x_train[:200],
                               "y_train": small.y_train[:200]})  # fmt: skip
    with pytest.raises(ValueError, match="other data"):
        contest(other, path, **ONE_SHOT)


def test_seeds_as_lanes_are_points_of_the_same_contest(small, tmp_path):
    path = tmp_path / "contest.jsonl"
    settings = {"methods": ["magnitude"], "tracks": ["label-free"]}
    together = contest(small, path, seeds=(0, 1), lanes=True, **settings)
    assert [p.seed for p in together.points] == [0, 1]
    for point in together.points:
        original = together.originals[point.seed]
        assert point.original_accuracy == original["accuracy"]
        assert point.stored_bytes <= original["stored_bytes"] / 2
        assert "distillation" in point.settings["finetuned"]
    # Both were made at once, and one after another they come out much the same.
    assert together.points[0].seconds == together.points[1].seconds
    alone = contest(small, None, seeds=(0, 1), lanes=False, **settings)
    for one, other in zip(together.points, alone.points, strict=True):
        assert abs(one.accuracy - other.accuracy) < 0.15
    # What is in the ledger is not made again, with or without lanes.
    again = contest(small, path, seeds=(0, 1), lanes=False, **settings)
    assert [p.as_dict() for p in again.points] == [p.as_dict() for p in together.points]


def test_a_span_bounds_what_the_koopman_methods_replace(small, tmp_path, monkeypatch):
    path, cut, made = tmp_path / "contest.jsonl", "layers.0/relu", []
    monkeypatch.setitem(compress.METHODS, "koopman", compress.Method(narrow, "koopman"))
    own = compress.RECIPES["koopman"]
    few = dataclasses.replace(own, variants=({"learning_rate": 1e-2, "coordinates": 4},))

    def spanned(ledger, at, tracks, methods=("koopman", "narrow")):
        return compress.pareto(
            trained, small, methods, ["1.2x"], at=at, tracks=[tracks], training=QUICK,
            recipes={"koopman": few}, ledger=ledger,
            keep=lambda point, compressed: made.append(compressed.model),
        )  # fmt: skip

    told, untold = spanned(path, cut, "one-shot").points
    assert (told.settings["at"], untold.settings["at"]) == (cut, None)
    spanned(path, (cut, "output"), "fine-tuned", ["koopman"])
    # What lies before the span is still the network's first layer.
    shapes = sorted(np.shape(array[...]) for array in made[-1].head.parameters.values())
    assert shapes == [(24,), (64, 24)]
    with pytest.raises(ValueError, match="contest"):
        spanned(path, None, "one-shot")
    with pytest.raises(ValueError, match=r"layers\.7"):
        spanned(None, "layers.7", "one-shot", ["narrow"])


def student():
    """One that has its size from the start."""
    return nets.filled(lambda: models.MLP((64, 4, 10), rngs=nnx.Rngs(0)))


def test_variants_that_differ_in_how_they_train_share_where_they_start(small):
    made = []

    def start(problem, key, **settings):
        made.append(settings)
        return student()

    variants = [{"bottleneck": b, "learning_rate": r} for b in (1.0, 2.0) for r in (1e-3, 1e-2)]
    own = compress.Recipe("small network", start, None, tuple(variants))
    contest(small, None, methods=["mine"], recipes={"mine": own})
    assert made[:2] == [{"bottleneck": 1.0}, {"bottleneck": 2.0}]
    assert len(made) == 3  # and the chosen one, from the network of all samples


def test_a_variant_that_is_too_large_leaves_the_others(small, network):
    def start(problem, key, *, width):
        if width is None:
            return student()
        raise too_small("mine", problem.limit, 10 * width, problem.original_bytes)

    def run(*widths):
        variants = tuple({"width": width, "learning_rate": 1e-2} for width in widths)
        own = compress.Recipe("small network", start, None, variants)
        (point,) = contest(small, None, methods=["mine"], recipes={"mine": own}).points
        call = functools.partial(
            compress.finetuned, "mine", network, small.x_train,
            "2x", labels=small.y_train, validation=(small.x_val, small.y_val), how=own,
            training=QUICK, key=jax.random.key(0),
        )  # fmt: skip
        return point, call

    point, call = run(900, None, 800)
    assert point.accuracy is not None
    assert call().report.settings["width"] is None
    point, call = run(900, 800)
    assert point.accuracy is None
    assert "at least 8000 bytes" in point.note
    assert "for mine" in point.note
    with pytest.raises(compress.BudgetTooSmall, match="at least 8000 bytes") as error:
        call()
    assert error.value.smallest == 8000


def test_a_variant_may_name_its_saliency(small, monkeypatch):
    asked = []

    def noted(students, *_, goals, **named):
        asked.append(goals[0].saliency)
        return students

    monkeypatch.setattr(recipes, "train_students", noted)
    own = compress.Recipe(
        "pruning", lambda problem, key: student(), "fisher",
        ({"saliency": "lamp"}, {"saliency": "magnitude"}, {"learning_rate": 1e-3}),
    )  # fmt: skip
    result = contest(small, None, methods=["mine"], recipes={"mine": own})
    (settings,) = result.variants.values()
    assert asked == ["lamp", "magnitude", "fisher", settings.get("saliency", "fisher")]


def test_a_ledger_belongs_to_the_model_that_was_given(small, network, tmp_path):
    first, second = network, trained(1, None, None)
    run = lambda model: compress.pareto(
        model, small, budgets=["4x"], ledger=tmp_path / "ledger.jsonl", **ONE_SHOT
    )
    assert run(first).points == run(first).points
    with pytest.raises(ValueError, match="other model"):
        run(second)


def test_what_was_made_with_variants_that_are_no_more_is_made_anew(small, tmp_path):
    def run(rate, settings=()):
        own = compress.Recipe(
            "small network", lambda problem, key: student(), None,
            ({"learning_rate": rate, **dict(settings)},),
        )  # fmt: skip
        made = []
        result = contest(
            small, tmp_path / "ledger.jsonl", methods=["mine"], recipes={"mine": own},
            keep=lambda *one: made.append(one),
        )  # fmt: skip
        return result.points[0].settings["learning_rate"], len(made)

    assert run(1e-3) == (1e-3, 1)
    assert run(1e-3) == (1e-3, 0)
    assert run(1e-2) == (1e-2, 1)
    assert run(1e-2) == (1e-2, 0)


def test_a_span_is_nothing_to_conventional_methods(small, network):
    svd = {"methods": ["svd"], "tracks": ["one-shot"]}
    whole, spanned = (
        compress.pareto(network, small, budgets=["2x"], at=at, **svd).points[0].as_dict()
        for at in (None, ("layers.0/relu", "output"))
    )
    assert {**whole, "seconds": 0} == {**spanned, "seconds": 0}


def test_settings_are_chosen_at_the_own_budget_where_there_is_no_form_at_the_other(small):
    def start(problem, key):
        if problem.limit < 1000:
            raise too_small("mine", problem.limit, 1000, problem.original_bytes)
        return student()

    own = compress.Recipe("small network", start, None)
    result = contest(small, None, methods=["mine"], recipes={"mine": own}, tune_at=["1000x"])
    assert result.points[0].accuracy is not None
    assert list(result.variants) == [("fine-tuned", "mine", "2x")]


def test_a_method_that_does_not_take_the_model_is_a_row_with_a_note(small):
    class Own(linen.Module):
        @linen.compact
        def __call__(self, x):
            return linen.Dense(10)(linen.relu(linen.Dense(16)(x)))

    module = Own()
    pair = (module, nets.linen_filled(module, small.x_train[:1]))
    result = compress.pareto(pair, small, ["svd", "narrow"], ["2x"], tracks=["one-shot"])
    svd, other = result.points
    assert svd.accuracy is None
    assert "a Linen Own" in svd.note
    assert other.accuracy is not None


def test_nan_in_the_test_data_is_refused(small):
    broken = SimpleNamespace(**{**vars(small), "x_test": np.full_like(small.x_test, np.nan)})
    with pytest.raises(ValueError, match="x_test"):
        contest(broken, None, **ONE_SHOT)


def test_the_same_seed_or_budget_twice_counts_once(small, tmp_path):
    path = tmp_path / "ledger.jsonl"
    result = contest(small, path, seeds=np.asarray([0, 1, 0]), budgets=["4x", "4.0x"], **ONE_SHOT)
    assert [(p.budget, p.seed) for p in result.points] == [("4x", 0), ("4x", 1)]
    assert list(contest(small, path, **ONE_SHOT).originals) == [0]


def test_the_summary_says_for_how_many_networks_there_is_no_form():
    one = compress.Point("one-shot", "svd", "9x", 0, "factorising", 0.5, 9.1, 10, 2, 0.9, 4.0)
    none = dataclasses.replace(
        one, seed=1, accuracy=None, ratio=None, stored_bytes=None, seconds=0.0, note="too small"
    )
    (row,) = compress.Pareto([one, none], {}, {}).summary()
    assert row["seeds"] == 1
    assert row["note"] == "none for 1 of 2 networks: too small"
    assert row["seconds"] == 4.0


def test_few_bits_give_room_once(small, network, monkeypatch):
    rooms = []

    def begin(problem, key):
        rooms.append(problem.limit)
        return student()

    own = compress.Recipe("small network", begin, None)
    monkeypatch.setattr(recipes, "train_students", lambda students, *_, **how: students)
    compress.pareto(
        network, small, ["mine"], ["4x"], tracks=["any-bits"], value_bits=[7.0],
        recipes={"mine": own}, training=QUICK,
    )  # fmt: skip
    assert rooms[-1] == int(export.stored_bytes(network) // 4 * 32 / 8)
