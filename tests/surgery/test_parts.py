"""Parts as pytrees: what they hold, how often they compile, which dtypes and shapes they take."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from koopjax import models, observables, surgery
from koopjax.surgery import _parts, _program
from tests.nets import filled, linen_filled, normal, outputs

AT = ("layers.0/relu", "layers.2/relu")


def mlp(seed=0):
    return filled(lambda: models.MLP((6, 5, 5, 5, 3), rngs=nnx.Rngs(0)), seed)


def batch(n, seed=0):
    return normal(n, 6, seed=seed)


def test_parts_hold_just_what_they_use():
    model = mlp()
    head, span, tail = surgery.split(model, batch(4), AT)
    assert sorted(head.parameters) == ["layers.0.bias", "layers.0.kernel"]
    assert len(span.parameters) == 4
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(part)) for part in (head, span, tail)]
    assert sum(sizes) == sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    np.testing.assert_array_equal(tail.parameters["layers.3.bias"], model.layers[3].bias[...])


def test_no_second_compilation_or_trace():
    x = batch(8)
    for part in surgery.split(mlp(), x, AT):
        y = part(x)
        x = y
    compiled, traced = _parts._run._cache_size(), len(_program._PROGRAMS)
    for first in (8, 5):  # parts found at another batch size are the same parts
        value = batch(8, seed=1)
        for part in surgery.split(mlp(seed=1), batch(8)[:first], AT):
            value = part(value)
    assert _parts._run._cache_size() == compiled
    assert len(_program._PROGRAMS) <= traced + 2  # the two sizes that `split` looks at
    again = len(_program._PROGRAMS)
    surgery.cut_points(mlp(seed=2), batch(8))
    surgery.split(mlp(seed=2), batch(8), AT)
    assert len(_program._PROGRAMS) == again


def test_parts_are_arguments_of_a_jitted_function():
    traces = []

    @jax.jit
    def run(parts, x):
        traces.append(1)
        for part in parts:
            x = part(x)
        return x

    for seed in (0, 1):
        model = mlp(seed)
        got = run(surgery.split(model, batch(4), AT), batch(4))
        np.testing.assert_allclose(got, outputs(model, batch(4)), rtol=1e-5, atol=1e-6)
    assert len(traces) == 1


def test_an_ensemble_of_parts_is_a_vmap_over_their_leaves():
    nets = [mlp(seed) for seed in range(3)]
    spans = [surgery.split(net, batch(4), ("input", "layers.1"))[1] for net in nets]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *spans)
    got = jax.jit(jax.vmap(lambda span, x: span(x), (0, None)))(stacked, batch(4))
    np.testing.assert_allclose(got, np.stack([s(batch(4)) for s in spans]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_dtype_in_is_dtype_out(dtype):
    params = {"a": np.ones((6, 4), dtype), "b": np.ones((4, 3), dtype)}
    net = lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"]
    parts = surgery.split((net, params), batch(4).astype(dtype), (0, 1))
    x = batch(4).astype(dtype)
    for part in parts:
        x = part(x)
        assert x.dtype == dtype
    assert {leaf.dtype for leaf in jax.tree.leaves(parts)} == {jnp.dtype(dtype)}


def test_a_part_cast_to_another_dtype_computes_in_it():
    params = {"a": np.ones((6, 4), np.float32), "b": np.ones((4, 3), np.float32)}
    net = lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"]
    _, _, tail = surgery.split((net, params), batch(4), ("input", "a/tanh"))
    small = jax.tree.map(lambda a: a.astype(jnp.bfloat16), tail)
    assert small(jnp.ones((2, 4), jnp.bfloat16)).dtype == jnp.bfloat16
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda a: a.astype(jnp.float64), tail)
        assert wide(np.ones((2, 4))).dtype == jnp.float64


def test_other_shapes_are_refused():
    _, span, _ = surgery.split(mlp(), batch(4), AT)
    with pytest.raises(ValueError, match=r"shape \(n, 5\) at 'layers.0/relu', got \(4, 7\)"):
        span(np.ones((4, 7), np.float32))
    with pytest.raises(ValueError, match=r"got \(0, 5\)"):
        span(np.ones((0, 5), np.float32))
    with pytest.raises(ValueError, match="int32"):
        span(jnp.ones((4, 5), jnp.int32))


def test_a_model_of_one_batch_size_is_cut_at_that_size():
    net = lambda p, x: jnp.tanh((x @ p[0]).reshape(4, 6)) @ p[1]
    params = [np.eye(6, dtype=np.float32), np.eye(6, dtype=np.float32)]
    head, span, tail = surgery.split((net, params), batch(4), (0, 1))
    np.testing.assert_allclose(tail(span(head(batch(4)))), net(params, batch(4)), rtol=1e-6)
    with pytest.raises(ValueError, match=r"shape \(4, 6\)"):
        span(np.ones((3, 6), np.float32))


def test_closed_over_arrays_are_leaves_unless_they_follow_the_batch():
    w = normal(6, 6)

    def net(params, x):
        return jnp.tanh(x @ w) + jnp.asarray(np.arange(x.shape[0], dtype=np.float32))[:, None]

    head, span, tail = surgery.split((net, {}), batch(4), ("input", "output"))
    assert (len(head.parameters), len(tail.parameters)) == (0, 0)
    assert [leaf.shape for leaf in span.parameters.values()] == [(6, 6)]
    np.testing.assert_allclose(span(batch(3)), net({}, batch(3)), rtol=1e-6)
    doubled = jax.tree.map(lambda a: 2 * a, span)
    assert not np.allclose(doubled(batch(3)), span(batch(3)))


def test_a_model_that_closes_over_traced_arrays():
    def loss(w, x):
        net = lambda p, x: jnp.tanh(x @ w) @ p
        head, span, tail = surgery.split((net, np.eye(6, dtype=np.float32)), x, (0, 1))
        return jnp.sum(tail(span(head(x))) ** 2)

    direct = lambda w, x: jnp.sum(jnp.tanh(x @ w) ** 2)
    w = normal(6, 6, seed=1)
    for _ in range(2):
        got = jax.jit(jax.grad(loss))(w, batch(4))
        want = jax.jit(jax.grad(direct))(w, batch(4))
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_a_callable_pytree_is_a_model():
    _, span, _ = surgery.split(mlp(), batch(4), ("input", "layers.2"))
    cuts = surgery.cut_points(span, batch(4))
    assert [cut.name for cut in cuts][-1] == "layers.2"
    assert surgery.apply(span, batch(2)).shape == (2, 5)
    assert "layers.2" in repr(span)


class Moded(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(6, 5, rngs=rngs), nnx.Linear(5, 3, rngs=rngs)])

    def __call__(self, x, train=True):
        x = self.layers[0](x)
        return self.layers[1](-x if train else jax.nn.relu(x))


class LinenModed(linen.Module):
    @linen.compact
    def __call__(self, x, inference=False):
        x = linen.Dense(5, name="a")(x)
        return linen.Dense(3, name="b")(jax.nn.relu(x) if inference else -x)


def moded_function(params, x, train):
    x = x @ params["a"]
    return (-x if train else jax.nn.relu(x)) @ params["b"]


@pytest.mark.parametrize("form", ["nnx", "linen", "function"])
def test_inference_is_one_thing_in_models_surgery_and_observables(form):
    x = batch(4)
    if form == "nnx":
        model, at = filled(lambda: Moded(nnx.Rngs(0))), (1, "output")
    elif form == "linen":
        model, at = (LinenModed(), linen_filled(LinenModed(), x)), (1, "output")
    else:
        params = {"a": normal(6, 5), "b": normal(5, 3, seed=1)}
        model, at = (moded_function, params), (1, "output")
    head, span, tail = surgery.split(model, x, at)
    whole = models.predict(model, x)
    np.testing.assert_allclose(tail(span(head(x))), whole, atol=1e-5)
    np.testing.assert_allclose(observables.Neural(model)(x), whole, atol=1e-5)
