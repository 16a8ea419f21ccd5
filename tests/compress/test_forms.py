"""Models of every form are compressed: random streams, scans, shared layers, tied arrays, leaves
that are no arrays."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from koopjax import compress, export, models, nn
from koopjax.compress.layers._layers import (
    get,
    input_moments,
    inputs_of,
    linear_paths,
    marked,
)
from koopjax.compress.training._finetune import UNTIED
from tests import nets

KEY = jax.random.key(0)
X = np.random.default_rng(0).normal(size=(240, 5)).astype(np.float32)
CONVENTIONAL = [name for name in compress.METHODS if not name.startswith("koopman")]


class Dropping(nnx.Module):
    def __init__(self, seed):
        rngs = nnx.Rngs(seed)
        self.a, self.b = nnx.Linear(5, 14, rngs=rngs), nnx.Linear(14, 3, rngs=rngs)
        self.norm, self.drop = nnx.BatchNorm(14, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.b(self.drop(jax.nn.relu(self.norm(self.a(x)))))


@pytest.mark.parametrize("name", CONVENTIONAL)
def test_every_method_takes_a_model_with_dropout(name):
    model = nets.filled(lambda: Dropping(0))
    made = compress.METHODS[name](model, X, "1.2x", task="classification", key=KEY)
    assert made.report.ratio >= 1.2
    assert made.report.score > 0.5
    x = jnp.asarray(X[:8])
    answers = [models.predict(made.model, x) for _ in range(2)]
    np.testing.assert_array_equal(*answers)
    with jax.numpy_rank_promotion("allow"):  # of BatchNorm
        assert not np.allclose(made.model(x), answers[0])  # still drops, since the original does


@pytest.mark.slow
def test_koopman_takes_it_too():
    made = compress.koopman(
        nets.filled(lambda: Dropping(0)), X, "1.5x", task="classification", key=KEY
    )
    assert made.report.ratio >= 1.5
    assert made.report.score > 0.8


def roomy(compressed):
    """The same with room for what training makes of it."""
    return compressed._replace(report=dataclasses.replace(compressed.report, budget_bytes=10_000))


def test_fine_tuning_trains_with_dropout_and_is_scored_without():
    model = nets.filled(lambda: Dropping(0))
    made = roomy(compress.magnitude(model, X, "1.2x", task="classification", key=KEY))
    with jax.numpy_rank_promotion("allow"):
        tuned = compress.finetune(made, X, teacher=model, key=KEY, epochs=2, batch_size=40, x_val=X)
    answer = lambda m: np.argmax(models.predict(m, X), 1)
    agreement = np.mean(answer(tuned.model) == answer(model))
    assert agreement > 0.5
    assert tuned.report.score == pytest.approx(agreement)
    assert not np.allclose(tuned.model.norm.mean[...], model.norm.mean[...])
    count = lambda m: int(m.drop.rngs.count[...])
    assert count(tuned.model) == count(model) + 12  # one mask a step


class Recurrent(nnx.Module):
    def __init__(self, seed):
        rngs = nnx.Rngs(seed)
        self.cells, self.out = nnx.RNN(nnx.SimpleCell(4, 6, rngs=rngs)), nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, x):
        return self.out(self.cells(x)[:, -1])


SEQUENCES = np.random.default_rng(1).normal(size=(90, 5, 4)).astype(np.float32)


@pytest.mark.parametrize("name", ["magnitude", "svd", "wanda", "int8"])
def test_methods_for_layers_take_a_recurrent_network(name):
    with jax.numpy_rank_promotion("allow"):  # of the cell's biases
        made = compress.METHODS[name](
            nets.filled(lambda: Recurrent(0)), SEQUENCES, "1.3x", task="classification", key=KEY
        )
    assert made.report.ratio >= 1.3
    assert made.report.score > 0.5


def test_inputs_of_layers_in_a_scan_are_those_of_every_step():
    model = nets.filled(lambda: Recurrent(0))
    cell = model.cells.cell
    paths = linear_paths(model)
    assert paths == [("cells", "cell", "dense_h"), ("cells", "cell", "dense_i"), ("out",)]
    with jax.numpy_rank_promotion("allow"):
        found = input_moments(model, model, paths, jnp.asarray(SEQUENCES), 30)
    wide = lambda a: np.asarray(a, np.float64)
    hidden = np.zeros((90, 6))
    states = []
    for step in range(5):
        states.append(hidden)
        into = wide(SEQUENCES[:, step]) @ wide(cell.dense_i.kernel) + wide(cell.dense_i.bias)
        hidden = np.tanh(into + hidden @ wide(cell.dense_h.kernel))
    for rows, (own, both) in zip(
        [np.concatenate(states), SEQUENCES.reshape(-1, 4), hidden], found, strict=True
    ):
        rows = np.concatenate([np.ones((len(rows), 1)), rows], axis=1)
        np.testing.assert_allclose(own, rows.T @ rows / len(rows), atol=1e-5)
        np.testing.assert_allclose(both, own, atol=1e-6)


class Calls(nnx.Module):
    """One layer called twice, one under remat in a jit, one under a condition, one never."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.twice, self.deep, self.maybe, self.never = (
            nnx.Linear(3, 3, use_bias=False, rngs=rngs) for _ in range(4)
        )

    @nnx.jit
    def __call__(self, x):
        x = self.twice(self.twice(x))
        x = nnx.remat(lambda layer, x: layer(x))(self.deep, x)
        return nnx.cond(x[0, 0] > 0, lambda m, x: m(x), lambda m, x: x, self.maybe, x)


