"""The example networks in NNX, by name, and how each is trained by default."""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from koopjax._core import as_whole, check_integer, expected


class Example(nnx.Module):
    """A network whose settings are attributes, named in `settings`."""

    settings: ClassVar[tuple[str, ...]] = ()

    @property
    def config(self) -> dict[str, Any]:
        """What `models.build` needs to make this model anew."""
        return {name: getattr(self, name) for name in self.settings}


def _check(model: str, rngs: Any, **sizes: Any) -> None:
    """Refuse a size that is not a positive integer, and what gives no keys for the weights."""
    for name, size in sizes.items():
        check_integer(f"models.{model}: {name}", size, 1)
    if not callable(getattr(rngs, "params", None)):
        raise expected(
            f"models.{model}: rngs with a stream of params", f"{rngs!r:.60}", "nnx.Rngs(0)"
        )


class MLP(Example):
    """Multi-layer perceptron, `x ↦ W_L relu(... relu(W_1 x + b_1) ...) + b_L`.

    Args:
        sizes: widths from input to logits, such as `(784, 100, 100, 100, 10)`.
        rngs: source of the initial weights (stream `params`).

    Example:
        >>> from flax import nnx
        >>> import jax.numpy as jnp
        >>> MLP((784, 100, 10), rngs=nnx.Rngs(0))(jnp.ones((2, 784))).shape
        (2, 10)
    """

    settings = ("sizes",)

    def __init__(self, sizes: Sequence[int], *, rngs: nnx.Rngs):
        sizes = tuple(sizes) if isinstance(sizes, Iterable) else ()
        if len(sizes) < 2:
            raise expected("models.MLP: sizes of two widths or more", f"{sizes}", "(784, 100, 10)")
        for size in sizes:
            _check("MLP", rngs, size=size)
        self.sizes = sizes
        self.layers = nnx.List([nnx.Linear(a, b, rngs=rngs) for a, b in itertools.pairwise(sizes)])

    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... classes"]:
        """Logits of flat inputs."""
        if jnp.shape(x)[-1:] != self.sizes[:1]:
            got = f"shape {jnp.shape(x)}"
            raise expected(f"models.MLP: inputs of width {self.sizes[0]}", got, "dataset.flat()")
        for layer in self.layers[:-1]:
            x = nnx.relu(layer(x))
        return self.layers[-1](x)


class ResidualMLP(Example):
    """MLP with residual blocks, `h ↦ h + V relu(W h + b) + c`, between two affine maps.

    Args:
        d_in: width of the input.
        width: of the residual stream and of the hidden layer of each block.
        depth: number of blocks.
        classes: number of logits.
        rngs: source of the initial weights (stream `params`).
    """

    settings = ("d_in", "width", "depth", "classes")

    def __init__(self, d_in: int, width: int, depth: int, classes: int, *, rngs: nnx.Rngs):
        _check("ResidualMLP", rngs, d_in=d_in, width=width, depth=depth, classes=classes)
        self.d_in, self.width, self.depth, self.classes = d_in, width, depth, classes
        self.embed = nnx.Linear(d_in, width, rngs=rngs)
        self.inner = nnx.List([nnx.Linear(width, width, rngs=rngs) for _ in range(depth)])
        self.outer = nnx.List([nnx.Linear(width, width, rngs=rngs) for _ in range(depth)])
        self.head = nnx.Linear(width, classes, rngs=rngs)

    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... classes"]:
        """Logits of flat inputs."""
        h = self.embed(x)
        for inner, outer in zip(self.inner, self.outer, strict=True):
            h = h + outer(nnx.relu(inner(h)))
        return self.head(nnx.relu(h))


