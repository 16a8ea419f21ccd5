"""Where a model can be cut."""

import dataclasses
import difflib
from typing import Any

import jax
import numpy as np

from koopjax._core import as_flag, expected, on_device, read
from koopjax.forms import Definition, define
from koopjax.surgery._program import Aval, Place, Program, aval_of, trace


@dataclasses.dataclass(frozen=True)
class CutPoint:
    """A place where one value alone carries everything that the rest of the model needs.

    Attributes:
        name: unique in the model, the same at every batch size.
        index: position in depth, from 0.
        shape: shape of the value for the given input, batch included.
        dtype: its dtype.
        primitive: the operation that computes it.
        parameters: numbers in the parameters consumed before it, each counted once.
        flops: floating-point operations before it, for one sample.
        nonlinear: whether the step from the cut before is nonlinear in its input.
        hidden: whether a hidden layer ends here: `nonlinear`, its own parameters all consumed, and
            others to come.
        batch_axis: which axis of `shape` counts the samples; `None` where none does.
    """

    name: str
    index: int
    shape: tuple[int, ...]
    dtype: Any
    primitive: str
    parameters: int
    flops: int
    nonlinear: bool
    hidden: bool
    batch_axis: int | None

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """`shape` without its batch axis."""
        axis = self.batch_axis
        return self.shape if axis is None else self.shape[:axis] + self.shape[axis + 1 :]


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a value's shape follows from the batch size: `shape[axis] = factor * n + offset`.

    Attributes:
        axis: the axis that grows with the batch, `None` where none does.
        shape: the shape, `-1` at `axis`.
    """

    axis: int | None
    factor: int
    offset: int
    shape: tuple[int, ...]

    def batch(self, shape: tuple[int, ...]) -> int | None:
        """The batch size of a value of this shape, `None` where it does not fit."""
        if self.axis is None or len(shape) != len(self.shape):
            return None
        n, odd = divmod(shape[self.axis] - self.offset, self.factor)
        fits = (*shape[: self.axis], -1, *shape[self.axis + 1 :]) == self.shape
        return n if fits and not odd else None

    def length(self, axis: int) -> str:
        """The length of an axis, in terms of the batch size `n`."""
        if axis != self.axis:
            return str(self.shape[axis])
        count = "n" if self.factor == 1 else f"{self.factor} n"
        return count + (f" + {self.offset}" if self.offset else "")

    def __str__(self) -> str:
        if self.axis is None:
            return str(self.shape)
        sizes = [self.length(axis) for axis in range(len(self.shape))]
        return f"({', '.join(sizes)}{',' if len(sizes) == 1 else ''})"


@dataclasses.dataclass(frozen=True, eq=False)
class Traced:
    """A model with its arrays, traced at the given input and at one sample more.

    `second` is `None` where the model takes only its own batch size.
    """

    definition: Definition
    leaves: list[Any]
    avals: tuple[Aval, ...]
    shape: tuple[int, ...]
    dtype: Any
    program: Program
    second: Program | None
    unroll: bool

    def layout(self, name: str) -> Layout:
        """How the shape at a cut depends on the batch size."""
        first = tuple(self.program.variable(name).aval.shape)
        known = self.second is not None and (name == "input" or self.second.cut(name) is not None)
        second = self.second if known else None
        other = first if second is None else tuple(second.variable(name).aval.shape)
        for axis, (a, b) in enumerate(zip(first, other, strict=False)):
            if b > a and len(first) == len(other):
                shape = (*first[:axis], -1, *first[axis + 1 :])
                return Layout(axis, b - a, a - (b - a) * self.shape[0], shape)
        return Layout(None, 1, 0, first)


def traced(model: Any, x: Any, unroll: bool = False) -> Traced:
    """Trace a model at an input (a `ValueError` where that is no batch), arrays or shapes alike."""
    if isinstance(x, tuple | dict) or x is None:
        raise expected(
            "one array (n, ...) or jax.ShapeDtypeStruct as input",
            type(x).__name__,
            "all inputs side by side in one array, taken apart in the function: "
            "(lambda params, x: model(params, x[:, :8], x[:, 8:]), params)",
        )
    if not isinstance(x, jax.ShapeDtypeStruct):
        x = read("the input", x)
    unroll = as_flag("unroll", unroll)
    shape, dtype = tuple(x.shape), jax.dtypes.canonicalize_dtype(x.dtype)
    if not shape or shape[0] == 0:
        raise expected("a batch of at least one sample (n, ...)", f"shape {shape}", "x[None]")
    definition, leaves = define(model, exposed=True)
    # Of NumPy's a copy, since the caller may change his in place.
    leaves = [on_device(leaf) if isinstance(leaf, np.ndarray) else leaf for leaf in leaves]
    avals = tuple(aval_of(leaf) for leaf in leaves)
    program = trace(definition, avals, (shape, dtype), unroll)
    try:
        second = trace(definition, avals, ((shape[0] + 1, *shape[1:]), dtype), unroll)
    except Exception:
        # The model runs at its own batch size alone (a reshape to fixed numbers, say), and whatever
        # it raises at another is not this call's business; its parts then take that size only.
        second = None
    return Traced(definition, leaves, avals, shape, dtype, program, second, unroll)


def cut_points(model: Any, x: Any, *, unroll: bool = False) -> list[CutPoint]:
    """The places where a model can be cut, in order of depth; the last is the output.

    The model is traced, not run, and its equations are walked: a value is a cut point when it is
    the only value alive at that place which depends on the data. Parameters, constants and whatever
    is computed from them alone do not count. Functions without parameters, such as an activation,
    count as one step, and so do those with a derivative or mapping rule of their own
    (`jax.custom_vjp`, `jax.custom_jvp`, `custom_vmap`), which they keep; `jit` and `jax.checkpoint`
    are seen through.

    Args:
        model: an `nnx.Module`, `(linen_module, variables)`, `(function, params)` with
            `function(params, x)`, or a callable pytree. Modules are read in inference mode.
        x: a batch `(n, ...)`, an array or a `jax.ShapeDtypeStruct`.
        unroll: write `lax.scan` out step by step, so that there are cuts between its steps.

    Returns:
        One `CutPoint` a place. `"input"` and `"output"` name the ends wherever a cut is asked for.

    Raises:
        ValueError: the model does not return one array that depends on `x`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> params = {"a": {"w": jnp.ones((3, 4))}, "b": {"w": jnp.ones((4, 2))}}
        >>> net = lambda p, x: jax.nn.relu(x @ p["a"]["w"]) @ p["b"]["w"]
        >>> [cut.name for cut in cut_points((net, params), jnp.ones((5, 3)))]
        ['a', 'a/relu', 'b']
    """
    found = traced(model, x, unroll)
    return [_cut_point(place, index, found) for index, place in enumerate(found.program.cuts)]


def _cut_point(place: Place, index: int, model: Traced) -> CutPoint:
    layout = model.layout(place.name)
    return CutPoint(
        name=place.name,
        index=index,
        shape=tuple(place.variable.aval.shape),
        dtype=np.dtype(place.variable.aval.dtype),
        primitive=place.primitive,
        parameters=place.parameters,
        flops=place.flops // model.shape[0],
        nonlinear=place.nonlinear,
        hidden=place.hidden,
        batch_axis=layout.axis if model.second is not None else 0 if layout.shape else None,
    )


def find(cuts: list[CutPoint], key: "str | int | CutPoint") -> CutPoint:
    """The cut point of a name or an index.

    Args:
        cuts: what `cut_points` returned.
        key: a name, an index from 0, or a cut point; `"output"` is the last.

    Raises:
        ValueError: there is none, with the nearest names.
    """
    if not isinstance(cuts, list) or not all(isinstance(cut, CutPoint) for cut in cuts):
        raise expected("the cuts of a model", type(cuts).__name__, "surgery.cut_points(model, x)")
    return cuts[_position([cut.name for cut in cuts], key)]


def _position(names: list[str], key: Any, inner: dict[str, int] | None = None) -> int:
    """Index of a cut (by name, index or `CutPoint`) among `names`, in order of depth.

    `inner`: values that separate nothing, each with the number of cuts before it.
    """
    if isinstance(key, CutPoint):
        key = key.name
    if isinstance(key, int | np.integer) and not isinstance(key, bool):
        if not 0 <= key < len(names):
            raise expected(
                f"a cut index from 0 to {len(names) - 1}", str(key), "'input' or 'output' for ends"
            )
        return int(key)
    said = key if isinstance(key, str) else None  # an array would be compared entry by entry
    if said in names:
        return names.index(said)
    if said == "output":
        return len(names) - 1
    if inner and said in inner:
        before = inner[said]
        near = [repr(n) for n in ("input", *names)[before : before + 2]]
        raise expected(
            "a cut that separates the model",
            f"{key!r}, beside which other values are alive, as in a residual branch",
            f"the nearest that do: {' or '.join(near)}",
        )
    near = difflib.get_close_matches(str(key), names, n=3, cutoff=0.3) or names[:3]
    raise expected("the name or index of a cut", repr(key), ", ".join(map(repr, near)))


def locate_pair(model: Traced, at: Any) -> tuple[str, str]:
    """The names of a pair of cuts, earlier and later; a `ValueError` where it is none."""
    if not isinstance(at, tuple | list) or len(at) != 2:
        raise expected("a pair of cuts at=(a, b)", repr(at), "at=(earlier, later)")
    cuts, inner = model.program.cuts, model.program.inner
    before = {p.name: sum(cut.position < p.position for cut in cuts) for p in inner}
    names = [cut.name for cut in cuts]
    is_input = lambda key: isinstance(key, str) and key == "input"
    first, last = (-1 if is_input(key) else _position(names, key, before) for key in at)
    if first >= last:
        raise expected(
            "at=(a, b) with a before b in depth", f"{at[0]!r} and {at[1]!r}", "the other order"
        )
    return "input" if first < 0 else names[first], names[last]


def middle(model: Any, x: Any, *, unroll: bool = False) -> tuple[str, str]:
    """The middle layers: from the first hidden layer's activations to the last hidden layer's.

    A hidden layer ends where a nonlinearity has been applied and parameters are still to come; in a
    residual network, where the branch has been added to the stream. States whose batch is not on
    axis 0, as where time comes first, are passed by.

    Args:
        model, x, unroll: as for `cut_points`.

    Returns:
        The names of two cuts, for `at=`.

    Raises:
        ValueError: fewer than two hidden layers.
    """
    cuts = cut_points(model, x, unroll=unroll)
    hidden = [cut.name for cut in cuts if cut.hidden and cut.batch_axis == 0]
    if len(hidden) < 2:
        raise expected(
            "a model with at least two hidden layers that can be cut apart",
            f"{len(hidden)}",
            f"at=(a, b) among 'input', {', '.join(repr(cut.name) for cut in cuts)}",
        )
    return hidden[0], hidden[-1]
