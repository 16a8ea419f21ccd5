"""Koopman blocks in NNX: shapes, training by parts, transformations, dtypes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from koopjax import nn, observables

X = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)


@functools.cache
def make_psi():
    return observables.Concat(
        observables.Compose(observables.Standardize.fit(X), observables.Monomials(2)),
        observables.GaussianRBF.fit(X, 4, jax.random.key(1)),
    )


@jax.jit
def run(module, *inputs):
    """What a module gives for several inputs, in one program."""
    return [module(x) for x in inputs]


def operators(p, q=2):
    keys = jax.random.split(jax.random.key(2), 3)
    return {
        "dense": nn.Dense.create(keys[0], p, q),
        "dense_bias": nn.Dense.create(
            keys[1], p, q, use_bias=True, bias_init=nnx.initializers.normal()
        ),
        "low_rank": nn.LowRank.create(keys[2], p, q, 2, use_bias=True),
    }


def host(variable, dtype=None):
    return np.asarray(variable.get_value(), dtype)


def oracle(block, x):
    """The block in float64 NumPy from its dictionary's values."""
    lifted = np.asarray(block.psi(x), np.float64)
    op = block.operator
    if isinstance(op, nn.LowRank):
        matrix = host(op.left, np.float64) @ np.asarray(op.right.get_value(), np.float64)
    else:
        matrix = host(op.matrix, np.float64)
    out = lifted @ matrix
    return out if op.bias is None else out + host(op.bias, np.float64)[None, :]


@pytest.mark.parametrize("form", ["dense", "dense_bias", "low_rank"])
def test_a_block_is_dictionary_then_operator(form):
    psi = make_psi()
    block = nn.KoopmanBlock(psi, operators(psi.size(3))[form])
    np.testing.assert_allclose(run(block, X)[0], oracle(block, X), rtol=1e-5, atol=1e-5)
    assert block.out_features == 2
    np.testing.assert_array_equal(block.lift(X), psi(X))


@pytest.mark.parametrize("form", ["dense", "low_rank"])
def test_any_number_of_batch_axes(form):
    psi = make_psi()
    block = nn.KoopmanBlock(psi, operators(psi.size(3))[form])
    whole, one, several, none = run(block, X, X[0], np.stack([X, X, 2 * X]), X[:0])
    np.testing.assert_allclose(one, whole[0], rtol=1e-5, atol=1e-6)
    assert several.shape == (3, 7, 2)
    np.testing.assert_allclose(several[1], whole, rtol=1e-5, atol=1e-6)
    assert none.shape == (0, 2)
    with pytest.raises(ValueError, match=r"got a scalar; try x\[None\]"):
        block(1.0)


def test_the_arrays_of_the_dictionary_show_under_readable_paths():
    psi = make_psi()
    block = nn.KoopmanBlock(psi, operators(psi.size(3))["dense"], trainable="operator")
    paths = ["/".join(map(str, p)) for p, _ in nnx.to_flat_state(nnx.state(block))]
    assert sorted(paths) == [
        "dictionary/parts/0/first/mean",
        "dictionary/parts/0/first/scale",
        "dictionary/parts/1/bandwidth",
        "dictionary/parts/1/centers",
        "operator/matrix",
    ]
    assert len(jax.tree.leaves(nnx.state(block, nnx.Param))) == 1
    assert len(jax.tree.leaves(nnx.state(block, nn.Frozen))) == 4


def train(block, steps=3):
    optimizer = nnx.Optimizer(block, optax.adamw(0.1), wrt=nnx.Param)

    @nnx.jit
    def step(block, optimizer):
        grads = nnx.grad(lambda b: jnp.sum((b(X) - 1.0) ** 2))(block)
        optimizer.update(block, grads)

    for _ in range(steps):
        step(block, optimizer)


def copies(state):
    return jax.tree.map(np.array, nnx.to_pure_dict(state))


