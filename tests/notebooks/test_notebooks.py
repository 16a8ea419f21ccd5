"""Notebooks run as they are, on small settings, and the rendered ones are theirs."""

import pathlib
import re
import runpy
import tempfile

import jax
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted(p for p in (ROOT / "notebooks").glob("*.py") if p.name != "render.py")


def test_there_are_the_notebooks():
    names = {path.stem for path in NOTEBOOKS}
    assert {
        "koopman_of_a_known_system", "how_nonlinear_is_my_network", "rank_sweeps_under_vmap",
        "compress_it",
    } <= names  # fmt: skip


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_on_small_settings(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KOOPJAX_NOTEBOOK_SMALL", "1")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with jax.numpy_rank_promotion("allow"):  # as where a user runs it
        runpy.run_path(str(path), run_name="__main__")
    printed = capsys.readouterr().out
    if path.stem == "koopman_of_a_known_system":
        error = float(re.search(r"^error\s+(\S+)", printed, re.MULTILINE).group(1))
        assert error < 1e-10
    elif path.stem == "rank_sweeps_under_vmap":
        single = float(re.search(r"a single fit: relative error (\S+)", printed).group(1))
        assert "no tensor train stays" in printed or "is enough to stay" in printed
        errors = [float(e) for e in re.findall(r"^rank \d+: .* (\S+)$", printed, re.MULTILINE)]
        assert errors[-1] < errors[0]
        assert abs(errors[-1] - single) < 0.01
        assert "of the output's variance comes from single coordinates" in printed
    elif path.stem == "compress_it":
        rows = re.findall(
            r"^(.*\S)\s+([\d,]+) bytes on disk, +(\S+)x smaller, accuracy (\S+),", printed,
            re.MULTILINE,
        )  # fmt: skip
        ratios = {name: float(ratio) for name, _, ratio, _ in rows}
        assert ratios["original"] == 1
        assert ratios["closed form"] >= 3
        assert ratios["trained to 3x"] >= 3
        assert ratios["any bits"] >= 8
        accuracies = {name: float(accuracy) for name, _, _, accuracy in rows}
        assert all(value > accuracies["original"] - 0.15 for value in accuracies.values())
        for name in ("koopman_chain", "fisher", "small_network"):
            assert re.search(rf"^{name} +3x +[\d,]+ bytes 0\.\d+$", printed, re.MULTILINE)
    else:
        assert "is enough to stay within" in printed or "no rung stays" in printed
        assert re.search(r"loaded again: \d+ bytes, accuracy 0\.\d", printed)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_rendered_notebook_is_of_this_text_and_has_pictures(path):
    jupytext = pytest.importorskip("jupytext")
    import nbformat

    rendered = nbformat.read(path.with_suffix(".ipynb"), as_version=4)
    source = jupytext.read(path)
    assert [c.source for c in rendered.cells] == [c.source for c in source.cells]
    text = path.with_suffix(".ipynb").read_text()
    assert "image/png" in text
    assert not re.search(r"/(tmp|root|home|work)/|\"execution\":|\d{4}-\d\d-\d\dT", text)
    outputs = [o for c in rendered.cells for o in c.get("outputs", [])]
    assert outputs
    assert all(o.output_type != "error" for o in outputs)
