"""What was stored once still reads: models in `files/`, and the ledgers of the benchmarks."""

import collections
import dataclasses
import functools
import json
import pathlib
import types

import numpy as np
import pytest

from koopjax import compress, export, nn, observables
from tests.goldens import files

LEDGERS = sorted((pathlib.Path(__file__).parents[2] / "benchmarks" / "results").glob("*.jsonl"))

CLOSE = 1e-5  # of the greatest magnitude

outputs = functools.cache(files.read_outputs)


@pytest.mark.parametrize("name", files.CASES)
def test_a_file_reads_and_gives_what_it_gave(name, tmp_path):
    case, path = files.CASES[name], files.path(name)
    loaded = case.load(path)
    want = outputs()[name]
    found = files.result(case, loaded)
    assert (found.dtype, found.shape) == (want.dtype, want.shape)
    if want.dtype.kind in "fc":
        close = CLOSE * np.max(np.abs(want))
        assert close > 0
        np.testing.assert_allclose(found, want, rtol=0, atol=close, strict=True)
    else:
        np.testing.assert_array_equal(found, want)
    size = export.save(loaded, tmp_path / "again.koopjax")
    assert abs(size - path.stat().st_size) <= case.slack
    if case.forms:
        described = export.describe(path)
        assert tuple(array.form for array in described.arrays) == case.forms


def test_there_is_a_small_file_and_an_output_for_every_case():
    held = {path.stem: path.stat().st_size for path in files.FOLDER.glob("*.koopjax")}
    assert sorted(held) == sorted(files.CASES)
    assert sorted(outputs()) == sorted([*files.CASES, "input", "images"])
    assert max(held.values()) <= files.LARGEST
    np.testing.assert_array_equal(outputs()["input"], files.X)
    np.testing.assert_array_equal(outputs()["images"], files.IMAGES)


def test_nothing_that_a_file_can_name_is_left_out():
    blocks = [name for name in files.CASES if name.startswith(("block", "stack", "array"))]
    described = [export.describe(files.path(name)) for name in blocks]
    named = str([d.architecture for d in described])
    kinds = (observables.Observables, observables.Univariate)
    classes = [getattr(observables, name) for name in observables.__all__]
    for cls in classes:
        if isinstance(cls, type) and issubclass(cls, kinds) and cls not in kinds:
            assert f"'{cls.__name__}'" in named or cls.__name__ == "Custom", cls
    assert all(f"'{name}'" in named for name in nn.ACTIVATIONS)
    assert all(any(case.startswith(f"operator_{f}") for case in files.CASES) for f in nn.OPERATORS)
    forms = {array.form for d in described for array in d.arrays}
    assert len(forms) == 14  # all but "same", which tied models have
    dtypes = next(d for d in described if len(d.arrays) > len(files.DTYPES))
    assert {array.dtype for array in dtypes.arrays} == set(files.DTYPES)


def test_files_are_kept_unless_asked():
    with pytest.raises(SystemExit, match="must read for all time"):
        files.main(["stack"], anew=False)


DATA = types.SimpleNamespace(
    **{f"x_{part}": np.ones((2, 3), np.float32) for part in ("train", "val", "test")},
    **{f"y_{part}": np.array([0, 1]) for part in ("train", "val", "test")},
)


class Missing(Exception):
    """A contest trains what its ledger does not hold."""


def never(seed, x, y):
    raise Missing(f"seed {seed} was not read")


@pytest.mark.parametrize("path", LEDGERS, ids=lambda path: path.stem)
def test_a_contest_goes_on_from_the_ledgers_of_the_benchmarks(path, tmp_path):
    first, *lines = path.read_text(encoding="utf-8").splitlines()
    contest = json.loads(first)["contest"]
    assert {"data", "training", "tuning"} <= contest.keys()
    for name in ("training", "tuning"):
        assert dataclasses.asdict(compress.Training(**contest[name])) == contest[name]
    rows = collections.defaultdict(list)
    for line in lines:
        entry = json.loads(line)
        rows[entry["kind"]].append(entry["row"])
    assert rows.keys() == {"original", "variant", "point"}
    assert all(compress.Point(**row).as_dict() == row for row in rows["point"])

    # The rows behind the first line of a contest that has nothing to train with.
    ledger = tmp_path / path.name
    with pytest.raises(Missing):
        compress.pareto(never, DATA, ["magnitude"], ledger=ledger)
    with ledger.open("a", encoding="utf-8") as file:
        file.write("\n".join([*lines, ""]))
    tried = collections.defaultdict(list)
    for row in rows["variant"]:
        for variant in row["tried"]:
            plain = {key: value for key, value in variant.items() if key != "value_bits"}
            if plain not in tried[row["method"]]:
                tried[row["method"]].append(plain)
    families = {row["method"]: row["family"] for row in rows["point"]}
    recipes = {
        name: compress.Recipe(families[name], variants=tuple(variants))
        for name, variants in tried.items()
    }
    points, seeds = {}, collections.defaultdict(list)
    for row in rows["point"]:
        key = row["track"], row["method"], row["budget"]
        points[*key, row["seed"]] = row
        seeds[key].append(row["seed"])
    budgets, methods = collections.defaultdict(list), collections.defaultdict(list)
    for (track, method, budget), of in seeds.items():
        budgets[track, method, tuple(dict.fromkeys(of))].append(budget)
    for (track, method, of), sizes in budgets.items():
        methods[track, of, tuple(sizes)].append(method)
    chosen = {(r["track"], r["method"], r["budget"]): r["settings"] for r in rows["variant"]}
    for (track, of, sizes), names in methods.items():
        found = compress.pareto(
            never, DATA, names, sizes, of, tracks=[track], recipes=recipes, ledger=ledger
        )
        for point in found.points:
            key = point.track, point.method, point.budget, point.seed
            assert point.as_dict() == points.pop(key)
        assert found.originals == {r["seed"]: r for r in rows["original"] if r["seed"] in of}
        assert found.variants == {key: s for key, s in chosen.items() if s is not None}
        assert len(found.summary()) == len(names) * len(sizes)
    assert not points
