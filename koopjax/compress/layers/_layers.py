"""The linear layers of a model: found, tapped for their inputs, in other numbers or operators."""

from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx
from jaxtyping import Array

from koopjax import export, models, nn
from koopjax._core import firsts, has_float64, matmul, on_device, precise_as
from koopjax.compress._problem import Problem, cut, span_name
from koopjax.compress._result import inapplicable
from koopjax.compress.layers import _taps as taps
from koopjax.compress.layers._allocation import Rung

Path = tuple[Any, ...]


class AffineLayers:
    """Linear layers that a method changes in their numbers alone.

    Attributes:
        problem: the model, its data and the budget.
        twin: the model in NNX form.
        paths: of the layers, in order.
        where: the span for the report.
        kernels: `(m + 1, n)` matrices `[b; W]` a layer, float64; a missing bias is zeros.
        biased: whether a layer has a bias.
        dtypes: of the kernels.
        rows, batch: samples for the moments of the layers' inputs, and so many at a time.
    """

    rows, batch = 20_000, 2000

    def __init__(self, problem: Problem, at: Any):
        self.problem, self.twin = problem, as_nnx(problem.model)
        self.paths, self.where = layers_in(problem, self.twin, at)
        layers = [get(self.twin, path) for path in self.paths]
        weights = [layer.kernel.get_value() for layer in layers]
        self.dtypes = [np.dtype(kernel.dtype) for kernel in weights]
        self.biased = [layer.bias is not None for layer in layers]
        self.kernels = []
        for layer, kernel in zip(layers, weights, strict=True):
            bias = bias_of(layer) if layer.bias is not None else np.zeros(kernel.shape[1])
            self.kernels.append(np.vstack([np.asarray(a, np.float64) for a in (bias, kernel)]))

    @cached_property
    def grams(self) -> list[np.ndarray]:
        """`(m + 1, m + 1)` second moments of `[1, x]` a layer, float64."""
        return [own for own, _ in self._moments(self.twin)]

    def _moments(self, changed: nnx.Module, layer: int | None = None) -> Any:
        x = self.problem.x[: self.rows]
        return input_moments(self.twin, changed, self.paths, x, self.batch, layer)

    def build(self, kernels: list[np.ndarray]) -> nnx.Module:
        """The model with these `[b; W]`."""
        biases = [k[0] for k in kernels]
        return with_kernels(self.twin, self.paths, [k[1:] for k in kernels], biases)

    def rung(self, i: int, kernel: np.ndarray, form: Any = None, note: Any = None) -> Rung:
        """A form of layer i, its weights coded as they are."""
        size = export.stored_bytes([kernel[1:].astype(self.dtypes[i])])
        return Rung(size, self.error(i, kernel), kernel, form, note)

    def replaced(self, operators: Sequence[nn.Operator]) -> nnx.Module:
        """The model with operators in the layers' places."""
        return with_factors(self.twin, self.paths, operators)

    def moments(self, i: int, kernels: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Second moments of layer i's inputs in a changed model, and those with the original's."""
        if all(a is b for a, b in zip(kernels, self.kernels, strict=True)):
            return self.grams[i], self.grams[i]
        return self._moments(self.build(kernels), i)[0]

    def recentred(self, kernels: list[np.ndarray]) -> list[np.ndarray]:
        """Biases anew, layer after layer: the original's mean output from what is delivered."""
        out = list(kernels)
        for i, biased in enumerate(self.biased):
            if biased:
                own, mixed = self.moments(i, out)
                bias = mixed[0] @ self.kernels[i] - own[0, 1:] @ out[i][1:]
                out[i] = np.concatenate([bias[None], out[i][1:]])
        return out

    def dead(self, i: int) -> np.ndarray:
        """`(m,)`: the inputs of layer i that are zero on all samples."""
        return np.diag(self.grams[i])[1:] <= 0

    def error(self, i: int, kernel: np.ndarray) -> float:
        """Mean squared error of layer i's output, relative to that of a constant output."""
        gram, whole = self.grams[i], self.kernels[i]
        difference = whole - kernel
        mean = gram[0] @ whole
        energy = np.sum(whole * (gram @ whole)) - np.sum(mean**2)
        return float(np.sum(difference * (gram @ difference)) / max(energy, 1e-300))

    def centred(self, i: int, weights: np.ndarray) -> np.ndarray:
        """`[b'; W']` for new `(m, n)` weights, the bias taking up the mean error of the output."""
        bias = self.kernels[i][0]
        if self.biased[i]:
            bias = bias + self.grams[i][0, 1:] @ (self.kernels[i][1:] - weights)
        return np.concatenate([bias[None], weights])


def as_nnx(model: Any) -> nnx.Module:
    """An NNX model, or the NNX twin of a Linen MLP; `Inapplicable` is raised for any other form."""
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


def layers_in(problem: Problem, twin: nnx.Module, at: Any) -> tuple[list[Path], dict[str, Any]]:
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
            "none", "magnitude or koopman",
        )  # fmt: skip
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


def bias_of(layer: nnx.Linear) -> Any:
    """The bias of a layer, or None."""
    return None if layer.bias is None else layer.bias.get_value()


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
    """A copy with operators in place of linear layers; an MLP becomes an `nn.Stack`."""
    if type(model) is models.MLP:
        given = dict(zip(paths, operators, strict=True))
        places = [("layers", k) for k in range(len(model.layers))]
        whole = lambda layer: nn.Dense(layer.kernel.get_value(), bias_of(layer))
        every = [given.get(path) or whole(get(model, path)) for path in places]
        return nn.Stack(every, ("relu",) * (len(every) - 1))
    copy = nnx.clone(model)
    for path, operator in zip(paths, operators, strict=True):
        if not isinstance(operator, nn.Dense):  # a whole layer stays what it was
            put(copy, path, operator)
    return copy


def input_moments(
    model: nnx.Module, changed: nnx.Module, paths: Sequence[Path], x: Array, batch: int,
    layer: int | None = None,
) -> list[tuple[np.ndarray, np.ndarray]]:  # fmt: skip
    """Second moments of the inputs of linear layers in a changed and in the original model.

    Returns:
        For each layer `(X̃ᵀX̃, X̃ᵀX) / n` with `X = [1, inputs]`, float64; `X̃` of the changed model,
        which may be the original; or for the one at a place. Samples of an incomplete last batch
        are left out.
    """
    batch = min(batch, len(x))
    both = (model, changed)[: 1 + (changed is not model)]
    tapped = [nnx.split(marked(one, paths)) for one in both]
    # Float64 where there is: what the moments decide must not hang on roundings of the inputs.
    dtype = jnp.float64 if has_float64() else jnp.float32
    starts = range(0, len(x) // batch * batch, batch)
    # The inputs of all are asked for, so that one program serves every layer.
    wanted = slice(None) if layer is None else slice(layer, layer + 1)
    sums: list[Any] = [(0.0, 0.0)] * len(paths[wanted])
    for start in starts:
        batch_rows = x[start : start + batch]
        seen = [_inputs(tapped[0][0], state, len(paths), batch_rows) for _, state in tapped]
        with precise_as(dtype):
            for k, rows in enumerate(list(zip(*seen, strict=True))[wanted]):
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
