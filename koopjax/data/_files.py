"""The idx and npz files that image-classification sets are handed round in."""

import contextlib
import gzip
import hashlib
import itertools
import math
import os
import pathlib
import struct
import zipfile
import zlib
from collections.abc import Iterator

import numpy as np

from koopjax._core import as_path, existing, expected, read, write_whole
from koopjax.data._dataset import MissingData

#: idx type byte -> dtype on disk (big-endian, as the format has it).
_IDX_DTYPES = {
    0x08: np.dtype(">u1"),
    0x09: np.dtype(">i1"),
    0x0B: np.dtype(">i2"),
    0x0C: np.dtype(">i4"),
    0x0D: np.dtype(">f4"),
    0x0E: np.dtype(">f8"),
}
_IDX_CODES = {dtype.newbyteorder("="): code for code, dtype in _IDX_DTYPES.items()}

#: Role -> stem of the file name that the MNIST family uses for it.
IDX_STEMS = {
    "x_train": "train-images",
    "y_train": "train-labels",
    "x_test": "t10k-images",
    "y_test": "t10k-labels",
}
_ROLES = tuple(IDX_STEMS)
RANK_LIMIT = 32
HEAD = 4 + 4 * RANK_LIMIT  # bytes of the longest header of an idx file
DEFLATE = 1032  # the most bytes that one byte of a deflate stream can stand for


def _corrupt(path, expected: str, got: str) -> ValueError:
    return ValueError(
        f"{path}: expected {expected}, got {got}; try to fetch the file again, it is cut off "
        "or damaged"
    )


