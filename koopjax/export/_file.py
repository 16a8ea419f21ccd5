"""A stored file as bytes: its frame and header, its parts one after another, what it may claim.

A file of equal or nearly equal numbers is far smaller than its arrays, so the size of a file alone
bounds nothing. Up to `FLOOR` bytes are believed of any file, and `RATIO` more for each byte of it;
`export.save` fills up with zeros what would claim more.
"""

import math
import os
import zlib
from typing import Any

import msgpack
import numpy as np

from koopjax._core import as_path, existing, write_whole

MAGIC = b"\x8bkjx"  # the first byte is no text, so a transfer in text mode shows
VERSION = 1
TAIL = 4  # bytes of the CRC
LONGEST = 11  # groups of an integer: no count and no 64-bit number takes more

FLOOR = 64 << 20
RATIO = 1024
#: Beside its bytes, for an entry that is decoded symbol by symbol: the time and room that it takes.
SYMBOL = 16
LAYERS_LIMIT = 256  # layers of a model, cores of a train
PARTS_LIMIT = 1 << 16  # dictionaries within one, entries of a list


class FileError(ValueError):
    """A stored file that can't be read: not one, truncated, corrupt, newer, of another model."""


class UnknownName(LookupError):
    """A name or number in a file that this version does not know and a newer one may."""


def put_varint(value: int) -> bytes:
    """An unsigned integer in groups of seven bits, the lowest first."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def put_signed(value: int) -> bytes:
    """An integer of either sign, zigzag: 0, -1, 1, -2, ..."""
    return put_varint(value << 1 if value >= 0 else (-value << 1) - 1)


class Reader:
    """A place in the bytes of a file; whatever would end past them is an `IndexError`."""

    def __init__(self, data: bytes, at: int = 0):
        self.data, self.at = data, at

    def take(self, count: int) -> bytes:
        """The next bytes."""
        start, self.at = self.at, self.at + count
        if self.at > len(self.data):
            raise IndexError("an array ends past the file")
        return self.data[start : self.at]

    def varint(self) -> int:
        """What `put_varint` wrote."""
        value = 0
        for shift in range(0, 7 * LONGEST, 7):
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise IndexError(f"a number of more than {7 * LONGEST} bits")

    def signed(self) -> int:
        """What `put_signed` wrote."""
        value = self.varint()
        return -((value + 1) >> 1) if value & 1 else value >> 1

    def part(self) -> bytes:
        """Bytes behind their number."""
        return self.take(self.varint())

    def array(self, count: int, dtype: Any) -> np.ndarray:
        """Numbers, little-endian."""
        dtype = np.dtype(dtype)
        data = self.take(count * dtype.itemsize)
        return np.frombuffer(data, dtype.newbyteorder("<")).astype(dtype)


class Claims:
    """What is left of a file's allowance."""

    def __init__(self, size: int):
        self.total = self.left = FLOOR + RATIO * size

    def take(self, amount: int) -> None:
        """Take from what is left; an `IndexError` where there is less."""
        if amount > self.left:
            raise IndexError(f"numbers of more than {self.total} bytes, which so few can't hold")
        self.left -= amount


def padding(claimed: int, size: int) -> bytes:
    """Zeros behind a body of some size, for a reader to believe what it claims."""
    return bytes(max(0, math.ceil((claimed - FLOOR) / RATIO) - size))


def sizes(numbers: object, limit: int, what: str) -> list[int]:
    """A list of counts from a header, each at least 0, at most so many of them."""
    if not isinstance(numbers, list | tuple) or len(numbers) > limit:
        raise IndexError(f"no list of at most {limit} {what}")
    return [count(n, what) for n in numbers]


def count(number: object, what: str, limit: int = 1 << 40) -> int:
    """A count from a header, at least 0 and at most a limit."""
    if type(number) is not int or not 0 <= number <= limit:
        raise IndexError(f"{what} of {number!r:.40}")
    return number


def split_header(body: bytes, path: object) -> tuple[list[Any], int]:
    """The node of a body and where its arrays start."""
    # A list is made of the length that it declares before its entries are seen: believe few.
    most = min(len(body), PARTS_LIMIT)
    unpacker = msgpack.Unpacker(
        max_buffer_size=len(body), max_array_len=most, max_map_len=most, max_ext_len=0
    )
    try:
        unpacker.feed(body)
        node = unpacker.unpack()
    except (ValueError, msgpack.UnpackException) as error:
        why = str(error) or type(error).__name__
        raise FileError(f"expected a readable header in {path}, got: {why}") from None
    if not isinstance(node, list) or not node or not isinstance(node[0], str):
        raise FileError(f"expected a readable header in {path}, got no name of an architecture")
    return node, unpacker.tell()


def frame(body: bytes) -> bytes:
    """A body with magic, version and total length before it and its CRC32 behind it."""
    fixed = len(MAGIC) + 1 + len(body) + TAIL
    length = put_varint(fixed + 1)
    while len(length) + fixed != Reader(length).varint():  # the length counts its own bytes
        length = put_varint(fixed + len(length))
    data = MAGIC + bytes([VERSION]) + length + body
    return data + zlib.crc32(data).to_bytes(TAIL, "little")


def unframe(data: bytes, path: object) -> bytes:
    """The body of a framed file, after every check on the frame."""
    if data[: len(MAGIC)] != MAGIC[: len(data)]:
        raise FileError(f"expected a koopjax file, got {path} of another kind")
    if len(data) > len(MAGIC) and data[len(MAGIC)] > VERSION:
        raise FileError(
            f"expected a file of format version up to {VERSION}, got version {data[len(MAGIC)]} "
            f"in {path}; try a newer koopjax"
        )
    again = "try copying it again"
    reader = Reader(data, len(MAGIC) + 1)
    try:
        total = reader.varint()
    except IndexError:
        raise FileError(
            f"expected a whole file, got {path} truncated to {len(data)} bytes; {again}"
        ) from None
    if len(data) != total:
        short = len(data) < total
        got = f"truncated to {len(data)}" if short else f"of {len(data)}: it is corrupt"
        raise FileError(f"expected a file of {total} bytes, got {path} {got}; {again}")
    if zlib.crc32(data[:-TAIL]) != int.from_bytes(data[-TAIL:], "little"):
        raise FileError(
            f"expected the checksum of {path} to match, got another: it is corrupt; {again}"
        )
    return data[reader.at : -TAIL]


def read(path: str | os.PathLike[str]) -> bytes:
    """All bytes of a file, or one line that says why not."""
    return existing("a koopjax file", path, "export.save first").read_bytes()


def write(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file whole or not at all, into a folder that is there."""
    place = as_path("the file to write", path)
    if place.is_dir():
        raise IsADirectoryError(f"expected a path for a file, got the folder {place}")
    if not place.parent.is_dir():
        raise FileNotFoundError(
            f"expected an existing folder, got {place.parent}; try creating it first"
        )
    try:
        write_whole(place, data)
    except OSError as error:
        why = error.strerror or str(error)
        raise OSError(
            error.errno,
            f"expected room and permission to write {len(data)} bytes to {place}, got: {why}; "
            "nothing was left behind",
        ) from error
