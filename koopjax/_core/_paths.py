"""Paths that users give, the JSON behind them, and files written whole or not at all."""

import json
import os
import pathlib
import secrets
from typing import Any

from koopjax._core._arrays import expected

LONGEST = 255  # bytes of one name, on the file systems in use


def as_path(what: str, path: Any) -> pathlib.Path:
    """A path from a user's argument: text or an `os.PathLike` of text that a file system takes."""
    try:
        text = os.fspath(path)
        named = isinstance(text, str) and b"\0" not in os.fsencode(text)
        named = named and all(len(os.fsencode(part)) <= LONGEST for part in text.split(os.sep))
    except (TypeError, UnicodeEncodeError):
        text, named = None, False
    if not named or not isinstance(text, str):
        raise expected(f"a path of {what}", f"{path!r:.60}", "its name as text, or a pathlib.Path")
    return pathlib.Path(text)


def existing(what: str, path: Any, suggestion: str = "") -> pathlib.Path:
    """The path of a file that is there; an `OSError` of the right kind where it is not."""
    place = as_path(what, path)
    end = f"; try {suggestion}" if suggestion else ""
    try:
        if place.is_dir():
            raise IsADirectoryError(f"expected {what}, got the folder {place}; try a file in it")
        place.stat()
    except FileNotFoundError:
        raise FileNotFoundError(f"expected {what} at {place}, got nothing there{end}") from None
    except IsADirectoryError:
        raise
    except OSError as error:
        raise OSError(
            error.errno, f"expected {what} at {str(place)[:200]}, got: {error.strerror}{end}"
        ) from None
    return place


def read_json(what: str, path: pathlib.Path) -> Any:
    """The JSON in a file; lists too deep and numbers too long count as damaged, too."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        why = " ".join(str(error).split())[:200]
        raise expected(
            f"JSON of {what} in {path}", f"something else ({why})", "writing it again"
        ) from error


def write_whole(place: pathlib.Path, data: bytes) -> None:
    """Write a file whole or not at all.

    The bytes go to a new file beside the target, to the disk, and only then take the target's
    name. Whatever interrupts that leaves the old file as it was and nothing beside it.
    """
    beside = place.with_name(f".{place.name}.{secrets.token_hex(4)}.tmp")
    try:
        # exclusive, with the permissions that the user's umask asks for
        with open(beside, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, place)
    finally:
        beside.unlink(missing_ok=True)
