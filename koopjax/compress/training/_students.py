"""Where gradual methods start: students somewhat too large, which lose entries while they train."""

import functools
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from koopjax import edmd, models, nn, observables, surgery
from koopjax._core import as_array, as_key, as_whole, expected, matmul, on_device, ridge_solve
from koopjax.compress._koopman.block import active, axes_of, jacobian_metric, lift, of_pilot
from koopjax.compress._koopman.span import moments
from koopjax.compress._problem import check_real, cut, placed, run
from koopjax.compress._result import inapplicable

#: Samples that a start is fitted to; training takes all.
ROWS = 20_000
#: Ridge of the starting fits, of observables of about unit variance.
RIDGE = 1e-3
#: What all directions of a state count, relative to the mean of the output metric.
SPREAD = 1e-3


def koopman_student(
    model: Any,
    x: Array,
    *,
    coordinates: int,
    hidden: Sequence[int] = (),
    factors: Sequence[int] = (),
    degree: int = 2,
    at: Any = None,
    task: str | None = None,
    key: Array,
) -> nnx.Module:
    """A span as one Koopman matrix or a chain of them, found in closed form, with all products.

    `psi(W h - s) K`: leading coordinates of the active subspace, all their products up to a degree,
    and the least-squares K to the span's end. With widths in `hidden`, depth is cut once more for
    each: the first K leads to so many leading coordinates of a hidden state of the network (in the
    metric of its output), products of those lead on, and the last K to the span's end.

    Args:
        model: the original, of any form that `surgery.split` takes.
        x: `(n, ...)` samples.
        coordinates: of the projection; at most the entries of the state.
        hidden: widths of the states between, the last of them for the network's last hidden state.
        factors: directions of each axis of the state, for a projection behind a Kronecker product
            (`observables.Kronecker`); the axes are those of the state, or the two of a near square
            where it is flat (784 entries are 28 x 28). Empty for a dense projection.
        degree: of the products.
        at: a cut or a pair of cuts; the whole model without.
        task: "classification" where the answer is the largest output, to which a common shift is
            nothing; without, all of every output counts.
        key: draws samples for the Jacobians.

    Returns:
        An `nn.KoopmanBlock`, spliced into the model where the span is a part of it.

    Numerics:
        `O(n p²)` for `p` products; float64 on the host for eigenvectors and solves.

    Raises:
        ValueError: fewer hidden states in the span than widths, a span that begins with integers.
    """
    key = as_key("koopman_student", key)
    x = as_array("x", x)[:ROWS]
    cuts, ends = cut(model, x, at)
    check_real(model, x, cuts)
    head, span, tail = cuts
    spans = _between(model, x, ends, len(hidden)) if hidden else [span]
    states = [run(head, x)]
    for one in spans:
        states.append(run(one, states[-1]))
    parts = [*spans, *([] if tail.segment.start == tail.segment.stop else [tail])]
    outputs = functools.reduce(lambda out, part: part(out), parts, states[0][:2]).shape[-1]
    task, _ = models.read_task(jax.ShapeDtypeStruct((1, outputs), jnp.float32), None, task)
    centred = task == "classification" and outputs > 1
    keys = jax.random.split(key, len(spans))
    targets = [
        _coordinates(states[k + 1], tuple(parts[k + 1 :]), outputs, width, keys[k + 1], centred)
        for k, width in enumerate(hidden)
    ] + [_flat(states[-1])]
    state = _flat(states[0])
    metric = jacobian_metric(tuple(parts), states[0], outputs, keys[0], centred=centred)
    matrix, shift = _projection(state, targets[0], metric, coordinates)
    before: tuple[Any, ...] = ()
    if factors:
        kronecker, matrix, shift = _behind_axes(state, states[0].shape[1:], factors, matrix)
        before = (kronecker,)
    psi: Any = lift(matrix, shift, degree, before=before)
    for target in targets[:-1]:
        k = _least_squares(psi, state, target)
        further = observables.Compose(observables.Project(k), observables.Monomials(degree))
        psi = observables.Compose(psi, further)
    block = nn.KoopmanBlock(psi, nn.Dense(_least_squares(psi, state, targets[-1])))
    return placed(
        model, x, ends, block, before=states[0], rank=states[-1].ndim, dtype=states[-1].dtype,
        last=tail.segment.start == tail.segment.stop,
    )  # fmt: skip