@pytest.mark.parametrize(
    "trainable", [True, False, "dictionary", "operator", ("dictionary", "operator"), ()]
)
def test_an_optimizer_changes_the_trainable_parts_alone(trainable):
    psi = make_psi()
    block = nn.KoopmanBlock(psi, operators(psi.size(3))["dense"], trainable=trainable)
    before = copies(nnx.state(block))
    train(block)
    after = copies(nnx.state(block))
    moved = {
        part: not all(
            np.array_equal(a, b)
            for a, b in zip(
                jax.tree.leaves(before[part]), jax.tree.leaves(after[part]), strict=True
            )
        )
        for part in before
    }
    names = {True: ("dictionary", "operator"), False: ()}.get(trainable, trainable)
    assert moved == {part: part in names for part in ("dictionary", "operator")}


def test_the_operator_that_was_given_stays_as_it_is():
    operator = nn.Dense(jnp.eye(3))
    frozen = nn.KoopmanBlock(observables.Identity(), operator, trainable=False)
    assert isinstance(operator.matrix, nnx.Param)
    thawed = nn.unfreeze(frozen)
    assert isinstance(thawed.operator.matrix, nnx.Param)
    assert isinstance(frozen.operator.matrix, nn.Frozen)
    assert isinstance(nn.freeze(thawed).operator.matrix, nn.Frozen)
    train(thawed)
    np.testing.assert_array_equal(frozen.operator.matrix.get_value(), np.eye(3))


def test_a_neural_dictionary_trains_but_its_running_statistics_do_not_decay():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.linear = nnx.Linear(3, 5, rngs=rngs)
            self.norm = nnx.BatchNorm(5, rngs=rngs)

        def __call__(self, x):
            return jnp.tanh(self.norm(self.linear(x)))

    psi = observables.Neural(Net(nnx.Rngs(0)))
    block = nn.KoopmanBlock(psi, operators(5)["dense"])
    before = np.array(block(X))
    paths = {"/".join(map(str, p)): v for p, v in nnx.to_flat_state(nnx.state(block))}
    kernel = next(v for p, v in paths.items() if "kernel" in p)
    assert isinstance(kernel, nnx.Param)
    rest = {p: v.get_value() for p, v in paths.items() if "/rest/" in p}
    assert rest
    assert all(isinstance(paths[p], nn.Frozen) for p in rest)
    train(block)
    assert np.abs(block(X) - before).max() > 1e-3
    after = {"/".join(map(str, p)): v for p, v in nnx.to_flat_state(nnx.state(block))}
    for path, value in rest.items():
        np.testing.assert_array_equal(after[path].get_value(), value)


def test_selected_indices_never_train():
    psi = observables.Select(observables.Monomials(2), [0, 2, 5])
    block = nn.KoopmanBlock(psi, operators(3)["dense"])
    assert isinstance(block.dictionary["indices"], nn.Frozen)
    train(block)
    np.testing.assert_array_equal(block.psi.indices, [0, 2, 5])


@pytest.mark.parametrize("form", ["dense", "low_rank"])
def test_transformations(form):
    psi = make_psi()
    block = nn.KoopmanBlock(psi, operators(psi.size(3))[form])
    expect = block(X)
    graph, state = nnx.split(block)
    assert hash(graph) == hash(nnx.split(nnx.clone(block))[0])
    np.testing.assert_array_equal(nnx.merge(graph, state)(X), expect)

    @jax.jit
    def everything(state, x):
        made = nnx.merge(graph, state)
        lanes = jax.tree.map(lambda a: jnp.stack([a, 2 * a]), state)
        both = jax.vmap(lambda s: nnx.merge(graph, s)(x))(lanes)
        slope = jax.grad(lambda s: jnp.sum(nnx.merge(graph, s)(x) ** 2))(state)
        return (made(x), jax.vmap(made)(x), both[0]), slope

    found, grads = everything(state, X)
    for out in (*found, nnx.jit(lambda b, x: b(x))(block, X)):
        np.testing.assert_allclose(out, expect, rtol=1e-5, atol=1e-6)
    assert all(np.any(np.asarray(g) != 0) for g in jax.tree.leaves(grads["operator"]))


