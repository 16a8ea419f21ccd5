"""Which observables to keep: the Gram matrix says what the fit loses with each."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from koopjax import edmd
from koopjax._core import check_finite, check_metric, check_number, expected, read, read_numbers


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
    many = sizes_of(sizes, max(1, len(set(protect))), len(gram), "observables")
    found = backward(gram, cross, many, ridge, tuple(protect))
    return found[many[0]][0] if np.ndim(sizes) == 0 else [found[size][0] for size in many]


def select_forward(statistics: Any, sizes: int | Sequence[int], *, alpha: float = 0.0) -> Any:
    """The observables that lower the residual of a least-squares fit most, one by one.

    The next observable is the one of largest `‖c_i‖² / g_ii`, where `c` and `g` are what is left of
    `Ψxᵀ Ψy` and of the diagonal of `Ψxᵀ Ψx + α I` once those taken already are projected out
    (orthogonal least squares). Cheaper than `select_observables` where few are wanted.

    Args:
        statistics: `edmd.Gram` or `edmd.RFactor` of `p` observables.
        sizes: how many to take; several sizes come out of one run, and are nested.
        alpha: ridge, absolute as in `edmd.Ridge`.

    Returns:
        `(size,)` sorted indices, or a list of them in the order of `sizes`.

    Numerics:
        Float64 on the host, `O(p s²)` for the largest size `s`.

    Raises:
        ValueError: a size that is not in `[1, p]`.

    Reference: Chen, Billings & Luo (1989), Int. J. Control 50.
    """
    gram, cross, ridge = moments_of(statistics, alpha)
    p = len(gram)
    many = sizes_of(sizes, 1, p, "observables")
    # An observable that is always zero explains nothing; a scale of its own keeps it in.
    power = np.where(np.diag(gram) > 0, np.diag(gram), 1.0)
    first = power + np.maximum(ridge, 1e-10 * power)
    left, rest = first.copy(), cross.copy()
    basis = np.zeros((max(many), p))
    order: list[int] = []
    for step in range(max(many)):
        # What is nearly a combination of those taken can't be told from rounding.
        usable = left > 1e-9 * first
        usable[order] = False
        gain = np.where(usable, np.sum(rest**2, axis=1) / np.where(usable, left, 1.0), -1.0)
        gain[order] = -np.inf
        best = int(np.argmax(gain))
        row = gram[best].copy()
        row[best] = first[best]
        row = (row - basis[:step, best] @ basis[:step]) / np.sqrt(max(left[best], 1e-300))
        basis[step] = row
        left = left - row**2
        rest = rest - row[:, None] * (rest[best] / row[best])[None, :]
        order.append(best)
    found = [np.sort(np.asarray(order[:size])) for size in many]
    return found[0] if np.ndim(sizes) == 0 else found


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


def as_moments(gram: Any, name: str, matrix: Any) -> tuple[np.ndarray, np.ndarray]:
    """A Gram matrix `(p, p)` and a matrix `(p, q)` on the host in float64."""
    given = (("the Gram matrix", gram), (name, matrix))
    gram, matrix = (np.asarray(read_numbers(called, a), np.float64) for called, a in given)
    if matrix.ndim != 2:
        raise expected(f"{name} of shape (p, q)", f"shape {matrix.shape}")
    if gram.shape != (len(matrix), len(matrix)):
        raise expected(f"a Gram matrix of shape {(len(matrix),) * 2}", f"{gram.shape}")
    # In float32: what sums in it leave below zero is rounding.
    check_metric("Gram matrix", unit_diagonal(gram)[0].astype(np.float32), len(gram))
    check_finite(name, matrix)
    return gram, matrix


def unit_diagonal(
    gram: Float[np.ndarray, "p p"],
) -> tuple[Float[np.ndarray, "p p"], Float[np.ndarray, " p"]]:
    """`U G U` and the diagonal of `U = diag(G)^(-1/2)`: one ridge suits inputs in any units.

    `x W = (x U)(U⁻¹ W)` is the same. An input that is always zero keeps its row of zeros.
    """
    power = np.diag(gram)
    unit = 1 / np.sqrt(np.where(power > 0, power, 1.0))
    return gram * unit[:, None] * unit, unit


def sizes_of(sizes: Any, least: int, most: int, what: str) -> list[int]:
    """One size or several, as a list; refused where they are no integers from least to most."""
    array = np.atleast_1d(read("sizes", sizes))
    whole = array.ndim == 1 and array.size and np.issubdtype(array.dtype, np.integer)
    if not whole or array.min() < least or array.max() > most:
        raise expected(f"a number of {what} from {least} to {most}", f"{sizes!r:.60}")
    return array.tolist()


def backward(
    gram: Float[np.ndarray, "p p"], cross: Float[np.ndarray, "p q"], sizes: Sequence[int],
    alpha: float, protect: Sequence[int] = (), share: float = 0.02,
) -> dict[int, tuple[Int[np.ndarray, " size"], Float[np.ndarray, "size q"]]]:  # fmt: skip
    """Nested sets of kept indices by size, each with its ridge solution; see `select_observables`.

    `share` is that of the remaining observables that go in one step.
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
