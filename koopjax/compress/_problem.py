"""What every method needs first: checked data, the original's outputs, and one way to score."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from koopjax import export, models, surgery
from koopjax._core import check_finite, expected, on_device
from koopjax.compress._budget import Budget

#: Share of the calibration samples held out where the caller gives no validation data.
HELD_OUT = 1 / 6
#: More validation samples than this tell settings no better apart, for the time that they take.
MOST_VALIDATION = 5000


@dataclasses.dataclass(frozen=True, order=True)
class Score:
    """How good a setting is on the validation data; larger is better.

    Attributes:
        value: accuracy, agreement or R².
        closeness: minus the KL divergence from the original's softmax; breaks ties.
    """

    value: float
    closeness: float


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """A model to compress and the data to do it with.

    Attributes:
        model: the original.
        x: `(n, ...)` calibration samples without those held out.
        x_val: validation samples.
        teacher: the original's outputs on `x_val`, `(m, q)` (positions of tokens as rows).
        y_val: labels of `x_val` `(m,)`, or None.
        held_out: whether `x_val` was taken out of the calibration samples.
        original_bytes: size of the original's file.
        limit: bytes that the compressed model may take.
        budget: the budget as asked for.
    """

    model: Any
    x: Array
    x_val: Array
    teacher: Array
    y_val: Array | None
    held_out: bool
    original_bytes: int
    limit: int
    budget: Budget

    @property
    def measure(self) -> str:
        """Name of the score."""
        if self.teacher.shape[-1] == 1:
            return "r2"
        return "agreement" if self.y_val is None else "accuracy"

    def score(self, outputs: Float[Array, "m q"]) -> Score:
        """Compare outputs on `x_val` with the labels, or with the original where there are none."""
        outputs = on_device(outputs, self.teacher.dtype).reshape(self.teacher.shape)
        if self.measure == "r2":
            value = float(_r2(outputs, self.teacher))
            return Score(value if np.isfinite(value) else -np.inf, value)
        labels = jnp.argmax(self.teacher, axis=-1) if self.y_val is None else self.y_val
        value, divergence = _compare(outputs, self.teacher, labels)
        if not np.isfinite(float(divergence)):
            return Score(-np.inf, -np.inf)
        return Score(float(value), -float(divergence))

    def score_model(self, model: Any) -> Score:
        """Score a model of any form."""
        return self.score(models.predict(model, self.x_val))

    def account(self, score: Score) -> dict[str, Any]:
        """The score as fields of a `Report`."""
        divergence = None if self.measure == "r2" else -score.closeness
        return {"score": score.value, "measure": self.measure, "divergence": divergence}


def cut(model: Any, x: Array, at: Any) -> tuple[tuple[Any, Any, Any], tuple[str, str]]:
    """Head, span and tail, and the names of the cuts between them.

    Args:
        model: the original.
        x: samples; their shape and dtype alone matter.
        at: a cut to start from, a pair of cuts, or None for the whole model.
    """
    if at is None:
        at = ("input", "output")
    elif isinstance(at, str | int | surgery.CutPoint):
        at = (at, "output")
    sample = jax.ShapeDtypeStruct((2, *x.shape[1:]), x.dtype)
    parts = surgery.split(model, sample, at)
    surgery.check_rows(parts[1])
    return parts, (parts[1].segment.start, parts[1].segment.stop)


def run(part: Any, x: Array) -> Array:
    """A part of the model on samples, some thousand at a time."""
    rows = max(1, min(2000, len(x)))
    return jnp.concatenate([part(x[i : i + rows]) for i in range(0, len(x), rows)])


def placed(
    model: Any, x: Array, ends: tuple[str, str], block: Any, *, before: Array, rank: int,
    dtype: Any, last: bool,
) -> Any:  # fmt: skip
    """A block as the whole model where it replaces all of it, else spliced into the original.

    Args:
        model, x, ends: the original, its samples, the names of the span's cuts.
        block: float32, from rows of states to rows of states.
        before: states at the first cut.
        rank, dtype: of the states at the second cut, the axis of samples included.
        last: the span ends at the model's output.
    """
    vectors = before.ndim == rank == 2
    # A spliced model hands on the original's dtype where promotion would give another.
    same = jnp.result_type(before.dtype, jnp.float32) == dtype
    if vectors and same and ends[0] == "input" and last:
        return block
    sample = jax.ShapeDtypeStruct((2, *x.shape[1:]), x.dtype)
    axes = None if vectors else "flatten"
    return surgery.splice(model, sample, ends, block, sample_axes=axes)


def span_name(path: tuple[Any, ...]) -> str:
    """The name that a part's parameters give to the array at a path of a model."""
    keys = [getattr(k, "key", getattr(k, "name", getattr(k, "idx", k))) for k in path]
    # A spliced model's own dictionaries of arrays are no level of the name.
    return ".".join(str(k) for k in keys if k != "parameters" or len(keys) == 1)


