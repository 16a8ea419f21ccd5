"""Pruning and quantising on the way, epoch by epoch, until the file has the size asked for."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from koopjax._core import as_number, expected, pytree
from koopjax.compress._result import entropy, too_small
from koopjax.compress.layers._allocation import lamp, largest

#: How entries compare; see `Goal.saliency`.
SALIENCIES = ("fisher", "magnitude", "lamp")
#: Share of the limit that a quantised file aims at, since codes still change while it trains.
AIM = 0.985
#: Entries left for the exact count to choose from, since real files code places below the entropy.
ROOM = 1.1
#: Share of the epochs after which grids are left alone.
SETTLED = 0.9


@pytree
class Constraint:
    """State of `constrained`: for each parameter, leaves that one may change between epochs."""

    masks: Any  # entries that may differ from zero
    steps: Any  # of the grid that the entries lie on, 0 for none
    latent: Any  # the real numbers behind them


def constrained() -> optax.GradientTransformation:
    """Keep dead entries zero and quantised entries on their grid; last in an `optax.chain`.

    With updates `u`, latent values `v ← v + u` are kept in full precision and parameters are
    `step · round(v / step)`, or `v` where the step is 0: gradients are taken at the quantised
    values and applied to the latent ones (the straight-through estimator). At the start, entries of
    matrices that are zero are dead, vectors live whole, and nothing is on a grid.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> tx = optax.chain(optax.sgd(1.0), constrained())
        >>> w = jnp.array([[0.0, 1.0]])
        >>> updates, _ = tx.update(jnp.ones((1, 2)), tx.init(w), w)
        >>> optax.apply_updates(w, updates)
        Array([[0., 0.]], dtype=float32)

    Reference: Bengio, Léonard & Courville (2013), arXiv 1308.3432, section 4 (straight-through).
    """

    def init(params: Any) -> Constraint:
        live = lambda p: p != 0 if p.ndim >= 2 else jnp.ones(p.shape, bool)
        steps = jax.tree.map(lambda p: jnp.zeros((), p.dtype), params)
        return Constraint(jax.tree.map(live, params), steps, jax.tree.map(jnp.asarray, params))

    def update(updates: Any, state: Constraint, params: Any = None) -> tuple[Any, Constraint]:
        if params is None:
            raise expected("constrained: update(updates, state, params)", "no params")
        latent = jax.tree.map(
            lambda v, u, m: jnp.where(m, v + u, 0).astype(v.dtype),
            state.latent, updates, state.masks,
        )  # fmt: skip
        values = jax.tree.map(on_grid, latent, state.steps)
        moved = jax.tree.map(jnp.subtract, values, params)
        return moved, Constraint(state.masks, state.steps, latent)

    return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]


@pytree
class Rate:
    """State of `at_rate`: the learning rate, a leaf that lanes and variants may change."""

    rate: Any


def at_rate() -> optax.GradientTransformation:
    """Steps downhill at a rate that is part of the state: `-rate · updates`; see `with_rate`."""

    def init(params: Any) -> Rate:
        del params
        return Rate(jnp.ones((), jnp.float32))

    def update(updates: Any, state: Rate, params: Any = None) -> tuple[Any, Rate]:
        del params
        return jax.tree.map(lambda u: (-state.rate * u).astype(u.dtype), updates), state

    return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]


def with_rate(opt_state: Any, rate: float) -> Any:
    """The optimizer's state with another learning rate."""
    new = Rate(jnp.asarray(rate, jnp.float32))
    is_rate = lambda node: isinstance(node, Rate)
    return jax.tree.map(lambda s: new if is_rate(s) else s, opt_state, is_leaf=is_rate)


def on_grid(values: jax.Array, step: jax.Array) -> jax.Array:
    """`step · round(values / step)`, or the values where the step is 0."""
    safe = jnp.where(step > 0, step, 1)
    whole = jnp.round(values / safe)
    # A product with a whole number, and no minus zero: `export` finds the grid again, to the bit.
    return jnp.where(step > 0, jnp.where(whole == 0, 0, step * whole), values).astype(values.dtype)


_is_constraint = lambda node: isinstance(node, Constraint)


