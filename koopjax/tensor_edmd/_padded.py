"""Fits over a product dictionary with padded cores: what `vmap` over ranks runs over."""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from koopjax import tt
from koopjax._core import (
    as_numbers,
    expected,
    is_tracing,
    matmul,
    on_device,
    precise,
    pytree,
)
from koopjax.observables import Product
from koopjax.tensor_edmd._dictionary import outer, separable, through
from koopjax.tensor_edmd._result import TensorKoopman


def feasible(modes: tuple[int, ...], limit: int) -> tuple[int, ...]:
    """Largest rank of every bond, ends included: the smaller side's size, at most `limit`."""
    grown = lambda sizes: itertools.accumulate(sizes, lambda r, n: min(limit, r * n), initial=1)
    return tuple(map(min, grown(modes), reversed([*grown(modes[::-1])])))


def stacked_factors(psi: Any, x: Array) -> Array:
    """All factors of a dictionary in one array `(d, n, m)`, zeros beyond a mode's size."""
    front, product = separable(psi)
    x = through(front, x)
    product.modes(x.shape[1])
    families: tuple[Any, ...] = product.factors if isinstance(product, Product) else ()
    shapes = {tuple(map(jnp.shape, jax.tree.leaves(f))) for f in families}
    if len({jax.tree.structure(f) for f in families}) == len(shapes) == 1:
        # One family for all coordinates: evaluated side by side, not one after another.
        one = jax.tree.map(lambda *leaves: jnp.stack([*map(jnp.asarray, leaves)]), *families)
        if not jax.tree.leaves(one):
            return jax.vmap(lambda t: families[0](t[:, None]))(x.T)
        return jax.vmap(lambda f, t: f(t[:, None]))(one, x.T)
    factors = product.factors_at(x)
    most = max(f.shape[1] for f in factors)
    return jnp.stack([jnp.pad(f, ((0, 0), (0, most - f.shape[1]))) for f in factors])


@pytree
class PaddedKoopman:
    """A tensor-train fit with cores of one shape, or a batch of such fits as `vmap` gives it.

    Attributes:
        psi: a `Product`, or a `Compose` that ends in one.
        cores: `(d, R, N, R)`, zero outside ranks and modes and at the output's place.
        output: `(R, N, q, R)`, the core with the outputs.
        position: int32, which core that is.
        ranks: `(d + 1,)` int32.
        requested: the rank that was asked for, before it was clipped to what can be.
        info: `TensorInfo`; `history` has a row a half sweep, NaN where it did not get to.
        validation: relative validation error of the train that was kept; NaN without validation.
        damping: largest addition to the unit diagonal of scaled normal equations.
        damped: how many of them needed it.
        sweeps: how many were made.
        result: int32 result code.
    """

    psi: Any
    cores: Any
    output: Any
    position: Any
    ranks: Any
    requested: Any
    info: Any
    validation: Any
    damping: Any
    damped: Any
    sweeps: Any
    result: Any

    @property
    def rank_mask(self) -> Float[Array, "bonds r"]:
        """`(d + 1, R)` ones up to each bond's rank, zeros beyond."""
        ranks, size = jnp.asarray(self.ranks), self.output.shape[-1]
        index = jnp.arange(size).reshape((1,) * ranks.ndim + (size,))
        return (index < ranks[..., None]).astype(self.output.dtype)

    @property
    def numbers(self) -> Array:
        """Numbers in the cores of one fit at its exact ranks; int32, traced or not."""
        modes = separable(self.psi)[1].modes()
        outputs = jnp.where(jnp.arange(len(modes)) == self.position, self.output.shape[2], 1)
        ranks = self.ranks.astype(jnp.int32)
        sizes = ranks[:-1] * jnp.asarray(modes, jnp.int32) * ranks[1:] * outputs.astype(jnp.int32)
        return jnp.sum(sizes).astype(jnp.int32)

    def predict(self, x: Float[Array, "n d"]) -> Float[Array, "n q"]:
        """`Ψ(x) K`; differentiable in the cores, `2 n d R² N` operations.

        Args:
            x: `(n, d)`, or `(d,)` for one state.
        """
        x = as_numbers("the states", x)
        if self.output.ndim != 4:
            raise expected("one fit", "a batch of them", "jax.vmap over the fits, or unpad(lane)")
        return _predict(self, x)

    def unpad(self, lane: int | None = None) -> TensorKoopman:
        """The fit with exact ranks; outside jit.

        Args:
            lane: which of a batch; None for a single fit.
        """
        if is_tracing(self):
            raise expected("concrete cores in unpad", "traced ones", "unpad outside jit")
        batched = self.output.ndim != 4
        if batched != (lane is not None):
            raise expected("a lane for a batch of fits and none for one fit", f"lane={lane}")
        count = self.output.shape[0]
        if lane is not None and not 0 <= lane < count:
            raise expected(f"a lane in [0, {count})", f"{lane}")
        # On the host, where nothing is compiled for every shape.
        bare = jax.tree.map(np.asarray, dataclasses.replace(self, psi=None))
        one = bare if lane is None else jax.tree.map(lambda a: a[lane], bare)
        modes, ranks, position, cores = separable(self.psi)[1].modes(), one.ranks, one.position, []
        with precise(self.output):
            for k, mode in enumerate(modes):
                full = one.output if k == position else one.cores[k][:, :, None, :]
                core = full[: ranks[k], :mode, :, : ranks[k + 1]]
                cores.append(on_device(core, full.dtype))
            held = jax.tree.map(jnp.asarray, dataclasses.replace(one.info, history=None))
            result = jnp.asarray(one.result)
        history = one.info.history[: 2 * int(one.sweeps)]
        info = dataclasses.replace(held, history=history, reason=_reason(one, modes))
        return TensorKoopman(self.psi, tt.TTMatrix(tuple(cores)), info, result)


