"""The two benchmarks of spans run from end to end on digits, in a small setting."""

import importlib.util
import json
import pathlib
import sys

import pytest

FOLDER = pathlib.Path(__file__).parents[2] / "benchmarks"


def load(name, monkeypatch):
    """A benchmark as a module."""
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_koopman_matrix(tmp_path, monkeypatch):
    """Files fit their budgets, entries lose less than rows, and a second run does nothing."""
    module = load("koopman_matrix", monkeypatch)
    for name, value in (("SCREENED", 300), ("ROWS", 100), ("METRICS", ((3.0, 0.03),)),
                        ("RIDGES", {"magnitude": (1e-2,), "obs": (1e-3,)}),
                        ("SHARES", (1.0, 0.1))):  # fmt: skip
        monkeypatch.setattr(module, name, value)
    command = ["koopman_matrix", "--dataset", "digits", "--seeds", "1", "--budgets", "10,20"]
    monkeypatch.setattr(sys, "argv", [*command, "--out", str(tmp_path)])
    module.main()
    path = tmp_path / "koopman_matrix_digits.json"
    results = json.loads(path.read_text())
    (seed,) = results["seeds"]
    for row in seed["rows"]:
        assert row["stored_bytes"] <= seed["span_bytes"] // row["budget"]
        assert row["span_ratio"] >= row["budget"]
    lost = {(r["form"], r["budget"]): r["points_lost"] for r in results["summary"]}
    assert lost["entries", 10] <= lost["backward", 10] + 1
    assert lost["entries", 10] < 5
    assert seed["curves"]["obs"][1] > seed["curves"]["magnitude"][1] - 0.02
    before = path.stat().st_mtime_ns
    module.main()
    assert path.stat().st_mtime_ns == before


@pytest.mark.slow
def test_residual_mlp(tmp_path, monkeypatch):
    """The block takes less than a fifth of what it replaces; distillation makes it no worse."""
    module = load("residual_mlp", monkeypatch)
    command = ["residual_mlp", "--dataset", "digits", "--seeds", "1", "--width", "64", "--rank"]
    command += ["8", "--epochs", "40", "--distil-epochs", "10", "--copies", "1"]
    monkeypatch.setattr(sys, "argv", [*command, "--out", str(tmp_path)])
    module.main()
    results = json.loads((tmp_path / "residual_mlp_digits.json").read_text())
    closed, distilled = results["seeds"][0]["rows"]
    assert (closed["form"], distilled["form"]) == ("closed form", "distilled")
    assert closed["share_of_replaced"] < 0.2
    assert distilled["points_lost"] <= closed["points_lost"] + 1
    assert results["seeds"][0]["accuracy"] > 0.5
