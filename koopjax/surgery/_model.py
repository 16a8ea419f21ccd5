"""The forms a model may have, as one static definition and a flat list of arrays."""

import dataclasses
import functools
import inspect
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx

from koopjax import models
from koopjax._core import (
    Static,
    expected,
    infer,
    native,
    put_bound,
    take_apart,
    take_bound,
    version,
)


class Constant(nnx.Variable):
    """An array that belongs to a spliced model but is no parameter: nothing trains it."""


class Keyed:
    """Hash and equality by `key()`, the hash computed once: these objects are static arguments."""

    def key(self) -> tuple[Any, ...]:
        """What tells two of them apart."""
        raise NotImplementedError

    @functools.cached_property
    def _hash(self) -> int:
        return hash((type(self), self.key()))

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if type(self) is not type(other) or hash(self) != hash(other):
            return False
        return self.key() == other.key()  # type: ignore[attr-defined]


@dataclasses.dataclass(frozen=True, eq=False)
class Definition(Keyed):
    """A model without its arrays: `definition(leaves, x)` is its output in inference mode.

    Attributes:
        form: `"nnx"`, `"linen"`, `"function"` or `"tree"`.
        static: graph definition or Linen module, as `Static`; `Outline` of a pytree, of a pair
            behind its function.
        treedef: how the leaves make up the state, the variables or the parameters.
        paths: a readable name for each leaf, such as `layers.0.kernel`.
        kinds: the `nnx.Variable` type that holds each leaf in a spliced model.
        bound: arguments by name that a `functools.partial` around the module binds.
        version: from `_core.version`: another one once the code computes something else.
    """

    form: str
    static: Any
    treedef: Any
    paths: tuple[str, ...]
    kinds: tuple[type[nnx.Variable], ...]
    bound: tuple[tuple[str, Static], ...] = ()
    version: int = 0

    def key(self) -> tuple[Any, ...]:
        """All fields."""
        return tuple(getattr(self, field.name) for field in dataclasses.fields(self))

    def unversioned(self) -> "Definition":
        """What the version is found by."""
        return dataclasses.replace(self, version=0)

    def __call__(self, leaves: Any, x: Any) -> Any:
        """The model's output, BatchNorm by its running statistics and dropout off."""
        return self.observed(leaves, x)[0]

    def observed(self, leaves: Any, x: Any) -> tuple[Any, list[Any]]:
        """The output, and what the call has changed of the model's state."""
        return infer(self.rebuild(leaves), x)

    def rebuild(self, leaves: list[Any]) -> Any:
        """The model in its own form, with these arrays."""
        if self.form == "tree":
            return self.static.fill(leaves)
        if self.form == "function":
            function, outline = self.static
            return function.value, outline.fill(leaves)
        tree, static = jax.tree.unflatten(self.treedef, leaves), self.static.value
        if self.form == "nnx":
            return put_bound(nnx.merge(static, tree), self.bound)
        return put_bound(static, self.bound), tree


def define(model: Any) -> tuple[Definition, list[Any]]:
    """Take a model apart, as it is at this moment: what it closes over may have changed since.

    Args:
        model: an `nnx.Module`, `(linen_module, variables)`, `(function, params)`, or a callable
            pytree.

    Returns:
        The static definition, equal for models that differ in their numbers alone, and the leaves.

    Raises:
        ValueError: none of these forms.
    """
    plain, bound = take_bound(model)
    definition, leaves = _define(plain)
    definition = dataclasses.replace(definition, bound=bound)
    return dataclasses.replace(definition, version=version(definition)), leaves


def _define(model: Any) -> tuple[Definition, list[Any]]:
    if isinstance(model, nnx.Module):
        return _define_nnx(model)
    if isinstance(model, tuple) and len(model) == 2 and callable(model[0]):
        if isinstance(model[0], linen.Module):
            return _define_linen(*model)
        return _define_function(*model)
    if isinstance(model, linen.Module):
        raise expected(
            "a Linen model as the pair (module, variables)",
            f"the module {type(model).__name__} alone",
            "(module, module.init(key, x))",
        )
    if callable(model):
        return _define_tree(model)
    raise expected(
        "a model: an nnx.Module, (linen_module, variables), (function, params) or a callable",
        type(model).__name__,
        "one of these",
    )


def _define_nnx(model: nnx.Module) -> tuple[Definition, list[Any]]:
    still = nnx.clone(model)
    still.eval()
    graphdef, state = nnx.split(still)
    named = models.named_leaves(state)
    paths = [_join(path) for path, _, _ in named]
    kinds = [
        Constant if holder is None else _variable_kind(type(holder), leaf)
        for _, leaf, holder in named
    ]
    leaves, treedef = jax.tree.flatten(state)
    made = Definition("nnx", Static(graphdef), treedef, _unique(paths), tuple(kinds))
    return made, _arrays(leaves)


