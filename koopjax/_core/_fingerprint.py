"""What a traced function computes, as a text that is equal where two traces compute the same."""

import hashlib
import pathlib
import re
import weakref
from collections.abc import Sequence
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

#: Calls with a derivative rule of their own, whose parameters hold the rule as a function.
_RULES = ("custom_jvp_call", "custom_vjp_call")

#: Where JAX's own rules are, such as that of `jax.nn.relu`: they close over nothing that changes.
_OF_JAX = str(pathlib.Path(jax.__file__).parent)


def fingerprint(closed: Any, *, anonymous: bool = False) -> str:
    """A hash of the operations of a closed jaxpr and of the numbers in it.

    Two traces of one function agree as long as nothing that it closes over has changed: numbers,
    globals, attributes, arrays changed in place, and what its own derivative rules close over.

    Args:
        closed: from `jax.make_jaxpr`.
        anonymous: leave out memory addresses, so that the text is the same in every process.
    """
    reader = _Reader(anonymous)
    reader.read(closed)
    return reader.hash.hexdigest()


class _Reader:
    def __init__(self, anonymous: bool):
        self.hash = hashlib.blake2b(digest_size=16)
        self._anonymous = anonymous
        self._inside_rule = False

    def _write(self, *texts: Any) -> None:
        for text in texts:
            self.hash.update(f"{text}\0".encode())

    def read(self, value: Any) -> None:
        """Take in a jaxpr, an array, or any other parameter of an equation."""
        if isinstance(value, jex.ClosedJaxpr):
            for constant in value.consts:
                self.read(constant)
            self._jaxpr(value.jaxpr)
        elif isinstance(value, jex.Jaxpr):
            self._jaxpr(value)
        elif isinstance(value, tuple | list):
            self._write(len(value))
            for entry in value:
                self.read(entry)
        elif isinstance(value, dict):
            self.read(sorted(value.items(), key=repr))
        elif isinstance(value, Tracer):
            self._write(value.aval)
        elif hasattr(value, "dtype") and hasattr(value, "shape"):
            self._write(digest(value))
        else:
            text = repr(value)
            self._write(re.sub(r" at 0x[0-9a-f]+|\bid=\d+", "", text) if self._anonymous else text)

    def _jaxpr(self, jaxpr: Any) -> None:
        numbers: dict[Any, int] = {}

        def define(variables: Sequence[Any]) -> None:
            for variable in variables:
                numbers[variable] = len(numbers)
                aval = variable.aval
                self._write(aval, getattr(aval, "weak_type", ""))

        def use(atoms: Sequence[Any]) -> None:
            for atom in atoms:
                if isinstance(atom, jex.Literal):
                    self._write(atom.aval)
                    self.read(atom.val)
                else:
                    self._write(numbers[atom])

        define([*jaxpr.constvars, *jaxpr.invars])
        for equation in jaxpr.eqns:
            name = equation.primitive.name
            self._write(name)
            use(equation.invars)
            for key, value in sorted(equation.params.items()):
                if name not in _RULES or not callable(value):
                    self._write(key)
                    self.read(getattr(value, "rule", value))  # a mapping rule is wrapped anew
            if name in _RULES and not self._inside_rule:
                self._rule(jaxpr, equation)
            define(equation.outvars)
        use(jaxpr.outvars)

    def _rule(self, source: Any, equation: Any) -> None:
        """Take in what a derivative rule computes; rules inside it are left alone."""
        inner = equation.params["call_jaxpr"].jaxpr
        if str(inner.debug_info.func_filename).startswith(_OF_JAX):
            return
        self._inside_rule = True
        try:
            self.read(_differentiated(source, equation))
        except Exception as error:
            # A rule is of the user: what it raises here it raises whenever a derivative is asked
            # for, which is not this call's business.
            self._write(type(error).__name__)
        self._inside_rule = False


def _differentiated(source: Any, equation: Any) -> Any:
    """The jaxpr of a call's own rule, forward or backward."""
    floating = [jnp.issubdtype(a.aval.dtype, jnp.inexact) for a in equation.invars]
    operands = [jax.ShapeDtypeStruct(a.aval.shape, a.aval.dtype) for a in equation.invars]
    outputs = [v.aval for v in equation.outvars if jnp.issubdtype(v.aval.dtype, jnp.inexact)]

    def of(values: Sequence[Any]) -> Any:
        def call(*chosen: Any) -> list[Any]:
            source_of = iter(chosen)
            full = [next(source_of) if f else v for f, v in zip(floating, values, strict=True)]
            results = run_equation(source, equation, full)
            return [out for out in results if jnp.issubdtype(out.dtype, jnp.inexact)]

        return call, [v for f, v in zip(floating, values, strict=True) if f]

    def forward(values: Sequence[Any], tangents: Sequence[Any]) -> Any:
        call, chosen = of(values)
        return jax.jvp(call, chosen, tangents)

    def backward(values: Sequence[Any], cotangents: Sequence[Any]) -> Any:
        call, chosen = of(values)
        return jax.vjp(call, *chosen)[1](cotangents)

    if equation.primitive.name == "custom_jvp_call":
        tangents = [operand for f, operand in zip(floating, operands, strict=True) if f]
        return jax.make_jaxpr(forward)(operands, tangents)
    cotangents = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in outputs]
    return jax.make_jaxpr(backward)(operands, cotangents)


def run_equation(source: Any, equation: Any, operands: Sequence[Any]) -> list[Any]:
    """The results of one equation of a jaxpr `source`, with its own derivative rule."""
    inputs = [jex.Var(atom.aval) for atom in equation.invars]
    jaxpr = source.replace(
        constvars=(),
        invars=inputs,
        outvars=equation.outvars,
        eqns=[equation.replace(invars=inputs)],
        effects=equation.effects,
    )
    return jex.jaxpr_as_fun(jex.ClosedJaxpr(jaxpr, ()))(*operands)


_DIGESTS: dict[int, tuple[Any, str]] = {}


def digest(array: Any) -> str:
    """A hash of an array's dtype, shape and numbers; of a `jax.Array` it is found once."""
    held, found = _DIGESTS.get(id(array), (None, ""))
    if held is not None and held() is array:
        return found
    content = array
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        content = jax.random.key_data(array)
    content = np.ascontiguousarray(content)
    made = hashlib.blake2b(f"{array.dtype}{array.shape}".encode(), digest_size=16)
    made.update(content.tobytes())
    found = made.hexdigest()
    if isinstance(array, jax.Array):  # immutable; an array of NumPy may change in place
        key = id(array)
        _DIGESTS[key] = weakref.ref(array, lambda _: _DIGESTS.pop(key, None)), found
    return found
