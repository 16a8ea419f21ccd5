"""The forms a model may have, each as a static part and arrays.

A form is hashable and compares equal for models of one structure, so it can be a static argument
of a jitted function: models that differ in their numbers alone share one compilation.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen, nnx

from koopjax._core import (
    Outline,
    Static,
    expected,
    infer,
    inference_arguments,
    native,
    put_bound,
    take_apart,
    take_bound,
    version,
)


def named_leaves(tree: Any) -> list[tuple[tuple[Any, ...], Any, nnx.Variable | None]]:
    """The leaves of a tree in its order, each with its path and the Variable that holds it.

    Args:
        tree: any pytree; a Variable in it, such as in the state of an `nnx.Module`, is no level of
            the path, and what it holds may be a tree itself.
    """
    found = []
    is_variable = lambda node: isinstance(node, nnx.Variable)
    for path, node in jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_variable)[0]:
        holder = node if is_variable(node) else None
        for inner, leaf in jax.tree_util.tree_flatten_with_path(node)[0]:
            found.append(((*path, *inner[1:]), leaf, holder))  # inner[0] is a Variable's `value`
    return found


def trained(path: Any, variable: Any) -> bool:
    """Whether a Variable is a parameter that training moves; integers under that name are not."""
    del path
    if not isinstance(variable, nnx.Param):
        return False
    return all(_is_floating(leaf) for leaf in jax.tree.leaves(variable))


def _is_floating(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(native("a parameter", leaf)), jnp.inexact)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Watched:
    """A form as a static argument: another one once its code computes something else.

    Attributes:
        bound: arguments by name that a `functools.partial` around the module binds.
        version: from `_core.version`.
    """

    bound: tuple[tuple[str, Static], ...] = ()
    version: int = 0

    def merge(self, params: Any, rest: Any) -> Any:
        """The model again."""
        raise NotImplementedError

    def forward(self, params: Any, rest: Any, x: Any) -> Any:
        """Output in inference mode."""
        return self.observed(params, rest, x)[0]

    def observed(self, params: Any, rest: Any, x: Any) -> tuple[Any, list[Any]]:
        """Output in inference mode, and what the call has changed of the model's state."""
        return infer(self.merge(params, rest), x)

    def now(self) -> Any:
        """The form with the version of this moment."""
        return dataclasses.replace(self, version=version(self.unversioned()))

    def unversioned(self) -> Any:
        """What the version is found by."""
        return dataclasses.replace(self, version=0)


@dataclasses.dataclass(frozen=True)
class NNXForm(_Watched):
    """An `nnx.Module`; parameters are its floating `nnx.Param`s, the rest everything else."""

    graphdef: Static

    def merge(self, params: Any, rest: Any) -> Any:
        """The model again, with Variables of its own.

        Those of `params` and `rest` may be another model's, or belong to an outer trace, where
        what a call writes (counts of random streams, statistics, `nnx.jit` all it was given) is an
        error.
        """
        return put_bound(self._module(params, rest), self.bound)

    def _module(self, params: Any, rest: Any) -> Any:
        return nnx.merge(self.graphdef.value, params, rest, copy=True)

    def observed(self, params: Any, rest: Any, x: Any) -> tuple[Any, list[Any]]:
        """Output in inference mode, and what the call has changed of the model's state."""
        module = self._module(params, rest)
        module.eval()
        return infer(put_bound(module, self.bound), x)

    def forward_train(self, params: Any, rest: Any, x: Any, key: Any) -> tuple[Any, Any]:
        """Output in training mode, and the Variables as the call left them."""
        del key  # an NNX model carries its own streams
        module = self._module(params, rest)
        module.train()
        out = put_bound(module, self.bound)(x)
        return out, nnx.split(module, trained, ...)[2]


@dataclasses.dataclass(frozen=True)
class LinenForm(_Watched):
    """A pair `(linen_module, variables)`; the rest are the collections beside `params`."""

    module: Static

    def merge(self, params: Any, rest: Any) -> Any:
        """The pair again."""
        return put_bound(self.module.value, self.bound), {**rest, "params": params}

    def forward_train(self, params: Any, rest: Any, x: Any, key: Any) -> tuple[Any, Any]:
        """Output in training mode, and the other collections as the call left them."""
        module = self.module.value
        mode = {name: not still for name, still in inference_arguments(module.__call__).items()}
        out, updated = module.apply(
            {**rest, "params": params},
            x,
            **{**mode, **{name: value.value for name, value in self.bound}},
            rngs={"dropout": key},
            mutable=list(rest),
        )
        return out, {**rest, **updated}


