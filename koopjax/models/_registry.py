"""The example models by name, so that a file can say which one it holds."""

from collections.abc import Mapping
from typing import Any

from flax import nnx

from koopjax._core import expected
from koopjax.models._cnn import CNN
from koopjax.models._mlp import MLP, ResidualMLP
from koopjax.models._vit import ViT

#: Name -> class; each has `.config`, from which `build` makes it anew.
REGISTRY: dict[str, Any] = {
    "mlp": MLP,
    "cnn": CNN,
    "residual_mlp": ResidualMLP,
    "vit": ViT,
}


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
    for name, cls in REGISTRY.items():
        if type(model) is cls:
            return name
    return None
