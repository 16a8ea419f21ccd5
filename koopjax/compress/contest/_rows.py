"""Finished rows on disk, as JSON lines that survive being cut off anywhere."""

import json
import os
import pathlib
from typing import Any

from koopjax._core import expected

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


class Rows:
    """Rows of several kinds, appended one by one and found again by their fields.

    The first line holds what the contest is, in plain JSON values; each further line is one row,
    forced to the disk before the next begins. A last line that was cut off is dropped. Without a
    path rows are kept in memory alone. A file of another contest or kind, or one that another run
    is writing to, is refused.
    """

    def __init__(self, path: str | os.PathLike[str] | None, fingerprint: dict[str, Any]):
        self._rows: list[tuple[str, dict[str, Any]]] = []
        self._file = None
        if path is None:
            return
        self._path = pathlib.Path(path)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        first = json.dumps({"contest": fingerprint})
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
                entry = json.loads(line)
            except ValueError:
                raise self._foreign(f"line {number + 1} that is no JSON") from None
            if number == 0:
                self._compare(entry, json.loads(first))
            else:
                self._rows.append((entry["kind"], entry["row"]))
            end += len(line) + 1
        return end

    def _compare(self, stored: Any, wanted: dict[str, Any]) -> None:
        if not isinstance(stored, dict) or "contest" not in stored:
            raise self._foreign("a file of another kind")
        ours, theirs = wanted["contest"], stored["contest"]
        other = [name for name in {**ours, **theirs} if theirs.get(name) != ours.get(name)]
        if other:
            raise self._foreign(f"one with other {' and '.join(other)}")

    def _foreign(self, came: str) -> ValueError:
        return expected(
            f"the ledger of this contest in {self._path}", came, "another path, or deleting it"
        )

    def _write(self, line: str) -> None:
        if self._file is not None:
            self._file.write(line.encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())

    def add(self, kind: str, row: dict[str, Any]) -> None:
        """Append a row."""
        text = json.dumps({"kind": kind, "row": row})
        self._write(text)
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

    def __enter__(self) -> "Rows":
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
