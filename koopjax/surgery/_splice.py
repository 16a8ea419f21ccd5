"""Another block in the place of a span: a new model of head, block and tail."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from koopjax import nn
from koopjax._core import as_array, expected, on_device
from koopjax.forms import Constant, define
from koopjax.surgery._capture import SampleAxes, check_axes, from_rows, to_rows
from koopjax.surgery._cuts import Layout, locate_pair, traced
from koopjax.surgery._parts import Part, Segment, parts, per_sample, run
from koopjax.surgery._program import is_floating

_PLACES = ("head", "block", "tail")


class Stage(nnx.Module):
    """A part of a model, or a callable pytree, whose arrays are Variables.

    Attributes:
        parameters: the arrays by their paths in the model they come from, each an `nnx.Param` where
            it was a parameter; running statistics and constants keep their own kinds.
        code: what is computed, a function of the arrays and `x`.
    """

    def __init__(self, variables: dict[str, nnx.Variable], code: Any):
        self.parameters = nnx.Dict(variables)
        self.code = code

    def __call__(self, x: jax.Array) -> jax.Array:
        """The value at the stage's end."""
        arrays = {path: variable[...] for path, variable in self.parameters.items()}
        if isinstance(self.code, Segment):
            return run(self.code, arrays, x)
        return self.code([arrays[path] for path in self.code.paths], x)


class Positionwise(nnx.Module):
    """A block that acts on vectors, applied to the rows of a state that is none.

    Args:
        block: maps rows `(m, d)` to rows `(m, d_out)`.
        sample_axes: as for `to_rows`.
        entry, exit: how the shapes before and after depend on the batch.
    """

    def __init__(self, block: nnx.Module, sample_axes: SampleAxes, entry: Layout, exit: Layout):
        self.block = block
        self.sample_axes = sample_axes
        self.entry = entry
        self.exit = exit

    def __call__(self, x: jax.Array) -> jax.Array:
        """The state after the block, in the shape that the tail takes."""
        n = self.entry.batch(x.shape)
        shape = list(self.exit.shape)
        if self.exit.axis is not None and n is not None:
            shape[self.exit.axis] = self.exit.factor * n + self.exit.offset
        rows = self.block(to_rows(x, self.sample_axes))  # type: ignore[operator]
        return from_rows(rows, tuple(shape), self.sample_axes)


class Spliced(nnx.Module):
    """A model with a block in the place of one of its spans.

    A Flax model like any other: it trains with optax, saves, loads, and can be spliced again. Head
    and tail stay in inference mode, BatchNorm by the running statistics it came with.

    Attributes:
        head: the model up to the first cut.
        block: what stands in the place of the span.
        tail: the model from the second cut on.
        at: names of the two cuts in the original model.
        sample_axes: how the block sees a state that is no vector.
    """

    def __init__(
        self,
        parts: tuple[Stage, nnx.Module, Stage],
        at: tuple[str, str],
        sample_axes: SampleAxes,
        dtypes: tuple[Any, Any],
    ):
        self.head, self.block, self.tail = parts
        self.at = at
        self.sample_axes = sample_axes
        self.dtypes = dtypes

    def __call__(self, x: jax.Array) -> jax.Array:
        """The output for a batch `(n, ...)`, or for one sample where outputs are rows."""
        x = as_array("the model's input", x)
        if x.shape == self.head.code.shape:
            entry, end = self.head.code.entry, self.tail.code.exit
            if not per_sample(entry, end):
                raise expected(f"a batch of shape {entry}", f"one sample {x.shape}", "x[None]")
            return self(x[None])[0]
        before = self.head(x)
        after = self.block(before)  # type: ignore[operator]
        first, last = self.dtypes
        # A float32 K in a bfloat16 model hands on what the model's own span would have.
        if before.dtype == first and after.dtype != last and is_floating(after.dtype):
            after = after.astype(last)
        return self.tail(after)

    def skeleton(self) -> Any:
        """The original model in its own form, with zeros where the span had parameters of its own.

        With `at` and the block it is all that is needed to write the spliced model down by names.
        """
        definition = self.head.code.definition
        arrays = {**self.head.parameters, **self.tail.parameters}
        leaves = [
            arrays[path][...] if path in arrays else jnp.zeros(shape, dtype)
            for path, (shape, dtype, _) in zip(definition.paths, self.head.code.avals, strict=True)
        ]
        return definition.rebuild(leaves)


