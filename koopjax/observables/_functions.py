"""Dictionaries from code: a Flax module with its parameters, a plain function."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from koopjax import forms
from koopjax._core import Static, check_integer, expected, is_tracing, note, read, static, watched
from koopjax.observables._base import Observables


class _Constant:
    """A small array in the structure of a tree, compared by value: random keys and counters."""

    def __init__(self, array: Any) -> None:
        self.is_key = jnp.issubdtype(array.dtype, jax.dtypes.prng_key)
        if self.is_key:
            self.kind = str(jax.random.key_impl(array))
            array = jax.random.key_data(array)
        array = np.asarray(array)
        self.content = (array.tobytes(), array.shape, array.dtype.str, self.is_key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Constant) and self.content == other.content

    def __hash__(self) -> int:
        return hash(self.content)

    def value(self) -> Array:
        content, shape, dtype, is_key = self.content
        array = jnp.asarray(np.frombuffer(content, dtype).reshape(shape))
        return jax.random.wrap_key_data(array, impl=self.kind) if is_key else array


jax.tree_util.register_static(_Constant)


@watched(lambda psi: Static(psi.definition))
class Neural(Observables):
    """A network as a dictionary, its parameters trainable leaves.

    One that couples the states of a batch is refused, as for `Custom`.

    Args:
        module: an `nnx.Module`, a pair `(linen_module, variables)`, or a pair
            `(function, params)` with `function(params, x)`; it maps `(n, d)` to `(n, p)`.

    The leaves of `params` are what `jax.grad` sees; batch statistics are leaves too, behind
    `stop_gradient`, and random counters belong to the structure. An `nnx.Module` is evaluated in
    inference mode (`module.eval()`) on a copy: a dictionary is a function of the state alone. The
    parameters are those at the time of the call; later changes to the module are not followed.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> psi = Neural(nnx.Linear(2, 5, rngs=nnx.Rngs(0)))
        >>> psi(jnp.ones((3, 2))).shape, psi.size(2)
        ((3, 5), 5)
    """

    params: Any
    rest: Any
    definition: Any = static()

    foreign: ClassVar[bool] = True
    prefix = "nn"

    def __init__(
        self, module: Any = None, *, params: Any = None, rest: Any = None, definition: Any = None
    ) -> None:
        """Take a module apart; JAX rebuilds by keyword from the parts."""
        if definition is None:
            params, rest, definition = _take_apart(module)
        object.__setattr__(self, "params", params)
        object.__setattr__(self, "rest", rest)
        object.__setattr__(self, "definition", definition)

    @property
    def module(self) -> Any:
        """The network with the current parameters, in the form in which it came."""
        return self.definition[0].merge(self.params, _rest(self.definition, self.rest))

    def size(self, d: int) -> int:
        """The width of the network's output, found by abstract evaluation."""
        leaves, structure = jax.tree.flatten(self)
        shapes = tuple(jax.ShapeDtypeStruct(jnp.shape(a), jnp.result_type(a)) for a in leaves)
        return _width(structure, shapes, d)

    def _evaluate(self, x: Float[Array, "n d"]) -> Array:
        rest = jax.tree.map(jax.lax.stop_gradient, self.rest)
        infer = functools.partial(_infer, self.definition)
        note(Static(self.definition), infer, self.params, rest, x)
        return infer(self.params, rest, x)


def _infer(definition: Any, params: Any, rest: Any, x: Array) -> Array:
    """The output of a network in inference mode."""
    form, _ = definition
    return jnp.asarray(form(form.leaves(params, _rest(definition, rest)), x), x.dtype)


def _rest(definition: Any, rest: Any) -> Any:
    leaves = [leaf.value() if isinstance(leaf, _Constant) else leaf for leaf in rest]
    return jax.tree.unflatten(definition[1], leaves)


def _take_apart(module: Any) -> tuple[Any, Any, Any]:
    pair = isinstance(module, tuple) and len(module) == 2
    if not callable(module[0] if pair else module):
        raise expected(
            "an nnx.Module, (linen_module, variables) or (function, params) in Neural",
            type(module).__name__,
        )
    definition, params, rest = forms.form_of(module)
    leaves, structure = jax.tree.flatten(rest)
    return params, tuple(map(_settle, leaves)), (definition.unversioned(), structure)


def _settle(leaf: Any) -> Any:
    """Integers and keys to the structure, where a gradient with respect to `psi` can't trip."""
    if is_tracing(leaf) or jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
        return leaf
    return _Constant(leaf)


