"""sweep, analyze --format tt, and several commands into one folder."""

import json

import click.testing
import jax
import pytest
from flax import nnx

from koopjax import analysis, data, export, models
from koopjax.cli import main
from koopjax.cli._results import merged

SMALL = ("--degrees", "1", "--latent", "3")


def koopjax(*arguments):
    result = click.testing.CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code == 0, (result.stderr, result.exception)
    return result


def refused(*arguments):
    result = click.testing.CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code == 2, (result.stderr, result.exception)
    # Stages that were begun have a line of their own.
    lines = [line for line in result.stderr.splitlines() if not line.endswith(" ...")]
    assert len(lines) == 1
    return lines[0]


@pytest.fixture(scope="module")
def swept(tmp_path_factory, few_digits):
    """Folder of a model and of `koopjax sweep` on it."""
    out = tmp_path_factory.mktemp("sweep")
    digits = data.load("digits").flat()
    small = models.train(
        models.MLP((64, 10, 10, 10, 10), rngs=nnx.Rngs(0)), digits.x_train, digits.y_train,
        key=jax.random.key(0), epochs=30, batch_size=64, learning_rate=1e-2,
    )  # fmt: skip
    model = out / "small.koopjax"
    export.save(small.model, model)
    shown = koopjax("sweep", "--model", model, *SMALL, "--ranks", "1,3", "--out", out, "--json",
                    out / "copy.json")  # fmt: skip
    return out, model, json.loads((out / "results.json").read_text()), shown


def test_sweep_writes_a_plane_a_spectrum_and_bonds(swept):
    out, _, results, shown = swept
    assert json.loads((out / "copy.json").read_text()) == results
    plane = results["plane"]
    assert [(row["degree"], row["rank"]) for row in plane["rows"]] == [(1, 1), (1, 3)]
    assert [row["dictionary"] for row in plane["nulls"]][:2] == ["identity", "mean"]
    assert all(0 <= row["accuracy"] <= 1 and row["stored_bytes"] > 0 for row in plane["rows"])
    assert plane["rows"][1]["accuracy"] > plane["rows"][0]["accuracy"]
    assert results["original"]["accuracy"] == plane["original"]["accuracy"]
    spectrum = results["interactions"]
    assert sum(spectrum["orders"]) + spectrum["beyond"] == pytest.approx(1)
    assert len(spectrum["coordinates"]) == 3
    assert len(results["bonds"]["values"]) == 2
    page = (out / "report.html").read_text()
    assert plane["sentence"].replace("'", "&#39;") in page
    for name in ("plane", "bond_singular_values", "interaction_spectrum"):
        assert f'aria-label="{name.replace("_", " ")}"' in page
    assert "degree 1, rank" in shown.stdout
    assert plane["sentence"][:40] in shown.stdout.replace("\n", " ")


@pytest.mark.slow
def test_the_same_sweep_again_computes_nothing(swept, monkeypatch):
    out, model, results, _ = swept
    assert list((out / "sweep").rglob("*"))

    def fit(*_, **__):
        raise AssertionError("fitted although the ledger has it")

    monkeypatch.setattr("koopjax.sweep._grid.Program.__call__", fit)
    again = koopjax(
        "sweep", "--model", model, *SMALL, "--ranks", "1,3", "--out", out, "--json", "-"
    )
    assert json.loads(again.stdout)["plane"] == results["plane"]


@pytest.mark.slow
def test_commands_share_a_folder(swept):
    out, model, before, _ = swept
    koopjax(
        "analyze", "--model", model, "--dictionaries", "affine", "--ranks", "4", "--format", "tt",
        *SMALL, "--tt-ranks", "2", "--out", out,
    )  # fmt: skip
    after = json.loads((out / "results.json").read_text())
    assert [row["rank"] for row in after["plane"]["rows"]] == [2]
    (row,) = (row for row in after["replaced"] if row["truncation"] == "tt")
    assert row["dictionary"] == "tensor train, degree 1"
    assert {"accuracy", "stored_bytes", "rank"} <= set(row)
    koopjax("compress", "--model", model, "--methods", "magnitude", "--budget", "4x", "--out", out)
    both = json.loads((out / "results.json").read_text())
    for kept in ("replaced", "plane", "interactions", "sentence", "original", "confusion"):
        assert both[kept] == after[kept]
    assert [row["method"] for row in both["compressed"]] == ["magnitude"]
    assert {"sweep", "analyze", "compress"} <= set(both["timing"])
    assert before["seed"] == both["seed"]


def test_results_of_another_network_are_replaced():
    new = {"dataset": "digits", "seed": 0, "model": {"crc32": 1}, "replaced": [], "compressed": [1],
           "timing": {"compress": 1.0}, "settings": {}, "command": "koopjax compress"}  # fmt: skip
    old = {**new, "replaced": [2], "compressed": [], "best": 3, "timing": {"analyze": 2.0},
           "command": "koopjax analyze --seed 0"}  # fmt: skip
    found = merged(new, old)
    assert found["replaced"] == [2]
    assert found["compressed"] == [1]
    assert "best" not in found
    assert found["command"] == "koopjax analyze --seed 0 && koopjax compress"
    for other in ({"seed": 1}, {"dataset": "mnist"}, {"model": {"crc32": 2}}):
        assert merged(new, {**old, **other}) == new


def test_mistakes_are_one_line(swept, tmp_path, monkeypatch):
    _, model, _, _ = swept
    line = refused("sweep", "--memory-limit", "lots", "--out", tmp_path)
    assert "--memory-limit" in line
    assert "2GiB" in line
    assert "--degrees" in refused("sweep", "--degrees", "0", "--out", tmp_path)
    assert "--ranks" in refused("sweep", "--ranks", "two", "--out", tmp_path)
    assert "--tt-ranks" in refused("analyze", "--tt-ranks", "x", "--out", tmp_path)
    assert "expected 1 with --model" in refused("sweep", "--model", model, "--seeds", 2)

    def too_small(*_, **settings):
        raise ValueError(
            f"expected a memory limit of at least 2 KiB, got {settings['memory_limit']}"
        )

    monkeypatch.setattr(analysis, "plane", too_small)
    given = ("--memory-limit", "1KiB", "--out", tmp_path)
    few = refused("sweep", "--model", model, *SMALL, "--ranks", 1, *given)
    assert "--memory-limit: expected a memory limit of at least 2 KiB, got 1KiB" in few
    assert not list(tmp_path.glob("*.json"))
