"""Networks, and models with a span replaced, that are stored for all time."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx

from koopjax import models, nn, observables as obs, surgery
from tests.goldens.pieces import (
    IMAGES,
    Case,
    D,
    Q,
    X,
    all_numbers,
    hidden,
    linear,
    mlp,
    on_images,
    train,
)


class Own(nnx.Module):
    """A Flax model of one's own, with all that a model may hold."""

    def __init__(self, draw):
        self.first = linear(D, 5)
        self.norm = nnx.BatchNorm(5, rngs=nnx.Rngs(0))
        self.drop = nnx.Dropout(0.5, rngs=nnx.Rngs(0))
        self.last = linear(5, Q)
        draw.over(self)
        self.eval()

    def __call__(self, x):
        return self.last(self.drop(jax.nn.relu(self.norm(self.first(x)))))


class Scaled(nnx.Module):
    """A model that takes an argument more."""

    def __init__(self, draw):
        self.w = nnx.Param(draw(D, Q))

    def __call__(self, x, factor):
        return x @ self.w[...] * factor


class Tied(nnx.Module):
    """Two names of one array, and of one Variable."""

    def __init__(self, draw):
        self.a = nnx.Param(draw(D, D))
        self.b = nnx.Param(self.a.get_value())
        self.c = self.a

    def __call__(self, x):
        return jnp.tanh(x @ self.a[...]) @ self.b[...] @ self.c[...]


class Net(linen.Module):
    """A Linen model with running statistics."""

    @linen.compact
    def __call__(self, x):
        x = linen.relu(linen.BatchNorm(use_running_average=True)(linen.Dense(5)(x)))
        return linen.Dense(Q)(x)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Tree:
    """A callable pytree."""

    first: Any
    last: Any

    def __call__(self, x):
        return jnp.tanh(x @ self.first["w"] + self.first["b"][None, :]) @ self.last


LINEN = Net()


def function(params, x):
    """A model that is a function and its parameters."""
    return params["act"](x @ params["a"]["w"]) @ params["b"]["w"] * params["n"]


def of_function(draw, n=3):
    params = {"a": {"w": draw(D, 5)}, "b": {"w": draw(5, Q)}}
    return function, params | {"act": jnp.tanh, "n": n}


def tree(draw):
    return Tree({"w": draw(D, 5), "b": draw(5)}, draw(5, Q))


def cnn(draw, mode="eval"):
    model = draw.over(models.CNN((4, 4, 1), 3, (2,), 3, rngs=nnx.Rngs(0)))
    if mode != "built":
        getattr(model, mode)()
    return model


def vit(draw):
    return draw.over(models.ViT((4, 4, 1), 3, 2, 4, 1, 2, rngs=nnx.Rngs(0)))


def residual(draw):
    return draw.over(models.ResidualMLP(D, 5, 2, Q, rngs=nnx.Rngs(0)))


def cast(model, dtype):
    nnx.update(model, jax.tree.map(lambda a: a.astype(dtype), nnx.state(model)))
    return model


def tied(draw):
    model = mlp(draw, (D, 5, 5, 5))
    model.layers[2].kernel.set_value(model.layers[1].kernel.get_value())
    return model


CASES = {
    "model_mlp": Case(mlp),
    "model_mlp_bfloat16": Case(
        lambda draw: cast(mlp(draw), jnp.bfloat16),
        all_numbers,
    ),
    "model_mlp_tied": Case(tied),
    "model_residual_mlp": Case(residual),
    "model_cnn_built": Case(functools.partial(cnn, mode="built"), on_images),
    "model_cnn_eval": Case(cnn, on_images),
    "model_cnn_train": Case(functools.partial(cnn, mode="train"), on_images),
    "model_vit": Case(vit, on_images),
    "model_own": Case(Own, template=True),
    "model_tied": Case(Tied, template=True),
    "model_bound": Case(lambda draw: functools.partial(Scaled(draw), factor=2.0), template=True),
    "model_linen": Case(lambda draw: (LINEN, draw.variables(LINEN, X)), template=True),
    "model_linen_mlp": Case(
        lambda draw: ((net := models.linen.MLP((D, 5, Q))), draw.variables(net, X)), template=True
    ),
    "model_function": Case(lambda draw: of_function(draw, 0 if draw.zeros else 3), template=True),
    "model_tree": Case(tree, template=True),
}


# Spliced models: head, block and tail ---------------------------------------------------------


