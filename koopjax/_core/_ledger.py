"""Finished rows on disk, as JSON lines that survive being cut off anywhere."""

import json
import os
import pathlib
import zlib
from typing import Any

from koopjax._core._arrays import expected

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


def _unsealed(line: bytes) -> Any:
    """What a line holds; ValueError where it is no JSON or its checksum is another."""
    entry = json.loads(line)
    sum_of = entry.pop("crc32", None) if isinstance(entry, dict) else None
    if sum_of is not None and sum_of != zlib.crc32(json.dumps(entry).encode()):
        raise ValueError("another checksum")
    return entry


class Ledger:
    """Rows of several kinds, appended one by one and found again by their fields.

    The first line holds what the run is; each further line is one row, forced to the disk before
    the next begins. A last line that was cut off, or whose checksum is wrong, is dropped. While
    one process writes, others are refused.

    Args:
        path: of the file, made where there is none; or None, to keep rows in memory alone.
        fingerprint: of the run, plain JSON values.
        of: what kind of run.

    Raises:
        ValueError: a file of another run, or of another kind, or one that another run is writing
            to.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        fingerprint: dict[str, Any],
        of: str = "contest",
    ) -> None:
        self._rows: list[tuple[str, dict[str, Any]]] = []
        self._file, self._of = None, of
        if path is None:
            return
        self._path = pathlib.Path(path)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        first = json.dumps({of: fingerprint})
        # Closed on exit; two runs that write would each cut off what the other wrote.
        self._file = os.fdopen(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
        try:
            self._lock()
            end = self._read(first)
        except BaseException:
            self._file.close()
            raise
        self._file.truncate(end)
        self._file.seek(end)
        if not end:
            self._write(first)

    def _lock(self) -> None:
        """Keep other runs out until the file is closed, where the system has such locks."""
        if fcntl is None or self._file is None:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise expected(
                f"{self._path} for this run alone", "another run that is writing to it",
                "another path, or waiting for it",
            ) from None  # fmt: skip

    def _read(self, first: str) -> int:
        """Take whole lines; returns where they end."""
        data = self._path.read_bytes()
        lines = data.split(b"\n")[:-1]  # behind the last line break is nothing, or half a line
        if not lines:
            if not first.encode().startswith(data):
                raise self._foreign("a file of another kind")
            return 0
        end = 0
        for number, line in enumerate(lines):
            try:
                entry = _unsealed(line)
            except ValueError:
                if 0 < number == len(lines) - 1:
                    return end
                raise self._foreign(f"line {number + 1} that is no JSON") from None
            if number == 0:
                self._compare(entry, json.loads(first))
            else:
                self._rows.append((entry["kind"], entry["row"]))
            end += len(line) + 1
        return end

    def _compare(self, stored: Any, wanted: dict[str, Any]) -> None:
        if not isinstance(stored, dict) or self._of not in stored:
            raise self._foreign("a file of another kind")
        ours, theirs = wanted[self._of], stored[self._of]
        other = [name for name in {**ours, **theirs} if theirs.get(name) != ours.get(name)]
        if other:
            raise self._foreign(f"one with other {' and '.join(other)}")

    def _foreign(self, came: str) -> ValueError:
        what = f"the ledger of this {self._of} in {self._path}"
        return expected(what, came, "another path, or deleting it")

    def _write(self, line: str) -> None:
        if self._file is not None:
            self._file.write(line.encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())

    def add(self, kind: str, row: dict[str, Any]) -> None:
        """Append a row, safely on disk when this returns."""
        text = json.dumps({"kind": kind, "row": row})
        self._write(f'{text[:-1]}, "crc32": {zlib.crc32(text.encode())}}}')
        self._rows.append((kind, json.loads(text)["row"]))

    def of(self, kind: str) -> list[dict[str, Any]]:
        """All rows of a kind."""
        return [row for k, row in self._rows if k == kind]

    def find(self, kind: str, **fields: Any) -> dict[str, Any] | None:
        """The last row of a kind with these fields, or None."""
        for row in reversed(self.of(kind)):
            if all(row.get(name) == value for name, value in fields.items()):
                return row
        return None

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
