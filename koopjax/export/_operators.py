"""Operators in a file: form, settings and arrays, without what follows from these."""

import dataclasses
import math
from typing import Any

import jax
import numpy as np
from flax import nnx

from koopjax import nn
from koopjax.export._claims import LAYERS_LIMIT, count
from koopjax.export._examples import Take, Unknown, trim
from koopjax.export._file import UnknownName
from koopjax.export._trains import train_node, train_shapes
from koopjax.export._walk import Entry, Path

# The place is what the file holds: append only.
FORMS = ["dense", "low_rank", "tt", "sparse", "clustered", "quantized"]
PLACES_LIMIT = 1 << 28  # entries of a sparse operator, whose mask is written whole
NODE_DEFAULTS = [None, None, "", None, "auto"]


def operator_node(operator: Any, path: Path) -> tuple[list[Any], list[Entry]]:
    """Node and arrays of an operator.

    Raises:
        Unknown: it is none of `nn.OPERATORS`.
    """
    names = {cls: name for name, cls in nn.OPERATORS.items()}
    form = names.get(type(operator))
    if form not in FORMS:
        raise Unknown(type(operator).__name__)
    setting, order, entries = None, "auto", []
    if form == "tt":
        if len(operator.cores) > LAYERS_LIMIT:
            raise Unknown(f"a train of {len(operator.cores)} cores")
        setting, order = train_node(operator), operator.form
        entries = [_entry((*path, "cores", k), core) for k, core in enumerate(operator.cores)]
        entries += _given(operator, path, "bias")
        # shapes in the node: they follow from few numbers
        entries = [dataclasses.replace(e, shape=tuple(e.value.shape)) for e in entries]
    elif form in ("dense", "low_rank"):
        entries = _given(operator, path, *operator.arrays)
    else:
        setting, entries = _stored(operator, path)
    bits = FORMS.index(form) << 2 | int(operator.use_bias) << 1 | trains(_held(operator))
    node = [
        bits,
        None if operator.dtype is None else np.dtype(operator.dtype).name,
        "" if operator.precision == "highest" else _precision(operator.precision),
        setting,
        order,
    ]
    return trim(node, NODE_DEFAULTS), entries


def build_operator(node: list[Any], path: Path, take: Take) -> nn.Operator:
    """The operator of a node.

    Raises:
        UnknownName: a form that this version does not know.
    """
    bits, dtype, precision, setting, order = [*node, *NODE_DEFAULTS[len(node) :]]
    if count(bits, "form of an operator") >> 2 >= len(FORMS):
        raise UnknownName(f"operator form {bits >> 2}")
    settings = {"dtype": dtype, "precision": "highest" if precision == "" else precision}
    form = FORMS[bits >> 2]
    cls: Any = nn.OPERATORS[form]
    if form == "tt":
        shapes = train_shapes(setting)
        cores = [take((*path, "cores", k), known, None) for k, known in enumerate(shapes)]
        width = (math.prod(known[2] for known in shapes),)
        bias = take((*path, "bias"), width, None) if bits & 2 else None
        made = cls(cores, bias, form=order, **settings)
    elif form in ("dense", "low_rank"):
        names = [name for name in cls.arrays if name != "bias" or bits & 2]
        made = cls(**{name: take((*path, name), None, None) for name in names}, **settings)
    else:
        made = _build_stored(form, setting, bool(bits & 2), path, take, settings)
    return made if bits & 1 else nn.freeze(made)


def trains(variables: Any) -> int:
    """1 where any of the Variables is an `nnx.Param`."""
    return int(any(isinstance(v, nnx.Param) for v in variables))


def _held(operator: Any) -> list[Any]:
    """The Variables of an operator."""
    arrays = [getattr(operator, name) for name in operator.arrays if name != "cores"]
    cores = list(operator.cores) if "cores" in operator.arrays else []
    return cores + [v for v in arrays if v is not None]


def _entry(path: Path, variable: Any, **known: Any) -> Entry:
    return Entry(path, variable.get_value(), **known)


def _given(operator: Any, path: Path, *names: str, **known: Any) -> list[Entry]:
    """Those of these arrays that the operator has."""
    held = [(name, getattr(operator, name)) for name in names]
    return [_entry((*path, name), v, **known) for name, v in held if v is not None]


# Sparse, clustered and quantised operators. The indices or codes come first: they tell the shapes
# of the rest. Dtypes are expected, not those of the record before, as codes and numbers alternate.


def _stored(operator: Any, path: Path) -> tuple[Any, list[Entry]]:
    """The setting in the node, and the arrays."""
    numbers: dict[str, Any] = {"dtype": np.float32}
    bias = _given(operator, path, "bias", shape=(operator.out_features,), **numbers)
    if isinstance(operator, nn.Sparse):
        values = _entry((*path, "values"), operator.values, shape=(operator.nonzero,), **numbers)
        return None, [_places(operator, path), values, *bias]
    if isinstance(operator, nn.Clustered):
        codes = _entry((*path, "codes"), operator.codes, dtype=np.uint8)
        setting = operator.zero or None
        return setting, [codes, *_given(operator, path, "codebook", **numbers), *bias]
    codes = _entry((*path, "codes"), operator.codes, dtype=np.int8)
    setting = None if operator.bits == 8 else operator.bits
    scale = _given(operator, path, "scale", shape=(1, 1), **numbers)
    return setting, [codes, *scale, *bias]


def _places(operator: nn.Sparse, path: Path) -> Entry:
    """Rows and columns as a mask, for which there are cheap codings."""
    p, q = operator.shape
    if p * q > PLACES_LIMIT:
        raise Unknown(f"a sparse operator of shape {operator.shape}")
    rows, columns = (
        np.asarray(v.get_value()).astype(np.int64) for v in (operator.rows, operator.columns)
    )
    if np.any(np.diff(rows * q + columns) <= 0):
        raise Unknown("a changed Sparse")
    mask = np.zeros((p, q), bool)
    mask[rows, columns] = True
    paths = ((*path, "rows"), (*path, "columns"))
    return Entry((*path, "places"), mask, dtype=np.bool_, stands_for=paths)


def _build_stored(
    form: str, setting: Any, bias: bool, path: Path, take: Take, settings: dict[str, Any]
) -> nn.Operator:
    number = lambda name, shape: take((*path, name), shape, np.float32)
    if form == "sparse":
        mask = np.asarray(take((*path, "places"), None, np.bool_))
        rows, columns = np.nonzero(mask)
        values = number("values", rows.shape)
        last = number("bias", mask.shape[1:]) if bias else None
        return nn.Sparse(values, rows, columns, mask.shape, last, **settings)
    clustered = form == "clustered"
    codes = take((*path, "codes"), None, np.uint8 if clustered else np.int8)
    main = number("codebook", None) if clustered else number("scale", (1, 1))
    last = number("bias", np.shape(codes)[1:]) if bias else None
    if clustered:
        return nn.Clustered(main, codes, last, zero=bool(setting), **settings)
    return nn.Quantized(codes, main, last, setting or 8, **settings)


def _precision(precision: Any) -> Any:
    if precision is None or isinstance(precision, str):
        return precision
    if isinstance(precision, jax.lax.Precision):
        return precision.name.lower()
    raise Unknown(f"precision {precision}")
