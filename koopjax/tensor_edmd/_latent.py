"""Latent coordinates: which directions a tensor train sees, and in which order along the chain."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from koopjax._core import as_whole, check_finite, check_metric, expected, read_numbers, ridge_solve
from koopjax.observables import Compose, Identity, Project, Select, Standardize

KINDS = ("pca", "active_subspace", "output")
ORDERS = ("correlation", "mutual_information")


def order_by_correlation(x: Float[Array, "n d"], *, method: str = "spectral") -> Select:
    """Neighbours that go together: coordinates reordered by their absolute correlation.

    The ranks of a train grow with what depends on each other across a bond, so that dependent
    coordinates belong next to each other.

    Args:
        x: `(n, d)`.
        method: `"spectral"`: by the Fiedler vector of the graph of similarities, a global order;
            `"chain"`: the most similar pair, then at either end whatever is closest to it.

    Returns:
        `Select(Identity(), order)`: a map to put in front of a product dictionary.

    Example:
        >>> import jax
        >>> a, b = jax.random.normal(jax.random.key(0), (2, 99))
        >>> x = jnp.stack([a, b, a + 0.1 * b], axis=1)
        >>> [int(i) for i in order_by_correlation(x, method="chain").indices]
        [0, 2, 1]
    """
    return Select(Identity(), _order(np.abs(_correlation(_checked(x))), method))


def order_by_mutual_information(
    x: Float[Array, "n d"], *, bins: int | None = None, method: str = "spectral"
) -> Select:
    """As `order_by_correlation`, by estimates of the mutual information of pairs.

    Args:
        x: `(n, d)`.
        bins: quantile bins a coordinate: histograms see dependence of every kind, with a bias of
            about `(bins - 1)² / 2n`. `None` takes pairs as Gaussian, `-log(1 - ρ²) / 2`.
        method: see `order_by_correlation`.
    """
    rows = _checked(x)
    if bins is None:
        rho = np.clip(np.abs(_correlation(rows)), 0, 1 - 1e-12)
        return Select(Identity(), _order(-0.5 * np.log1p(-(rho**2)), method))
    bins = as_whole("bins, at most one a sample,", bins, 2, max(2, len(rows)))
    return Select(Identity(), _order(_binned_information(rows, bins), method))


def latent(
    x: Float[Array, "n d"],
    y: Any = None,
    *,
    rank: int,
    kind: str = "pca",
    metric: Any = None,
    gradients: Any = None,
    order: str | None = None,
    standardize: bool = True,
) -> Compose:
    """A few coordinates of wide states: projected, standardised and, if asked for, ordered.

    Args:
        x: `(n, d)` states.
        y: `(n, q)` outputs, for `kind="output"`.
        rank: number of latent coordinates, at most `d`.
        kind: `"pca"`: most variance, in a `(d, d)` metric if there is one; `"active_subspace"`:
            most change of a function with the given gradients, weighted by the variance of the
            states; `"output"`: most variance of the affine regression of `y` on `x`, in a
            `(q, q)` metric if there is one, then, beyond `q` directions, of the states.
        metric: see `kind`.
        gradients: `(m, d)` or `(m, q, d)`, for `kind="active_subspace"`.
        order: `"correlation"`, `"mutual_information"` or `None`. Principal coordinates are
            uncorrelated: for them only binned information, taken here, says anything.
        standardize: scale coordinates to zero mean and unit variance.

    Returns:
        A map to put in front of a product: `Compose(latent(...), Product.of(family, rank))`.

    Example:
        >>> import jax
        >>> x = jax.random.normal(jax.random.key(0), (50, 9))
        >>> latent(x, rank=3)(x).shape
        (50, 3)
    """
    check_finite("x", x)
    if kind not in KINDS:
        raise expected(f"a kind in {list(KINDS)}", repr(kind))
    if order not in (None, *ORDERS):
        raise expected(f"an order in {list(ORDERS)}, or None", repr(order))
    if kind == "active_subspace":
        if gradients is None:
            raise expected("gradients for kind='active_subspace'", "None", "kind='pca'")
        front = Project.active_subspace(x, gradients, rank)
    elif kind == "output":
        front = Project.pca(x, rank, metric=_regression_metric(x, y, metric))
    else:
        front = Project.pca(x, rank, metric=metric)
    if standardize:
        front = Compose(front, Standardize.fit(front(x)))
    if order is None:
        return front if isinstance(front, Compose) else Compose(front, Identity())
    values = front(x)
    if order == "correlation":
        return Compose(front, order_by_correlation(values))
    bins = int(np.clip(round(len(values) ** (1 / 3)), 2, 16))
    return Compose(front, order_by_mutual_information(values, bins=bins))


def _checked(x: Any) -> np.ndarray:
    x = np.asarray(read_numbers("x", x), np.float64)
    check_finite("x", x)
    if x.ndim != 2 or 0 in x.shape:
        raise expected("states of shape (n, d), not empty", f"shape {x.shape}")
    return x


def _correlation(x: np.ndarray) -> np.ndarray:
    """Correlations; constant coordinates have none."""
    centred = x - x.mean(axis=0)
    deviation = np.sqrt((centred**2).mean(axis=0))
    live = deviation > 1e-12 * np.maximum(np.abs(x).max(axis=0), 1e-300)
    scaled = np.where(live, centred / np.where(live, deviation, 1), 0)
    return scaled.T @ scaled / len(x)


def _binned_information(x: np.ndarray, bins: int) -> np.ndarray:
    """Mutual information of all pairs from histograms on quantiles, in nats."""
    n, d = x.shape
    edges = np.quantile(x, np.arange(1, bins) / bins, axis=0)
    labels = np.stack(
        [np.searchsorted(edges[:, j], x[:, j], side="right") for j in range(d)], axis=1
    )
    one_hot = (labels[:, :, None] == np.arange(bins)).reshape(n, d * bins).astype(np.float32)
    joint = (one_hot.T @ one_hot / n).reshape(d, bins, d, bins).swapaxes(1, 2).astype(np.float64)
    single = one_hot.mean(axis=0, dtype=np.float64).reshape(d, bins)
    apart = single[:, None, :, None] * single[None, :, None, :]
    ratio = np.where(joint > 0, joint / np.where(apart > 0, apart, 1), 1)
    return np.maximum((joint * np.log(ratio)).sum(axis=(2, 3)), 0)


def _order(similarity: np.ndarray, method: str) -> np.ndarray:
    if method not in ("spectral", "chain"):
        raise expected("a method in ['spectral', 'chain']", repr(method))
    if len(similarity) < 3:
        return np.arange(len(similarity))
    weights = similarity.copy()
    np.fill_diagonal(weights, 0)
    if method == "chain":
        return _chain(weights)
    # A weak tie of all with all keeps the graph connected.
    weights += 1e-6 * max(weights.max(), 1e-12)
    np.fill_diagonal(weights, 0)
    laplacian = np.diag(weights.sum(axis=1)) - weights
    fiedler = np.linalg.eigh(laplacian)[1][:, 1]
    order = np.argsort(fiedler, kind="stable")
    return order if order[0] < order[-1] else order[::-1]


def _chain(weights: np.ndarray) -> np.ndarray:
    order = [int(i) for i in np.unravel_index(np.argmax(weights), weights.shape)]
    left = set(range(len(weights))) - set(order)
    while left:
        rest = sorted(left)
        first, last = weights[order[0], rest], weights[order[-1], rest]
        if last.max() >= first.max():
            order.append(rest[int(np.argmax(last))])
            left.discard(order[-1])
        else:
            order.insert(0, rest[int(np.argmax(first))])
            left.discard(order[0])
    out = np.asarray(order)
    return out if out[0] < out[-1] else out[::-1]


def _regression_metric(x: Any, y: Any, metric: Any) -> Array:
    """`B M Bᵀ` of the affine regression `y ≈ x B`, made definite by a little of the identity."""
    if y is None:
        raise expected("outputs y for kind='output'", "None", "kind='pca'")
    check_finite("y", y)
    a, b = _checked(x), np.asarray(y, np.float64)
    if b.ndim != 2 or len(a) != len(b):
        raise expected(f"outputs of shape ({len(a)}, q)", f"shape {b.shape}")
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    # In units of each coordinate's own spread, so that the ridge and the share are the same in all.
    spread = a.std(axis=0)
    spread = np.where(spread > 0, spread, 1)
    a = a / spread
    slope = ridge_solve(a.T @ a / len(a), a.T @ b / len(a), 1e-8)
    check_metric("metric", metric, b.shape[1])
    side = np.eye(b.shape[1]) if metric is None else np.asarray(metric, np.float64)
    seen = slope @ side @ slope.T
    share = 1e-6 * np.trace(seen) / len(seen)
    seen = seen + (share if share > 0 else 1) * np.eye(len(seen))
    return jnp.asarray(seen / spread[:, None] / spread[None, :], jnp.float32)
