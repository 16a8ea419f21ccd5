"""Pruning curves, forward selection and entries chosen in the softmax's metric, against NumPy."""

import itertools

import numpy as np
import pytest

from koopjax import compress, edmd


def problem(p=12, q=3, n=200, seed=0):
    """Correlated observables and outputs that few of them carry."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, p)) @ (np.eye(p) + 0.3 * rng.normal(size=(p, p)))
    x = x * np.geomspace(0.1, 10, p)
    k = rng.normal(size=(p, q)) * (rng.random((p, q)) < 0.4) / np.geomspace(0.1, 10, p)[:, None]
    return x, x @ k + 0.1 * rng.normal(size=(n, q))


def moments(x, y):
    """Gram matrix and cross moments."""
    return x.T @ x, x.T @ y


def error(x, y, k):
    """Squared error."""
    return float(np.sum((x @ k - y) ** 2))


def softmax(t):
    """Probabilities."""
    e = np.exp(t - t.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def test_dense_end_is_the_ridge_solution():
    """At a share of one all methods give the same matrix."""
    x, y = problem()
    gram, cross = moments(x, y)
    expected = np.linalg.solve(gram + 1e-3 * np.diag(np.diag(gram)), cross)
    for name, (k,) in compress.matrix_curves(gram, cross, [1.0], alpha=1e-3).items():
        np.testing.assert_allclose(k, expected, rtol=1e-8, atol=1e-10, err_msg=name)


def test_counts_and_order_of_shares():
    """Each matrix has the share of entries asked for, in the order asked."""
    x, y = problem()
    shares = [0.25, 1.0, 0.5]
    for curve in compress.matrix_curves(*moments(x, y), shares, alpha=1e-4).values():
        assert [np.count_nonzero(k) for k in curve] == [9, 36, 18]


def test_magnitude_keeps_the_largest():
    """Entries as they are, the least left out."""
    x, y = problem()
    curves = compress.matrix_curves(*moments(x, y), [1.0, 0.5], alpha=1e-4, methods=["magnitude"])
    dense, half = curves["magnitude"]
    kept = half != 0
    assert np.abs(dense[kept]).min() >= np.abs(dense[~kept]).max()
    np.testing.assert_array_equal(half[kept], dense[kept])


def test_wanda_weighs_by_the_observables():
    """In each column those of largest |K| times the root mean square."""
    x, y = problem()
    gram, cross = moments(x, y)
    dense, half = compress.matrix_curves(gram, cross, [1.0, 0.5], alpha=1e-4, methods=["wanda"])[
        "wanda"
    ]
    score = np.abs(dense) * np.sqrt(np.diag(gram))[:, None]
    for column in range(3):
        best = np.sort(np.argsort(-score[:, column])[:6])
        np.testing.assert_array_equal(np.flatnonzero(half[:, column]), best)


def test_obs_takes_the_least_entry_first():
    """The first entry to go is the one whose loss costs least of all, found by trying each."""
    x, y = problem(p=6, q=2)
    gram, cross = moments(x, y)
    (k,) = compress.matrix_curves(gram, cross, [11 / 12], alpha=0.0, methods=["obs"])["obs"]
    costs = {}
    for i, c in itertools.product(range(6), range(2)):
        rows = np.delete(np.arange(6), i)
        fit = np.linalg.lstsq(x[:, rows], y[:, c], rcond=None)[0]
        costs[i, c] = np.sum((x[:, rows] @ fit - y[:, c]) ** 2)
        full = np.linalg.lstsq(x, y[:, c], rcond=None)[0]
        costs[i, c] -= np.sum((x @ full - y[:, c]) ** 2)
    gone = tuple(int(v[0]) for v in np.nonzero(k == 0))
    assert gone == min(costs, key=costs.get)


def test_obs_refits_and_wins():
    """Each column is the ridge solution on its rows; the error is below both others'."""
    x, y = problem(p=30, q=4, n=400)
    gram, cross = moments(x, y)
    curves = compress.matrix_curves(gram, cross, [0.3], alpha=1e-6)
    (k,) = curves["obs"]
    for column in range(4):
        rows = np.flatnonzero(k[:, column])
        system = gram[np.ix_(rows, rows)] + 1e-6 * np.diag(np.diag(gram)[rows])
        expected = np.linalg.solve(system, cross[rows, column])
        np.testing.assert_allclose(k[rows, column], expected, rtol=1e-6)
    assert error(x, y, k) < min(error(x, y, curves[name][0]) for name in ("magnitude", "wanda"))


