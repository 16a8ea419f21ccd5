"""Stored models that must read for all time: what is in them, and how they are made.

    python -m tests.goldens.files [case ...] [--anew]

makes the files in `files/` that are missing, or the cases named, and beside them `outputs.npz`: an
input and what each loaded file gives for it. An existing file is never made again without `--anew`:
one that reads no more is a break of the format, not a golden to renew.

Public names alone are used here. Files of forms without a name in the format are loaded into a
template, the same model of zeros.
"""

import argparse
import dataclasses
import functools
import math
import os
import pathlib
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx

from koopjax import edmd, export, models, nn, observables as obs, surgery, tensor_edmd, tt

FOLDER = pathlib.Path(__file__).parent / "files"
OUTPUTS = FOLDER / "outputs.npz"
LARGEST = 4096  # bytes of a file
D, Q = 6, 4  # widths of input and output

# Quarters: their products with quarters are exact in 16 bits, in whatever order they are summed.
X = (np.random.default_rng(0).integers(-4, 5, (4, D)) / 4).astype(np.float32)
IMAGES = np.random.default_rng(1).normal(size=(2, 4, 4, 1)).astype(np.float32)


class Draw:
    """Random numbers by case, or zeros for a template: `draw(3, 2)` is an array of that shape.

    All are made by NumPy, which compiles nothing.
    """

    def __init__(self, name: str | None = None):
        self.zeros = name is None
        self.rng = np.random.default_rng(zlib.crc32((name or "").encode()))

    def host(self, *shape):
        return np.zeros(shape) if self.zeros else self.rng.normal(size=shape)

    def __call__(self, *shape, dtype=jnp.float32):
        return jnp.asarray(self.host(*shape), dtype)

    def positive(self, *shape):
        return jnp.asarray(np.abs(self.host(*shape)) + 0.5, jnp.float32)

    def quarters(self, *shape):
        return jnp.asarray(self.integers(-4, 5, *shape) / 4, jnp.float32)

    def integers(self, low, high, *shape):
        return np.zeros(shape, int) if self.zeros else self.rng.integers(low, high, shape)

    def sparse(self, *shape):
        """Ten entries, whatever the shape: programs go by their number."""
        keep = self.rng.permutation(math.prod(shape)).reshape(shape) < 10
        return np.where(keep, self.rng.normal(size=shape), 0).astype(np.float32)

    def over(self, model):
        """A module with all its arrays drawn; running statistics stay positive."""

        def one(variable):
            drawn = self.positive if isinstance(variable, nnx.BatchStat) else self
            value = variable.get_value()
            return variable.replace(jnp.asarray(drawn(*value.shape), value.dtype))

        is_variable = lambda node: isinstance(node, nnx.Variable)
        state = nnx.state(model, nnx.Not(nnx.RngState))
        nnx.update(model, jax.tree.map(one, state, is_leaf=is_variable))
        return model

    def variables(self, module, x):
        """Variables of a Linen module, drawn without running its initialisers."""
        like = jax.eval_shape(lambda: module.init(jax.random.key(0), x))
        return jax.tree.map(lambda a: self.positive(*a.shape), like)


@functools.partial(jax.jit, static_argnums=0)
def _run(graph, state, x):
    return nnx.merge(graph, state)(x)


def call(model, x=X):
    """The output of a model in any form: as one program, which compiles faster than its parts."""
    if isinstance(model, nnx.Module):
        return _run(*nnx.split(model), x)  # what a call changes stays within it
    if isinstance(model, tuple):
        code, params = model
        run = code.apply if isinstance(code, linen.Module) else code
        return jax.jit(lambda x: run(params, x))(x)
    return jax.jit(lambda x: model(x))(x)


def on_images(model):
    return call(model, IMAGES)


def all_numbers(model):
    """Every array, where an output takes long to compile or depends on how 16 bits are summed."""
    leaves = [np.ravel(leaf) for leaf in jax.tree.leaves(model)]
    return np.concatenate([a.view(a.real.dtype).astype(np.float32) for a in leaves])


