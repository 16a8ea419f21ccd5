"""Every cut of every model: head, span and tail together are the model."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from jax.ad_checkpoint import checkpoint_name

from koopjax import models, surgery
from tests.nets import filled, linen_filled, normal


class Foreign(nnx.Module):
    """A model that knows nothing of koopjax: convolution, dropout, residual, remat, own loops."""

    def __init__(self, rngs):
        self.stem = nnx.Conv(1, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.up = nnx.Linear(4, 6, rngs=rngs)
        self.down = nnx.Linear(6, 4, rngs=rngs)
        self.gain = nnx.Param(jnp.ones(4) * 0.7)
        self.out = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        h = jax.nn.gelu(self.norm(self.stem(x)))
        h = self.drop(h).reshape(x.shape[0], -1, 4)
        h = h + self.down(checkpoint_name(nnx.silu(self.up(h)), "branch"))
        h = checkpoint_name(h, "stream")
        h = jax.checkpoint(lambda a, g: jnp.tanh(a) * g[None, None])(h, self.gain[...])
        return self.out(jax.jit(lambda a: a.mean(1))(h))


class ForeignLinen(linen.Module):
    """A Linen model with BatchNorm and dropout that must be told it is not training."""

    @linen.compact
    def __call__(self, x, train=True):
        x = linen.Dense(5)(x)
        x = linen.BatchNorm(use_running_average=not train)(x)
        x = linen.Dropout(0.5, deterministic=not train)(linen.relu(x))
        return linen.Dense(2)(x)


def scanned(params, x):
    """Layers under scan, with a remat inside."""

    @jax.checkpoint
    def layer(h, p):
        return h + jnp.tanh(h @ p["w"] + p["b"][None]), None

    h, _ = jax.lax.scan(layer, x @ params["in"], params["layers"])
    return h @ params["out"]


def tokens(params, ids):
    """Token ids in, a batch folded into the token axis on the way, tied embedding out."""
    h = params["embed"][ids] + params["place"][None]
    scores = jnp.einsum("nqd,nkd->nqk", h @ params["q"], h)
    h = h + jax.nn.softmax(scores) @ h
    h = jax.nn.relu(h.reshape(-1, h.shape[-1]) @ params["mix"])
    return h.reshape(*ids.shape, -1).mean(1) @ params["embed"].T


def baked(params, x):
    """The batch size as a number in reshapes, constants and axes, not always in front."""
    n = x.shape[0]
    h = (x @ params[0]).T.reshape(2, 3, n)
    h = h + jnp.asarray(np.full((1, 1, n), 1.0 / n, np.float32))
    return jax.nn.relu(h.reshape(6, n).T) @ params[1]


def made(name):
    """The model, its plain forward function and a maker of inputs."""

    def vectors(n):
        return normal(n, 6, seed=n)

    def images(n):
        return normal(n, 8, 8, 1, seed=n)

    kinds = {
        "mlp": (lambda rngs: models.MLP((6, 5, 4, 3), rngs=rngs), vectors),
        "cnn": (
            lambda rngs: models.CNN((8, 8, 1), 3, channels=(2, 3), hidden=4, rngs=rngs),
            images,
        ),
        "residual": (lambda rngs: models.ResidualMLP(6, 4, 2, 3, rngs=rngs), vectors),
        "vit": (
            lambda rngs: models.ViT((8, 8, 1), 3, 4, width=4, depth=1, heads=2, rngs=rngs),
            images,
        ),
        "foreign": (Foreign, images),
    }
    if name in kinds:
        build, make = kinds[name]
        model = filled(lambda: build(nnx.Rngs(0)))
        still = nnx.clone(model)
        still.eval()
        graph, state = nnx.split(still)
        return model, jax.jit(lambda x: nnx.merge(graph, state)(x)), make
    if name.startswith("linen"):
        module = {
            "linen mlp": lambda: models.linen.MLP((6, 5, 3)),
            "linen cnn": lambda: models.linen.CNN(3, channels=(2, 3), hidden=4),
            "linen foreign": ForeignLinen,
        }[name]()
        make = images if name == "linen cnn" else vectors
        still = {} if name == "linen mlp" else {"train": False}
        variables = linen_filled(module, make(1), **still)
        return (module, variables), jax.jit(lambda x: module.apply(variables, x, **still)), make
    w = 0.5 * normal(5, 6, 6)
    first, second = jax.device_put(w[0]), jax.device_put(w[1])
    function, params, make = {
        "scan": (
            scanned,
            {"in": w[0], "out": w[1], "layers": {"w": w[2:], "b": w[2:, 0]}},
            vectors,
        ),
        "tokens": (
            tokens,
            {"embed": w[0], "place": w[1, :4], "q": w[2], "mix": w[3]},
            lambda n: np.random.default_rng(n).integers(0, 6, (n, 4)).astype(np.int32),
        ),
        "baked": (baked, [w[0], w[1]], vectors),
        "jitted": (jax.jit(lambda p, x: jnp.tanh(x @ p) @ p.T), w[0], vectors),
        "closure": (lambda p, x: jax.nn.relu(x @ first) @ second, {}, vectors),
    }[name]
    params = jax.tree.map(jax.device_put, params)
    return (function, params), jax.jit(functools.partial(function, params)), make


NAMES = ["mlp", "cnn", "residual", "vit", "linen mlp", "linen cnn"]
MANY_CUTS = ["vit", "cnn", "linen cnn", "foreign"]
OWN = ["foreign", "linen foreign", "scan", "tokens", "baked", "jitted", "closure"]


#: Tiny programs, each run once: what LLVM could gain is less than what it takes.
quick_jit = functools.partial(
    jax.jit,
    compiler_options={
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
    },
)


@quick_jit
def carried(steps, tails, x):
    """The output as carried on from each cut, the state there found step by step from `x`."""
    outputs = []
    for step, tail in zip(steps, tails, strict=True):
        x = step(x)
        outputs.append(tail(x))
    return outputs


@functools.partial(quick_jit, static_argnums=(0, 1))
def gradients(forward, wrt, parts, x):
    """Gradients by the parts' parameters and, for floating input, by the input; the model's."""

    def loss(pair, x):
        return jnp.sum(jnp.sin(pair[1](pair[0](x))))

    whole = jax.grad(lambda x: jnp.sum(jnp.sin(forward(x))))(x) if len(wrt) == 2 else None
    return [jax.grad(loss, wrt)(pair, x) for pair in parts], whole


def by_path(pair):
    """Gradients of a pair of parts, summed where both use a parameter."""
    total = {}
    for part in pair:
        for path, leaf in part.parameters.items():
            total[path] = total.get(path, 0) + np.asarray(leaf)
    return total


@pytest.mark.parametrize("name", NAMES + OWN)
def test_every_cut_recomposes_at_two_batch_sizes_under_jit_and_grad(name):
    check_batches_and_gradients(name, stride=4 if name in MANY_CUTS else 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES + OWN)
def test_every_cut_has_the_models_gradients(name):
    check_batches_and_gradients(name, stride=1)


def check_batches_and_gradients(name, stride):
    model, forward, make = made(name)
    unroll = name == "scan"
    cuts = surgery.cut_points(model, make(4), unroll=unroll)
    assert len({cut.name for cut in cuts}) == len(cuts) > 2
    split = lambda *at: surgery.split(model, make(4), at, unroll=unroll)
    parts = [split("input", cut.name)[1:] for cut in cuts]
    steps = [split(*at)[1] for at in itertools.pairwise(["input", *(cut.name for cut in cuts)])]
    for n in (4, 3):
        x = make(n)
        want = forward(x)
        for cut, got in zip(cuts, carried(steps, [tail for _, tail in parts], x), strict=True):
            np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5, err_msg=cut.name)
    # The last cut has all parameters in one part.
    chosen = [*range(0, len(cuts) - 1, stride), len(cuts) - 1]
    parts = [parts[i] for i in chosen]
    floating = jnp.issubdtype(x.dtype, jnp.floating)
    grads, want_x = gradients(forward, (0, 1) if floating else (0,), parts, x)
    whole = by_path(grads[-1][0])
    for index, got in zip(chosen, grads, strict=True):
        for path, leaf in by_path(got[0]).items():
            message = f"{cuts[index].name}: {path}"
            np.testing.assert_allclose(leaf, whole[path], rtol=1e-3, atol=5e-5, err_msg=message)
        if floating:
            np.testing.assert_allclose(got[1], want_x, rtol=1e-3, atol=5e-5)


@pytest.mark.parametrize("name", ["mlp", "foreign", "linen foreign", "vit"])
def test_every_cut_recomposes_sample_by_sample_under_vmap(name):
    check_vmap(name, most=6)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES + OWN)
def test_every_cut_of_every_model_recomposes_under_vmap(name):
    check_vmap(name, most=None)


def check_vmap(name, most):
    model, forward, make = made(name)
    x = make(3)
    want = forward(x)
    unroll = name == "scan"
    cuts = surgery.cut_points(model, x, unroll=unroll)
    cuts = cuts[:: max(1, len(cuts) // (most or len(cuts)))]
    parts = [surgery.split(model, x, ("input", cut.name), unroll=unroll)[1:] for cut in cuts]
    mapped = quick_jit(jax.vmap(lambda parts, x: [t(s(x)) for s, t in parts], (None, 0)))
    for two in mapped(parts, np.stack([x, x])):
        np.testing.assert_allclose(two[1], want, rtol=2e-5, atol=2e-5)
    # These two fold the batch into another axis on the way: no state of theirs is one sample.
    if name not in ("tokens", "baked"):
        for one in mapped(parts, x):
            np.testing.assert_allclose(one, want, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", ["mlp", "residual", "foreign", "linen cnn"])
def test_three_parts_recompose_eagerly(name):
    model, forward, make = made(name)
    cuts = surgery.cut_points(model, make(2))
    at = (1, len(cuts) - 3)
    head, span, tail = surgery.split(model, make(2), at)
    for n in (1, 5):
        np.testing.assert_allclose(tail(span(head(make(n)))), forward(make(n)), atol=2e-5)


def test_the_derivative_rules_of_the_original_are_kept():
    """At zero relu's own rule gives 0, the maximum's would give 1/2."""
    params = [jnp.eye(2), jnp.eye(2)]
    net = lambda p, x: jax.nn.relu(x @ p[0]) @ p[1]
    _, span, tail = surgery.split((net, params), jnp.ones((1, 2)), (0, 1))
    x = jnp.zeros((1, 2))
    np.testing.assert_array_equal(jax.grad(lambda x: tail(span(x)).sum())(x), 0)


def test_with_jit_disabled():
    """As in a debugger: the parts found are the same, and run equation by equation."""
    model, forward, make = made("mlp")
    with jax.disable_jit():
        head, span, tail = surgery.split(model, make(2), ("layers.0/relu", "layers.1/relu"))
        got = tail(span(head(make(2))))
    np.testing.assert_allclose(got, forward(make(2)), rtol=1e-5, atol=1e-5)
