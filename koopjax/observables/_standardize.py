"""Standardisation: each coordinate shifted and scaled, fitted on data, batches or moments."""

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from koopjax._core import (
    check_finite,
    check_number,
    expected,
    has_float64,
    in_float64,
    is_tracing,
    needs_float64,
    precise_as,
    pytree,
    read_numbers,
)
from koopjax.observables._base import (
    Observables,
    check_rows,
    data_rows,
    input_names,
    like,
    require_axes,
    require_dimension,
)


@pytree
class Standardize(Observables):
    """Each coordinate shifted and scaled: `psi(x) = (x - mean) / scale`.

    Args:
        mean: `(d,)`.
        scale: `(d,)`, nowhere zero; `None` for a shift alone.

    Example:
        >>> import jax.numpy as jnp
        >>> Standardize.fit(jnp.array([[0.0, 5.0], [2.0, 5.0]]))(jnp.array([2.0, 6.0]))
        Array([1., 1.], dtype=float32)
    """

    mean: Any
    scale: Any = None

    @classmethod
    def fit(cls, x: Any, *, limit: float = 10.0, floor: float = 0.0) -> "Standardize":
        """Zero mean and unit variance in any units, safe for dead and rarely active coordinates.

        The scale of a coordinate is its standard deviation, raised to `max |x - mean| / limit`: a
        unit that is silent but for one sample in a million would else send that sample to a
        thousand, and its square to a million. A coordinate that is constant to the rounding of
        its own numbers gets scale 1.

        Args:
            x: `(n, d)` data, or an iterable of such batches (one pass, constant memory).
            limit: no sample of `x` is mapped beyond `± limit`; infinity switches this off.
            floor: least scale relative to the widest coordinate's, for coordinates in one unit of
                which those that hardly vary are to stay small.

        Returns:
            `Standardize` with leaves in the dtype of `x`; in float64, whatever JAX's default, where
            float32 would lose the spread of NumPy's float64 data (they lie far from the origin).

        Numerics:
            Two passes in float64 where the backend has it; batches are merged with the pairwise
            update of mean and variance.
        """
        _check_guards(limit, floor)
        if _is_stream(x):
            *moments, dtype = _stream(x)
            return _finish(moments, limit, floor, dtype)
        x = data_rows("the data of Standardize.fit", x)
        if is_tracing(x) or not has_float64():
            return _finish(_moments(x), limit, floor, x.dtype)
        with in_float64(True):
            moments = _moments(jnp.asarray(x, jnp.float64))
        return _finish(tuple(np.asarray(m) for m in moments), limit, floor, x.dtype)

    @classmethod
    def from_moments(
        cls,
        mean: Any,
        variance: Any,
        extent: Any = None,
        *,
        limit: float = 10.0,
        floor: float = 0.0,
    ) -> "Standardize":
        """From moments that are known already, with the safeguards of `fit`.

        Args:
            mean: `(d,)`.
            variance: `(d,)`.
            extent: `(d,)` largest `|x - mean|`; without it `limit` has no effect.
            limit: see `fit`.
            floor: see `fit`.
        """
        _check_guards(limit, floor)
        given = {"the mean": mean, "the variance": variance, "the extent": extent}
        moments = [read_numbers(name, x) for name, x in given.items() if x is not None]
        # Variance and mean are asked for; only the extent may be left out.
        shapes = {x.shape for x in moments}
        if mean is None or variance is None or len(shapes) != 1 or moments[0].ndim != 1:
            raise expected("moments of one shape (d,)", f"shapes {[x.shape for x in moments]}")
        for name, moment in zip(given, moments, strict=False):
            check_finite(name, moment)
            if name != "the mean" and not is_tracing(moment) and np.any(np.asarray(moment) < 0):
                raise expected(f"{name} of at least 0", f"{np.min(moment):.3g}")
        if extent is None:
            moments.append(np.zeros(moments[0].shape))
        moments[1] = (jnp if is_tracing(moments[1]) else np).sqrt(moments[1])
        dtype = _leaf_dtype(moments[0], moments[1])
        return _finish(moments, limit, floor, dtype)

    @classmethod
    def fit_range(cls, x: Any, lower: float = -1.0, upper: float = 1.0) -> "Standardize":
        """Smallest and largest value of each coordinate to `lower` and `upper`.

        For Legendre and Chebyshev polynomials. A constant coordinate goes to the middle.

        Args:
            x: `(n, d)` data.
            lower: image of the smallest value.
            upper: image of the largest value; above `lower`.
        """
        for name, bound in (("lower", lower), ("upper", upper)):
            check_number(name, bound, -np.inf)
        if not lower < upper:
            raise expected("lower < upper", f"{lower} and {upper}")
        x = data_rows("the data of Standardize.fit_range", x)
        with precise_as(x.dtype):
            least, most = jnp.min(x, axis=0), jnp.max(x, axis=0)
            half = (upper - lower) / 2
            middle = least / 2 + most / 2
            radius = most / 2 - least / 2
            own = jnp.finfo(x.dtype)
            largest = jnp.maximum(jnp.abs(least), jnp.abs(most))
            dead = radius <= jnp.maximum(4 * own.eps * largest, half * own.tiny)
            scale = jnp.where(dead, 1, radius / half)
            return cls(middle - scale * (lower + half), scale)

    def size(self, d: int) -> int:
        """`d`."""
        (known,) = require_axes("the mean of Standardize", self.mean, 1)
        require_dimension("Standardize", d, known)
        if self.scale is not None and require_axes("its scale", self.scale, 1) != (known,):
            raise expected(f"a scale of shape ({known},)", f"{jnp.shape(self.scale)}")
        return d

    def names(self, d: int, inputs: Sequence[str] | None = None) -> list[str]:
        """Names such as `z(x0)`."""
        self.size(d)
        return [f"z({name})" for name in input_names(d, inputs)]

    def _evaluate(self, x: Float[Array, "n d"]) -> Array:
        shifted = x - like(self.mean, x)[None, :]
        return shifted if self.scale is None else shifted / like(self.scale, x)[None, :]