def test_no_second_compilation():
    psi = make_psi()
    block = nn.KoopmanBlock(psi, operators(psi.size(3))["low_rank"])
    traces = []

    @jax.jit
    def run(block, x):
        traces.append(1)
        return block(x)

    run(block, X)
    run(nnx.clone(block), 2 * X)
    run(nn.KoopmanBlock(make_psi(), operators(psi.size(3))["low_rank"]), X)
    assert len(traces) == 1


def test_dtypes_follow_the_conventions_of_flax_layers():
    psi = make_psi()
    operator = operators(psi.size(3))["dense_bias"]
    block = nn.KoopmanBlock(psi, operator, dtype=jnp.bfloat16)
    assert block(X).dtype == jnp.bfloat16
    assert block.operator.matrix.dtype == jnp.float32
    stored = nn.KoopmanBlock(psi, operator, param_dtype=jnp.bfloat16)
    assert {v.dtype for v in jax.tree.leaves(nnx.state(stored))} == {jnp.dtype(jnp.bfloat16)}
    assert stored(X.astype(jnp.bfloat16)).dtype == jnp.bfloat16
    half = nn.Dense.create(jax.random.key(0), 4, 2, param_dtype=jnp.float16)
    assert half.matrix.dtype == jnp.float16
    with jax.enable_x64(True):
        wide = nn.KoopmanBlock(observables.Monomials(1), jnp.ones((4, 2), jnp.float64))
        assert wide(X.astype(jnp.float64)).dtype == jnp.float64


def test_the_cheaper_order_of_contraction_is_taken():
    operator = nn.LowRank(np.ones((50, 10), np.float32), np.ones((10, 10), np.float32))
    few = nn.LowRank(np.ones((50, 2), np.float32), np.ones((2, 10), np.float32))
    x = jax.ShapeDtypeStruct((1000, 50), jnp.float32)
    # L R first, then one product with the batch; or one factor after the other.
    for made, inner in ((operator, "f32[50,10]"), (few, "f32[1000,2]")):
        assert f"{inner} = dot_general" in str(jax.make_jaxpr(lambda m, x: m(x))(made, x))
        (p, q), r, n = made.widths, made.rank, 1000
        assert made.flops(n) == 2 * min(n * r * (p + q), p * q * (n + r))


def test_a_stack_is_a_perceptron():
    keys = jax.random.split(jax.random.key(4), 2)
    first = nn.LowRank.create(keys[0], 3, 6, 2, use_bias=True)
    last = nn.Dense.create(keys[1], 6, 2)
    stack = nn.Stack([first, last], ("relu",))
    hidden = np.maximum(np.asarray(first(X)), 0)
    np.testing.assert_allclose(stack(X), hidden @ host(last.matrix), rtol=1e-4, atol=1e-5)
    assert stack.activations == ("relu", "identity")
    train(stack)
    with pytest.raises(ValueError, match="as many activations"):
        nn.Stack([first, last], ())
    with pytest.raises(ValueError, match="expected an activation among"):
        nn.Stack([first, last], ("relu", "swoosh"))
    with pytest.raises(ValueError, match="a width of 2 before one of 3"):
        nn.Stack([last, first], ("relu",))


def test_errors_say_what_was_expected():
    with pytest.raises(ValueError, match="expected 4 observables, the rows of the operator"):
        nn.KoopmanBlock(observables.Identity(), jnp.ones((4, 2)))(X)
    with pytest.raises(ValueError, match="expected trainable to be True, False or names"):
        nn.KoopmanBlock(observables.Identity(), jnp.eye(3), trainable="everything")
    with pytest.raises(ValueError, match="matrix to be a matrix"):
        nn.Dense(jnp.ones(3))
    with pytest.raises(ValueError, match=r"factors \(p, r\) and \(r, q\)"):
        nn.LowRank(jnp.ones((3, 2)), jnp.ones((3, 2)))
    with pytest.raises(ValueError, match=r"a bias of shape \(2,\)"):
        nn.Dense(jnp.ones((3, 2)), jnp.ones(3))
    with pytest.raises(ValueError, match="a dictionary that can be called"):
        nn.KoopmanBlock(jnp.eye(3), jnp.eye(3))
