"""Optimal brain surgeon against its definition: least squares on every smaller support."""

import itertools

import numpy as np
import pytest

from koopjax import compress
from koopjax.compress.gram._obs import activation_order, surgeon_stage


def moments(seed, p=6, q=3, n=200):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, p)) @ rng.normal(size=(p, p))
    return x.T @ x / n, rng.normal(size=(p, q))


def error_of(gram, w, v):
    return np.trace((w - v).T @ gram @ (w - v))


def oracle(gram, w, mask):
    """Least squares column by column, on the rows that the mask leaves."""
    out = np.zeros_like(w)
    for c in range(w.shape[1]):
        rows = np.flatnonzero(mask[:, c])
        out[rows, c] = np.linalg.solve(gram[np.ix_(rows, rows)], (gram @ w)[rows, c])
    return out


def test_the_refit_is_least_squares_on_the_mask():
    gram, w = moments(0)
    mask = np.random.default_rng(1).random(w.shape) < 0.5
    got = compress.refit(gram, gram @ w, mask, alpha=0.0)
    np.testing.assert_allclose(got, oracle(gram, w, mask), rtol=1e-6, atol=1e-7)


def test_the_saliency_is_what_the_error_rises_by():
    gram, w = moments(1)
    mask = np.random.default_rng(2).random(w.shape) < 0.7
    v, saliency = surgeon_stage(gram, gram @ w, mask, 1e-12)
    before = error_of(gram, w, v)
    for i, c in zip(*np.nonzero(mask), strict=True):
        smaller = mask.copy()
        smaller[i, c] = False
        rise = error_of(gram, w, oracle(gram, w, smaller)) - before
        np.testing.assert_allclose(saliency[i, c], rise, rtol=1e-6, atol=1e-9)


def test_the_order_is_near_the_best_support_of_each_size():
    gram, w = moments(3, p=7, q=1)
    removal = compress.removal_order(gram, w, alpha=0.0)
    for count in (2, 3, 4):
        errors = []
        for rows in itertools.combinations(range(7), count):
            mask = np.zeros((7, 1), bool)
            mask[list(rows)] = True
            errors.append(error_of(gram, w, oracle(gram, w, mask)))
        mine = error_of(gram, w, oracle(gram, w, removal.mask(count)))
        assert removal.mask(count).sum() == count
        assert mine <= 1.5 * min(errors) + 1e-12


def test_entries_go_one_by_one_as_brute_force_has_it():
    gram, w = moments(8, p=4, q=3)
    removal = compress.removal_order(gram, w, alpha=0.0)
    mask = np.ones(w.shape, bool)
    for place in range(w.size - 1):
        costs = {}
        for entry in zip(*np.nonzero(mask), strict=True):
            smaller = mask.copy()
            smaller[entry] = False
            costs[entry] = error_of(gram, w, oracle(gram, w, smaller))
        gone = min(costs, key=lambda entry: costs[entry])
        assert removal.rank[gone] == place
        mask[gone] = False


def test_errors_of_the_stages_are_those_of_the_refitted_rest():
    gram, w = moments(4, p=12, q=4)
    removal = compress.removal_order(gram, w, alpha=0.0, protect=(0,))
    whole = error_of(gram, w, 0 * w)
    for kept, error in zip(removal.kept, removal.error, strict=True):
        mask = removal.mask(int(kept))
        assert mask.sum() == kept
        assert mask[0].all()
        np.testing.assert_allclose(
            error, error_of(gram, w, oracle(gram, w, mask)) / whole, atol=1e-7
        )
    assert np.all(np.diff(removal.error) >= -1e-9)


def test_wanda_gives_up_the_same_share_of_every_column():
    gram, w = moments(5, p=10, q=4)
    rank = activation_order(gram, w)
    gone = rank < 20
    np.testing.assert_array_equal(gone.sum(0), [5, 5, 5, 5])
    score = np.abs(w) * np.sqrt(np.diag(gram))[:, None]
    for c in range(4):
        assert score[gone[:, c], c].max() < score[~gone[:, c], c].min()


def test_a_gram_matrix_of_another_size_is_refused():
    gram, w = moments(0)
    with pytest.raises(ValueError, match="Gram matrix of shape"):
        compress.removal_order(gram[:4, :4], w)


@pytest.mark.parametrize("gram", [[[1.0, 5.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, -1.0]]])
def test_what_is_no_gram_matrix_is_refused(gram):
    weights, mask = np.ones((2, 1)), np.ones((2, 1), bool)
    for call in (lambda: compress.refit(gram, weights, mask),
                 lambda: compress.removal_order(gram, weights)):  # fmt: skip
        with pytest.raises(ValueError, match=r"expected a .* Gram matrix"):
            call()
