"""The stored file of a model: one lean binary, written atomically, read back to the bit.

`save` and `stored_bytes` count every byte a model needs; `load` gives a model that runs. See
`koopjax/export/FORMAT.md` for the layout.
"""

from koopjax.export._file import FileError
from koopjax.export._store import Description, StoredArray, describe, load, save, stored_bytes

__all__ = [
    "Description",
    "FileError",
    "StoredArray",
    "describe",
    "load",
    "save",
    "stored_bytes",
]
