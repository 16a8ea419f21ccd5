"""The compiled program of a bucket of points, and how many lanes of it fit in memory."""

import functools
import re
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from koopjax._core import NONFINITE_SOLUTION, SUCCESS, expected

LANES = ("vmap", "map")
UNITS = {"": 1, "b": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "kb": 1e3, "mb": 1e6, "gb": 1e9}


def bytes_of(limit: Any) -> int | None:
    """A memory limit as a number of bytes: 2**30, "1GiB", "512 MiB"; None for none."""
    if limit is None:
        return None
    if isinstance(limit, str):
        found = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)(e\d+)?\s*([a-z]*)\s*", limit.lower())
        if found and found[3] in UNITS:
            return int(float(found[1] + (found[2] or "")) * UNITS[found[3]])
    elif not isinstance(limit, bool) and np.isfinite(limit) and limit > 0:
        return int(limit)
    raise expected("a memory limit in bytes, or such as '2GiB'", f"{limit!r}")


def words(size: float) -> str:
    """A number of bytes in the unit that suits it."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{int(size)} bytes"


def _flag(out: dict[str, Any]) -> Array:
    """SUCCESS, or NONFINITE_SOLUTION where a scalar of the output is NaN or infinite."""
    scalars = [v for v in out.values() if isinstance(v, jax.Array) and v.ndim == 0]
    inexact = [v for v in scalars if jnp.issubdtype(v.dtype, jnp.inexact)]
    sound = functools.reduce(jnp.logical_and, map(jnp.isfinite, inexact), jnp.asarray(True))
    return jnp.where(sound, SUCCESS, NONFINITE_SOLUTION).astype(jnp.int32)


def _outputs(made: Any, taken: frozenset[str]) -> dict[str, Any]:
    """What the function returned as a dict of arrays, with a result code."""
    if not isinstance(made, Mapping) or not made or not all(isinstance(k, str) for k in made):
        raise expected(
            "a dict of scalars or arrays from the function", type(made).__name__, "{'error': error}"
        )
    clash = sorted(taken & set(made))
    if clash:
        raise expected("outputs named differently from the axes", f"both named {clash}")
    # Plain dicts come out of jit sorted by name; ordered ones as the function wrote them.
    out = OrderedDict((name, jax.tree.map(jnp.asarray, value)) for name, value in made.items())
    if "result" not in out:
        out["result"] = _flag(out)
    return out


@functools.partial(jax.jit, static_argnames=("function", "settings", "lanes"))
def run_lanes(
    data: tuple[Any, ...],
    values: dict[str, Any],
    at: dict[str, Any],
    index: Any,
    *,
    function: Any,
    settings: tuple[tuple[str, Any, type], ...],
    lanes: str,
) -> dict[str, Any]:
    """The function at many points: `index` and each entry of `at` hold one number a lane.

    Values of the axes come whole and each lane picks its own, so that nothing is gathered on the
    host and what is large on an axis (data of several seeds) is not copied.
    """
    fixed = {name: value for name, value, _ in settings}
    taken = frozenset(values) | frozenset(fixed)

    def one(lane: tuple[Any, dict[str, Any]]) -> dict[str, Any]:
        point = {
            name: jax.tree.map(lambda leaf, i=lane[1][name]: leaf[i], stacked)
            for name, stacked in values.items()
        }
        try:
            made = function(*data, **fixed, **point)
        except TypeError as error:  # JAX's own for traced shapes and branches are of this kind
            if values:
                error.add_note(
                    f"the sweep traces the axes {list(values)}; an axis that sets a shape or a "
                    "branch belongs in static="
                )
            raise
        return _outputs(made, taken)

    if lanes == "map":
        return jax.lax.map(one, (index, at))
    return jax.vmap(lambda i, a: one((i, a)))(index, at)


class Program:
    """A bucket's function with everything but the points set."""

    def __init__(self, function: Any, data: Any, values: Any, settings: Any, lanes: str) -> None:
        """Hold what all chunks have in common; nothing is traced yet."""
        self.arguments = (data, values)
        self.static = {"function": function, "settings": settings, "lanes": lanes}

    def __call__(self, at: dict[str, np.ndarray], size: int, count: int) -> dict[str, Any]:
        """Outputs at `count` points, the last one repeated to fill up a chunk of `size`."""
        fill = np.minimum(np.arange(size), count - 1)
        index = np.arange(size, dtype=np.int32)
        chunk = {name: positions[fill] for name, positions in at.items()}
        out = run_lanes(*self.arguments, chunk, index, **self.static)
        return jax.tree.map(lambda leaf: leaf[:count], jax.device_get(out))

    def _lanes(self, size: int) -> tuple[Any, ...]:
        index = np.zeros(size, np.int32)
        return *self.arguments, dict.fromkeys(self.arguments[1], index), index

    def structure(self) -> Any:
        """How the outputs are nested."""
        return jax.tree.structure(run_lanes.eval_shape(*self._lanes(1), **self.static))

    def bytes(self, size: int) -> int:
        """What the compiled program of so many lanes takes: arguments, results, temporaries."""
        found = run_lanes.lower(*self._lanes(size), **self.static).compile().memory_analysis()
        if found is None:
            raise expected(
                "a backend that says what memory a program takes",
                f"{jax.default_backend()}, which does not",
                "chunk= instead of memory_limit=",
            )
        return int(
            found.temp_size_in_bytes
            + found.argument_size_in_bytes
            + found.output_size_in_bytes
            - found.alias_size_in_bytes
        )

    def chunk(self, points: int, limit: int) -> int:
        """How many lanes of a bucket fit within a limit of bytes.

        All of them are tried first: where they fit, that compilation is the one that runs. Else
        the bytes are a line through one lane and all lanes, and what the line promises is checked.
        """
        whole = self.bytes(points)
        if whole <= limit:
            return points
        single = self.bytes(1) if points > 1 else whole
        if single > limit:
            raise expected(
                f"a memory limit of at least {words(single)} ({single} bytes), which one lane "
                f"takes with the data",
                f"{words(limit)} ({limit} bytes)",
                "a larger limit, or smaller data",
            )
        size = 1 + int((limit - single) * (points - 1) // max(whole - single, 1))
        size = max(1, min(size, points - 1))
        while size > 1 and self.bytes(size) > limit:
            size = max(1, size * 3 // 4)
        return size
