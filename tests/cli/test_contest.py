"""`koopjax compress` with tracks and seeds: a contest that goes on where it was interrupted."""

import dataclasses
import json
import statistics

import click.testing
import jax
import numpy as np
import pytest
from flax import nnx

from koopjax import compress, data, export, models
from koopjax.cli import main
from koopjax.cli._compress import contest_sentence
from koopjax.cli._results import merged


def run(*arguments):
    return click.testing.CliRunner().invoke(main, [str(a) for a in arguments])


def koopjax(*arguments):
    result = run(*arguments)
    assert result.exit_code == 0, (result.stderr, result.exception)
    return result


@pytest.fixture(scope="module")
def model(tmp_path_factory, few_digits):
    """File of a small network."""
    digits = data.load("digits").flat()
    made = models.train(
        models.MLP((64, 10, 10, 10), rngs=nnx.Rngs(0)), digits.x_train, digits.y_train,
        key=jax.random.key(0), epochs=20, batch_size=64, learning_rate=1e-2,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("contest") / "small.koopjax"
    export.save(made.model, path)
    return path


@pytest.fixture
def calls(monkeypatch):
    """Two methods that begin with a pruned network; the list of what they were asked for."""
    asked = []

    def begin(problem, key):
        asked.append((problem.method, len(problem.x), problem.y is not None))
        pruned = nnx.clone(problem.model)
        for layer in pruned.layers:
            size = np.abs(layer.kernel[...])
            layer.kernel[...] = layer.kernel[...] * (size > np.quantile(size, 0.75))
        return pruned

    for name in ("fisher", "magnitude"):
        monkeypatch.setitem(compress.RECIPES, name, compress.Recipe("pruning", begin, None))
    return asked


CONTEST = ("--methods", "fisher,magnitude", "--budget", "2x", "--finetune-epochs", 2, "--seeds", 2)


def test_a_contest_writes_rows_over_seeds_files_and_a_report(model, calls, tmp_path):
    shown = koopjax(
        "compress", "--model", model, "--tracks", "label-free,fine-tuned", *CONTEST,
        "--out", tmp_path, "--json", "-",
    )  # fmt: skip
    results = json.loads(shown.stdout)
    rows = results["compressed"]
    order = [(t, m) for t in ("label-free", "fine-tuned") for m in ("fisher", "magnitude")]
    assert [(r["track"], r["method"]) for r in rows] == order
    assert [r["finetuned"] for r in rows] == [False, False, True, True]
    digits = data.load("digits").flat()
    size = model.stat().st_size
    for row in rows:
        scores = []
        for name in row["paths"]:
            path = tmp_path / name
            assert path.stat().st_size <= size / 2
            scores.append(models.accuracy(export.load(path), digits.x_test, digits.y_test))
        assert scores == pytest.approx(row["accuracies"])
        assert row["accuracy"] == pytest.approx(statistics.mean(scores))
        assert row["accuracy_std"] == pytest.approx(statistics.stdev(scores))
        assert row["seeds"] == [0, 1]
        assert row["ratio"] == pytest.approx(size / row["stored_bytes"], rel=1e-2)
    assert results["original"]["stored_bytes"] == size
    assert len(results["pareto"]["points"]) == 8
    assert results["pareto"]["originals"].keys() == {"0", "1"}
    few, every = len(digits.y_train), len(digits.y_train) + len(digits.y_val)
    asked = [(n, labelled) for labelled in (False, True) for n in (few, every, every)]
    assert sorted(calls) == sorted((m, *one) for m in ("fisher", "magnitude") for one in asked)
    assert "2 epochs of batches of 32" in results["settings"]["fine_tuning"]
    page = (tmp_path / "report.html").read_text()
    assert page.count(results["pareto"]["sentence"]) == 1
    assert 'aria-label="pareto"' in page
    assert "8/8 fine-tuned 2x magnitude seed 1" in shown.stderr
    koopjax("report", tmp_path, "--out", tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text() == page


def test_an_interrupted_contest_goes_on_with_nothing_lost(
    model, calls, tmp_path, monkeypatch, no_figures
):
    whole = compress.RECIPES["magnitude"].start
    out = tmp_path / "contest"
    arguments = ("compress", "--model", model, "--tracks", "fine-tuned", *CONTEST, "--out", out)

    def cut_short(problem, key):
        if len(calls) == 4:
            raise KeyboardInterrupt
        return whole(problem, key)

    enter = lambda begin: [
        monkeypatch.setitem(compress.RECIPES, name, compress.Recipe("pruning", begin, None))
        for name in ("fisher", "magnitude")
    ]
    enter(cut_short)
    assert run(*arguments).exit_code == 130
    assert not (out / "results.json").exists()
    assert len(list(out.glob("*.koopjax"))) == 2
    enter(whole)
    koopjax(*arguments)
    assert len(calls) == 6  # two variants and four points, none of them twice
    first = json.loads((out / "results.json").read_text())
    assert [len(row["paths"]) for row in first["compressed"]] == [2, 2]
    koopjax(*arguments)
    assert len(calls) == 6
    assert json.loads((out / "results.json").read_text())["pareto"] == first["pareto"]


def test_a_span_has_a_ledger_and_files_of_its_own(model, calls, tmp_path, no_figures):
    common = ("--tracks", "label-free", *CONTEST[:4], "--finetune-epochs", 2, "--out", tmp_path)
    for _ in range(2):
        koopjax("compress", "--model", model, *common)
        koopjax("compress", "--model", model, *common, "--from", "layers.0/relu")
    assert len(calls) == 8  # a variant and a point of two methods for each span, nothing twice
    assert len(list((tmp_path / "pareto").glob("*.jsonl"))) == 2
    assert len(list(tmp_path.glob("*layers.0_relu_to_output-label-free-*.koopjax"))) == 2
    results = json.loads((tmp_path / "results.json").read_text())
    assert all("layers.0_relu" in path for row in results["compressed"] for path in row["paths"])


def test_mistakes_are_one_line_before_any_work(model, tmp_path):
    def refused(*arguments):
        result = run("compress", "--model", model, "--out", tmp_path, *arguments)
        assert result.exit_code == 2, (result.stderr, result.exception)
        (line,) = [text for text in result.stderr.splitlines() if text.strip()]
        assert not list(tmp_path.iterdir())
        return line

    assert "one-shot, label-free, fine-tuned, any-bits" in refused("--tracks", "tuned")
    assert "koopman_chain" in refused("--tracks", "fine-tuned", "--methods", "chain")
    line = refused("--tracks", "one-shot,fine-tuned", "--methods", "fisher")
    assert "track one-shot" in line
    assert "magnitude" in line
    assert "layers.9" in refused("--seeds", 2, "--from", "layers.9/relu")
    assert "the unit 'y'" in refused("--budget", "4x,10y")
    assert "--budget" in refused("--budget", ",")


def test_a_broken_ledger_is_one_line(model, calls, tmp_path, no_figures):
    arguments = ("compress", "--model", model, "--tracks", "fine-tuned", "--methods", "fisher",
                 "--budget", "2x", "--out", tmp_path)  # fmt: skip
    koopjax(*arguments)
    (ledger,) = (tmp_path / "pareto").glob("*.jsonl")
    ledger.write_text("something else\n")
    result = run(*arguments)
    assert result.exit_code == 2
    assert "--out" in result.stderr.splitlines()[-1]
    assert "ledger" in result.stderr.splitlines()[-1]


def test_the_sentence_names_the_best_of_both_kinds_whoever_wins():
    def row(track, budget, method, accuracy):
        ratio = float(budget[:-1])
        return {"track": track, "budget": budget, "method": method, "accuracy": accuracy,
                "ratio": None if accuracy is None else ratio, "std": 0.01}  # fmt: skip

    rows = [
        row("one-shot", "10x", "koopman", 0.99), row("one-shot", "30x", "koopman", 0.7),
        row("one-shot", "30x", "obs", 0.8), row("one-shot", "30x", "magnitude", 0.75),
        row("one-shot", "90x", "obs", None), row("any-bits", "90x", "obs", None),
    ]  # fmt: skip
    assert contest_sentence(rows) == (
        "One-shot at 30x: obs keeps 0.8000 ± 0.0100, the best Koopman method, koopman, "
        "0.7000 ± 0.0100. Any-bits: no method has a form so small."
    )


def test_a_later_plain_compression_takes_the_contests_place():
    new = {"dataset": "digits", "seed": 0, "model": {}, "replaced": [], "compressed": [1],
           "timing": {}, "settings": {}, "command": "koopjax compress"}  # fmt: skip
    old = {**new, "compressed": [2], "pareto": {"summary": [3]}}
    assert "pareto" not in merged(new, old)
    ladder = {**new, "compressed": [], "replaced": [4], "command": "koopjax analyze"}
    assert merged(ladder, old)["pareto"] == {"summary": [3]}


@pytest.mark.slow
def test_a_contest_with_training_and_a_network_of_its_own(tmp_path, monkeypatch):
    one = compress.RECIPES["koopman_chain"]
    short = dataclasses.replace(one, variants=one.variants[:1])
    monkeypatch.setitem(compress.RECIPES, "koopman_chain", short)
    shown = koopjax(
        "compress", "--epochs", 3, "--tracks", "fine-tuned", "--methods", "koopman_chain",
        "--budget", "5x", "--out", tmp_path, "--json", "-",
    )  # fmt: skip
    (row,) = json.loads(shown.stdout)["compressed"]
    assert row["accuracy"] > 0.8
    assert row["settings"]["finetuned"] == "3 epochs, distillation with labels"
    # The network that settings are chosen on has not seen the validation images.
    assert len(list((tmp_path / "pareto").glob("*-choosing.koopjax"))) == 1
