"""The header of a stored file: looked through before any of it is made."""

from typing import Any

import msgpack

from koopjax.export._claims import DEPTH_LIMIT
from koopjax.export._file import FileError

# Of msgpack's types that start with one byte: bytes that follow as they are, or the width of a
# length and how many values or bytes each counted one is.
_FIXED = {
    0xC0: 0, 0xC2: 0, 0xC3: 0, 0xCA: 4, 0xCB: 8,
    0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8,
}  # fmt: skip
_BYTES = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}
_VALUES = {0xDC: (2, 1), 0xDD: (4, 1), 0xDE: (2, 2), 0xDF: (4, 2)}


def split_header(body: bytes, path: object) -> tuple[list[Any], int]:
    """The node of a body and where its arrays start."""
    try:
        end = _end(body)
        node = msgpack.unpackb(body[:end])
    except (IndexError, ValueError, msgpack.UnpackException) as error:
        raise FileError(f"expected a readable header in {path}, got: {error}") from None
    if not isinstance(node, list) or not node or not isinstance(node[0], str):
        raise FileError(f"expected a readable header in {path}, got no name of an architecture")
    return node, end


def _end(body: bytes) -> int:
    """The place behind the first value, every list and text in which is there in full.

    Unpacking makes a list of the length that it declares before its entries are seen; here no
    length is believed.
    """
    at, open_lists = 0, [1]
    while open_lists:
        if open_lists[-1] == 0:
            open_lists.pop()
            continue
        open_lists[-1] -= 1
        code = body[at]
        at += 1
        if code < 0x80 or code >= 0xE0:
            continue
        if code in _FIXED:
            at += _FIXED[code]
        elif code in _BYTES or 0xA0 <= code < 0xC0:
            width = _BYTES.get(code, 0)
            length = int.from_bytes(body[at : at + width], "big") if width else code & 0x1F
            at += width + length
        elif code in _VALUES or code < 0xA0:
            width, each = _VALUES.get(code, (0, 1 if code & 0x10 else 2))
            length = int.from_bytes(body[at : at + width], "big") if width else code & 0x0F
            at += width
            if length * each > len(body) - at:
                raise IndexError(f"a list of {length} entries in {len(body) - at} bytes")
            open_lists.append(length * each)
            if len(open_lists) > DEPTH_LIMIT:
                raise IndexError(f"lists within lists more than {DEPTH_LIMIT} deep")
        else:
            raise IndexError(f"a value of an unknown type ({code:#x})")
        if at > len(body):
            raise IndexError("a value that ends past the file")
    return at