def small_student(
    model: Any, x: Array, *, widths: Sequence[int], linear: Sequence[bool] = (), key: Array
) -> nnx.Module:
    """A perceptron from scratch: the honest rival of every compressed network.

    Args:
        model: the original; its input and output alone matter.
        x: samples.
        widths: of the layers between input and output.
        linear: for each of them, whether it is a linear bottleneck instead of a ReLU layer.
        key: draws the weights (He's normal for ReLU, LeCun's otherwise).

    Returns:
        An `nn.Stack` on flat inputs.
    """
    key = as_key("small_student", key)
    widths = [as_whole("a width", width, 1) for width in widths]
    if not isinstance(linear, Sequence):
        raise expected("a flag for each width as linear", f"{linear!r:.60}", "(False, True)")
    linear = tuple(linear) or (False,) * len(widths)
    if len(linear) != len(widths):
        raise expected("a flag for each width", f"{len(linear)} for {len(widths)}")
    sample = jnp.asarray(x[:2])
    if sample.ndim != 2:
        raise inapplicable(
            "samples (n, d) for a small perceptron", f"shape {x.shape}", "flat samples"
        )
    sizes = [sample.shape[1], *widths, models.predict(model, sample).shape[-1]]
    operators = []
    for k, (p, q) in enumerate(pairwise(sizes)):
        relu = k < len(widths) and not linear[k]
        init = jax.nn.initializers.he_normal() if relu else jax.nn.initializers.lecun_normal()
        matrix = init(jax.random.fold_in(key, k), (p, q), jnp.float32)
        # A bias in front of another linear map would be one too many.
        bias = None if k < len(widths) and linear[k] else jnp.zeros(q, jnp.float32)
        operators.append(nn.Dense(matrix, bias))
    names = ["identity" if flag else "relu" for flag in linear]
    return nn.Stack(operators, names)


def _between(model: Any, x: Array, ends: tuple[str, str], count: int) -> list[Any]:
    """The span cut at its last hidden states."""
    sample = jax.ShapeDtypeStruct((2, *x.shape[1:]), x.dtype)
    points = surgery.cut_points(model, sample)
    names = [point.name for point in points]
    low = names.index(ends[0]) if ends[0] in names else -1
    high = names.index(ends[1]) if ends[1] in names else len(names)
    inside = [p.name for k, p in enumerate(points) if p.hidden and low < k < high]
    if len(inside) < count:
        raise inapplicable(
            f"a span {ends} with {count} hidden states", f"{len(inside)}", "fewer hidden widths"
        )
    places = [ends[0], *inside[len(inside) - count :], ends[1]]
    return [surgery.split(model, sample, pair)[1] for pair in pairwise(places)]


def _flat(state: Array) -> Array:
    return state.reshape(len(state), -1).astype(jnp.float32)


def _coordinates(
    state: Array, parts: tuple[Any, ...], outputs: int, width: int, key: Array, centred: bool
) -> Array:
    """Leading coordinates of a state in the metric of the output, of unit variance."""
    metric = jacobian_metric(parts, state, outputs, key, centred=centred)
    # Beyond the rank of the output: where the state varies most.
    metric = metric + SPREAD * np.trace(metric) / len(metric) * np.eye(len(metric))
    flat = _flat(state)
    mean, covariance = moments(flat)
    matrix = active(covariance, metric, min(width, flat.shape[1])).matrix
    mean, matrix = (on_device(a, jnp.float32) for a in (mean, matrix))
    return matmul(flat - mean[None, :], matrix)


def _projection(state: Array, target: Array, metric: np.ndarray, rank: int) -> tuple[Array, Array]:
    """The active subspace of a pilot operator, then the network's own directions, and the shift."""
    mean, covariance = moments(state)
    rank = min(rank, state.shape[1])
    own = active(covariance, metric, min(state.shape[1], max(rank, 32)))
    matrix = of_pilot(mean, own, state, target, np.eye(target.shape[1]), rank).matrix[:, :rank]
    return on_device(matrix, jnp.float32), on_device(mean @ matrix, jnp.float32)


def _behind_axes(
    state: Array, shape: Sequence[int], ranks: Sequence[int], matrix: Array
) -> tuple[Any, np.ndarray, np.ndarray]:
    """A Kronecker product, and projection and shift behind it that come nearest to a given one."""
    axes = axes_of(shape)
    if len(ranks) != len(axes):
        raise expected(f"factors: a number for each axis of {axes}", f"{tuple(ranks)}")
    ranks = [min(r, n) for r, n in zip(ranks, axes, strict=True)]
    kronecker = observables.Kronecker.fit(state, axes, ranks)
    features = kronecker(state)
    mean, covariance = moments(features)
    wanted = np.asarray(matmul(state, matrix), np.float64)
    wanted = wanted - wanted.mean(axis=0)
    cross = (np.asarray(features, np.float64) - mean).T @ wanted / len(wanted)
    ridge = 1e-3 * np.trace(covariance) / len(covariance)
    mix = ridge_solve(covariance, cross, ridge)
    deviation = np.sqrt(np.einsum("ir,ij,jr->r", mix, covariance, mix))
    mix = mix / np.maximum(deviation, 1e-6)
    return kronecker, mix, mean @ mix


def _least_squares(psi: Any, state: Array, target: Array) -> Array:
    stats = edmd.accumulate(psi, state, target, target=observables.Identity())
    solution = edmd.solve(stats, edmd.Ridge(RIDGE * float(stats.count)))
    return jnp.asarray(edmd.unwrap(solution, allow=(1, 2, 3)), jnp.float32)
