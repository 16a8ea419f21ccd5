"""The frame of a stored file, its errors, and writing it so that nothing half-written is left."""

import os
import zlib

from koopjax._core import as_path, existing, write_whole

MAGIC = b"\x8bkjx"  # the first byte is no text, so a transfer in text mode shows
VERSION = 1
TAIL = 4  # bytes of the CRC


LONGEST = 11  # groups of an integer: no count and no 64-bit number takes more


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


def get_varint(data: bytes, at: int) -> tuple[int, int]:
    """The integer that `put_varint` wrote at a place, and the place behind it."""
    value = 0
    for shift in range(0, 7 * LONGEST, 7):
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
    raise IndexError(f"a number of more than {7 * LONGEST} bits")


def frame(body: bytes) -> bytes:
    """A body with magic, version and total length before it and its CRC32 behind it."""
    fixed = len(MAGIC) + 1 + len(body) + TAIL
    length = put_varint(fixed + 1)
    while len(length) + fixed != get_varint(length, 0)[0]:  # the length counts its own bytes
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
    try:
        total, start = get_varint(data, len(MAGIC) + 1)
    except IndexError:
        raise FileError(
            f"expected a whole file, got {path} truncated to {len(data)} bytes; "
            "try copying it again"
        ) from None
    if len(data) < total:
        raise FileError(
            f"expected a file of {total} bytes, got {path} truncated to {len(data)}; "
            "try copying it again"
        )
    if len(data) > total:
        raise FileError(
            f"expected a file of {total} bytes, got {path} of {len(data)}: it is corrupt; "
            "try copying it again"
        )
    if zlib.crc32(data[:-TAIL]) != int.from_bytes(data[-TAIL:], "little"):
        raise FileError(
            f"expected the checksum of {path} to match, got another: it is corrupt; "
            "try copying it again"
        )
    return data[start:-TAIL]


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
