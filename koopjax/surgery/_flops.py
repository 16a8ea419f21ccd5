"""Floating-point operations of an equation, counted from its shapes."""

import math
from typing import Any

from koopjax.surgery._flatten import CALLS

#: Primitives that move or rename numbers without arithmetic.
_FREE = frozenset((
    "broadcast_in_dim", "reshape", "transpose", "squeeze", "slice", "dynamic_slice",
    "dynamic_update_slice", "gather", "concatenate", "pad", "rev", "copy", "convert_element_type",
    "bitcast_convert_type", "iota", "name", "stop_gradient", "select_n", "split",
    "optimization_barrier", "sharding_constraint", "device_put", "expand_dims", "random_bits",
    "random_wrap", "random_unwrap", "eq", "ne", "lt", "le", "gt", "ge", "and", "or", "not",
))  # fmt: skip


def flops(equation: Any) -> int:
    """Operations that one equation performs; a multiply-add counts as two.

    Products and convolutions are exact, reductions count their input, everything else one operation
    an element of its result; a loop counts its steps, a `while` one step, a branch the dearest.
    """
    name, params = equation.primitive.name, equation.params
    shapes: list[Any] = [getattr(atom.aval, "shape", ()) for atom in equation.invars]
    size = sum(math.prod(getattr(v.aval, "shape", ())) for v in equation.outvars)
    if name in _FREE:
        return 0
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        return 2 * size * math.prod(shapes[0][axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel = params["dimension_numbers"].rhs_spec
        spatial = math.prod(shapes[1][axis] for axis in kernel[2:])
        return 2 * size * spatial * shapes[1][kernel[1]]
    if name == "scan":
        return params["length"] * _total(params["jaxpr"])
    if name == "cond":
        return max(_total(branch) for branch in params["branches"])
    if name == "while":
        return _total(params["body_jaxpr"]) + _total(params["cond_jaxpr"])
    if name in CALLS:
        return _total(params[CALLS[name]])
    if name.startswith("reduce_window"):
        window = params.get("window_dimensions")
        return size * math.prod(window) if window else size
    if name.startswith(("reduce", "arg", "cum", "sort", "scatter")):
        return max((math.prod(shape) for shape in shapes), default=0)
    return size


def _total(jaxpr: Any) -> int:
    return sum(flops(equation) for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns)
