"""Malformed command lines: exit status 2, one line on standard error, and nothing written."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import signal
import tempfile
import traceback
import warnings

import click.testing
import numpy as np

from koopjax import export, nn
from koopjax.cli import main
from tests.fuzz.judge import Hang, Outcome, alarm, judge_error

FOLDER = pathlib.Path(tempfile.mkdtemp(prefix="lines"))
OUT = FOLDER / "out"
#: A line that is accepted begins to compute, and is stopped after so many seconds of that.
SECONDS = 15.0

WORDS = ["", " ", "x", "-1", "0", "1.5", "nan", "inf", "1e309", "9" * 5000, "2147483648", "ü",
         "1,,2", ",", "a,b", "--", "-", "None", "True", "/", "1;2", "*", "0x10", "1_0"]  # fmt: skip
SIZES = ["", "x", "0x", "-3x", "nanx", "infx", "1e400x", "30", "10 GB", "10,,x", "1YiB", "0KiB",
         "10x,", "x10", "-5KiB", "1.5", "10x20x", "٣x"]  # fmt: skip
COMMANDS = {
    "datasets": ["--dataset", "--data-dir", "--seed", "--out", "--json"],
    "train": ["--dataset", "--data-dir", "--architecture", "--epochs", "--seed", "--out"],
    "cuts": ["--dataset", "--model", "--architecture", "--seed", "--out", "--json"],
    "analyze": ["--model", "--ranks", "--dictionaries", "--tolerance", "--format", "--degrees",
                "--tt-ranks", "--latent", "--seeds", "--from", "--to", "--dataset"],
    "compress": ["--model", "--budget", "--methods", "--tracks", "--seeds", "--finetune-epochs",
                 "--from", "--to", "--dataset"],
    "sweep": ["--ranks", "--degrees", "--latent", "--memory-limit", "--tolerance", "--seeds"],
    "export": ["--model", "--out", "--format", "--json"],
    "demo": ["--seeds", "--budget", "--dataset", "--seed"],
    "report": ["--out", "--json"],
}  # fmt: skip


@functools.cache
def files() -> list[str]:
    """Paths that hold nothing good."""
    (FOLDER / "text").write_text("no model")
    (FOLDER / "empty").write_bytes(b"")
    (FOLDER / "folder").mkdir()
    (FOLDER / "deep.json").write_text("[" * 100_000)
    (FOLDER / "other.json").write_text('{"dataset": "digits", "original": 3, "replaced": 7}')
    (FOLDER / "number.json").write_text("1" * 6000)
    export.save(nn.Dense(np.ones((3, 2), np.float32)), FOLDER / "small.koopjax")
    whole = (FOLDER / "small.koopjax").read_bytes()
    (FOLDER / "cut.koopjax").write_bytes(whole[:-3])
    names = ["text", "empty", "folder", "deep.json", "other.json", "number.json", "small.koopjax",
             "cut.koopjax", "missing", "text/below", "n" * 300]  # fmt: skip
    return [str(FOLDER / name) for name in names]


@dataclasses.dataclass(frozen=True)
class Line:
    """The words behind `koopjax`."""

    words: tuple[str, ...]

    def __str__(self) -> str:
        return "koopjax " + " ".join(repr(word)[:60] for word in self.words)


def prepare() -> None:
    """Make the files that lines name."""
    files()


def draw(seed: int, number: int) -> Line:
    """The line of a number: the same for the same seed."""
    rng = np.random.default_rng([seed, number])
    command = str(rng.choice(list(COMMANDS)))
    options = COMMANDS[command]
    words = [command]
    kind = rng.random()
    if kind < 0.05:
        return Line((str(rng.choice(["", "trian", "--frob", "-x", "DEMO", "demo demo"])),))
    if kind < 0.1:
        words += [str(rng.choice(["--frob", "-z", "stray", "--seed", "--out"]))]
    for option in rng.choice(options, size=int(rng.choice([1, 2], p=[0.8, 0.2])), replace=False):
        if option in ("--budget", "--memory-limit"):
            value = rng.choice(SIZES)
        elif option in ("--data-dir", "--model", "--out", "--json"):
            value = rng.choice(files())
        else:
            value = rng.choice(WORDS)
        words += [str(option), str(value)]
    if command == "report":
        words.append(str(rng.choice(files())))
    if command not in ("report", "export") and "--out" not in words:
        words += ["--out", str(OUT)]
    return Line(tuple(words))


def run(line: Line, limit: float = SECONDS, show: bool = False) -> Outcome | None:
    """What becomes of a command line."""
    before = _held()
    signal.signal(signal.SIGPROF, alarm)
    signal.setitimer(signal.ITIMER_PROF, min(limit, SECONDS))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = click.testing.CliRunner().invoke(main, list(line.words))
    except Hang:
        return Outcome("right", "", "was accepted, and computes")
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    if show:
        print(result.output, result.exit_code)
    error = result.exception
    if isinstance(error, Hang):
        return Outcome("right", "", "was accepted, and computes")
    if error is not None and not isinstance(error, SystemExit):
        if show:
            traceback.print_exception(error)
        outcome = judge_error(error, True)
        return dataclasses.replace(outcome, kind="obscure error")  # a traceback on the terminal
    if result.exit_code == 0:
        return Outcome("right")
    # what shows only in a trained network comes behind the lines that tell of the training
    *progress, said = result.stderr.strip().splitlines() or [""]
    if result.exit_code != 2 or not said.startswith("koopjax: "):
        return Outcome("wrong value", "koopjax/cli", f"status {result.exit_code}: {said[:200]!r}")
    if not progress and _held() != before:
        return Outcome("wrong value", "koopjax/cli", f"left {_held() - before}")
    return Outcome("refused", "", said[:200])


def _held() -> set[pathlib.Path]:
    """The files below the folder; empty folders do not count."""
    return {path for path in FOLDER.rglob("*") if path.is_file()}
