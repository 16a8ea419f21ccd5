"""Where alternating least squares starts: random directions, or a train that is known."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from koopjax import tt
from koopjax._core import expected, is_tracing, masked_qr
from koopjax.tensor_edmd._result import TensorKoopman


def random_directions(key: Array, d: int, size: int, modes: int, dtype: Any) -> Array:
    """Normal numbers `(d, size modes, size)`, each from its indices, so that padding adds only.

    Args:
        key: of the whole train.
        d: cores.
        size: padded rank.
        modes: functions a core; not padded further for another rank.
        dtype: of the numbers.
    """
    fold = jax.vmap(jax.random.fold_in, (None, 0))
    folds = jax.vmap(fold, (0, None))
    keys = folds(fold(key, jnp.arange(d)), jnp.arange(size))
    keys = jax.vmap(folds, (0, None))(keys, jnp.arange(size))
    draw = lambda k: jax.random.normal(k, (modes,), dtype)
    out = jax.vmap(jax.vmap(jax.vmap(draw)))(keys)
    return out.swapaxes(2, 3).reshape(d, size * modes, size)


def given_cores(
    init: Any, modes: tuple[int, ...], size: int, dtype: Any
) -> tuple[np.ndarray, np.ndarray]:
    """A known train made orthogonal from the right, its outputs moved to the first core.

    Args:
        init: `TensorKoopman`, `TTMatrix` or `TensorTrain` over the same modes.
        modes: the dictionary's.
        size: padded rank; leading directions are kept where the train has more.
        dtype: of the padded cores.

    Returns:
        Cores `(d, size, N, size)`, the first one unused, and ranks `(d + 1,)`.
    """
    train = init.train if isinstance(init, TensorKoopman) else init
    if is_tracing(train):
        raise expected("concrete cores in init", "traced ones")
    rows = train.row_modes if isinstance(train, tt.TTMatrix) else train.modes
    if tuple(rows) != tuple(modes):
        raise expected(f"a start with modes {modes}", f"{tuple(rows)}", "init=None")
    cores = [np.asarray(core, np.float64) for core in train.cores]
    cores = [core[:, :, None, :] if core.ndim == 3 else core for core in cores]
    d, most = len(cores), max(modes)
    out, ranks = np.zeros((d, size, most, size)), np.ones(d + 1, np.int32)
    carried = np.ones((1, 1, 1))  # (rank, outputs so far, kept)
    for k in range(d - 1, 0, -1):
        core = np.einsum("amqb,bpc->aqpmc", cores[k], carried)
        left, outputs = core.shape[0], core.shape[1] * core.shape[2]
        kept = core.shape[-1]
        u, s, vt = np.linalg.svd(core.reshape(left * outputs, -1), full_matrices=False)
        rank = max(1, min(size, int(np.sum(s > 1e-14 * s[0]))))
        out[k, :rank, : modes[k], :kept] = vt[:rank].reshape(rank, modes[k], kept)
        ranks[k] = rank
        carried = (u[:, :rank] * s[:rank]).reshape(left, outputs, rank)
    return out.astype(dtype), ranks


def in_units(given: tuple[Any, Any], units: Array) -> tuple[Array, Array]:
    """A train over functions in other units, orthogonal from the right again.

    Args:
        given: as `given_cores` returns them.
        units: `(d, N)` factors of the functions.
    """
    cores, ranks = jnp.asarray(given[0]), jnp.asarray(given[1])
    size = cores.shape[1]

    def step(carried: Array, part: Any) -> tuple[Array, Array]:
        core, rank, unit = part
        core = jnp.einsum("lnr,rk->lnk", core / unit[None, :, None], carried, precision="highest")
        mask = (jnp.arange(size) < rank).astype(core.dtype)
        q, r = masked_qr(core.reshape(size, -1).T, mask)
        return r.T, q.T.reshape(core.shape)

    one = jnp.eye(size, dtype=cores.dtype)
    return jax.lax.scan(step, one, (cores, ranks[:-1], units), reverse=True)[1], ranks
