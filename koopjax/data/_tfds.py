"""tensorflow-datasets without tensorflow: prepared folders, and downloads that we read ourselves.

TFDS's public `data_source` reads records of the array_record format without tensorflow, but the
built-in builders of the MNIST family parse their files with it. So a subclass of TFDS's own builder
is made here, of the same name, version and features, with only the reading replaced; what it writes
is an ordinary prepared folder.
"""

import contextlib
import difflib
import io
import json
import math
import os
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from koopjax._extras import needed
from koopjax.data import _files
from koopjax.data._dataset import Dataset, MissingData, from_arrays, held_out, hold_out

#: Where TFDS keeps prepared sets unless `TFDS_DATA_DIR` says otherwise.
_DEFAULT = "~/tensorflow_datasets"
_CHUNK = 1024

#: Our split -> what TFDS's sets call it.
_SPLITS = {"train": ("train",), "val": ("validation", "val"), "test": ("test",)}


def default_dir() -> pathlib.Path:
    """TFDS's own folder of prepared sets."""
    return pathlib.Path(os.environ.get("TFDS_DATA_DIR", _DEFAULT)).expanduser()


def _tfds() -> Any:
    return needed("tensorflow_datasets", "data")


def _names() -> list[str]:
    # Community sets would be looked up over the network, by tensorflow.
    return _tfds().list_builders(with_community_datasets=False)


def is_known(name: str) -> bool:
    """Does TFDS list the set? A configuration after a slash is left to TFDS."""
    return name.partition("/")[0] in _names()


def similar(name: str) -> list[str]:
    """Names to propose in place of an unknown one."""
    names = ["digits", *_names()]
    return difflib.get_close_matches(name, names, n=3) or ["digits", "mnist", "fashion_mnist"]


def _version_folders(root: pathlib.Path) -> Iterator[tuple[str, pathlib.Path]]:
    """Every prepared set at or below `root`: TFDS's folder, a set's own, or one version's."""
    for depth in ("", "*/", "*/*/", "*/*/*/"):
        for path in sorted(root.glob(f"{depth}dataset_info.json")):
            try:
                info = json.loads(path.read_text())
            except ValueError as error:
                raise ValueError(
                    f"{path}: expected JSON, got {error}; try to prepare the set again"
                ) from error
            config = info.get("configName", "")
            yield info.get("name", "") + (f"/{config}" if config else ""), path.parent


def find(name: str, root: pathlib.Path) -> pathlib.Path | None:
    """The newest prepared version of a set, or None; without a configuration, any of them."""

    def version(folder: pathlib.Path) -> tuple[int, ...]:
        parts = folder.name.split(".")
        return tuple(int(part) if part.isdigit() else -1 for part in parts)

    found = [
        folder for full, folder in _version_folders(root) if name in (full, full.partition("/")[0])
    ]
    return max(found, key=version, default=None)


def prepared(root: pathlib.Path) -> list[str]:
    """Names of the sets that are prepared in a folder."""
    return sorted({full for full, _ in _version_folders(root)})


def _builder(name: str, root: pathlib.Path) -> Any:
    tfds = _tfds()
    folder = find(name, root)
    if folder is None:
        raise MissingData(
            f"dataset {name!r}: expected it prepared in {root}, got "
            f"{', '.join(prepared(root)) or 'nothing'}; try download=True"
        )
    return tfds.builder_from_directory(os.fspath(folder))


def _features(name: str, builder) -> tuple[Any, Any]:
    """The image and the label feature of a set, whatever they are called."""
    tfds = _tfds()
    features = builder.info.features
    images = [k for k, v in features.items() if isinstance(v, tfds.features.Image)]
    labels = [k for k, v in features.items() if isinstance(v, tfds.features.ClassLabel)]
    image = "image" if "image" in images else (images[0] if len(images) == 1 else None)
    label = "label" if "label" in labels else (labels[0] if len(labels) == 1 else None)
    if image is None or label is None:
        raise ValueError(
            f"dataset {name!r}: expected one image and one label a record, got "
            f"{', '.join(features)}; try an image-classification set"
        )
    return image, label


