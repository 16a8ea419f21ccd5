"""Sweeps of alternating least squares over a padded train: one scan, there and back.

What a half sweep makes stands in the order in which it met the cores: its first core is the last
one of the next half. Only the best train is kept in the natural order.
"""

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
    solve_damped,
    split,
)
from koopjax.tensor_edmd._dictionary import outer

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

    def at(self, index: Array) -> tuple[Any, Array, Array]:
        """Factors of all samples, functions and spare directions of one core."""
        return jax.tree.map(lambda a: a[index], (self.factors, self.modes, self.spare))


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


class Hardest(NamedTuple):
    """Of all local problems: the worst condition, the most damping, how many were damped."""

    condition: Array
    damping: Array
    damped: Array

    def met(self, condition: Array, damping: Array) -> "Hardest":
        """With one problem more."""
        return Hardest(
            jnp.maximum(self.condition, condition),
            jnp.maximum(self.damping, damping),
            self.damped + (damping > 0).astype(jnp.int32),
        )


class State(NamedTuple):
    """What a half sweep hands to the next: cores, and what lay before each of them."""

    cores: Array
    ranks: Array
    near: Any
    scales: Array
    best: Best
    hardest: Hardest


def _mask(rank: Array, size: int, dtype: Any) -> Array:
    return (jnp.arange(size) < rank).astype(dtype)


def _rows(near_rank: Array, modes: Array, size: int) -> Array:
    """Which rows of a core exist, `(size n,)` ones and zeros."""
    mask = _mask(near_rank, size, modes.dtype)
    return (mask[:, None] * modes[None, :]).reshape(size * modes.shape[0])


def _ends(problem: Problem, size: int) -> Any:
    """The interfaces beyond the first core: 1 in the first column."""
    return tuple(
        jnp.zeros((*f.shape[1:3], size), f.dtype).at[..., 0].set(1) for f in problem.factors
    )


def _advance(near: Any, factors: Any, core: Array) -> Any:
    """Interfaces `(blocks, size, r)` past one core `(r n, r)`."""
    past = lambda block: matmul(outer(block[0], block[1]), core)
    return tuple(jax.lax.map(past, pair) for pair in zip(near, factors, strict=True))


def _error(near: Array, f: Array, far: Array, core: Array, y: Array, metric: Array) -> Array:
    """Squared error of one set of samples in the output metric; `core` is `(r n, q, r)`."""
    rows, q, r = core.shape

    def step(total: Array, block: Any) -> tuple[Array, None]:
        a, b, c, target = block
        out = matmul(outer(a, b), core.reshape(rows, q * r)).reshape(a.shape[0], q, r)
        rest = jnp.einsum("sjb,sb->sj", out, c, precision="highest") - target
        square = jnp.sum(matmul(rest, metric.astype(rest.dtype)) ** 2)
        return total + square.astype(total.dtype), None

    return jax.lax.scan(step, jnp.zeros((), metric.dtype), (near, f, far, y))[0]


def _basis(columns: Array, good: Array, spare: Array, rows: Array, rank: Array) -> Array:
    """An orthonormal basis of the good ones of the first columns, filled up to the rank."""
    size = spare.shape[1]
    short = max(0, size - columns.shape[1])
    columns = jnp.pad(columns[:, :size], ((0, 0), (0, short)))
    good = jnp.pad(good[:size], (0, short))
    return orthonormal(columns, spare, good, rows, _mask(rank, size, rows.dtype))


def _rescaled(basis: Array, second: Array, count: Array) -> tuple[Array, Array]:
    """The core by which the next interface gets unit mean square, and the factor."""
    square = jnp.einsum("ak,ab,bk->", basis, second, basis, precision="highest") / count
    factor = jnp.where(square > 0, jnp.sqrt(square), 1)
    return basis / factor, factor


def _turned(cores: Array) -> Array:
    """Cores met from the other end."""
    return jnp.flip(jnp.swapaxes(cores, 1, -1), 0)


