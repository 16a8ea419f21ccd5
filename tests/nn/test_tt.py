"""TT operators and blocks: every order of contraction against the dense matrix in float64 NumPy."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings, strategies as st

from koopjax import nn, observables as obs, tt
from koopjax.tensor_edmd import TensorInfo, TensorKoopman

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(7, 3)).astype(np.float32)
PSI = obs.Product(
    [obs.Polynomial1D(2), obs.Polynomial1D(1, family="hermite"), obs.Trigonometric(1)]
)
MODES = (3, 2, 3)
FRONT = obs.Compose(
    obs.Standardize.fit(X),
    obs.Compose(obs.Project(RNG.normal(size=(3, 3)).astype(np.float32)), PSI),
)


def wide(cores):
    """The dense matrix of TT cores in float64 NumPy."""
    rows, columns = ([core.shape[k] for core in cores] for k in (1, 2))
    out = np.ones((1, 1, 1))
    for core in cores:
        out = np.einsum("ijr,rmns->imjns", out, np.asarray(core, np.float64))
        out = out.reshape(out.shape[0] * out.shape[1], -1, core.shape[-1])
    assert out.shape == (math.prod(rows), math.prod(columns), 1)
    return out[:, :, 0]


def khatri_rao(factors):
    out = np.ones((len(factors[0]), 1))
    for f in factors:
        out = np.einsum("ni,nj->nij", out, np.asarray(f, np.float64)).reshape(len(out), -1)
    return out


def random_operator(columns=(1, 4, 1), rank=(2, 3), seed=2, rows=MODES, **extra):
    return nn.TT.create(jax.random.key(seed), rows, columns, rank, **extra)


def with_form(operator, form):
    made = nnx.clone(operator)
    made.form = form
    return made


@jax.jit
def run(operators, x):
    """What modules give, in one program."""
    return [operator(x) for operator in operators]


@pytest.mark.parametrize(
    ("columns", "psi"),
    [((1, 4, 1), PSI), ((1, 1, 5), PSI), ((4, 1, 1), PSI), ((1, 1, 1), PSI), ((1, 4, 1), FRONT)],
)
def test_a_block_equals_dense_matrix_and_dense_dictionary(columns, psi):
    operator = random_operator(columns, use_bias=True, bias_init=nnx.initializers.normal())
    blocks = [nn.KoopmanBlock(psi, with_form(operator, form)) for form in tt.FORMS]
    *found, lifted = run([*blocks, psi], X)
    expect = np.asarray(lifted, np.float64) @ wide(operator.tt_matrix.cores)
    expect += np.asarray(operator.bias.get_value(), np.float64)[None, :]
    for out in found:
        np.testing.assert_allclose(out, expect, rtol=1e-5, atol=1e-5)
    assert blocks[0].out_features == math.prod(columns)


@jax.jit
def every_order(matrix, factors, x):
    forms = ("auto", "chain", "grouped", "dense")
    of_factors = [tt.contract(matrix, factors, form=form) for form in forms]
    return of_factors, [tt.apply_matrix(matrix, x, form=form) for form in forms]


@settings(max_examples=10, deadline=None)
@given(
    st.sampled_from([([(2, 3), (3, 1), (1, 2)], 3), ([(3, 2), (2, 2)], 1), ([(3, 2)], 2)]),
    st.integers(0, 2**30),
)
def test_all_orders_agree_for_any_modes(shape, seed):
    (modes, rank), n, rng = shape, 3, np.random.default_rng(seed)
    rows, columns = zip(*modes, strict=True)
    ranks = [1, *[rank] * (len(rows) - 1), 1]
    shapes = zip(ranks[:-1], rows, columns, ranks[1:], strict=True)
    matrix = tt.TTMatrix([rng.normal(size=shape).astype(np.float32) for shape in shapes])
    factors = [rng.normal(size=(n, m)).astype(np.float32) for m in rows]
    x = rng.normal(size=(n, math.prod(rows))).astype(np.float32)
    dense = wide(matrix.cores)
    of_factors, of_rows = every_order(matrix, factors, x)
    for found, given_rows in ((of_factors, khatri_rao(factors)), (of_rows, x.astype(np.float64))):
        for out in found:
            np.testing.assert_allclose(out, given_rows @ dense, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("at", [0, 17])
def test_a_long_train_runs_as_a_loop(at):
    d = 32
    columns = tuple(3 if k == at else 1 for k in range(d))
    operator = random_operator(columns, 4, rows=(2, 3) * 16, init="identity")
    factors = [
        (0.2 * RNG.normal(size=(5, m)) + np.eye(1, m)).astype(np.float32) for m in operator.modes[0]
    ]
    assert tt.contraction_order(operator.ranks, *operator.modes, 256).form == "scan"
    state = np.ones((5, 1, 1))
    for f, core in zip(factors, operator.tt_matrix.cores, strict=True):
        f, core = np.asarray(f, np.float64), np.asarray(core, np.float64)
        state = np.einsum("sqr,si,rijt->sqjt", state, f, core).reshape(5, -1, core.shape[-1])
    forms = ("scan", "tree", "auto")
    some = jax.jit(lambda m, f: [tt.contract(m, f, form=form) for form in forms])
    for out in some(operator.tt_matrix, factors):
        np.testing.assert_allclose(out, state[:, :, 0], rtol=1e-4, atol=1e-6)
    many = [jax.ShapeDtypeStruct((256, f.shape[1]), f.dtype) for f in factors]
    text = str(jax.make_jaxpr(lambda f: tt.contract(operator.tt_matrix, f))(many))
    assert "scan[" in text


def test_equal_families_are_evaluated_as_one():
    d = 32
    psi = obs.Product.of(obs.CosSin(0.3), d)
    x = RNG.uniform(size=(5, d)).astype(np.float32)
    operator = random_operator((1,) * (d - 1) + (3,), 4, rows=(2,) * d, init="identity")
    block = nn.KoopmanBlock(psi, operator)
    apart = lambda m, x: tt.contract(m, psi.factors_at(x))
    expect, found = jax.jit(lambda m, b, x: (apart(m, x), b(x)))(operator.tt_matrix, block, x)
    np.testing.assert_allclose(found, expect, rtol=1e-5)
    assert str(jax.make_jaxpr(lambda b, x: b(x))(block, x)).count(" cos ") == 1


def test_a_weight_matrix_in_tt_format():
    operator = random_operator((5, 2), (4,), rows=(6, 4), use_bias=True)
    assert (operator.in_features, operator.out_features) == (24, 10)
    assert operator.modes == ((6, 4), (5, 2))
    assert operator.ranks == (1, 4, 1)
    x = RNG.normal(size=(2, 3, 24)).astype(np.float32)
    expect = np.asarray(x, np.float64) @ wide(operator.tt_matrix.cores)
    np.testing.assert_allclose(operator(x), expect, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(operator(x[0, 0]), expect[0, 0], rtol=1e-4, atol=1e-5)
    assert operator(x[:, :0]).shape == (2, 0, 10)
    stack = nn.Stack([operator, nn.Dense.create(KEY, 10, 2)], ("relu",))
    assert jax.eval_shape(stack, x).shape == (2, 3, 2)
    entries = wide(random_operator((8, 8), 8, rows=(16, 16)).tt_matrix.cores)
    assert 0.5 < np.std(entries) * 16 < 2.0  # variance 1 / p


def test_batch_axes_and_single_states():
    block = nn.KoopmanBlock(FRONT, random_operator())
    sizes = lambda b, x, several, none: [b(x), b(x[0]), b(several), b(none)]
    whole, one, some, none = jax.jit(sizes)(block, X, np.stack([X, 2 * X]), X[:0])
    np.testing.assert_allclose(one, whole[0], rtol=1e-5, atol=1e-6)
    assert some.shape == (2, 7, 4)
    np.testing.assert_allclose(some[0], whole, rtol=1e-5, atol=1e-6)
    assert none.shape == (0, 4)


@pytest.mark.parametrize("form", ["chain", "scan", "tree"])
def test_transformations(form):
    block = nn.KoopmanBlock(FRONT, random_operator(form=form))
    dense = nn.KoopmanBlock(FRONT, nn.Dense(wide(block.operator.tt_matrix.cores)))
    graph, state = nnx.split(block)

    @jax.jit
    def everything(state, other, dense, x):
        loss = lambda s, x: jnp.sum(nnx.merge(graph, s)(x) ** 2)
        lanes = jax.tree.map(lambda *a: jnp.stack(a), state, other)
        ones = jax.tree.map(jnp.ones_like, state)
        return {
            "plain": nnx.merge(graph, state)(x),
            "mapped": jax.vmap(nnx.merge(graph, state))(x),
            "lanes": jax.vmap(lambda s: nnx.merge(graph, s)(x))(lanes)[0],
            "slope": jax.grad(loss, 1)(state, x),
            "dense slope": jax.grad(lambda x: jnp.sum(dense(x) ** 2))(x),
            "along": jax.jvp(lambda s: loss(s, x), (state,), (ones,))[1],
            "loss": loss(state, x),
        }

    moved = lambda h: jax.tree.map(lambda a: np.asarray(a) + np.float32(h), state)
    found, back = everything(state, moved(0.5), dense, X), everything(moved(-1e-3), state, dense, X)
    expect, ahead = block(X), everything(moved(1e-3), state, dense, X)
    for name in ("plain", "mapped", "lanes"):
        np.testing.assert_allclose(found[name], expect, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["slope"], found["dense slope"], rtol=2e-4, atol=1e-4)
    quotient = (ahead["loss"] - back["loss"]) / 2e-3
    np.testing.assert_allclose(found["along"], quotient, rtol=1e-2)


@pytest.mark.parametrize("trainable", [True, "operator", "dictionary", False])
def test_training_continues(trainable):
    block = nn.KoopmanBlock(FRONT, random_operator(init="identity"), trainable=trainable)
    optimizer = nnx.Optimizer(block, optax.adam(0.05), wrt=nnx.Param)
    before = jax.tree.map(np.array, nnx.to_pure_dict(nnx.state(block)))
    target = np.sin(X @ np.ones((3, 4), np.float32))

    @nnx.jit
    def step(block, optimizer):
        loss, grads = nnx.value_and_grad(lambda b: jnp.mean((b(X) - target) ** 2))(block)
        optimizer.update(block, grads)
        return loss

    losses = [float(step(block, optimizer)) for _ in range(40)]
    after = jax.tree.map(np.array, nnx.to_pure_dict(nnx.state(block)))
    for part in ("dictionary", "operator"):
        pairs = zip(jax.tree.leaves(before[part]), jax.tree.leaves(after[part]), strict=True)
        moved = any(not np.array_equal(a, b) for a, b in pairs)
        assert moved == (trainable in (True, part))
    if trainable:
        assert losses[-1] < 0.5 * losses[0]


def test_no_second_compilation():
    traces = []

    @jax.jit
    def run(block, x):
        traces.append(1)
        return block(x)

    block = nn.KoopmanBlock(FRONT, random_operator())
    run(block, X)
    run(nnx.clone(block), 2 * X)
    run(nn.KoopmanBlock(FRONT, random_operator(seed=3)), X)
    assert len(traces) == 1


def test_dtypes_follow_the_conventions_of_flax_layers():
    operator = random_operator(use_bias=True)
    expect = nn.KoopmanBlock(FRONT, operator)(X)
    half = nn.KoopmanBlock(FRONT, operator, dtype=jnp.bfloat16)
    assert half(X).dtype == jnp.bfloat16
    assert half.operator.cores[0].dtype == jnp.float32
    np.testing.assert_allclose(half(X).astype(jnp.float32), expect, rtol=0.1, atol=0.2)
    stored = nn.KoopmanBlock(FRONT, operator, param_dtype=jnp.bfloat16)
    assert {v.dtype for v in jax.tree.leaves(nnx.state(stored))} == {jnp.dtype(jnp.bfloat16)}
    with jax.enable_x64(True):
        cores = [jnp.asarray(core, jnp.float64) for core in operator.tt_matrix.cores]
        block = nn.KoopmanBlock(PSI, nn.TT(cores))
        x = jnp.asarray(X, jnp.float64)
        blocks = [nn.KoopmanBlock(PSI, with_form(block.operator, form)) for form in tt.FORMS]
        *found, lifted = run([*blocks, PSI], x)
        exact = np.asarray(lifted) @ wide(cores)
        for made in found:
            assert made.dtype == jnp.float64
            np.testing.assert_allclose(made, exact, rtol=1e-12, atol=1e-13)


def test_float64_trains_keep_their_digits_without_the_global_switch():
    with jax.enable_x64(True):
        cores = [
            jnp.asarray(np.asarray(c, np.float64) / 3) for c in random_operator().tt_matrix.cores
        ]
        factors = [jnp.asarray(RNG.normal(size=(7, m)) / 3) for m in MODES]
        x = jnp.asarray(khatri_rao(factors))
    expect = khatri_rao(factors) @ wide(cores)
    matrix = tt.TTMatrix(cores)
    for out in (tt.contract(matrix, factors), tt.apply_matrix(matrix, x)):
        assert out.dtype == jnp.float64
        np.testing.assert_allclose(out, expect, rtol=1e-12, atol=1e-14)


def test_the_cheapest_order_is_found():
    ranks, rows, columns = (1, 3, 4, 2, 1), (4, 3, 5, 2), (2, 3, 2, 3)
    for kind, n in itertools.product(("vector", "product"), (1, 16, 4096)):
        found = {
            form: tt.contraction_order(ranks, rows, columns, n, kind=kind, form=form)
            for form in ("auto", "chain", "grouped", "dense")
        }
        assert found["auto"].seconds == min(order.seconds for order in found.values())
        assert found["chain"].groups == ((0, 1), (1, 2), (2, 3), (3, 4))
        assert found["dense"].groups == ((0, 4),)
        assert all(order.flops > 0 for order in found.values())
    layer = ((1, 16, 16, 16, 1), (7, 4, 7, 4), (5, 5, 5, 5))
    big = tt.contraction_order(*layer, 4096, kind="vector")
    assert big.form == "dense"  # rank 16 costs more a sample than the matrix
    assert tt.contraction_order(*layer, 1, kind="vector").form != "dense"
    one = random_operator((5, 2), (4,), rows=(6, 4))
    # one product of 4 · (r n) columns for 6 rows, one of 4 · r rows
    assert with_form(one, "chain").flops(10) in (
        2 * 10 * (4 * 6 * 20 + 5 * 16 * 2),
        2 * 10 * (6 * 4 * 8 + 2 * 24 * 5),
    )
    assert nn.Dense.create(KEY, 6, 4).flops(10) == 480
    assert nn.LowRank.create(KEY, 100, 100, 2).flops(10) == 2 * 10 * 2 * 200


def test_tune_fixes_the_fastest_form():
    block = nn.KoopmanBlock(FRONT, random_operator())
    tuned = nn.tune(block, X, repeats=2)
    assert set(tuned.seconds) <= set(tt.FORMS)
    assert {"auto", "chain"} <= set(tuned.seconds)
    assert tuned.forms == (min(tuned.seconds, key=tuned.seconds.get),)
    assert tuned.module.operator.form == tuned.forms[0]
    assert block.operator.form == "auto"
    np.testing.assert_allclose(tuned.module(X), block(X), rtol=1e-5, atol=1e-6)
    layer = random_operator((5, 2), (4,), rows=(6, 4))
    assert set(nn.tune(layer, jnp.ones((3, 24)), repeats=1).seconds) <= {
        "auto", "chain", "grouped", "dense",
    }  # fmt: skip
    with pytest.raises(ValueError, match="a module with TT operators"):
        nn.tune(nn.Dense.create(KEY, 2, 2), jnp.ones((1, 2)))
    with pytest.raises(ValueError, match="repeats as a whole number of at least 1"):
        nn.tune(block, X, repeats=0)


def test_a_fit_in_tt_format_becomes_a_block():
    train = random_operator((1, 1, 3), 3).tt_matrix
    fit = TensorKoopman(FRONT, train, TensorInfo(1.0, 0.0, 0.0, 7), jnp.int32(0))
    block = nn.from_koopman(fit)
    np.testing.assert_allclose(block(X), fit.predict(X), rtol=1e-5, atol=1e-6)
    assert isinstance(block.operator, nn.TT)
    assert all(isinstance(core, nn.Frozen) for core in block.operator.cores)
    less = nn.from_koopman(fit, 2, trainable="operator")
    assert max(less.operator.ranks) == 2
    assert isinstance(less.operator.cores[0], nnx.Param)
    rounded = tt.round(train, max_rank=2)
    np.testing.assert_allclose(
        less(X), tt.contract(rounded, FRONT.then.then.factors_at(fit_front(X))), rtol=1e-5
    )
    module, variables = nn.linen.from_koopman(fit)
    np.testing.assert_array_equal(module.apply(variables, X), block(X))
    with pytest.raises(ValueError, match="steps=1 and lifted=False"):
        nn.from_koopman(fit, steps=2)
    with pytest.raises(ValueError, match="rank as a whole number of at least 1"):
        nn.from_koopman(fit, 0)


def fit_front(x):
    return FRONT.then.first(FRONT.first(x))


def test_a_matrix_becomes_a_tt_operator():
    dense = nn.Dense.create(KEY, 18, 4, use_bias=True)
    train = tt.matrix_from_dense(dense.matrix.get_value(), MODES, (1, 1, 4))
    exact = nn.TT.from_train(train, dense.bias.get_value())
    np.testing.assert_array_equal(exact.bias.get_value(), dense.bias.get_value())
    block = nn.KoopmanBlock(PSI, exact)
    np.testing.assert_allclose(block(X), nn.KoopmanBlock(PSI, dense)(X), rtol=1e-4, atol=1e-5)


def test_linen_has_the_same_parameters():
    for operator in (random_operator(use_bias=True), random_operator((1, 1, 2), 2, form="chain")):
        block = nn.KoopmanBlock(FRONT, operator, trainable="operator")
        module, variables = nn.linen.from_nnx(block)
        np.testing.assert_array_equal(module.apply(variables, X), block(X))
        names = ["/".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(block))]
        merged = {**variables["params"], **variables["frozen"]}
        flat = jax.tree_util.tree_flatten_with_path(merged)[0]
        assert sorted("/".join(e.key for e in path) for path, _ in flat) == sorted(names)
        back = nn.linen.to_nnx(module, variables)
        assert nnx.split(back)[0] == nnx.split(block)[0]
        np.testing.assert_array_equal(back(X), block(X))
        fresh = module.init(KEY, X)
        assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, variables)
    plain = nn.linen.KoopmanBlock(obs.Identity(), 6, rank=2, modes=((4, 3), (2, 3)))
    variables = plain.init(KEY, jnp.ones((5, 12)))
    assert plain.apply(variables, jnp.ones((5, 12))).shape == (5, 6)
    with pytest.raises(ValueError, match="column modes of product 5"):
        nn.linen.KoopmanBlock(obs.Identity(), 5, rank=2, modes=((4, 3), (2, 3))).init(
            KEY, jnp.ones((5, 12))
        )


def test_errors_say_what_was_expected():
    good = random_operator()
    with pytest.raises(ValueError, match=r"row modes \(3, 2, 3\), the sizes of the dictionary"):
        nn.KoopmanBlock(PSI, random_operator(rows=(3, 3, 2)))
    with pytest.raises(ValueError, match="expected 18 observables, the rows of the operator"):
        good(jnp.ones((2, 17)))
    with pytest.raises(ValueError, match="factors"):
        tt.contract(good.tt_matrix, [jnp.ones((2, 3)), jnp.ones((2, 3)), jnp.ones((2, 3))])
    with pytest.raises(ValueError, match="factors"):
        tt.contract(good.tt_matrix, [jnp.ones((2, 3)), jnp.ones((3, 2)), jnp.ones((2, 3))])
    with pytest.raises(ValueError, match="rows of width 18"):
        tt.apply_matrix(good.tt_matrix, jnp.ones((2, 9)))
    with pytest.raises(ValueError, match="rank"):
        random_operator(rank=0)
    with pytest.raises(ValueError, match="rank"):
        random_operator(rank=(2, 0))
    with pytest.raises(ValueError, match="rank"):
        random_operator(rank=(2, 2, 2))
    with pytest.raises(ValueError, match="as many row modes as column modes"):
        random_operator((1, 4))
    with pytest.raises(ValueError, match="none empty"):
        nn.TT([jnp.ones((1, 2, 1, 0)), jnp.ones((0, 2, 1, 1))])
    with pytest.raises(ValueError, match="equal ranks where core 0 meets core 1"):
        nn.TT([jnp.ones((1, 2, 1, 3)), jnp.ones((2, 2, 1, 1))])
    with pytest.raises(ValueError, match=r"a bias of shape \(4,\)"):
        nn.TT(good.tt_matrix.cores, jnp.ones(3))
    with pytest.raises(ValueError, match="a form among"):
        nn.TT(good.tt_matrix.cores, form="fast")
    with pytest.raises(ValueError, match="a form among"):
        tt.contraction_order((1, 1), (2,), (2,), 1, form="fast")
    with pytest.raises(ValueError, match="a kind among"):
        tt.contraction_order((1, 1), (2,), (2,), 1, kind="tensor")
    with pytest.raises(ValueError, match="an init among"):
        random_operator(init="zeros")
    with pytest.raises(ValueError, match="a product dictionary and all outputs in one core"):
        random_operator(form="scan")(jnp.ones((2, 18)))
    nan = tt.TTMatrix([core.at[0].set(jnp.nan) for core in good.tt_matrix.cores])
    for refuse in (nn.TT.from_train, lambda m: tt.contract(m, PSI.factors_at(X))):
        with pytest.raises(ValueError, match="finite"):
            refuse(nan)
    with pytest.raises(ValueError, match="finite"):
        tt.apply_matrix(nan, jnp.ones((2, 18)))
