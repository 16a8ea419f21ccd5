"""The click group, its exit statuses, and the options that commands share."""

from __future__ import annotations

import contextlib
import errno
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
def mistakes(option: str | None = None) -> Iterator[None]:
    """Errors that the library raises about its input become the user's, under an option's name.

    To be held around a call that checks what the user gave, not around computations: an error
    inside those is ours and keeps its traceback.
    """
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
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


class Group(click.Group):
    """A group whose errors take one line."""

    def main(
        self,
        args: Any = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run a command line and leave with its exit status (see the package's docstring)."""
        standalone, value = standalone_mode, None
        try:
            with interruptible():
                value = super().main(
                    args,
                    prog_name or "koopjax",
                    complete_var,
                    standalone_mode=False,
                    windows_expand_args=windows_expand_args,
                    **extra,
                )
            status = value if isinstance(value, int) else 0
        except click.ClickException as error:
            if not standalone:
                raise
            context = getattr(error, "ctx", None)
            where = context.command_path if context else "koopjax"
            line = " ".join(error.format_message().split())
            if isinstance(error, click.UsageError) and not isinstance(error, UserError):
                line = f"{line} Try '{where} --help'."
            print(f"koopjax: {line}", file=sys.stderr)
            status = 2
        except (click.Abort, KeyboardInterrupt):
            if not standalone:
                raise
            line = "interrupted; finished files are whole, the same command starts again"
            print(f"koopjax: {line}", file=sys.stderr)
            status = 128 + signal.SIGINT
        except MissingExtra as error:
            if not standalone:
                raise
            print(f"koopjax: {error}", file=sys.stderr)
            status = 2
        except OSError as error:
            if not standalone or error.errno not in _MENDABLE:
                raise
            where = f" {error.filename}" if error.filename else ""
            line = f"{os.strerror(error.errno)}:{where}; {_MENDABLE[error.errno]}"
            print(f"koopjax: {line}", file=sys.stderr)
            status = 2
        if standalone:
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
    "out": click.option(
        "--out", type=click.Path(path_type=Path, file_okay=False), default="koopjax-out",
        show_default=True, metavar="DIR", help="Folder for results, report and models.",
    ),
    "json": click.option(
        "--json", "json_file", type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
        metavar="FILE", help="Write the results as JSON to FILE too; - is standard output.",
    ),
    "model": click.option(
        "--model", "model_file", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
        help="A model that koopjax saved [default: train one, or take the one in --out].",
    ),
    "architecture": click.option(
        "--architecture",
        type=click.Choice(ARCHITECTURES),
        default="mlp",
        show_default=True,
        help="Which example network to train.",
    ),
    "epochs": click.option(
        "--epochs", type=click.IntRange(1), help="Epochs of training [default: by dataset]."
    ),
}  # fmt: skip


def options(*names: str) -> Callable[[Any], Any]:
    """The shared options of these names, in this order."""

    def decorate(command: Any) -> Any:
        for name in reversed(names):
            command = _OPTIONS[name](command)
        return command

    return decorate


def writable_folder(path: Path) -> Path:
    """The folder, made if need be; refused before any work if nothing can be written there."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--out: cannot make the folder {path} ({error.strerror}), try another"
        ) from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise UserError(f"--out: cannot write into {path}, try another folder")
    return path


def names_from(option: str, text: str | None, known: list[str]) -> list[str]:
    """A comma-separated choice among known names, checked; all of them for None."""
    if text is None:
        return known
    chosen = [part.strip() for part in text.split(",") if part.strip()]
    for name in chosen:
        if name not in known:
            raise UserError(f"{option}: expected some of {', '.join(known)}, got {name!r}")
    if not chosen:
        raise UserError(f"{option}: expected some of {', '.join(known)}, got nothing")
    return chosen
