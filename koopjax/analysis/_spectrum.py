"""Which interactions a fitted tensor train is made of: its variance by order and by coordinate."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from koopjax import tt
from koopjax._core import (
    NONFINITE_SOLUTION,
    SUCCESS,
    as_flag,
    as_numbers,
    as_whole,
    blocks,
    check_finite,
    check_metric,
    expected,
    has_float64,
    message,
    on_device,
)
from koopjax.analysis._rows import moments
from koopjax.analysis._sobol import (
    chain_of,
    orders_of,
    output_core,
    outputs_of,
    pairs_of,
    root_of,
    sobol_of,
)
from koopjax.tensor_edmd import FunctionMajor, factors_of, separable

#: Standard deviation up to which an output does not vary, in roundings of its root mean square.
ROUNDINGS = 128


@dataclasses.dataclass(frozen=True)
class Spectrum:
    """The variance of a tensor train by the interactions that it comes from.

    Attributes:
        orders: share of the variance from interactions of exactly 1, 2, 3, ... coordinates.
        beyond: share of all higher orders.
        variance: of the outputs in their metric, under the product of the marginals.
        joint: the same under the samples as they are, where coordinates depend on each other.
        first: `(d,)` share of each coordinate alone.
        total: `(d,)` share of all interactions that a coordinate takes part in.
        pairs: `(d, d)` share of the interaction of exactly these two; the diagonal is zero.
        names: of the coordinates.
        result: result code.
    """

    orders: tuple[float, ...]
    beyond: float
    variance: float
    joint: float
    first: Any
    total: Any
    pairs: Any
    names: tuple[str, ...]
    result: int

    @property
    def mean_order(self) -> float:
        """Mean order of an interaction, weighted by its variance: the sum of the total indices."""
        return float(np.sum(self.total))

    def leading(self, count: int = 5) -> list[dict[str, Any]]:
        """The single coordinates and pairs of largest share, the largest first."""
        rows = [((k,), float(share)) for k, share in enumerate(self.first)]
        if self.pairs is not None:
            upper = zip(*np.triu_indices(len(self.names), 1), strict=True)
            rows += [((int(i), int(j)), float(self.pairs[i, j])) for i, j in upper]
        rows.sort(key=lambda row: -row[1])
        return [
            {"coordinates": [self.names[k] for k in which], "share": share}
            for which, share in rows[:count]
        ]

    def sentence(self) -> str:
        """The finding in one sentence."""
        if not self.variance > 0:
            return "The output does not vary."
        first, second = self.orders[0], self.orders[1] if len(self.orders) > 1 else 0.0
        lead = ", ".join("×".join(row["coordinates"]) for row in self.leading(3))
        return (
            f"{100 * first:.1f} % of the output's variance comes from single coordinates, "
            f"{100 * second:.1f} % from pairs, {100 * max(0.0, 1 - first - second):.1f} % from "
            f"higher orders; {lead} lead."
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON can hold it; a row for each coordinate."""
        return {
            "orders": list(self.orders),
            "beyond": self.beyond,
            "mean_order": self.mean_order,
            "variance": self.variance,
            "joint": self.joint,
            "coordinates": [
                {"name": name, "first": float(a), "total": float(b)}
                for name, a, b in zip(self.names, self.first, self.total, strict=True)
            ],
            "leading": self.leading(),
            "sentence": self.sentence(),
            "message": message(self.result),
        }


