"""Tables: choosing, averaging, laying out on a plane, writing down."""

import csv
import json
import math

import numpy as np
import pytest

from koopjax.sweep import Table


@pytest.fixture
def table():
    rows = [
        {
            "rank": rank,
            "seed": seed,
            "accuracy": 0.9 - 0.1 / rank + 0.01 * seed,
            "numbers": 5 * rank,
        }
        for rank in (1, 2, 4)
        for seed in (0, 1)
    ]
    return Table(rows, ("rank", "seed"))


def test_best(table):
    assert table.best("accuracy", "maximum")["rank"] == 4
    assert table.best("accuracy")["rank"] == 1
    close = table.best("accuracy", "maximum", within=0.03, least=("numbers", "seed"))
    assert (close["rank"], close["seed"]) == (2, 1)
    far = table.best("accuracy", "maximum", within=1.0, least="numbers")
    assert far["rank"] == 1
    assert Table([{"e": math.nan}, {"e": 1.0}]).best("e")["e"] == 1.0


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        (("nothing",), {}, "a column among"),
        (("accuracy", "top"), {}, "a direction in"),
        (("accuracy",), {"within": 0.1}, "within= and least= together"),
        (("accuracy",), {"within": -1, "least": "numbers"}, "at least 0"),
    ],
)
def test_best_of_what_is_not_there(table, arguments, settings, message):
    with pytest.raises(ValueError, match=message):
        table.best(*arguments, **settings)
    with pytest.raises(ValueError, match="NaN in every row"):
        Table([{"e": math.nan}]).best("e")


def test_mean_over(table):
    mean = table.mean_over("seed")
    assert mean.axes == ("rank",)
    assert [row["count"] for row in mean] == [2, 2, 2]
    assert mean["accuracy"] == pytest.approx([0.805, 0.855, 0.88])
    assert mean["accuracy_std"] == pytest.approx(np.std([0, 0.01], ddof=1) * np.ones(3))
    with pytest.raises(ValueError, match="an axis among"):
        table.mean_over("accuracy")


def test_mean_keeps_the_gravest_code():
    rows = [{"a": 0, "result": 0}, {"a": 1, "result": 2}]
    assert Table(rows, ("a",)).mean_over("a")["result"].tolist() == [2]


def test_pivot(table):
    plane = table.pivot("rank", "seed", "accuracy")
    assert (plane.rows, plane.columns, plane.shape) == ((1, 2, 4), (0, 1), (3, 2))
    assert np.asarray(plane)[2, 1] == pytest.approx(0.885)
    some = Table(table.rows[:3], table.axes).pivot("rank", "seed", "accuracy")
    assert np.isnan(some.values[1, 1])
    with pytest.raises(ValueError, match="one row for each"):
        table.pivot("rank", "rank", "accuracy") and table.pivot("numbers", "rank", "accuracy")


def test_files(table, tmp_path):
    table.rows[0]["accuracy"] = math.nan
    table.rows[1]["accuracy"] = math.inf
    text = table.to_json(tmp_path / "deep" / "t.json")
    read = json.loads((tmp_path / "deep" / "t.json").read_text())
    assert read == json.loads(text)
    assert read["axes"] == ["rank", "seed"]
    assert read["rows"][0]["accuracy"] is None
    back = Table.from_json(tmp_path / "deep" / "t.json")
    assert back.rows[2:] == table.rows[2:]
    assert math.isnan(back.rows[0]["accuracy"])
    table.to_csv(tmp_path / "t.csv")
    with open(tmp_path / "t.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    assert float(rows[3]["accuracy"]) == table.rows[3]["accuracy"]
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(ValueError, match="a table that to_json wrote"):
        Table.from_json(tmp_path / "other.json")


def test_arrays_in_json():
    table = Table([{"a": 1}], ("a",), {"k": [np.asarray([1.0, np.nan])]})
    assert table.to_dict(arrays=True)["arrays"] == {"k": [[1.0, None]]}
    assert "arrays" not in table.to_dict()


def test_text_and_parts(table):
    lines = str(table).splitlines()
    assert len(lines) == 7
    assert lines[0].split() == ["rank", "seed", "accuracy", "numbers"]
    long = Table([{"i": i} for i in range(100)], ("i",))
    assert len(str(long).splitlines()) == 42
    assert table.where(rank=2)["seed"].tolist() == [0, 1]
    assert len(table) == 6