def start(problem: Problem, size: int, wide: Any, given: Any = None) -> State:
    """Cores orthogonal from the right: a random sketch of the data's own directions.

    Each core spans `G Ω`, with the second moments `G` of what the core meets and a random `Ω`;
    plain random directions would lose a constant factor of the signal at every core. `given` are
    `(cores, ranks)` orthogonal from the right, kept as far as they go.
    """
    d, n, dtype = len(problem.modes), problem.modes.shape[1], problem.factors[0].dtype
    q = problem.targets[0].shape[-1]

    def step(carry: Any, part: Any) -> tuple[Any, Any]:
        near, near_rank, scale = carry
        index, rank, known = part
        f, modes, spare = problem.at(index)
        second = moments(near[0], f[0], wide)
        rows = _rows(near_rank, modes.astype(wide), size)
        sketch = matmul(second, spare.astype(wide))
        if known is not None:
            core, known_rank = known
            own = core.reshape(size * n, size).astype(wide)
            sketch = jnp.where((jnp.arange(size) < known_rank)[None, :], own, sketch)
        good = jnp.linalg.norm(sketch * rows[:, None], axis=0) > 0
        basis = _basis(sketch, good, spare.astype(wide), rows, rank)
        core, factor = _rescaled(basis, second, problem.count)
        flat = core.astype(dtype)
        out = flat.reshape(size, n, size), near, scale
        return (_advance(near, f, flat), rank, scale + jnp.log(factor)), out

    zero, ranks = jnp.zeros((), wide), jnp.flip(problem.first)
    known = None if given is None else (_turned(given[0]), jnp.flip(given[1])[1:])
    carry = _ends(problem, size), jnp.int32(1), zero
    parts = jnp.arange(d)[::-1], ranks[1:], known
    _, (cores, near, scales) = jax.lax.scan(step, carry, parts)
    nan, none = jnp.full((), jnp.nan, wide), jnp.full((), jnp.inf, wide)
    core = jnp.zeros((size, n, q, size), dtype)
    fresh = jnp.asarray(False)
    best = Best(none, nan, nan, core, jnp.int32(0), _turned(cores), problem.first, fresh)
    return State(cores, ranks, near, scales, best, Hardest(zero + 1, zero, jnp.int32(0)))


class _Step(NamedTuple):
    near: Any
    rank: Array
    scale: Array
    best: Best
    hardest: Hardest


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


def _better(problem: Problem, best: Best, measured: Any, core: Array, position: Array) -> Best:
    """The best so far after one core more that was solved."""
    train, validation, score = measured
    now = best._replace(
        score=score, train=train, validation=validation, core=core, position=position,
        fresh=jnp.asarray(True),
    )  # fmt: skip
    better = jnp.maximum(score, problem.floor) <= jnp.maximum(best.score, problem.floor)
    return jax.tree.map(lambda a, b: jnp.where(better, a, b), now, best)


