"""Where models can be cut, what the cuts are called and what lies before them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from koopjax import models, surgery
from tests.nets import filled, normal, outputs


@pytest.fixture
def mlp():
    return filled(lambda: models.MLP((6, 5, 5, 5, 3), rngs=nnx.Rngs(0)))


def names(model, x, **options):
    return [cut.name for cut in surgery.cut_points(model, x, **options)]


def test_cuts_of_an_mlp(mlp):
    cuts = surgery.cut_points(mlp, np.ones((4, 6), np.float32))
    assert [cut.name for cut in cuts][:4] == [
        "layers.0.kernel",
        "layers.0",
        "layers.0/relu",
        "layers.1.kernel",
    ]
    assert len(cuts) == 11
    assert [cut.index for cut in cuts] == list(range(11))
    first, relu, last = cuts[0], cuts[2], cuts[-1]
    assert (first.shape, first.sample_shape, first.primitive) == ((4, 5), (5,), "dot_general")
    assert (first.parameters, first.flops) == (30, 60)
    assert (relu.parameters, relu.flops, relu.nonlinear) == (35, 70, True)
    assert last.parameters == sum(leaf.size for leaf in jax.tree.leaves(nnx.state(mlp)))
    assert last.dtype == np.float32
    assert surgery.middle(mlp, np.ones((4, 6), np.float32)) == ("layers.0/relu", "layers.2/relu")


def test_abstract_input_and_another_batch_size_give_the_same_names(mlp):
    abstract = jax.ShapeDtypeStruct((1, 6), jnp.float32)
    assert names(mlp, abstract) == names(mlp, np.ones((9, 6)))


def test_tags_win_and_stand_for_the_value_that_they_tag():
    def net(params, x):
        for layer in params:
            x = checkpoint_name(jnp.tanh(x @ layer), "hidden")
        return x

    params = [np.eye(3, dtype=np.float32), np.eye(3, dtype=np.float32)]
    assert names((net, params), np.ones((2, 3), np.float32)) == [
        "params.0",
        "hidden",
        "params.1",
        "hidden@2",
    ]


def test_layers_by_pairs_and_top_level_parameters_are_named():
    x = np.ones((2, 3), np.float32)
    pairs = [(np.eye(3, dtype=np.float32), jnp.ones(3)), (np.eye(3, dtype=np.float32), jnp.ones(3))]

    def net(params, x):
        for w, b in params:
            x = jax.nn.relu(x @ w + b[None])
        return x

    assert names((net, pairs), x)[:3] == ["params.0.0", "params.0", "params.0/relu"]
    flat = {"w": np.eye(3, dtype=np.float32), "b": jnp.ones(3)}
    assert names((lambda p, x: jnp.sin(x @ p["w"] + p["b"][None]), flat), x) == ["w", "b", "b/sin"]


def test_tied_parameters_count_once_and_their_uses_are_told_apart():
    w = np.eye(3, dtype=np.float32)
    cuts = surgery.cut_points((lambda w, x: jnp.tanh(x @ w) @ w, w), np.ones((2, 3), np.float32))
    assert [cut.name for cut in cuts] == ["params", "params/tanh", "params@2"]
    assert cuts[-1].parameters == 9


def test_the_residual_stream_is_cut_and_a_branch_is_not():
    model = filled(lambda: models.ResidualMLP(6, 4, 2, 3, rngs=nnx.Rngs(0)))
    cuts = surgery.cut_points(model, np.ones((2, 6), np.float32))
    streams = [cut for cut in cuts if cut.primitive == "add" and cut.sample_shape == (4,)]
    assert len(streams) >= 2
    assert not any("inner" in cut.name for cut in cuts)


def scanned(params, x):
    h, _ = jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x @ params["in"], params["blocks"])
    return h @ params["out"]


SCAN = {
    "in": np.eye(3, dtype=np.float32),
    "blocks": np.ones((3, 3, 3), np.float32),
    "out": np.eye(3, dtype=np.float32),
}


def test_scan_is_cut_before_and_after_and_between_its_steps_when_unrolled():
    x = np.ones((2, 3), np.float32)
    assert names((scanned, SCAN), x) == ["in", "blocks", "out"]
    cuts = surgery.cut_points((scanned, SCAN), x, unroll=True)
    assert [cut.name for cut in cuts][1:5] == [
        "blocks.0",
        "blocks.0/tanh",
        "blocks.1",
        "blocks.1/tanh",
    ]
    assert [cut.parameters for cut in cuts][:4] == [9, 18, 18, 27]
    assert cuts[-1].parameters == 45


@pytest.mark.parametrize("reverse", [False, True])
def test_unrolled_scan_with_stacked_outputs_is_the_scan(reverse):
    def net(w, x):
        body = lambda h, v: (jnp.tanh(h @ v), h * 2)
        h, every = jax.lax.scan(body, x, w, reverse=reverse)
        return h + every[0] + every[-1]

    w = normal(3, 4, 4)
    x = normal(2, 4, seed=1)
    _, span, _ = surgery.split((net, w), x, ("input", "output"), unroll=True)
    np.testing.assert_allclose(span(x), jax.jit(net)(w, x), rtol=1e-6)


def test_nnx_layers_under_scan():
    class Deep(nnx.Module):
        def __init__(self, rngs):
            make = nnx.vmap(lambda r: nnx.Linear(3, 3, rngs=r), in_axes=0, out_axes=0)
            self.layers = nnx.split_rngs(splits=3)(make)(rngs)
            self.out = nnx.Linear(3, 2, rngs=rngs)

        def __call__(self, x):
            step = nnx.scan(lambda h, layer: (nnx.relu(layer(h)), None), in_axes=(nnx.Carry, 0))
            return self.out(step(x, self.layers)[0])

    model, x = filled(lambda: Deep(nnx.Rngs(0))), normal(4, 3)
    want = outputs(model, x)
    cuts = surgery.cut_points(model, x, unroll=True)
    assert sum("relu" in cut.name for cut in cuts) == 3
    pairs = [surgery.split(model, x, ("input", c.name), unroll=True)[1:] for c in cuts]
    for got in jax.jit(lambda pairs, x: [tail(span(x)) for span, tail in pairs])(pairs, x):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_find(mlp):
    cuts = surgery.cut_points(mlp, np.ones((4, 6), np.float32))
    assert surgery.find(cuts, "layers.1") is cuts[4]
    assert surgery.find(cuts, 4) is cuts[4]
    assert surgery.find(cuts, cuts[4]) is cuts[4]
    assert surgery.find(cuts, "output") is cuts[-1]
    with pytest.raises(ValueError, match=r"layers\.1"):
        surgery.find(cuts, "layers1")
    with pytest.raises(ValueError, match="from 0 to 10, got 11"):
        surgery.find(cuts, 11)


def test_a_cut_inside_a_branch_is_refused_with_the_nearest_that_separate():
    def net(params, x):
        h = x @ params[0]
        h = h + checkpoint_name(jnp.tanh(h @ params[1]), "branch") @ params[2]
        return h @ params[3]

    params = [np.eye(3, dtype=np.float32)] * 4
    x = np.ones((2, 3), np.float32)
    assert "branch" not in names((net, params), x)
    with pytest.raises(ValueError, match=r"'branch'.*nearest.*'params\.0' or 'params\.2/add'"):
        surgery.split((net, params), x, ("branch", "output"))


@pytest.mark.parametrize(
    ("at", "match"),
    [
        (("layers.2", "layers.1"), "before"),
        (("layers.1", "layers.1"), "before"),
        ("layers.1", "a pair of cuts"),
        ((0, 1, 2), "a pair of cuts"),
        (("nowhere", "output"), "the name or index of a cut"),
        ((-1, 3), "a cut index from 0"),
    ],
)
def test_bad_pairs(mlp, at, match):
    with pytest.raises(ValueError, match=match):
        surgery.split(mlp, np.ones((4, 6), np.float32), at)


def test_bad_models_and_inputs(mlp):
    x = np.ones((4, 6), np.float32)
    with pytest.raises(ValueError, match="returns one array, got tuple"):
        surgery.cut_points((lambda p, x: (x, x), {}), x)
    with pytest.raises(ValueError, match="computed from its input"):
        surgery.cut_points((lambda p, x: jnp.ones(3), {}), x)
    with pytest.raises(ValueError, match="computed from its input"):
        surgery.cut_points((lambda p, x: x, {}), x)
    with pytest.raises(ValueError, match="a callable, got int"):
        surgery.cut_points(3, x)
    with pytest.raises(ValueError, match="pair \\(module, variables\\)"):
        surgery.cut_points(models.linen.MLP((6, 3)), x)
    with pytest.raises(ValueError, match="at least one sample"):
        surgery.cut_points(mlp, np.ones((0, 6), np.float32))
    with pytest.raises(ValueError, match="one array"):
        surgery.cut_points(mlp, {"image": x})
    with pytest.raises(ValueError, match="two hidden layers"):
        surgery.middle(filled(lambda: models.MLP((6, 5, 3), rngs=nnx.Rngs(0))), x)


def test_the_model_stays_in_training_mode():
    model = filled(lambda: models.CNN((8, 8, 1), 3, channels=(2,), hidden=4, rngs=nnx.Rngs(0)))
    model.train()
    before = nnx.split(model)
    surgery.cut_points(model, np.ones((2, 8, 8, 1), np.float32))
    after = nnx.split(model)
    assert before[0] == after[0]
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), before[1], after[1]))
