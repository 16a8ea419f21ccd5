"""Notebooks run as they are, on small settings, and the rendered ones are theirs."""

import os
import pathlib
import re
import subprocess
import sys

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
def test_a_notebook_runs_on_small_settings(path, tmp_path):
    environment = {
        **os.environ, "KOOPJAX_NOTEBOOK_SMALL": "1", "PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg",
        "TMPDIR": str(tmp_path),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:koopjax", str(path)],
        capture_output=True, text=True, env=environment, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    if path.stem == "koopman_of_a_known_system":
        error = float(re.search(r"^error\s+(\S+)", done.stdout, re.MULTILINE).group(1))
        assert error < 1e-10
    elif path.stem == "rank_sweeps_under_vmap":
        single = float(re.search(r"a single fit: relative error (\S+)", done.stdout).group(1))
        assert "no tensor train stays" in done.stdout or "is enough to stay" in done.stdout
        errors = [float(e) for e in re.findall(r"^rank \d+: .* (\S+)$", done.stdout, re.MULTILINE)]
        assert errors[-1] < errors[0]
        assert abs(errors[-1] - single) < 0.01
        assert "of the output's variance comes from single coordinates" in done.stdout
    elif path.stem == "compress_it":
        rows = re.findall(
            r"^(.*\S)\s+([\d,]+) bytes on disk, +(\S+)x smaller, accuracy (\S+),", done.stdout,
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
            assert re.search(rf"^{name} +3x +[\d,]+ bytes 0\.\d+$", done.stdout, re.MULTILINE)
    else:
        assert "is enough to stay within" in done.stdout or "no rung stays" in done.stdout
        assert re.search(r"loaded again: \d+ bytes, accuracy 0\.\d", done.stdout)


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
