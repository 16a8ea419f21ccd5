"""Operators and dictionaries that are stored for all time, and how their numbers are drawn."""

import dataclasses
import functools
import math
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx

from koopjax import export, models, nn, observables as obs, tensor_edmd

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


def linear(a, b):
    return nnx.Linear(a, b, rngs=nnx.Rngs(0))


class Normed(nnx.Module):
    """Running statistics in a dictionary."""

    def __init__(self, draw):
        self.norm = draw.over(nnx.BatchNorm(D, use_running_average=True, rngs=nnx.Rngs(0)))

    def __call__(self, x):
        return jnp.tanh(self.norm(x))


def mlp(draw, sizes=(D, 5, 5, Q)):
    return draw.over(nnx.eval_shape(lambda: models.MLP(sizes, rngs=nnx.Rngs(0))))


WIDER = linen.Dense(7)


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
