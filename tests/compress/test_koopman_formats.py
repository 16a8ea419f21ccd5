"""Forms of a matrix in its Gram metric against plain rounding and brute force in NumPy."""

import itertools

import numpy as np
import pytest

from koopjax.compress import koopman_formats as formats


def problem(seed=0, n=80, p=7, q=3):
    random = np.random.default_rng(seed)
    x = random.normal(size=(n, p)) @ random.normal(size=(p, p))
    return x, x.T @ x, random.normal(size=(p, q)) * random.uniform(0.2, 3, size=(p, 1))


def test_the_error_is_that_of_the_products():
    x, gram, w = problem()
    v = np.round(w)
    np.testing.assert_allclose(formats.gram_error(gram, w, v), np.sum((x @ (w - v)) ** 2, axis=0))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("seed", range(4))
def test_error_feedback_beats_rounding(bits, seed):
    _, gram, w = problem(seed, p=20)
    codes, scale = formats.quantized(gram, w, bits)
    most = 2 ** (bits - 1) - 1
    assert codes.dtype == np.int8
    assert np.abs(codes).max() <= most
    step = np.abs(w).max(axis=0) / most
    plain = formats.gram_error(gram, w, np.rint(w / step) * step)
    fed = formats.gram_error(gram, w, codes * scale.astype(np.float64))
    assert np.all(fed <= plain * (1 + 1e-5))
    assert fed.sum() < 0.7 * plain.sum()


def test_a_grid_of_two_bits_comes_near_the_best_of_all():
    _, gram, w = problem(5, p=4, q=1)
    codes, scale = formats.quantized(gram, w, 2)
    best = min(
        formats.gram_error(gram, w, scale * np.array(c)[:, None]).sum()
        for c in itertools.product((-1, 0, 1), repeat=4)
    )
    found = formats.gram_error(gram, w, codes * scale.astype(np.float64)).sum()
    assert best <= found <= 2 * best


@pytest.mark.parametrize("size", [1, 3, 8])
def test_a_codebook_beats_k_means_of_the_entries(size):
    _, gram, w = problem(1, p=16)
    book = formats.clustered(gram, w, size)
    assert book.values.shape == (size,)
    assert np.all(np.diff(book.values) >= 0)
    values = np.linspace(w.min(), w.max(), size)
    for _ in range(50):
        codes = np.argmin(np.abs(w[..., None] - values), axis=2)
        used = [w[codes == k] for k in range(size)]
        values = np.array([u.mean() if u.size else v for u, v in zip(used, values, strict=True)])
    plain = formats.gram_error(gram, w, values[codes]).sum()
    assert formats.gram_error(gram, w, book.matrix).sum() <= (1 if size == 1 else 0.95) * plain


def test_exact_values_and_rows_are_found_again():
    _, gram, w = problem(2, p=12)
    few = np.array([-1.0, 0.5, 2.0])[np.random.default_rng(0).integers(0, 3, (12, 3))]
    np.testing.assert_allclose(formats.clustered(gram, few, 3).matrix, few, atol=1e-9)
    labels = np.array([0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2])
    found = formats.grouped_rows(gram, w[:3][labels], 3)
    np.testing.assert_allclose(found.matrix, w[:3][labels], atol=1e-6)
    left, right = found.factors
    np.testing.assert_allclose(left @ right, found.matrix)


def test_grouped_rows_are_refitted():
    _, gram, w = problem(3, p=15)
    found = formats.grouped_rows(gram, w, 5)
    assert found.rows.shape == (5, 3)
    sums = np.stack([w[found.labels == g].mean(axis=0) for g in range(5)])
    least = formats.gram_error(gram, w, found.matrix).sum()
    assert least < formats.gram_error(gram, w, sums[found.labels]).sum()
    z = np.eye(5)[found.labels]
    want = np.linalg.lstsq(np.linalg.cholesky(gram).T @ z, np.linalg.cholesky(gram).T @ w)[0]
    np.testing.assert_allclose(found.rows, want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda g, w: formats.quantized(g, w, 9), "bits from 2 to 8"),
        (lambda g, w: formats.quantized(g[:3], w, 4), "the Gram matrix"),
        (lambda g, w: formats.clustered(g, w, 0), "at least one value"),
        (lambda g, w: formats.grouped_rows(g, w, 8), "groups from 1 to 7"),
    ],
)
def test_bad_input_gets_one_line(call, says):
    _, gram, w = problem()
    with pytest.raises(ValueError, match=says) as caught:
        call(gram, w)
    assert "\n" not in str(caught.value)
