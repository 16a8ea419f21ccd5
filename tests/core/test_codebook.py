"""Codebooks of numbers against all partitions into intervals."""

import itertools

import numpy as np
import pytest

from koopjax._core import _codebook, codebooks


def error_of(values, weights, book, codes):
    return float(np.sum(weights * (values - book[codes]) ** 2))


def least(values, weights, size):
    """The least error of all partitions of the sorted distinct numbers into intervals."""
    distinct, where = np.unique(values, return_inverse=True)
    mass = np.bincount(where, weights)
    n, best = len(distinct), np.inf
    for inner in itertools.combinations(range(1, n), min(size, n) - 1):
        error = 0.0
        for a, b in itertools.pairwise((0, *inner, n)):
            x, w = distinct[a:b], mass[a:b]
            # About a number of the interval, so that nothing cancels far from zero.
            mean = np.average(x - x[0], weights=w) if w.sum() > 0 else 0.0
            error += np.sum(w * (x - x[0] - mean) ** 2)
        best = min(best, error)
    return best


@pytest.mark.parametrize("seed", range(40))
def test_no_partition_is_better(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 11))
    values = np.round(rng.standard_t(2, size=n), int(rng.integers(0, 4)))  # duplicates, outliers
    values = values * 10.0 ** rng.integers(-8, 8) + rng.choice([0.0, 3e5])
    weights = rng.random(n) + 0.01
    sizes = [5, 1, 2, 3, 12]
    for size, (book, codes) in zip(sizes, codebooks(values, sizes, weights), strict=True):
        assert len(book) == min(size, len(np.unique(values)))
        assert np.all(np.diff(book) > 0)
        bound = least(values, weights, size) * (1 + 1e-9) + 1e-28 * np.max(values**2)
        assert error_of(values, weights, book, codes) <= bound


def test_tight_clusters_far_apart_keep_their_digits():
    rng = np.random.default_rng(1)
    parts = [1e7 + 1e-3 * rng.random(4), 1e-4 * rng.random(4), -40 + 1e-3 * rng.random(3)]
    values = np.concatenate(parts)
    for size in (3, 5, 7):
        ((book, codes),) = codebooks(values, [size])
        wanted = least(values, np.ones(11), size)
        np.testing.assert_allclose(error_of(values, 1.0, book, codes), wanted, rtol=1e-6)


def test_what_weighs_nothing_goes_to_the_nearest():
    values = np.array([0.0, 1.0, 1.1, 5.0, 5.2, 100.0])
    weights = np.array([0.0, 1.0, 1.0, 1.0, 3.0, 0.0])
    ((book, codes),) = codebooks(values, [2], weights)
    np.testing.assert_allclose(book, [1.05, 5.15])
    np.testing.assert_array_equal(codes, [0, 0, 0, 1, 1, 1])
    ((even, _),) = codebooks(values, [2], np.zeros(6))
    ((plain, _),) = codebooks(values, [2])
    np.testing.assert_array_equal(even, plain)


def test_units_and_order_do_not_matter():
    values = np.random.default_rng(2).normal(size=(20, 30))
    ((book, codes),) = codebooks(values, [9])
    for scale, rtol in ((2.0**-400, 0), (2.0**300, 0), (-0.3, 1e-13)):
        ((other, places),) = codebooks(values * scale, [9])
        np.testing.assert_allclose(other[places], book[codes] * scale, rtol=rtol)
    ((other, places),) = codebooks(values[::-1, ::-1], [9])
    np.testing.assert_array_equal(other, book)
    np.testing.assert_array_equal(places[::-1, ::-1], codes)


def test_zeros_are_kept_apart():
    values = np.array([[0.0, 0.1, -0.1], [4.0, 0.0, 5.0]])
    ((book, codes),) = codebooks(values, [3], keep_zero=True)
    np.testing.assert_allclose(book, [0, 0, 4.5], atol=1e-12)
    np.testing.assert_array_equal(codes, [[0, 1, 1], [2, 0, 2]])
    ((zero, codes),) = codebooks(np.zeros(3), [4], keep_zero=True)
    assert zero.tolist() == [0.0]
    assert codes.tolist() == [0, 0, 0]


@pytest.mark.parametrize("heavy", [False, True])
def test_merged_neighbours_come_near_the_optimum(monkeypatch, heavy):
    rng = np.random.default_rng(3)
    values = rng.standard_t(2, size=3000) if heavy else rng.normal(size=3000)
    (best,) = codebooks(values, [16])
    monkeypatch.setattr(_codebook, "EXACT", 16 * 1000)
    (merged,) = codebooks(values, [16])
    first, second = (error_of(values, 1.0, *found) for found in (best, merged))
    assert first <= second <= first * (1 + 2e-3)
    monkeypatch.setattr(_codebook, "MOST", 8)
    ((book, codes),) = codebooks(values, [16])
    assert len(book) <= 16
    assert error_of(values, 1.0, book, codes) < 1.5 * first