def constraint_of(opt_state: Any) -> Constraint:
    """The one `Constraint` within an optimizer's state."""
    leaves = jax.tree.leaves(opt_state, is_leaf=_is_constraint)
    found = [leaf for leaf in leaves if _is_constraint(leaf)]
    if len(found) != 1:
        raise expected("one constrained() in the optimizer", f"{len(found)}")
    return found[0]


def constrain(opt_state: Any, change: Callable[[Constraint], Constraint]) -> Any:
    """Parameters and optimizer state under a changed constraint, which holds at once."""
    values, new = _applied(change(constraint_of(opt_state)))
    held = lambda s: new if _is_constraint(s) else s
    return values, jax.tree.map(held, opt_state, is_leaf=_is_constraint)


@jax.jit
def _applied(new: Constraint) -> tuple[Any, Constraint]:
    """Parameters under a constraint, and the constraint with what is dead at zero."""
    latent = jax.tree.map(lambda v, m: jnp.where(m, v, 0).astype(v.dtype), new.latent, new.masks)
    return jax.tree.map(on_grid, latent, new.steps), Constraint(new.masks, new.steps, latent)


@dataclasses.dataclass(frozen=True)
class Goal:
    """The size that a model is trained to; nothing said, it keeps its own.

    Of the saliencies "fisher" is `|w| √E[g²]` with Adam's second moment (the expected change of the
    loss, up to a constant, where the gradient's square stands for the curvature; comparable between
    arrays, biases included), "magnitude" `|w|` over its root mean square in the array, and "lamp"
    `w²` over the sum of the squares in its array that are not smaller, which empties no array. The
    last two are for matrices, and for vectors too where these would fill more than half of the
    file.
    """

    limit: int | None = None  # bytes that the file may take
    density: float | None = None  # share of the entries that stay, instead of a limit
    saliency: str = "fisher"
    value_bits: float | None = None  # of a non-zero value besides its place, entropy-coded

    @property
    def sized(self) -> bool:
        """Whether entries go."""
        return self.limit is not None or self.density is not None

    def check(self) -> None:
        """Raise on a setting out of range, in one line."""
        if self.limit is not None and self.density is not None:
            raise expected("finetune: a budget or a density", "both")
        if self.density is not None and not 0 < as_number("finetune: density", self.density) <= 1:
            raise expected("finetune: a density above 0, at most 1", f"{self.density}", "None")
        if self.value_bits is not None and (
            self.limit is None or not 1 <= as_number("finetune: value_bits", self.value_bits) <= 32
        ):
            raise expected(
                "finetune: value_bits from 1 to 32 with a budget",
                f"{self.value_bits} and budget {self.limit}",
            )
        if not isinstance(self.saliency, str) or self.saliency not in SALIENCIES:
            raise expected(
                f"finetune: a saliency among {', '.join(SALIENCIES)}", repr(self.saliency)
            )