@jax.jit
def _compare(outputs: Array, teacher: Array, labels: Array) -> tuple[Array, Array]:
    log_p, log_q = jax.nn.log_softmax(teacher), jax.nn.log_softmax(outputs)
    divergence = jnp.mean(jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1))
    return jnp.mean(jnp.argmax(outputs, axis=-1) == labels), divergence


@jax.jit
def _r2(outputs: Array, teacher: Array) -> Array:
    total = jnp.sum((teacher - jnp.mean(teacher, axis=0, keepdims=True)) ** 2)
    return 1 - jnp.sum((outputs - teacher) ** 2) / jnp.where(total > 0, total, 1)


def pose(
    method: str, model: Any, calibration: Any, budget: Any, labels: Any, validation: Any, key: Any
) -> Problem:
    """Check the arguments that all methods share, hold out validation data, run the original.

    Args:
        method: name for the messages.
        model, calibration, budget, labels, validation, key: as for every method in `METHODS`.

    Raises:
        ValueError: anything wrong with them, in one line.
    """
    budget = Budget.parse(budget)
    x = _samples(f"{method}: calibration", calibration, 2)
    y = None if labels is None else _labels(f"{method}: labels", labels, len(x))
    held_out = validation is None
    if held_out:
        count = min(MOST_VALIDATION, max(1, round(HELD_OUT * len(x))))
        order = jax.random.permutation(key, len(x))
        kept, held = order[count:], order[:count]
        x_val, y_val = x[held], None if y is None else y[held]
        x = x[kept]
    else:
        pair = isinstance(validation, tuple) and len(validation) == 2
        x_val, y_val = validation if pair else (validation, None)
        x_val = _samples(f"{method}: validation", x_val, 1)
        if x_val.shape[1:] != x.shape[1:]:
            raise expected(
                f"{method}: validation samples of shape {x.shape[1:]}, like calibration",
                f"{x_val.shape[1:]}", "samples of one set",
            )  # fmt: skip
        y_val = None if y_val is None else _labels(f"{method}: validation", y_val, len(x_val))
        # In random order, as after holding out: methods take the first samples as a sample.
        x = x[jax.random.permutation(key, len(x))]
    teacher = models.predict(model, x_val)
    if teacher.ndim < 2:
        raise expected(
            f"{method}: a model with outputs (n, q)", f"outputs of shape {teacher.shape}",
            "a last axis of classes or of one regression target",
        )  # fmt: skip
    check_finite(f"the original model's outputs ({method})", teacher)
    original = export.stored_bytes(model)
    return Problem(
        model, x, x_val, teacher.reshape(-1, teacher.shape[-1]).astype(jnp.float32),
        None if y_val is None else y_val.reshape(-1), held_out, original,
        budget.bytes(original), budget,
    )  # fmt: skip


def _samples(name: str, x: Any, least: int) -> Array:
    if isinstance(x, tuple | list) or not hasattr(x, "shape"):
        raise expected(f"{name} as one array (n, ...)", type(x).__name__, "labels=... for labels")
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        x = x.astype(jnp.float32) if x.dtype == jnp.bool_ else x
    if x.ndim < 2 or x.shape[0] < least:
        raise expected(
            f"{name} of shape (n, ...) with at least {least} samples", f"shape {x.shape}",
            "samples as the model takes them, a row each",
        )  # fmt: skip
    check_finite(name, x)
    return x


def _labels(name: str, y: Any, n: int) -> Array:
    y = jnp.asarray(y)
    if y.ndim < 1 or y.shape[0] != n or not jnp.issubdtype(y.dtype, jnp.integer):
        raise expected(f"{name}: {n} integers, one a sample", f"{y.dtype} of shape {y.shape}")
    return y