def _decode(png: bytes, channels: int | None) -> np.ndarray:
    with needed("PIL.Image", "data").open(io.BytesIO(png)) as image:
        if channels == 1:
            image = image.convert("L")
        elif channels == 3:
            image = image.convert("RGB")
        pixels = np.asarray(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _read_split(name: str, builder, split: str) -> tuple[np.ndarray, np.ndarray]:
    """All images and labels of one split."""
    tfds = _tfds()
    image, label = _features(name, builder)
    channels = builder.info.features[image].shape[-1]
    try:
        source = builder.as_data_source(split=split, decoders={image: tfds.decode.SkipDecoding()})
    except (NotImplementedError, ImportError) as error:
        raise ValueError(
            f"{builder.data_dir}: expected records in the array_record format, got "
            f"{builder.info.file_format}; try to prepare it again with file_format='array_record'"
        ) from error
    total = len(source)
    labels = np.empty(total, np.int32)
    images = None
    for start in range(0, total, _CHUNK):
        stop = min(start + _CHUNK, total)
        for row, record in enumerate(source.__getitems__(range(start, stop)), start):
            pixels = _decode(record[image], channels)
            if images is None:
                images = np.empty((total, *pixels.shape), pixels.dtype)
            if pixels.shape != images.shape[1:]:
                raise ValueError(
                    f"dataset {name!r}: expected images of one shape, got {images.shape[1:]} and "
                    f"{pixels.shape}; try a set of fixed image size"
                )
            images[row] = pixels
            labels[row] = record[label]
    if images is None:
        raise ValueError(
            f"{builder.data_dir}: expected images in split {split!r}, got none; try to prepare "
            "the set again"
        )
    return images, labels


def read(name: str, root: pathlib.Path) -> Dataset:
    """Read a prepared set; a split that it lacks is held out of its training images, always the
    same ones."""
    builder = _builder(name, root)
    _, label = _features(name, builder)
    splits = set(builder.info.splits)
    if "train" not in splits:
        raise ValueError(
            f"dataset {name!r}: expected a split 'train', got {', '.join(sorted(splits))}; try "
            "another set"
        )
    arrays = {}
    for ours, theirs in _SPLITS.items():
        split = next((s for s in theirs if s in splits), None)
        if split is not None:
            arrays[f"x_{ours}"], arrays[f"y_{ours}"] = _read_split(name, builder, split)
    if "x_test" not in arrays:
        x, y = arrays["x_train"], arrays["y_train"]
        train, test = hold_out(x, y, 2 * held_out(len(y)))
        arrays |= {"x_train": x[train], "y_train": y[train], "x_test": x[test], "y_test": y[test]}
    names = tuple(builder.info.features[label].names)
    return from_arrays(name, arrays, source=f"TFDS, {builder.data_dir}", class_names=names)


def describe(name: str, root: pathlib.Path) -> tuple[tuple[int, ...], int, int, int, int, int, str]:
    """Shape, classes, images in each split, bytes and provenance of a prepared set, for a list."""
    builder = _builder(name, root)
    image, label = _features(name, builder)
    shape = tuple(builder.info.features[image].shape)
    counts = {split: info.num_examples for split, info in builder.info.splits.items()}
    train, val, test = (sum(counts.get(name, 0) for name in names) for names in _SPLITS.values())
    # Test images are held out before validation images, as `read` does.
    held = 0 if test else 2 * held_out(train)
    train, test = train - held, test + held
    held = 0 if val else held_out(train)
    train, val = train - held, val + held
    # An extent that varies between images counts as one pixel: a lower bound.
    numbers = (train + val + test) * (math.prod(s or 1 for s in shape) + 1)
    classes = builder.info.features[label].num_classes
    return shape, classes, train, val, test, 4 * numbers, "TFDS's checksums, when prepared"


@contextlib.contextmanager
def _explained(name: str, folder: pathlib.Path) -> Iterator[None]:
    """Turn what TFDS raises while it prepares a set into one line."""
    try:
        # TFDS reports on standard output, which belongs to the caller's results.
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except ImportError as error:
        raise MissingData(
            f"dataset {name!r}: TFDS's own reader of it needs {error.name}; try pip install "
            f"{error.name}, or put idx or npz files into a folder and name it by data_dir"
        ) from error
    except (OSError, RuntimeError, ValueError) as error:
        if isinstance(error, MissingData):
            raise
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise MissingData(
            f"dataset {name!r}: TFDS could not prepare it in {folder} ({first[:160]}); try again "
            "where there is a network, or put idx or npz files into a folder and name it by "
            "data_dir"
        ) from error


def _without_tensorflow(name: str, arrays_of: Callable[[Any], dict[str, np.ndarray]]) -> Any:
    """A subclass of TFDS's builder of the set whose reading is `arrays_of(download_manager)`."""
    registered = needed("tensorflow_datasets.core", "data").registered
    pillow = needed("PIL.Image", "data")
    base: Any = _tfds().builder_cls(name)
    with registered.skip_registration():

        class Builder(base):
            """TFDS's builder with the reading done by NumPy."""

            def _split_generators(self, dl_manager: Any, *args: Any) -> Any:
                arrays = arrays_of(dl_manager)
                return {
                    split: self._generate_examples(arrays[f"x_{split}"], arrays[f"y_{split}"])
                    for split in ("train", "test")
                }

            def _generate_examples(self, images: np.ndarray, labels: np.ndarray) -> Any:
                for index, (pixels, label) in enumerate(zip(images, labels, strict=True)):
                    file = io.BytesIO()
                    gray = pixels.ndim == 3 and pixels.shape[-1] == 1
                    pillow.fromarray(pixels[..., 0] if gray else pixels).save(file, format="png")
                    file.seek(0)
                    yield index, {"image": file, "label": int(label)}

    # TFDS finds these by the file a builder is defined in, which here is not its own.
    Builder.name = name
    Builder.code_path = base.code_path
    Builder.url_infos = base.url_infos
    return Builder


def _prepare(name: str, folder: pathlib.Path, arrays_of: Any = None) -> None:
    """Let TFDS prepare a set, from `arrays_of(download_manager)` or by its own reader."""
    tfds = _tfds()
    how: dict[str, Any] = {"data_dir": os.fspath(folder), "file_format": "array_record"}
    if arrays_of is None:
        builder = tfds.builder(name, try_gcs=False, **how)
    else:
        builder = _without_tensorflow(name, arrays_of)(**how)
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    builder.download_and_prepare(download_config=config)


def prepare_download(name: str, folder: pathlib.Path) -> None:
    """Let TFDS fetch a set, check its checksums, and prepare it in `folder`; no tensorflow where
    the set is of the MNIST family."""
    with _explained(name, folder):
        if name not in ("mnist", "fashion_mnist", "kmnist"):
            return _prepare(name, folder)
        url = _tfds().builder_cls(name).URL.rstrip("/")

        def fetch(dl_manager: Any) -> dict[str, np.ndarray]:
            paths = dl_manager.download(
                {
                    role: f"{url}/{stem}-idx{3 if role[0] == 'x' else 1}-ubyte.gz"
                    for role, stem in _files.IDX_STEMS.items()
                }
            )
            return {role: _files.read_idx(path) for role, path in paths.items()}

        _prepare(name, folder, fetch)


def prepare_tfds(
    name: str, source: str | os.PathLike, data_dir: str | os.PathLike | None = None
) -> pathlib.Path:
    """Prepare a TFDS folder from idx or npz files, without tensorflow.

    Afterwards `tfds.data_source(name, data_dir=...)` and `load(name)` read it, like a folder that
    TFDS downloaded itself. An interrupted preparation leaves no prepared set behind.

    Args:
        name: a set of TFDS with features `image` and `label` and without configurations, such as
            `"mnist"`.
        source: folder with the files, as for `load`.
        data_dir: TFDS's folder to prepare into; default TFDS's own.

    Returns:
        The folder of the prepared version, such as `<data_dir>/mnist/3.0.1`.

    Raises:
        MissingData: no such files.
        ValueError: damaged files, or a set that TFDS does not list.
    """
    folder = pathlib.Path(data_dir).expanduser() if data_dir is not None else default_dir()
    files = pathlib.Path(source).expanduser()
    if not is_known(name):
        raise ValueError(
            f"prepare_tfds: expected a name that TFDS lists, got {name!r}; try one of "
            f"{', '.join(similar(name))}"
        )
    found = _files.find_files(files, name) if files.is_dir() else None
    if found is None:
        raise MissingData(
            f"prepare_tfds: expected idx or npz files of {name} in {files}, got none; try the "
            "folder that holds train-images-idx3-ubyte.gz"
        )
    arrays = _files.read_found(found)
    with _explained(name, folder):
        _prepare(name, folder, lambda dl_manager: arrays)
    prepared_folder = find(name, folder)
    if prepared_folder is None:
        raise MissingData(f"prepare_tfds: expected {name} in {folder}, got none; try again")
    return prepared_folder
