"""Operators in a file: form and settings, without what follows from these."""

import math
from typing import Any

import jax
import numpy as np
from flax import nnx

from koopjax import nn
from koopjax.export._file import LAYERS_LIMIT, UnknownName, count, sizes
from koopjax.export._named import Take, Unknown, trim
from koopjax.export._walk import Path

# The place is what the file holds: append only.
FORMS = ["dense", "low_rank", "tt", "sparse", "clustered", "quantized"]
PLACES_LIMIT = 1 << 28  # entries of a sparse operator, whose mask is written whole
NODE_DEFAULTS = [None, None, "", None, "auto"]


def operator_node(operator: Any) -> list[Any]:
    """The node of an operator; `Unknown` where it is none of `nn.OPERATORS`."""
    names = {cls: name for name, cls in nn.OPERATORS.items()}
    form = names.get(type(operator))
    if form not in FORMS:
        raise Unknown(type(operator).__name__)
    setting, order = None, "auto"
    if form == "tt":
        if len(operator.cores) > LAYERS_LIMIT:
            raise Unknown(f"a train of {len(operator.cores)} cores")
        setting, order = _train_node(operator), operator.form
    elif form == "clustered":
        setting = operator.zero or None
    elif form == "quantized" and operator.bits != 8:
        setting = operator.bits
    variables = (node for _, node in nnx.iter_graph(operator))
    node = [
        FORMS.index(form) << 2 | int(operator.use_bias) << 1 | trains(variables),
        None if operator.dtype is None else np.dtype(operator.dtype).name,
        "" if operator.precision == "highest" else _precision(operator.precision),
        setting,
        order,
    ]
    return trim(node, NODE_DEFAULTS)


def build_operator(node: list[Any], path: Path, take: Take) -> nn.Operator:
    """The operator of a node; `UnknownName` for a form that this version does not know."""
    bits, dtype, precision, setting, order = [*node, *NODE_DEFAULTS[len(node) :]]
    if count(bits, "form of an operator") >> 2 >= len(FORMS):
        raise UnknownName(f"operator form {bits >> 2}")
    settings = {"dtype": dtype, "precision": "highest" if precision == "" else precision}
    form = FORMS[bits >> 2]
    cls: Any = nn.OPERATORS[form]
    array = lambda name, shape=None, dtype=None: take((*path, name), shape, dtype)
    number: Any = np.float32
    bias = lambda shape, dtype=number: array("bias", shape, dtype) if bits & 2 else None
    if form == "tt":
        shapes = _train_shapes(setting)
        cores = [take((*path, "cores", k), shape, None) for k, shape in enumerate(shapes)]
        last = bias((math.prod(shape[2] for shape in shapes),), None)
        made = cls(cores, last, form=order, **settings)
    elif form in ("dense", "low_rank"):
        names = [name for name in cls.arrays if name != "bias" or bits & 2]
        made = cls(**{name: array(name) for name in names}, **settings)
    # Of the others indices or codes come first: they tell the shapes of the rest. Dtypes are
    # expected, not those of the record before, as codes and numbers alternate.
    elif form == "sparse":
        mask = np.asarray(array("places", None, np.bool_))
        rows, columns = np.nonzero(mask)
        values = array("values", rows.shape, np.float32)
        made = cls(values, rows, columns, mask.shape, bias(mask.shape[1:]), **settings)
    elif form == "clustered":
        codes, book = array("codes", None, np.uint8), array("codebook", None, np.float32)
        made = cls(book, codes, bias(np.shape(codes)[1:]), zero=bool(setting), **settings)
    else:
        codes, scale = array("codes", None, np.int8), array("scale", (1, 1), np.float32)
        made = cls(codes, scale, bias(np.shape(codes)[1:]), setting or 8, **settings)
    return made if bits & 1 else nn.freeze(made)


def places_of(operator: nn.Sparse) -> np.ndarray:
    """Rows and columns of a sparse operator as a mask, for which there are cheap codings."""
    p, q = operator.shape
    if p * q > PLACES_LIMIT:
        raise Unknown(f"a sparse operator of shape {operator.shape}")
    held = (operator.rows, operator.columns)
    rows, columns = (np.asarray(v.get_value()).astype(np.int64) for v in held)
    if np.any(np.diff(rows * q + columns) <= 0):
        raise Unknown("a changed Sparse")
    mask = np.zeros((p, q), bool)
    mask[rows, columns] = True
    return mask


def trains(variables: Any) -> int:
    """1 where any of the Variables is an `nnx.Param`."""
    return int(any(isinstance(v, nnx.Param) for v in variables))


def _precision(precision: Any) -> Any:
    if precision is None or isinstance(precision, str):
        return precision
    if isinstance(precision, jax.lax.Precision):
        return precision.name.lower()
    raise Unknown(f"precision {precision}")


def _train_node(operator: Any) -> list[Any]:
    """`[d, row modes, column modes, inner ranks]` of a TT operator, equal numbers as one.

    Column modes with all outputs in one core are `[k, q]`, `k` negative: counted from the end.
    """
    rows, columns = operator.modes
    d = len(rows)
    at = max(range(d), key=lambda k: columns[k])
    single = d > 2 and all(c == 1 for k, c in enumerate(columns) if k != at)
    shorter = [at - d, columns[at]] if single else _run(columns)
    return [d, _run(rows), shorter, _run(operator.ranks[1:-1])]


def _train_shapes(node: Any) -> list[tuple[int, int, int, int]]:
    """The shapes of the cores of a node: the reverse of `_train_node`."""
    d, rows, columns, ranks = node
    count(d, "number of cores", LAYERS_LIMIT)
    if isinstance(columns, list) and len(columns) == 2 and columns[0] < 0:
        at, q = columns
        columns = [1] * d
        columns[at] = q
    rows, columns = _spread(rows, d), _spread(columns, d)
    ranks = [1, *_spread(ranks, d - 1), 1]
    return [(ranks[k], rows[k], columns[k], ranks[k + 1]) for k in range(d)]


def _run(numbers: Any) -> Any:
    """Equal numbers as that number, others as a list."""
    numbers = [int(n) for n in numbers]
    return numbers[0] if numbers and len(set(numbers)) == 1 else numbers


def _spread(run: Any, number: int) -> list[int]:
    return sizes([run] * number if isinstance(run, int) else run, LAYERS_LIMIT, "sizes of cores")
