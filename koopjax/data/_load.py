"""`load`: from a name to a dataset, by the first source that has it."""

import dataclasses
import os
import pathlib
from typing import Any

import numpy as np

from koopjax._core import as_path, expected
from koopjax._extras import needed
from koopjax.data import _files, _tfds
from koopjax.data._dataset import Dataset, MissingData, from_arrays, stratified

#: Environment variable that names a folder of datasets.
ENV_DATA_DIR = "KOOPJAX_DATA_DIR"
_DIGITS = tuple("0123456789")
_FASHION = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag",
    "Ankle boot",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Known:
    """A set whose bytes are published."""

    digests: dict[str, str]  # role -> SHA-256 of the raw (unpacked) idx file
    class_names: tuple[str, ...]
    system_folder: str | None = None  # where Debian's package puts it
    package: str | None = None


KNOWN = {
    "mnist": _Known(
        digests={
            "x_train": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "y_train": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "x_test": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "y_test": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        },
        class_names=_DIGITS,
    ),
    "fashion_mnist": _Known(
        digests={
            "x_train": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "y_train": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "x_test": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "y_test": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        },
        class_names=_FASHION,
        system_folder="/usr/share/datasets/fashion-mnist",
        package="dataset-fashion-mnist",
    ),
}


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """Whether a dataset can be had on this machine, and from where.

    Args:
        name: to give to `load`.
        present: True where `load` needs no download.
        source: where `load` would read it, or, where absent, how to get it.
        shape: of one image.
        classes: number of classes.
        train, validation, test: number of images in each split.
        bytes: size of the images and labels in memory, as float32 and int32.
        verified: how the bytes are known to be genuine, in words.
    """

    name: str
    present: bool
    source: str
    shape: tuple[int, ...]
    classes: int
    train: int
    validation: int
    test: int
    bytes: int
    verified: str


def _digits() -> Dataset:
    """scikit-learn's 1,797 digits: a quarter of each class is test, a seventh of the rest is
    validation."""
    bunch = needed("sklearn.datasets", "data").load_digits()
    images = (bunch.images / 16.0).astype(np.float32)[..., None]
    labels = bunch.target.astype(np.int32)
    rest, test = stratified(labels, 0.25)
    train, val = stratified(labels[rest], 1.0 / 7.0)
    train, val = rest[train], rest[val]
    return Dataset(
        name="digits",
        x_train=images[train],
        y_train=labels[train],
        x_val=images[val],
        y_val=labels[val],
        x_test=images[test],
        y_test=labels[test],
        classes=10,
        shape=(8, 8, 1),
        source="scikit-learn's embedded digits",
        class_names=_DIGITS,
    )


def _locate(root: pathlib.Path, name: str) -> Any:
    """What `root` holds of the set: files, a prepared TFDS folder (a path), or None.

    Files may lie in a sub-folder of the set's name, or in `root` itself. There they carry no name,
    so the digest of the training labels says whether they are another known set: Fashion-MNIST's
    files are spelled like MNIST's.
    """
    spellings = dict.fromkeys((name, name.replace("_", "-"), name.replace("/", "-")))
    folders = [root / spelling for spelling in spellings if (root / spelling).is_dir()]
    for folder in (*folders, root):
        found = _files.find_files(folder, name)
        if found is not None and not (folder == root and _holds_another(root, name)):
            return found
    return root if _tfds.find(name, root) is not None else None


def _holds_another(root: pathlib.Path, name: str) -> str | None:
    """The known set, another than the one asked for, whose files lie in `root`."""
    found = _files.find_files(root, name)
    if not isinstance(found, dict):
        return None
    labels = _files.sha256(_files.read_idx(found["y_train"]))
    others = (other for other, known in KNOWN.items() if known.digests["y_train"] == labels)
    return next((other for other in others if other != name), None)


def _read(name: str, located: Any) -> Dataset:
    """The dataset from what `_locate` found."""
    if isinstance(located, pathlib.Path) and located.is_dir():
        return _tfds.read(name, located)
    first = located["x_train"].parent if isinstance(located, dict) else located
    arrays = _files.read_found(located)
    known = KNOWN.get(name)
    verified = None
    if known is not None and all(array.dtype == np.uint8 for array in arrays.values()):
        verified = all(_files.sha256(arrays[role]) == known.digests[role] for role in arrays)
    return from_arrays(
        name,
        arrays,
        source=str(first),
        class_names=known.class_names if known is not None else (),
        verified=verified,
    )


def _roots(data_dir: str | os.PathLike | None) -> list[pathlib.Path]:
    """Folders to look in, in order. A folder that the caller names is the only one."""
    if data_dir is not None:
        return [as_path("a folder of datasets", data_dir).expanduser()]
    named = os.environ.get(ENV_DATA_DIR)
    own = [pathlib.Path(named).expanduser()] if named else []
    return [*own, _tfds.default_dir()]


