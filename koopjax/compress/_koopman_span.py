"""A span as data, and what a search finds for it."""

import dataclasses
import math
import time
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from koopjax._core import on_device
from koopjax.compress._problem import Score
from koopjax.compress._projection import Entries, Moments, jacobian_metric
from koopjax.compress._setting import Setting


@dataclasses.dataclass(frozen=True, eq=False)
class Span:
    """What is to be replaced, as data.

    Attributes:
        h, y: `(n, d)` and `(n, q)` states at the two cuts, flattened.
        h_val, y_val: the same for validation samples.
        sample: two states at the first cut, in their own shape.
        out_shape: of one state at the second cut.
        out_dtype: of the states at the second cut; statistics and fits are in float32.
        tail: the part behind, or None where the span ends at the output.
        parts: callables from the first cut to the output.
        raw: states at the first cut in their own shape.
        outputs: width of the model's output.
        softmax: whether a softmax reads them, which does not see a common shift.
        logits: the span ends at the outputs of a classifier.
        key: for draws.
        reader: dictionary that reads the state at the first cut before anything else does
            (`observables.Kronecker`); `h` and `h_val` are what it reads. None: they are the state.
    """

    h: Array
    y: Array
    h_val: Array
    y_val: Array
    sample: Array
    out_shape: tuple[int, ...]
    out_dtype: Any
    tail: Any
    parts: tuple[Any, ...]
    raw: Array
    outputs: int
    softmax: bool
    logits: bool
    key: Array
    reader: Any = None

    @property
    def d(self) -> int:
        """Entries of the state before."""
        return self.h.shape[1]

    @property
    def q(self) -> int:
        """Entries of the state after."""
        return self.y.shape[1]

    @property
    def least(self) -> int:
        """Bytes of the arrays of the smallest block."""
        return Setting.least(self.d, self.q).bytes(self.d, self.q)

    @property
    def count(self) -> int:
        """Number of calibration samples."""
        return self.h.shape[0]

    @property
    def metric(self) -> np.ndarray:
        """Metric on the target: what all logits have in common hardly counts."""
        eye = np.eye(self.q)
        return eye - (1 - 1e-3) / self.q if self.logits else eye

    def reading(self) -> dict[str, Any]:
        """How the state is read, for the report: nothing to say where it is read as it is."""
        if self.reader is None:
            return {}
        shapes = [jnp.shape(factor) for factor in self.reader.factors]
        return {"directions": " x ".join(f"{r} of {n}" for n, r in shapes)}

    def slopes(self, rows: int) -> np.ndarray:
        """`(d, d)` mean square of the outputs' derivatives with respect to `h`, on some samples."""
        metric = jacobian_metric(
            self.parts, self.raw[:rows], self.outputs, self.key, centred=self.softmax
        )
        if self.reader is None:
            return metric
        # Directions of an axis are orthonormal, so that what was read is put back by the same.
        back = np.asarray(self.reader(jnp.eye(len(metric), dtype=jnp.float32)), np.float64)
        return back.T @ metric @ back

    def outputs_of(self, y: np.ndarray | Array) -> Array:
        """The model's outputs for states at the second cut."""
        out = on_device(y, self.out_dtype).reshape(len(y), *self.out_shape)
        return out if self.tail is None else self.tail(out)


@dataclasses.dataclass(frozen=True, eq=False)
class Found:
    """The best setting, its score, and what it was made from.

    Attributes:
        setting: the choice.
        score: on the validation data.
        moment: of the state.
        entries: from which the projection is read.
        tried: number of settings compared.
        limited: whether the number of samples bounded the dictionary.
        skipped: number of passes that the time was too short for.
        others: the best of other numbers of entries, best first.
    """

    setting: Setting
    score: Score
    moment: Moments
    entries: Entries
    tried: int
    limited: bool = False
    skipped: int = 0
    others: tuple["Found", ...] = ()

    @property
    def full(self) -> np.ndarray:
        """`(d, r)` projection, its rows zero where an entry isn't read."""
        matrix = self.entries.read(self.setting.directions, len(self.setting.kept))
        return matrix[:, : self.setting.coordinates]


@dataclasses.dataclass(frozen=True)
class Clock:
    """A time by which a search has to end; without `seconds` it never runs out.

    Attributes:
        seconds: from the start on.
        start: of the monotonic clock.
    """

    seconds: float | None = None
    start: float = dataclasses.field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        """Seconds that are left."""
        if self.seconds is None:
            return math.inf
        return self.seconds - (time.monotonic() - self.start)

    def over(self, need: float = 0.0) -> bool:
        """Whether less than `need` seconds are left."""
        return self.left <= need