@dataclasses.dataclass(frozen=True)
class Case:
    """A file: `make(draw)` gives the model, `run(loaded)` what is compared.

    Attributes:
        template: whether loading takes one, `make(Draw())`.
        forms: of its arrays, as `export.describe` names them; any where there are none.
        slack: bytes by which a saved copy may differ: how far zlib, liblzma or the path of a class
            in a message may.
    """

    make: Callable[[Draw], Any]
    run: Callable[[Any], Any] = call
    template: bool = False
    forms: tuple[str, ...] = ()
    slack: int = 0

    def load(self, path):
        return export.load(path, model=self.make(Draw())) if self.template else export.load(path)


# Operators -----------------------------------------------------------------------------------


def train(draw, rows, columns, rank, **settings):
    """A TT operator of one inner rank."""
    ranks = (1, *[rank] * (len(rows) - 1), 1)
    shapes = zip(ranks, rows, columns, ranks[1:], strict=False)
    return nn.TT([draw(*shape) for shape in shapes], **settings)


def clustered(draw, zero, **settings):
    """Four values; the first may be held at zero."""
    book = draw.host(4) * [not zero, 1, 1, 1]
    return nn.Clustered(
        jnp.asarray(book, jnp.float32), draw.integers(0, 4, D, Q), zero=zero, **settings
    )


def quantized(draw, bits, *shape, **settings):
    most = 2 ** (bits - 1)
    return nn.Quantized(
        draw.integers(1 - most, most, D, Q), draw.positive(*shape), bits=bits, **settings
    )


def wide_dense(draw):
    with jax.enable_x64(True):
        return nn.Dense(jnp.asarray(draw.rng.normal(size=(D, Q))))


HALF = {"param_dtype": jnp.float16}
BRIEF = {"param_dtype": jnp.bfloat16}

