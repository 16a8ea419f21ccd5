"""Optax transformations for compression: zeros stay, values lie on grids, the rate is a leaf."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from koopjax._core import expected, pytree


@pytree
class Constraint:
    """State of `constrained`: for each parameter, leaves that one may change between epochs.

    Masks of the entries that may differ from zero, the step of the grid that they lie on (0 for
    none), and the latent real numbers behind them.
    """

    masks: Any
    steps: Any
    latent: Any


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
