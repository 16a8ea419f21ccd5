"""Which observables to keep: backward elimination with the Gram matrix, each step refitted."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from koopjax import edmd
from koopjax._core import check_number, expected, read
from koopjax.compress.gram._obs import as_moments
from koopjax.compress.gram._units import unit_diagonal


def select_observables(
    statistics: Any, sizes: int | Sequence[int], *, alpha: float = 0.0, protect: Sequence[int] = ()
) -> Any:
    """The observables that a least-squares fit can least do without.

    Removes, again and again, the observable whose loss raises the regularised residual least. Of
    the solution `K = G⁻¹ Ψxᵀ Ψy` with `G = Ψxᵀ Ψx + α I` that rise is `‖K_i‖² / [G⁻¹]_ii` for row
    `i` once all other rows are refitted, and the refit itself is a downdate of `G⁻¹` and `K`.

    Args:
        statistics: `edmd.Gram` or `edmd.RFactor` of `p` observables.
        sizes: how many to keep; several sizes come out of one run, and are nested.
        alpha: ridge, absolute as in `edmd.Ridge`.
        protect: indices never to be removed, such as that of the constant.

    Returns:
        `(size,)` sorted indices, or a list of them in the order of `sizes`.

    Numerics:
        Float64 on the host, `O(p³)`; two in a hundred observables go at a time, the last ones one
        by one. Dependent observables want `alpha > 0`; without, a rounding-sized ridge is added.

    Raises:
        ValueError: a size that is not in `[max(1, len(protect)), p]`.

    Reference:
        Hassibi & Stork (1993), NeurIPS 5 (the saliency, there of single weights).
    """
    gram, cross, ridge = moments_of(statistics, alpha)
    p = len(gram)
    least = max(1, len(set(protect)))
    many = sizes_of(sizes, least, p, "observables")
    found = backward(gram, cross, many, ridge, tuple(protect))
    return found[many[0]][0] if np.ndim(sizes) == 0 else [found[size][0] for size in many]


def moments_of(statistics: Any, alpha: Any) -> tuple[np.ndarray, np.ndarray, float]:
    """`Ψxᵀ Ψx`, `Ψxᵀ Ψy` on the host in float64, and a ridge."""
    if not isinstance(statistics, edmd.Gram | edmd.RFactor) or statistics.folds is not None:
        raise expected(
            "statistics of all samples together, an edmd.Gram or edmd.RFactor",
            type(statistics).__name__,
            "edmd.accumulate(psi, x, y)",
        )
    check_number("alpha", alpha)
    moments = statistics.to_gram()
    return *as_moments(moments.gram, "the cross moments", moments.cross), float(alpha)


def sizes_of(sizes: Any, least: int, most: int, what: str) -> list[int]:
    """One size or several, as a list.

    Raises:
        ValueError: what are no integers from `least` to `most`.
    """
    array = np.atleast_1d(read("sizes", sizes))
    whole = array.ndim == 1 and array.size and np.issubdtype(array.dtype, np.integer)
    if not whole or array.min() < least or array.max() > most:
        raise expected(f"a number of {what} from {least} to {most}", f"{sizes!r:.60}")
    return array.tolist()


def backward(
    gram: Float[np.ndarray, "p p"],
    cross: Float[np.ndarray, "p q"],
    sizes: Sequence[int],
    alpha: float,
    protect: Sequence[int] = (),
    share: float = 0.02,
) -> dict[int, tuple[Int[np.ndarray, " size"], Float[np.ndarray, "size q"]]]:
    """Nested sets of kept indices by size, each with its ridge solution; see `select_observables`.

    Args:
        gram, cross: float64.
        sizes: each from `max(1, len(protect))` to p.
        alpha: absolute ridge.
        protect: indices that stay.
        share: of the remaining observables that go in one step.
    """
    p = len(gram)
    gram, unit = unit_diagonal(gram)
    # Rounding is relative to each observable, a ridge is not.
    inverse = np.linalg.inv(gram + np.diag(np.maximum(alpha * unit**2, 1e-10)))
    k = inverse @ (cross * unit[:, None])
    kept = np.arange(p)
    held = np.zeros(p, bool)
    held[list(protect)] = True
    out: dict[int, Any] = {}
    for size in sorted(set(sizes), reverse=True):
        while len(kept) > size:
            count = min(max(1, int(share * len(kept))), len(kept) - size)
            saliency = np.sum(k**2, axis=1) / np.maximum(np.diag(inverse), 1e-300)
            saliency[held[kept]] = np.inf
            gone = np.argpartition(saliency, count - 1)[:count]
            stay = np.ones(len(kept), bool)
            stay[gone] = False
            # Taking rows out of G: the inverse of what is left is a Schur complement.
            side = inverse[np.ix_(stay, gone)]
            block = inverse[np.ix_(gone, gone)]
            lever = side / block if count == 1 else np.linalg.solve(block, side.T).T
            k = k[stay] - lever @ k[gone]
            inverse = inverse[np.ix_(stay, stay)] - lever @ side.T
            kept = kept[stay]
        out[size] = (kept.copy(), k * unit[kept, None])
    return out
