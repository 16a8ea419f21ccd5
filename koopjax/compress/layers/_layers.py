"""The linear layers of a model: found, tapped for their inputs, in other numbers or operators."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array

from koopjax import export, models, nn
from koopjax._core import firsts, has_float64, matmul, on_device, precise_as, run_equation
from koopjax.compress._problem import Problem, cut
from koopjax.compress._result import inapplicable
from koopjax.compress.layers._allocation import Rung
from koopjax.forms import joined

Path = tuple[Any, ...]
MARK = "koopjax layer "
#: Parameters of a call that hold the jaxpr which runs on its operands.
_BODIES = ("jaxpr", "call_jaxpr", "fun_jaxpr")


class AffineLayers:
    """Linear layers that a method changes in their numbers alone.

    `twin` is the model in NNX form, `where` the span for the report; `kernels` are `(m + 1, n)`
    matrices `[b; W]` a layer, float64, a missing bias zeros; `rows` samples give the moments.
    """

    rows, batch = 20_000, 2000

    def __init__(self, problem: Problem, at: Any):
        self.problem, self.twin = problem, as_nnx(problem.model)
        self.paths, self.where = self._within(at)
        layers = [get(self.twin, path) for path in self.paths]
        weights = [layer.kernel.get_value() for layer in layers]
        self.dtypes = [np.dtype(kernel.dtype) for kernel in weights]
        self.biased = [layer.bias is not None for layer in layers]
        self.kernels = []
        for layer, kernel in zip(layers, weights, strict=True):
            bias = bias_of(layer) if layer.bias is not None else np.zeros(kernel.shape[1])
            self.kernels.append(np.vstack([np.asarray(a, np.float64) for a in (bias, kernel)]))

    def _within(self, at: Any) -> tuple[list[Path], dict[str, Any]]:
        """Paths of the linear layers whose weights a span uses, and the span for the report."""
        problem, twin = self.problem, self.twin
        paths, where = linear_paths(twin), {}
        if at is not None:
            (_, span, _), ends = cut(problem.model, problem.x, at)
            where = {"at": list(ends)}
            used = set(span.parameters)
            if twin is not problem.model:  # Linen's names end in the number of the layer
                used = {name.replace("layers_", "layers.") for name in used}
            paths = [path for path in paths if joined((*path, "kernel")) in used]
        called = jax.eval_shape(partial(inputs_of, marked(twin, paths)), problem.x[:1])
        paths = [path for place, path in enumerate(paths) if place in called]
        if not paths:
            place = f"span {where['at']}" if where else "model"
            raise inapplicable(
                f"a {place} with nnx.Linear layers whose kernels are matrices of their own",
                "none", "magnitude or koopman",
            )  # fmt: skip
        return paths, where

    @cached_property
    def grams(self) -> list[np.ndarray]:
        """`(m + 1, m + 1)` second moments of `[1, x]` a layer, float64."""
        return [own for own, _ in self._moments(self.twin)]

    def _moments(self, changed: nnx.Module, layer: int | None = None) -> Any:
        x = self.problem.x[: self.rows]
        return input_moments(self.twin, changed, self.paths, x, self.batch, layer)

    def build(self, kernels: list[np.ndarray]) -> nnx.Module:
        """The model with these `[b; W]`."""
        copy = nnx.clone(self.twin)
        for path, kernel in zip(self.paths, kernels, strict=True):
            layer = get(copy, path)
            layer.kernel.set_value(on_device(kernel[1:], layer.kernel.get_value().dtype))
            if layer.bias is not None:
                layer.bias.set_value(on_device(kernel[0], layer.bias.get_value().dtype))
        return copy

    def probe(self, forms: Sequence[Any]) -> nnx.Module:
        """The model with the kernels of these forms, factors multiplied out."""
        return self.build([form.kernel for form in forms])

    def rung(self, i: int, kernel: np.ndarray, form: Any = None, note: Any = None) -> Rung:
        """A form of layer i, its weights coded as they are."""
        size = export.stored_bytes([kernel[1:].astype(self.dtypes[i])])
        return Rung(size, self.error(i, kernel), kernel, form, note)

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

    def cost(self, i: int) -> np.ndarray:
        """What a squared error of each weight of layer i counts: its input's second moment."""
        power = np.maximum(np.diag(self.grams[i])[1:, None], 0.0)
        return np.broadcast_to(power, self.kernels[i][1:].shape)

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

    Not of a stack that a scan goes through, nor shared, nor normalised before each use.
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


def marked(model: nnx.Module, paths: Sequence[Path]) -> nnx.Module:
    """A copy whose layers at these paths have marks for `inputs_of`."""
    copy = nnx.clone(model)
    _mark([get(copy, path) for path in paths])
    return copy


def get(model: Any, path: Path) -> Any:
    """The node at a path."""
    for key in path:
        model = model[key] if _is_container(model) else getattr(model, key)
    return model


def bias_of(layer: nnx.Linear) -> Any:
    """The bias of a layer, or None."""
    return None if layer.bias is None else layer.bias.get_value()


