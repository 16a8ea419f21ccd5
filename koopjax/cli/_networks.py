"""The networks that the commands work on: trained by a fixed recipe, or read from a file."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from koopjax.cli._app import UserError, mistakes


@dataclasses.dataclass(frozen=True)
class Network:
    """A trained network, the arrays as it takes them, and where its file lies."""

    model: Any
    seed: int
    path: Path
    stored_bytes: int
    history: Sequence[dict[str, float]] = ()


def recipe(dataset: Any, architecture: str, epochs: int | None) -> Any:
    """The default recipe of an architecture for a dataset."""
    from koopjax import models

    d = dataset
    return models.recipe(d.name, d.shape, d.classes, len(d.y_train), architecture, epochs)


def stem(how: Any, dataset: str, seed: int) -> str:
    """File name, without its ending, of the network that a recipe makes from a seed.

    Whatever changes the network changes the name, so that a file is only taken for what it is.
    """
    mark = zlib.crc32(repr((how.config, how.settings())).encode()) & 0xFFFF
    return f"{dataset.replace('/', '-')}-{how.architecture}-{mark:04x}-seed{seed}"


def load_dataset(name: str, data_dir: Path | None, download: bool = False) -> Any:
    """A dataset by name; an unknown or missing one is the user's mistake."""
    from koopjax import data

    with mistakes():
        return data.load(name, data_dir, download=download)


def as_taken_by(how: Any, dataset: Any) -> Any:
    """The dataset with vectors for a recipe whose network takes them, else with images."""
    return dataset.flat() if how.flat else dataset


def read(path: Path, dataset: Any) -> tuple[Any, Any]:
    """A saved model and the dataset in the shape that it takes.

    Spliced and compressed models do not say what they take: vectors are tried before images.
    """
    import jax

    from koopjax import export, models

    if not path.is_file():
        raise UserError(f"--model: no file {path}, try koopjax train")
    with mistakes("--model"):
        model = export.load(path)
    for data in (dataset.flat(), dataset):
        row = jax.ShapeDtypeStruct((1, *data.shape), np.float32)
        try:
            out = jax.eval_shape(lambda x: models.apply(model, x), row)
        except (TypeError, ValueError, AssertionError):
            continue
        if out.shape == (1, data.classes):
            return model, data
    raise UserError(
        f"--model: {path} does not take images of {dataset.name} "
        f"({'×'.join(map(str, dataset.shape))}, {dataset.classes} classes), try another --dataset"
    )


def train(
    how: Any, dataset: Any, seed: int, folder: Path, progress: Callable[..., Any] | None = None
) -> Network:
    """Train on all labelled data but the test split, save, and clear the checkpoint away.

    An interrupted training goes on from its last whole epoch.
    """
    import shutil

    import jax
    from flax import nnx

    from koopjax import export, models

    data = as_taken_by(how, dataset)
    x, y = data.train_and_val()
    target = folder / f"{stem(how, dataset.name, seed)}.koopjax"
    checkpoint = folder / f"{stem(how, dataset.name, seed)}.checkpoint"
    model = how.build(nnx.Rngs(seed))
    result = models.train(
        model, x, y, key=jax.random.key(seed), progress=progress, checkpoint=checkpoint,
        **how.settings(),
    )  # fmt: skip
    stored = export.save(result.model, target)
    shutil.rmtree(checkpoint)
    return Network(result.model, seed, target, stored, result.history)


def train_lanes(
    how: Any,
    dataset: Any,
    seeds: Sequence[int],
    folder: Path,
    progress: Callable[..., Any] | None = None,
) -> list[Network]:
    """Several seeds of a small network at once, as lanes of one vmapped scan."""
    import jax
    from flax import nnx

    from koopjax import export, models

    data = as_taken_by(how, dataset)
    x, y = data.train_and_val()
    results = models.train_lanes(
        [how.build(nnx.Rngs(seed)) for seed in seeds], x, y,
        keys=[jax.random.key(seed) for seed in seeds], progress=progress, **how.settings(),
    )  # fmt: skip
    networks = []
    for seed, result in zip(seeds, results, strict=True):
        path = folder / f"{stem(how, dataset.name, seed)}.koopjax"
        stored = export.save(result.model, path)
        networks.append(Network(result.model, seed, path, stored, result.history))
    return networks


def obtain(
    how: Any, dataset: Any, seeds: Sequence[int], folder: Path, stage: Callable[..., Any]
) -> list[Network]:
    """Networks for these seeds: those whose file is in the folder, the others trained.

    Args:
        stage: as `koopjax.cli._console.progress` yields it.
    """
    from koopjax import export

    found = {}
    for seed in seeds:
        path = folder / f"{stem(how, dataset.name, seed)}.koopjax"
        if path.is_file():
            with mistakes():
                found[seed] = Network(export.load(path), seed, path, path.stat().st_size)
    missing = [seed for seed in seeds if seed not in found]
    if len(missing) > 1 and how.flat and len(dataset.y_train) < 10_000:
        told = telling(stage(f"training {len(missing)} networks", how.epochs))
        made = train_lanes(how, dataset, missing, folder, told)
        found |= {network.seed: network for network in made}
        missing = []
    for seed in missing:
        told = telling(stage(f"training, seed {seed}", how.epochs))
        found[seed] = train(how, dataset, seed, folder, told)
    return [found[seed] for seed in seeds]


def telling(advance: Callable[..., None]) -> Callable[[int, Any], None]:
    """Progress of a training as a bar's: the epoch, and the loss (mean over lanes) as its note."""

    def told(epoch: int, metrics: Any) -> None:
        lanes = metrics if isinstance(metrics, list) else [metrics]
        advance(epoch, f"loss {np.mean([lane['loss'] for lane in lanes]):.4f}")

    return told


def training_settings(how: Any) -> dict[str, Any]:
    """The recipe as rows of the report."""
    return {
        "training": (
            f"AdamW, cosine from {how.learning_rate:g}, weight decay {how.weight_decay:g}, "
            f"warm-up {100 * how.warmup:g} %, {how.epochs} epochs of batches of {how.batch_size}"
        )
    }
