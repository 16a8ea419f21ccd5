"""A projection trained without labels: through the least-squares solve, then together with K."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from koopjax import models
from koopjax._core import matmul, on_device, pytree
from koopjax.compress._koopman.directions import product_factors

#: Ridge of the solve on a batch, relative to its samples.
RIDGE = 1e-3
#: Samples a step once K is a parameter.
BATCH = 512
#: Samples an observable in a batch on which K is solved, and the least number of samples.
PER_OBSERVABLE, FEWEST = 3, 1000
#: Entries of the state that vary less than this share of the widest are not blown up further.
FLOOR = 0.05
#: A stage is looked at on the validation data so many times.
LOOKS = 8


@pytree
class Frame:
    """What training holds fixed: moments of the kept entries, the covariance once standardised.

    `mask` `(m, r)` has ones where a coordinate reads an entry. Of `factors` `(degree, r + 1, p)`
    observable j is the product over k of `[1, z] @ factors[k]`, a matrix product whose gradient is
    one, which a gather's isn't.
    """

    mean: Any
    scale: Any
    covariance: Any
    mask: Any
    factors: Any


class Trained(NamedTuple):
    """Numbers of a block: directions `(m, r)` in standardised entries, of any scale; the shift.

    `operator` is `(k,)` or `(left, right)`, the Koopman matrix as a product.
    """

    directions: Array
    shift: Array
    operator: tuple[Array, ...]


def frame(
    mean: np.ndarray, covariance: np.ndarray, kept: np.ndarray, columns: np.ndarray, degree: int,
    matrix: np.ndarray,
) -> Frame:  # fmt: skip
    """A frame for some entries of a state and products of their coordinates.

    Zeros of the projection `matrix` stay; `columns` are of `Monomials(degree)`.
    """
    covariance = covariance[np.ix_(kept, kept)]
    deviation = np.sqrt(np.maximum(np.diag(covariance), 0))
    scale = np.maximum(deviation, FLOOR * (deviation.max() or 1.0))
    covariance = covariance / np.outer(scale, scale) + 1e-6 * np.eye(len(kept))
    table = product_factors(matrix.shape[1], degree)[:, columns]
    factors = np.zeros((degree, matrix.shape[1] + 1, len(columns)))
    for k, places in enumerate(table):
        factors[k, places, np.arange(len(columns))] = 1
    arrays = (mean[kept], scale, covariance, matrix != 0, factors)
    return Frame(*(on_device(a, jnp.float32) for a in arrays))


def begin(frame: Frame, matrix: np.ndarray, shift: np.ndarray, k: Any) -> Trained:
    """The state at the start, from a projection of the kept entries as they are.

    The coordinates are put to unit variance, which the first steps make up for in K where they had
    another.
    """
    held = lambda a: on_device(a, jnp.float32)
    beyond = np.asarray(shift) - np.asarray(frame.mean, np.float64) @ np.asarray(matrix)
    operator = tuple(map(held, k if isinstance(k, tuple) else (k,)))
    # On the host: each product of other shapes would be compiled.
    directions = np.asarray(matrix, np.float32) * np.asarray(frame.scale)[:, None]
    return Trained(held(directions), held(beyond), operator)


def projection(frame: Frame, state: Trained) -> tuple[np.ndarray, np.ndarray]:
    """`(m, r)` matrix for the kept entries as they are, and `(r,)` what is taken off behind it."""
    matrix = np.asarray(_matrix(frame, state.directions), np.float64)
    return matrix, np.asarray(frame.mean, np.float64) @ matrix + np.asarray(state.shift)


def _unit(frame: Frame, directions: Array) -> Array:
    """Directions whose coordinates have unit variance, so that scale is no degree of freedom."""
    rows = directions * frame.mask
    variance = jnp.sum(rows * matmul(frame.covariance, rows), axis=0)
    return rows / jnp.sqrt(jnp.maximum(variance, 1e-12))[None]


@jax.jit
def _matrix(frame: Frame, directions: Array) -> Array:
    return _unit(frame, directions) / frame.scale[:, None]


def observe(frame: Frame, state: Trained, h: Float[Array, "n m"]) -> Float[Array, "n p"]:
    """The observables of kept entries as they are."""
    z = (h - frame.mean[None]) / frame.scale[None]
    z = matmul(z, _unit(frame, state.directions)) - state.shift[None]
    one = jnp.concatenate([jnp.ones((len(h), 1), z.dtype), z], axis=1)
    return functools.reduce(jnp.multiply, [matmul(one, f) for f in frame.factors])


def predict(frame: Frame, state: Trained, h: Float[Array, "n m"]) -> Float[Array, "n q"]:
    """States at the second cut."""
    return functools.reduce(matmul, state.operator, observe(frame, state, h))


def solved(psi: Float[Array, "n p"], y: Float[Array, "n q"]) -> Float[Array, "p q"]:
    """`(Ψᵀ Ψ + α n I)⁻¹ Ψᵀ Y`, which gradients go through."""
    gram = matmul(psi.T, psi) + RIDGE * len(psi) * jnp.eye(psi.shape[1], dtype=psi.dtype)
    return jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(gram), True), matmul(psi.T, y))


def divergence(outputs: Float[Array, "*n q"], teacher: Float[Array, "*n q"], task: str) -> Array:
    """`models.divergence` from the teacher; of a regression relative to the teacher's variance."""
    found = models.divergence(teacher, outputs, task)
    return found if task == "classification" else found / jnp.maximum(jnp.var(teacher), 1e-12)


