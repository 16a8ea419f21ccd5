"""A model in three callable parts."""

import dataclasses
import functools
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np

from koopjax._core import Keyed, as_array, changed, expected, is_tracing, pytree, static
from koopjax.forms import Definition
from koopjax.surgery._cuts import Layout, Traced, locate_pair, traced
from koopjax.surgery._program import Aval, Program, aval_of, is_floating, trace


def per_sample(entry: Layout, end: Layout) -> bool:
    """Whether a row at either end is one sample, so that one may come and go without its axis."""
    return all(layout.axis == 0 and layout.factor == 1 for layout in (entry, end))


@dataclasses.dataclass(frozen=True, eq=False)
class Segment(Keyed):
    """What a part computes between the cuts `start` and `stop`, without its arrays.

    Equal for two parts of equal models between the same cuts, whatever the batch they were found
    at, so that they share one compilation. `avals` are of all arrays of the model, `shape` and
    `dtype` of one sample of its input; `batch` is for a model that takes no other.
    """

    definition: Definition
    avals: tuple[Aval, ...]
    start: str
    stop: str
    shape: tuple[int, ...]
    dtype: Any
    batch: int | None
    entry: Layout
    exit: Layout
    unroll: bool

    def __call__(self, parameters: dict[str, Any], x: Any) -> Any:
        """Run the original equations from `start` to `stop`."""
        program = self.program(parameters, x)
        closed, leaves, constants = program.segment(self.start, self.stop)
        paths = [self.definition.paths[i] for i in leaves]
        missing = [path for path in paths if path not in parameters]
        if missing:
            raise expected(
                f"the parameters {', '.join(sorted(parameters))} to be enough",
                f"a need for {', '.join(missing)} at shape {x.shape}",
                "the batch size that the model was split at",
            )
        operands = [parameters[path] for path in paths]
        operands += [_constant(program, i, parameters) for i in constants]
        (out,) = jex.jaxpr_as_fun(closed)(*operands, x)
        return out

    def takes_one(self, shape: tuple[int, ...]) -> bool:
        """Whether a value of this shape is a single sample without its batch axis."""
        return per_sample(self.entry, self.exit) and self.entry.shape[1:] == tuple(shape)

    def program(self, parameters: dict[str, Any], x: Any) -> Program:
        """The model traced so that the value at `start` has the shape and dtype of `x`."""
        if changed(self.definition.unversioned(), self.definition.version):
            raise expected(
                "a model that computes what it computed when it was cut",
                "one that closes over something that has changed since",
                "cutting it again, or what changes among its params",
            )
        n = self.batch if self.entry.axis is None else self.entry.batch(x.shape)
        if n is None or n < 1 or (self.entry.axis is None and x.shape != self.entry.shape):
            raise expected(
                f"an array of shape {self.entry} at {self.start!r}",
                f"{tuple(x.shape)}",
                "one batch of at least one sample",
            )
        avals = [
            aval_of(parameters[path]) if path in parameters else aval
            for path, aval in zip(self.definition.paths, self.avals, strict=True)
        ]
        aval: Any = None
        for dtype, leaves in self._readings(x.dtype, avals, parameters):
            program = trace(self.definition, tuple(leaves), ((n, *self.shape), dtype), self.unroll)
            aval = program.variable(self.start).aval
            if aval.shape == x.shape and aval.dtype == x.dtype:
                return program
        raise expected(
            f"an array like {aval.str_short()} at {self.start!r}",
            f"{x.dtype}{list(x.shape)}",
            f"x.astype({aval.dtype})",
        )

    def _readings(self, dtype: Any, avals: list[Aval], parameters: dict[str, Any]) -> Any:
        """Dtypes of the model's input under which the part might be meant, likeliest first."""
        if self.start == "input":
            yield dtype, avals
            return
        yield self.dtype, avals
        if is_floating(dtype) and is_floating(self.dtype):
            yield dtype, avals
            cast = [
                (shape, dtype if is_floating(kind) and path not in parameters else kind, weak)
                for path, (shape, kind, weak) in zip(self.definition.paths, avals, strict=True)
            ]
            yield dtype, cast


def _constant(program: Program, index: int, parameters: dict[str, Any]) -> Any:
    """A closed-over array: the part's own where it fits, since it may have been changed."""
    traced, own = program.constants[index], parameters.get(f"constants.{index}")
    fits = own is not None and aval_of(own)[:2] == aval_of(traced)[:2]
    return own if fits else traced


