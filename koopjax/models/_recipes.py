"""How the example networks are trained by default, chosen on validation images."""

import dataclasses
import math
from typing import Any

from flax import nnx

from koopjax._core import as_whole, expected
from koopjax.models._registry import REGISTRY, build

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