def batch_rows(n: int, p: int, through: bool) -> int:
    """Samples a step: two halves, one to solve on and one to look at, or one plain batch."""
    return min(n, max(FEWEST, PER_OBSERVABLE * p)) // 2 * 2 if through else min(n, BATCH)


@functools.partial(jax.jit, static_argnames=("through", "rows", "shape", "task"))
def _steps(
    carry: Any, frame: Frame, tail: Any, data: tuple[Array, Array, Array], key: Array,
    rates: Array, *, through: bool, rows: int, shape: Any, task: str,
) -> Any:  # fmt: skip
    h, y, teacher = data
    keys = jax.random.split(key, len(rates))
    adam = optax.scale_by_adam()

    def outputs(states: Array) -> Array:
        out_shape, dtype = shape
        states = states.astype(dtype).reshape(len(states), *out_shape)
        out = states if tail is None else tail(states)
        return out.astype(jnp.float32)

    def loss(state: Trained, batch: Array) -> Array:
        if not through:
            states = predict(frame, state, h[batch])
        else:
            psi, half = observe(frame, state, h[batch]), rows // 2
            # What K is solved on and what it is judged by are different samples.
            states = matmul(psi[half:], solved(psi[:half], y[batch[:half]]))
            batch = batch[half:]
        out = outputs(states)
        return divergence(out, teacher[batch].reshape(out.shape), task)

    def step(carry: Any, now: Any) -> Any:
        state, inner = carry
        key, rate = now
        batch = jax.random.randint(key, (rows,), 0, len(h))
        value, slopes = jax.value_and_grad(loss)(state, batch)
        # One step in the direction of Adam, relative to the size of each array.
        updates: Any
        updates, inner = adam.update(slopes, inner)
        # Where float64 is on, scalars would widen the float32 parameters.
        move = lambda a, u, size: a - (rate * size * u).astype(a.dtype)
        state = jax.tree.map(move, state, updates, _sizes(state))
        return (state, inner), value

    return jax.lax.scan(step, carry, (keys, rates))


_begin_adam = jax.jit(optax.scale_by_adam().init)


def _sizes(state: Trained) -> Trained:
    """Typical sizes of the entries of each array; coordinates have unit variance."""
    size = lambda a: jax.lax.stop_gradient(jnp.sqrt(jnp.mean(a**2)) + 1e-8)
    return Trained(size(state.directions), jnp.ones(()), tuple(size(a) for a in state.operator))


def train(
    frame: Frame, state: Trained, data: tuple[Array, Array, Array], *, tail: Any,
    shape: tuple[tuple[int, ...], Any], task: str, steps: int, rate: float, through: bool,
    look: Callable[[Trained], Any], key: Array,
    progress: Callable[[int, dict[str, float]], None] | None = None,
) -> tuple[Trained, Any]:  # fmt: skip
    """Adam with a cosine schedule on the divergence from the original; the best state looked at.

    With `through`, `K = (Ψᵀ Ψ + α I)⁻¹ Ψᵀ Y` is solved on one half of every batch and judged on the
    other, and the projection alone moves (variable projection); else projection and K both do.

    The data are `(n, m)` kept entries, `(n, q)` states at the second cut and the original's
    outputs; `tail` leads there from the second cut, `shape` is of one state there, and its dtype.
    The rate is relative to the size of each array's entries, `look` the score on validation data.

    Returns:
        The state of the best score among the start and `LOOKS` places, and that score.

    Reference: Golub & Pereyra (1973), SIAM J. Numer. Anal. 10, 413 (variable projection).
    """
    best, score = state, look(state)
    inner = _begin_adam(state)
    rows = batch_rows(len(data[0]), frame.factors.shape[2], through)
    schedule = np.asarray(rate * 0.5 * (1 + np.cos(np.pi * np.arange(steps) / max(steps, 1))))
    chunk = max(1, -(-steps // LOOKS))
    for first in range(0, steps, chunk):
        rates = on_device(schedule[first : first + chunk], jnp.float32)
        (state, inner), values = _steps(
            (state, inner), frame, tail, data, jax.random.fold_in(key, first), rates,
            through=through, rows=rows, shape=shape, task=task,
        )  # fmt: skip
        now = look(state)
        if now > score:
            best, score = state, now
        if progress is not None:
            progress(first + len(rates), {"divergence": float(jnp.mean(values))})
    return best, score