@pytree
class Part:
    """A piece of a model between two cuts, a function of one array.

    Attributes:
        parameters: the arrays that it uses, by their paths in the model.
        segment: what it computes (static).

    The part runs at any batch size; a value without its batch axis is taken as one sample, so a
    part can be mapped over samples by `jax.vmap`. It is a pytree: differentiate, cast or average
    its leaves as those of any other.
    """

    parameters: dict[str, Any]
    segment: Segment = static()

    def __call__(self, x: Any) -> jax.Array:
        """The value at the later cut from the value at the earlier one.

        Args:
            x: `(n, ...)`, of the shape at the earlier cut; or one sample of it.

        Raises:
            ValueError: another shape or dtype.
        """
        return apply(self, x)

    def __repr__(self) -> str:
        count = sum(int(np.size(leaf)) for leaf in jax.tree.leaves(self.parameters))
        return f"Part({self.segment.start!r} to {self.segment.stop!r}, {count:,} numbers)"


def apply(part: Part, x: Any) -> jax.Array:
    """Run a part on an array; the same as `part(x)`.

    Compiled once for each shape, for all parts between the same cuts of equal models.
    """
    if not isinstance(part, Part):
        raise expected("a part from surgery.split", type(part).__name__, "part(x)")
    return run(part.segment, part.parameters, x)


def run(segment: Segment, parameters: dict[str, Any], x: Any) -> jax.Array:
    """Run a segment on its parameters and an array, or one sample of it."""
    x = as_array(f"the value at {segment.start!r}", x)
    if segment.start == segment.stop:
        return x
    if segment.takes_one(x.shape):
        return _run(segment, parameters, x[None])[0]
    return _run(segment, parameters, x)


@functools.partial(jax.jit, static_argnums=0)
def _run(segment: Segment, parameters: dict[str, Any], x: jax.Array) -> jax.Array:
    return segment(parameters, x)


def split(model: Any, x: Any, at: Any, *, unroll: bool = False) -> tuple[Part, Part, Part]:
    """Take a model apart at two cuts: `tail(span(head(x)))` is `model(x)` to rounding.

    Each part runs the model's original equations, traced anew at each new shape, so parts work at
    any batch size, whatever the model bakes into its reshapes.

    Args:
        model: an `nnx.Module`, `(linen_module, variables)`, `(function, params)` or callable
            pytree; it stays as it is.
        x: a batch `(n, ...)`, an array or a `jax.ShapeDtypeStruct`.
        at: names or indices `(a, b)` of two cuts, `a` before `b`; `"input"` and `"output"` are the
            ends.
        unroll: write scans out, for cuts between their steps.

    Returns:
        `head` (input to `a`), `span` (`a` to `b`) and `tail` (`b` to output), each with just the
        arrays that it uses. A parameter used in two parts is in both.

    Raises:
        ValueError: a cut is unknown or does not separate the model, with the nearest that do.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> params = {"a": {"w": jnp.ones((3, 4))}, "b": {"w": jnp.ones((4, 2))}}
        >>> net = lambda p, x: jax.nn.relu(x @ p["a"]["w"]) @ p["b"]["w"]
        >>> head, span, tail = split((net, params), jnp.ones((5, 3)), at=("a", "a/relu"))
        >>> tail(span(head(jnp.ones((7, 3))))).shape, list(head.parameters), list(span.parameters)
        ((7, 2), ['a.w'], [])
    """
    found = traced(model, x, unroll)
    return parts(found, *locate_pair(found, at))


def parts(model: Traced, first: str, last: str) -> tuple[Part, Part, Part]:
    """The three parts of a traced model at two cuts, given by their names."""
    output = model.program.cuts[-1].name
    return _part(model, "input", first), _part(model, first, last), _part(model, last, output)


def _part(model: Traced, start: str, stop: str) -> Part:
    entry = model.layout(start)
    free = model.second is not None and entry.axis is not None
    segment = Segment(
        model.definition, model.avals, start, stop, model.shape[1:], np.dtype(model.dtype),
        None if free else model.shape[0], entry, model.layout(stop), model.unroll,
    )  # fmt: skip
    if start == stop:
        return Part({}, segment)
    _, leaves, constants = model.program.segment(start, stop)
    parameters = {model.definition.paths[i]: model.leaves[i] for i in leaves}
    values = model.program.constants
    parameters |= {f"constants.{i}": jnp.asarray(values[i]) for i in constants if _own(model, i)}
    return Part(parameters, segment)


def _own(model: Traced, index: int) -> bool:
    """Whether a closed-over array is the same at another batch size, and so part of the model."""
    if model.second is None:
        return True
    if index >= len(model.second.constants):
        return False
    one, other = model.program.constants[index], model.second.constants[index]
    if one is other:
        return True
    if is_tracing(one, other):
        return False
    return aval_of(one) == aval_of(other) and bool(np.array_equal(one, other))
