"""The ledger: whole rows survive, half a row does not, another run is refused."""

import json

import pytest

from koopjax._core import Ledger

CONTEST = {"data": [1, 2.5], "training": {"epochs": 3}}


def filled(path):
    with Ledger(path, CONTEST) as rows:
        rows.add("point", {"method": "a", "seed": 0, "accuracy": 0.1 + 0.2})
        rows.add("point", {"method": "a", "seed": 1, "accuracy": None})
        rows.add("variant", {"method": "a", "settings": {"rate": 1e-3}})
    return path.read_bytes()


def test_rows_come_back_by_their_fields(tmp_path):
    filled(tmp_path / "deep" / "rows.jsonl")
    with Ledger(tmp_path / "deep" / "rows.jsonl", json.loads(json.dumps(CONTEST))) as rows:
        assert rows.find("point", method="a", seed=0)["accuracy"] == 0.1 + 0.2
        assert rows.find("point", method="b") is None
        assert rows.of("variant") == [{"method": "a", "settings": {"rate": 1e-3}}]


def test_a_file_cut_off_anywhere_goes_on_from_its_last_whole_row(tmp_path):
    whole = filled(tmp_path / "rows.jsonl")
    ends = [k + 1 for k, byte in enumerate(whole) if byte == ord("\n")]
    for size in range(0, len(whole), 7):
        path = tmp_path / "cut.jsonl"
        path.write_bytes(whole[:size])
        with Ledger(path, CONTEST) as rows:
            found = len(rows.of("point")) + len(rows.of("variant"))
            assert found == max(sum(end <= size for end in ends) - 1, 0)
            rows.add("point", {"method": "new"})
        with Ledger(path, CONTEST) as rows:
            assert rows.find("point", method="new")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (json.dumps({"contest": {**CONTEST, "data": [3]}}) + "\n", "one with other data"),
        ("no json at all\n", "line 1 that is no JSON"),
        ("[1, 2]\n", "a file of another kind"),
        ("half a line of something else", "a file of another kind"),
    ],
)
def test_another_file_is_refused_and_left_alone(tmp_path, content, words):
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match=words):
        Ledger(path, CONTEST)
    assert path.read_text() == content


def test_without_a_path_rows_stay_in_memory():
    with Ledger(None, CONTEST) as rows:
        rows.add("point", {"seed": 1})
        assert rows.of("point") == [{"seed": 1}]


def test_two_runs_cannot_write_to_one_file(tmp_path):
    path = tmp_path / "ledger.jsonl"
    with Ledger(path, {"a": 1}) as rows:
        rows.add("point", {"x": 1})
        with pytest.raises(ValueError, match="another run that is writing"):
            Ledger(path, {"a": 1})
    with Ledger(path, {"a": 1}) as again:
        assert again.of("point") == [{"x": 1}]
