"""Frozen dataclasses that are pytrees: arrays are leaves, what changes a shape is static."""

import dataclasses
from typing import Any, TypeVar, dataclass_transform

import jax

T = TypeVar("T")


def static(**kwargs: Any) -> Any:
    """A dataclass field that belongs to the tree's structure; its value must be hashable.

    Args:
        **kwargs: passed on to `dataclasses.field`, for example `default=2`.
    """
    metadata = {**kwargs.pop("metadata", {}), "static": True}
    return dataclasses.field(metadata=metadata, **kwargs)


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field, static))
def pytree(cls: type[T]) -> type[T]:
    """Make a class a frozen dataclass registered as a pytree.

    Fields declared with `static()` go to the tree's structure, all others are leaves. Equality is
    identity-free for the static part only through `jax.tree_util`; `==` is not defined on the
    leaves, because comparing arrays gives arrays.

    Args:
        cls: a class with annotated fields; it must not validate in `__post_init__`, since JAX
            rebuilds it from placeholders.

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
    fields = dataclasses.fields(made)  # pyright: ignore[reportArgumentType]
    meta = [f.name for f in fields if f.metadata.get("static", False)]
    data = [f.name for f in fields if not f.metadata.get("static", False)]
    return jax.tree_util.register_dataclass(made, data_fields=data, meta_fields=meta)