@dataclasses.dataclass(frozen=True, eq=False)
class ToSize:
    """What is done to the parameters after each epoch; a function of what it is given alone.

    The number of live entries falls by the cubic schedule `n_t = n_f + (n_0 - n_f)(1 - t)³` over
    the first epochs, entries of least saliency first, none of which comes back; then exactly so
    many stay as the file has room for, or `BudgetTooSmall` is raised. With `value_bits`, what stays
    goes on grids.

    Reference: Zhu & Gupta (2017), arXiv 1710.01878, equation 1 (schedule); LeCun, Denker & Solla
        (1990), "Optimal brain damage", equation 5, and Theis et al. (2018), arXiv 1801.05787,
        equation 3 (squared gradients in place of the curvature); Lee, Park, Mo, Ahn & Shin (2021),
        arXiv 2010.07611, section 2 (LAMP).
    """

    epochs: int  # of the whole run
    measure: Callable[[Any], int]  # bytes of the file with these parameters
    goal: Goal
    until: float = 0.6  # share of the epochs in which entries go

    def __call__(self, epoch: int, params: Any, opt_state: Any) -> tuple[Any, Any]:
        """Parameters and optimizer state after the epoch."""
        last = max(1, min(self.epochs - 1, round(self.until * self.epochs)))
        if epoch > last or (epoch == self.epochs and epoch != last):
            return self._hold(epoch, params, opt_state)
        scores = self.scores(params, opt_state)
        live = _live(opt_state)
        first = sum(s.size for s in scores if s is not None)
        final = self.final_count(params, scores)
        if epoch < last or self.goal.limit is None:
            end = final if self.goal.limit is None else min(ROOM * final, first)
            count = round(end + (first - end) * (1 - epoch / last) ** 3)
            masks = _keep(scores, live, count)
        else:
            masks = self._fit(params, scores, live, final)
        params, opt_state = _with_masks(params, opt_state, masks)
        if epoch == last and self.goal.value_bits is not None:
            return self._quantise(params, opt_state)
        return params, opt_state

    def scores(self, params: Any, opt_state: Any) -> list[np.ndarray | None]:
        """Saliency of each entry, a leaf at a time; None for leaves that stay whole."""
        leaves = jax.tree.leaves(params)
        whole = self._whole(leaves)
        seconds = jax.tree.leaves(optax.tree_utils.tree_get(opt_state, "nu"))
        out: list[np.ndarray | None] = []
        for leaf, second in zip(leaves, seconds, strict=True):
            size = np.abs(np.asarray(leaf, np.float32))
            if self.goal.saliency == "fisher":
                out.append(size * np.sqrt(np.asarray(second, np.float32) + 1e-16))
            elif leaf.ndim < 2 and whole:
                out.append(None)
            elif self.goal.saliency == "lamp":
                out.append(lamp(size))
            else:
                # Of the entries that live, or a pruned matrix would seem to grow small.
                mean = math.sqrt(float(np.sum(size**2)) / max(int(np.count_nonzero(size)), 1))
                out.append(size / (mean or 1.0))
        return out

    def _whole(self, leaves: list[Any]) -> bool:
        """Whether vectors stay whole."""
        bits = [self.goal.value_bits or 8 * leaf.dtype.itemsize for leaf in leaves]
        pairs = zip(leaves, bits, strict=True)
        filled = sum(leaf.size * bit for leaf, bit in pairs if leaf.ndim < 2) / 8
        return self.goal.limit is None or 2 * filled <= self.goal.limit

    def final_count(self, params: Any, scores: list[np.ndarray | None]) -> int:
        """How many entries stay in the end, by the entropy of their places."""
        total = sum(s.size for s in scores if s is not None)
        if self.goal.limit is None:
            return max(1, round((self.goal.density or 1.0) * total))
        leaves = jax.tree.leaves(params)
        pruned = [leaf for leaf, s in zip(leaves, scores, strict=True) if s is not None]
        width = max((leaf.dtype.itemsize for leaf in pruned), default=4)
        value = 8 * width if self.goal.value_bits is None else self.goal.value_bits
        none = [np.full(p.shape, s is None) for p, s in zip(leaves, scores, strict=True)]
        least = self.measure(_masked(params, none))
        if least > self.goal.limit:
            raise too_small("finetune", self.goal.limit, least)
        room = 8 * (self.goal.limit - least)
        fits = lambda count: count * value + total * entropy(count / total) <= room
        return max(1, largest(0, total + 1, lambda n: n <= total and fits(n), 1))

    def _fit(self, params: Any, scores: Any, live: Any, count: int) -> list[Any]:
        """Masks with as many entries as the file has room for, from a guess of their number."""
        if self.goal.value_bits is not None:  # the grids will take up what the guess missed
            return _keep(scores, live, count)
        assert self.goal.limit is not None
        total = sum(s.size for s in scores if s is not None)
        best, low, high = None, 0, total + 1
        width = 5.0
        for _ in range(7):
            masks = _keep(scores, live, count)
            stored = self.measure(_masked(params, masks))
            if stored <= self.goal.limit:
                low, best = count, masks
            else:
                high = count
            step = int((self.goal.limit - stored) / width)
            if best is not None and (0 <= step < 2 or high - low <= 1):
                break
            count = min(max(count + (step or -1), low + 1), high - 1)
        if best is None:  # the guess was far off: what certainly fits
            best = _keep(scores, live, max(low, 1))
            if (stored := self.measure(_masked(params, best))) > self.goal.limit:
                raise too_small("finetune", self.goal.limit, stored)
        return best

    def _quantise(self, params: Any, opt_state: Any) -> tuple[Any, Any]:
        """Put each array on a grid: equal loss of accuracy a bit, by the mean squared gradient."""
        seconds = jax.tree.leaves(optax.tree_utils.tree_get(opt_state, "nu"))
        tree = jax.tree.structure(params)
        steps = []
        for leaf, second in zip(jax.tree.leaves(params), seconds, strict=True):
            live = np.asarray(leaf) != 0
            mean = float(np.mean(np.asarray(second, np.float64)[live])) if live.any() else 1.0
            steps.append(1 / math.sqrt(mean + 1e-20))
        base = jax.tree.unflatten(tree, steps)
        pairs = zip(jax.tree.leaves(params), steps, strict=True)
        widest = max(float(jnp.max(jnp.abs(p))) / step for p, step in pairs)
        return self._scaled(params, opt_state, base, widest / 4096, widest)

    def _scaled(
        self, params: Any, opt_state: Any, base: Any, low: float, high: float
    ) -> tuple[Any, Any]:
        """The finest multiple of these grids with which the file fits."""
        assert self.goal.limit is not None
        latent = constraint_of(opt_state).latent
        like = lambda factor: jax.tree.map(
            lambda v, s: jnp.asarray(factor * s, v.dtype), latent, base
        )
        for _ in range(9):
            middle = math.sqrt(low * high)
            stored = self.measure(jax.tree.map(on_grid, latent, like(middle)))
            low, high = (low, middle) if stored <= AIM * self.goal.limit else (middle, high)
        change = lambda c: Constraint(c.masks, like(high), c.latent)
        return constrain(opt_state, change)

    def _hold(self, epoch: int, params: Any, opt_state: Any) -> tuple[Any, Any]:
        """After the pruning: keep a quantised file within its limit."""
        if self.goal.limit is None or self.goal.value_bits is None:
            return params, opt_state
        # Off their grid by a rounding of the optimizer's addition.
        params, opt_state = constrain(opt_state, lambda c: c)
        stored = self.measure(params)
        if epoch <= SETTLED * self.epochs and not 0.96 < stored / self.goal.limit <= 0.995:
            steps = constraint_of(opt_state).steps
            return self._scaled(params, opt_state, steps, 0.8, 1.3)
        if epoch < self.epochs or stored <= self.goal.limit:
            return params, opt_state
        scores = self.scores(params, opt_state)
        live = _live(opt_state)
        count = sum(int(np.count_nonzero(np.asarray(p))) for p in jax.tree.leaves(params))
        masks: list[Any] = live
        while stored > self.goal.limit and count > 1:
            count -= max(1, count * (stored - self.goal.limit) // self.goal.limit)
            masks = _keep(scores, live, count)
            stored = self.measure(_masked(params, masks))
        return _with_masks(params, opt_state, masks)


def _live(opt_state: Any) -> list[np.ndarray]:
    return [np.asarray(mask) for mask in jax.tree.leaves(constraint_of(opt_state).masks)]


def _keep(scores: list[Any], live: list[np.ndarray], count: int) -> list[Any]:
    """Masks of the entries of largest score among those that live; whole leaves keep theirs."""
    held = [np.where(m, s, -1.0) for s, m in zip(scores, live, strict=True) if s is not None]
    flat = np.concatenate([h.ravel() for h in held]) if held else np.zeros(0)
    count = min(max(count, 1), len(flat))
    if not len(flat):
        return list(live)
    edge = max(float(np.partition(flat, len(flat) - count)[len(flat) - count]), 0.0)
    return [m if s is None else m & (s >= edge) for s, m in zip(scores, live, strict=True)]


@jax.jit
def _masked(params: Any, masks: list[Any]) -> Any:
    """Parameters with what is dead as plain zeros."""
    leaves, tree = jax.tree.flatten(params)
    pairs = zip(leaves, masks, strict=True)
    return jax.tree.unflatten(tree, [jnp.where(m, p, 0) for p, m in pairs])


def _with_masks(params: Any, opt_state: Any, masks: list[Any]) -> tuple[Any, Any]:
    tree = jax.tree.unflatten(jax.tree.structure(params), masks)
    return constrain(opt_state, lambda c: Constraint(tree, c.steps, c.latent))
