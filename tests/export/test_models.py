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
from tests.nets import filled

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


X = normal(12, 4)


def same_bits(a, b):
    left, right = (jax.tree.leaves(nnx.state(m, nnx.Not(nnx.RngState))) for m in (a, b))
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        assert one.dtype == other.dtype
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


def round_trip(model, path, x=None):
    """Equal structure and bits are equal outputs; with `x` these are looked at too."""
    size = export.save(model, path)
    assert size == os.path.getsize(path) == export.stored_bytes(model)
    back = export.load(path)
    assert type(back) is type(model)
    assert nnx.split(back)[0] == nnx.split(model)[0]
    same_bits(model, back)
    if x is not None:
        both = nnx.jit(lambda pair, x: [one(x) for one in pair])([model, back], x)
        np.testing.assert_array_equal(*both)
    described = export.describe(path)
    assert described.named
    assert described.bytes == size
    assert described.overhead + sum(a.bytes for a in described.arrays) == size
    return size


def random_mlp(sizes=(784, 100, 100, 100, 10)):
    return filled(lambda: models.MLP(sizes, rngs=nnx.Rngs(0)))


def test_the_header_of_an_mlp_is_tens_of_bytes(tmp_path):
    size = round_trip(random_mlp(), tmp_path / "m.kjx", normal(3, 784))
    assert 0 < size - 99_710 * 4 < 64


def test_the_header_of_a_koopman_model_is_tens_of_bytes(tmp_path):
    psi = obs.Compose(
        obs.Project(normal(784, 12), normal(784)),
        obs.Monomials(2),
    )
    block = nn.KoopmanBlock(psi, nn.Dense(normal(91, 10)), trainable=False)
    size = round_trip(block, tmp_path / "k.kjx", normal(3, 784))
    assert 0 < size - 4 * (784 * 12 + 784 + 91 * 10) < 100


RBF = obs.GaussianRBF.fit(X, 3, KEY)
DICTIONARIES = {
    "identity": obs.Identity(),
    "monomials": obs.Monomials(2),
    "orthogonal": obs.Orthogonal(2, family="legendre"),
    "hermite": obs.Orthogonal(3),
    "rbf": RBF,
    "fourier": obs.RandomFourier.create(KEY, 4, 7, 1.5),
    "standardize": obs.Standardize.fit(X),
    "project": obs.Project(normal(4, 2)),
    "select": obs.Select(obs.Monomials(2), [1, 4, 9]),
    "product": obs.Product.of(obs.Polynomial1D(1, family="hermite"), 4),
    "neural": obs.Neural(random_mlp((4, 6, 5))),
    "nested": obs.Concat(
        obs.Compose(
            obs.Compose(obs.Standardize.fit(X), obs.Project(normal(4, 2))), obs.Orthogonal(2)
        ),
        obs.Concat(obs.Identity(), RBF),
    ),
}


def make_operators(p):
    return {
        "dense": nn.Dense(normal(p, 3)),
        "dense_bias": nn.Dense(normal(p, 3), normal(3)),
        "low_rank": nn.LowRank(normal(p, 2), normal(2, 3)),
        "low_rank_bias": nn.LowRank(normal(p, 1), normal(1, 3), normal(3)),
    }


@pytest.mark.parametrize("name", DICTIONARIES)
def test_every_dictionary_with_every_operator(name, tmp_path):
    psi = DICTIONARIES[name]
    trainable = itertools.cycle([True, False, "operator", "dictionary"])
    for form, operator in make_operators(psi.size(4)).items():
        block = nn.KoopmanBlock(psi, operator, trainable=next(trainable))
        round_trip(block, tmp_path / f"{form}.kjx", X if form == "low_rank_bias" else None)


@pytest.mark.parametrize("name", DICTIONARIES)
def test_dictionaries_alone(name, tmp_path):
    psi = DICTIONARIES[name]
    export.save(psi, tmp_path / "psi.kjx")
    back = export.load(tmp_path / "psi.kjx")
    assert jax.tree.structure(back) == jax.tree.structure(psi)
    for one, other in zip(jax.tree.leaves(back), jax.tree.leaves(psi), strict=True):
        assert np.asarray(one).dtype == np.asarray(other).dtype
        np.testing.assert_array_equal(one, other)


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
        matrix = jax.device_put(RNG.normal(size=(15, 2)))
        block = nn.KoopmanBlock(obs.Monomials(2), nn.Dense(matrix))
    export.save(block, tmp_path / "wide.kjx")
    back = export.load(tmp_path / "wide.kjx")
    assert back.operator.matrix.dtype == jnp.float64
    same_bits(block, back)


