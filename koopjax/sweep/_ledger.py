"""Finished points on disk: an append-only file that survives being cut off anywhere."""

import contextlib
import os
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import msgpack
import numpy as np

from koopjax._core import as_path, expected

try:
    import fcntl
except ImportError:  # Windows has no advisory locks of this kind
    fcntl = None

MAGIC = b"\x8bkjxsweep1\n"
HEADER = 12  # length (8 bytes) and CRC32 (4 bytes) before each record


def _encode(leaf: Any) -> dict[str, Any]:
    array = np.asarray(leaf)
    # Names instead of codes, since bfloat16 and its like have no code of NumPy's own.
    return {"d": array.dtype.name, "s": list(array.shape), "b": array.tobytes()}


def _decode(item: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(item["b"], np.dtype(item["d"])).reshape(item["s"]).copy()


def _record(content: Any) -> bytes:
    body: bytes = msgpack.packb(content, use_bin_type=True)  # pyright: ignore[reportAssignmentType]
    return len(body).to_bytes(8, "little") + zlib.crc32(body).to_bytes(4, "little") + body


def _records(data: bytes, start: int) -> Iterator[tuple[Any, int]]:
    """Whole records and the places where they end; stops at the first that is cut or corrupt."""
    at = start
    while at + HEADER <= len(data):
        length = int.from_bytes(data[at : at + 8], "little")
        body = data[at + HEADER : at + HEADER + length]
        if len(body) < length or zlib.crc32(body) != int.from_bytes(
            data[at + 8 : at + 12], "little"
        ):
            return
        at += HEADER + length
        yield msgpack.unpackb(body, raw=False, strict_map_key=False), at


class Ledger:
    """The points that a sweep has finished, with the sweep's fingerprint in front.

    A file of records, each with its length and checksum. A chunk is one record, appended and
    forced to the disk before the next chunk begins; a record that was cut off by a crash fails its
    checksum and is dropped when the file is opened again. While one process writes, others are
    refused.
    """

    def __init__(self, path: str | os.PathLike[str], fingerprint: dict[str, str]) -> None:
        """Open or begin a ledger, and read what it holds.

        Args:
            path: of the file; its folder is made where there is none.
            fingerprint: what the sweep is, part by part.

        Raises:
            ValueError: the file is of another kind, of another sweep, or in use.
        """
        self.path = as_path("a ledger", path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.finished: dict[int, list[np.ndarray]] = {}
        self._file = open(self.path, "a+b")  # noqa: SIM115 - closed by close()
        try:
            self._lock()
            self._read(fingerprint)
        except BaseException:
            self._file.close()
            raise

    def _lock(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise expected(
                f"a ledger {self.path} that no other process writes", "one in use"
            ) from None

    def _read(self, fingerprint: dict[str, str]) -> None:
        self._file.seek(0)
        data = self._file.read()
        if data[: len(MAGIC)] != MAGIC[: len(data)]:
            raise expected("a sweep's ledger", f"{self.path} of another kind", "another path")
        end, first = len(MAGIC), True
        for content, stop in _records(data, end):
            if first:
                self._compare(content, fingerprint)
            else:
                self._take(content)
            first, end = False, stop
        if first:
            # New, or cut off before anything was finished.
            self._file.truncate(0)
            self._write(MAGIC + _record(fingerprint))
            self._sync_folder()
        elif end < len(data):
            self._file.truncate(end)

    def _compare(self, stored: dict[str, str], wanted: dict[str, str]) -> None:
        if not isinstance(stored, dict):
            raise expected("a sweep's ledger", f"{self.path} of another kind", "another path")
        other = [name for name in wanted if stored.get(name) != wanted[name]]
        if other or set(stored) != set(wanted):
            raise expected(
                f"the ledger of this sweep in {self.path}",
                f"one of a sweep with other {' and '.join(other) or 'parts'}",
                "another path, or deleting that file",
            )

    def _take(self, content: dict[str, Any]) -> None:
        try:
            leaves = [_decode(item) for item in content["leaves"]]
            for lane, point in enumerate(content["points"]):
                self.finished[point] = [leaf[lane] for leaf in leaves]
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise expected(
                "a sweep's ledger", f"{self.path} with other records ({error})", "another path"
            ) from error

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._file.flush()
        os.fsync(self._file.fileno())

    def _sync_folder(self) -> None:
        with contextlib.suppress(OSError):
            folder = os.open(self.path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def append(self, points: Sequence[int], leaves: Sequence[Any]) -> None:
        """Add a chunk, safely on disk when this returns.

        Args:
            points: their positions in the table.
            leaves: of the outputs, each with one entry a point on its leading axis.
        """
        self._write(
            _record({"points": [int(p) for p in points], "leaves": [_encode(x) for x in leaves]})
        )

    def close(self) -> None:
        """Release the file."""
        self._file.close()

    def __enter__(self) -> "Ledger":
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Release the file."""
        self.close()
