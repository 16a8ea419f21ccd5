"""The forms a model may have, each as a static part and arrays.

A form is hashable and compares equal for models of one structure, so it can be a static argument
of a jitted function: models that differ in their numbers alone share one compilation.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen, nnx

from koopjax._core import expected, inference_arguments


@dataclasses.dataclass(frozen=True)
class NNXForm:
    """An `nnx.Module`; parameters are its `nnx.Param`s, the rest all other Variables."""

    graphdef: Any

    def merge(self, params: Any, rest: Any) -> Any:
        """The model again."""
        return nnx.merge(self.graphdef, params, rest)

    def forward(self, params: Any, rest: Any, x: Any) -> Any:
        """Output in inference mode."""
        model = self.merge(params, rest)
        model.eval()
        return model(x, **inference_arguments(type(model).__call__))

    def forward_train(self, params: Any, rest: Any, x: Any, key: Any) -> tuple[Any, Any]:
        """Output in training mode, and the Variables as the call left them."""
        del key  # an NNX model carries its own streams
        # Variables of its own: those of `rest` belong to an outer trace where this one is
        # differentiated, and batch normalisation writes to them.
        model = nnx.merge(self.graphdef, params, rest, copy=True)
        model.train()
        out = model(x)
        return out, nnx.split(model, nnx.Param, ...)[2]


@dataclasses.dataclass(frozen=True)
class LinenForm:
    """A pair `(linen_module, variables)`; the rest are the collections beside `params`."""

    module: Any

    def _mode(self, train: bool) -> dict[str, bool]:
        names = inference_arguments(type(self.module).__call__)
        return {name: still is not train for name, still in names.items()}

    def merge(self, params: Any, rest: Any) -> Any:
        """The pair again."""
        return self.module, {**rest, "params": params}

    def forward(self, params: Any, rest: Any, x: Any) -> Any:
        """Output in inference mode."""
        return self.module.apply({**rest, "params": params}, x, **self._mode(False))

    def forward_train(self, params: Any, rest: Any, x: Any, key: Any) -> tuple[Any, Any]:
        """Output in training mode, and the other collections as the call left them."""
        out, updated = self.module.apply(
            {**rest, "params": params},
            x,
            **self._mode(True),
            rngs={"dropout": key},
            mutable=list(rest),
        )
        return out, {**rest, **updated}


@dataclasses.dataclass(frozen=True)
class FunctionForm:
    """A pair `(function, params)` with `function(params, x)`."""

    function: Any

    def merge(self, params: Any, rest: Any) -> Any:
        """The pair again."""
        return self.function, params

    def forward(self, params: Any, rest: Any, x: Any) -> Any:
        """The function's value, in inference mode where it has one."""
        return self.function(params, x, **inference_arguments(self.function))

    def forward_train(self, params: Any, rest: Any, x: Any, key: Any) -> tuple[Any, Any]:
        """The function's value; nothing else changes."""
        return self.function(params, x), rest


@dataclasses.dataclass(frozen=True)
class TreeForm:
    """Any callable pytree; parameters are its floating-point leaves, the rest the others."""

    treedef: Any
    floating: tuple[bool, ...]

    def merge(self, params: Any, rest: Any) -> Any:
        """The callable again."""
        floats, others = iter(params), iter(rest)
        leaves = [next(floats) if is_float else next(others) for is_float in self.floating]
        return jax.tree.unflatten(self.treedef, leaves)

    def forward(self, params: Any, rest: Any, x: Any) -> Any:
        """The callable's value, in inference mode where it has one."""
        model = self.merge(params, rest)
        return model(x, **inference_arguments(type(model).__call__))

    def forward_train(self, params: Any, rest: Any, x: Any, key: Any) -> tuple[Any, Any]:
        """The callable's value; nothing else changes."""
        return self.merge(params, rest)(x), rest


Form = NNXForm | LinenForm | FunctionForm | TreeForm


@dataclasses.dataclass(frozen=True)
class _Plain:
    """`f(x)` as `f(params, x)`, equal for one and the same `f`."""

    function: Any

    def __call__(self, params: Any, x: Any) -> Any:
        del params  # a plain function has none
        return self.function(x)


def _tree_form(model: Any) -> tuple[Form, Any, Any]:
    leaves, treedef = jax.tree.flatten(model)
    if jax.tree_util.treedef_is_leaf(treedef):  # a plain function: no arrays to take out
        return FunctionForm(_Plain(model)), {}, {}
    floating = tuple(bool(jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)) for leaf in leaves)
    params = [leaf for leaf, is_float in zip(leaves, floating, strict=True) if is_float]
    rest = [leaf for leaf, is_float in zip(leaves, floating, strict=True) if not is_float]
    return TreeForm(treedef, floating), params, rest


def form_of(model: Any) -> tuple[Form, Any, Any]:
    """A model as `(form, params, rest)`.

    Args:
        model: an `nnx.Module`, a pair `(linen_module, variables)`, a pair `(function, params)` with
            `function(params, x)`, or any callable (a pytree of arrays, or a plain function).

    Raises:
        ValueError: none of these.
    """
    if isinstance(model, nnx.Module):
        graphdef, params, rest = nnx.split(model, nnx.Param, ...)
        return NNXForm(graphdef), params, rest
    if isinstance(model, tuple) and len(model) == 2 and isinstance(model[0], linen.Module):
        module, variables = model
        if "params" not in variables:
            raise expected(
                "a Linen model as (module, variables) with 'params' among the variables",
                str(sorted(variables)),
                "variables = module.init(key, x)",
            )
        rest = {name: value for name, value in variables.items() if name != "params"}
        return LinenForm(module), variables["params"], rest
    if isinstance(model, tuple) and len(model) == 2 and callable(model[0]):
        return FunctionForm(model[0]), model[1], {}
    if callable(model):
        return _tree_form(model)
    raise expected(
        "a model: nnx.Module, (linen_module, variables), (function, params) or callable pytree",
        type(model).__name__,
        "one of these",
    )