def _raw_bytes(path: pathlib.Path) -> bytes:
    """Whole content of a file, unpacked where it is gzip (told by content, not by name)."""
    with open(path, "rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    if not zipped:
        return path.read_bytes()
    size = path.stat().st_size
    try:
        with gzip.open(path, "rb") as file:
            start = file.read(HEAD)
            try:
                declared = _idx_header(path, start)[3]
            except ValueError:
                while file.read(1 << 20):  # where the stream is damaged, that is the reason
                    pass
                raise
            if declared > DEFLATE * size + len(start):
                raise _corrupt(path, f"{declared:,} bytes as the header says", f"{size:,} packed")
            return start + file.read(max(0, declared - len(start) + 1))
    except (EOFError, OSError, zlib.error) as error:
        raise _corrupt(path, "a whole gzip stream", f"{size:,} bytes that end in {error!r}") from (
            error
        )


def _idx_header(path: pathlib.Path, raw: bytes) -> tuple[int, tuple[int, ...], np.dtype, int]:
    """Where the values start, the shape, the type on disk, and the bytes of a whole file."""
    if len(raw) < 4 or raw[0] or raw[1] or raw[2] not in _IDX_DTYPES:
        raise _corrupt(path, "an idx header (two zero bytes, a type, a rank)", repr(raw[:4]))
    rank, dtype = raw[3], _IDX_DTYPES[raw[2]]
    if rank > RANK_LIMIT:
        raise _corrupt(path, f"at most {RANK_LIMIT} axes", f"{rank}")
    start = 4 + 4 * rank
    if len(raw) < start:
        raise _corrupt(path, f"{start:,} bytes of idx header", f"{len(raw):,}")
    shape = struct.unpack(f">{rank}I", raw[4:start])
    # Python integers: a damaged header may ask for more than int64 counts.
    return start, shape, dtype, start + dtype.itemsize * math.prod(shape)


def read_idx(path: str | os.PathLike) -> np.ndarray:
    """Read one idx file, plain or gzip.

    The idx format is four bytes (0, 0, type, rank), one big-endian 32-bit extent an axis, and the
    values. Whether a file is gzip is told from its content, not from its name.

    Args:
        path: the file.

    Returns:
        The array, in native byte order, of the type that the header names.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not an idx file, or cut off, or longer than its header says; the message names
            the file, the bytes expected and the bytes there.
    """
    path = existing("an idx file", path)
    raw = _raw_bytes(path)
    start, shape, dtype, size = _idx_header(path, raw)
    if len(raw) != size:
        raise _corrupt(path, f"{size:,} bytes for shape {shape}", f"{len(raw):,}")
    array = np.frombuffer(raw, dtype, offset=start).reshape(shape)
    return array.astype(dtype.newbyteorder("="))


def write_idx(path: str | os.PathLike, array: np.ndarray) -> None:
    """Write an array as an idx file, gzip where the name ends in `.gz`; atomic.

    Args:
        path: where to; an existing file is replaced only once the new one is whole.
        array: of dtype uint8, int8, int16, int32, float32 or float64.

    Raises:
        ValueError: a dtype that idx cannot hold.
    """
    path = as_path("an idx file", path)
    array = np.asarray(read("the array", array))
    code = _IDX_CODES.get(array.dtype)
    if code is None:
        raise ValueError(
            f"idx files: expected dtype {', '.join(str(d) for d in _IDX_CODES)}, got "
            f"{array.dtype}; try array.astype('float32')"
        )
    header = bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    raw = header + array.astype(_IDX_DTYPES[code]).tobytes()
    if path.suffix == ".gz":
        # No time stamp: the same array gives the same file.
        raw = gzip.compress(raw, compresslevel=6, mtime=0)
    if not path.parent.is_dir():
        raise expected("a folder that is there", str(path.parent), f"mkdir -p {path.parent}")
    write_whole(path, raw)


def read_npz(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Read an npz file with `x_train`, `y_train`, `x_test` and `y_test` (the Keras layout).

    Args:
        path: the file. Pickled objects in it are refused.

    Returns:
        The four arrays, as stored.

    Raises:
        FileNotFoundError: no such file.
        ValueError: cut off or damaged, or one of the four arrays missing.
    """
    path = existing("an npz archive", path)
    size = path.stat().st_size
    with _damaged(path, size), zipfile.ZipFile(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()]
    if not set(_ROLES) <= set(names):
        raise ValueError(
            f"{path}: expected arrays {', '.join(_ROLES)}, got "
            f"{', '.join(names) or 'none'}; try numpy.savez with those names"
        )
    with _damaged(path, size), zipfile.ZipFile(path) as archive:
        return {role: _npy(archive, f"{role}.npy") for role in _ROLES}


@contextlib.contextmanager
def _damaged(path: pathlib.Path, size: int) -> Iterator[None]:
    """What zipfile and NumPy say of an archive that is cut off or damaged, in one line."""
    try:
        yield
    except (
        ArithmeticError, EOFError, LookupError, NotImplementedError, OSError, RuntimeError,
        SyntaxError, TypeError, ValueError, struct.error, zipfile.BadZipFile, zlib.error,
    ) as error:  # fmt: skip
        why = " ".join(str(error).split())[:200]
        raise _corrupt(path, "a whole npz archive", f"{size:,} bytes ({why})") from error


def _npy(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """One array of an archive; NumPy would make room for whatever its header says."""
    info = archive.getinfo(name)
    if info.file_size > DEFLATE * info.compress_size + HEAD:
        raise ValueError(f"{info.compress_size:,} bytes that say they hold {info.file_size:,}")
    with archive.open(name) as file:
        version = np.lib.format.read_magic(file)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, _, dtype = read(file)
        if math.prod(shape) * dtype.itemsize > info.file_size:
            raise ValueError(f"shape {shape} in {info.file_size:,} bytes")
    with archive.open(name) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _idx_file(folder: pathlib.Path, role: str) -> pathlib.Path | None:
    """The idx file of one role, in any of the spellings in use, the unpacked one first."""
    spellings = itertools.product(("idx3", "idx1", "idx4"), "-.", ("", ".gz"))
    names = (f"{IDX_STEMS[role]}{dot}{rank}-ubyte{end}" for rank, dot, end in spellings)
    return next((folder / name for name in names if (folder / name).is_file()), None)


def find_files(folder: pathlib.Path, name: str) -> dict[str, pathlib.Path] | pathlib.Path | None:
    """The idx files (by role) or the npz file that a folder holds, or None.

    A folder with some of the four idx files, not all, is an error: it is most likely a download
    that was interrupted.
    """
    found = {role: _idx_file(folder, role) for role in _ROLES}
    have = {role: path for role, path in found.items() if path is not None}
    if len(have) == len(_ROLES):
        return have
    for stem in (name, name.replace("_", "-"), "data"):
        path = folder / f"{stem.replace('/', '-')}.npz"
        if path.is_file():
            return path
    if have:
        lack = ", ".join(f"{IDX_STEMS[role]}-idx*-ubyte" for role in _ROLES if role not in have)
        raise MissingData(
            f"{folder}: expected the four idx files of {name}, got {len(have)}; try to add {lack}"
        )
    return None


def read_found(found: dict[str, pathlib.Path] | pathlib.Path) -> dict[str, np.ndarray]:
    """The four arrays of what `find_files` found."""
    if isinstance(found, dict):
        return {role: read_idx(path) for role, path in found.items()}
    return read_npz(found)


def sha256(array: np.ndarray) -> str:
    """SHA-256 of the raw idx file that the uint8 array would make."""
    array = np.ascontiguousarray(array)
    digest = hashlib.sha256(bytes([0, 0, 0x08, array.ndim]))
    digest.update(struct.pack(f">{array.ndim}I", *array.shape))
    digest.update(array.astype(np.uint8, copy=False).tobytes())
    return digest.hexdigest()