OPERATORS = {
    "dense": lambda draw: nn.Dense(draw(D, Q), draw(Q)),
    "dense_frozen": lambda draw: nn.freeze(nn.Dense(draw(D, Q))),
    "dense_zero_bias": lambda draw: nn.Dense(draw(D, Q), jnp.zeros(Q)),
    "dense_bfloat16": lambda draw: nn.Dense(draw(D, Q), draw(Q), **BRIEF),
    "dense_float16": lambda draw: nn.Dense(draw(D, Q), draw(Q), precision=None, **HALF),
    "dense_in_bfloat16": lambda draw: nn.Dense(draw.quarters(D, Q), dtype=jnp.bfloat16),
    "dense_in_float16": lambda draw: nn.Dense(draw.quarters(D, Q), dtype=jnp.float16, **BRIEF),
    "dense_high": lambda draw: nn.Dense(draw(D, Q), precision=jax.lax.Precision.HIGH),
    "dense_pruned": lambda draw: nn.Dense(draw.sparse(D, 20)),
    "dense_palette": lambda draw: nn.Dense(draw(5)[draw.integers(0, 5, D, 20)]),
    "dense_grid": lambda draw: nn.Dense(
        np.float32(0.3) * draw.integers(-3, 4, D, 20).astype(np.float32)
    ),
    "low_rank": lambda draw: nn.LowRank(draw(D, 2), draw(2, Q), draw(Q)),
    "low_rank_frozen": lambda draw: nn.freeze(nn.LowRank(draw(D, 2), draw(2, Q), **BRIEF)),
    "tt_outputs_last": lambda draw: train(draw, (2, 3), (1, Q), 2, bias=draw(Q)),
    "tt_outputs_inside": lambda draw: train(draw, (1, 2, 3), (1, Q, 1), 2),
    "tt_matrix": lambda draw: train(draw, (2, 3), (2, 2), 2, form="chain"),
    "tt_one_core": lambda draw: train(draw, (D,), (Q,), 1, param_dtype=jnp.float16),
    "tt_ranks": lambda draw: nn.freeze(
        nn.TT([draw(1, 2, 2, 3), draw(3, 1, 2, 2), draw(2, 3, 1, 1)], form="dense")
    ),
    "sparse": lambda draw: nn.Sparse.from_dense(draw.sparse(D, Q), draw(Q)),
    "sparse_frozen": lambda draw: nn.freeze(nn.Sparse.from_dense(draw.sparse(D, Q))),
    "sparse_float16": lambda draw: nn.Sparse.from_dense(draw.sparse(D, Q), **HALF),
    "sparse_empty": lambda draw: nn.Sparse([], [], [], (D, Q), draw(Q)),
    "clustered": lambda draw: clustered(draw, False, bias=draw(Q)),
    "clustered_zero": lambda draw: clustered(draw, True),
    "clustered_bfloat16": lambda draw: nn.freeze(clustered(draw, True, **BRIEF)),
    "clustered_many": lambda draw: nn.Clustered(
        draw(300), draw.rng.permutation(300).reshape(D, 50)
    ),
    "quantized_8": lambda draw: quantized(draw, 8, 1, 1, bias=draw(Q)),
    "quantized_4_column": lambda draw: quantized(draw, 4, 1, Q),
    "quantized_2_row": lambda draw: quantized(draw, 2, D, 1),
    "quantized_3_bfloat16": lambda draw: nn.freeze(quantized(draw, 3, 1, 1, **BRIEF)),
}
STACKED = {
    "relu": lambda draw: nn.Dense(draw(D, D), draw(D)),
    "gelu": lambda draw: nn.LowRank(draw(D, 2), draw(2, D)),
    "silu": lambda draw: train(draw, (2, 3), (2, 3), 2),
    "tanh": lambda draw: nn.Sparse.from_dense(draw.sparse(D, D), draw(D)),
    "sigmoid": lambda draw: nn.Clustered(draw(4), draw.integers(0, 4, D, D)),
    "softplus": lambda draw: nn.Quantized(draw.integers(-7, 8, D, D), draw.positive(1, D), bits=4),
    "elu": lambda draw: nn.Dense(draw(D, D)),
    "leaky_relu": lambda draw: nn.Dense(draw(D, D)),
    "identity": lambda draw: nn.Dense(draw(D, Q)),
}
CASES = {f"operator_{name}": Case(make) for name, make in OPERATORS.items()}
CASES["operator_dense_float64"] = Case(
    wide_dense, lambda model: X.astype(np.float64) @ np.asarray(model.matrix[...])
)
CASES["stack"] = Case(lambda draw: nn.Stack([make(draw) for make in STACKED.values()], [*STACKED]))


# Dictionaries, in blocks and alone ------------------------------------------------------------


@obs.pytree
class Waves(obs.Observables):
    """A dictionary of one's own."""

    frequencies: Any

    def size(self, d):
        return d

    def names(self, d, inputs=None):
        return [f"wave{i}" for i in range(d)]

    def _evaluate(self, x):
        return jnp.sin(x * self.frequencies[None, :])


def doubled(params, x):
    """A function of Custom."""
    return jnp.tanh(x * params["scale"][None, :])


def hidden(params, x):
    """A function of Neural."""
    return jnp.tanh(x @ params["w"])


def families(draw):
    """One of each univariate family, then a repeated one: six coordinates."""
    return (
        obs.Polynomial1D(1),
        obs.Polynomial1D(1, family="legendre"),
        obs.Trigonometric(1, scale=draw.positive()),
        obs.CosSin(1.5),
        obs.Gaussian1D(draw(2), draw.positive()),
        obs.CosSin(),
    )


def pair(draw):
    """Coordinates in twos: products of two families stay small."""
    return obs.Project(draw(D, 2))


