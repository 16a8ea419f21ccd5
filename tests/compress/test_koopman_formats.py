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


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda g, w: formats.quantized(g, w, 9), "bits from 2 to 8"),
        (lambda g, w: formats.quantized(g[:3], w, 4), "the Gram matrix"),
    ],
)
def test_bad_input_gets_one_line(call, says):
    _, gram, w = problem()
    with pytest.raises(ValueError, match=says) as caught:
        call(gram, w)
    assert "\n" not in str(caught.value)
