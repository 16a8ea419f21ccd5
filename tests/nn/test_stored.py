"""Sparse, clustered and quantised operators against the dense matrix in float64 NumPy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings, strategies as st

from koopjax import nn, observables

P, Q = 30, 7
RNG = np.random.default_rng(0)
MATRIX = np.where(RNG.random((P, Q)) < 0.4, RNG.normal(size=(P, Q)), 0).astype(np.float32)
BIAS = RNG.normal(size=Q).astype(np.float32)
X = RNG.normal(size=(11, P)).astype(np.float32)
MAKERS = {
    "sparse": lambda bias, **s: nn.Sparse.from_dense(MATRIX, bias, **s),
    "clustered": lambda bias, **s: nn.Clustered.from_dense(MATRIX, 6, bias, **s),
    "clustered_dense": lambda bias, **s: nn.Clustered.from_dense(MATRIX + 3, 6, bias, **s),
    "quantized": lambda bias, **s: nn.Quantized.from_dense(MATRIX, 8, None, bias, **s),
    "quantized_column": lambda bias, **s: nn.Quantized.from_dense(MATRIX, 4, "column", bias, **s),
    "quantized_row": lambda bias, **s: nn.Quantized.from_dense(MATRIX, 8, "row", bias, **s),
}
FORMS = list(MAKERS)


def host(variable, dtype=None):
    return np.asarray(variable.get_value(), dtype)


def stored(form, bias=BIAS, **extra):
    return MAKERS[form](bias, **extra)


def wide(operator):
    """The matrix from the arrays alone, in float64."""
    held = {
        name: np.asarray(getattr(operator, name).get_value(), np.float64)
        for name in operator.arrays
        if name != "bias"
    }
    if isinstance(operator, nn.Sparse):
        out = np.zeros(operator.shape)
        for value, i, j in zip(held["values"], held["rows"], held["columns"], strict=True):
            out[int(i), int(j)] = value
        return out
    if isinstance(operator, nn.Clustered):
        return held["codebook"][held["codes"].astype(int)]
    return held["codes"] * held["scale"]


@jax.jit
def run(operator, *inputs):
    """What a module gives for several inputs, in one program."""
    return [operator(x) for x in inputs]


def oracle(operator, x):
    out = np.asarray(x, np.float64) @ wide(operator)
    return out if operator.bias is None else out + host(operator.bias, np.float64)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bias", [None, BIAS])
def test_an_operator_is_its_matrix(form, bias):
    operator = stored(form, bias)
    whole, one, several, none = run(operator, X, X[0], np.stack([X, X]), X[:0])
    np.testing.assert_allclose(whole, oracle(operator, X), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(operator.to_dense(), wide(operator), rtol=1e-6)
    assert (operator.in_features, operator.out_features) == (P, Q)
    assert operator.use_bias == (bias is not None)
    np.testing.assert_allclose(one, whole[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(several, np.stack([whole, whole]), rtol=1e-5, atol=1e-5)
    assert none.shape == (0, Q)
    with pytest.raises(ValueError, match=f"expected {P} observables"):
        operator(X[:, 1:])


@pytest.mark.parametrize("n", [1, 3, 4096])
def test_both_ways_to_multiply_sparsely_agree(n):
    x = np.random.default_rng(n).normal(size=(n, P)).astype(np.float32)
    operator = nn.Sparse.from_dense(MATRIX, BIAS)
    nonzero = int(np.count_nonzero(MATRIX))
    assert operator.nonzero == nonzero
    assert operator.flops(n) == 2 * n * (P * Q if n == 4096 else nonzero)
    np.testing.assert_allclose(run(operator, x)[0], oracle(operator, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("n", [2, 600])
def test_gradients_are_those_of_the_dense_matrix(form, n):
    operator = stored(form)
    x = np.random.default_rng(1).normal(size=(n, P)).astype(np.float32)
    weight = np.random.default_rng(2).normal(size=(n, Q)).astype(np.float32)
    loss = lambda m, x: jnp.sum(m(x) * weight)
    grads, slope = nnx.jit(lambda m, x: (nnx.grad(loss)(m, x), jax.grad(loss, 1)(m, x)))(
        operator, x
    )
    dense = np.asarray(x, np.float64).T @ np.asarray(weight, np.float64)
    expect = {"bias": weight.sum(0)}
    if isinstance(operator, nn.Sparse):
        expect["values"] = dense[host(operator.rows), host(operator.columns)]
    elif isinstance(operator, nn.Clustered):
        codes = host(operator.codes)
        expect["codebook"] = np.bincount(codes.ravel(), dense.ravel(), operator.size)
        if operator.zero:
            expect["codebook"][0] = 0
    else:
        product = dense * host(operator.codes, np.float64)
        axes = tuple(k for k in (0, 1) if operator.scale.shape[k] == 1)
        expect["scale"] = product.sum(axes, keepdims=True)
    assert set(grads) == set(expect)
    for name, value in expect.items():
        top = np.abs(value).max()
        np.testing.assert_allclose(
            np.asarray(grads[name].get_value()), value, rtol=1e-4, atol=1e-5 * top
        )
    np.testing.assert_allclose(slope, weight @ wide(operator).T, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_transformations(form):
    operator = stored(form)
    expect = operator(X)
    graph, params, rest = nnx.split(operator, nnx.Param, ...)

    @jax.jit
    def everything(params, x):
        merged = lambda p: nnx.merge(graph, p, rest)
        lanes = jax.tree.map(lambda a: jnp.stack([a, 2 * a]), params)
        both = jax.vmap(lambda p: merged(p)(x))(lanes)
        return merged(params)(x), jax.vmap(merged(params))(x), both[0], both[1] / 2

    for found in everything(params, X):
        np.testing.assert_allclose(found, expect, rtol=1e-5, atol=1e-5)
    frozen = nn.freeze(operator)
    assert not jax.tree.leaves(nnx.state(frozen, nnx.Param))
    assert nnx.split(nn.unfreeze(frozen))[0] == nnx.split(operator)[0]


@pytest.mark.parametrize("form", FORMS)
def test_training_moves_the_numbers_and_not_the_places(form):
    operator = stored(form)
    before = {name: np.array(getattr(operator, name).get_value()) for name in operator.arrays}
    optimizer = nnx.Optimizer(operator, optax.adamw(1e-3), wrt=nnx.Param)
    loss = lambda m: jnp.mean((m(X) - 1.0) ** 2)

    @nnx.jit
    def step(operator, optimizer):
        value, grads = nnx.value_and_grad(loss)(operator)
        optimizer.update(operator, grads)
        return value

    losses = [float(step(operator, optimizer)) for _ in range(10)]
    assert losses[-1] < losses[0]
    for name, value in before.items():
        same = np.array_equal(value, getattr(operator, name).get_value())
        assert same == (name in ("rows", "columns", "codes"))
    if form in ("sparse", "clustered", "quantized_row"):
        np.testing.assert_array_equal(np.asarray(operator.to_dense())[MATRIX == 0], 0.0)


@pytest.mark.parametrize("form", FORMS)
def test_dtypes_follow_the_conventions_of_flax_layers(form):
    half = stored(form, param_dtype=jnp.bfloat16)
    assert half.bias.dtype == jnp.bfloat16
    shapes = jax.eval_shape(lambda m: (m(X.astype(jnp.bfloat16)), m.to_dense(), m(X)), half)
    assert [made.dtype for made in shapes] == [jnp.bfloat16, jnp.bfloat16, jnp.float32]
    assert stored(form, dtype=jnp.float16)(X).dtype == jnp.float16
    with jax.enable_x64(True):
        x, operator = X.astype(np.float64), stored(form)
        (found,) = run(operator, x)
        assert found.dtype == jnp.float64
        np.testing.assert_allclose(found, oracle(operator, x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_blocks_and_stacks_and_parity_with_linen(form):
    psi = observables.Compose(observables.Project(jnp.eye(P)[:, :P]), observables.Identity())
    for trainable in (True, False, "operator", "dictionary"):
        block = nn.KoopmanBlock(psi, stored(form), trainable=trainable)
        np.testing.assert_allclose(block(X), oracle(block.operator, X), rtol=1e-5, atol=1e-5)
        module, variables = nn.linen.from_nnx(block)
        np.testing.assert_array_equal(module.apply(variables, X), block(X))
        back = nn.linen.to_nnx(module, variables)
        assert nnx.split(back)[0] == nnx.split(block)[0]
        np.testing.assert_array_equal(back(X), block(X))
        fresh = module.init(jax.random.key(0), X)
        assert jax.tree.structure(fresh) == jax.tree.structure(variables)
        for kind in jax.tree.leaves(fresh.get("params", {})):
            assert jnp.issubdtype(kind.dtype, jnp.floating)
        np.testing.assert_array_equal(module.apply(fresh, X), block(X))
        again = nn.linen.from_nnx(block)[0]
        assert again == module
        assert hash(again) == hash(module)
        np.testing.assert_allclose(
            jax.jit(module.apply)(variables, X), block(X), rtol=1e-5, atol=1e-5
        )
    with pytest.raises(ValueError, match="expected features=7, those of stored, got 3"):
        nn.linen.KoopmanBlock(psi, 3, stored=stored(form)).init(jax.random.key(0), X)
    stack = nn.Stack([stored(form), nn.Dense(jnp.ones((Q, 2)))], ("relu",))
    expect = np.maximum(oracle(stack.operators[0], X), 0).sum(1)
    np.testing.assert_allclose(stack(X)[:, 0], expect, rtol=1e-4, atol=1e-4)


def test_a_linen_block_on_stored_numbers_trains():
    module, variables = nn.linen.from_nnx(
        nn.KoopmanBlock(observables.Identity(), stored("clustered"))
    )
    params, frozen = variables["params"], variables["frozen"]
    loss = lambda p: jnp.var(jnp.asarray(module.apply({"params": p, "frozen": frozen}, X)))
    grads = jax.grad(loss)(params)
    less = optax.apply_updates(params, jax.tree.map(lambda g: -0.01 * g, grads))
    assert loss(less) < loss(params)


def test_coordinates_in_any_order():
    order = np.random.default_rng(0).permutation(np.count_nonzero(MATRIX))
    rows, columns = np.nonzero(MATRIX)
    values = MATRIX[rows, columns]
    operator = nn.Sparse(values[order], rows[order], columns[order], MATRIX.shape)
    np.testing.assert_array_equal(operator.values.get_value(), values)
    np.testing.assert_array_equal(operator.to_dense(), MATRIX)
    assert operator.rows.dtype == operator.columns.dtype == jnp.uint8
    big = nn.Sparse.from_dense(np.eye(256, 300, dtype=np.float32))
    assert (big.rows.dtype, big.columns.dtype) == (jnp.uint8, jnp.uint16)
    np.testing.assert_array_equal(big.to_dense(), np.eye(256, 300))
    whole, last = run(big, np.eye(256, dtype=np.float32), np.eye(256, dtype=np.float32)[255])
    np.testing.assert_array_equal(whole, np.eye(256, 300))
    np.testing.assert_array_equal(last, np.eye(256, 300)[255])
    none = nn.Sparse.from_dense(np.zeros((4, 3), np.float32))
    for made in run(none, np.ones((2, 4), np.float32), np.ones((2000, 4), np.float32)):
        np.testing.assert_array_equal(made, np.zeros((len(made), 3)))


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 12),
    st.sampled_from([1, 7, 50]),
    st.floats(0, 0.9),
    st.booleans(),
    st.integers(0, 2**30),
)
def test_k_means_is_a_fixed_point_and_keeps_zeros(size, n, sparsity, weighted, seed):
    rng = np.random.default_rng(seed)
    matrix = np.where(rng.random((n, 3)) < sparsity, 0, np.round(rng.normal(size=(n, 3)), 1))
    matrix = matrix.astype(np.float32)
    weights = rng.random((n, 3)) if weighted else np.ones((n, 3))
    zeros = matrix == 0
    size = max(size, 1 + int(zeros.any() and not zeros.all()))
    operator = nn.Clustered.from_dense(matrix, size, weights=weights)
    book, codes = (
        host(operator.codebook, np.float64),
        host(operator.codes),
    )
    out = book[codes]
    np.testing.assert_array_equal(out == 0, zeros | (out == 0))
    np.testing.assert_array_equal(out[zeros], 0.0)
    assert operator.zero == bool(zeros.any())
    assert operator.size <= size
    free = book[int(operator.zero) :]
    assert np.all(np.diff(free) > 0)
    others = matrix[~zeros].astype(np.float64)
    if len(others) == 0:
        return
    distance = np.abs(others[:, None] - free)
    np.testing.assert_allclose(np.abs(others - out[~zeros]), distance.min(1), atol=1e-5)
    if len(np.unique(others)) <= size - operator.zero:
        np.testing.assert_array_equal(out, matrix)
    for k in range(int(operator.zero), operator.size):
        mine = codes == k
        if weights[mine].sum() > 0:
            mean = np.average(matrix[mine].astype(np.float64), weights=weights[mine])
            np.testing.assert_allclose(book[k], mean, rtol=1e-5, atol=1e-5)


def test_k_means_is_near_the_best():
    values = np.random.default_rng(4).normal(size=4000)
    errors = {}
    for size in (2, 4, 16):
        operator = nn.Clustered.from_dense(values.reshape(80, 50).astype(np.float32), size)
        errors[size] = np.mean((np.asarray(operator.to_dense()).ravel() - values) ** 2)
    # Lloyd-Max quantisers of the normal distribution
    np.testing.assert_allclose(errors[2], 0.3634, rtol=0.03)
    np.testing.assert_allclose(errors[4], 0.1175, rtol=0.04)
    np.testing.assert_allclose(errors[16], 0.0095, rtol=0.08)


def test_no_codebook_of_its_size_is_better():
    rng = np.random.default_rng(5)
    matrix = np.concatenate([rng.normal(size=9), [0, 0, 30.0, -70, 71, 69]]).reshape(3, 5)
    others = np.sort(matrix[matrix != 0])
    operator = nn.Clustered.from_dense(matrix.astype(np.float32), 5)
    assert operator.codebook.get_value().dtype == jnp.float32
    least = min(
        sum(np.sum((part - part.mean()) ** 2) for part in np.split(others, inner))
        for inner in itertools.combinations(range(1, len(others)), 3)
    )
    error = np.sum((np.asarray(operator.to_dense(), np.float64) - matrix) ** 2)
    np.testing.assert_allclose(error, least, rtol=1e-5)


def test_integers_have_means_too():
    operator = nn.Clustered.from_dense(np.array([[1, 2], [9, 10]]), 2)
    np.testing.assert_allclose(operator.to_dense(), [[1.5, 1.5], [9.5, 9.5]])


def test_weights_draw_the_codebook():
    matrix = np.linspace(-1, 1, 200, dtype=np.float32).reshape(20, 10)
    weights = np.where(matrix > 0.5, 100.0, 1e-3)
    book = np.asarray(nn.Clustered.from_dense(matrix, 4, weights=weights).codebook.get_value())
    assert np.sum(book > 0.45) >= 3


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("axis", [None, "column", "row"])
def test_rounding_is_within_half_a_scale(bits, axis):
    operator = nn.Quantized.from_dense(MATRIX, bits, axis)
    codes, scale = host(operator.codes), host(operator.scale)
    most = 2 ** (bits - 1) - 1
    assert codes.dtype == np.int8
    assert np.abs(codes).max() == most
    assert scale.shape == {None: (1, 1), "column": (1, Q), "row": (P, 1)}[axis]
    assert np.all(np.abs(wide(operator) - MATRIX) <= 0.5001 * scale)
    np.testing.assert_array_equal(codes[MATRIX == 0], 0)
    again = nn.Quantized.from_dense(np.asarray(operator.to_dense()), bits, axis)
    np.testing.assert_array_equal(again.codes.get_value(), codes)


def test_errors_say_what_was_expected():
    ones = np.ones(2, np.float32)
    cases = [
        (
            lambda: nn.Sparse(ones, np.array([0, 3]), np.arange(2), (3, 2)),
            "rows from 0 to 2, got 0 to 3",
        ),
        (
            lambda: nn.Sparse(ones, np.zeros(2, int), np.ones(2, int), (3, 2)),
            r"each place once, got \(0, 1\) twice",
        ),
        (lambda: nn.Sparse(ones, ones, np.ones(2, int), (3, 2)), "rows of integers, got float32"),
        (lambda: nn.Sparse(ones, np.arange(3), np.arange(3), (3, 3)), "of one shape"),
        (lambda: nn.Sparse.from_dense(ones), "matrix to be a matrix"),
        (lambda: nn.Clustered(ones, np.full((2, 2), 2)), "codes from 0 to 1, got 2 to 2"),
        (lambda: nn.Clustered(np.ones((2, 2)), np.zeros((2, 2), int)), "a codebook of 1 to"),
        (
            lambda: nn.Clustered.from_dense(MATRIX, 1),
            "size as a whole number from 2 to 65536, got 1",
        ),
        (lambda: nn.Clustered.from_dense(MATRIX, 3, weights=ones), r"weights of shape \(30, 7\)"),
        (lambda: nn.Clustered.from_dense(MATRIX * np.nan, 3), "finite numbers in matrix"),
        (
            lambda: nn.Clustered.from_dense(MATRIX, 2.5),
            "size as a whole number from 2 to 65536, got 2.5",
        ),
        (
            lambda: nn.Clustered.from_dense(MATRIX, 3, weights=np.full((30, 7), np.inf)),
            "finite and none",
        ),
        (lambda: nn.Quantized(np.full((2, 2), 8), 0.1, bits=4), "codes from -7 to 7, got 8 to 8"),
        (lambda: nn.Quantized(np.ones((2, 3), int), ones), "a scale of shape"),
        (lambda: nn.Quantized(np.ones((2, 2)), 1.0), "codes of integers, got float64"),
        (lambda: nn.Quantized.from_dense(MATRIX, 9), "bits as a whole number from 2 to 8, got 9"),
        (lambda: nn.Quantized.from_dense(MATRIX, 8, "rows"), "an axis among"),
        (lambda: jax.jit(nn.Sparse.from_dense)(MATRIX), "a concrete matrix, got a traced one"),
    ]
    for make, message in cases:
        with pytest.raises(ValueError, match=message) as caught:
            make()
        assert "\n" not in str(caught.value)


class Nested(nnx.Module):
    """Operators as an attribute, in a list and in a dict."""

    def __init__(self, first, second, third):
        self.first, self.others = first, nnx.List([second])
        self.last = nnx.Dict(head=third)

    def __call__(self, x):
        return self.last.head(nnx.relu(self.others[0](nnx.relu(self.first(x)))))


def test_decoded_is_the_same_map_in_dense_operators():
    middle = nn.TT.create(jax.random.key(0), (7, 1), (2, 4), 2, use_bias=True)
    last = nn.Quantized.from_dense(MATRIX[:8], 8, None, BIAS)
    model = Nested(nn.Sparse.from_dense(MATRIX, BIAS), middle, last)
    made = nn.decoded(model)
    assert [type(op) for op in (made.first, made.others[0], made.last.head)] == [nn.Dense] * 3
    np.testing.assert_allclose(made(X), model(X), rtol=2e-6, atol=2e-5)
    assert type(model.first) is nn.Sparse  # the one that was given is as it was
    assert type(model.others[0]) is nn.TT


@pytest.mark.parametrize("form", FORMS)
def test_an_operator_alone_is_decoded_and_keeps_its_dtype(form):
    operator = stored(form, dtype=jnp.bfloat16)
    made = nn.decoded(operator)
    assert type(made) is nn.Dense
    assert made(X).dtype == jnp.bfloat16
    np.testing.assert_allclose(made.matrix.get_value(), wide_matrix(operator), rtol=1e-6, atol=1e-7)


def wide_matrix(operator):
    return np.asarray(operator.to_dense(), np.float64)


def test_what_is_cheaper_or_too_large_stays_stored():
    psi = observables.Product.of(observables.Monomials(1), 6)
    block = nn.KoopmanBlock(psi, nn.TT.create(jax.random.key(0), psi.modes(), (1,) * 5 + (3,), 2))
    thin = nn.LowRank.create(jax.random.key(0), P, Q, 2)
    assert type(nn.decoded(block).operator) is nn.TT
    assert type(nn.decoded(nn.Stack([thin], ())).operators[0]) is nn.LowRank
    sparse = nn.Sparse.from_dense(MATRIX)
    assert type(nn.decoded(sparse, largest=P * Q - 1)) is nn.Sparse
    held = nn.decoded(nn.KoopmanBlock(observables.Identity(), sparse))
    assert type(held.operator) is nn.Dense


def test_decoded_takes_modules_with_numbers_alone():
    with pytest.raises(ValueError, match=r"an nnx\.Module to decode"):
        nn.decoded(jnp.ones(3))
    sparse = nn.Sparse.from_dense(MATRIX)
    with pytest.raises(ValueError, match="outside jit"):
        jax.eval_shape(lambda op: nn.decoded(op)(X), sparse)


def test_a_block_s_projections_are_multiplied_out_where_that_is_no_dearer():
    keys = jax.random.split(jax.random.key(0), 5)
    normal = lambda k, *shape: jax.random.normal(keys[k], shape) / shape[0] ** 0.5
    axes = observables.Kronecker((normal(0, 6, 3), normal(1, 5, 2)))
    psi = observables.Compose(axes, observables.Project(normal(2, 6, 4)))
    psi = observables.Compose(psi, observables.Standardize(jnp.ones(4)))
    psi = observables.Compose(psi, observables.Monomials(2))
    block = nn.KoopmanBlock(psi, normal(3, 15, 3))
    made = nn.decoded(block)
    assert type(made.psi.first.first) is observables.Project
    assert made.psi.first.first.matrix.shape == (30, 4)
    np.testing.assert_allclose(made(X), block(X), rtol=1e-5, atol=1e-5)
    # Two thin projections of a wide state are cheaper than one that is as wide as the last.
    thin = observables.Compose(
        observables.Project(normal(2, 30, 2), jnp.ones(30)), observables.Project(normal(4, 2, 20))
    )
    held = nn.decoded(nn.KoopmanBlock(thin, normal(0, 20, 3)))
    assert type(held.psi) is observables.Compose
    joined = observables.Compose(
        observables.Project(normal(2, 30, 20), jnp.ones(30)), observables.Project(normal(4, 20, 4))
    )
    block = nn.KoopmanBlock(joined, normal(0, 4, 3))
    assert type(nn.decoded(block).psi) is observables.Project
    np.testing.assert_allclose(nn.decoded(block)(X), block(X), rtol=1e-5, atol=1e-5)
