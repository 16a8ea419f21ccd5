"""Functions with their parameters, and callable pytrees."""

import inspect
import pathlib
from typing import Any

import flax
import jax
from flax import nnx

from koopjax._core import Outline, expected, take_apart
from koopjax.forms._definition import Call, Definition, is_pair, joined
from koopjax.forms._inference import unbind


class Tree(Definition):
    """A pair `(function, params)` with `function(params, x)`, or a callable pytree without code.

    Parameters are its floating-point arrays, the rest its other arrays; what is no array belongs to
    the outline.
    """

    @classmethod
    def takes(cls, model: Any) -> bool:
        """A function in front of its parameters, or what can be called."""
        if not is_pair(model):
            return callable(model)
        code = model[0]  # Variables can be called too
        return callable(code) and not hasattr(code, "dtype") and not isinstance(code, nnx.Module)

    @classmethod
    def exposed(cls, model: Any) -> Any:
        """Refuse `jax.vmap(module)` and its like, whose arrays would be constants of the code."""
        module = model if is_pair(model) else _wrapped(model)
        if module is model or not (isinstance(module, nnx.Module) or take_apart(module)[1]):
            return model
        whole = "nnx.merge(graphdef, state)"
        call = f"{whole}.{model.__name__}" if inspect.ismethod(model) else f"jax.vmap({whole})"
        raise expected(
            "a model whose parameters can be seen",
            f"a function around a {type(module).__name__}",
            f"graphdef, state = nnx.split(module) and the pair (lambda state, x: {call}(x), state)",
        )

    @classmethod
    def parts(cls, model: Any) -> tuple[Any, Any]:
        """The function and its parameters, or none and the callable."""
        return model if cls.takes(model) and is_pair(model) else (None, model)

    @classmethod
    def join(cls, code: Any, tree: Any, bound: dict[str, Any]) -> Any:
        """The pair or the callable again."""
        return tree if code is None else (code, tree)

    @classmethod
    def outlined(cls, code: Any, tree: Any) -> tuple[Outline, list[tuple[str, Any, Any]]]:
        """The arrays of the tree."""
        outline, pairs = take_apart(tree)
        names = [joined(path) for path, _ in pairs]
        if code is not None:  # a bare number is no name, and is how an index is written
            names = [f"params.{name}" if name[:1].isdigit() else name for name in names]
        rows = zip(names, pairs, strict=True)
        return outline, [(name or "params", leaf, nnx.Param) for name, (_, leaf) in rows]

    def call(self, model: Any, tree: Any) -> Call:
        """The function on its parameters, or the callable."""
        code, bound = unbind(model if self.code is None else self.code.value)
        before = () if self.code is None else (tree,)
        return Call(code, lambda x, **keywords: (code(*before, x, **keywords), []), before, bound)

    def train(self, params: Any, rest: Any, x: Any, key: Any) -> tuple[Any, Any]:
        """Nothing but the output."""
        tree = self.united(params, rest)
        return (tree(x) if self.code is None else self.code.value(tree, x)), rest


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