def splice(model, at, block, x=X, **settings):
    return surgery.splice(model, x, at, block, **settings)


def spliced_mlp(draw, at=("layers.0/relu", "layers.1/relu"), **settings):
    inner = nn.KoopmanBlock(obs.Monomials(1), draw(D + 1 if at[0] == "input" else 6, 5))
    return splice(mlp(draw), at, inner, **settings)


def spliced_brief(draw):
    model = cast(mlp(draw), jnp.bfloat16)
    bias = model.layers[2].bias
    bias.set_value(bias[...].astype(jnp.float32))
    return splice(
        model, ("layers.0/relu", "layers.1/relu"), nn.Dense(draw(5, 5)), X.astype(jnp.bfloat16)
    )


def clustered_square(draw):
    return nn.Clustered(draw(4), draw.integers(0, 4, 5, 5))


def twice(draw):
    once = splice(mlp(draw, (D, 5, 5, 5, Q)), ("layers.1/relu", "layers.2/relu"), jnp.tanh)
    return splice(once, ("head.layers.0/relu", "output"), nn.Dense(draw(5, Q)))


BODIES = {
    "nnx": lambda draw: (Own(draw), ("first", "norm/relu")),
    "linen": lambda draw: ((LINEN, draw.variables(LINEN, X)), ("Dense_0", "BatchNorm_0/relu")),
    "function": lambda draw: (of_function(draw), ("a", "a/tanh")),
    "tree": lambda draw: (tree(draw), ("first", "first/tanh")),
}
BLOCKS = {
    "function": lambda draw: (hidden, {"w": draw(5, 5)}),
    "linen": lambda draw: ((net := linen.Dense(5)), draw.variables(net, np.ones((4, 5), "f"))),
    "tree": lambda draw: Tree({"w": draw(5, 3), "b": draw(3)}, draw(3, 5)),
    "part": lambda draw: surgery.split(mlp(draw), X, ("layers.0/relu", "layers.1/relu"))[1],
}


def spliced_body(name, draw):
    model, at = BODIES[name](draw)
    return splice(model, at, nn.KoopmanBlock(obs.Identity(), draw(5, 5), trainable=False))


def spliced_block(name, draw):
    return splice(mlp(draw), ("layers.0/relu", "layers.1/relu"), BLOCKS[name](draw))


CASES |= {f"spliced_{n}": Case(functools.partial(spliced_body, n), template=True) for n in BODIES}
CASES |= {
    f"spliced_with_{n}": Case(functools.partial(spliced_block, n), template=True) for n in BLOCKS
}
CASES |= {
    "spliced_mlp": Case(spliced_mlp),
    "spliced_mlp_block_trains": Case(
        functools.partial(spliced_mlp, at=("input", "layers.1/relu"), trainable="block")
    ),
    "spliced_mlp_unrolled": Case(
        functools.partial(spliced_mlp, trainable=("head", "tail"), unroll=True)
    ),
    "spliced_mlp_to_output": Case(
        lambda draw: splice(
            mlp(draw), ("layers.1/relu", "output"), nn.LowRank(draw(5, 2), draw(2, Q), draw(Q))
        )
    ),
    "spliced_mlp_train": Case(
        lambda draw: splice(
            residual(draw),
            ("outer.0/add", "outer.1/add"),
            nn.Stack([train(draw, (5, 1), (5, 1), 2), clustered_square(draw)], ["relu"]),
        )
    ),
    "spliced_bfloat16": Case(spliced_brief, all_numbers),
    "spliced_cnn_positions": Case(
        lambda draw: splice(
            cnn(draw),
            ("norms.0", "norms.0/relu"),
            nn.KoopmanBlock(obs.Monomials(1), draw(3, 2)),
            IMAGES,
            sample_axes="positions",
        ),
        on_images,
    ),
    "spliced_cnn_flat": Case(
        lambda draw: splice(
            cnn(draw),
            ("norms.0/max_pool", "layers.0/relu"),
            nn.KoopmanBlock(obs.Identity(), draw(8, 3)),
            IMAGES,
            sample_axes="flatten",
        ),
        on_images,
    ),
    "spliced_vit_positions": Case(
        lambda draw: splice(
            vit(draw), ("embed", "norm"), nn.Dense(draw(4, 4)), IMAGES, sample_axes="positions"
        ),
        on_images,
    ),
    "spliced_twice": Case(twice, template=True),
}
