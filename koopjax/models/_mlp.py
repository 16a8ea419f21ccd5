"""The MLP of the experiments and a residual MLP, in NNX."""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from koopjax._core import check_integer, expected


def check_sizes(model: str, **sizes: int) -> None:
    """Refuse a size that is not a positive integer."""
    for name, size in sizes.items():
        check_integer(f"models.{model}: {name}", size, 1)


def check_rngs(model: str, rngs: Any) -> None:
    """Refuse what gives no keys for the initial weights."""
    if not callable(getattr(rngs, "params", None)):
        raise expected(
            f"models.{model}: rngs with a stream of params", f"{rngs!r:.60}", "nnx.Rngs(0)"
        )


class MLP(nnx.Module):
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

    def __init__(self, sizes: Sequence[int], *, rngs: nnx.Rngs):
        sizes = tuple(sizes) if isinstance(sizes, Iterable) else ()
        if len(sizes) < 2:
            raise expected("models.MLP: sizes of two widths or more", f"{sizes}", "(784, 100, 10)")
        for size in sizes:
            check_sizes("MLP", size=size)
        check_rngs("MLP", rngs)
        self.sizes = sizes
        self.layers = nnx.List([nnx.Linear(a, b, rngs=rngs) for a, b in itertools.pairwise(sizes)])

    @property
    def config(self) -> dict[str, Any]:
        """What `models.build` needs to make this model anew."""
        return {"sizes": self.sizes}

    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... classes"]:
        """Logits of flat inputs."""
        if jnp.shape(x)[-1:] != self.sizes[:1]:
            got = f"shape {jnp.shape(x)}"
            raise expected(f"models.MLP: inputs of width {self.sizes[0]}", got, "dataset.flat()")
        for layer in self.layers[:-1]:
            x = nnx.relu(layer(x))
        return self.layers[-1](x)


class ResidualMLP(nnx.Module):
    """MLP with residual blocks, `h ↦ h + V relu(W h + b) + c`, between two affine maps.

    Args:
        d_in: width of the input.
        width: of the residual stream and of the hidden layer of each block.
        depth: number of blocks.
        classes: number of logits.
        rngs: source of the initial weights (stream `params`).
    """

    def __init__(self, d_in: int, width: int, depth: int, classes: int, *, rngs: nnx.Rngs):
        check_sizes("ResidualMLP", d_in=d_in, width=width, depth=depth, classes=classes)
        check_rngs("ResidualMLP", rngs)
        self.config_values = (d_in, width, depth, classes)
        self.embed = nnx.Linear(d_in, width, rngs=rngs)
        self.inner = nnx.List([nnx.Linear(width, width, rngs=rngs) for _ in range(depth)])
        self.outer = nnx.List([nnx.Linear(width, width, rngs=rngs) for _ in range(depth)])
        self.head = nnx.Linear(width, classes, rngs=rngs)

    @property
    def config(self) -> dict[str, Any]:
        """What `models.build` needs to make this model anew."""
        return dict(zip(("d_in", "width", "depth", "classes"), self.config_values, strict=True))

    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... classes"]:
        """Logits of flat inputs."""
        h = self.embed(x)
        for inner, outer in zip(self.inner, self.outer, strict=True):
            h = h + outer(nnx.relu(inner(h)))
        return self.head(nnx.relu(h))
