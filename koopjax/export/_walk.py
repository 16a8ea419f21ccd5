"""The arrays of a model by path, and a model with other arrays in their places."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from koopjax import forms
from koopjax._core import expected, is_array, is_tracing, on_device

Path = tuple[Any, ...]


class Entry(NamedTuple):
    """An array to store: its name, its value, and the shape and dtype that a reader will expect."""

    name: str
    value: Any
    shape: tuple[int, ...] | None = None
    dtype: Any = None


def spell(path: Path) -> str:
    """A path as it is shown and compared, such as `layers/0/kernel`."""
    return "/".join(str(part) for part in path) or "(the array itself)"


def arrays_of(model: Any) -> dict[str, Any]:
    """The arrays that a file of this model holds, by spelled path in a fixed order.

    Random streams and sown intermediates are left out: they belong to a run, not to the model.
    """
    opened = forms.opened(model)
    found = [(path, leaf) for path, leaf in _named(opened) if path is not None]
    if not opened.own_order:
        found.sort(key=lambda pair: _order(pair[0]))
    return {spell(path): leaf for path, leaf in found}


def fill(model: Any, arrays: dict[str, np.ndarray]) -> Any:
    """A copy of a model with these arrays; what they don't name stays, what is one stays one."""
    opened = forms.opened(model)
    one_each: dict[int, jax.Array] = {}
    leaves = []
    for path, leaf in _named(opened):
        array = None if path is None else arrays.get(spell(path))
        if array is None:
            leaves.append(leaf)
        elif isinstance(leaf, bool | int | float | complex):
            leaves.append(array.item())
        elif isinstance(leaf, np.ndarray | np.generic):
            leaves.append(array)
        else:
            if id(array) not in one_each:
                one_each[id(array)] = to_jax(array)
            leaves.append(one_each[id(array)])
    return opened.build(jax.tree.unflatten(jax.tree.structure(opened.tree), leaves))


def to_numpy(name: str, value: Any) -> np.ndarray:
    """A leaf as a NumPy array, or one line that says why it can't be stored."""
    if is_tracing(value):
        raise expected(f"a concrete array at {name}", "a traced one", "export.save outside jit")
    if isinstance(value, jax.ShapeDtypeStruct):
        raise expected(f"an array at {name}", "only its shape", "a model with its numbers")
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        raise expected(f"numbers at {name}", "a random key", "a model without it")
    if np.ma.is_masked(value):
        raise expected(f"numbers at {name}", "masked entries", "filling them")
    array = np.asarray(value)
    if array.dtype.kind in "OUSVMm" and not jnp.issubdtype(array.dtype, jnp.floating):
        raise expected(f"numbers at {name}", type(value).__name__)
    return array


def to_jax(array: np.ndarray) -> jax.Array:
    """A jax array of the very dtype, 64 bits included, whatever the global setting is."""
    with jax.enable_x64(True):
        return on_device(array)


def _named(opened: forms.Opened) -> list[tuple[Path | None, Any]]:
    """All leaves of a model, those of its file with their paths."""
    code, tree = opened.code, opened.tree
    if code is None and callable(tree) and jax.tree_util.all_leaves([tree]):
        raise expected(
            "a model whose parameters can be seen",
            f"a {type(tree).__name__} that closes over them, or has none",
            "the module itself, or (function, params) with function(params, x)",
        )
    # A bare function's arrays are not to be seen.
    has_code = code is not None or (callable(tree) and len(jax.tree.leaves(tree)) > 1)
    named: list[tuple[Path | None, Any]] = []
    for path, leaf, holder in forms.named_leaves(tree):
        # Functions and strings of a model are code, as its class is.
        kept = not isinstance(holder, nnx.RngState | nnx.Intermediate)
        kept = kept and (is_array(leaf) or isinstance(leaf, int) or not has_code)
        named.append((forms.spell(path) if kept else None, leaf))
    return named


def _order(path: Path) -> Any:
    """Sort by path, numbers as numbers: the order must not depend on a Flax version."""
    parts = [str(part) for part in path]
    return [(0, int(p), "") if p.isdigit() else (1, 0, p) for p in parts]
