"""A block in the place of a span: it trains, saves and loads like any Flax model."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from safetensors.numpy import load_file, save_file

from koopjax import models, nn, surgery
from tests.nets import filled, linen_filled, normal, outputs

AT = ("layers.0/relu", "layers.2/relu")


@pytest.fixture
def model():
    return filled(lambda: models.MLP((6, 5, 5, 5, 3), rngs=nnx.Rngs(0)))


@pytest.fixture
def x():
    return normal(8, 6)


def linear(seed=1, out=5):
    return filled(lambda: nnx.Linear(5, out, rngs=nnx.Rngs(0)), seed)


@nnx.jit
def by_hand(model, block, x):
    return model.layers[3](block(nnx.relu(model.layers[0](x))))


def test_the_exact_span_reproduces_the_model(model, x):
    span = surgery.split(model, x, AT)[1]
    got = outputs(surgery.splice(model, x, AT, span), x)
    np.testing.assert_allclose(got, outputs(model, x), atol=1e-6)


def test_blocks_of_every_kind(model, x):
    block = linear()
    want = by_hand(model, block, x)
    dense = linen.Dense(5)
    arrays = {"kernel": block.kernel[...], "bias": block.bias[...]}
    affine = lambda p, h: h @ p["kernel"] + p["bias"][None]
    kinds = {
        "nnx": block,
        "linen": (dense, {"params": arrays}),
        "function": (affine, arrays),
        "tree": jax.tree_util.Partial(affine, arrays),
        "part": surgery.split((affine, arrays), jnp.ones((2, 5)), ("input", "output"))[1],
    }
    for kind, given in kinds.items():
        made = surgery.splice(model, x, AT, given)
        np.testing.assert_allclose(outputs(made, x), want, rtol=1e-5, atol=1e-6, err_msg=kind)
        assert len(jax.tree.leaves(nnx.state(made.block, nnx.Param))) == 2, kind
    plain = surgery.splice(model, x, AT, jnp.tanh)
    by_tanh = lambda model, x: model.layers[3](jnp.tanh(nnx.relu(model.layers[0](x))))
    want = nnx.jit(by_tanh)(model, x)
    np.testing.assert_allclose(plain(x), want, rtol=1e-5, atol=1e-6)


def test_under_jit_vmap_and_grad(model, x):
    made = surgery.splice(model, x, AT, linear())
    want = by_hand(model, made.block, x)
    np.testing.assert_allclose(outputs(made, x), want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(made(x), want, rtol=1e-5, atol=1e-6)

    @nnx.jit
    def mapped_and_gradients(made, model, x):
        plain = lambda x: model.layers[3](made.block(nnx.relu(model.layers[0](x))))
        gradients = [jax.grad(lambda x, f=f: f(x).sum())(x) for f in (made, plain)]
        return jax.vmap(made)(x), *gradients

    mapped, got, expected = mapped_and_gradients(made, model, x)
    np.testing.assert_allclose(mapped, want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def train(made, x, steps=20):
    optimizer = nnx.Optimizer(made, optax.adam(0.01), wrt=nnx.Param)

    @nnx.jit
    def step(made, optimizer, x):
        loss, grads = nnx.value_and_grad(lambda made: jnp.mean((made(x) - 1.0) ** 2))(made)
        optimizer.update(made, grads)
        return loss

    return [float(step(made, optimizer, x)) for _ in range(steps)]


def test_it_trains_and_the_original_stays(model, x):
    before = jax.tree.map(np.array, nnx.state(model))
    block = linear()
    kernel = block.kernel[...]
    made = surgery.splice(model, x, AT, block)
    losses = train(made, x)
    assert losses[-1] < 0.7 * losses[0]
    jax.tree.map(np.testing.assert_array_equal, nnx.state(model), before)
    np.testing.assert_array_equal(block.kernel[...], kernel)
    assert not np.array_equal(made.block.kernel[...], kernel)


@pytest.mark.parametrize("place", ["head", "block", "tail"])
def test_only_the_chosen_place_trains(model, x, place):
    made = surgery.splice(model, x, AT, linear(), trainable=place)
    before = {
        name: jax.tree.map(np.array, nnx.state(getattr(made, name)))
        for name in ("head", "block", "tail")
    }
    train(made, x, steps=2)
    for name, old in before.items():
        same = jax.tree.map(np.array_equal, nnx.state(getattr(made, name)), old)
        assert all(jax.tree.leaves(same)) == (name != place)


def test_it_saves_and_loads(model, x, tmp_path):
    made = surgery.splice(model, x, AT, linear())
    train(made, x, steps=2)
    flat = {
        "/".join(map(str, p)): np.asarray(v[...]) for p, v in nnx.to_flat_state(nnx.state(made))
    }
    assert "head/parameters/layers.0.kernel" in flat
    save_file(flat, tmp_path / "made.safetensors")
    other = filled(lambda: models.MLP((6, 5, 5, 5, 3), rngs=nnx.Rngs(0)), seed=9)
    fresh = surgery.splice(other, x, AT, linear(seed=8))
    assert not np.allclose(outputs(fresh, x), outputs(made, x))
    loaded = load_file(tmp_path / "made.safetensors")
    state = nnx.state(fresh)
    for path, variable in nnx.to_flat_state(state):
        variable[...] = jax.device_put(loaded["/".join(map(str, path))])
    nnx.update(fresh, state)
    np.testing.assert_array_equal(outputs(fresh, x), outputs(made, x))


def test_orbax_round_trip(model, x, tmp_path):
    import orbax.checkpoint as ocp

    state = nnx.state(surgery.splice(model, x, AT, linear()))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "made", nnx.to_pure_dict(state))
        checkpointer.wait_until_finished()
        pure = checkpointer.restore(tmp_path / "made", nnx.to_pure_dict(state))
    blank = jax.tree.map(np.zeros_like, state)
    nnx.replace_by_pure_dict(blank, pure)
    jax.tree.map(np.testing.assert_array_equal, blank, state)


def test_a_span_that_changes_shape_and_a_span_to_the_logits(model, x):
    made = surgery.splice(model, x, ("layers.0/relu", "output"), linear(out=3))
    want = nnx.jit(lambda made, model, x: made.block(nnx.relu(model.layers[0](x))))(made, model, x)
    np.testing.assert_allclose(outputs(made, x), want, rtol=1e-5, atol=1e-6)
    wide = filled(lambda: nnx.Linear(6, 5, rngs=nnx.Rngs(0)))
    from_input = surgery.splice(model, x, ("input", 2), wide)
    assert nnx.eval_shape(outputs, from_input, x).shape == (8, 3)
    assert not from_input.head.parameters


def test_running_statistics_are_no_parameters_and_positions_share_a_block():
    cnn = filled(lambda: models.CNN((8, 8, 1), 3, channels=(2, 3), hidden=4, rngs=nnx.Rngs(0)))
    images = normal(4, 8, 8, 1)
    at = ("convs.0", "norms.0/relu")
    pointwise = filled(lambda: nnx.Linear(2, 2, rngs=nnx.Rngs(1)))
    want = outputs(surgery.splice(cnn, images, at, lambda h: pointwise(h)), images)
    made = surgery.splice(cnn, images, at, pointwise, sample_axes="positions")
    np.testing.assert_allclose(outputs(made, images), want, rtol=1e-5, atol=1e-6)
    assert nnx.eval_shape(outputs, made, images[:2]).shape == (2, 3)
    kinds = {type(v) for _, v in nnx.to_flat_state(nnx.state(made))}
    assert nnx.BatchStat in kinds
    assert not jax.tree.leaves(nnx.state(made.head, nnx.BatchStat))
    whole = filled(lambda: nnx.Linear(128, 128, rngs=nnx.Rngs(1)))
    flat = surgery.splice(cnn, images, at, whole, sample_axes="flatten")
    assert nnx.eval_shape(outputs, flat, images).shape == (4, 3)
    train(made, images, steps=2)


def test_linen_and_plain_models_become_flax_models(x):
    module = models.linen.MLP((6, 5, 5, 3))
    variables = linen_filled(module, x)
    made = surgery.splice((module, variables), x, surgery.middle((module, variables), x), linear())
    assert sorted(made.head.parameters) == ["layers_0.bias", "layers_0.kernel"]
    losses = train(made, x)
    assert losses[-1] < 0.9 * losses[0]
    params = [jnp.eye(6), jnp.eye(6)]
    net = lambda p, x: jnp.tanh(x @ p[0]) @ p[1]
    assert surgery.splice((net, params), x, (0, 1), jnp.sin)(x).shape == (8, 6)


def test_tied_parameters_stay_one_variable(x):
    net = lambda w, x: jnp.tanh(jnp.tanh(x @ w) @ w.T)
    w = 0.3 * normal(6, 6)
    made = surgery.splice((net, w), x, ("params", "params/tanh"), jnp.sin, trainable=("tail",))
    assert len(nnx.to_flat_state(nnx.state(made, nnx.Param))) == 1
    train(made, x, steps=2)
    np.testing.assert_array_equal(
        made.head.parameters["params"][...], made.tail.parameters["params"][...]
    )


def test_a_spliced_model_is_spliced_again(model, x):
    once = surgery.splice(model, x, ("layers.0/relu", "layers.1/relu"), linear())
    names = [cut.name for cut in surgery.cut_points(once, x)]
    assert "head.layers.0/relu" in names
    twice = surgery.splice(once, x, ("tail.layers.2", "tail.layers.2/relu"), jnp.tanh)
    assert nnx.eval_shape(outputs, twice, x).shape == (8, 3)
    assert train(twice, x, steps=3)[-1] < np.inf


def test_a_frozen_koopman_block(model, x):
    from koopjax import edmd, observables

    pairs = next(surgery.capture(model, x, AT))
    fit = edmd.fit(observables.Monomials(1), *pairs, solver=edmd.Ridge(1e-3))
    made = surgery.splice(model, x, AT, nn.from_koopman(fit, trainable=False))
    frozen = jax.tree.map(np.array, nnx.state(made.block))
    train(made, x, steps=2)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, nnx.state(made.block), frozen)))


def test_the_skeleton_knows_the_original(model, x):
    made = surgery.splice(model, x, AT, linear())
    bare = made.skeleton()
    assert isinstance(bare, models.MLP)
    np.testing.assert_array_equal(bare.layers[0].kernel[...], model.layers[0].kernel[...])
    assert not np.any(bare.layers[1].kernel[...])
    again = surgery.splice(bare, x, AT, made.block)
    np.testing.assert_allclose(outputs(again, x), outputs(made, x), atol=1e-6)


def test_no_recompilation_on_the_second_splice(model, x):
    traces = []

    @jax.jit
    def run(state, x):
        traces.append(1)
        return nnx.merge(graphdef, state)(x)

    for seed in (1, 2):
        graphdef, state = nnx.split(surgery.splice(model, x, AT, linear(seed)))
        run(state, x)
    assert len(traces) == 1


def test_bad_blocks(model, x):
    with pytest.raises(
        ValueError, match=r"float32\[8, 5\] at 'layers.2/relu', got one that returns"
    ):
        surgery.splice(model, x, AT, linear(out=4))
    with pytest.raises(ValueError, match="fails there"):
        surgery.splice(model, x, AT, filled(lambda: nnx.Linear(7, 5, rngs=nnx.Rngs(0))))
    with pytest.raises(ValueError, match="can be called"):
        surgery.splice(model, x, AT, np.eye(5))
    with pytest.raises(ValueError, match="trainable among"):
        surgery.splice(model, x, AT, linear(), trainable="heads")
    with pytest.raises(ValueError, match="returns tuple"):
        surgery.splice(model, x, AT, lambda h: (h, h))


def test_one_sample_where_the_batch_is_on_another_axis_is_refused():
    net = (lambda p, x: jnp.tanh(x @ p).swapaxes(0, 1), jnp.ones((2, 3)))
    x = jnp.ones((5, 4, 2))
    made = surgery.splice(net, x, (0, "output"), surgery.split(net, x, (0, "output"))[1])
    assert made(x).shape == (4, 5, 3)
    with pytest.raises(ValueError, match=r"a batch of shape \(n, 4, 2\), got one sample"):
        made(x[0])
