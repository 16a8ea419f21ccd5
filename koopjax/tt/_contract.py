"""A TT matrix applied to vectors, and to rank-one tensors: the product dictionary, never formed."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from koopjax._core import expected
from koopjax.tt._checks import as_floating, check_precision
from koopjax.tt._contraction_order import ContractionOrder, Shapes, order_for
from koopjax.tt._precision import precise
from koopjax.tt._range import even
from koopjax.tt._trains import TTMatrix, check_train

PRECISION = "highest"
WIDE = 16  # columns from which one product a block beats moving axes for a single product


def contract(
    matrix: Any, factors: Sequence[Any] | Array, *, precision: Any = PRECISION, form: str = "auto"
) -> Float[Array, "n q"]:
    """Row vectors `f_1 ⊗ f_2 ⊗ ... ⊗ f_d` times a TT matrix, sample by sample.

    `out[s] = (f_1[s] ⊗ ... ⊗ f_d[s]) M`, contracted from both ends towards the core with the
    output, so that no tensor of the dictionary's size exists.

    Args:
        matrix: `TTMatrix` `(∏ m_k, q)`.
        factors: `d` arrays `(n, m_k)`, as `Product.factors_at(x)` gives, or one `(d, n, m)`.
        precision: of the products, as `jax.lax.Precision` takes it.
        form: as in `contraction_order`; `"auto"` takes what that function expects to be fastest.

    Returns:
        `(n, q)` in the promoted dtype. A chain costs `2 n Σ r_{k-1} m_k r_k` operations, `q` times
        that in the output's core; trains of 32 cores and more run as a loop over padded cores,
        which compiles as fast as one core.

    Raises:
        ValueError: factors of other widths than the row modes, NaN cores (where they can be looked
            at), a form that the shapes do not admit.

    Example:
        >>> import jax.numpy as jnp
        >>> from koopjax import tt
        >>> ones = tt.TTMatrix([jnp.ones((1, 2, 1, 1)), jnp.ones((1, 3, 4, 1))])
        >>> tt.contract(ones, [jnp.ones((5, 2)), jnp.ones((5, 3))]).shape
        (5, 4)
    """
    check_train("the matrix", matrix, TTMatrix)
    check_precision(precision)
    stacked = not isinstance(factors, list | tuple)
    if stacked:
        arrays: Any = as_floating("the factors", factors)
        if arrays.ndim != 3:
            raise expected("factors (d, n, m), or a sequence of (n, m)", f"shape {arrays.shape}")
    else:
        arrays = tuple(as_floating(f"factor {k}", f) for k, f in enumerate(factors))
    shapes = [tuple(f.shape) for f in arrays] if not stacked else [arrays.shape[1:]] * len(arrays)
    good = all(len(s) == 2 for s in shapes) and len({s[0] for s in shapes}) == 1
    if not good or [s[-1] for s in shapes] != list(matrix.row_modes):
        raise expected(
            f"factors (n, m) of widths {_short(matrix.row_modes)}",
            f"shapes {_short(shapes)}",
            "the fit's own dictionary",
        )
    order = order_for(matrix, shapes[0][0], form=form)
    with precise(matrix, arrays):
        return _contract(tuple(matrix.cores), arrays, order, precision)


def apply_matrix(
    matrix: Any, x: Float[Array, "n p"], *, precision: Any = PRECISION, form: str = "auto"
) -> Float[Array, "n q"]:
    """Plain row vectors times a TT matrix: `x M`, in the cheapest order for the shapes.

    Args:
        matrix: `TTMatrix` `(∏ m_k, ∏ n_k)`.
        x: `(n, ∏ m_k)`, multi-indices in C order.
        precision: of the products.
        form: `"chain"`, `"grouped"`, `"dense"`, or `"auto"`, as in `contraction_order`.

    Returns:
        `(n, ∏ n_k)` in the promoted dtype.

    Example:
        >>> import jax.numpy as jnp
        >>> from koopjax import tt
        >>> eye = tt.TTMatrix([jnp.eye(2).reshape(1, 2, 2, 1), jnp.eye(3).reshape(1, 3, 3, 1)])
        >>> apply_matrix(eye, jnp.arange(6.0).reshape(1, 6))
        Array([[0., 1., 2., 3., 4., 5.]], dtype=float32)
    """
    check_train("the matrix", matrix, TTMatrix)
    check_precision(precision)
    x = as_floating("the rows", x)
    if x.ndim != 2 or x.shape[1] != matrix.shape[0]:
        raise expected(
            f"rows of width {matrix.shape[0]}, the product of the modes {_short(matrix.row_modes)}",
            f"an array of shape {x.shape}",
        )
    order = order_for(matrix, x.shape[0], kind="vector", form=form)
    with precise(matrix, x):
        return _apply(tuple(matrix.cores), x, order, precision)


def _short(shapes: Any) -> str:
    text = [str(s) for s in shapes]
    return f"({', '.join(text if len(text) <= 8 else [*text[:6], '...', text[-1]])})"


def _merge(cores: Sequence[Array], s: Shapes, i: int, j: int, precision: Any) -> Array:
    """The cores `i` to `j - 1` as one `(r_i, ∏m, ∏n, r_j)`, in the cheapest order."""
    if j - i == 1:
        return cores[i]
    k = s.merge(i, j)[1]
    a, b = _merge(cores, s, i, k, precision), _merge(cores, s, k, j, precision)
    out = jnp.einsum("rmcs,snet->rmncet", a, b, precision=precision)
    return out.reshape(a.shape[0], a.shape[1] * b.shape[1], a.shape[2] * b.shape[2], b.shape[3])


def _shapes(cores: Sequence[Array]) -> Shapes:
    ranks = (*(c.shape[0] for c in cores), cores[-1].shape[3])
    return Shapes(ranks, [c.shape[1] for c in cores], [c.shape[2] for c in cores])


def _outer(a: Array, b: Array) -> Array:
    """Row-wise outer product `(..., a b)`."""
    return (a[..., :, None] * b[..., None, :]).reshape(*a.shape[:-1], a.shape[-1] * b.shape[-1])


@functools.partial(jax.jit, static_argnames=("order", "precision"))
def _contract(cores: Any, factors: Any, order: ContractionOrder, precision: Any) -> Array:
    cores = even(cores)
    if order.form == "scan":
        return _scan(cores, factors, order.middle, precision)
    if order.form == "tree":
        return _tree(cores, factors, order.middle, precision)
    s = _shapes(cores)
    merged = [_merge(cores, s, i, j, precision) for i, j in order.groups]
    lifted = [functools.reduce(_outer, [factors[k] for k in range(i, j)]) for i, j in order.groups]
    n, at = factors[0].shape[0], order.middle
    left: Any = None
    for core, f in zip(merged[:at], lifted[:at], strict=True):
        r, m, c, t = core.shape
        inner = f[:, None, :] if left is None else _outer(left, f[:, None, :])
        out = jnp.matmul(inner, core.reshape(r * m, c * t), precision=precision)
        left = out.reshape(n, inner.shape[1] * c, t)
    right: Any = None
    for core, f in zip(reversed(merged[at + 1 :]), reversed(lifted[at + 1 :]), strict=True):
        right = _from_right(core, f, right, precision)
    return _meet(left, merged[at], lifted[at], right, precision)


def _from_right(core: Array, f: Array, right: Any, precision: Any) -> Array:
    """One core more on the right: `(n, J, b)` to `(n, c J, a)`."""
    a, m, c, b = core.shape
    n = f.shape[0]
    inner = f[:, None, :] if right is None else _outer(f[:, None, :], right)
    if c == 1:
        flat = core.reshape(a, m * b)
        return jnp.einsum("nJk,ak->nJa", inner, flat, precision=precision)
    turned = core.transpose(1, 3, 2, 0).reshape(m * b, c * a)
    done = inner.shape[1]
    out = jnp.matmul(inner, turned, precision=precision).reshape(n, done, c, a)
    return out.transpose(0, 2, 1, 3).reshape(n, c * done, a)


def _meet(left: Any, core: Array, f: Array, right: Any, precision: Any) -> Array:
    """The core where both sides meet: `(n, J c J')`."""
    a, m, c, b = core.shape
    n = f.shape[0]
    inner = f[:, None, :] if left is None else _outer(left, f[:, None, :])
    if right is None:
        out = jnp.matmul(inner, core.reshape(a * m, c * b), precision=precision)
        return out.reshape(n, inner.shape[1] * c)
    if inner.shape[1] == right.shape[1] == 1 and a * m <= c:
        # one product over both sides: fewer numbers in between than with c b columns
        both = _outer(inner[:, 0], right[:, 0])
        flat = core.transpose(0, 1, 3, 2).reshape(a * m * b, c)
        return jnp.matmul(both, flat, precision=precision)
    out = jnp.matmul(inner, core.reshape(a * m, c * b), precision=precision)
    if right.shape[1] == 1:
        rows = out.reshape(n, inner.shape[1] * c, b)
        return jnp.sum(rows * right, axis=2)
    rows = out.reshape(n, inner.shape[1] * c, b)
    out = jnp.einsum("nxb,nJb->nxJ", rows, right, precision=precision)
    return out.reshape(n, rows.shape[1] * right.shape[1])


# Long trains: cores padded with zeros to one shape, which changes no result.


def _pad(core: Array, r: int, m: int) -> Array:
    """A core `(a, m_k, 1, b)` as `(r, m, r)`."""
    a, size, _, b = core.shape
    return jnp.pad(core.reshape(a, size, b), ((0, r - a), (0, m - size), (0, r - b)))


def _stacks(cores: Any, factors: Any, at: int) -> tuple[Any, Any]:
    """Stacked `(factors, cores)` left and right of a place; those on the right transposed."""
    r, m = max(c.shape[0] for c in cores), max(c.shape[1] for c in cores)
    sides = []
    for picked, turn in ((range(at), False), (range(len(cores) - 1, at, -1), True)):
        some = [_pad(cores[k], r, m) for k in picked]
        if not some:
            sides.append(None)
            continue
        stack = jnp.stack(some)
        stack = jnp.swapaxes(stack, 1, 3) if turn else stack
        if isinstance(factors, tuple):
            width = [((0, 0), (0, m - factors[k].shape[1])) for k in picked]
            given = jnp.stack([jnp.pad(factors[k], w) for k, w in zip(picked, width, strict=True)])
        else:
            given = factors[:at] if not turn else jnp.flip(factors[at + 1 :], axis=0)
        sides.append((given, stack))
    return sides[0], sides[1]


def _from_both(cores: Any, factors: Any, at: int, run: Any, precision: Any) -> Array:
    """Both sides run over their padded stacks, then the core where they meet."""
    core, sides = cores[at], []
    for side, rank in zip(_stacks(cores, factors, at), (core.shape[0], core.shape[3]), strict=True):
        sides.append(None if side is None else run(*side)[:, :, :rank])
    return _meet(sides[0], core, factors[at], sides[1], precision)


def _scan(cores: Any, factors: Any, at: int, precision: Any) -> Array:
    """A loop over the cores of either side, then the core with the outputs."""

    def run(given: Array, stack: Array) -> Array:
        r = stack.shape[1]
        kind = jnp.result_type(given, stack)
        start = jnp.zeros((given.shape[1], r), kind).at[:, 0].set(1)

        def step(state: Array, pair: Any) -> tuple[Array, None]:
            f, core = pair
            # the state's index first, as the core's: (n, r m) @ (r m, r)
            out = jnp.matmul(
                _outer(state, f), core.reshape(-1, core.shape[-1]), precision=precision
            )
            return out.astype(kind), None

        return jax.lax.scan(step, start, (given, stack))[0][:, None]

    return _from_both(cores, factors, at, run, precision)


def _tree(cores: Any, factors: Any, at: int, precision: Any) -> Array:
    """One matrix a core and sample, multiplied in pairs: the logarithm of the order in steps."""

    def run(given: Array, stack: Array) -> Array:
        mats = jnp.einsum("dnm,drms->dnrs", given, stack, precision=precision)
        while mats.shape[0] > 1:
            odd = mats[-1:] if mats.shape[0] % 2 else None
            even = mats.shape[0] // 2 * 2
            mats = jnp.matmul(mats[0:even:2], mats[1:even:2], precision=precision)
            mats = mats if odd is None else jnp.concatenate([mats, odd])
        return mats[0][:, :1]

    return _from_both(cores, factors, at, run, precision)


@functools.partial(jax.jit, static_argnames=("order", "precision"))
def _apply(cores: Any, x: Array, order: ContractionOrder, precision: Any) -> Array:
    cores = even(cores)
    s = _shapes(cores)
    merged = [_merge(cores, s, i, j, precision) for i, j in order.groups]
    if len(merged) == 1:
        return jnp.matmul(x, merged[0][0, :, :, 0], precision=precision)
    n = x.shape[0]
    modes = [core.shape[1] for core in merged]
    columns = [core.shape[2] for core in merged]
    backwards = order.middle == 0
    if backwards:  # the mirrored train on mirrored axes
        merged = [core.transpose(3, 1, 2, 0) for core in reversed(merged)]
    # samples last: (columns done, rank, modes to come, samples), so that no step moves an axis
    axes = range(len(modes), 0, -1) if backwards else range(1, len(modes) + 1)
    state = x.reshape(n, *modes).transpose(*axes, 0).reshape(1, 1, x.shape[1] * n)
    for core in merged:
        r, m, c, t = core.shape
        done, rest = state.shape[0], state.shape[2] // m
        out = _step(state.reshape(done, r * m, rest), core.reshape(r * m, c * t), precision)
        state = out.reshape(done * c, t, rest)
    if backwards:
        k = len(columns)
        out = state.reshape(*reversed(columns), n)
        return out.transpose(k, *range(k - 1, -1, -1)).reshape(n, math.prod(columns))
    return state[:, 0].T


def _step(state: Array, core: Array, precision: Any) -> Array:
    """`(J, k, x)` and `(k, c)` to `(J, c, x)`."""
    done, _, rest = state.shape
    if rest < WIDE:
        return jnp.einsum("jkx,kc->jcx", state, core, precision=precision)
    turned = jnp.broadcast_to(core.T[None], (done, core.shape[1], core.shape[0]))
    return jnp.matmul(turned, state, precision=precision)