@pytest.mark.parametrize("form", ["dense", "low_rank_bias"])
def test_operators_alone(form, tmp_path):
    round_trip(make_operators(4)[form], tmp_path / "o.kjx", X)


def test_a_stack_of_factored_layers(tmp_path):
    zeros = lambda n: np.zeros(n, np.float32)
    layers = [
        nn.LowRank(normal(4, 2), normal(2, 30), zeros(30)),
        nn.LowRank(normal(30, 3), normal(3, 20), zeros(20)),
        nn.Dense(normal(20, 5), zeros(5)),
    ]
    stack = nn.Stack(layers, ("relu", "tanh"))
    size = round_trip(stack, tmp_path / "s.kjx", X)
    # biases that are all zero take four bytes
    numbers = 4 * 2 + 2 * 30 + 30 * 3 + 3 * 20 + 20 * 5
    assert size - 4 * numbers < 100


def test_example_models_in_either_mode(tmp_path):
    image = normal(2, 8, 8, 1)
    nets = [
        (lambda: models.CNN((8, 8, 1), 10, (2, 3), 4, rngs=nnx.Rngs(0)), image),
        (lambda: models.ResidualMLP(4, 8, 2, 3, rngs=nnx.Rngs(0)), None),
        (lambda: models.ViT((8, 8, 1), 10, width=8, depth=1, heads=2, rngs=nnx.Rngs(0)), None),
    ]
    for build, x in nets:
        model = filled(build)
        model.eval()
        round_trip(model, tmp_path / "net.kjx", x)
        model.train()
        round_trip(model, tmp_path / "net.kjx")


def trained(model, rule):
    @nnx.jit
    def step(model, optimizer):
        optimizer.update(model, nnx.grad(lambda m: jnp.sum(m(X) ** 2))(model))

    step(model, nnx.Optimizer(model, rule, wrt=nnx.Param))


def test_a_trained_model(tmp_path):
    model = random_mlp((4, 6, 3))
    trained(model, optax.adam(0.1))
    round_trip(model, tmp_path / "m.kjx")


def test_running_statistics_are_stored(tmp_path):
    model = filled(lambda: models.CNN((8, 8, 1), 10, (2, 3), 4, rngs=nnx.Rngs(0)))
    before = np.asarray(model.norms[0].mean[...])
    model.train()
    nnx.jit(lambda model, x: model(x))(model, normal(5, 8, 8, 1))
    assert np.any(np.asarray(model.norms[0].mean[...]) != before)
    model.eval()
    round_trip(model, tmp_path / "c.kjx")


def test_a_pruned_model_takes_less(tmp_path):
    model = random_mlp()
    kernel = model.layers[0].kernel
    keep = RNG.random(kernel.shape) < 0.1
    kernel.set_value(jax.device_put(np.where(keep, kernel[...], np.float32(0))))
    size = round_trip(model, tmp_path / "p.kjx")
    nonzero = int(np.sum(keep))
    assert size < 4 * (99_710 - 78_400) + 4 * nonzero + 78_400 * 0.48 / 8 + 200


def test_chosen_observables_cost_few_bits_each(tmp_path):
    chosen = np.sort(np.random.default_rng(0).choice(5151, 100, replace=False))
    small = nn.KoopmanBlock(
        obs.Select(obs.Monomials(2), chosen), nn.Dense(normal(100, 10)), trainable=False
    )
    size = round_trip(small, tmp_path / "s.kjx")
    assert size - 4 * 1000 < 100 + 100  # a byte an index, and the header


@pytest.mark.parametrize("trainable", [("head", "block", "tail"), "block"])
@pytest.mark.parametrize("at", [("layers.0/relu", "layers.2/relu"), ("input", "layers.1/relu")])
def test_a_spliced_mlp_holds_no_span(trainable, at, tmp_path):
    model = random_mlp((20, 16, 16, 16, 5))
    x = normal(6, 20)
    width = 20 if at[0] == "input" else 16
    block = nn.KoopmanBlock(
        obs.Identity(), nn.LowRank(normal(width, 3), normal(3, 16), normal(16)), trainable=False
    )
    spliced = surgery.splice(model, x, at, block, trainable=trainable)
    size = round_trip(spliced, tmp_path / "s.kjx", normal(3, 20))
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
    block = nn.Dense(normal(6, 6).astype(inner))
    spliced = surgery.splice(model, x, ("layers.0/relu", "layers.1/relu"), block)
    round_trip(spliced, tmp_path / "s.kjx")
    back = export.load(tmp_path / "s.kjx")
    assert back.block.matrix.dtype == inner
    for one in (back, spliced):
        out = nnx.eval_shape(lambda one, x: one(x), one, x)
        assert out.dtype == (jnp.float32 if mixed else jnp.bfloat16)


