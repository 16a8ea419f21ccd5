"""Malformed arguments of operators and blocks: one line that says what was expected."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from koopjax import edmd, nn, observables as ob

KEY = jax.random.key(0)
M = np.ones((4, 3), np.float32)
X = np.ones((5, 4), np.float32)
Z = np.ones((4, 3), np.int8)

CALLS = {
    "a width that is a function": (lambda: nn.Dense.create(KEY, 4, len), "q as a whole number"),
    "a width of bytes": (lambda: nn.LowRank.create(KEY, b"4", 4, 2), "p as a whole number"),
    "no rank": (lambda: nn.LowRank.create(KEY, 4, 4, 0), "rank as a whole number"),
    "a seed for a key": (lambda: nn.Dense.create("seed", 4, 4), "one random key"),
    "a dtype in capitals": (lambda: nn.Dense.create(KEY, 4, 4, param_dtype="BF16"), "a floating"),
    "a precision in capitals": (lambda: nn.Dense(M, precision="HIGH"), "a precision"),
    "text": (lambda: nn.Dense("matrix"), "numbers as matrix"),
    "nothing": (lambda: nn.Dense(None), "numbers as matrix"),
    "beyond float32": (lambda: nn.Sparse.from_dense(np.diag([1e200, 1.0])), "fit in float32"),
    "masked": (lambda: nn.LowRank(np.ma.masked_less(M, 2), M.T), "masked"),
    "a number of parts": (lambda: nn.KoopmanBlock(ob.Identity(), M, trainable=0.5), "trainable"),
    "bits as text": (lambda: nn.Quantized.from_dense(M, "4"), "bits as a whole number"),
    "an axis in a list": (lambda: nn.Quantized.from_dense(M, 4, ["row"]), "an axis among"),
    "one number for a shape": (lambda: nn.Sparse([1.0], [0], [0], 4), "a shape"),
    "modes as text": (lambda: nn.TT.create(KEY, (2, 2), "31", 2), "column modes"),
    "half a mode": (lambda: nn.TT.create(KEY, (2, 1.5), (1, 2), 2), "each row mode"),
    "no cores": (lambda: nn.TT(3), "cores as a sequence"),
    "no scale": (lambda: nn.Quantized(Z, None), "numbers"),
    "a long bias": (lambda: nn.Dense(M, np.ones(4)), "a bias of shape"),
    "states as text": (lambda: nn.Dense(M)("x"), "numbers as x"),
    "beyond float16": (lambda: nn.Dense(1e6 * M, param_dtype=jnp.float16), "matrix as float16"),
    "half a step": (lambda: nn.from_koopman(3, steps=0.5), "steps as a whole number"),
    "no fit": (lambda: nn.from_koopman(3), "a fit such as"),
}


@pytest.mark.parametrize("name", CALLS)
def test_one_line_says_what_was_expected(name):
    call, words = CALLS[name]
    with pytest.raises(ValueError, match=f"expected.*{words}|{words}"):
        call()


def test_a_matrix_of_integers_is_quantized_as_numbers():
    whole = np.array([[1, -2, 0], [3, 100, 7]])
    made = nn.Quantized.from_dense(whole)
    np.testing.assert_allclose(made.to_dense(), whole, atol=0.5 * 100 / 127)


def test_big_endian_and_lists_are_arrays():
    swapped = M.astype(">f4") * 2
    np.testing.assert_array_equal(nn.Dense(swapped)(X), X @ (2 * M))
    made = nn.LowRank([[1.0], [2.0]], [[3.0, 4.0]], jnp.zeros(2))
    np.testing.assert_array_equal(made(np.ones(2, np.float32)), [9, 12])


OPERATORS = {
    "dense": nn.Dense(M), "low rank": nn.LowRank(M, M.T), "sparse": nn.Sparse.from_dense(M),
    "clustered": nn.Clustered.from_dense(M, 2), "quantized": nn.Quantized.from_dense(M),
    "tt": nn.TT([np.ones((1, 4, 3, 1), np.float32)]),
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATORS)
def test_the_input_of_every_operator_comes_by_one_door(name):
    operator, wide = OPERATORS[name], X.astype(np.longdouble)
    np.testing.assert_array_equal(operator(X.astype(">f4")), operator(X))
    np.testing.assert_array_equal(operator(wide), operator(X))
    for bad, words in ((X.astype(int) + 2**40, "fit in int32"), (1e39 * wide, "fit in float32"),
                       (np.ma.masked_greater(X, 0), "masked"),
                       (X.astype(ml_dtypes.float8_e4m3fn), "16 bits")):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            operator(bad)


def test_a_far_fit_is_no_layer_of_single_precision():
    x = np.random.default_rng(0).uniform(-1, 1, (100, 2)) + 1e8
    psi = ob.Compose(ob.Standardize.fit(x), ob.Monomials(1))
    fit = edmd.fit(psi, x, x - 1e8, target=ob.Identity())
    with pytest.raises(ValueError, match="spread float32 holds"):
        nn.from_koopman(fit)(x)
