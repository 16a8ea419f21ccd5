"""Derivative and mapping rules of a model's own, in head, span and tail alike."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name

from koopjax import surgery

RNG = np.random.default_rng(0)
W = [jnp.asarray(RNG.normal(size=(3, 3)) / 2, jnp.float32) for _ in range(3)]
X = jnp.asarray(RNG.normal(size=(4, 3)), jnp.float32)


@jax.custom_vjp
def reverse(h):
    return h


reverse.defvjp(lambda h: (h, None), lambda _, g: (-0.7 * g,))


@jax.custom_vjp
def scaled(w, h):
    """A layer whose rule is no derivative of it: 5 times by its weights, twice by its input."""
    return jnp.tanh(checkpoint_name(h @ w, "inside"))


def _scaled_backward(saved, g):
    w, h, y = saved
    g = g * (1 - y**2)
    return 5 * h.T @ g, 2 * g @ w.T


def _scaled_forward(w, h):
    y = scaled(w, h)
    return y, (w, h, y)


scaled.defvjp(_scaled_forward, _scaled_backward)


@jax.custom_jvp
def straight(h):
    """Rounding with a slope of 0.3."""
    return jnp.round(h)


@straight.defjvp
def _straight_rule(primals, tangents):
    return straight(*primals), 0.3 * tangents[0]


@jax.custom_batching.custom_vmap
def counted(h):
    return 2.0 * h


@counted.def_vmap
def _counted_rule(size, batched, h):
    del size
    return 3.0 * h, batched[0]


def under_scan(p, x):
    step = lambda h, w: (scaled(w, reverse(h)), None)
    return jax.lax.scan(step, x, jnp.stack(p[:2]))[0] @ p[2]


NETS = {
    "reversal": lambda p, x: reverse(jnp.tanh(x @ p[0])) @ p[1] @ p[2],
    "layer": lambda p, x: jnp.tanh(scaled(p[1], x @ p[0])) @ p[2],
    "forward rule": lambda p, x: jnp.sin(straight(x @ p[0]) @ p[1]),
    "in jit": lambda p, x: jax.jit(lambda h, w: reverse(h @ w))(x, p[0]) @ p[1],
    "in remat": lambda p, x: jax.checkpoint(lambda h, w: scaled(w, h @ w) @ w)(x, p[0]) @ p[1],
    "at the ends": lambda p, x: reverse(straight(reverse(x) @ p[0])),
    "in a branch": lambda p, x: jax.lax.cond(x[0, 0] > 0, reverse, lambda h: h, x @ p[0]) @ p[1],
    "scan": under_scan,
}


@pytest.mark.parametrize(("name", "unroll"), [*((name, False) for name in NETS), ("scan", True)])
def test_gradients_by_inputs_and_parameters_are_the_models(name, unroll):
    net = NETS[name]
    cuts = [cut.name for cut in surgery.cut_points((net, W), X, unroll=unroll)]
    ends = ["input", *cuts]
    pairs = [(ends[k], ends[-1 - k // 2]) for k in range(len(cuts)) if k < len(cuts) - k // 2]

    def loss(p, x):
        total = 0.0
        for at in pairs:
            head, span, tail = surgery.split((net, p), x, at, unroll=unroll)
            total += jnp.sum(tail(span(head(x))) ** 2)
        return total / len(pairs)

    want = jax.jit(jax.grad(lambda p, x: jnp.sum(net(p, x) ** 2), (0, 1)))(W, X)
    got = jax.jit(jax.grad(loss, (0, 1)))(W, X)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, want)


def test_forward_mode_goes_by_the_rule():
    net = NETS["forward rule"]
    head, span, tail = surgery.split((net, W), X, ("params.0", "params.1"))
    push = lambda f: jax.jit(lambda x: jax.jvp(f, (x,), (x,))[1])(X)
    np.testing.assert_allclose(
        push(lambda x: tail(span(head(x)))), push(lambda x: net(W, x)), rtol=1e-5
    )


def test_a_mapping_rule_is_kept():
    net = lambda p, x: counted(jnp.tanh(x @ p)) @ p
    _, span, _ = surgery.split((net, W[0]), X, ("params/tanh", "params/counted"))
    np.testing.assert_allclose(span(X), 2 * X)
    np.testing.assert_allclose(jax.vmap(span)(X[None]), 3 * X[None])


def test_such_a_call_is_one_step_with_a_name_of_its_own():
    names = [cut.name for cut in surgery.cut_points((NETS["reversal"], W), X)]
    assert names == ["params.0", "params.0/tanh", "params.0/reverse", "params.1", "params.2"]
    layer = surgery.cut_points((NETS["layer"], W), X)
    assert [cut.name for cut in layer] == [
        "params.0",
        "params.1/tanh",
        "params.1/tanh@2",
        "params.2",
    ]
    with pytest.raises(ValueError, match="'inside'"):
        surgery.split((NETS["layer"], W), X, ("input", "inside"))