DICTIONARIES = {
    "identity": lambda draw: obs.Identity(),
    "monomials": lambda draw: obs.Monomials(2),
    "orthogonal": lambda draw: obs.Orthogonal(1),
    "orthogonal_legendre": lambda draw: obs.Compose(pair(draw), obs.Orthogonal(3, "legendre")),
    "orthogonal_chebyshev": lambda draw: obs.Compose(pair(draw), obs.Orthogonal(3, "chebyshev")),
    "gaussian_rbf": lambda draw: obs.GaussianRBF(draw(7, D), draw.positive()),
    "gaussian_rbf_each": lambda draw: obs.GaussianRBF(draw(7, D), draw.positive(7)),
    "random_fourier": lambda draw: obs.RandomFourier(draw(D, 4), draw.positive(), 7),
    "standardize": lambda draw: obs.Standardize(draw(D), draw.positive(D)),
    "standardize_mean": lambda draw: obs.Standardize(draw(D)),
    "project": lambda draw: obs.Project(draw(D, 2), draw(D)),
    "project_plain": pair,
    "kronecker": lambda draw: obs.Kronecker((draw(2, 2), draw(3, 2))),
    "select": lambda draw: obs.Select(obs.Monomials(2), np.array([0, 3, 9, 10, 11, 20, 27])),
    "product": lambda draw: obs.Product(families(draw)),
    "product_of": lambda draw: obs.Product.of(obs.Polynomial1D(1, family="hermite"), D),
    "product_kernel": lambda draw: obs.ProductKernel(
        obs.Product.of(obs.CosSin(0.5), D), 0.5 * jnp.tanh(draw(7, D))
    ),
    "product_kernel_by_factors": lambda draw: obs.ProductKernel(
        obs.Product.of(obs.CosSin(), D), draw(7, D), 0, 0
    ),
    "neural": lambda draw: obs.Neural(mlp(draw, (D, 5, 7))),
    "concat": lambda draw: obs.Concat(
        obs.Identity(), obs.Compose(obs.Standardize(draw(D)), pair(draw)), obs.Identity()
    ),
    "concat_equal": lambda draw: obs.Concat(*(obs.GaussianRBF(draw(2, D), 1.5) for _ in range(3))),
}
FOREIGN = {
    "custom": lambda draw: obs.Custom(doubled, D, {"scale": draw(D)}),
    "neural_function": lambda draw: obs.Neural((hidden, {"w": draw(D, 7)})),
    "neural_linen": lambda draw: obs.Neural((WIDER, draw.variables(WIDER, X))),
    "neural_own": lambda draw: obs.Neural(Normed(draw)),
    "own": lambda draw: Waves(draw(D)),
    "function_major": lambda draw: tensor_edmd.FunctionMajor(
        obs.Product.of(obs.Polynomial1D(2), D)
    ),
}
#: Files that hold the path of a class, in a message that nothing reads: it may change.
PATH = {"own": 64, "function_major": 64}
#: What trains in a block, in turn.
TRAINED = (True, False, "operator", "dictionary")


def block(psi, k, draw):
    psi = psi(draw)
    return nn.KoopmanBlock(psi, draw(psi.size(D), Q), trainable=TRAINED[k % 4])


def train_block(draw):
    psi = obs.Compose(pair(draw), obs.Product.of(obs.Polynomial1D(2, family="hermite"), 2))
    return nn.KoopmanBlock(psi, train(draw, (3, 3), (1, Q), 2), trainable="operator")


