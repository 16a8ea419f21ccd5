"""Trains far from 1: powers of two are carried apart, so that no partial product leaves the dtype.

A train of cores 1e30 and 1e-30 is an ordinary tensor, but its partial products are not. `balanced`
takes an exponent out of every column of every core (what one column is divided by multiplies its
row of the next core), `lifted` one out of a running product; multiplying by powers of two rounds
nothing. All works on arrays of JAX inside jit and on those of NumPy on the host.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from koopjax._core import promoted
from koopjax.tt._precision import floating_dtype, real_dtype

NONE = -(2**30)  # the exponent of zero


def _of(a: Any) -> Any:
    return np if isinstance(a, np.ndarray | np.generic) else jnp


def _top(a: Any, axis: Any = None) -> Any:
    """The largest modulus over some axes, of real and imaginary parts apart; a constant."""
    xp = _of(a)
    a = a if xp is np else jax.lax.stop_gradient(a)
    if np.issubdtype(a.dtype, np.complexfloating):
        return xp.maximum(xp.abs(a.real), xp.abs(a.imag)).max(axis=axis)
    return xp.abs(a).max(axis=axis)


def _exponent(top: Any) -> Any:
    """The `k` with `2^(k-1) <= top < 2^k`, `NONE` for zero: from the bits of the number."""
    if isinstance(top, np.ndarray | np.generic):
        top = np.asarray(top)
        return np.where(top > 0, np.frexp(top)[1], NONE)
    top = top.astype(promoted(top.dtype, jnp.float32))
    info = jnp.finfo(top.dtype)
    bits = jax.lax.bitcast_convert_type(top, f"int{info.bits}") >> info.nmant
    return jnp.where(top > 0, bits.astype(jnp.int32) + (2 - info.maxexp), NONE)


def _power(e: Array, dtype: Any) -> Array:
    """`2^e` from its bits, since `exp2` rounds."""
    info = jnp.finfo(dtype)
    bits = (e + (info.maxexp - 1)).astype(f"int{info.bits}")
    return jax.lax.bitcast_convert_type(bits << info.nmant, dtype)


def _powers(e: Array, dtype: Any) -> tuple[Array, Array]:
    """Two factors whose product is `2^e`, which may itself lie outside of the dtype."""
    info = jnp.finfo(dtype)
    e = jnp.clip(e, 2 * info.minexp, 2 * (info.maxexp - 1))
    return _power(e >> 1, dtype), _power(e - (e >> 1), dtype)


def shift(a: Any, e: Any) -> Any:
    """`a 2^e`, without rounding: infinite or zero only where the product itself is."""
    if isinstance(a, np.ndarray):
        if np.iscomplexobj(a):
            return shift(a.real, e) + 1j * shift(a.imag, e)
        return np.ldexp(a, np.asarray(e, np.int32))
    first, second = _powers(e, real_dtype(a.dtype))
    return a * first * second


def lifted(a: Any, e: Any, axis: Any = None) -> tuple[Any, Any]:
    """`(b, f)` with `b 2^f = a 2^e` and the largest entry of `b` of order 1, over some axes."""
    xp, info = _of(a), jnp.finfo(a.dtype)
    k = _exponent(_top(a, axis))
    k = xp.where(k > NONE, xp.clip(k, 1 - info.maxexp, -info.minexp), 0)
    inner = k if axis is None else xp.expand_dims(k, axis)
    return (shift(a, -inner) if xp is np else a * _power(-inner, real_dtype(a.dtype))), e + k


def _next(e: Any, size: Any) -> Any:
    """Exponents of the columns of a core `(r, s)` from those of its rows and its own entries."""
    xp = _of(size)
    reach = xp.where(size > NONE, e[:, None] + size, NONE).max(0)
    live = reach > NONE
    # A zero column keeps a plausible scale, since its derivatives need one.
    least = xp.where(live.any(), xp.where(live, reach, -NONE).min(), e.min())
    return xp.where(live, reach, least)


def _columns(cores: Any) -> Any:
    """Exponents of the columns of all partial products, `(d + 1, R)`."""
    if isinstance(cores, tuple):
        size = max(max(core.shape[0], core.shape[-1]) for core in cores)
        tops = [_top(core, tuple(range(1, core.ndim - 1))) for core in cores]
        pads = [tuple((0, size - r) for r in top.shape) for top in tops]
        xp = _of(cores[0])
        tops = xp.stack([xp.pad(top, pad) for top, pad in zip(tops, pads, strict=True)])
    else:
        tops = _top(cores, 2)
    sizes = _exponent(tops)
    if isinstance(sizes, np.ndarray):
        found = [np.zeros(sizes.shape[1], np.int32)]
        for size in sizes:
            found.append(_next(found[-1], size))
        return np.stack(found)
    start = jnp.zeros(sizes.shape[1], jnp.int32)
    _, found = jax.lax.scan(lambda e, size: (_next(e, size),) * 2, start, sizes)
    return jnp.concatenate([start[None], found])


def _changes(columns: Any) -> Any:
    """What divides each core by the scale of its columns and multiplies it by that of its rows."""
    return columns[:-1, :, None] - columns[1:, None, :]


def _shifted(cores: Any, e: Any) -> Any:
    """Cores times `2^e`, `(d, R, R)` or `(d, 1, 1)`: exponents of rows and columns of each."""
    if not isinstance(cores, tuple):
        return shift(cores, e[:, :, None, :])
    if isinstance(e, np.ndarray):
        factors = (e,)
    else:
        # A loop, or XLA computes them anew in the kernel of every core and compiles for seconds.
        factors = jax.lax.map(lambda own: _powers(own, real_dtype(cores[0].dtype)), e)
    out = []
    for k, core in enumerate(cores):
        for part in factors:
            own = part[k][: core.shape[0], : core.shape[-1]]
            own = own.reshape(own.shape[0], *(1,) * (core.ndim - 2), own.shape[1])
            core = shift(core, own) if isinstance(core, np.ndarray) else core * own
        out.append(core)
    return tuple(out)


def _shares(total: Any, count: int) -> Any:
    """A whole number as a sum of `count` nearly equal ones, `(count, 1, 1)`."""
    k = _of(total).arange(count, dtype=np.int32)[:, None, None]
    each, rest = total // count, total % count
    return each + (rest * (k + 1)) // count - (rest * k) // count


def _rebuilt(train: Any, cores: Any) -> Any:
    return dataclasses.replace(train, cores=cores) if hasattr(train, "cores") else cores


def _cores_of(train: Any) -> Any:
    cores = getattr(train, "cores", train)
    if not isinstance(cores, tuple | list):
        return cores.astype(floating_dtype(cores))
    if all(isinstance(core, np.ndarray) for core in cores):
        return tuple(cores)
    dtype = floating_dtype(*cores)
    return tuple(jnp.asarray(core, dtype) for core in cores)


def balanced(train: Any) -> tuple[Any, Int[Any, ""]]:
    """`(B, e)` with `A = 2^e B` and no entry of a core of `B` above 1; of a train, or of cores."""
    cores = _cores_of(train)
    columns = _columns(cores)
    return _rebuilt(train, _shifted(cores, _changes(columns))), columns[-1, 0]


@jax.jit
def even(train: Any) -> Any:
    """The same tensor from cores of one magnitude: what products of pairs of cores start from."""
    cores = _cores_of(train)
    columns = _columns(cores)
    shares = _shares(columns[-1, 0], len(cores))
    return _rebuilt(train, _shifted(cores, _changes(columns) + shares))


def placed(train: Any, e: Any, center: int, dtype: Any = None) -> Any:
    """`2^e A` with the exponent in the core `center`, as far as the dtype reaches.

    What it does not hold goes to the others in equal parts, which are orthonormal up to that then.
    The dtype is that which the cores will have, their own by default.
    """
    cores = _cores_of(train)
    xp, d = (_of(cores[0]), len(cores))
    info = jnp.finfo(cores[0].dtype if dtype is None else dtype)
    lowest, highest = int(info.minexp) + int(info.nmant), int(info.maxexp) - 1
    kept = e if d == 1 else xp.clip(e, lowest, highest)
    shares = _shares(e - kept, d - 1) if d > 1 else xp.zeros((0, 1, 1), np.int32)
    own = xp.asarray(kept, np.int32).reshape(1, 1, 1)
    return _rebuilt(train, _shifted(cores, xp.concatenate([shares[:center], own, shares[center:]])))