@jax.jit
def _moments(x: Array) -> tuple[Array, Array, Array]:
    mean = jnp.mean(x, axis=0)
    centred = x - mean[None, :]
    extent = jnp.max(jnp.abs(centred), axis=0)
    # In units of the extent, for squares of small or large numbers leave the range of float32.
    unit = jnp.where(extent > 0, extent, 1)
    return mean, unit * jnp.sqrt(jnp.mean((centred / unit[None, :]) ** 2, axis=0)), extent


def _finish(moments: Any, limit: float, floor: float, dtype: Any = None) -> Standardize:
    mean, deviation, extent = moments
    np_ = jnp if is_tracing(mean, deviation, extent) else np
    if np_ is np:
        mean, deviation, extent = (np.asarray(m, np.float64) for m in moments)
    dtype = jnp.result_type(float) if dtype is None else dtype
    # Data come rounded to their own dtype: what varies by less than that does not vary, nor what
    # is below its normal numbers, which are zero to the backend.
    own = jnp.finfo(dtype)
    dead = deviation <= np_.maximum(4 * float(own.eps) * np_.abs(mean), float(own.tiny))
    widest = np_.max(deviation) if np.size(deviation) else 0.0
    scale = np_.maximum(np_.maximum(deviation, extent / limit), floor * widest)
    scale = np_.where(dead, 1.0, scale)
    with precise_as(dtype):
        return Standardize(jnp.asarray(mean, dtype), jnp.asarray(scale, dtype))


def _is_stream(x: Any) -> bool:
    """An iterable of batches: no array or table, nor rows of numbers to be read as one."""
    if any(hasattr(x, name) for name in ("shape", "__array__", "to_numpy")):
        return False
    nested = isinstance(x, list | tuple) and not any(hasattr(row, "shape") for row in x)
    return isinstance(x, Iterable) and not nested


def _check_guards(limit: Any, floor: Any) -> None:
    if not (isinstance(limit, float) and np.isposinf(limit)):
        check_number("limit", limit, float(np.finfo(np.float32).tiny))
    check_number("floor", floor)


def _stream(batches: Iterable[Any]) -> Any:
    """Merged moments of batches; the extent is bounded by the smallest and largest values."""
    count, dtype = 0, None
    mean: Any = None
    squares: Any = None
    least: Any = None
    most: Any = None
    top: Any = None
    for batch in batches:
        rows = read_numbers("a batch of Standardize.fit", batch)
        check_rows("a batch of Standardize.fit", rows)
        dtype = rows.dtype
        x = np.asarray(rows, np.float64)
        m, centre = len(x), x.mean(axis=0)
        if mean is None:
            # Squares are of numbers in units of the first batch, or they leave even float64.
            top = np.abs(x - centre).max(axis=0)
            top = np.where(top > 0, top, np.maximum(np.abs(centre), np.finfo(np.float64).tiny))
            mean, squares, least, most = centre, 0.0, x.min(axis=0), x.max(axis=0)
        if mean.shape != centre.shape:
            raise expected(f"batches of {len(mean)} coordinates", f"{len(centre)}")
        total, step = count + m, centre - mean
        inside = (((x - centre) / top) ** 2).sum(axis=0)
        squares = squares + inside + (step / top) ** 2 * count * m / total
        mean, count = mean + step * m / total, total
        least, most = np.minimum(least, x.min(axis=0)), np.maximum(most, x.max(axis=0))
    if mean is None:
        raise expected("at least one batch in Standardize.fit", "an empty stream")
    deviation = top * np.sqrt(squares / count)
    extent = np.maximum(most - mean, mean - least)
    return mean, deviation, extent, _leaf_dtype(mean.astype(dtype), deviation)


def _leaf_dtype(mean: Any, deviation: Any) -> Any:
    """The dtype of the mean, which JAX may cut where data of these moments lose nothing by it."""
    dtype = jax.dtypes.canonicalize_dtype(mean.dtype)
    if is_tracing(mean, deviation) or dtype == mean.dtype:
        return dtype
    two = np.stack([mean - deviation, mean + deviation])
    return mean.dtype if needs_float64("the mean", two) else dtype
