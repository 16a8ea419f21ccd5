"""An order of rows or columns in which a TT matrix fits better: swaps that pay, by batches."""

import numpy as np

Host = np.ndarray
#: A swap has to gain this share of the energy of what is approximated.
LEAST_GAIN = 1e-9


def _gains(a: Host, k: Host, r: Host) -> Host:
    """How much `tr(A K) − 2 tr(R)` falls if two items trade slots, for every pair at once.

    `K` and `R` are in the present order of slots. The quadratic part is that of an assignment
    problem: `Σ_l (A_il − A_jl)(K_jl − K_il)` over the items that stay, counted twice for symmetry.
    """
    product = a @ k
    own, da, dk, dr = (np.diag(x) for x in (product, a, k, r))
    stay = product + product.T - own[:, None] - own[None, :]
    stay -= (da[:, None] - a) * (k - dk[:, None]) + (a - da[None, :]) * (dk[None, :] - k)
    change = 2 * stay + (da[:, None] - da[None, :]) * (dk[None, :] - dk[:, None])
    change -= 2 * (r + r.T - dr[:, None] - dr[None, :])
    return -change


def _disjoint(gains: Host, least: float) -> Host:
    """Pairs that gain, best first, no item in two of them: `(·, 2)`."""
    n = len(gains)
    first, second = np.triu_indices(n, 1)
    values = gains[first, second]
    best = np.flatnonzero(values > least)
    best = best[np.argsort(-values[best], kind="stable")][: 4 * n]
    used = np.zeros(n, bool)
    pairs = []
    for index in best:
        i, j = first[index], second[index]
        if not (used[i] or used[j]):
            used[[i, j]] = True
            pairs.append((i, j))
    return np.array(pairs, int).reshape(-1, 2)


def search(a: Host, k: Host, r: Host, energy: float, rounds: int = 4) -> tuple[Host, int]:
    """Slots for items, so that `tr(A K[p, p]) − 2 Σ_i R[i, p_i]` falls: local search by swaps.

    With `A = M`, `K = Tᵀ G T` and `R = M Wᵀ G T` this is the error of `T[:, p]` for the columns of
    `W` in the metric, but for a constant; with `A = G`, `K = T M Tᵀ`, `R = G W M Tᵀ` that of the
    rows. Each round takes the best disjoint swaps, and half as many until the sum falls.

    Args:
        a: `(n, n)` symmetric, over items.
        k: `(n, n)` symmetric, over slots.
        r: `(n, n)`, items by slots.
        energy: of what is approximated: swaps that gain less than `LEAST_GAIN` of it are left.
        rounds: at most so many batches of swaps; `2 n³` operations each.

    Returns:
        The slot of every item, `(n,)`, and how many swaps were made.
    """
    a, k, r = (np.asarray(x, np.float64) for x in (a, k, r))
    items = np.arange(len(a))

    def value(slots: Host) -> float:
        return float(np.vdot(a, k[np.ix_(slots, slots)]) - 2 * r[items, slots].sum())

    slots, swaps, batch = items.copy(), 0, len(a)
    now = value(slots)
    for _ in range(rounds):
        pairs = _disjoint(_gains(a, k[np.ix_(slots, slots)], r[:, slots]), LEAST_GAIN * energy)
        batch = min(2 * batch, len(pairs))
        trial, after = slots, now
        while batch:
            i, j = pairs[:batch].T
            trial = slots.copy()
            trial[i], trial[j] = slots[j], slots[i]
            after = value(trial)
            if after < now:
                break
            batch //= 2
        if not batch:
            break
        slots, now, swaps = trial, after, swaps + batch
    return slots, swaps
