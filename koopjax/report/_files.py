"""Reading and writing results, whole or not at all."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from typing import Any

from koopjax._core import as_path, existing, expected, plain, read_json, write_whole


def versions() -> dict[str, str]:
    """Versions of python, koopjax and the libraries whose arithmetic the results depend on."""
    from importlib import metadata

    import koopjax

    found = {name: metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax", "numpy")}
    return {"koopjax": koopjax.__version__, **found, "python": platform.python_version()}


def to_json(results: Mapping[str, Any]) -> str:
    """The results as JSON text, one top-level field a line, arrays and scalars as plain numbers.

    >>> to_json({"seed": 0, "original": {"accuracy": float("nan")}})
    '{\\n"seed": 0,\\n"original": {"accuracy": null}\\n}\\n'
    """
    fields = (f"{json.dumps(k)}: {_field(v)}" for k, v in plain(results).items())
    return "{\n" + ",\n".join(fields) + "\n}\n"


def _field(value: Any) -> str:
    """A list of rows gets a line for each row, anything else one line."""
    if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
        return "[\n" + ",\n".join("  " + json.dumps(row) for row in value) + "\n]"
    return json.dumps(value)


def write_atomically(path: str | os.PathLike[str], content: str | bytes) -> int:
    """Write a file by renaming a finished temporary one over it; returns the bytes written.

    An interruption or a full disk leaves the previous file as it was and no litter beside it.
    """
    target = as_path("the file to write", path)
    if not target.name or target.is_dir():
        raise expected("a path of the file to write", f"the folder {target}", "a file in it")
    if not isinstance(content, str | bytes):
        raise expected("text or bytes to write", type(content).__name__)
    try:
        data = content.encode() if isinstance(content, str) else content
    except UnicodeEncodeError as error:
        raise expected("text that UTF-8 can hold", str(error)[:80]) from None
    target.parent.mkdir(parents=True, exist_ok=True)
    write_whole(target, data)
    return len(data)


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Results from a results.json, or from the folder that holds one.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: not the JSON of a results file.
    """
    source = as_path("results", path)
    if source.is_dir():
        source = source / "results.json"
    results = read_json("results", existing("a results.json", source, "koopjax demo first"))
    if not isinstance(results, dict) or "original" not in results or "dataset" not in results:
        raise expected(
            f"the fields dataset and original in {source}",
            "another file",
            "a results.json written by koopjax demo, analyze or compress",
        )
    return results