class CNN(Example):
    """Stages of 3×3 convolution, batch normalisation, ReLU and 2×2 max pooling, then an MLP.

    `model.train()` and `model.eval()` switch batch normalisation between the statistics of the
    batch and the running ones; a new model is in training mode.

    Args:
        shape: of one image, `(height, width, channels)`.
        classes: number of logits.
        channels: of each stage.
        hidden: width of the hidden layer.
        rngs: source of the initial weights (stream `params`).
    """

    settings = ("shape", "classes", "channels", "hidden")

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        channels: Sequence[int] = (8, 16),
        hidden: int = 64,
        *,
        rngs: nnx.Rngs,
    ):
        shape, channels = tuple(shape), tuple(channels)
        if len(shape) != 3 or not channels:
            raise expected(
                "models.CNN: shape (height, width, channels) and one stage or more",
                f"{shape}, {channels}",
                "CNN((28, 28, 1), 10, channels=(8, 16), rngs=rngs)",
            )
        _check("CNN", rngs, classes=classes, hidden=hidden)
        # each stage pools by 2 without padding
        height, width = (extent >> len(channels) for extent in shape[:2])
        if not height or not width:
            raise expected(
                f"models.CNN: an image of {2 ** len(channels)} pixels or more a side",
                f"{shape}",
                "fewer stages in channels",
            )
        self.shape, self.classes, self.channels, self.hidden = shape, classes, channels, hidden
        widths = (shape[2], *channels)
        self.convs = nnx.List(
            [nnx.Conv(a, b, (3, 3), rngs=rngs) for a, b in itertools.pairwise(widths)]
        )
        self.norms = nnx.List([nnx.BatchNorm(b, momentum=0.9, rngs=rngs) for b in channels])
        widths = (height * width * channels[-1], hidden, classes)
        self.layers = nnx.List([nnx.Linear(a, b, rngs=rngs) for a, b in itertools.pairwise(widths)])

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n classes"]:
        """Logits of images."""
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = nnx.max_pool(nnx.relu(norm(conv(x))), (2, 2), strides=(2, 2))
        x = x.reshape(x.shape[0], -1)
        return self.layers[1](nnx.relu(self.layers[0](x)))


class Block(nnx.Module):
    """Pre-norm transformer block: attention and an MLP, each on a residual stream.

    Args:
        width: of the residual stream.
        heads: of the attention; must divide `width`.
        rngs: source of the initial weights (stream `params`).
    """

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs):
        self.norm1 = nnx.LayerNorm(width, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(heads, width, decode=False, rngs=rngs)
        self.norm2 = nnx.LayerNorm(width, rngs=rngs)
        self.expand = nnx.Linear(width, 2 * width, rngs=rngs)
        self.contract = nnx.Linear(2 * width, width, rngs=rngs)

    def __call__(self, x: Float[Array, "n t width"]) -> Float[Array, "n t width"]:
        """The tokens after the block."""
        x = x + self.attention(self.norm1(x))
        return x + self.contract(nnx.gelu(self.expand(self.norm2(x))))


class ViT(Example):
    """Vision transformer: patches, learned positions, pre-norm blocks, mean over tokens.

    Args:
        shape: of one image, `(height, width, channels)`.
        classes: number of logits.
        patch: side of a square patch; must divide height and width.
        width: of the residual stream.
        depth: number of blocks.
        heads: of the attention; must divide `width`.
        rngs: source of the initial weights (stream `params`).
    """

    settings = ("shape", "classes", "patch", "width", "depth", "heads")

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        patch: int = 4,
        width: int = 32,
        depth: int = 3,
        heads: int = 4,
        *,
        rngs: nnx.Rngs,
    ):
        shape = tuple(shape)
        _check("ViT", rngs, classes=classes, patch=patch, width=width, depth=depth, heads=heads)
        if len(shape) != 3 or shape[0] % patch or shape[1] % patch or width % heads:
            raise expected(
                "models.ViT: shape (height, width, channels) that patch divides, and width that "
                "heads divides",
                f"shape {shape}, patch {patch}, width {width}, heads {heads}",
                "ViT((28, 28, 1), 10, patch=4, width=32, heads=4, rngs=rngs)",
            )
        self.shape, self.classes, self.patch = shape, classes, patch
        self.width, self.depth, self.heads = width, depth, heads
        tokens = (shape[0] // patch) * (shape[1] // patch)
        self.embed = nnx.Linear(patch * patch * shape[2], width, rngs=rngs)
        self.positions = nnx.Param(0.02 * jax.random.normal(rngs.params(), (1, tokens, width)))
        self.blocks = nnx.List([Block(width, heads, rngs=rngs) for _ in range(depth)])
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.head = nnx.Linear(width, classes, rngs=rngs)

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n classes"]:
        """Logits of images."""
        n, side = x.shape[0], self.patch
        rows, columns, channels = self.shape[0] // side, self.shape[1] // side, self.shape[2]
        x = x.reshape(n, rows, side, columns, side, channels).transpose(0, 1, 3, 2, 4, 5)
        x = self.embed(x.reshape(n, rows * columns, side * side * channels))
        x = x + self.positions[...]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(axis=1))