def _is_container(node: Any) -> bool:
    return isinstance(node, dict | list | nnx.List | nnx.Dict)


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
        if isinstance(operator, nn.Dense):  # a whole layer stays what it was
            continue
        old = get(copy, path)
        for _, parent in list(nnx.iter_graph(copy)):  # wherever the model holds it
            if isinstance(parent, dict | list):
                pairs: Any = list(parent.items() if isinstance(parent, dict) else enumerate(parent))
            else:
                pairs = list(nnx.iter_children(parent)) if isinstance(parent, nnx.Module) else []
            for key in [key for key, child in pairs if child is old]:
                if _is_container(parent):
                    parent[key] = operator  # pyright: ignore[reportIndexIssue]
                else:
                    setattr(parent, key, operator)
    return copy


def input_moments(
    model: nnx.Module, changed: nnx.Module, paths: Sequence[Path], x: Array, batch: int,
    layer: int | None = None,
) -> list[tuple[np.ndarray, np.ndarray]]:  # fmt: skip
    """For each layer, or one, `(X̃ᵀX̃, X̃ᵀX) / n` with `X = [1, inputs]`, float64.

    `X̃` is of the changed model. Samples of an incomplete last batch are left out.
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
    found = inputs_of(nnx.merge(graph, state, copy=True), x)
    return [found[place].astype(jnp.float32) for place in range(count)]


@dataclasses.dataclass(frozen=True)
class _Marked:
    """A layer's promotion of dtypes, which all its calls go through, with a mark on the input."""

    mark: str
    promote: Callable[..., Any]

    def __call__(self, args: Sequence[Any], **settings: Any) -> Any:
        """The promoted arrays."""
        x, *others = args
        return self.promote((checkpoint_name(x, self.mark), *others), **settings)


def _mark(layers: Sequence[nnx.Linear]) -> None:
    """Mark the inputs of layers, in place; their numbers and their paths stay what they are."""
    for place, layer in enumerate(layers):
        layer.promote_dtype = _Marked(f"{MARK}{place}", layer.promote_dtype)


def inputs_of(model: Any, x: Any) -> dict[int, Array]:
    """`(rows, m)` inputs of the marked layers that a model calls, by their places.

    All calls of a layer, one under another: over the steps of a scan and where it is used again.
    What runs under a condition is left out, since whether it runs is not known.
    """
    closed = jax.make_jaxpr(partial(models.apply, model))(x)
    found: dict[str, list[Array]] = {}
    _run(closed.jaxpr, closed.consts, [x], found)
    stacked = {
        int(name.removeprefix(MARK)): [rows.reshape(-1, rows.shape[-1]) for rows in several]
        for name, several in found.items()
    }
    return {place: jnp.concatenate(several) for place, several in stacked.items()}


def _mark_of(equation: Any) -> str | None:
    name = str(equation.params.get("name", ""))
    return name if equation.primitive.name == "name" and name.startswith(MARK) else None


def _opened(equation: Any) -> Any:
    """The jaxpr of a call or a scan that holds marks; None for any other equation."""
    for name in _BODIES:
        body = equation.params.get(name)
        if isinstance(body, jex.Jaxpr) and not body.constvars:
            body = jex.ClosedJaxpr(body, ())
        if isinstance(body, jex.ClosedJaxpr) and len(body.jaxpr.invars) == len(equation.invars):
            marked = any(_mark_of(e) or _opened(e) for e in body.jaxpr.eqns)
            return body if marked else None
    return None


def _run(
    jaxpr: Any, consts: Sequence[Any], args: Sequence[Any], found: dict[str, list[Array]]
) -> list[Any]:
    """The outputs of a jaxpr; the marked values are added to those found."""
    held = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))
    read = lambda atom: atom.val if isinstance(atom, jex.Literal) else held[atom]
    for equation in jaxpr.eqns:
        operands = [read(atom) for atom in equation.invars]
        name, body = _mark_of(equation), _opened(equation)
        if name is not None:
            found.setdefault(name, []).extend(operands)
            results = operands
        elif body is None:
            results = run_equation(jaxpr, equation, operands)
        elif equation.primitive.name == "scan":
            results = _scan(body, equation.params, operands, found)
        else:
            results = _run(body.jaxpr, body.consts, operands, found)
        held.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _scan(
    body: Any, params: Any, operands: Sequence[Any], found: dict[str, list[Array]]
) -> list[Any]:
    fixed, carried = params["num_consts"], params["num_consts"] + params["num_carry"]

    def step(carry: Any, row: Any) -> tuple[Any, Any]:
        here: dict[str, list[Array]] = {}
        out = _run(body.jaxpr, body.consts, [*operands[:fixed], *carry, *row], here)
        return out[: params["num_carry"]], (out[params["num_carry"] :], here)

    carry, (rows, seen) = jax.lax.scan(
        step, list(operands[fixed:carried]), list(operands[carried:]),
        length=params["length"], reverse=params["reverse"],
    )  # fmt: skip
    for name, several in seen.items():
        found.setdefault(name, []).extend(several)
    return [*carry, *rows]
