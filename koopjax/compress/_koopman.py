"""The Koopman method: a span replaced by projection, dictionary and K within a budget of bytes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike
from jaxtyping import Array

from koopjax import edmd, export, nn, observables, surgery
from koopjax._core import SUCCESS, UNDERDETERMINED, expected
from koopjax.compress._budget import too_small
from koopjax.compress._problem import Problem, cut, pose
from koopjax.compress._projection import lift
from koopjax.compress._result import Compressed, finish
from koopjax.compress._search import Span, search
from koopjax.compress._setting import Setting

#: Calibration samples an observable below which the result is flagged.
FEW = 3


def koopman(
    model: Any,
    calibration: ArrayLike,
    budget: Any,
    *,
    at: Any = None,
    labels: ArrayLike | None = None,
    validation: Any = None,
    key: Array,
) -> Compressed:
    """Replace a span by few coordinates, their products, and a Koopman matrix.

    `block(h) = psi(W h[kept] - shift) K`: some entries of the state, projected by `W` to an active
    subspace, lifted by the products of the coordinates up to a degree (or the most useful of them),
    and mapped linearly to the span's output. How many entries, coordinates and products, which
    degree, which rank of K and which ridge is chosen on validation data, such that the file fits.
    No training and no labels: three passes for covariance, Jacobians and a pilot, then one pass for
    each number of entries, whose Gram matrix answers all numbers of coordinates, products, ranks
    and ridges as submatrices.

    Args:
        model: an `nnx.Module`, `(linen_module, variables)`, `(function, params)` or any callable
            pytree.
        calibration: `(n, ...)` samples as the model takes them, unlabelled; thousands where there
            are that many.
        budget: `"30x"`, `"64KiB"`, bytes, or a `Budget`; of the whole model's file.
        at: a cut to start from, or a pair of cuts, as for `surgery.split`; from the input to the
            output without. What lies outside the span stays and takes its bytes.
        labels: `(n,)` classes of `calibration`, to choose settings by accuracy; without, by
            agreement with the original. Never used in the fit.
        validation: `x_val` or `(x_val, y_val)`; without, some of `calibration` are held out.
        key: draws held-out samples and those for the Jacobians.

    Returns:
        `Compressed`: the model, an `nn.KoopmanBlock` where the span is the whole of a model of
        vectors, else a `surgery.Spliced`; and the report.

    Numerics:
        Statistics in float64 where the backend has it, eigenvectors and eliminations in float64 on
        the host, parameters float32. `O(n p² + d³)` for states of `d` entries and `p` products, `p`
        at most about a thousand. With few samples the ridge rises by itself, as validation asks for
        it, and dictionaries of more than half as many observables are left out; the report says so
        with code UNDERDETERMINED.

    Raises:
        ValueError: bad data, an unknown cut, or a budget that no form fits, with the least that one
            does.

    Reference:
        Sugishita, Kinjo & Ohkubo (2024), arXiv:2402.11740; Constantine, "Active Subspaces" (2015).
    """
    problem = pose("koopman", model, calibration, budget, labels, validation, key)
    parts, ends = cut(model, problem.x, at)
    span = _states(problem, parts, jax.random.fold_in(key, 1))
    base = _fixed_bytes(problem, span, ends)
    smallest = base + Setting.least(span.d, span.q).bytes(span.d, span.q)
    if smallest > problem.limit:
        raise too_small("koopman", problem.limit, smallest, problem.original_bytes)
    found = search(problem, span, problem.limit - base)
    model_out, setting, code = _build(problem, span, ends, found)
    notes = []
    unused = export.stored_bytes(model_out) < 0.8 * problem.limit
    if setting.observables * FEW > span.count or (unused and found.limited):
        code = UNDERDETERMINED
        notes.append(
            f"{span.count} calibration samples are few: the dictionary was kept to "
            f"{setting.observables} observables and the ridge set to {setting.ridge:g} of their "
            "number; give more samples, which need no labels"
        )
    return finish(
        model_out,
        method="koopman",
        budget=problem.budget,
        original_bytes=problem.original_bytes,
        settings={"at": list(ends), **setting.as_dict(span.d)},
        why=(
            f"of {found.tried} settings that fit, the best validation {problem.measure}; "
            f"directions from the {setting.directions.name} metric"
        ),
        candidates=found.tried,
        result=code,
        notes=tuple(notes),
        **problem.account(problem.score_model(model_out)),
    )


def _states(problem: Problem, parts: Any, key: Array) -> Span:
    """The states at both cuts as rows, for calibration and validation."""
    head, span, tail = parts
    shape, x = problem.x.shape, problem.x
    rows = max(1, min(2000, len(x)))
    run = lambda part, a: jnp.concatenate([part(a[i : i + rows]) for i in range(0, len(a), rows)])
    h, h_val = run(head, x), run(head, problem.x_val)
    y, y_val = run(span, h), run(span, h_val)
    if len(h) != shape[0] or len(y) != shape[0]:
        raise expected(
            "a cut whose first axis counts the samples", f"shapes {h.shape} and {y.shape}",
            "another cut",
        )  # fmt: skip
    flat = lambda a: a.reshape(len(a), -1).astype(jnp.float32)
    direct = tail.segment.start == tail.segment.stop
    return Span(
        h=flat(h), y=flat(y), h_val=flat(h_val), y_val=flat(y_val), sample=h[:2],
        out_shape=y.shape[1:], out_dtype=y.dtype, tail=None if direct else tail,
        parts=(span,) if direct else (span, tail), raw=h, outputs=problem.teacher.shape[-1],
        logits=direct and problem.measure != "r2", key=key,
    )  # fmt: skip


def _wrap(problem: Problem, span: Span, ends: tuple[str, str], block: nnx.Module) -> nnx.Module:
    """The block as a whole model."""
    vector = span.raw.ndim == 2 and len(span.out_shape) == 1
    # A spliced model hands on the original's dtype where promotion would give another.
    same = jnp.result_type(span.raw.dtype, jnp.float32) == span.out_dtype
    if vector and same and ends[0] == "input" and span.tail is None:
        return block
    sample = jax.ShapeDtypeStruct((2, *problem.x.shape[1:]), problem.x.dtype)
    axes = None if vector else "flatten"
    return surgery.splice(problem.model, sample, ends, block, sample_axes=axes)


def _fixed_bytes(problem: Problem, span: Span, ends: tuple[str, str]) -> int:
    """What the file takes beside the block's own arrays, with a little room for their headers."""
    least = Setting.least(span.d, span.q)
    # Distinct numbers, since the file would hold equal ones as one.
    k = np.arange(2 * span.q, dtype=np.float32).reshape(2, span.q) + 1
    block = _block(span, least, np.ones((len(least.kept), 1)), np.zeros(1), k)
    model = _wrap(problem, span, ends, block)
    return export.stored_bytes(model) - least.bytes(span.d, span.q) + 8


