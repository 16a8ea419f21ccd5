"""A small vision transformer, in NNX."""

from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float

from koopjax._core import expected
from koopjax.models._mlp import check_rngs, check_sizes


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


class ViT(nnx.Module):
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
        check_sizes("ViT", classes=classes, patch=patch, width=width, depth=depth, heads=heads)
        check_rngs("ViT", rngs)
        if len(shape) != 3 or shape[0] % patch or shape[1] % patch or width % heads:
            raise expected(
                "models.ViT: shape (height, width, channels) that patch divides, and width that "
                "heads divides",
                f"shape {shape}, patch {patch}, width {width}, heads {heads}",
                "ViT((28, 28, 1), 10, patch=4, width=32, heads=4, rngs=rngs)",
            )
        self.shape, self.classes, self.patch = shape, classes, patch
        self.width, self.heads = width, heads
        tokens = (shape[0] // patch) * (shape[1] // patch)
        self.embed = nnx.Linear(patch * patch * shape[2], width, rngs=rngs)
        self.positions = nnx.Param(0.02 * jax.random.normal(rngs.params(), (1, tokens, width)))
        self.blocks = nnx.List([Block(width, heads, rngs=rngs) for _ in range(depth)])
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.head = nnx.Linear(width, classes, rngs=rngs)

    @property
    def config(self) -> dict[str, Any]:
        """What `models.build` needs to make this model anew."""
        return {
            "shape": self.shape,
            "classes": self.classes,
            "patch": self.patch,
            "width": self.width,
            "depth": len(self.blocks),
            "heads": self.heads,
        }

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