CASES |= {
    f"block_{name}": Case(functools.partial(block, psi, k))
    for k, (name, psi) in enumerate(DICTIONARIES.items())
}
CASES |= {
    f"block_{name}": Case(functools.partial(block, psi, k), template=True, slack=PATH.get(name, 0))
    for k, (name, psi) in enumerate(FOREIGN.items())
}
CASES |= {
    f"dictionary_{name}": Case(DICTIONARIES[name])
    for name in ("monomials", "product", "neural", "concat")
}
CASES |= {
    "dictionary_own": Case(FOREIGN["own"], template=True, slack=PATH["own"]),
    "dictionary_univariate": Case(
        lambda draw: obs.Gaussian1D(draw(3), draw.positive()), lambda psi: psi(X[:, :1])
    ),
    "block_train": Case(train_block),
    "block_sparse": Case(
        lambda draw: nn.KoopmanBlock(
            obs.Monomials(1), nn.Sparse.from_dense(draw.sparse(D + 1, Q)), trainable=False
        )
    ),
    "block_quantized": Case(
        lambda draw: nn.KoopmanBlock(
            obs.Identity(), quantized(draw, 4, 1, Q), trainable="operator", precision="default"
        )
    ),
    "block_bfloat16": Case(lambda draw: nn.KoopmanBlock(obs.Monomials(1), draw(D + 1, Q), **BRIEF)),
    "block_in_bfloat16": Case(
        lambda draw: nn.KoopmanBlock(
            obs.Monomials(1), draw.quarters(D + 1, Q), dtype=jnp.bfloat16, trainable=False
        )
    ),
    "block_linen": Case(
        lambda draw: nn.linen.from_nnx(nn.KoopmanBlock(obs.Monomials(1), draw(D + 1, Q))),
        template=True,
    ),
}


# Networks --------------------------------------------------------------------------------------


def linear(a, b):
    """A layer whose initial weights cost nothing; they are drawn later."""
    return nnx.Linear(a, b, kernel_init=nnx.initializers.zeros, rngs=nnx.Rngs(0))


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


class Normed(nnx.Module):
    """Running statistics in a dictionary."""

    def __init__(self, draw):
        self.norm = draw.over(nnx.BatchNorm(D, use_running_average=True, rngs=nnx.Rngs(0)))

    def __call__(self, x):
        return jnp.tanh(self.norm(x))


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
WIDER = linen.Dense(7)


def function(params, x):
    """A model that is a function and its parameters."""
    return params["act"](x @ params["a"]["w"]) @ params["b"]["w"] * params["n"]


def of_function(draw, n=3):
    params = {"a": {"w": draw(D, 5)}, "b": {"w": draw(5, Q)}}
    return function, params | {"act": jnp.tanh, "n": n}


def tree(draw):
    return Tree({"w": draw(D, 5), "b": draw(5)}, draw(5, Q))


def mlp(draw, sizes=(D, 5, 5, Q)):
    return draw.over(nnx.eval_shape(lambda: models.MLP(sizes, rngs=nnx.Rngs(0))))


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


