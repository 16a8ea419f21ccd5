"""The linear layers of an NNX model: found, tapped for their inputs, replaced by factors."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx
from jaxtyping import Array

from koopjax import models, nn
from koopjax._core import expected, has_float64, matmul, on_device, precise_as
from koopjax.compress._budget import inapplicable
from koopjax.compress._problem import Problem, cut, span_name

Path = tuple[Any, ...]


class Seen(nnx.Variable):
    """The input that a layer saw last."""


class Tap(nnx.Module):
    """A linear layer that remembers its input rows."""

    def __init__(self, linear: nnx.Linear):
        self.linear = linear
        self.seen = Seen(jnp.zeros((0, linear.in_features)))

    def __call__(self, x: Array, *args: Any, **kwargs: Any) -> Array:
        """The layer's output."""
        self.seen.set_value(x.reshape(-1, x.shape[-1]))
        return self.linear(x, *args, **kwargs)


def as_nnx(model: Any) -> nnx.Module:
    """An NNX model, or the NNX twin of a Linen MLP.

    Raises:
        Inapplicable: any other form.
    """
    if isinstance(model, nnx.Module):
        return model
    if isinstance(model, tuple) and len(model) == 2 and isinstance(model[0], models.linen.MLP):
        twin = models.MLP(tuple(model[0].sizes), rngs=nnx.Rngs(0))
        for k, layer in enumerate(twin.layers):
            held = model[1]["params"][f"layers_{k}"]
            layer.kernel.set_value(jnp.asarray(held["kernel"]))
            assert layer.bias is not None
            layer.bias.set_value(jnp.asarray(held["bias"]))
        return twin
    kind = type(model[0] if isinstance(model, tuple) and model else model)
    name = f"a Linen {kind.__name__}" if issubclass(kind, linen.Module) else kind.__name__
    raise inapplicable(
        "an nnx.Module (or koopjax.models.linen.MLP) for a method that changes linear layers",
        name, "magnitude or koopman, which take any model",
    )  # fmt: skip


def linear_paths(model: nnx.Module) -> list[Path]:
    """Paths of all `nnx.Linear` layers, in the order of the model's attributes."""
    paths = [path for path, node in nnx.iter_graph(model) if type(node) is nnx.Linear]
    return sorted(paths, key=lambda path: [(isinstance(k, str), k) for k in path])


def layers_in(
    problem: Problem, twin: nnx.Module, at: Any, suggestion: str
) -> tuple[list[Path], dict[str, Any]]:
    """Paths of the linear layers whose weights a span uses, and the span for the report."""
    paths, where = linear_paths(twin), {}
    if at is not None:
        (_, span, _), ends = cut(problem.model, problem.x, at)
        where = {"at": list(ends)}
        used = set(span.parameters)
        if twin is not problem.model:  # Linen's names end in the number of the layer
            used = {name.replace("layers_", "layers.") for name in used}
        paths = [path for path in paths if span_name((*path, "kernel")) in used]
    if not paths:
        place = f"span {where['at']}" if where else "model"
        raise expected(f"a {place} with nnx.Linear layers", "none", suggestion)
    return paths, where


def get(model: Any, path: Path) -> Any:
    """The node at a path."""
    for key in path:
        model = model[key] if isinstance(key, int) else getattr(model, key)
    return model


def put(model: Any, path: Path, node: Any) -> None:
    """Replace the node at a path, in place."""
    parent, key = get(model, path[:-1]), path[-1]
    if isinstance(key, int):
        parent[key] = node
    else:
        setattr(parent, key, node)


def with_kernels(
    model: nnx.Module, paths: Sequence[Path], kernels: Sequence[Any], biases: Sequence[Any]
) -> nnx.Module:
    """A copy with other numbers in its linear layers."""
    copy = nnx.clone(model)
    for path, kernel, bias in zip(paths, kernels, biases, strict=True):
        layer = get(copy, path)
        layer.kernel.set_value(on_device(kernel, layer.kernel.get_value().dtype))
        if bias is not None and layer.bias is not None:
            layer.bias.set_value(on_device(bias, layer.bias.get_value().dtype))
    return copy


def with_factors(model: nnx.Module, paths: Sequence[Path], operators: Sequence[Any]) -> nnx.Module:
    """A copy with operators in place of linear layers; an MLP becomes an `nn.Stack`.

    Args:
        model: the original.
        paths: of linear layers; an MLP's others stay whole.
        operators: `nn.LowRank`, `nn.TT` or `nn.Dense`, one a path.
    """
    if type(model) is models.MLP:
        given = dict(zip(paths, operators, strict=True))
        every = [given.get(p) or _whole(get(model, p)) for p in linear_paths(model)]
        return nn.Stack(every, ("relu",) * (len(every) - 1))
    copy = nnx.clone(model)
    for path, operator in zip(paths, operators, strict=True):
        if not isinstance(operator, nn.Dense):  # a whole layer stays what it was
            put(copy, path, operator)
    return copy


def _whole(layer: nnx.Linear) -> nn.Dense:
    bias = None if layer.bias is None else layer.bias.get_value()
    return nn.Dense(layer.kernel.get_value(), bias)


def input_moments(
    model: nnx.Module, changed: nnx.Module, paths: Sequence[Path], x: Array, batch: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Second moments of the inputs of linear layers in a changed and in the original model.

    Args:
        model: the original.
        changed: a model of the same structure, or the original again.
        paths: of the linear layers.
        x: samples; those of an incomplete last batch are left out.
        batch: samples at a time.

    Returns:
        For each layer `(X̃ᵀX̃, X̃ᵀX) / n` with `X = [1, inputs]`, float64; `X̃` of the changed model.
    """
    batch = min(batch, len(x))
    states = []
    for one in (model, changed)[: 1 + (changed is not model)]:
        tapped = nnx.clone(one)
        tapped.eval()
        for path in paths:
            put(tapped, path, Tap(get(tapped, path)))
        graph, state = nnx.split(tapped)
        states.append(state)
    # Float64 where there is: what the moments decide must not hang on roundings of the inputs.
    dtype = jnp.float64 if has_float64() else jnp.float32
    starts = range(0, len(x) // batch * batch, batch)
    sums: list[Any] = [(0.0, 0.0)] * len(paths)
    for start in starts:
        seen = [_inputs(graph, state, tuple(paths), x[start : start + batch]) for state in states]
        with precise_as(dtype):
            for k, rows in enumerate(zip(*seen, strict=True)):
                original, delivered = rows[0], rows[-1]
                own = np.asarray(_product(delivered, delivered, dtype))
                cross = own
                if delivered is not original:
                    cross = np.asarray(_product(delivered, original, dtype))
                sums[k] = sums[k][0] + own, sums[k][1] + cross
    return [(own / len(starts), cross / len(starts)) for own, cross in sums]


@partial(jax.jit, static_argnames="dtype")
def _product(a: Array, b: Array, dtype: Any) -> Array:
    """`[1, a]ᵀ [1, b] / n`."""
    a, b = (jnp.pad(r.astype(dtype), ((0, 0), (1, 0)), constant_values=1) for r in (a, b))
    return matmul(a.T, b) / len(a)


@partial(jax.jit, static_argnames=("graph", "paths"))
def _inputs(graph: Any, state: Any, paths: tuple[Path, ...], x: Array) -> list[Array]:
    """The inputs of some layers, as rows."""
    model = nnx.merge(graph, state, copy=True)
    model(x)
    return [get(model, path).seen.get_value().astype(jnp.float32) for path in paths]