def interaction_spectrum(
    fit: Any,
    x: Float[Any, "n d"],
    *,
    metric: Float[Any, "q q"] | None = None,
    max_order: int = 4,
    pairs: bool = True,
    names: Sequence[str] | None = None,
    batch_size: int = 4096,
) -> Spectrum:
    """What share of a fitted tensor train's variance comes from interactions of each order.

    Under the product of the coordinates' empirical marginals any function is a sum, in one way
    only, of a mean, functions of one coordinate, of two, and so on, all orthogonal (ANOVA). With
    the means `m_k = E f_k` and covariances `C_k` of each coordinate's functions, the variance of
    the interactions of exactly the coordinates S is the doubled train contracted with `C_k` for k
    in S and `m_k m_kᵀ` for the others; contracted with `m_k m_kᵀ + t C_k` it is a polynomial in t
    whose coefficients are the variances by order.

    Args:
        fit: a `TensorKoopman`, or anything with its `psi` and `train`. Coordinates are those that
            enter the `Product`: behind a projection, the projected ones.
        x: `(n, d)` samples, as the fit takes them.
        metric: `(q, q)` in which outputs are measured, see `output_metric`; else the Euclidean.
        max_order: highest order that is told apart; what is above is summed up.
        pairs: whether to compute the share of every pair.
        names: of the coordinates; the dictionary's own if left out.
        batch_size: samples of one block.

    Returns:
        A `Spectrum`.

    Numerics:
        Float64 throughout where the backend has it. Sums of non-negative terms only, so small
        shares are as exact as large ones. One pass over the samples, `O(n d m²)`; then
        `O(d m r³)` for all orders and indices together and `O(d² r³)` for the pairs. An output
        whose standard deviation is below 128 roundings of its size (of the dtype of the train) does
        not vary and counts for nothing: where none does, all shares are zero.

    Raises:
        ValueError: states or a metric of another shape, complex cores, NaN among the samples, a
            dictionary whose modes are functions and not coordinates.

    Example:
        >>> import types
        >>> from koopjax.observables import Polynomial1D, Product
        >>> product = Product.of(Polynomial1D(1), 2)
        >>> core = lambda *rows: jnp.array(rows, float)[:, :, None, :]
        >>> train = tt.TTMatrix([core([[1, 0], [0, 1]]), core([[0], [1]], [[2], [0]])])
        >>> signs = jnp.array([[1.0, 1.0], [-1.0, -1.0]])
        >>> spectrum = interaction_spectrum(types.SimpleNamespace(psi=product, train=train), signs)
        >>> [round(share, 6) for share in spectrum.orders[:2]]  # 2 x0 + x1
        [1.0, 0.0]

    Reference:
        Sobol (1993), Math. Model. Comput. Exp. 1, for the decomposition and the indices.
    """
    front, product = separable(fit.psi)
    x = as_numbers("x", x)
    _check(fit, x, max_order)
    pairs = as_flag("pairs", pairs)
    q = fit.train.shape[1]
    check_metric("metric", metric, q)
    check_finite("x", x)
    root = None if metric is None else root_of(metric)
    means, covariances, joint = _moments(fit, x, root, batch_size)
    modes = product.modes()
    cores = [np.asarray(core, np.float64) for core in fit.train.cores]
    means = [mean[:m] for mean, m in zip(means, modes, strict=True)]
    covariances = [c[:m, :m] for c, m in zip(covariances, modes, strict=True)]
    out = output_core(cores)
    constant, varied = outputs_of(chain_of(cores, means, covariances, None), out)
    rounding = ROUNDINGS * float(jnp.finfo(fit.train.dtype).eps)
    # Written so that NaN stays, and is flagged below.
    still = varied <= rounding**2 * (constant + varied)
    cores[out] = np.where(still[:, None], 0.0, cores[out])
    chain = chain_of(cores, means, covariances, root)
    by_order = orders_of(chain, min(max_order, len(modes)))
    variance = float(by_order.sum())
    scale = 1 / variance if variance > 0 else 0.0
    first, total = sobol_of(chain)
    finite = np.isfinite(by_order).all() and np.isfinite(total).all()
    padded = [*(scale * by_order[:-1]), *[0.0] * (max_order - len(by_order) + 1)]
    return Spectrum(
        tuple(float(share) for share in padded),
        float(scale * by_order[-1]),
        variance,
        joint,
        scale * first,
        scale * total,
        scale * pairs_of(chain) if pairs else None,
        tuple(_names(front, x.shape[1], len(modes)) if names is None else names),
        SUCCESS if finite else NONFINITE_SOLUTION,
    )


def second_moment_roots(fit: Any, x: Any, batch_size: int = 4096) -> list[np.ndarray]:
    """`U_k` with `U_k U_kᵀ = E f_k f_kᵀ` over samples, for each coordinate's functions."""
    x = as_numbers("samples", x)
    check_finite("samples", x)
    _check(fit, x, 1)
    means, covariances, _ = _moments(fit, x, None, batch_size)
    modes = separable(fit.psi)[1].modes()
    found = zip(means, covariances, modes, strict=True)
    return [root_of(c[:m, :m] + np.outer(mean[:m], mean[:m])) for mean, c, m in found]


def _check(fit: Any, x: Any, max_order: int) -> None:
    if x.ndim != 2 or x.shape[0] == 0:
        raise expected("samples (n, d) with n > 0", f"shape {x.shape}")
    as_whole("max_order", max_order, 1)
    if isinstance(separable(fit.psi)[1], FunctionMajor):
        raise expected(
            "a Product dictionary, with a mode for every coordinate",
            "FunctionMajor, with one for every function",
            "a fit over its psi.product",
        )
    if np.issubdtype(fit.train.dtype, np.complexfloating):
        raise expected("a train of real numbers", f"{fit.train.dtype}")


