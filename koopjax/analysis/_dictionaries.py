"""The dictionaries of the ladder, and the small problems they are fitted on."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from koopjax import observables
from koopjax._core import expected

#: Observables that a default dictionary has at most.
LARGEST = 8000


@dataclasses.dataclass(frozen=True)
class Snapshots:
    """What a dictionary may be fitted on.

    Attributes:
        x: `(n, d)` states before the span, training data only.
        y: `(n, q)` states after it.
        metric: `(d, d)` what an error in x costs at the model's output; see `output_metric`.
        key: random key, another one for each dictionary.
    """

    x: Any
    y: Any
    metric: Any
    key: Any


def scaled(x: Any) -> Any:
    """Standardised coordinates, without those that never change."""
    standard = observables.Standardize.fit(x)
    live = np.flatnonzero(np.ptp(np.asarray(x), axis=0) > 0)
    if len(live) in (0, x.shape[1]):
        return standard
    return observables.Select(standard, jnp.asarray(live, jnp.int32))


def affine(data: Snapshots) -> Any:
    """A constant and the coordinates."""
    return observables.Compose(scaled(data.x), observables.Monomials(1))


def leading(data: Snapshots, rank: int) -> Any:
    """The directions that vary and that the output depends on, to unit variance."""
    rank = min(rank, data.x.shape[1])
    projected = observables.Project.pca(data.x, rank, metric=data.metric, whiten=True)
    scale = observables.Standardize.fit(projected(data.x))
    return observables.Compose(projected, scale)


def of_degree(data: Snapshots, rank: int, degree: int) -> Any:
    """The products of exactly that many factors of the leading directions."""
    first = leading(data, rank)
    r = first.size(data.x.shape[1])
    size = lambda top: math.comb(r + top, top)
    columns = jnp.arange(size(degree - 1), size(degree), dtype=jnp.int32)
    return observables.Select(observables.Compose(first, observables.Monomials(degree)), columns)


def quadratic(data: Snapshots, limit: int = LARGEST) -> Any:
    """All products up to degree 2; where they would be too many, of the leading directions.

    The linear part stays whole beside them: a richer dictionary holds what a poorer one does.
    """
    first = scaled(data.x)
    d = first.size(data.x.shape[1])
    linear = observables.Compose(first, observables.Monomials(1))
    if math.comb(d + 2, 2) <= limit:
        return observables.Compose(first, observables.Monomials(2))
    # Beside a constant and d coordinates, squares and products of r directions: as many as there
    # are products up to degree 2 of r - 1.
    rank = 1 + observables.largest_dimension(2, limit - d - 1)
    return observables.Concat(linear, of_degree(data, min(rank, d), 2))


def cubic(data: Snapshots, directions: int, limit: int = LARGEST) -> Any:
    """Degree 2 as in `quadratic`, and the products of degree 3 of the leading directions."""
    return observables.Concat(quadratic(data, limit), of_degree(data, directions, 3))


def radial(data: Snapshots, centers: int) -> Any:
    """A constant, the coordinates, and Gaussians about centres found by k-means."""
    first = scaled(data.x)
    z = first(data.x)
    count = max(1, min(centers, z.shape[0] // 4))
    psi = observables.GaussianRBF.fit(z, count, data.key, iterations=5, max_samples=20_000)
    return observables.Compose(first, observables.Concat(observables.Monomials(1), psi))


def fourier(data: Snapshots, size: int) -> Any:
    """A constant, the coordinates, and random Fourier features of the data's own width."""
    first = scaled(data.x)
    d = first.size(data.x.shape[1])
    # Standardised coordinates: two samples are √(2d) apart.
    psi = observables.RandomFourier.create(data.key, d, size, math.sqrt(2 * d), dtype=data.x.dtype)
    return observables.Compose(first, observables.Concat(observables.Monomials(1), psi))


def default_dictionaries(
    *, directions: int = 18, centers: int = 1000, features: int = 1000, limit: int = LARGEST
) -> dict[str, Callable[[Snapshots], Any]]:
    """The ladder of dictionaries, from the poorest to the richest, as factories.

    Args:
        directions: leading directions that get degree 3.
        centers: Gaussians.
        features: random Fourier features.
        limit: most observables of degree 2; above, the products are those of the leading
            directions, beside all coordinates.

    Returns:
        Name → factory, to be passed on to `ladder(dictionaries=...)`; add, drop or replace entries
        as you like. A factory takes `Snapshots` and returns a dictionary of observables.
    """
    for name, value in {"directions": directions, "centers": centers, "features": features}.items():
        if value < 1:
            raise expected(f"{name} of at least 1", f"{value}")
    return {
        "affine": affine,
        "degree 2": lambda data: quadratic(data, limit),
        f"degree 3, leading {directions}": lambda data: cubic(data, directions, limit),
        "rbf": lambda data: radial(data, centers),
        "random fourier": lambda data: fourier(data, features),
    }


def build(dictionaries: Mapping[str, Any], data: Snapshots) -> dict[str, Any]:
    """Fit every dictionary; one that is an object of observables already stays as it is."""
    if not dictionaries:
        raise expected("at least one dictionary", "none", "dictionaries=None for the defaults")
    built = {}
    for position, (name, entry) in enumerate(dictionaries.items()):
        if name in ("identity", "mean"):
            raise expected("another name than those of the nulls", repr(name))
        own = dataclasses.replace(data, key=jax.random.fold_in(data.key, position))
        psi = entry if hasattr(entry, "size") else entry(own)
        if not callable(psi) or not hasattr(psi, "size"):
            raise expected(
                f"observables (or a function of Snapshots that returns them) as {name!r}",
                type(psi).__name__,
                "koopjax.observables",
            )
        built[name] = psi
    return built