def test_a_dead_observable_goes_first():
    """One that is always zero has no coefficient, and no division by zero."""
    x, y = problem()
    x[:, 4] = 0
    for curve in compress.matrix_curves(*moments(x, y), [1.0, 0.5], alpha=1e-3).values():
        assert all(np.all(np.isfinite(k)) and not k[4].any() for k in curve)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shares": [0.0]}, "shares"),
        ({"shares": [1.5]}, "shares"),
        ({"alpha": -1.0}, "ridge"),
        ({"methods": ["svd"]}, "methods among"),
        ({"cross": np.ones((5, 2))}, "Gram matrix"),
    ],
)
def test_bad_arguments_of_curves(change, message):
    """One line each."""
    x, y = problem()
    gram, cross = moments(x, y)
    given = {"gram": gram, "cross": cross, "shares": [0.5], "alpha": 1e-3, **change}
    with pytest.raises(ValueError, match=message) as caught:
        compress.matrix_curves(**given)
    assert "\n" not in str(caught.value)


def statistics(x, y):
    """As `edmd.Gram`."""
    gram, cross = moments(x, y)
    return edmd.Gram(gram, cross, y.T @ y, np.float64(len(x)))


def test_forward_selection_is_greedy():
    """Each step takes the observable whose addition leaves the least residual."""
    x, y = problem(p=8, q=2)
    found = compress.select_forward(statistics(x, y), [1, 2, 3, 4])
    taken = []
    for rows in found:
        left = {i: error(x, y, pad(x, y, [*taken, i])) for i in range(8) if i not in taken}
        taken.append(min(left, key=left.get))
        np.testing.assert_array_equal(rows, np.sort(taken))


def pad(x, y, rows):
    """Least squares on some observables, as a matrix of all rows."""
    k = np.zeros((x.shape[1], y.shape[1]))
    k[rows] = np.linalg.lstsq(x[:, rows], y, rcond=None)[0]
    return k


def test_forward_selection_takes_a_copy_last():
    """An observable that repeats another adds nothing."""
    x, y = problem(p=6, q=2)
    x[:, 5] = x[:, 0]
    rows = compress.select_forward(statistics(x, y), 5)
    assert not {0, 5} <= set(rows.tolist())
    with pytest.raises(ValueError, match="from 1 to 6"):
        compress.select_forward(statistics(x, y), 7)


