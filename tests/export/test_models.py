"""Models that the library knows by name: saved, measured, loaded, run."""

import itertools
import math
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from koopjax import export, models, nn, observables as obs, surgery

KEY = jax.random.key(0)
X = jax.random.normal(KEY, (12, 4))


def same_bits(a, b):
    left, right = (jax.tree.leaves(nnx.state(m, nnx.Not(nnx.RngState))) for m in (a, b))
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        assert one.dtype == other.dtype
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


def round_trip(model, path, x):
    size = export.save(model, path)
    assert size == os.path.getsize(path) == export.stored_bytes(model)
    back = export.load(path)
    assert type(back) is type(model)
    assert nnx.split(back)[0] == nnx.split(model)[0]
    same_bits(model, back)
    np.testing.assert_array_equal(back(x), model(x))
    described = export.describe(path)
    assert described.named
    assert described.bytes == size
    assert described.overhead + sum(a.bytes for a in described.arrays) == size
    return size


def random_mlp(sizes=(784, 100, 100, 100, 10)):
    model = models.MLP(sizes, rngs=nnx.Rngs(0))
    state = jax.tree.map(lambda a: a + 0.01 * jax.random.normal(KEY, a.shape), nnx.state(model))
    nnx.update(model, state)
    return model


def test_the_header_of_an_mlp_is_tens_of_bytes(tmp_path):
    size = round_trip(random_mlp(), tmp_path / "m.kjx", jnp.ones((3, 784)))
    assert 0 < size - 99_710 * 4 < 64


def test_the_header_of_a_koopman_model_is_tens_of_bytes(tmp_path):
    psi = obs.Compose(
        obs.Project(jax.random.normal(KEY, (784, 12)), jax.random.normal(KEY, (784,))),
        obs.Monomials(2),
    )
    block = nn.KoopmanBlock(psi, nn.Dense.create(KEY, 91, 10), trainable=False)
    size = round_trip(block, tmp_path / "k.kjx", jnp.ones((3, 784)))
    assert 0 < size - 4 * (784 * 12 + 784 + 91 * 10) < 100


DICTIONARIES = {
    "identity": obs.Identity(),
    "monomials": obs.Monomials(2),
    "orthogonal": obs.Orthogonal(2, family="legendre"),
    "hermite": obs.Orthogonal(3),
    "rbf": obs.GaussianRBF.fit(X, 3, KEY),
    "fourier": obs.RandomFourier.create(KEY, 4, 7, 1.5),
    "standardize": obs.Standardize.fit(X),
    "project": obs.Project(jax.random.normal(KEY, (4, 2))),
    "select": obs.Select(obs.Monomials(2), [1, 4, 9]),
    "product": obs.Product.of(obs.Polynomial1D(1, family="hermite"), 4),
    "neural": obs.Neural(models.MLP((4, 6, 5), rngs=nnx.Rngs(1))),
    "nested": obs.Concat(
        obs.Compose(
            obs.Compose(obs.Standardize.fit(X), obs.Project(jnp.eye(4)[:, :2])), obs.Orthogonal(2)
        ),
        obs.Concat(obs.Identity(), obs.GaussianRBF.fit(X, 2, KEY)),
    ),
}


def make_operators(p):
    a, b, c = jax.random.split(KEY, 3)
    return {
        "dense": nn.Dense.create(a, p, 3),
        "dense_bias": nn.Dense.create(b, p, 3, use_bias=True, bias_init=nnx.initializers.normal()),
        "low_rank": nn.LowRank.create(c, p, 3, 2),
        "low_rank_bias": nn.LowRank.create(c, p, 3, 1, use_bias=True),
    }


@pytest.mark.parametrize("name", DICTIONARIES)
def test_every_dictionary_with_every_operator(name, tmp_path):
    psi = DICTIONARIES[name]
    trainable = itertools.cycle([True, False, "operator", "dictionary"])
    for form, operator in make_operators(psi.size(4)).items():
        block = nn.KoopmanBlock(psi, operator, trainable=next(trainable))
        round_trip(block, tmp_path / f"{form}.kjx", X)


