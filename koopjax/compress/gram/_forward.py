"""Which observables to take: forward selection with the Gram matrix, each step refitted."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from koopjax.compress.gram._eliminate import moments_of, sizes_of


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
