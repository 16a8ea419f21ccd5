"""Flax Linen modules with their variables."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
from flax import linen, nnx

from koopjax._core import Outline, expected
from koopjax.forms._definition import Call, Constant, Definition, is_pair, joined, spell
from koopjax.forms._inference import inference_arguments, set_fields

_COLLECTIONS = {"params": nnx.Param, "batch_stats": nnx.BatchStat}


class Linen(Definition):
    """A pair `(linen_module, variables)`, or a module bound to them.

    Parameters are the collection `params`, the rest the others.
    """

    keeps_bound = True

    @classmethod
    def takes(cls, model: Any) -> bool:
        """A Linen module, alone or in front of its variables."""
        return isinstance(model[0] if is_pair(model) else model, linen.Module)

    @classmethod
    def parts(cls, model: Any) -> tuple[Any, Any]:
        """Module and variables."""
        if is_pair(model):
            return model
        if model.scope is None:
            raise expected(
                "a Linen model as the pair (module, variables)",
                f"the module {type(model).__name__} alone",
                "(module, module.init(key, x))",
            )
        return model.unbind()

    @classmethod
    def join(cls, code: Any, tree: Any, bound: dict[str, Any]) -> Any:
        """The pair again."""
        return functools.partial(code, **bound) if bound else code, tree

    @classmethod
    def outlined(cls, code: Any, tree: Any) -> tuple[Outline, list[tuple[str, Any, Any]]]:
        """The variables' leaves, without the collection in their names."""
        if not isinstance(tree, Mapping) or (tree and "params" not in tree):
            raise _without_params(tree)
        flat, treedef = jax.tree_util.tree_flatten_with_path(tree)
        rows = [
            (joined(path[1:]), leaf, _COLLECTIONS.get(spell(path)[0], Constant))
            for path, leaf in flat
        ]
        return Outline(treedef, (None,) * len(rows)), rows

    def divide(self, leaves: list[Any]) -> tuple[Any, Any]:
        """The collection `params`, and the others by name."""
        tree = self.outline.fill(leaves)
        if "params" not in tree:  # one without arrays has a definition, but nothing to train
            raise _without_params(tree)
        return tree["params"], {name: held for name, held in tree.items() if name != "params"}

    def united(self, params: Any, rest: Any) -> Any:
        """The variables again."""
        return {**rest, "params": params}

    def call(self, model: Any, tree: Any) -> Call:
        """`apply` with nothing mutable."""
        del model
        module = self._module
        run = lambda x, **keywords: (module.apply(tree, x, mutable=False, **keywords), [])
        return Call(module.__call__, run, (), self.keywords, set_fields(module))

    def train(self, params: Any, rest: Any, x: Any, key: Any) -> tuple[Any, Any]:
        """With the key for dropout."""
        module = self._module
        still = inference_arguments(module.__call__, set_fields(module))
        out, updated = module.apply(
            self.united(params, rest), x, rngs={"dropout": key}, mutable=list(rest),
            **{**{name: not value for name, value in still.items()}, **self.keywords},
        )  # fmt: skip
        return out, {**rest, **updated}

    @property
    def _module(self) -> Any:
        assert self.code is not None
        return self.code.value


def _without_params(tree: Any) -> ValueError:
    return expected(
        "a Linen model as (module, variables) with 'params' among the variables",
        str(sorted(tree)) if isinstance(tree, Mapping) else type(tree).__name__,
        'module.init(key, x), or (module, {"params": params})',
    )
