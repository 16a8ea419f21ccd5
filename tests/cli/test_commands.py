"""The commands on real digits, at small settings."""

import itertools
import json

import click.testing
import numpy as np
import pytest
from flax import nnx

from koopjax import data, export, models
from koopjax.cli import main


def koopjax(*arguments):
    result = click.testing.CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code == 0, (result.stderr, result.exception)
    return result


@pytest.fixture(scope="module")
def trained(tmp_path_factory, few_digits):
    """Folder of `koopjax train --epochs 30` and its results."""
    out = tmp_path_factory.mktemp("train")
    shown = koopjax("train", "--epochs", 30, "--seed", 1, "--out", out, "--json", "-")
    return out, json.loads(shown.stdout), shown


def model_of(folder):
    (path,) = folder.glob("*.koopjax")
    return path


def test_train_saves_a_model_that_scores_what_it_says(trained):
    out, results, shown = trained
    path = model_of(out)
    test = data.load("digits").flat()
    accuracy = models.accuracy(export.load(path), test.x_test, test.y_test)
    assert results["original"]["accuracy"] == pytest.approx(accuracy)
    assert accuracy > 0.8
    assert results["original"]["stored_bytes"] == path.stat().st_size
    sizes = results["model"]["config"]["sizes"]
    pairs = itertools.pairwise(sizes)
    assert results["original"]["parameters"] == sum(a * b + b for a, b in pairs)
    assert len(results["history"]) == 30
    assert json.loads(path.with_suffix(".json").read_text()) == results
    assert {p.name for p in out.iterdir()} == {path.name, path.with_suffix(".json").name}
    assert str(path) in shown.stderr.replace("\n", "")


def test_cuts_of_a_fresh_and_of_a_saved_model(trained):
    fresh = json.loads(koopjax("cuts", "--json", "-").stdout)
    saved = json.loads(koopjax("cuts", "--model", model_of(trained[0]), "--json", "-").stdout)
    assert fresh == saved
    names = [cut["name"] for cut in fresh]
    assert "layers.0/relu" in names
    assert fresh[-1]["shape"] == [10]
    assert fresh[-1]["parameters_before"] == trained[1]["original"]["parameters"]
    table = koopjax("cuts", "--architecture", "cnn").stdout
    assert "convs.0" in table


def test_analyze_writes_the_contracts_results(trained, tmp_path):
    folder, before, _ = trained
    koopjax(
        "analyze", "--model", model_of(folder), "--dictionaries", "affine", "--ranks", "4,10",
        "--from", "layers.1/relu", "--to", "layers.2/relu", "--tolerance", "0.02", "--seed", 1,
        "--out", tmp_path, "--json", tmp_path / "copy.json",
    )  # fmt: skip
    results = json.loads((tmp_path / "results.json").read_text())
    assert json.loads((tmp_path / "copy.json").read_text()) == results
    assert results["dataset"] == "digits"
    assert results["seed"] == 1
    assert results["original"]["accuracy"] == pytest.approx(before["original"]["accuracy"])
    assert results["original"]["stored_bytes"] == before["original"]["stored_bytes"]
    assert results["span"] == {"start": "layers.1/relu", "stop": "layers.2/relu"}
    rows = {(r["dictionary"], r["rank"], r["truncation"]): r for r in results["replaced"]}
    assert {("identity", None, "none"), ("mean", None, "none"), ("affine", None, "none"),
            ("affine", 4, "svd"), ("affine", 10, "output")} <= set(rows)  # fmt: skip
    for row in results["replaced"]:
        assert 0 <= row["accuracy"] <= 1
        assert row["stored_bytes"] > 0
    assert rows["mean", None, "none"]["accuracy"] < 0.3
    assert rows["affine", None, "none"]["agreement"] > 0.7
    assert np.sum(results["confusion"]["original"]) == results["data"]["test"]
    correct = np.trace(results["confusion"]["original"]) / results["data"]["test"]
    assert correct == pytest.approx(results["original"]["accuracy"])
    shown = results["disagreements"]
    agreement = rows[shown["dictionary"], None, "none"]["agreement"]
    assert shown["count"] == round((1 - agreement) * shown["of"])
    assert all(e["original"] != e["replaced"] for e in shown["examples"])
    page = (tmp_path / "report.html").read_text()
    assert results["sentence"].replace("'", "&#39;") in page
    assert page.count("<svg") >= 3