@pytest.mark.parametrize("name", DICTIONARIES)
def test_dictionaries_alone(name, tmp_path):
    psi = DICTIONARIES[name]
    export.save(psi, tmp_path / "psi.kjx")
    back = export.load(tmp_path / "psi.kjx")
    assert jax.tree.structure(back) == jax.tree.structure(psi)
    np.testing.assert_array_equal(back(X), psi(X))


@pytest.mark.parametrize(
    "settings",
    [
        {"dtype": jnp.bfloat16},
        {"param_dtype": jnp.bfloat16},
        {"param_dtype": jnp.float16, "dtype": jnp.float32, "precision": None},
        {"precision": jax.lax.Precision.HIGH},
    ],
)
def test_dtypes_and_precision_are_kept(settings, tmp_path):
    psi = DICTIONARIES["nested"]
    block = nn.KoopmanBlock(psi, make_operators(psi.size(4))["dense_bias"], **settings)
    round_trip(block, tmp_path / "b.kjx", X)


def test_float64_is_kept_without_the_global_switch(tmp_path):
    with jax.enable_x64(True):
        matrix = jnp.asarray(np.random.default_rng(0).normal(size=(15, 2)))
        block = nn.KoopmanBlock(obs.Monomials(2), nn.Dense(matrix))
    export.save(block, tmp_path / "wide.kjx")
    back = export.load(tmp_path / "wide.kjx")
    assert back.operator.matrix.dtype == jnp.float64
    same_bits(block, back)


@pytest.mark.parametrize("form", ["dense", "low_rank_bias"])
def test_operators_alone(form, tmp_path):
    round_trip(make_operators(4)[form], tmp_path / "o.kjx", X)


def test_a_stack_of_factored_layers(tmp_path):
    keys = jax.random.split(KEY, 3)
    layers = [
        nn.LowRank.create(keys[0], 4, 30, 2, use_bias=True),
        nn.LowRank.create(keys[1], 30, 20, 3, use_bias=True),
        nn.Dense.create(keys[2], 20, 5, use_bias=True),
    ]
    stack = nn.Stack(layers, ("relu", "tanh"))
    size = round_trip(stack, tmp_path / "s.kjx", X)
    # biases that are all zero take four bytes
    numbers = 4 * 2 + 2 * 30 + 30 * 3 + 3 * 20 + 20 * 5
    assert size - 4 * numbers < 100


def test_example_models_in_either_mode(tmp_path):
    image = jnp.ones((2, 8, 8, 1))
    nets = [
        (models.CNN((8, 8, 1), 10, rngs=nnx.Rngs(0)), image),
        (models.ResidualMLP(4, 8, 2, 3, rngs=nnx.Rngs(0)), X),
        (models.ViT((8, 8, 1), 10, width=8, depth=1, heads=2, rngs=nnx.Rngs(0)), image),
    ]
    for model, x in nets:
        model.eval()
        round_trip(model, tmp_path / "net.kjx", x)
        model.train()
        export.save(model, tmp_path / "net.kjx")
        back = export.load(tmp_path / "net.kjx")
        assert nnx.split(back)[0] == nnx.split(model)[0]
        same_bits(model, back)


def test_a_trained_model(tmp_path):
    model = models.MLP((4, 6, 3), rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(0.1), wrt=nnx.Param)
    grads = nnx.grad(lambda m: jnp.sum(m(X) ** 2))(model)
    optimizer.update(model, grads)
    round_trip(model, tmp_path / "m.kjx", X)


def test_running_statistics_are_stored(tmp_path):
    model = models.CNN((8, 8, 1), 10, rngs=nnx.Rngs(0))
    model.train()
    model(jax.random.normal(KEY, (5, 8, 8, 1)))
    model.eval()
    round_trip(model, tmp_path / "c.kjx", jnp.ones((2, 8, 8, 1)))


def test_a_pruned_model_takes_less(tmp_path):
    model = random_mlp()
    kernel = model.layers[0].kernel
    keep = jax.random.uniform(KEY, kernel.shape) < 0.1
    kernel.set_value(jnp.where(keep, kernel[...], 0))
    size = round_trip(model, tmp_path / "p.kjx", jnp.ones((2, 784)))
    nonzero = int(jnp.sum(keep))
    assert size < 4 * (99_710 - 78_400) + 4 * nonzero + 78_400 * 0.48 / 8 + 200