def _search(name: str, data_dir: str | os.PathLike | None) -> Any:
    """The first source that has the set, as `_locate` gives it, or None."""
    for root in _roots(data_dir):
        located = _locate(root, name) if root.is_dir() else None
        if located is not None:
            return located
    system_folder = KNOWN[name].system_folder if name in KNOWN else None
    if data_dir is None and system_folder is not None:
        return _files.find_files(pathlib.Path(system_folder), name)
    return None


def _missing(name: str, data_dir: str | os.PathLike | None) -> MissingData:
    """The one line that says where to get a set."""
    where = f"not in {data_dir}" if data_dir is not None else "found nowhere on this machine"
    if data_dir is not None and not pathlib.Path(data_dir).expanduser().is_dir():
        where = f"{data_dir} is not a folder"
    elif data_dir is not None and name in KNOWN:
        other = _holds_another(pathlib.Path(data_dir).expanduser(), name)
        where += f", which holds {other}" if other else ""
    files = "the four train-*/t10k-*-ubyte.gz files" if name in KNOWN else "idx or npz files of it"
    package = KNOWN[name].package if name in KNOWN else None
    install = f"apt install {package}, or " if package and data_dir is None else ""
    return MissingData(
        f"dataset {name!r}: {where}; try download=True (--download) where there is a network, or "
        f"{install}put {files} into a folder and name it by data_dir (--data-dir) or "
        f"{ENV_DATA_DIR}"
    )


def load(
    name: str, data_dir: str | os.PathLike | None = None, *, download: bool = False
) -> Dataset:
    """Load an image-classification dataset with fixed splits.

    Sources, the first that has the set: `data_dir`, where given, alone; else the folder that the
    environment variable `KOOPJAX_DATA_DIR` names, TFDS's own folder of prepared sets, the folder of
    the Debian package `dataset-fashion-mnist`; last, and only on request, TFDS's checksummed
    downloads. A folder holds idx, idx.gz or npz files, itself or in a sub-folder of the set's name,
    or is a TFDS folder with the set prepared. Nothing here needs tensorflow.

    Splits never change: `mnist` and `fashion_mnist` 55,000 / 5,000 / 10,000; `digits` stratified,
    1,156 / 191 / 450; another set its own test split and, where it has none, a validation split of
    a twelfth of the training images.

    Args:
        name: `"digits"` (embedded), `"mnist"`, `"fashion_mnist"`, or any set of TFDS with features
            `image` and `label`, such as `"kmnist"` or `"cifar10"`; or any name at all for files in
            `data_dir`.
        data_dir: folder to read, or with `download`, to prepare into.
        download: may TFDS fetch the set where it is not there yet?

    Returns:
        A `Dataset`, images float32 in [0, 1].

    Raises:
        MissingData: not to be had; the message says where to get it.
        ValueError: an unknown name, or files that are damaged, named with the bytes expected and
            there.

    Example:
        >>> from koopjax import data
        >>> data.load("digits").flat().x_train.shape
        (1156, 64)
    """
    if not isinstance(name, str):
        raise expected("a name of a dataset", f"{name!r:.60}", "'mnist'")
    if name == "digits":
        return _digits()
    located = _search(name, data_dir)
    if located is not None:
        return _read(name, located)
    if name not in KNOWN and not _tfds.is_known(name):
        raise ValueError(
            f"dataset: expected digits, mnist, fashion_mnist or a name that TFDS lists, got "
            f"{name!r}; try {' or '.join(_tfds.similar(name))}"
        )
    if download:
        folder = pathlib.Path(data_dir).expanduser() if data_dir else _tfds.default_dir()
        _tfds.prepare_download(name, folder)
        return _tfds.read(name, folder)
    raise _missing(name, data_dir)


def _describe(name: str, data_dir) -> DatasetInfo:
    """One line of `available`, without reading the images."""
    if name == "digits":
        shape, counts, present = (8, 8, 1), (1156, 191, 450), True
        source, verified = "scikit-learn's embedded digits", "part of scikit-learn"
    else:
        shape, counts = (28, 28, 1), (55_000, 5_000, 10_000)
        located = _search(name, data_dir)
        present = located is not None
        verified = "SHA-256, when loaded" if present else ""
        if isinstance(located, dict):
            source = str(located["x_train"].parent)
        elif located is not None:
            source = str(located)
        else:
            source = "--download, or a folder of idx files named by --data-dir"
    numbers = sum(counts) * (int(np.prod(shape)) + 1)
    return DatasetInfo(name, present, source, shape, 10, *counts, 4 * numbers, verified)


def available(data_dir: str | os.PathLike | None = None) -> list[DatasetInfo]:
    """The named datasets and whether this machine has them; sets prepared for TFDS come after.

    Args:
        data_dir: folder to look in, as for `load`.

    Returns:
        One `DatasetInfo` a set: `digits`, `mnist`, `fashion_mnist`, then whatever else a TFDS
        folder among the sources holds.
    """
    infos = [_describe(name, data_dir) for name in ("digits", *KNOWN)]
    for root in _roots(data_dir):
        for name in _tfds.prepared(root):
            if all(info.name != name for info in infos):
                infos.append(DatasetInfo(name, True, str(root), *_tfds.describe(name, root)))
    return infos
