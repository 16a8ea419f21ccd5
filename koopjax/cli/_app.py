"""The click group, its exit statuses, and the options that commands share."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

import koopjax
from koopjax._extras import MissingExtra

# What a user can mend about a file that cannot be written or read.
_MENDABLE = {
    errno.ENOSPC: "free some space there, or name another place",
    errno.EDQUOT: "free some space there, or name another place",
    errno.EROFS: "name a place that can be written",
    errno.EACCES: "name a place that you may use",
    errno.EPERM: "name a place that you may use",
    errno.ENOTDIR: "name a folder",
    errno.EISDIR: "name a file",
}


class UserError(click.ClickException):
    """A mistake that the user can mend: one line on standard error, exit status 2."""

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(str(message).split()))


@contextlib.contextmanager
def mistakes(option: str | None = None, about: str = "") -> Iterator[None]:
    """Errors that the library raises about its input become the user's, under an option's name.

    To be held around a call that checks what the user gave; around computations only `about` what
    their message names: any other error inside those is ours and keeps its traceback.
    """
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        if about not in str(error):
            raise
        prefix = f"{option}: " if option else ""
        raise UserError(f"{prefix}{error}") from error


_interrupted = threading.Event()


def check_interrupted() -> None:
    """Raise the interruption that came where it could not be raised; called between epochs."""
    if _interrupted.is_set():
        raise KeyboardInterrupt


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, at the next `check_interrupted` at the latest.

    Python drops exceptions that are raised inside a callback of its garbage collector, and JAX has
    one (`_xla_gc_callback`): an interruption that happened to come there would be lost, with a
    traceback on the terminal.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handler(number: int, frame: Any) -> None:
        _interrupted.set()
        if frame is None or frame.f_code.co_name != "_xla_gc_callback":
            raise KeyboardInterrupt

    _interrupted.clear()
    before = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        _interrupted.clear()


def _told(error: BaseException) -> tuple[str, int] | None:
    """The line and the exit status of an error that has them; None where it is ours."""
    if isinstance(error, click.ClickException):
        line = error.format_message()
        if isinstance(error, click.UsageError):
            line += f" Try '{error.ctx.command_path if error.ctx else 'koopjax'} --help'."
        return " ".join(line.split()), 2
    if isinstance(error, click.Abort | KeyboardInterrupt):
        line = "interrupted; finished files are whole, the same command starts again"
        return line, 128 + signal.SIGINT
    if isinstance(error, MissingExtra):
        return str(error), 2
    if isinstance(error, OSError) and error.errno in _MENDABLE:
        where = f" {error.filename}" if error.filename else ""
        return f"{os.strerror(error.errno)}:{where}; {_MENDABLE[error.errno]}", 2
    return None


class Group(click.Group):
    """A group whose errors take one line."""

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        """Run a command line and leave with its exit status (see the package's docstring)."""
        value = None
        try:
            with interruptible():
                extra["prog_name"] = extra.get("prog_name") or "koopjax"
                value = super().main(*args, standalone_mode=False, **extra)
            status = value if isinstance(value, int) else 0
        except BaseException as error:
            told = _told(error)
            if not standalone_mode or told is None:
                raise
            line, status = told
            print(f"koopjax: {line}", file=sys.stderr)
        if standalone_mode:
            sys.exit(status)
        return value

    def invoke(self, ctx: click.Context) -> Any:
        """As click's, but an interruption stays what it is: click would print an empty line."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise click.Abort from None


@click.group(
    cls=Group,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Each command has its own --help. Start with: koopjax demo",
    no_args_is_help=False,
    invoke_without_command=True,
)
@click.version_option(koopjax.__version__, message="koopjax %(version)s")
@click.pass_context
def main(ctx: click.Context) -> None:
    """How much of a trained network is really nonlinear, and how small can it get?

    A span of layers is replaced by a Koopman matrix between dictionaries of observables; the
    dictionary and rank that it needs measure the span's nonlinearity, and a smaller network comes
    out at the end.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


# The keys of models.REGISTRY, spelled out so that --help does not import flax.
ARCHITECTURES = ("mlp", "cnn", "residual_mlp", "vit")

_FILE = click.Path(path_type=Path, dir_okay=False)
_OPTIONS: dict[str, Callable[..., Any]] = {
    "dataset": click.option(
        "--dataset", default="digits", show_default=True, metavar="NAME",
        help="A dataset's name (see koopjax datasets).",
    ),
    "data-dir": click.option(
        "--data-dir", type=click.Path(path_type=Path), metavar="DIR",
        help="Folder with the dataset's files [default: $KOOPJAX_DATA_DIR, then TFDS's folder].",
    ),
    "download": click.option(
        "--download", is_flag=True, help="Let TFDS download the dataset where it is missing."
    ),
    "seed": click.option(
        "--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True,
        help="Everything random follows from it.",
    ),
    "seeds": click.option(
        "--seeds", type=click.IntRange(1, 100),
        help="Networks, from --seed on [default: 1; analyze 3, demo 5].",
    ),
    "out": click.option(
        "--out", type=click.Path(path_type=Path, file_okay=False), default="koopjax-out",
        show_default=True, metavar="DIR", help="Folder for results, report and models.",
    ),
    "list": click.option(
        "--out", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
        help="Folder to write the list as JSON into as well.",
    ),
    "json": click.option(
        "--json", "json_file", type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
        metavar="FILE", help="Write the results as JSON to FILE too; - is standard output.",
    ),
    "model": click.option(
        "--model", "model_file", type=_FILE, metavar="FILE",
        help="A model that koopjax saved [default: train one, or take the one in --out].",
    ),
    "architecture": click.option(
        "--architecture", type=click.Choice(ARCHITECTURES), default="mlp", show_default=True,
        help="Which example network to train.",
    ),
    "epochs": click.option(
        "--epochs", type=click.IntRange(1), help="Epochs of training [default: by dataset]."
    ),
    "from": click.option(
        "--from", "start", metavar="CUT", help="Where the span starts (koopjax cuts)."
    ),
    "to": click.option("--to", "stop", metavar="CUT", help="Where the span ends."),
}  # fmt: skip
#: Options that name data and a trained network.
MODEL = ("dataset", "data-dir", "download", "model", "architecture", "epochs", "seed")


@dataclasses.dataclass(frozen=True)
class Given:
    """What the shared options say."""

    dataset: str = "digits"
    data_dir: Path | None = None
    download: bool = False
    model_file: Path | None = None
    architecture: str = "mlp"
    epochs: int | None = None
    seed: int = 0
    seeds: int | None = None
    start: str | None = None
    stop: str | None = None
    out: Any = None
    json_file: Path | None = None

    def every_seed(self, usual: int = 1) -> list[int]:
        """The seeds of all networks; one where a model was given."""
        count = 1 if self.model_file is not None else self.seeds or usual
        return list(range(self.seed, self.seed + count))

    def check_one_network(self) -> None:
        """Refuse several seeds with a model."""
        if self.model_file is not None and (self.seeds or 1) > 1:
            expected = "expected 1 with --model, which is one network, try without --seeds"
            raise UserError(f"--seeds: {expected}")


def options(*names: str) -> Callable[[Any], Any]:
    """The shared options of these names, handed to the command as one `Given`."""
    fields = {field.name for field in dataclasses.fields(Given)}

    def decorate(command: Any) -> Any:
        @functools.wraps(command)
        def called(**values: Any) -> None:
            own = {name: value for name, value in values.items() if name in fields}
            rest = {name: value for name, value in values.items() if name not in fields}
            command(Given(**own), **rest)

        decorated = called
        for name in reversed(names):
            decorated = _OPTIONS[name](decorated)
        return decorated

    return decorate


def writable_folder(path: Path) -> Path:
    """The folder, made if need be; refused before any work if nothing can be written there."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        said = f"cannot make the folder {path} ({error.strerror}), try another"
        raise UserError(f"--out: {said}") from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise UserError(f"--out: cannot write into {path}, try another folder")
    return path


def parts_of(text: str) -> list[str]:
    """What stands between commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def names_from(option: str, text: str | None, known: list[str]) -> list[str]:
    """A comma-separated choice among known names, checked; all of them for None."""
    chosen = known if text is None else parts_of(text)
    wrong = [repr(name) for name in chosen if name not in known]
    if wrong or not chosen:
        got = wrong[0] if wrong else "nothing"
        raise UserError(f"{option}: expected some of {', '.join(known)}, got {got}")
    return chosen


def numbers_from(option: str, text: str) -> tuple[int, ...]:
    """A comma-separated list of whole numbers from 1."""
    parts = parts_of(text)
    # a number of more digits is no rank, and Python refuses to read one of thousands
    if not parts or not all(p.isdecimal() and len(p) < 10 and int(p) > 0 for p in parts):
        raise UserError(f"{option}: expected whole numbers from 1, got {text[:60]!r}, try 4,8,16")
    return tuple(int(part) for part in parts)