def test_inputs_of_layers_wherever_they_are_called():
    model, x = Calls(), jnp.asarray(X[:4, :3])
    paths = [("twice",), ("deep",), ("maybe",), ("never",)]
    found = inputs_of(marked(model, paths), x)
    assert sorted(found) == [0, 1]
    first = model.twice(x)
    np.testing.assert_allclose(found[0], jnp.concatenate([x, first]), atol=1e-6)
    np.testing.assert_allclose(found[1], model.twice(first), atol=1e-6)


class Sharing(nnx.Module):
    """A layer at two places, and two layers with one kernel, of a Variable or an array."""

    def __init__(self, seed, tie=None):
        rngs = nnx.Rngs(seed)
        self.layers = nnx.List([nnx.Linear(5, 5, rngs=rngs)] * 2)
        self.more = nnx.List([nnx.Linear(5, 5, rngs=rngs) for _ in range(2)])
        if tie is not None:
            held = self.more[0].kernel
            self.more[1].kernel = held if tie == "variable" else nnx.Param(held.get_value())

    def __call__(self, x):
        for layer in (*self.layers, *self.more):
            x = jnp.tanh(layer(x))
        return x


def test_a_layer_at_two_places_is_replaced_at_both():
    made = compress.svd(Sharing(0), X, "1.4x", key=KEY).model
    assert isinstance(made.layers[0], nn.LowRank)
    assert made.layers[0] is made.layers[1]


@pytest.mark.parametrize("tie", ["variable", "array"])
def test_tied_kernels_are_pruned_as_one_or_left_whole(tie):
    model = Sharing(0, tie)
    made = compress.magnitude(model, X, "2x", key=KEY)
    first, second = (layer.kernel.get_value() for layer in made.model.more)
    assert first is second
    numbers = [a for a in jax.tree.leaves(nnx.state(made.model, nnx.Param)) if a is not second]
    assert made.report.parameters == sum(np.count_nonzero(a) for a in [*numbers, second])
    assert linear_paths(model) == [("layers", 0)]
    made = compress.wanda(model, X, "1.2x", key=KEY).model
    assert made.more[0].kernel.get_value() is made.more[1].kernel.get_value()


def test_fine_tuning_says_what_it_unties():
    w = jnp.asarray(nets.normal(5, 5))
    net = (lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"].T, {"a": w, "b": w})
    made = compress.magnitude(net, X, "1.2x", key=KEY)
    assert made.model[1]["a"] is made.model[1]["b"]
    tuned = compress.finetune(roomy(made), X, teacher=net, key=KEY, epochs=2)
    assert UNTIED in tuned.report.notes


class Stacked(nnx.Module):
    """A stack that a scan goes through, then a layer whose kernel is normalised."""

    def __init__(self, seed):
        rngs = nnx.Rngs(seed)
        split = nnx.split_rngs(splits=3)
        self.stack = split(nnx.vmap(lambda rngs: nnx.Linear(5, 5, rngs=rngs)))(rngs)
        self.last = nnx.WeightNorm(nnx.Linear(5, 5, rngs=rngs), rngs=rngs)

    def __call__(self, x):
        step = nnx.scan(lambda x, layer: jnp.tanh(layer(x)), in_axes=(nnx.Carry, 0),
                        out_axes=nnx.Carry)  # fmt: skip
        return self.last(step(x, self.stack))


def test_kernels_that_are_no_matrix_of_their_own():
    model = Stacked(0)
    for name in ("obs", "tensor_train", "kmeans"):
        with pytest.raises(ValueError, match=r"matrices of their own.*try magnitude"):
            compress.METHODS[name](model, X, "2x", key=KEY)
    assert compress.magnitude(model, X, "1.5x", key=KEY).report.ratio >= 1.5


def test_a_pair_with_functions_among_its_parameters():
    params = {"act": jnp.tanh, "times": 2, "scale": 0.5, "w": jnp.asarray(nets.normal(5, 5))}

    def net(p, x):
        for _ in range(p["times"]):
            x = p["act"](x @ p["w"]) * p["scale"]
        return x

    made = compress.magnitude((net, params), X, "1.2x", key=KEY)
    tuned = compress.finetune(roomy(made), X, teacher=(net, params), key=KEY, epochs=2)
    for _, held in (made.model, tuned.model):
        assert (held["act"], held["times"]) == (jnp.tanh, 2)
    assert np.count_nonzero(tuned.model[1]["w"]) <= np.count_nonzero(made.model[1]["w"]) < 25
    assert export.stored_bytes(tuned.model) == tuned.report.stored_bytes
    assert get({"w": [1, 2]}, ("w", 1)) == 2
