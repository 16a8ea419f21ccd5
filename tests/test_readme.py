"""The README keeps its word: its examples run, its figures are those of the JSON."""

import pathlib
import re
import runpy
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.S | re.M)


def test_the_examples_run_as_they_stand(tmp_path, monkeypatch, capsys):
    examples = [code for language, code in BLOCKS if language == "python"]
    assert len([line for line in examples[0].splitlines() if line.strip()]) <= 15
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "readme.py"
    path.write_text("\n".join(examples), encoding="utf-8")
    runpy.run_path(str(path), run_name="__main__")
    accuracies, stored = capsys.readouterr().out.splitlines()[:2]
    assert min(map(float, accuracies.split())) > 0.95
    assert int(stored) == (tmp_path / "linear.koopjax").stat().st_size


def test_the_commands_of_the_first_screen():
    screen = README.splitlines()[:60]
    assert any("koopjax demo" in line for line in screen)
    assert any("pytest" in line for line in screen)
    assert any(line.startswith("```python") for line in screen)


def test_pictures_and_links_lead_somewhere():
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", README)
    targets += re.findall(r'src="(?!https?:)([^"]+)"', README)
    assert targets
    assert [t for t in targets if not (ROOT / t).exists()] == []


def test_tables_are_what_the_results_say():
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "readme.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
