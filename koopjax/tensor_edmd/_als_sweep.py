"""Sweeps of alternating least squares over a padded train, one scan each way."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from koopjax._core import matmul, pytree
from koopjax.tensor_edmd._als_local import (
    accumulate,
    moments,
    orthonormal,
    outer,
    solve_damped,
    split,
)

#: Bound on the logarithm of the factor between a ridge and its scaled form.
LIMIT = 80.0


@pytree
class Problem:
    """What every step of a sweep needs; samples in blocks, the last one filled with zeros.

    Attributes:
        factors: training and, if any, validation samples `(d, blocks, size, n)` each.
        targets: `(blocks, size, q)` each.
        modes: `(d, n)` ones and zeros: which functions exist.
        first: `(d + 1,)` rank of every bond at the start.
        most: the same, at most.
        spare: `(d, r n, r)` random directions.
        alpha: ridge.
        metric: `(q, q)` square root of the output metric.
        rtol: tail that a bond may lose; 0 for fixed ranks.
        count: samples to fit.
        floor: score that is nothing but rounding; below it the later fit wins.
    """

    factors: Any
    targets: Any
    modes: Any
    first: Any
    most: Any
    spare: Any
    alpha: Any
    metric: Any
    rtol: Any
    count: Any
    floor: Any


class Best(NamedTuple):
    """The best train so far: cores scaled so that the interfaces have unit mean square."""

    score: Array
    train: Array
    validation: Array
    core: Array
    position: Array
    cores: Array
    ranks: Array
    fresh: Array


class State(NamedTuple):
    """What one sweep hands to the next; `far` and `scales` belong to the bonds of its direction."""

    cores: Array
    ranks: Array
    far: Any
    scales: Array
    best: Best
    condition: Array
    damping: Array
    damped: Array


def _mask(rank: Array, size: int, dtype: Any) -> Array:
    return (jnp.arange(size) < rank).astype(dtype)


def _widen(columns: Array, size: int) -> Array:
    """The first columns, filled up with zeros where there are too few."""
    columns = columns[:, :size]
    return jnp.pad(columns, ((0, 0), (0, size - columns.shape[1])))


def _rows(near_rank: Array, modes: Array, size: int) -> Array:
    mask = _mask(near_rank, size, modes.dtype)
    return (mask[:, None] * modes[None, :]).reshape(size * modes.shape[0])


def _ones(blocks: Array, size: int) -> Array:
    """The interface beyond the last core: 1 in the first column."""
    return jnp.zeros((*blocks.shape[1:3], size), blocks.dtype).at[..., 0].set(1)


def _advance(near: Array, f: Array, core: Array) -> Array:
    """`(blocks, size, r)` past one core `(r n, r)`."""
    return jax.lax.map(lambda b: matmul(outer(b[0], b[1]), core), (near, f))


def _error(near: Array, f: Array, far: Array, core: Array, y: Array, metric: Array) -> Array:
    """Squared error of one set of samples in the output metric; `core` is `(r n, q, r)`."""
    rows, q, r = core.shape

    def step(total: Array, block: Any) -> tuple[Array, None]:
        a, b, c, target = block
        out = matmul(outer(a, b), core.reshape(rows, q * r)).reshape(a.shape[0], q, r)
        rest = jnp.einsum("sjb,sb->sj", out, c, precision="highest") - target
        return total + jnp.sum(matmul(rest, metric.astype(rest.dtype)) ** 2).astype(
            total.dtype
        ), None

    return jax.lax.scan(step, jnp.zeros((), metric.dtype), (near, f, far, y))[0]


def _basis(columns: Array, good: Array, spare: Array, rows: Array, rank: Array) -> Array:
    size = spare.shape[1]
    mask = _mask(rank, size, rows.dtype)
    columns, good = _widen(columns, size), jnp.pad(good[:size], (0, max(0, size - good.shape[0])))
    return orthonormal(columns, spare, good, rows, mask)


def _rescaled(basis: Array, second: Array, count: Array) -> tuple[Array, Array]:
    """The core by which the next interface gets unit mean square, and the factor."""
    square = jnp.einsum("ak,ab,bk->", basis, second, basis, precision="highest") / count
    factor = jnp.where(square > 0, jnp.sqrt(square), 1)
    return basis / factor, factor


def _natural(core: Array, reverse: bool) -> Array:
    """A core as (left, mode, [output], right), whichever way the sweep goes."""
    return jnp.swapaxes(core, 0, -1) if reverse else core


def start(problem: Problem, size: int, wide: Any, given: Any = None) -> State:
    """Cores orthogonal from the right: a random sketch of the data's own directions.

    Each core spans `G Ω`, with the second moments `G` of what the core meets and a random `Ω`;
    plain random directions would lose a constant factor of the signal at every core.

    Args:
        problem: see `Problem`.
        size: padded rank.
        wide: dtype of sums.
        given: `(cores, ranks)` orthogonal from the right, kept as far as they go.
    """
    n, dtype = problem.factors[0].shape[-1], problem.factors[0].dtype

    def step(carry: Any, part: Any) -> tuple[Any, Any]:
        near, near_rank, scale = carry
        f, modes, spare, rank, known = part
        second = moments(near[0], f[0], wide)
        rows = _rows(near_rank, modes.astype(wide), size)
        sketch = matmul(second, spare.astype(wide))
        if known is not None:
            core, known_rank = known
            own = jnp.swapaxes(core, 0, 2).reshape(size * n, size).astype(wide)
            sketch = jnp.where((jnp.arange(size) < known_rank)[None, :], own, sketch)
        good = jnp.linalg.norm(sketch * rows[:, None], axis=0) > 0
        basis = _basis(sketch, good, spare.astype(wide), rows, rank)
        core, factor = _rescaled(basis, second, problem.count)
        flat = core.astype(dtype)
        after = tuple(_advance(a, b, flat) for a, b in zip(near, f, strict=True))
        out = _natural(flat.reshape(size, n, size), True), near, scale
        return (after, rank, scale + jnp.log(factor)), out

    near = tuple(_ones(f, size) for f in problem.factors)
    carry = near, jnp.int32(1), jnp.zeros((), wide)
    known = None if given is None else (given[0], given[1][:-1])
    parts = problem.factors, problem.modes, problem.spare, problem.first[:-1], known
    _, (cores, far, scales) = jax.lax.scan(step, carry, parts, reverse=True)
    q = problem.targets[0].shape[-1]
    nan = jnp.full((), jnp.nan, wide)
    zeros = jnp.zeros((size, n, q, size), dtype)
    best = Best(
        jnp.full((), jnp.inf, wide),
        nan,
        nan,
        zeros,
        jnp.int32(0),
        cores,
        problem.first,
        jnp.asarray(False),
    )
    zero = jnp.zeros((), wide)
    return State(cores, problem.first, far, scales, best, zero + 1, zero, jnp.int32(0))


class _Step(NamedTuple):
    near: Any
    rank: Array
    scale: Array
    best: Best
    condition: Array
    damping: Array
    damped: Array


def _solve(
    problem: Problem, f: Any, near: Any, far: Any, log_scale: Array, wide: Any
) -> tuple[Array, Array, Array, Array]:
    """The core between two interfaces, `(m, q, m')`; its ridge in the scale of the interfaces."""
    gram, cross = accumulate((near, f, far), problem.targets[0], wide)
    alpha = problem.alpha * jnp.exp(jnp.clip(-2 * log_scale, -LIMIT, LIMIT))
    solved = solve_damped(gram, cross, alpha, float(jnp.finfo(near.dtype).eps))
    m = near.shape[-1] * f.shape[-1]
    core = solved.value.reshape(m, far.shape[-1], -1).swapaxes(1, 2)
    return core, alpha, solved.condition, solved.damping


def _measure(
    problem: Problem, near: Any, f: Any, far: Any, core: Array, alpha: Array
) -> tuple[Array, Array, Array]:
    """Training and validation error, and the score: validation, else what was minimised."""
    low = core.astype(near[0].dtype)
    sets = zip(near, f, far, problem.targets, strict=True)
    errors = [_error(a, b, c, low, y, problem.metric) for a, b, c, y in sets]
    if len(errors) > 1:
        return errors[0], errors[1], errors[1]
    weighted = jnp.einsum("ajb,jk->akb", core, problem.metric, precision="highest")
    return errors[0], jnp.full_like(errors[0], jnp.nan), errors[0] + alpha * jnp.sum(weighted**2)


def _bond(
    problem: Problem, carry: _Step, part: Any, core: Array, condition: Array, damping: Array,
    wide: Any,
) -> tuple[Array, Array, Array, Array, Array]:  # fmt: skip
    """The core that stays behind, orthogonal: its factor, rank, and the hardest problem met."""
    f, far, _, modes, spare, most, _, following = part
    near = carry.near[0]
    size, dtype = near.shape[-1], near.dtype
    near_second = moments(near, f[0], wide)
    rtol, ahead, beyond = jnp.zeros((), wide), far[0], None
    if following is not None:
        # Two cores at once: the second one's functions count as part of the far side.
        ahead, beyond, scale, last = following
        pair, rtol = jax.vmap(outer)(ahead, beyond), problem.rtol
        core, _, hard, raised = _solve(problem, f[0], near, pair, carry.scale + scale, wide)
        condition = jnp.where(last, condition, jnp.maximum(condition, hard))
        damping = jnp.where(last, damping, jnp.maximum(damping, raised))
    rows = _rows(carry.rank, modes.astype(wide), size)
    far_second = moments(ahead, beyond, wide)
    columns, good, rank = split(core, near_second, far_second, problem.metric, most, rtol)
    basis = _basis(columns, good, spare.astype(wide), rows, rank)
    scaled, factor = _rescaled(basis, near_second, problem.count)
    return scaled.astype(dtype), factor, rank, condition, damping


def _step(
    problem: Problem, carry: _Step, part: Any, *, reverse: bool, wide: Any
) -> tuple[_Step, Any]:
    """Solve one core, compare it with the best, leave an orthogonal core behind, move on."""
    f, far, far_scale, _, _, _, index, _ = part
    near, best = carry.near, carry.best
    size, n, dtype = near[0].shape[-1], f[0].shape[-1], near[0].dtype
    log_scale = carry.scale + far_scale
    core, alpha, condition, damping = _solve(problem, f[0], near[0], far[0], log_scale, wide)
    train, validation, score = _measure(problem, near, f, far, core, alpha)
    better = jnp.maximum(score, problem.floor) <= jnp.maximum(best.score, problem.floor)
    now = best._replace(
        score=score,
        train=train,
        validation=validation,
        core=_natural(core.reshape(size, n, -1, size), reverse).astype(dtype),
        position=index,
        fresh=jnp.asarray(True),
    )
    best = jax.tree.map(lambda a, b: jnp.where(better, a, b), now, best)
    flat, factor, rank, condition, damping = _bond(
        problem, carry, part, core, condition, damping, wide
    )
    after = tuple(_advance(a, b, flat) for a, b in zip(near, f, strict=True))
    moved = _Step(
        near=after,
        rank=rank,
        scale=carry.scale + jnp.log(factor),
        best=best,
        condition=jnp.maximum(carry.condition, condition),
        damping=jnp.maximum(carry.damping, damping),
        damped=carry.damped + (damping > 0).astype(jnp.int32),
    )
    left = _natural(flat.reshape(size, n, size), reverse), near, carry.scale, carry.rank
    return moved, (left, (train, validation, score))


def _half(
    problem: Problem, state: State, *, adaptive: bool, reverse: bool, wide: Any
) -> tuple[State, Array]:
    """Solve every core once, from one end to the other.

    Returns:
        The state for the way back, and training and validation error of the best core of this
        half sweep.
    """
    size, d = state.cores.shape[1], state.cores.shape[0]
    near = tuple(_ones(f, size) for f in problem.factors)
    best = state.best._replace(fresh=jnp.asarray(False))
    carry = _Step(
        near, jnp.int32(1), jnp.zeros((), wide),
        best, state.condition, state.damping, state.damped,
    )  # fmt: skip
    index = jnp.arange(d, dtype=jnp.int32)
    following = None
    if adaptive:
        roll = functools.partial(jnp.roll, shift=1 if reverse else -1, axis=0)
        ahead = problem.factors[0], state.far[0], state.scales
        following = (*(roll(a) for a in ahead), index == (0 if reverse else d - 1))
    parts = (
        problem.factors, state.far, state.scales, problem.modes, problem.spare,
        problem.most[:-1] if reverse else problem.most[1:], index, following,
    )  # fmt: skip
    step = functools.partial(_step, problem, reverse=reverse, wide=wide)
    done, (out, errors) = jax.lax.scan(step, carry, parts, reverse=reverse)
    cores, interface, scales, near_ranks = out
    one = jnp.ones(1, jnp.int32)
    # Bond k is left of core k; the last bond passed has rank 1.
    ranks = jnp.concatenate([one, near_ranks] if reverse else [near_ranks, one])
    best = _compose(done.best, state, cores, ranks, reverse)
    least = jnp.argmin(jnp.where(jnp.isfinite(errors[2]), errors[2], jnp.inf))
    history = jnp.stack([errors[0][least], errors[1][least]])
    after = State(
        cores, ranks, interface, scales, best, done.condition, done.damping, done.damped
    )  # fmt: skip
    return after, history


def _compose(best: Best, state: State, cores: Array, ranks: Array, reverse: bool) -> Best:
    """The cores around the best core: those passed are new, those ahead are the ones before."""
    d = cores.shape[0]
    improved = best.fresh
    index, bonds = jnp.arange(d), jnp.arange(d + 1)
    passed = index > best.position if reverse else index < best.position
    bonds_passed = bonds > best.position if reverse else bonds <= best.position
    mixed = jnp.where(passed[:, None, None, None], cores, state.cores)
    mixed_ranks = jnp.where(bonds_passed, ranks, state.ranks)
    return best._replace(
        cores=jnp.where(improved, mixed, state.best.cores),
        ranks=jnp.where(improved, mixed_ranks, state.best.ranks),
    )


class Run(NamedTuple):
    """What all sweeps together return."""

    best: Best
    history: Array
    condition: Array
    damping: Array
    damped: Array
    sweeps: Array


@functools.partial(jax.jit, static_argnames=("size", "settings", "wide"))
def run(problem: Problem, given: Any, *, size: int, settings: Any, wide: Any) -> Run:
    """Start, sweep there and back, stop when the score has not improved for so many sweeps."""
    sweeps, patience = settings.sweeps, settings.patience or settings.sweeps
    state = start(problem, size, wide, given)
    history = jnp.full((2 * sweeps, 2), jnp.nan, wide)
    both = functools.partial(_half, problem, adaptive=settings.adaptive, wide=wide)

    def more(carry: Any) -> Array:
        _, _, count, stale = carry
        return (count < sweeps) & (stale < patience)

    def sweep(carry: Any) -> Any:
        state, history, count, stale = carry
        before = state.best.score
        state, there = both(state, reverse=False)
        state, back = both(state, reverse=True)
        history = jax.lax.dynamic_update_slice(
            history, jnp.stack([there, back]), (2 * count, jnp.int32(0))
        )
        stale = jnp.where(state.best.score < before, 0, stale + 1)
        return state, history, count + 1, stale

    carry = state, history, jnp.int32(0), jnp.int32(0)
    state, history, count, _ = jax.lax.while_loop(more, sweep, carry)
    return Run(state.best, history, state.condition, state.damping, state.damped, count)