def test_chosen_observables_cost_few_bits_each(tmp_path):
    chosen = np.sort(np.random.default_rng(0).choice(5151, 100, replace=False))
    small = nn.KoopmanBlock(
        obs.Select(obs.Monomials(2), chosen), nn.Dense.create(KEY, 100, 10), trainable=False
    )
    size = round_trip(small, tmp_path / "s.kjx", jax.random.normal(KEY, (2, 100)))
    assert size - 4 * 1000 < 100 + 100  # a byte an index, and the header


@pytest.mark.parametrize("trainable", [("head", "block", "tail"), "block"])
@pytest.mark.parametrize("at", [("layers.0/relu", "layers.2/relu"), ("input", "layers.1/relu")])
def test_a_spliced_mlp_holds_no_span(trainable, at, tmp_path):
    model = random_mlp((20, 16, 16, 16, 5))
    x = jax.random.normal(KEY, (6, 20))
    width = 20 if at[0] == "input" else 16
    block = nn.KoopmanBlock(
        obs.Identity(), nn.LowRank.create(KEY, width, 16, 3, use_bias=True), trainable=False
    )
    spliced = surgery.splice(model, x, at, block, trainable=trainable)
    size = round_trip(spliced, tmp_path / "s.kjx", x)
    back = export.load(tmp_path / "s.kjx")
    np.testing.assert_array_equal(back(jnp.ones((3, 20))), spliced(jnp.ones((3, 20))))
    numbers = sum(a.size for a in jax.tree.leaves(nnx.state(spliced)))
    assert size - 4 * numbers < 130


