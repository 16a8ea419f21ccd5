"""The arrays of a model by path, and a model with other arrays in their places."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx

from koopjax._core import expected, is_tracing

Path = tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Entry:
    """An array to store: its path, its value, and the shape and dtype that a reader will expect.

    One that stands for others, from which a reader rebuilds them, names their paths.
    """

    path: Path
    value: Any
    shape: tuple[int, ...] | None = None
    dtype: Any = None
    stands_for: tuple[Path, ...] = ()

    @property
    def covers(self) -> tuple[Path, ...]:
        """The arrays of the model that a reader has with this one."""
        return self.stands_for or (self.path,)


def spell(path: Path) -> str:
    """A path as it is shown and compared, such as `layers/0/kernel`."""
    return "/".join(str(part) for part in path) or "(the array itself)"


def arrays_of(model: Any) -> dict[str, Any]:
    """The arrays that a file of this model holds, by spelled path in a fixed order.

    Random streams and sown intermediates are left out: they belong to a run, not to the model.
    """
    if isinstance(model, nnx.Module):
        state = nnx.to_flat_state(nnx.state(model))
        found = [(p, v.get_value()) for p, v in zip(*_sides(state), strict=True) if _kept(v)]
        return {spell(path): value for path, value in sorted(found, key=lambda pair: _order(*pair))}
    _, tree = _parts(model)
    pairs, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_variable)
    return {
        spell(tuple(map(_name, path))): leaf.get_value() if _is_variable(leaf) else leaf
        for path, leaf in pairs
    }


def fill(model: Any, arrays: dict[str, np.ndarray]) -> Any:
    """A copy of a model with these arrays; what they don't name stays."""
    if isinstance(model, nnx.Module):
        graph, state = nnx.split(model)
        flat = nnx.to_flat_state(state)
        held = []
        for path, variable in zip(*_sides(flat), strict=True):
            name = spell(path)
            if _kept(variable) and name in arrays:
                value = to_jax(arrays[name])
                variable = type(variable).from_metadata(value, variable.get_metadata())
            held.append((path, variable))
        return nnx.merge(graph, nnx.from_flat_state(held))
    code, tree = _parts(model)
    pairs, treedef = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_variable)
    leaves = [_like(arrays[spell(tuple(map(_name, path)))], leaf) for path, leaf in pairs]
    filled = jax.tree_util.tree_unflatten(treedef, leaves)
    return filled if code is None else (code, filled)


def to_numpy(name: str, value: Any) -> np.ndarray:
    """A leaf as a NumPy array, or one line that says why it can't be stored."""
    if is_tracing(value):
        raise expected(f"a concrete array at {name}", "a traced one", "export.save outside jit")
    if isinstance(value, jax.ShapeDtypeStruct):
        raise expected(f"an array at {name}", "only its shape", "a model with its numbers")
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        raise expected(f"numbers at {name}", "a random key", "a model without it")
    array = np.asarray(value)
    if array.dtype.kind in "OUSVMm" and not jnp.issubdtype(array.dtype, jnp.floating):
        raise expected(f"numbers at {name}", type(value).__name__)
    return array


def to_jax(array: np.ndarray) -> jax.Array:
    """A jax array of the very dtype, 64 bits included, whatever the global setting is."""
    with jax.enable_x64(True):
        return jnp.asarray(array)


def _like(array: np.ndarray, leaf: Any) -> Any:
    """An array in the form of a template's leaf: NumPy stays NumPy, a Python number a number."""
    if _is_variable(leaf):
        return type(leaf).from_metadata(to_jax(array), leaf.get_metadata())
    if isinstance(leaf, bool | int | float | complex):
        return array.item()
    return array if isinstance(leaf, np.ndarray | np.generic) else to_jax(array)


def _is_variable(node: Any) -> bool:
    return isinstance(node, nnx.Variable)


def _parts(model: Any) -> tuple[Any, Any]:
    """A model that is no `nnx.Module` as (code, tree of arrays)."""
    if isinstance(model, tuple) and len(model) == 2 and not isinstance(model[0], nnx.Module):
        first, second = model
        is_array = hasattr(first, "dtype")
        if isinstance(first, linen.Module) or (callable(first) and not is_array):
            return first, second
    return None, model


def _kept(variable: Any) -> bool:
    return not isinstance(variable, nnx.RngState | nnx.Intermediate)


def _sides(flat: Any) -> tuple[list[Path], list[Any]]:
    pairs = list(flat)
    return [path for path, _ in pairs], [variable for _, variable in pairs]


def _order(path: Path, value: Any) -> Any:
    """Sort by path, numbers as numbers: the order must not depend on a Flax version."""
    del value
    parts = [str(part) for part in path]
    return [(0, int(p), "") if p.isdigit() else (1, 0, p) for p in parts]


def _name(entry: Any) -> str:
    for attribute in ("name", "key", "idx"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    return str(entry)
