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
from koopjax._core import firsts, has_float64, matmul, on_device, precise_as
from koopjax.compress._budget import inapplicable
from koopjax.compress._problem import Problem, cut, span_name
from koopjax.compress.layers import _taps as taps

Path = tuple[Any, ...]


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
    """Paths of all `nnx.Linear` layers whose kernel is a matrix of their own, in order.

    Not those of a stack that a scan goes through, nor those that share their kernel, nor those
    whose kernel is normalised before each use: another matrix in its place would be another layer.
    """
    normed = {
        id(node.layer_instance)
        for _, node in nnx.iter_graph(model)
        if isinstance(node, nnx.WeightNorm | nnx.SpectralNorm)
    }
    found = {
        path: node.kernel.get_value()
        for path, node in nnx.iter_graph(model)
        if type(node) is nnx.Linear and id(node) not in normed
    }
    same = firsts(list(found.values()))
    own = [path for k, path in enumerate(found) if same.count(same[k]) == 1]
    paths = [path for path in own if found[path].ndim == 2]
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
    called = jax.eval_shape(partial(taps.inputs, marked(twin, paths)), problem.x[:1])
    paths = [path for place, path in enumerate(paths) if place in called]
    if not paths:
        place = f"span {where['at']}" if where else "model"
        raise inapplicable(
            f"a {place} with nnx.Linear layers whose kernels are matrices of their own",
            "none",
            suggestion,
        )
    return paths, where


def marked(model: nnx.Module, paths: Sequence[Path]) -> nnx.Module:
    """A copy whose layers at these paths have marks for `taps.inputs`."""
    copy = nnx.clone(model)
    taps.mark([get(copy, path) for path in paths])
    return copy


def get(model: Any, path: Path) -> Any:
    """The node at a path."""
    for key in path:
        model = model[key] if _is_container(model) else getattr(model, key)
    return model


def put(model: Any, path: Path, node: Any) -> None:
    """Replace the node at a path, in place, wherever the model holds it."""
    old = get(model, path)
    for _, parent in list(nnx.iter_graph(model)):
        if isinstance(parent, dict | list):
            pairs: Any = list(parent.items() if isinstance(parent, dict) else enumerate(parent))
        else:
            pairs = list(nnx.iter_children(parent)) if isinstance(parent, nnx.Module) else []
        for key in [key for key, child in pairs if child is old]:
            if _is_container(parent):
                parent[key] = node  # pyright: ignore[reportIndexIssue]
            else:
                setattr(parent, key, node)


def _is_container(node: Any) -> bool:
    return isinstance(node, dict | list | nnx.List | nnx.Dict)


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
        places = [("layers", k) for k in range(len(model.layers))]
        every = [given.get(path) or _whole(get(model, path)) for path in places]
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
    both = (model, changed)[: 1 + (changed is not model)]
    tapped = [nnx.split(marked(one, paths)) for one in both]
    # Float64 where there is: what the moments decide must not hang on roundings of the inputs.
    dtype = jnp.float64 if has_float64() else jnp.float32
    starts = range(0, len(x) // batch * batch, batch)
    sums: list[Any] = [(0.0, 0.0)] * len(paths)
    for start in starts:
        batch_rows = x[start : start + batch]
        seen = [_inputs(tapped[0][0], state, len(paths), batch_rows) for _, state in tapped]
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


@partial(jax.jit, static_argnames=("graph", "count"))
def _inputs(graph: Any, state: Any, count: int, x: Array) -> list[Array]:
    """The inputs of the marked layers, as rows."""
    found = taps.inputs(nnx.merge(graph, state, copy=True), x)
    return [found[place].astype(jnp.float32) for place in range(count)]
