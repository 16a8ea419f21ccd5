"""Frozen dataclasses that are pytrees: arrays are leaves, what changes a shape is static."""

import dataclasses
import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar, dataclass_transform

import jax
import numpy as np

from koopjax._core._door import check_held, read
from koopjax._core._watch import version

T = TypeVar("T")


def static(**kwargs: Any) -> Any:
    """A dataclass field that belongs to the tree's structure; its value must be hashable."""
    metadata = {**kwargs.pop("metadata", {}), "static": True}
    return dataclasses.field(metadata=metadata, **kwargs)


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field, static))
def pytree(cls: type[T]) -> type[T]:
    """Make a class a frozen dataclass registered as a pytree.

    Fields declared with `static()` go to the tree's structure, all others are leaves; `==` is not
    defined, because comparing arrays gives arrays. The class must not validate in `__post_init__`,
    since JAX rebuilds it from placeholders.

    Example:
        >>> import jax
        >>> @pytree
        ... class Scale:
        ...     factor: float
        ...     name: str = static(default="scale")
        >>> jax.tree.leaves(Scale(2.0))
        [2.0]
    """
    made = dataclasses.dataclass(frozen=True, eq=False)(cls)
    data, meta = _fields(made)
    return jax.tree_util.register_dataclass(made, data_fields=data, meta_fields=meta)


def _fields(cls: Any) -> tuple[list[str], list[str]]:
    fields = dataclasses.fields(cls)
    meta = [f.name for f in fields if f.metadata.get("static", False)]
    return [f.name for f in fields if f.name not in meta], meta


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field, static))
def watched(code: Callable[[Any], Hashable]) -> Callable[[type[T]], type[T]]:
    """As `pytree`, for a class with a function among its static fields.

    The function may close over what changes. Its version at the moment of flattening belongs to
    the structure, so that JAX compiles again once the function computes something else. `code`
    finds in an instance what the version is found by.
    """

    def decorate(cls: type[T]) -> type[T]:
        made = dataclasses.dataclass(frozen=True, eq=False)(cls)
        data, meta = _fields(made)

        def flatten(tree: Any) -> tuple[list[tuple[Any, Any]], tuple[Any, ...]]:
            children = [(jax.tree_util.GetAttrKey(name), getattr(tree, name)) for name in data]
            return children, (tuple(getattr(tree, name) for name in meta), version(code(tree)))

        def unflatten(structure: tuple[Any, ...], children: Any) -> Any:
            return made(**dict(zip((*data, *meta), (*children, *structure[0]), strict=True)))

        jax.tree_util.register_pytree_with_keys(made, flatten, unflatten)
        return made

    return decorate


class Keyed:
    """A dataclass with its hash computed once, by all fields: one that is a static argument."""

    @functools.cached_property
    def _values(self) -> tuple[Any, ...]:
        fields = dataclasses.fields(self)  # pyright: ignore[reportArgumentType]
        return tuple(getattr(self, field.name) for field in fields)

    @functools.cached_property
    def _hash(self) -> int:
        return hash((type(self), self._values))

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Keyed) or type(self) is not type(other):
            return False
        return hash(self) == hash(other) and self._values == other._values


@dataclasses.dataclass(frozen=True, eq=False)
class Static:
    """Any object as a static argument: equal for the same value of one type, or the same object."""

    value: Any

    def __hash__(self) -> int:
        try:
            return hash((type(self.value), self.value))
        except TypeError:
            return id(self.value)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Static) or type(other.value) is not type(self.value):
            return False
        # What has no hash may be changed in place.
        return self.value is other.value or (_is_hashable(self.value) and self.value == other.value)


def _is_hashable(value: Any) -> bool:
    """Whether a value has a hash, which its type alone doesn't tell."""
    try:
        hash(value)
    except TypeError:
        return False
    return True


@dataclasses.dataclass(frozen=True)
class Outline:
    """A pytree without its arrays, hashable; see `take_apart`."""

    treedef: Any
    statics: tuple[Static | None, ...]

    def fill(self, arrays: Any, *, statics: bool = True) -> Any:
        """The tree again, with these arrays in their order; `None` for all else where not asked."""
        source = iter(arrays)
        others = [s.value if s is not None and statics else None for s in self.statics]
        pairs = zip(self.statics, others, strict=True)
        leaves = [next(source) if s is None else other for s, other in pairs]
        return jax.tree.unflatten(self.treedef, leaves)


def is_array(leaf: Any) -> bool:
    """Whether a leaf is an array or a floating-point number; integers and flags are settings."""
    kinds = jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct | float | complex
    return isinstance(leaf, kinds)


def native(name: str, leaf: Any) -> Any:
    """A leaf, what NumPy has read by the door: any byte order, no text, no dates, none masked.

    Numbers that JAX would make infinite or wrap are refused, all others left at their width.
    """
    if not isinstance(leaf, np.ndarray | np.generic | str):
        return leaf
    return check_held(name, read(name, leaf))


def take_apart(tree: Any) -> tuple[Outline, list[tuple[Any, Any]]]:
    """A pytree as its static outline and its arrays, each with its path.

    Functions, strings, integers and flags among the leaves belong to the outline, as an activation
    or a number of heads of a callable pytree does; arrays and floating-point numbers don't.
    """
    pairs, treedef = jax.tree_util.tree_flatten_with_path(tree)
    pairs = [
        (path, leaf if isinstance(leaf, str) else native(jax.tree_util.keystr(path), leaf))
        for path, leaf in pairs
    ]
    statics = tuple(None if is_array(leaf) else Static(leaf) for _, leaf in pairs)
    return Outline(treedef, statics), [pair for pair in pairs if is_array(pair[1])]


def firsts(arrays: Sequence[Any]) -> list[int]:
    """For each array, the place of the first that is the same memory: its own, unless tied."""
    held = [np.asarray(array) for array in arrays]  # all at once, or memory would be used again
    seen: dict[Any, int] = {}
    out = []
    for place, array in enumerate(held):
        key = (array.__array_interface__["data"][0], array.shape, array.strides, array.dtype)
        out.append(seen.setdefault(key, place) if array.size else place)
    return out
