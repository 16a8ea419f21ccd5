"""Optax transformations that keep zeros zero, or make more of them on the way."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from koopjax._core import pytree


@pytree
class Masks:
    """State: which entries live, and how many steps were taken."""

    masks: Any
    step: Any


def _live(param: Any) -> Any:
    """Entries that are not zero; vectors (biases, norms) live whole."""
    return param != 0 if param.ndim >= 2 else jnp.ones(param.shape, bool)


def keep_zeros() -> optax.GradientTransformation:
    """Entries of matrices that are zero at the start stay zero.

    Behind an optimizer in `optax.chain`; the file of a pruned model keeps its size.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> tx = optax.chain(optax.sgd(1.0), keep_zeros())
        >>> w = jnp.array([[0.0, 1.0]])
        >>> updates, _ = tx.update(jnp.ones((1, 2)), tx.init(w), w)
        >>> optax.apply_updates(w, updates)
        Array([[0., 0.]], dtype=float32)
    """

    def init(params: Any) -> Masks:
        return Masks(jax.tree.map(_live, params), jnp.zeros((), jnp.int32))

    def update(updates: Any, state: Masks, params: Any = None) -> tuple[Any, Masks]:
        del params
        kept = jax.tree.map(lambda u, m: jnp.where(m, u, 0).astype(u.dtype), updates, state.masks)
        return kept, state

    return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]


def prune_gradually(density: float, steps: int, every: int = 50) -> optax.GradientTransformation:
    """Gradual magnitude pruning: `s_t = s_f (1 - (1 - t)³)` of all matrices' entries are zero.

    Every so many steps the smallest entries, ranked over all matrices together by `|w| / rms`, are
    set to zero, and may not come back. After `steps` the density is reached and kept.

    Args:
        density: share of entries that live in the end, `1 - s_f`.
        steps: over which it falls; at least 1.
        every: steps between prunings.

    Reference: Zhu & Gupta (2017), arXiv 1710.01878, equation 1.
    """
    steps = max(int(steps), 1)

    def init(params: Any) -> Masks:
        return Masks(jax.tree.map(_live, params), jnp.zeros((), jnp.int32))

    def pruned(params: Any, masks: Any, step: Any) -> Any:
        leaves, tree = jax.tree.flatten(params)
        scores = []
        for leaf in leaves:
            size = jnp.abs(leaf.astype(jnp.float32))
            # Of the entries that live, or a pruned matrix would seem to grow small.
            rms = jnp.sqrt(jnp.sum(size**2) / jnp.maximum(jnp.sum(size > 0), 1))
            scores.append(size / jnp.where(rms > 0, rms, 1))
        matrices = [s.ravel() for s, leaf in zip(scores, leaves, strict=True) if leaf.ndim >= 2]
        if not matrices:
            return masks
        flat = jnp.sort(jnp.concatenate(matrices))
        t = jnp.clip(step / steps, 0.0, 1.0)
        gone = (1 - density) * (1 - (1 - t) ** 3)
        threshold = flat[jnp.clip(jnp.ceil(gone * flat.size).astype(jnp.int32), 0, flat.size - 1)]
        pairs = zip(scores, jax.tree.leaves(masks), strict=True)
        live = [mask & (score >= threshold) if score.ndim >= 2 else mask for score, mask in pairs]
        return jax.tree.unflatten(tree, live)

    def update(updates: Any, state: Masks, params: Any = None) -> tuple[Any, Masks]:
        moved = jax.tree.map(jnp.add, params, updates)
        step = state.step + 1
        due = (step % every == 0) & (step <= steps) | (step == steps)
        masks = jax.lax.cond(due, lambda: pruned(moved, state.masks, step), lambda: state.masks)
        to_zero = lambda u, m, p: jnp.where(m, u, -p).astype(u.dtype)
        return jax.tree.map(to_zero, updates, masks, params), Masks(masks, step)

    return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]
