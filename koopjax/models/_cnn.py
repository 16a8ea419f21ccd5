"""A small convolutional network with batch normalisation and pooling, in NNX."""

import itertools
from collections.abc import Sequence
from typing import Any

from flax import nnx
from jaxtyping import Array, Float

from koopjax._core import expected
from koopjax.models._mlp import check_rngs, check_sizes


def pooled(extent: int, stages: int) -> int:
    """Extent of an image axis after `stages` poolings by 2 without padding."""
    for _ in range(stages):
        extent //= 2
    return extent


class CNN(nnx.Module):
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
        check_sizes("CNN", classes=classes, hidden=hidden)
        check_rngs("CNN", rngs)
        height, width = (pooled(extent, len(channels)) for extent in shape[:2])
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
        self.layers = nnx.List(
            [
                nnx.Linear(height * width * channels[-1], hidden, rngs=rngs),
                nnx.Linear(hidden, classes, rngs=rngs),
            ]
        )

    @property
    def config(self) -> dict[str, Any]:
        """What `models.build` needs to make this model anew."""
        return {
            "shape": self.shape,
            "classes": self.classes,
            "channels": self.channels,
            "hidden": self.hidden,
        }

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n classes"]:
        """Logits of images."""
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = nnx.max_pool(nnx.relu(norm(conv(x))), (2, 2), strides=(2, 2))
        x = x.reshape(x.shape[0], -1)
        return self.layers[1](nnx.relu(self.layers[0](x)))