def _define_linen(module: linen.Module, variables: Any) -> tuple[Definition, list[Any]]:
    if not isinstance(variables, Mapping) or (variables and "params" not in variables):
        raise expected(
            "a Linen model as (module, variables) with 'params' among the variables",
            str(sorted(variables)) if isinstance(variables, Mapping) else type(variables).__name__,
            'module.init(key, x), or (module, {"params": params})',
        )
    flat, treedef = jax.tree_util.tree_flatten_with_path(variables)
    collections = [_component(path[0]) for path, _ in flat]
    known = {"params": nnx.Param, "batch_stats": nnx.BatchStat}
    kinds = tuple(
        _variable_kind(known.get(name, Constant), leaf)
        for name, (_, leaf) in zip(collections, flat, strict=True)
    )
    paths = _unique([_join(path[1:]) for path, _ in flat])
    leaves = _arrays([leaf for _, leaf in flat])
    return Definition("linen", Static(module), treedef, paths, kinds), leaves


def _define_function(function: Callable[..., Any], params: Any) -> tuple[Definition, list[Any]]:
    outline, pairs = take_apart(params)
    paths = [_join(path) for path, _ in pairs]
    # A bare number is no name, and is how an index is written.
    paths = [f"params.{path}" if path[:1].isdigit() else path or "params" for path in paths]
    return _define_pairs("function", (Static(function), outline), paths, pairs)


def _define_tree(model: Any) -> tuple[Definition, list[Any]]:
    """A callable pytree; leaves that are no arrays (a plain function is one) become static."""
    _check_wrapped(model)
    outline, pairs = take_apart(model)
    paths = [_join(path) or "params" for path, _ in pairs]
    return _define_pairs("tree", outline, paths, pairs)


def _check_wrapped(model: Any) -> None:
    """Refuse `jax.vmap(module)` and its like, whose arrays would be constants of the function."""
    module = _wrapped(model)
    if module is model or not (isinstance(module, nnx.Module) or take_apart(module)[1]):
        return
    whole = "nnx.merge(graphdef, state)"
    call = f"{whole}.{model.__name__}" if inspect.ismethod(model) else f"jax.vmap({whole})"
    raise expected(
        "a model whose parameters can be seen",
        f"a function around a {type(module).__name__}",
        f"graphdef, state = nnx.split(module) and the pair (lambda state, x: {call}(x), state)",
    )


def _wrapped(model: Any) -> Any:
    """What a transformation of JAX or Flax was applied to, itself where it is none."""
    if inspect.ismethod(model):
        return model.__self__
    inner = getattr(model, "func", getattr(model, "__wrapped__", None))
    code = getattr(model, "__code__", None)
    if inspect.isfunction(inner) or inner is None:
        # Not every transformation says what it wraps; it closes over it all the same.
        ours = code is not None and code.co_filename.startswith(_TRANSFORMATIONS)
        cells = inspect.getclosurevars(model).nonlocals.values() if ours else ()
        inner = next((value for value in cells if isinstance(value, nnx.Module)), inner)
    return model if inner is None else _wrapped(inner)


_TRANSFORMATIONS = tuple(str(pathlib.Path(str(p.__file__)).parent) for p in (jax, flax))


def _define_pairs(
    form: str, static: Any, paths: list[str], pairs: list[tuple[Any, Any]]
) -> tuple[Definition, list[Any]]:
    leaves = _arrays([leaf for _, leaf in pairs])
    kinds = tuple(_variable_kind(nnx.Param, leaf) for leaf in leaves)
    return Definition(form, static, jax.tree.structure(leaves), _unique(paths), kinds), leaves


def _variable_kind(kind: type[nnx.Variable], leaf: Any) -> type[nnx.Variable]:
    """Integers and keys under the name of a parameter cannot be trained."""
    floating = jnp.issubdtype(jax.typeof(native("a parameter", leaf)).dtype, jnp.inexact)
    return Constant if issubclass(kind, nnx.Param) and not floating else kind


def _arrays(leaves: list[Any]) -> list[Any]:
    leaves = [native("a parameter", leaf) for leaf in leaves]
    return [jnp.array(leaf) if isinstance(leaf, np.ndarray) else leaf for leaf in leaves]


def _component(entry: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    return str(entry)


def _join(path: tuple[Any, ...]) -> str:
    names = [_component(entry) for entry in path]
    # A splice of a splice: the parts' own dictionaries are no level of the model.
    return ".".join(name for name in names if name != "parameters" or len(names) == 1)


def _unique(names: list[str]) -> tuple[str, ...]:
    seen: dict[str, int] = {}
    out = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        out.append(name if seen[name] == 1 else f"{name}@{seen[name]}")
    return tuple(out)
