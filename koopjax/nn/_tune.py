"""The order of contraction chosen by measurement on the present device."""

import dataclasses
import functools
import statistics
import time
from typing import Any

import jax
from flax import nnx

from koopjax import tt
from koopjax._core import as_whole, expected, is_tracing
from koopjax.nn._tt import TT

HOPELESS = 20.0  # times the expected seconds of the best: not measured


@dataclasses.dataclass(frozen=True)
class Tuned:
    """What `tune` found.

    Attributes:
        module: the module with the fastest form fixed in its `TT` operators.
        seconds: median seconds a call of the whole module, by form.
        forms: the form of each operator, in the order of the module.
    """

    module: Any
    seconds: dict[str, float]
    forms: tuple[str, ...]


@functools.partial(jax.jit, static_argnames="structure")
def _call(leaves: Any, x: Any, *, structure: Any) -> Any:
    """The module from its arrays: taking it apart in Python would hide the differences."""
    return jax.tree.unflatten(structure, leaves)(x)


def tune(module: Any, x: Any, *, repeats: int = 30) -> Tuned:
    """Measure every form of the TT operators of a module and fix the fastest.

    The forms are timed by turns in the whole module, compiled, with the arrays as arguments. One
    form is chosen for all TT operators of the module.

    Args:
        module: a `TT`, a `KoopmanBlock` on one, or any module that holds some.
        x: an input of the batch size that matters.
        repeats: timed calls a form.

    Returns:
        A copy of the module with the form fixed, and the times. A form that the shapes do not
        admit, or that the cost model puts far behind, is left out.

    Raises:
        ValueError: no TT operator in the module, or a traced input.
    """
    operators = tt_operators(module)
    if not operators:
        raise expected("a module with TT operators", type(module).__name__)
    if is_tracing(x, *jax.tree.leaves(nnx.state(module))):
        raise expected("concrete arrays to measure with", "traced ones", "tune outside jit")
    repeats = as_whole("repeats", repeats, 1)
    lanes = {form: with_form(module, form) for form in _candidates(module, x)}
    parts = {form: jax.tree.flatten(lane) for form, lane in lanes.items()}
    for leaves, structure in parts.values():
        jax.block_until_ready(_call(leaves, x, structure=structure))
    times: dict[str, list[float]] = {form: [] for form in lanes}
    for _ in range(repeats):
        for form, (leaves, structure) in parts.items():
            start = time.perf_counter()
            jax.block_until_ready(_call(leaves, x, structure=structure))
            times[form].append(time.perf_counter() - start)
    seconds = {form: statistics.median(values) for form, values in times.items()}
    made = lanes[min(seconds, key=lambda form: seconds[form])]
    return Tuned(made, seconds, tuple(op.form for op in tt_operators(made)))


def tt_operators(module: Any) -> list[TT]:
    """The TT operators of a module, each once."""
    return [node for _, node in nnx.iter_modules(module) if isinstance(node, TT)]


def with_form(module: Any, form: str) -> Any:
    """A copy of a module whose TT operators have this form."""
    if form not in tt.FORMS:
        raise expected(f"a form among {list(tt.FORMS)}", repr(form))
    made = nnx.clone(module)
    for operator in tt_operators(made):
        operator.form = form
    return made


def _candidates(module: Any, x: Any) -> list[str]:
    """The forms that trace on this input and are not expected to be hopeless."""
    found: dict[str, float] = {}
    rows = x.size // max(1, x.shape[-1]) if x.ndim else 1
    for form in tt.FORMS:
        lane = with_form(module, form)
        try:
            jax.eval_shape(lambda module, x: module(x), lane, x)
            found[form] = sum(_expected(op, rows) for op in tt_operators(lane))
        except ValueError:
            if form == "auto":  # a fault of the input, not of the form
                raise
    least = min(found.values())
    return [form for form, seconds in found.items() if seconds <= HOPELESS * least]


def _expected(operator: TT, rows: int) -> float:
    """Seconds by the model, for a product where the form is for products alone."""
    kind = "product" if sum(c > 1 for c in operator.modes[1]) <= 1 else "vector"
    form = operator.form
    return tt.contraction_order(operator.ranks, *operator.modes, rows, kind=kind, form=form).seconds