def _reason(fit: PaddedKoopman, modes: tuple[int, ...]) -> str:
    """Why it stopped, what was clipped and what was damped."""
    parts, rows, sweeps = [], len(fit.info.history), int(fit.sweeps)
    if 2 * sweeps < rows:
        parts.append(f"stopped after {sweeps} of {rows // 2} sweeps without improvement")
    asked = int(np.max(fit.requested))
    most = max(feasible(modes, max(asked, 1)))
    if asked > most:
        parts.append(f"rank {asked} clipped to {most}, the largest that these modes can have")
    if fit.damped:
        share = f"by up to {float(fit.damping):.1e} of their diagonal"
        parts.append(f"{int(fit.damped)} local problems damped, {share}")
    return "; ".join(parts)


@jax.jit
def _predict(fit: PaddedKoopman, x: Array) -> Array:
    rows = x if x.ndim == 2 else x[None]
    factors = stacked_factors(fit.psi, rows)
    dtype = jnp.result_type(factors, fit.output)
    factors = factors.astype(dtype)
    d, n, _ = factors.shape
    size, modes = fit.output.shape[0], fit.output.shape[1]
    index = jnp.arange(d)
    first = jnp.zeros((n, size), dtype).at[:, 0].set(1)

    def forward(left: Array, part: Any) -> tuple[Array, None]:
        core, f, k = part
        after = matmul(outer(left, f), core.reshape(size * modes, size))
        return jnp.where(k < fit.position, after, left), None

    def backward(right: Array, part: Any) -> tuple[Array, None]:
        core, f, k = part
        core = jnp.swapaxes(core, 0, 2).reshape(size * modes, size)
        after = matmul(outer(right, f), core)
        return jnp.where(k > fit.position, after, right), None

    cores = jnp.asarray(fit.cores, dtype)
    left, _ = jax.lax.scan(forward, first, (cores, factors, index))
    right, _ = jax.lax.scan(backward, first, (cores, factors, index), reverse=True)
    middle = jnp.take(factors, fit.position, axis=0)
    flat = jnp.asarray(fit.output, dtype).reshape(size * modes, -1)
    half = matmul(outer(left, middle), flat).reshape(n, -1, size)
    out = jnp.einsum("sqr,sr->sq", half, right, precision="highest")
    return out if x.ndim == 2 else out[0]
