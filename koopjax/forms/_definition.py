"""What all kinds of models have in common: a model without its arrays."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from koopjax._core import Keyed, Outline, Static
from koopjax.forms._inference import clear_words, inference_arguments, trace_inference


class Constant(nnx.Variable):
    """An array that belongs to a spliced model but is no parameter: nothing trains it."""


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """What a model calls for an output, and how.

    Attributes:
        code: the function, or the module, as it is inspected.
        run: calls it as `run(x, **keywords)`; gives the output, and what it changes of the state.
        before: the arguments before the input.
        bound: arguments by name that are fixed.
        fields: modes that `code` has as fields, which must not be given as arguments too.
    """

    code: Any
    run: Callable[..., tuple[Any, list[Any]]]
    before: tuple[Any, ...] = ()
    bound: dict[str, Any] = dataclasses.field(default_factory=dict)
    fields: tuple[str, ...] = ()

    def keywords(self) -> dict[str, Any]:
        """The arguments by name in inference mode."""
        return {**inference_arguments(self.code, self.fields), **self.bound}


@dataclasses.dataclass(frozen=True, eq=False)
class Definition(Keyed):
    """A model without its arrays: `definition(leaves, x)` is its output in inference mode.

    Equal for models of one kind and structure, which differ in their numbers alone, so that it can
    be a static argument of a jitted function: they share one compilation. It is another one once
    its code computes something else, as what that closes over may change.

    Attributes:
        code: what the arrays go into (graph definition, module, function), if anything does.
        outline: how the leaves make up the tree beside the code.
        paths: a readable name for each leaf, such as `layers.0.kernel`.
        kinds: the `nnx.Variable` type that holds each leaf in a spliced model.
        bound: arguments by name that a `functools.partial` around the module binds.
        version: from `_core.version`.
    """

    code: Static | None
    outline: Outline
    paths: tuple[str, ...]
    kinds: tuple[type[nnx.Variable], ...]
    bound: tuple[tuple[str, Static], ...] = ()
    version: int = 0

    keeps_bound: ClassVar[bool] = False  # whether a `partial` around the code is taken off
    own_order: ClassVar[bool] = True  # whether the leaves' order is the model's, not a library's

    @classmethod
    def takes(cls, model: Any) -> bool:
        """Whether a model is of this kind; those before it in `KINDS` have been asked."""
        raise NotImplementedError

    @classmethod
    def exposed(cls, model: Any) -> Any:
        """The model in inference mode; refused where its arrays can't be seen."""
        return model

    @classmethod
    def parts(cls, model: Any) -> tuple[Any, Any]:
        """Code and tree of a model."""
        raise NotImplementedError

    @classmethod
    def join(cls, code: Any, tree: Any, bound: dict[str, Any]) -> Any:
        """The reverse of `parts`, with arguments bound by name."""
        raise NotImplementedError

    @classmethod
    def outlined(
        cls, code: Any, tree: Any
    ) -> tuple[Outline, list[tuple[str, Any, type[nnx.Variable]]]]:
        """The outline of a tree, and of each array the name, the value and the kind."""
        raise NotImplementedError

    def call(self, model: Any, tree: Any) -> Call:
        """How this model is called for an output in inference mode, given its tree."""
        raise NotImplementedError

    def train(self, params: Any, rest: Any, x: Any, key: Any) -> tuple[Any, Any]:
        """Output in training mode, and the rest as the call has left it.

        Args:
            params, rest: as from `divide`.
            x: one batch.
            key: of random numbers, for models without streams of their own.
        """
        raise NotImplementedError

    def divide(self, leaves: list[Any]) -> tuple[Any, Any]:
        """The parameters that training moves, and all other arrays, each as a pytree.

        An optimizer's rules may go by the names in the first.
        """
        trained = [issubclass(kind, nnx.Param) for kind in self.kinds]
        each = list(zip(leaves, trained, strict=True))
        params = self.outline.fill((leaf if one else None for leaf, one in each), statics=False)
        return params, [leaf for leaf, one in each if not one]

    def united(self, params: Any, rest: Any) -> Any:
        """The tree of `parts` again: the reverse of `divide`."""
        floats, others = iter(jax.tree.leaves(params)), iter(rest)
        kinds = (issubclass(kind, nnx.Param) for kind in self.kinds)
        return self.outline.fill(next(floats if trained else others) for trained in kinds)

    def leaves(self, params: Any, rest: Any) -> list[Any]:
        """The flat list of `define` again: the reverse of `divide`."""
        tree = jax.tree.leaves(self.united(params, rest))
        return [leaf for leaf, s in zip(tree, self.outline.statics, strict=True) if s is None]

    def merge(self, params: Any, rest: Any) -> Any:
        """The model of these arrays, as `divide` gives them."""
        return self._joined(self.united(params, rest))

    def rebuild(self, leaves: list[Any]) -> Any:
        """The model of these arrays."""
        return self._joined(self.outline.fill(leaves))

    def _joined(self, tree: Any) -> Any:
        code = None if self.code is None else self.code.value
        return self.join(code, tree, self.keywords)

    @property
    def keywords(self) -> dict[str, Any]:
        """What is bound, by name."""
        return {name: value.value for name, value in self.bound}

    def __call__(self, leaves: Any, x: Any) -> Any:
        """The model's output, BatchNorm by its running statistics and dropout off."""
        return self.observed(leaves, x)[0]

    def observed(self, leaves: Any, x: Any) -> tuple[Any, list[Any]]:
        """The output in inference mode, and what the call has changed of the model's state.

        Raises:
            ValueError: the model does not take the input, or is seen to be in training mode.
        """
        call = self.called(leaves)
        keywords = call.keywords()
        with clear_words(call.code, call.fields, x, *call.before, x, **keywords):
            return call.run(x, **keywords)

    def trace(self, leaves: Any, x: Any) -> tuple[Any, Any]:
        """The closed jaxpr in inference mode, and the shapes of the output.

        Notes what the model computes, for its version.

        Args:
            leaves, x: arrays or their shapes.

        Raises:
            ModeError: it draws random numbers, or its state changes with the data.
        """
        return trace_inference(self, leaves, x)

    def called(self, leaves: Any) -> Call:
        """How the model of these arrays is called for an output in inference mode."""
        tree = self.outline.fill(leaves)
        return self.call(self._joined(tree), tree)

    def unversioned(self) -> "Definition":
        """What the version is found by."""
        return dataclasses.replace(self, version=0)


def is_pair(model: Any) -> bool:
    """Whether a model is code with its arrays beside it."""
    return isinstance(model, tuple) and len(model) == 2


def is_floating(leaf: Any) -> bool:
    """Whether an array can be trained; integers and keys under the name of a parameter can't."""
    return jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)


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


def spell(path: Sequence[Any]) -> tuple[str, ...]:
    """A path of JAX as text, level by level."""
    names = (getattr(k, "key", getattr(k, "name", getattr(k, "idx", k))) for k in path)
    return tuple(str(name) for name in names)


def joined(path: Sequence[Any]) -> str:
    """A path as one name, such as `layers.0.kernel`."""
    names = spell(path)
    # A splice of a splice: the parts' own dictionaries are no level of the model.
    return ".".join(name for name in names if name != "parameters" or len(names) == 1)


def unique(names: Sequence[str]) -> tuple[str, ...]:
    """Names with a number behind all but the first that is alike."""
    seen: dict[str, int] = {}
    out = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        out.append(name if seen[name] == 1 else f"{name}@{seen[name]}")
    return tuple(out)
