"""Exit statuses, one-line errors, and where output goes."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import click.testing
import pytest

from koopjax.cli import main

ENTRY = [sys.executable, "-c", "from koopjax.cli import main; main()"]
ROOT = pathlib.Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def koopjax(*arguments):
    return click.testing.CliRunner().invoke(main, [str(a) for a in arguments])


def lines(text):
    return [line for line in text.splitlines() if line.strip()]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["frobnicate"], "No such command 'frobnicate'"),
        (["datasets", "--colour"], "No such option"),
        (["demo", "--seed", "many"], "'many' is not a valid integer"),
        (["demo", "--seed", "-1"], "not in the range"),
        (["analyze", "--dataset", "digitz"], "digitz"),
        (["analyze", "--dataset", "mnist", "--data-dir", "no/such/folder"], "not a folder"),
        (["cuts", "--model", "no-such-file.koopjax"], "no-such-file.koopjax"),
        (["analyze", "--dictionaries", "affine,magic"], "magic"),
        (["analyze", "--tolerance", "-0.1"], "not in the range"),
        (["analyze", "--ranks", "4,x"], "--ranks"),
        (["compress", "--budget", "small"], "small"),
        (["compress", "--methods", "magic"], "magic"),
        (["train", "--architecture", "transformer9"], "transformer9"),
        (["report", "no/such/results.json"], "no/such/results.json"),
        (["report", "no/such/results"], "no/such/results"),
    ],
)
def test_a_mistake_ends_with_status_2_and_one_line_that_helps(
    tmp_path, monkeypatch, arguments, says
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KOOPJAX_DATA_DIR", raising=False)
    result = koopjax(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert len(lines(result.stderr)) == 1
    assert result.stderr.startswith("koopjax: ")
    assert says in result.stderr
    assert any(word in result.stderr for word in ("try", "Try", "expected"))
    leftovers = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert leftovers == []


def test_a_folder_that_cannot_be_made_is_refused_before_any_work(tmp_path):
    (tmp_path / "file").write_text("")
    started = time.perf_counter()
    result = koopjax("demo", "--out", tmp_path / "file" / "below")
    assert result.exit_code == 2
    assert len(lines(result.stderr)) == 1
    assert "--out" in result.stderr
    assert time.perf_counter() - started < 5


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", "results.json")

    monkeypatch.setattr("koopjax.report.write_atomically", full)
    result = koopjax("datasets", "--json", tmp_path / "x.json")
    assert result.exit_code == 2
    assert result.stderr.startswith("koopjax: No space left on device: results.json; free some")
    assert len(lines(result.stderr)) == 1


def test_our_own_errors_keep_their_traceback(monkeypatch):
    def broken(*_):
        raise RuntimeError("ours")

    monkeypatch.setattr("koopjax.data.available", broken)
    assert isinstance(koopjax("datasets").exception, RuntimeError)


def test_version_and_help():
    import koopjax as package

    assert koopjax("--version").stdout == f"koopjax {package.__version__}\n"
    top = koopjax("--help")
    assert top.exit_code == koopjax().exit_code == 0
    for command in ("demo", "datasets", "train", "cuts", "analyze", "compress", "sweep", "report"):
        assert f"  {command} " in top.stdout
        own = koopjax(command, "--help")
        assert own.exit_code == 0
        assert "--out" in own.stdout or command in ("datasets", "cuts")
    for command in ("demo", "analyze", "compress", "sweep"):
        text = koopjax(command, "--help").stdout
        for option in ("--dataset", "--data-dir", "--seed", "--out", "--json"):
            assert option in text or (command, option) == ("demo", "--nothing")


def test_datasets_as_a_table_and_as_json(tmp_path):
    table = koopjax("datasets")
    assert table.exit_code == 0
    assert "digits" in table.stdout
    assert "8×8×1" in table.stdout
    both = koopjax("datasets", "--json", "-")
    listed = json.loads(both.stdout)
    assert {"digits", "mnist", "fashion_mnist"} <= {entry["name"] for entry in listed}
    assert "digits" in both.stderr
    assert koopjax("datasets", "--json", tmp_path / "d.json").exit_code == 0
    assert json.loads((tmp_path / "d.json").read_text()) == listed


def test_listing_commands_take_the_shared_options(tmp_path):
    shared = ["--dataset", "digits", "--seed", 1, "--out", tmp_path, "--json", tmp_path / "x.json"]
    for command in ("datasets", "cuts"):
        assert koopjax(command, *shared).exit_code == 0
        listed = json.loads((tmp_path / f"{command}.json").read_text())
        assert listed == json.loads((tmp_path / "x.json").read_text())
    assert koopjax("datasets", "--dataset", "digitz").exit_code == 2


def test_a_results_file_of_another_shape_is_one_line(tmp_path):
    (tmp_path / "results.json").write_text('{"replaced": "oops", "original": {"accuracy": 1}}')
    done = koopjax("report", tmp_path)
    assert done.exit_code == 2
    assert len(lines(done.stderr)) == 1


def test_the_entry_point_leaves_with_the_status():
    done = subprocess.run([*ENTRY, "nothing"], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1


def test_help_loads_nothing_heavy():
    code = (
        "import sys, koopjax.cli\n"
        "heavy = ['matplotlib', 'sklearn', 'tensorflow_datasets', 'flax', 'jinja2', 'rich']\n"
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, check=True
    )
    assert done.stdout.strip() == "[]"


def test_an_interruption_inside_a_gc_callback_is_not_lost():
    from koopjax.cli import _app

    def _xla_gc_callback():
        signal.raise_signal(signal.SIGINT)

    with _app.interruptible():
        _xla_gc_callback()  # raised here, Python would drop it
        with pytest.raises(KeyboardInterrupt):
            _app.check_interrupted()
    with _app.interruptible():
        _app.check_interrupted()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_an_interruption_leaves_with_130_one_line_and_no_half_file(tmp_path):
    process = subprocess.Popen(
        [*ENTRY, "train", "--epochs", "100000", "--out", str(tmp_path / "out")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT,
    )  # fmt: skip
    first = process.stderr.readline()
    assert first.startswith("koopjax: training")
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    try:
        stdout, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert stdout == ""
    assert len(lines(stderr)) == 1
    assert "interrupted" in stderr
    left = {p.name for p in (tmp_path / "out").iterdir()}
    assert all(name.endswith(".checkpoint") for name in left)