def test_compress_saves_what_fits_the_budget_and_measures_what_it_saved(tmp_path):
    model = tmp_path / "small.koopjax"
    original = export.save(models.MLP((64, 10, 10, 10), rngs=nnx.Rngs(0)), model)
    result = koopjax(
        "compress", "--model", model, "--budget", "2x", "--budget", "1.5KiB",
        "--methods", "wanda,magnitude", "--out", tmp_path, "--json", "-",
    )  # fmt: skip
    results = json.loads(result.stdout)
    assert results["original"]["stored_bytes"] == original
    assert [(r["method"], r["budget"]) for r in results["compressed"]] == [
        ("wanda", "2x"), ("magnitude", "2x"), ("wanda", "1536 B"), ("magnitude", "1536 B"),
    ]  # fmt: skip
    test = data.load("digits").flat()
    for row in results["compressed"]:
        path = tmp_path / row["path"]
        assert path.stat().st_size == row["stored_bytes"]
        assert row["stored_bytes"] <= (original / 2 if row["budget"] == "2x" else 1536)
        assert row["ratio"] == pytest.approx(original / row["stored_bytes"])
        assert row["finetuned"] is False
        assert row["accuracy"] == pytest.approx(
            models.accuracy(export.load(path), test.x_test, test.y_test)
        )
    assert "magnitude" in (tmp_path / "report.html").read_text()
    koopjax("report", tmp_path, "--out", tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text() == (tmp_path / "report.html").read_text()


def refused(*arguments):
    result = click.testing.CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code == 2
    assert len([line for line in result.stderr.splitlines() if line.strip()]) == 1
    return result.stderr


def test_unknown_cuts_and_models_that_do_not_fit_are_refused(trained, tmp_path):
    path = model_of(trained[0])
    line = refused("analyze", "--model", path, "--from", "layer.0/relu", "--out", tmp_path)
    assert "layers.0/relu" in line
    assert "--from, --to" in line
    backwards = refused(
        "analyze", "--model", path, "--from", "layers.2", "--to", "layers.0", "--out", tmp_path
    )
    assert "layers.2" in backwards
    broken = tmp_path / "broken.koopjax"
    broken.write_bytes(path.read_bytes()[:-40])
    assert "broken.koopjax" in refused("cuts", "--model", broken)
    assert "expected 1 with --model" in refused("analyze", "--model", path, "--seeds", 2)
    other = tmp_path / "wide.koopjax"
    export.save(models.MLP((9, 4, 10), rngs=nnx.Rngs(0)), other)
    assert "does not take images of digits" in refused("cuts", "--model", other)


def test_a_network_in_the_folder_is_taken_again(tmp_path, monkeypatch, no_figures):
    koopjax("train", "--epochs", 2, "--out", tmp_path)
    before = model_of(tmp_path).read_bytes()

    def again(*_, **__):
        raise AssertionError("trained although the file is there")

    monkeypatch.setattr("koopjax.models.train", again)
    koopjax(
        "compress", "--epochs", 2, "--budget", "1x", "--methods", "magnitude", "--out", tmp_path
    )
    (kept,) = (p for p in tmp_path.glob("*.koopjax") if "magnitude" not in p.name)
    assert kept.read_bytes() == before


def test_an_interrupted_training_goes_on(tmp_path, monkeypatch):
    whole = json.loads(
        koopjax("train", "--epochs", 4, "--out", tmp_path / "a", "--json", "-").stdout
    )
    train = models.train

    def cut_short(*arguments, progress, **settings):
        def stop(epoch, metrics):
            progress(epoch, metrics)
            if epoch == 2:
                raise KeyboardInterrupt

        return train(*arguments, progress=stop, **settings)

    monkeypatch.setattr("koopjax.models.train", cut_short)
    first = click.testing.CliRunner().invoke(
        main, ["train", "--epochs", "4", "--out", str(tmp_path / "b")]
    )
    assert first.exit_code == 130
    assert not list((tmp_path / "b").glob("*.koopjax"))
    monkeypatch.setattr("koopjax.models.train", train)
    told = json.loads(
        koopjax("train", "--epochs", 4, "--out", tmp_path / "b", "--json", "-").stdout
    )
    assert told["history"] == whole["history"]
    assert model_of(tmp_path / "b").read_bytes() == model_of(tmp_path / "a").read_bytes()


@pytest.mark.slow
def test_the_demo_tells_the_whole_story(tmp_path, whole_digits):
    result = koopjax("demo", "--out", tmp_path, "--json", "-")
    results = json.loads(result.stdout)
    assert len(results["seeds"]) == 5
    assert results["original"]["accuracy"] >= 0.965
    rows = {row["dictionary"]: row for row in results["replaced"] if row["rank"] is None}
    assert rows["degree 2"]["accuracy"] >= results["original"]["accuracy"] - 0.003
    assert rows["identity"]["accuracy"] < 0.4
    assert "A smaller Flax model on disk, loaded again and measured" in result.stderr
    assert (tmp_path / results["best"]["path"]).stat().st_size == results["best"]["stored_bytes"]
    assert results["best"]["ratio"] >= 8