@functools.lru_cache(maxsize=256)
def _width(structure: Any, shapes: tuple[Any, ...], d: int) -> int:
    psi = jax.tree.unflatten(structure, shapes)
    probe = jax.ShapeDtypeStruct((2, d), jnp.float32)
    try:
        shape = jax.eval_shape(lambda psi, x: psi._evaluate(x), psi, probe).shape
    except Exception as error:
        # Flax has many ways to say so, none of which names the dictionary.
        cause = error.__cause__ or error
        raise expected(
            f"a network in Neural that takes states of {d} coordinates",
            f"{type(cause).__name__} ({str(cause).splitlines()[0] if str(cause) else ''})",
            "states of the width that it was made for",
        ) from error
    if len(shape) != 2 or shape[0] != 2:
        raise expected(
            "a network that maps (n, d) to (n, p) in Neural", f"{(2, d)} mapped to {shape}"
        )
    return shape[1]


@watched(lambda psi: Static(psi.function))
class Custom(Observables):
    """A function of one's own, of each state by itself.

    One that gives a state other values in a batch than alone (a norm over the batch, its mean, a
    sort) is refused when it is first evaluated; it is tried on a few rows for that.

    Args:
        function: maps a batch `(n, d)` to `(n, size)`, or one state `(d,)` to `(size,)`: which of
            both is found by abstract evaluation, the batch preferred. Written in `jax.numpy`. It
            is the key of the compilation cache: pass the same function object, not a new lambda,
            on every call. Each call traces it again, without compiling, to see whether what it
            closes over has changed.
        size: number of observables. (The field is called `count`.)
        params: optional pytree of leaves; the function is then called as `function(params, x)`,
            and gradients and `vmap` reach them.
        labels: optional names of the observables.

    Example:
        >>> import jax.numpy as jnp
        >>> Custom(jnp.sin, 2)(jnp.zeros((4, 2))).shape
        (4, 2)
    """

    function: Callable[..., Any] = static()
    count: int = static()
    params: Any = None
    labels: Any = static(default=None)

    foreign: ClassVar[bool] = True
    prefix = "f"

    def __init__(
        self,
        function: Callable[..., Any],
        size: int | None = None,
        params: Any = None,
        labels: Sequence[str] | None = None,
        *,
        count: int | None = None,
    ) -> None:
        """Keep the settings; JAX rebuilds by keyword with `count`."""
        object.__setattr__(self, "function", function)
        object.__setattr__(self, "count", size if count is None else count)
        object.__setattr__(self, "params", params)
        if isinstance(labels, str) or not isinstance(labels, Sequence | None):
            raise expected("a sequence of labels in Custom", f"{labels!r:.60}", "None")
        object.__setattr__(self, "labels", None if labels is None else tuple(labels))

    def size(self, d: int) -> int:
        """The size that was stated."""
        check_integer("the size of Custom", self.count, 1)
        if not callable(self.function):
            raise expected("a function in Custom", type(self.function).__name__)
        return self.count

    def names(self, d: int, inputs: Sequence[str] | None = None) -> list[str]:
        """The labels, or `f0`, `f1`, ..."""
        names = super().names(d, inputs)
        if self.labels is None:
            return names
        if len(self.labels) != len(names):
            raise expected(f"{len(names)} labels in Custom", f"{len(self.labels)}")
        return list(self.labels)

    def _evaluate(self, x: Float[Array, "n d"]) -> Array:
        d, size = x.shape[1], self.size(x.shape[1])
        # A batch that can't be mistaken for a number of coordinates or of observables.
        batch = jax.ShapeDtypeStruct((d + size + 3, d), x.dtype)
        one = jax.ShapeDtypeStruct((d,), x.dtype)
        apply = functools.partial(_apply, self.function)
        attempts = []
        for call, seen in ((apply, batch), (jax.vmap(apply, (None, 0)), one)):
            try:
                shape = jax.eval_shape(call, self.params, batch).shape
            except Exception as error:
                attempts.append(error)
                continue
            if shape == (batch.shape[0], size):
                note(Static(self.function), apply, self.params, seen)
                return call(self.params, x)
            attempts.append(
                expected(
                    f"the function of Custom to map (n, {d}) to (n, {size}) or ({d},) to ({size},)",
                    f"{batch.shape} mapped to {shape}",
                    "another size",
                )
            )
        # The function's own error says more than our complaint about a shape.
        raise next((e for e in attempts if not isinstance(e, ValueError)), attempts[0])


def _apply(function: Any, params: Any, x: Array) -> Array:
    out = function(x) if params is None else function(params, x)
    out = out if isinstance(out, jax.Array) else read("what the function of Custom gives", out)
    if jnp.iscomplexobj(out):
        raise expected("a function of Custom that gives real numbers", f"dtype {out.dtype}")
    return jnp.asarray(out, x.dtype)