def splice(
    model: Any,
    x: Any,
    at: Any,
    block: Any,
    *,
    sample_axes: SampleAxes = None,
    trainable: tuple[str, ...] | str = _PLACES,
    unroll: bool = False,
) -> Spliced:
    """Put a block in the place of the span between two cuts; the original stays as it is.

    Args:
        model: as for `split`.
        x: a batch `(n, ...)`, an array or a `jax.ShapeDtypeStruct`.
        at: names or indices `(a, b)`; `"input"` and `"output"` are the ends.
        block: maps the value at `a` to the value at `b`: an `nnx.Module` (it is copied),
            `(linen_module, variables)`, `(function, params)`, or any callable pytree.
        sample_axes: how the block sees a state that is no vector: `None` as it is, `"flatten"` one
            vector a sample, `"positions"` one vector a position; see `to_rows`.
        trainable: which of `"head"`, `"block"`, `"tail"` keep their parameters as `nnx.Param`;
            those of the others become `nn.Frozen`, which `nnx.Optimizer(..., wrt=nnx.Param)`
            passes by.
        unroll: write scans out, for cuts between their steps.

    Returns:
        A `Spliced` module. A parameter that head and tail share stays one Variable.

    Raises:
        ValueError: an unknown cut, or a block whose output the tail can't take.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> params = {"a": {"w": jnp.ones((3, 4))}, "b": {"w": jnp.ones((4, 2))}}
        >>> net = lambda p, x: jax.nn.relu(x @ p["a"]["w"]) @ p["b"]["w"]
        >>> small = splice((net, params), jnp.ones((5, 3)), ("a", "a/relu"), jnp.tanh)
        >>> small(jnp.ones((7, 3))).shape
        (7, 2)
    """
    places = (trainable,) if isinstance(trainable, str) else trainable
    if not isinstance(places, list | tuple | set) or not all(place in _PLACES for place in places):
        raise expected("trainable among 'head', 'block', 'tail'", repr(trainable), repr(_PLACES))
    found = traced(model, x, unroll)
    first, last = locate_pair(found, at)
    head, span, tail = parts(found, first, last)
    if sample_axes is not None:
        check_axes(sample_axes, span.segment.entry, span.segment.exit)
    module = _as_module(block)
    if "block" not in places:
        module = nn.freeze(module)
    if sample_axes is not None:
        module = Positionwise(module, sample_axes, span.segment.entry, span.segment.exit)
    ends = [found.program.variable(name).aval for name in (first, last)]
    _check_block(module, first, last, *ends)
    shared: dict[str, nnx.Variable] = {}
    # What head and tail share trains if either does: the trainable one makes the Variable.
    named = sorted({"head": head, "tail": tail}.items(), key=lambda item: item[0] not in places)
    stages = {place: _stage(part, shared, place in places) for place, part in named}
    dtypes = (ends[0].dtype, ends[1].dtype)
    return Spliced((stages["head"], module, stages["tail"]), (first, last), sample_axes, dtypes)


def _stage(part: Part, shared: dict[str, nnx.Variable], trainable: bool) -> Stage:
    definition = part.segment.definition
    kinds = dict(zip(definition.paths, definition.kinds, strict=True))
    variables = {}
    for path, array in part.parameters.items():
        if path not in shared:
            kind = kinds.get(path, Constant)
            if issubclass(kind, nnx.Param) and not trainable:
                kind = nn.Frozen
            shared[path] = kind(jnp.asarray(array))
        variables[path] = shared[path]
    return Stage(variables, part.segment)


def _as_module(block: Any) -> nnx.Module:
    if isinstance(block, nnx.Module):
        return nnx.clone(block)
    if isinstance(block, Part):
        return _stage(block, {}, trainable=True)
    if not callable(block) and not (isinstance(block, tuple) and block and callable(block[0])):
        hint = "nn.from_koopman(fit)" if hasattr(block, "predict") else "an nnx.Module"
        raise expected("a block that can be called", type(block).__name__, hint)
    definition, leaves = define(block, exposed=True)
    held = zip(definition.paths, definition.kinds, leaves, strict=True)
    return Stage({path: kind(on_device(leaf)) for path, kind, leaf in held}, definition)


def _check_block(module: nnx.Module, first: str, last: str, before: Any, after: Any) -> None:
    """Run the block on shapes alone and compare with what the tail takes."""
    graphdef, state = nnx.split(module)

    def call(state: Any, x: jax.Array) -> Any:
        return nnx.merge(graphdef, state)(x)  # type: ignore[operator]

    wanted = f"a block that maps {_describe(before)} at {first!r} to {_describe(after)} at {last!r}"
    hint = "another cut, another number of outputs, or sample_axes"
    try:
        out = jax.eval_shape(call, state, jax.ShapeDtypeStruct(before.shape, before.dtype))
    except (TypeError, ValueError) as error:
        lines = str(error.__cause__ or error).splitlines() or [type(error).__name__]
        raise expected(wanted, f"one that fails there ({lines[0]})", hint) from error
    if not hasattr(out, "shape") or out.shape != after.shape:
        got = _describe(out) if hasattr(out, "shape") else type(out).__name__
        raise expected(wanted, f"one that returns {got}", hint)
    if is_floating(out.dtype) != is_floating(after.dtype):
        raise expected(wanted, f"one that returns {_describe(out)}", "casting in the block")


def _describe(array: Any) -> str:
    return f"{array.dtype}{list(array.shape)}"