@dataclasses.dataclass(frozen=True)
class TreeForm(_Watched):
    """A callable pytree, or a pair `(function, params)` with `function(params, x)`.

    Parameters are its floating-point leaves, the rest its other arrays; what is no array stays
    what it is.

    Attributes:
        function: of a pair, else None.
        outline: the tree without its arrays.
        floating: which of its arrays are parameters.
    """

    function: Static | None
    outline: Outline
    floating: tuple[bool, ...]

    def merge(self, params: Any, rest: Any) -> Any:
        """The callable or the pair again."""
        tree = self._tree(params, rest)
        return tree if self.function is None else (self.function.value, tree)

    def _tree(self, params: Any, rest: Any) -> Any:
        floats, others = iter(jax.tree.leaves(params)), iter(rest)
        return self.outline.fill(next(floats if is_float else others) for is_float in self.floating)

    def forward_train(self, params: Any, rest: Any, x: Any, key: Any) -> tuple[Any, Any]:
        """The value; nothing else changes."""
        tree = self._tree(params, rest)
        return (tree(x) if self.function is None else self.function.value(tree, x)), rest


Form = NNXForm | LinenForm | TreeForm


def _tree_form(function: Static | None, tree: Any) -> tuple[Form, Any, Any]:
    outline, pairs = take_apart(tree)
    floating = tuple(_is_floating(leaf) for _, leaf in pairs)
    each = [(leaf, is_float) for (_, leaf), is_float in zip(pairs, floating, strict=True)]
    # Of the tree's structure, since an optimizer's rules may go by the names in it.
    params = outline.fill((leaf if is_float else None for leaf, is_float in each), statics=False)
    rest = [leaf for leaf, is_float in each if not is_float]
    return TreeForm(function, outline, floating), params, rest


def form_of(model: Any) -> tuple[Form, Any, Any]:
    """A model as `(form, params, rest)`.

    A form is equal to an earlier one as long as its code computes the same: what it closes over may
    have changed since.

    Args:
        model: an `nnx.Module`, a pair `(linen_module, variables)`, a pair `(function, params)` with
            `function(params, x)`, or any callable (a pytree of arrays, or a plain function).

    Raises:
        ValueError: none of these.
    """
    plain, bound = take_bound(model)
    form, params, rest = _form_of(plain)
    return dataclasses.replace(form, bound=bound).now(), params, rest


def _native(trees: tuple[Any, Any]) -> tuple[Any, Any]:
    return jax.tree.map(lambda leaf: native("a parameter", leaf), trees)


def _form_of(model: Any) -> tuple[Form, Any, Any]:
    if isinstance(model, nnx.Module):
        graphdef, params, rest = nnx.split(model, trained, ...)
        return NNXForm(Static(graphdef)), *_native((params, rest))
    if isinstance(model, tuple) and len(model) == 2 and isinstance(model[0], linen.Module):
        module, variables = model
        if not isinstance(variables, Mapping) or "params" not in variables:
            held = isinstance(variables, Mapping)
            raise expected(
                "a Linen model as (module, variables) with 'params' among the variables",
                str(sorted(variables)) if held else type(variables).__name__,
                "variables = module.init(key, x)",
            )
        rest = {name: value for name, value in variables.items() if name != "params"}
        return LinenForm(Static(module)), *_native((variables["params"], rest))
    if isinstance(model, linen.Module):
        got = f"the module {type(model).__name__} alone"
        pair = "(module, module.init(key, x))"
        raise expected("a Linen model as the pair (module, variables)", got, pair)
    if isinstance(model, tuple) and len(model) == 2 and callable(model[0]):
        return _tree_form(Static(model[0]), model[1])
    if callable(model):
        return _tree_form(None, model)
    raise expected(
        "a model: nnx.Module, (linen_module, variables), (function, params) or callable pytree",
        type(model).__name__,
        "one of these",
    )