def _half(
    problem: Problem, state: State, reverse: Array, *, adaptive: bool, wide: Any
) -> tuple[State, Array]:
    """Solve every core once, from one end to the other.

    Each is compared with the best; an orthogonal core stays behind.

    Returns:
        The state for the way back, and training and validation error of the best core of this
        half sweep.
    """
    d, size, n, _ = state.cores.shape
    dtype = state.cores.dtype
    most = jnp.where(reverse, jnp.flip(problem.most), problem.most)[1:]
    natural = lambda k: jnp.where(reverse, d - 1 - k, k)

    def ahead(k: Array) -> Any:
        """Interfaces and scale beyond core `k`, which the half sweep before has left."""
        return jax.tree.map(lambda a: a[d - 1 - k], (state.near, state.scales))

    def step(carry: _Step, k: Array) -> tuple[_Step, Any]:
        near, best = carry.near, carry.best
        f, modes, spare = problem.at(natural(k))
        far, scale = ahead(k)
        core, alpha, condition, damping = _solve(
            problem, f[0], near[0], far[0], carry.scale + scale, wide
        )
        measured = _measure(problem, near, f, far, core, alpha)
        solved = core.reshape(size, n, -1, size).astype(dtype)
        solved = jnp.where(reverse, jnp.swapaxes(solved, 0, -1), solved)
        best = _better(problem, best, measured, solved, natural(k).astype(jnp.int32))
        rtol, side, beyond = jnp.zeros((), wide), far[0], None
        if adaptive:
            # Two cores at once: the second one's functions count as part of the far side. There is
            # none after the last core, whose own problem is the one that counts then.
            following, last = jnp.minimum(k + 1, d - 1), k == d - 1
            (beyond, *_), scale = ahead(following)
            side, rtol = problem.at(natural(following))[0][0], problem.rtol
            pair = jax.vmap(outer)(side, beyond)
            core, _, hard, raised = _solve(problem, f[0], near[0], pair, carry.scale + scale, wide)
            condition = jnp.where(last, condition, jnp.maximum(condition, hard))
            damping = jnp.where(last, damping, jnp.maximum(damping, raised))
        rows, second = _rows(carry.rank, modes.astype(wide), size), moments(near[0], f[0], wide)
        columns, good, rank = split(
            core, second, moments(side, beyond, wide), problem.metric, most[k], rtol
        )
        basis = _basis(columns, good, spare.astype(wide), rows, rank)
        left, factor = _rescaled(basis, second, problem.count)
        left = left.astype(dtype)
        moved = _Step(
            near=_advance(near, f, left),
            rank=rank,
            scale=carry.scale + jnp.log(factor),
            best=best,
            hardest=carry.hardest.met(condition, damping),
        )
        passed = left.reshape(size, n, size), carry.rank, near, carry.scale
        return moved, (passed, measured)

    best = state.best._replace(fresh=jnp.asarray(False))
    first = _Step(_ends(problem, size), jnp.int32(1), jnp.zeros((), wide), best, state.hardest)
    done, (passed, errors) = jax.lax.scan(step, first, jnp.arange(d))
    cores, ranks, near, scales = passed
    ranks = jnp.append(ranks, jnp.int32(1))
    best = _compose(done.best, state, cores, ranks, natural(done.best.position), reverse)
    least = jnp.argmin(jnp.where(jnp.isfinite(errors[2]), errors[2], jnp.inf))
    history = jnp.stack([errors[0][least], errors[1][least]])
    return State(cores, ranks, near, scales, best, done.hardest), history


def _compose(
    best: Best, state: State, cores: Array, ranks: Array, place: Array, reverse: Array
) -> Best:
    """The cores around the best core: those passed are new, those ahead are the ones before."""
    d = len(cores)
    cores = jnp.where((jnp.arange(d) < place)[:, None, None, None], cores, _turned(state.cores))
    ranks = jnp.where(jnp.arange(d + 1) <= place, ranks, jnp.flip(state.ranks))
    cores = jnp.where(reverse, _turned(cores), cores)
    ranks = jnp.where(reverse, jnp.flip(ranks), ranks)
    return best._replace(
        cores=jnp.where(best.fresh, cores, best.cores),
        ranks=jnp.where(best.fresh, ranks, best.ranks),
    )


class Run(NamedTuple):
    """What all sweeps together return."""

    best: Best
    history: Array
    hardest: Hardest
    sweeps: Array


@functools.partial(jax.jit, static_argnames=("size", "settings", "wide"))
def run(problem: Problem, given: Any, *, size: int, settings: Any, wide: Any) -> Run:
    """Start, sweep there and back, stop when the score has not improved for so many sweeps."""
    sweeps, patience = settings.sweeps, settings.patience or settings.sweeps
    half = functools.partial(_half, problem, adaptive=settings.adaptive, wide=wide)

    def more(carry: Any) -> Array:
        _, _, count, stale = carry
        return (count < sweeps) & (stale < patience)

    def sweep(carry: Any) -> Any:
        state, history, count, stale = carry
        before = state.best.score
        # One half that is compiled once: which way it goes is a number.
        state, both = jax.lax.scan(half, state, jnp.array([False, True]))
        history = jax.lax.dynamic_update_slice(history, both, (2 * count, jnp.int32(0)))
        stale = jnp.where(state.best.score < before, 0, stale + 1)
        return state, history, count + 1, stale

    history = jnp.full((2 * sweeps, 2), jnp.nan, wide)
    carry = start(problem, size, wide, given), history, jnp.int32(0), jnp.int32(0)
    state, history, count, _ = jax.lax.while_loop(more, sweep, carry)
    return Run(state.best, history, state.hardest, count)