def _small(indices: np.ndarray, size: int) -> np.ndarray:
    """Indices in the least unsigned type that holds `size` of them."""
    kinds = (np.uint8, np.uint16, np.uint32)
    kind = next(k for k in kinds if size <= np.iinfo(k).max + 1)
    return np.asarray(indices, kind)


def _block(span: Span, setting: Setting, matrix: np.ndarray, shift: Any, k: Any) -> nn.KoopmanBlock:
    """A Koopman block; `matrix` has a row for each kept entry."""
    shift = jnp.asarray(shift, jnp.float32)
    coordinates: Any = observables.Compose(
        observables.Project(jnp.asarray(matrix, jnp.float32)),
        observables.Standardize(shift, jnp.ones_like(shift)),
    )
    if len(setting.kept) < span.d:
        some = observables.Select(observables.Identity(), _small(setting.kept, span.d))
        coordinates = observables.Compose(some, coordinates)
    lifted: Any = observables.Monomials(setting.degree)
    p = lifted.size(setting.coordinates)
    if setting.observables < p:
        lifted = observables.Select(lifted, _small(setting.columns, p))
    operator = nn.LowRank(*k) if isinstance(k, tuple) else nn.Dense(k)
    return nn.KoopmanBlock(observables.Compose(coordinates, lifted), operator)


def _build(problem: Problem, span: Span, ends: tuple[str, str], found: Any) -> Any:
    """Fit on all samples, held-out ones included, and give up observables until the file fits."""
    setting: Setting = found.setting
    h, y = span.h, span.y
    if problem.held_out:
        h, y = jnp.concatenate([h, span.h_val]), jnp.concatenate([y, span.y_val])
    moment = found.moment
    full = found.entries.read(setting.directions, len(setting.kept))[:, : setting.coordinates]
    psi = lift(full, moment.mean, setting.degree)
    stats = edmd.accumulate(psi, h, y, target=observables.Identity())
    while True:
        chosen = stats.select(jnp.asarray(setting.columns))
        k, code = _solve(chosen, setting, span)
        shift = moment.mean @ full
        block = _block(span, setting, full[setting.kept], shift, k)
        model = _wrap(problem, span, ends, block)
        if export.stored_bytes(model) <= problem.limit or setting.observables <= 2:
            break
        over = export.stored_bytes(model) - problem.limit
        setting = setting.fewer(stats, max(1, over // (4 * setting.rank)))
    return model, setting, code


def _solve(stats: Any, setting: Setting, span: Span) -> tuple[Any, int]:
    """K, or its two factors, by the room of EDMD, with its result code."""
    alpha = setting.ridge * float(stats.count)
    f32 = lambda a: jnp.asarray(np.asarray(a), jnp.float32)
    if setting.rank < span.q:
        solver = edmd.ReducedRank(setting.rank, metric=span.metric, alpha=alpha)
        left, right = edmd.low_rank(stats, solver)
        return (f32(left), f32(right)), SUCCESS
    solution = edmd.solve(stats, edmd.Ridge(alpha))
    return f32(edmd.unwrap(solution, allow=(1, 2, 3))), int(solution.result)
