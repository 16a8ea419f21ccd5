"""The networks that the commands work on: trained by a fixed recipe, or read from a file."""

from __future__ import annotations

import dataclasses
import shutil
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from koopjax.cli._app import Given, UserError, mistakes, writable_folder

#: Training images below which a set is small.
SMALL = 10_000


@dataclasses.dataclass(frozen=True)
class Network:
    """A trained network, and where its file lies."""

    model: Any
    seed: int
    path: Path
    stored_bytes: int
    history: Sequence[dict[str, float]] = ()

    def original(self, data: Any, accuracy: float) -> dict[str, Any]:
        """Its figures in a file of results."""
        from koopjax import surgery

        return {
            "accuracy": accuracy,
            "stored_bytes": self.stored_bytes,
            "parameters": surgery.cut_points(self.model, data.x_test[:1])[-1].parameters,
        }


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


def load_dataset(given: Given) -> Any:
    """The dataset; an unknown or missing one is the user's mistake."""
    from koopjax import data

    with mistakes():
        return data.load(given.dataset, given.data_dir, download=given.download)


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


def train(how: Any, dataset: Any, seed: int, folder: Path, stage: Callable[..., Any]) -> Network:
    """Train on all labelled data but the test split, save, and clear the checkpoint away.

    An interrupted training goes on from its last whole epoch.
    """
    import jax
    from flax import nnx

    from koopjax import export, models

    x, y = as_taken_by(how, dataset).train_and_val()
    target = folder / f"{stem(how, dataset.name, seed)}.koopjax"
    checkpoint = target.with_suffix(".checkpoint")
    result = models.train(
        how.build(nnx.Rngs(seed)), x, y, key=jax.random.key(seed), checkpoint=checkpoint,
        progress=_telling(stage(f"training, seed {seed}", how.epochs)), **how.settings(),
    )  # fmt: skip
    stored = export.save(result.model, target)
    shutil.rmtree(checkpoint)
    return Network(result.model, seed, target, stored, result.history)


def train_lanes(
    how: Any, dataset: Any, seeds: Sequence[int], folder: Path, stage: Callable[..., Any]
) -> list[Network]:
    """Several seeds of a small network at once, as lanes of one vmapped scan."""
    import jax
    from flax import nnx

    from koopjax import export, models

    x, y = as_taken_by(how, dataset).train_and_val()
    results = models.train_lanes(
        [how.build(nnx.Rngs(seed)) for seed in seeds], x, y,
        keys=[jax.random.key(seed) for seed in seeds],
        progress=_telling(stage(f"training {len(seeds)} networks", how.epochs)), **how.settings(),
    )  # fmt: skip
    networks = []
    for seed, result in zip(seeds, results, strict=True):
        path = folder / f"{stem(how, dataset.name, seed)}.koopjax"
        stored = export.save(result.model, path)
        networks.append(Network(result.model, seed, path, stored, result.history))
    return networks


def saved(model: Any, path: Path, data: Any) -> tuple[int, float]:
    """Save a network; the bytes of the file, and the accuracy of what is loaded from it."""
    from koopjax import export, models

    stored = export.save(model, path)
    # An architecture that has no name of its own loads into the model it was saved from.
    again = export.load(path, model=model)
    return stored, models.accuracy(again, data.x_test, data.y_test)


def obtain(
    given: Given, seeds: Sequence[int], stage: Callable[..., Any]
) -> tuple[Any, Any, Any, list[Network]]:
    """Dataset, the same as the network takes it, recipe, and networks: read, found or trained.

    Without a model, those whose file is in the folder are taken, the others trained.
    """
    from koopjax import export

    full = load_dataset(given)
    if given.model_file is not None:
        model, data = read(given.model_file, full)
        writable_folder(given.out)
        size = given.model_file.stat().st_size
        return full, data, None, [Network(model, seeds[0], given.model_file, size)]
    how = recipe(full, given.architecture, given.epochs)
    folder, found = writable_folder(given.out), {}
    for seed in seeds:
        path = folder / f"{stem(how, full.name, seed)}.koopjax"
        if path.is_file():
            with mistakes():
                found[seed] = Network(export.load(path), seed, path, path.stat().st_size)
    missing = [seed for seed in seeds if seed not in found]
    if len(missing) > 1 and how.flat and len(full.y_train) < SMALL:
        made = train_lanes(how, full, missing, folder, stage)
    else:
        made = [train(how, full, seed, folder, stage) for seed in missing]
    found |= {network.seed: network for network in made}
    return full, as_taken_by(how, full), how, [found[seed] for seed in seeds]


def _telling(advance: Callable[..., None]) -> Callable[[int, Any], None]:
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