@pytest.mark.parametrize("inner", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("mixed", [False, True])
def test_a_block_in_a_bfloat16_model(inner, mixed, tmp_path):
    model = random_mlp((4, 6, 6, 3))
    nnx.update(model, jax.tree.map(lambda a: a.astype(jnp.bfloat16), nnx.state(model)))
    if mixed:
        bias = model.layers[2].bias
        bias.set_value(bias[...].astype(jnp.float32))
    x = X.astype(jnp.bfloat16)
    block = nn.Dense(jax.random.normal(KEY, (6, 6)).astype(inner))
    spliced = surgery.splice(model, x, ("layers.0/relu", "layers.1/relu"), block)
    round_trip(spliced, tmp_path / "s.kjx", x)
    back = export.load(tmp_path / "s.kjx")
    assert back.block.matrix.dtype == inner
    assert back(x).dtype == spliced(x).dtype == (jnp.float32 if mixed else jnp.bfloat16)


def test_a_spliced_cnn_position_by_position(tmp_path):
    model = models.CNN((8, 8, 1), 10, rngs=nnx.Rngs(0))
    x = jax.random.normal(KEY, (4, 8, 8, 1))
    cuts = {c.name: c.shape for c in surgery.cut_points(model, x)}
    at = ("convs.1", "norms.1/relu")
    before, after = (cuts[name][-1] for name in at)
    block = nn.KoopmanBlock(obs.Monomials(1), nn.Dense.create(KEY, before + 1, after))
    spliced = surgery.splice(model, x, at, block, sample_axes="positions")
    round_trip(spliced, tmp_path / "s.kjx", x)


def test_a_changed_model_is_not_taken_for_what_its_name_says(tmp_path):
    model = models.MLP((4, 6, 3), rngs=nnx.Rngs(0))
    model.layers[1] = nnx.Linear(6, 3, use_bias=False, rngs=nnx.Rngs(1))
    export.save(model, tmp_path / "m.kjx")
    assert not export.describe(tmp_path / "m.kjx").named
    with pytest.raises(export.FileError, match=r"a changed mlp, got none; try load\(path, model="):
        export.load(tmp_path / "m.kjx")
    same_bits(export.load(tmp_path / "m.kjx", model=model), model)


def test_a_loaded_model_trains_and_a_template_is_not_touched(tmp_path):
    model = random_mlp((4, 5, 3))
    export.save(model, tmp_path / "m.kjx")
    template = models.MLP((4, 5, 3), rngs=nnx.Rngs(9))
    before = np.array(template.layers[0].kernel[...])
    back = export.load(tmp_path / "m.kjx", model=template)
    same_bits(back, model)
    np.testing.assert_array_equal(template.layers[0].kernel[...], before)
    optimizer = nnx.Optimizer(back, optax.sgd(0.1), wrt=nnx.Param)
    optimizer.update(back, nnx.grad(lambda m: jnp.sum(m(X) ** 2))(back))
    assert np.abs(back(X) - model(X)).max() > 0


def test_the_description_reads_as_a_table(tmp_path):
    export.save(random_mlp((4, 5, 3)), tmp_path / "m.kjx")
    text = str(export.describe(tmp_path / "m.kjx"))
    assert "layers/0/kernel" in text
    assert "frame and header" in text.splitlines()[0]


TRAINS = {
    "outputs_last": ((3,) * 4, (1, 1, 1, 5), 3),
    "outputs_inside": ((3,) * 4, (1, 5, 1, 1), (2, 3, 1)),
    "matrix": ((7, 4, 7, 4), (5, 5, 5, 5), 3),
    "two": ((3, 4), (1, 5), 2),
    "one": ((6,), (4,), ()),
}


@pytest.mark.parametrize("name", TRAINS)
def test_tensor_trains_by_name(name, tmp_path):
    rows, columns, rank = TRAINS[name]
    settings = {"use_bias": name != "two", "form": "chain" if name == "matrix" else "auto"}
    operator = nn.TT.create(KEY, rows, columns, rank, **settings)
    x = jax.random.normal(KEY, (2, math.prod(rows)))
    size = round_trip(operator, tmp_path / "t.kjx", x)
    numbers = sum(a.size for a in jax.tree.leaves(nnx.state(operator)))
    assert size - 4 * numbers < 50  # shapes and all
    frozen = nn.freeze(operator)
    round_trip(frozen, tmp_path / "f.kjx", x)
    core = operator.cores[0]
    core.set_value(core[...].astype(jnp.bfloat16))
    same_bits(operator, export_and_load(operator, tmp_path / "m.kjx"))


def export_and_load(model, path):
    export.save(model, path)
    return export.load(path)


def test_a_block_on_a_tensor_train_has_a_lean_header(tmp_path):
    front = obs.Project(jax.random.normal(KEY, (20, 6)), jax.random.normal(KEY, (20,)))
    psi = obs.Compose(front, obs.Product.of(obs.Polynomial1D(2, family="hermite"), 6))
    operator = nn.TT.create(KEY, (3,) * 6, (1,) * 5 + (10,), 4, use_bias=True)
    block = nn.KoopmanBlock(psi, operator, trainable="operator")
    size = round_trip(block, tmp_path / "b.kjx", jax.random.normal(KEY, (3, 20)))
    numbers = sum(a.size for a in jax.tree.leaves(nnx.state(block)))
    assert size - 4 * numbers < 100
    assert "operator/cores/0" in str(export.describe(tmp_path / "b.kjx"))
    stack = nn.Stack([nn.TT.create(KEY, (4, 5), (3, 2), 2), nn.Dense.create(KEY, 6, 2)], ("relu",))
    round_trip(stack, tmp_path / "s.kjx", jnp.ones((2, 20)))


def test_a_spliced_mlp_with_a_tensor_train(tmp_path):
    model = random_mlp((20, 16, 16, 16, 5))
    x = jax.random.normal(KEY, (6, 20))
    psi = obs.Compose(obs.Project(jax.random.normal(KEY, (16, 3))), obs.Product.of(obs.CosSin(), 3))
    block = nn.KoopmanBlock(psi, nn.TT.create(KEY, (2,) * 3, (1, 16, 1), 2), trainable=False)
    spliced = surgery.splice(model, x, ("layers.0/relu", "layers.2/relu"), block)
    round_trip(spliced, tmp_path / "s.kjx", x)