CASES |= {
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


# Fits and trains ------------------------------------------------------------------------------

SNAPSHOTS = np.random.default_rng(2).normal(size=(60, D)).astype(np.float32)
AFTER = np.tanh(SNAPSHOTS @ np.random.default_rng(3).normal(size=(D, D)) / 2).astype(np.float32)


def predict(fit):
    return fit.predict(X)


def koopman(psi, target, draw):
    """A fit; its template is put together by hand."""
    psi = psi(draw)
    if not draw.zeros:
        return edmd.fit(psi, SNAPSHOTS, AFTER, solver=edmd.Ridge(1e-3), target=target)
    p = psi.size(D)
    q = p if target is None else D
    info = edmd.Info(*[jnp.zeros(())] * 7)
    readout = draw(p, D) if target is None else None
    return edmd.Koopman(psi, target, draw(p, q), readout, info, jnp.int32(0))


def cores(draw, shapes, kind=tt.TTMatrix):
    return kind(tuple(draw(*shape) for shape in shapes))


MATRIX = [(1, 2, 1, 2), (2, 3, Q, 1)]


def product(draw):
    return obs.Compose(pair(draw), obs.Product((obs.CosSin(), obs.Polynomial1D(2))))


def tensor_info(draw):
    return tensor_edmd.TensorInfo(*(draw.positive() for _ in range(4)), history=draw(3, 2))


def tensor_spectrum(draw):
    vectors = draw(3, 3) + 1j * draw(3, 3)
    return tensor_edmd.TensorSpectrum(
        product(draw), cores(draw, [(1, 2, 1, 2), (2, 3, 3, 1)]), vectors[0], vectors, draw(3, D),
        tensor_info(draw), jnp.int32(0),
    )  # fmt: skip


def kernel_koopman(draw):
    psi = obs.ProductKernel(obs.Product.of(obs.CosSin(0.5), D), 0.5 * jnp.tanh(draw(7, D)))
    info = tensor_edmd.KernelInfo(*(draw.positive() for _ in range(7)))
    return tensor_edmd.KernelKoopman(psi, draw(7, Q), None, info, jnp.int32(0))


def padded_koopman(draw):
    psi = obs.Compose(pair(draw), obs.Product.of(obs.CosSin(), 2))
    whole = lambda n: np.int32(0 if draw.zeros else n)
    ranks = whole(1) * np.array([1, 2, 1], np.int32)
    kept, output = np.zeros((2, 2, 2, 2), np.float32), np.zeros((2, 2, Q, 2), np.float32)
    kept[0, 0], output[..., 0] = draw(2, 2), draw(2, 2, Q)
    return tensor_edmd.PaddedKoopman(
        psi, kept, output, whole(1), ranks, whole(2), tensor_info(draw), draw(), draw(), whole(0),
        whole(3), whole(0),
    )  # fmt: skip


def approximation(draw):
    orders = [jnp.asarray(draw.rng.permutation(n), jnp.int32) for n in (6, 4)]
    info = tensor_edmd.MatrixInfo(draw(), draw(), draw(3), draw(), jnp.zeros(2, jnp.int32))
    return tensor_edmd.MatrixApproximation(cores(draw, MATRIX), *orders, info, jnp.int32(0))


def padded_train(draw):
    """Two cores of 2 and 3 indices, rank 2."""
    kept = np.zeros((2, 2, 3, 2), np.float32)
    kept[0, :1, :2], kept[1, :, :, :1] = draw(1, 2, 2), draw(2, 3, 1)
    ranks, modes = np.array([[1, 0], [1, 1], [1, 0]]), np.array([[1, 1, 0], [1, 1, 1]])
    return tt.PaddedTT(*(jnp.asarray(a, jnp.float32) for a in (kept, ranks, modes)))


@jax.jit
def dense(model):
    return model.to_dense()


def reordered(model):
    rows, columns = np.argsort(model.row_order), np.argsort(model.column_order)
    return np.asarray(dense(model.train))[np.ix_(rows, columns)]


def generator(draw):
    info = edmd.Info(*(draw.positive() for _ in range(7)), scores=draw(3))
    return edmd.Generator(obs.Monomials(1), draw(7, 7), draw(7, D), info, jnp.int32(0))


def brief_tree(draw):
    """A tree of arrays, lists and numbers."""
    return {
        "w": draw(3, 2, dtype=jnp.bfloat16), "h": draw(3, dtype=jnp.float16), "n": draw(2),
        "list": [draw.integers(0, 9, 5), float(draw(1)[0]), np.asarray(draw(2), np.float64)],
    }  # fmt: skip


CASES |= {
    "koopman": Case(
        functools.partial(koopman, DICTIONARIES["orthogonal"], None), predict, template=True
    ),
    "koopman_rbf": Case(
        functools.partial(koopman, DICTIONARIES["gaussian_rbf"], None), predict, template=True
    ),
    "koopman_onto_states": Case(
        functools.partial(koopman, DICTIONARIES["monomials"], obs.Identity()),
        predict,
        template=True,
    ),
    "koopman_layer": Case(
        lambda draw: nn.from_koopman(koopman(DICTIONARIES["standardize"], None, draw), 3)
    ),
    "generator": Case(generator, lambda fit: np.asarray(call(fit.psi)) @ fit.matrix, template=True),
    "tensor_koopman": Case(
        lambda draw: tensor_edmd.TensorKoopman(
            product(draw), cores(draw, MATRIX), tensor_info(draw), jnp.int32(0)
        ),
        predict,
        template=True,
    ),
    "tensor_spectrum": Case(tensor_spectrum, all_numbers, template=True),
    "kernel_koopman": Case(kernel_koopman, all_numbers, template=True),
    "padded_koopman": Case(padded_koopman, predict, template=True),
    "matrix_approximation": Case(approximation, reordered, template=True),
    "tt_matrix": Case(functools.partial(cores, shapes=MATRIX), dense, template=True),
    "tensor_train": Case(
        functools.partial(cores, shapes=[(1, 2, 2), (2, 3, 1)], kind=tt.TensorTrain),
        all_numbers,
        template=True,
    ),
    "padded_tt": Case(padded_train, all_numbers, template=True),
    "plain_tree": Case(brief_tree, all_numbers, template=True),
}


def leaves(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


# Arrays: each form and dtype of the format ------------------------------------------------------


def spotted(rng, rows, columns):
    """A mask with rows and columns of their own density."""
    share = np.linspace(0, 1, rows)[:, None] ** 3 * rng.random(columns)[None, :]
    return rng.random((rows, columns)) < share


def few(rng, *shape):
    """Steps -7, ..., 7, the small ones more often."""
    return np.clip(np.rint(2 * rng.normal(size=shape)), -7, 7)


def many(rng, *shape):
    """Steps up to 60, one of which is the scale of its column itself."""
    steps = rng.integers(1, 60, shape) * rng.choice([-1, 1], shape)
    steps[0] = 1
    return steps


def scaled(steps, scales):
    return (scales.astype(np.float32) * steps.astype(np.float32)).astype(np.float32)


def signed(rng, *shape, axis):
    """Steps whose signs stay along an axis."""
    signs = np.where(np.cumsum(rng.random(shape) < 0.04, axis=axis) % 2, 1, -1)
    return signs * rng.integers(1, 4, shape)


ARRAYS = {
    "raw": lambda rng: rng.normal(size=(3, 4)).astype(np.float32),
    "equal": lambda rng: np.full((30, 5), 2.5, np.float32),
    "bitmask": lambda rng: np.where(rng.random(24) < 0.5, rng.normal(size=24), 0.0),
    "rice": lambda rng: rng.random((90, 40)) < 0.002,
    "rice by columns": lambda rng: np.isin(np.arange(3600).reshape(90, 40), [200, 1200, 2600]),
    "lzma": lambda rng: np.tile(rng.random(4096) < 0.5, 4),
    "deflate": lambda rng: np.tile(rng.random(128) < 0.5, 30),
    "arithmetic": lambda rng: spotted(rng, 60, 40),
    "arithmetic by columns": lambda rng: spotted(rng, 40, 60).T,
    "increasing": lambda rng: np.sort(rng.choice(3000, 60, replace=False)).astype(np.int32),
    "narrow": lambda rng: rng.integers(-90_000, 90_000, 20),
    "palette": lambda rng: rng.normal(size=5)[rng.integers(0, 5, (12, 12))].astype(np.float16),
    "grid": lambda rng: scaled(few(rng, 12, 12) + 9, np.array(0.3)),
    "grid a column": lambda rng: scaled(many(rng, 30, 4), rng.uniform(0.1, 1, (1, 4))),
    "grid a row": lambda rng: scaled(many(rng, 30, 4).T, rng.uniform(0.1, 1, (4, 1))),
    "symbols": lambda rng: few(rng, 20, 20).astype(np.int8),
    "symbols by rows": lambda rng: signed(rng, 24, 24, axis=1).astype(np.int8),
    "symbols by columns": lambda rng: signed(rng, 24, 24, axis=0).astype(np.int8),
    # Too many for the adaptive coder.
    "symbols counted": lambda rng: rng.choice([7, 90, 100], 19_000, p=[0.998, 0.001, 0.001]).astype(
        np.uint8
    ),
}
#: Every dtype of the format.
DTYPES = [
    "float32", "bfloat16", "float16", "float64", "bool", "int8", "int16", "int32", "int64", "uint8",
    "uint16", "uint32", "uint64", "complex64", "complex128", "float8_e4m3fn", "float8_e5m2",
]  # fmt: skip


def array(name, draw):
    """NumPy's arrays stay NumPy's, whatever the precision of JAX."""
    made = ARRAYS[name](np.random.default_rng(5))
    return {"a": np.zeros_like(made) if draw.zeros else made}


def every_dtype(draw):
    rng = np.random.default_rng(6)
    made = {name: (9 * rng.random(5)).astype(jnp.dtype(name)) for name in DTYPES}
    made["complex64"] = made["complex64"] * np.complex64(1j)
    odd = np.array([0x80000000, 0x7FC12345, 0x7F800000, 0x00000001], np.uint32)
    made |= {"odd": odd.view(np.float32), "empty": np.zeros((0, 3), np.float32)}
    made |= {"one": np.float32(2.5).reshape(()), "complex": made["complex128"] * (2 - 1j)}
    return jax.tree.map(np.zeros_like, made) if draw.zeros else made


def as_bytes(tree):
    """Every bit of the arrays of a tree."""
    return np.concatenate([np.frombuffer(a.tobytes(), np.uint8) for a in leaves(tree)])


CASES |= {
    f"array_{name.replace(' ', '_')}": Case(
        functools.partial(array, name),
        lambda held: held["a"],
        template=True,
        forms=(name.split(" a ")[0] if "grid" in name else name.split(" ")[0],)
        if name.startswith(("grid", "symbols"))
        else (name,),
        slack=64 if name in ("lzma", "deflate") else 0,
    )
    for name in ARRAYS
}
CASES["array_dtypes"] = Case(every_dtype, as_bytes, template=True)


# Making them -----------------------------------------------------------------------------------


def path(name):
    return FOLDER / f"{name}.koopjax"


def result(case, loaded):
    """What a loaded file gives, in a dtype that NumPy stores."""
    out = np.asarray(case.run(loaded))
    known = out.dtype.isbuiltin == 1
    return out if known else out.astype(np.float32)


def read_outputs():
    with np.load(OUTPUTS, allow_pickle=False) as held:
        return dict(held)


def main(names, anew):
    """Make the files named, or all that are missing; see the top of this module."""
    FOLDER.mkdir(exist_ok=True)
    outputs = read_outputs() if OUTPUTS.exists() else {}
    for key, inputs in (("input", X), ("images", IMAGES)):
        if not np.array_equal(outputs.setdefault(key, inputs), inputs):
            raise SystemExit(f"{OUTPUTS} is of other inputs")
    held = [name for name in names if path(name).exists()]
    if held and not anew:
        raise SystemExit(f"{', '.join(held)}: exists and must read for all time; --anew replaces")
    for name in names or [name for name in CASES if anew or not path(name).exists()]:
        case = CASES[name]
        with jax.numpy_rank_promotion("raise"):
            size = export.save(case.make(Draw(name)), path(name))
            outputs[name] = result(case, case.load(path(name)))
        print(f"{name}: {size} bytes", flush=True)
        if size > LARGEST:
            raise SystemExit(f"more than {LARGEST} bytes")
        np.savez_compressed(OUTPUTS, allow_pickle=False, **outputs)
    print(f"{OUTPUTS.name}: {OUTPUTS.stat().st_size} bytes")


if __name__ == "__main__":
    # As in conftest, so that a golden is made as it is compared.
    os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
    # By its name, since files hold the paths of classes of one's own.
    from tests.goldens import files

    parser = argparse.ArgumentParser(description="Makes stored models that must read for all time.")
    parser.add_argument("names", nargs="*", choices=[[], *files.CASES], metavar="case")
    parser.add_argument("--anew", action="store_true", help="replace files that exist")
    arguments = parser.parse_args()
    files.main(arguments.names, arguments.anew)
