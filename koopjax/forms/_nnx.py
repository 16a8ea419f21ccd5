"""Flax NNX modules."""

import functools
import operator
from typing import Any

import jax
from flax import nnx

from koopjax._core import Outline
from koopjax.forms._definition import Call, Constant, Definition, is_floating, joined, named_leaves


def _trained(path: Any, variable: Any) -> bool:
    """Whether a Variable is a parameter that training moves."""
    del path
    leaves = jax.tree.leaves(variable)
    return isinstance(variable, nnx.Param) and all(map(is_floating, leaves))


class NNX(Definition):
    """An `nnx.Module`; parameters are its floating `nnx.Param`s, the rest everything else."""

    keeps_bound = True
    own_order = False

    @classmethod
    def takes(cls, model: Any) -> bool:
        """Any `nnx.Module`."""
        return isinstance(model, nnx.Module)

    @classmethod
    def exposed(cls, model: Any) -> Any:
        """A copy in evaluation mode."""
        still = nnx.clone(model)
        still.eval()
        return still

    @classmethod
    def parts(cls, model: Any) -> tuple[Any, Any]:
        """Graph definition and state."""
        return nnx.split(model)

    @classmethod
    def join(cls, code: Any, tree: Any, bound: dict[str, Any]) -> Any:
        """The module again, with Variables of its own.

        Those of the state may be another model's, or belong to an outer trace, where what a call
        writes (counts of random streams, statistics, `nnx.jit` all it was given) is an error.
        """
        module = nnx.merge(code, tree, copy=True)
        return functools.partial(module, **bound) if bound else module

    @classmethod
    def outlined(cls, code: Any, tree: Any) -> tuple[Outline, list[tuple[str, Any, Any]]]:
        """The state's leaves; those outside Variables are constants."""
        named = named_leaves(tree)
        rows = [(joined(p), leaf, type(v) if v is not None else Constant) for p, leaf, v in named]
        return Outline(jax.tree.structure(tree), (None,) * len(rows)), rows

    def divide(self, leaves: list[Any]) -> tuple[Any, Any]:
        """Two states."""
        params, rest = nnx.split_state(self.outline.fill(leaves), _trained, ...)
        return params, rest

    def united(self, params: Any, rest: Any) -> Any:
        """One state."""
        return nnx.merge_state(params, rest)

    def call(self, model: Any, tree: Any) -> Call:
        """The module in evaluation mode; random streams and sown intermediates are no change."""
        module = _module(model)
        module.eval()

        def run(x: Any, **keywords: Any) -> tuple[Any, list[Any]]:
            nodes = (node for _, node in nnx.iter_graph(module) if isinstance(node, nnx.Variable))
            kept = [node for node in nodes if not isinstance(node, nnx.RngState | nnx.Intermediate)]
            held = [(node, jax.tree.leaves(node.get_raw_value())) for node in kept]
            out = module(x, **keywords)
            changed: list[Any] = []
            for variable, before in held:
                after = jax.tree.leaves(variable.get_raw_value())
                same = len(before) == len(after) and all(map(operator.is_, before, after))
                changed += [] if same else after
            return out, changed

        return Call(module, run, bound=self.keywords)

    def train(self, params: Any, rest: Any, x: Any, key: Any) -> tuple[Any, Any]:
        """With its own streams in place of the key."""
        del key
        model = self.merge(params, rest)
        _module(model).train()
        out = model(x)
        return out, nnx.split(_module(model), _trained, ...)[2]


def _module(model: Any) -> Any:
    return model.func if isinstance(model, functools.partial) else model