#: Name -> class; each has `.config`, from which `build` makes it anew.
REGISTRY: dict[str, Any] = {"mlp": MLP, "cnn": CNN, "residual_mlp": ResidualMLP, "vit": ViT}


def build(name: str, config: Mapping[str, Any], rngs: nnx.Rngs) -> nnx.Module:
    """Make an example model.

    Args:
        name: a key of `REGISTRY`.
        config: plain integers and tuples (lists do as well), as the model's `.config` has them.
        rngs: source of the initial weights.

    Raises:
        ValueError: an unknown name, or a setting that the model does not have.
    """
    if name not in REGISTRY:
        raise expected(
            f"models.build: a name among {', '.join(REGISTRY)}", repr(name), "one of these"
        )
    try:
        return REGISTRY[name](**config, rngs=rngs)
    except TypeError as error:
        raise expected(
            f"models.build: the settings of {name}", str(error), f"{name}'s own .config"
        ) from error


def name_of(model: Any) -> str | None:
    """The registered name of a model, or None where it is no example model."""
    return next((name for name, cls in REGISTRY.items() if type(model) is cls), None)


#: Fewer training images than this make a small set: many short epochs of small batches.
_SMALL = 10_000


@dataclasses.dataclass(frozen=True)
class Recipe:
    """An architecture for a dataset and the settings of `train` for it.

    Args:
        architecture: a key of `REGISTRY`.
        config: settings of `build`.
        epochs, batch_size, learning_rate, weight_decay, warmup: settings of `train`.
    """

    architecture: str
    config: dict[str, Any]
    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    warmup: float

    @property
    def flat(self) -> bool:
        """Does the network take vectors (else images)?"""
        return self.architecture in ("mlp", "residual_mlp")

    def build(self, rngs: nnx.Rngs) -> nnx.Module:
        """The network, untrained."""
        return build(self.architecture, self.config, rngs)

    def settings(self) -> dict[str, Any]:
        """Keyword arguments of `train` and `train_lanes`."""
        names = ("epochs", "batch_size", "learning_rate", "weight_decay", "warmup")
        return {name: getattr(self, name) for name in names}


#: Epochs, batch size, learning rate, weight decay, warm-up; by dataset, for the MLP.
RECIPES: dict[str, tuple[int, int, float, float, float]] = {
    "digits": (60, 32, 3e-3, 0.3, 0.05),
    "mnist": (15, 64, 2e-3, 0.1, 0.05),
    "fashion_mnist": (15, 64, 2e-3, 0.1, 0.05),
}
_SMALL_SET = RECIPES["digits"]
_LARGE_SET = RECIPES["fashion_mnist"]


def recipe(
    name: str,
    shape: tuple[int, ...],
    classes: int,
    n: int,
    architecture: str = "mlp",
    epochs: int | None = None,
) -> Recipe:
    """The default recipe of an architecture for a dataset.

    Args:
        name: of the dataset; `RECIPES` has its own settings for some.
        shape: of one image.
        classes: number of classes.
        n: number of training images.
        architecture: a key of `REGISTRY`.
        epochs: in place of the recipe's.

    Raises:
        ValueError: an unknown architecture.

    Example:
        >>> recipe("digits", (8, 8, 1), 10, 1156).config
        {'sizes': (64, 100, 100, 100, 10)}
    """
    named = isinstance(name, str) and isinstance(architecture, str)
    if not named or not isinstance(shape, tuple | list):
        got = f"{name!r:.40}, {architecture!r:.40} and {shape!r:.40}"
        raise expected("models.recipe: two names and a shape", got, "'digits', (8, 8, 1)")
    if architecture not in REGISTRY:
        raise expected(
            f"models.recipe: an architecture among {', '.join(REGISTRY)}",
            repr(architecture),
            "mlp",
        )
    size = math.prod(shape)
    configs: dict[str, dict[str, Any]] = {
        "mlp": {"sizes": (size, 100, 100, 100, classes)},
        "residual_mlp": {"d_in": size, "width": 100, "depth": 3, "classes": classes},
        "cnn": {"shape": shape, "classes": classes},
        "vit": {"shape": shape, "classes": classes},
    }
    small = as_whole("models.recipe: n", n, 1) < _SMALL
    own, batch, *rest = RECIPES.get(name, _SMALL_SET if small else _LARGE_SET)
    if not small and architecture in ("cnn", "vit"):
        own = min(own, 5)  # an epoch of these costs several of the MLP's
    return Recipe(architecture, configs[architecture], epochs or own, batch, *rest)