def _names(front: Sequence[Any], d: int, count: int) -> list[str]:
    """Names of the coordinates that enter the product; counted where the maps have none."""
    names = [f"x{k}" for k in range(d)]
    try:
        for part in front:
            names = part.names(len(names), names)
    except (NotImplementedError, TypeError, ValueError):
        names = []
    return names if len(names) == count else [f"z{k}" for k in range(count)]


def _moments(fit: Any, x: Any, root: Any, batch: int) -> tuple[Any, Any, float]:
    """Means and covariances of each coordinate's functions, and the variance of the outputs."""
    cut, weights = blocks(x, min(as_whole("batch_size", batch, 1), x.shape[0]))
    if not has_float64():
        found = jax.device_get(_sums(fit.psi, fit.train, root, cut, weights))
    else:
        with jax.enable_x64(True):
            wide = lambda a: on_device(np.asarray(a), jnp.float64)
            train = jax.tree.map(wide, fit.train)
            right = None if root is None else wide(root)
            found = jax.device_get(_sums(fit.psi, train, right, wide(cut), wide(weights)))
    shift, first, second, answer, squares = (np.asarray(a, np.float64) for a in found)
    n = x.shape[0]
    mean = first / n
    covariance = second / n - mean[:, :, None] * mean[:, None, :]
    joint = squares / n - np.sum((answer / n) ** 2)
    return mean + shift, covariance, float(joint)


@jax.jit
def _sums(psi: Any, train: Any, root: Any, cut: Any, weights: Any) -> tuple[Any, ...]:
    """Sums over samples, of functions shifted by their values at the first one.

    The shift keeps the covariance from being a small difference of large numbers.
    """

    def values(x: Any) -> tuple[Any, Any]:
        factors = factors_of(psi, x)
        answers = tt.contract(train, factors)
        answers = answers if root is None else jnp.matmul(answers, root, precision="highest")
        most = max(f.shape[1] for f in factors)
        padded = [jnp.pad(f, ((0, 0), (0, most - f.shape[1]))) for f in factors]
        return jnp.stack(padded, axis=1), answers

    shift, origin = (a[:1] for a in values(cut[0, :1]))

    def sums(x: Any, w: Any) -> tuple[Any, ...]:
        f, answers = values(x)
        f = (f - shift) * w[:, None, None]
        answers = (answers - origin) * w[:, None]
        second = jnp.einsum("ski,skj->kij", f, f, precision="highest")
        return f.sum(0), second, answers.sum(0), jnp.sum(answers**2)

    shapes = jax.eval_shape(sums, cut[0], weights[0])
    start = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
    step = lambda total, block: (jax.tree.map(jnp.add, total, sums(*block)), None)
    found, _ = jax.lax.scan(step, start, (cut, weights))
    return shift[0], *found


def summarize_spectra(spectra: Sequence[Spectrum | dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation of several spectra, such as those of networks from other seeds.

    Args:
        spectra: `Spectrum`s with as many orders and coordinates, or what their `to_dict` gave.
            Coordinates are taken together by their places, not their names.

    Returns:
        `orders`, `beyond` and `mean_order`, each with `..._std` (sample standard deviation; 0 for
        one spectrum), `coordinates` (rows with `name`, `first`, `total` and theirs), `seeds` and
        `sentence`.

    Raises:
        ValueError: none, or some of different sizes.
    """
    dicts = [one if isinstance(one, dict) else one.to_dict() for one in spectra]
    if not dicts:
        raise expected("at least one spectrum", "none")
    sizes = {(len(one["orders"]), len(one["coordinates"])) for one in dicts}
    if len(sizes) > 1:
        raise expected("spectra of as many orders and coordinates", f"{sorted(sizes)}")
    over = lambda name, rows: moments(name, [row[name] for row in rows])
    found: dict[str, Any] = {"seeds": len(dicts)}
    for name in ("orders", "beyond", "mean_order"):
        found.update(over(name, dicts))
    found["coordinates"] = [
        {"name": members[0]["name"], **over("first", members), **over("total", members)}
        for members in zip(*(one["coordinates"] for one in dicts), strict=True)
    ]
    if len(dicts) == 1:
        return {**found, "sentence": dicts[0]["sentence"], "leading": dicts[0]["leading"]}
    shown = [
        f"{100 * mean:.1f} ± {100 * spread:.1f} % from {what}"
        for mean, spread, what in zip(
            found["orders"], found["orders_std"], ("single coordinates", "pairs"), strict=False
        )
    ]
    found["sentence"] = (
        f"Of the output's variance come {' and '.join(shown)}; the mean order is "
        f"{found['mean_order']:.2f} ± {found['mean_order_std']:.2f} over {len(dicts)} seeds."
    )
    return found