def test_softmax_moments_against_a_loop():
    """Sums over samples of ψψᵀ and the metric, one sample at a time in float64."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(40, 4)).astype(np.float32)
    t = 3 * rng.normal(size=(40, 3)).astype(np.float32)
    h, r = compress.softmax_moments(x, t, temperature=2.0, floor=0.1, certain=0.9)
    centred = t.astype(np.float64) - t.mean(1, keepdims=True)
    expected_h, expected_r = np.zeros((4, 3, 4, 3)), np.zeros((4, 3))
    for row, logits, pi in zip(x, centred, softmax(centred / 2), strict=True):
        metric = 0.1 * (np.eye(3) - 1 / 3)
        if pi.max() <= 0.9:
            metric = metric + np.diag(pi) - np.outer(pi, pi)
        expected_h += np.einsum("i,j,ab->iajb", row, row, metric)
        expected_r += np.outer(row, metric @ logits)
    np.testing.assert_allclose(h, expected_h, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(r, expected_r, rtol=1e-4, atol=1e-4)


def metric_problem():
    """Moments of a problem whose columns are coupled."""
    rng = np.random.default_rng(4)
    x = rng.normal(size=(300, 5))
    t = x @ (rng.normal(size=(5, 3)) * (rng.random((5, 3)) < 0.5)) + 0.3 * rng.normal(size=(300, 3))
    return compress.softmax_moments(x, t, temperature=1.0, floor=0.1)


def loss_on(h, r, kept, alpha):
    """Least of `k·H k − 2 r·k` plus ridge on some entries."""
    size = r.size
    flat = h.reshape(size, size)
    system = flat[np.ix_(kept, kept)] + alpha * np.diag(np.diag(flat)[kept])
    k = np.linalg.solve(system, r.ravel()[kept])
    return -float(r.ravel()[kept] @ k), k


def test_entries_go_one_by_one_at_least_loss():
    """The first to go is that whose loss costs least of all; what stays is refitted."""
    h, r = metric_problem()
    k = compress.select_entries(h, r, 14, alpha=1e-3)
    every = np.arange(15)
    costs = [loss_on(h, r, np.delete(every, e), 1e-3)[0] for e in every]
    (gone,) = np.flatnonzero(k.ravel() == 0)
    assert gone == int(np.argmin(costs))
    np.testing.assert_allclose(
        np.delete(k.ravel(), gone), loss_on(h, r, np.delete(every, gone), 1e-3)[1], rtol=1e-6
    )


def test_entries_are_nested_and_in_the_order_asked():
    """Fewer entries are some of those of a larger number."""
    h, r = metric_problem()
    few, many = compress.select_entries(h, r, [4, 9])
    assert np.count_nonzero(few) == 4
    assert np.count_nonzero(many) == 9
    assert np.all((few != 0) <= (many != 0))


def test_a_common_offset_is_free():
    """Where the metric sees no offset of a row, a constant row can be dropped at no loss."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(200, 2))
    t = x @ np.array([[2.0, 2.0, 2.0], [1.0, 0.0, 0.0]])
    k = compress.select_entries(*compress.softmax_moments(x, t), 1, alpha=1e-6)
    np.testing.assert_allclose(k[1, 0], 1.0, rtol=1e-3)


def test_bad_arguments_of_entries():
    """One line each."""
    h, r = metric_problem()
    with pytest.raises(ValueError, match="entries from 1 to 15"):
        compress.select_entries(h, r, 16)
    with pytest.raises(ValueError, match="moments of shapes"):
        compress.select_entries(h[:2], r, 3)
    with pytest.raises(ValueError, match="temperature"):
        compress.softmax_moments(np.ones((3, 2)), np.ones((3, 2)), temperature=0.0)
    with pytest.raises(ValueError, match="observables"):
        compress.softmax_moments(np.ones((3, 2)), np.ones((4, 2)))


@pytest.mark.slow
def test_entries_beat_rows_on_digits(digits, network):
    """At equal numbers of values, entries in the softmax's metric agree with the network more."""
    import jax.numpy as jnp
    from flax import nnx

    from koopjax import observables

    states = lambda a: np.asarray(nnx.relu(network.layers[0](jnp.asarray(a))))
    h, h_val = states(digits.x_train), states(digits.x_val)
    logits = np.asarray(network(jnp.asarray(digits.x_train)))
    wanted = np.argmax(np.asarray(network(jnp.asarray(digits.x_val))), 1)
    psi = observables.Monomials(2)
    centred = logits - logits.mean(1, keepdims=True)
    stats = edmd.accumulate(psi, h, centred, target=observables.Identity())
    gram = stats.to_gram().gram
    alpha = 1e-3 * float(np.trace(gram)) / len(gram)
    rows, few = compress.select_observables(stats, [120, 40], alpha=alpha)
    k = np.asarray(edmd.unwrap(edmd.solve(stats.select(few), edmd.Ridge(alpha)), allow=(1, 2, 3)))
    moments = compress.softmax_moments(np.asarray(psi(h))[:, rows], logits)
    entries = compress.select_entries(*moments, 400)
    lifted = np.asarray(psi(h_val))
    agree = lambda out: float(np.mean(np.argmax(out, 1) == wanted))
    assert agree(lifted[:, rows] @ entries) >= agree(lifted[:, few] @ k)
    assert agree(lifted[:, rows] @ entries) > 0.9