def test_a_spliced_cnn_position_by_position(tmp_path):
    model = filled(lambda: models.CNN((8, 8, 1), 10, (2, 3), 4, rngs=nnx.Rngs(0)))
    x = normal(4, 8, 8, 1)
    cuts = {c.name: c.shape for c in surgery.cut_points(model, x)}
    at = ("convs.1", "norms.1/relu")
    before, after = (cuts[name][-1] for name in at)
    block = nn.KoopmanBlock(obs.Monomials(1), nn.Dense(normal(before + 1, after)))
    spliced = surgery.splice(model, x, at, block, sample_axes="positions")
    round_trip(spliced, tmp_path / "s.kjx", x)


def test_a_changed_model_is_not_taken_for_what_its_name_says(tmp_path):
    model = random_mlp((4, 6, 3))
    model.layers[1] = nnx.Linear(6, 3, use_bias=False, rngs=nnx.Rngs(1))
    export.save(model, tmp_path / "m.kjx")
    assert not export.describe(tmp_path / "m.kjx").named
    with pytest.raises(export.FileError, match=r"a changed mlp, got none; try load\(path, model="):
        export.load(tmp_path / "m.kjx")
    same_bits(export.load(tmp_path / "m.kjx", model=model), model)


def test_a_loaded_model_trains_and_a_template_is_not_touched(tmp_path):
    model = random_mlp((4, 5, 3))
    export.save(model, tmp_path / "m.kjx")
    template = random_mlp((4, 5, 3))
    before = np.array(template.layers[0].kernel[...])
    back = export.load(tmp_path / "m.kjx", model=template)
    same_bits(back, model)
    np.testing.assert_array_equal(template.layers[0].kernel[...], before)
    trained(back, optax.sgd(0.1))
    assert np.abs(back.layers[0].kernel[...] - model.layers[0].kernel[...]).max() > 0


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
    x = normal(2, math.prod(rows)) if name == "outputs_inside" else None
    size = round_trip(operator, tmp_path / "t.kjx", x)
    numbers = sum(a.size for a in jax.tree.leaves(nnx.state(operator)))
    assert size - 4 * numbers < 50  # shapes and all
    frozen = nn.freeze(operator)
    round_trip(frozen, tmp_path / "f.kjx")
    core = operator.cores[0]
    core.set_value(jax.device_put(np.asarray(core[...]).astype(jnp.bfloat16)))
    same_bits(operator, export_and_load(operator, tmp_path / "m.kjx"))


def export_and_load(model, path):
    export.save(model, path)
    return export.load(path)


def test_a_block_on_a_tensor_train_has_a_lean_header(tmp_path):
    front = obs.Project(normal(20, 6), normal(20))
    psi = obs.Compose(front, obs.Product.of(obs.Polynomial1D(2, family="hermite"), 6))
    ranks = (1, 4, 4, 4, 4, 4, 1)
    cores = [normal(ranks[k], 3, 10 if k == 5 else 1, ranks[k + 1]) for k in range(6)]
    operator = nn.TT(cores, normal(10))
    block = nn.KoopmanBlock(psi, operator, trainable="operator")
    size = round_trip(block, tmp_path / "b.kjx")
    numbers = sum(a.size for a in jax.tree.leaves(nnx.state(block)))
    assert size - 4 * numbers < 100
    assert "operator/cores/0" in str(export.describe(tmp_path / "b.kjx"))
    train = nn.TT([normal(1, 4, 3, 2), normal(2, 5, 2, 1)])
    round_trip(nn.Stack([train, nn.Dense(normal(6, 2))], ("relu",)), tmp_path / "s.kjx")


def test_a_spliced_mlp_with_a_tensor_train(tmp_path):
    model = random_mlp((20, 16, 16, 16, 5))
    x = normal(6, 20)
    psi = obs.Compose(obs.Project(normal(16, 3)), obs.Product.of(obs.CosSin(), 3))
    train = nn.TT([normal(1, 2, 1, 2), normal(2, 2, 16, 2), normal(2, 2, 1, 1)])
    block = nn.KoopmanBlock(psi, train, trainable=False)
    spliced = surgery.splice(model, x, ("layers.0/relu", "layers.2/relu"), block)
    round_trip(spliced, tmp_path / "s.kjx", x)
