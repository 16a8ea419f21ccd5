"""The MLP and the CNN in Linen, with the same parameters as their NNX twins."""

from collections.abc import Sequence

from flax import linen as nn
from jaxtyping import Array, Float

__all__ = ["CNN", "MLP"]


class MLP(nn.Module):
    """Multi-layer perceptron with ReLU, like `models.MLP`.

    Args:
        sizes: widths from input to logits; the first is checked against the input.
    """

    sizes: Sequence[int]

    @nn.compact
    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... classes"]:
        """Logits of flat inputs."""
        if x.shape[-1] != self.sizes[0]:
            raise ValueError(
                f"models.linen.MLP: expected inputs of width {self.sizes[0]}, got shape "
                f"{x.shape}; try x.reshape(len(x), -1)"
            )
        for k, size in enumerate(self.sizes[1:-1]):
            x = nn.relu(nn.Dense(size, name=f"layers_{k}")(x))
        return nn.Dense(self.sizes[-1], name=f"layers_{len(self.sizes) - 2}")(x)


class CNN(nn.Module):
    """Convolution, batch normalisation, ReLU and pooling, then an MLP, like `models.CNN`.

    Args:
        classes: number of logits.
        channels: of each stage.
        hidden: width of the hidden layer.
    """

    classes: int
    channels: Sequence[int] = (8, 16)
    hidden: int = 64

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], train: bool = False
    ) -> Float[Array, "n classes"]:
        """Logits of images; with `train`, batch statistics, and `batch_stats` must be mutable."""
        for k, width in enumerate(self.channels):
            x = nn.Conv(width, (3, 3), name=f"convs_{k}")(x)
            x = nn.BatchNorm(use_running_average=not train, momentum=0.9, name=f"norms_{k}")(x)
            x = nn.max_pool(nn.relu(x), (2, 2), strides=(2, 2))
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(nn.Dense(self.hidden, name="layers_0")(x))
        return nn.Dense(self.classes, name="layers_1")(x)
