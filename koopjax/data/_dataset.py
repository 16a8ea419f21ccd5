"""A dataset in memory, with its fixed splits."""

import dataclasses
import hashlib
import math

import numpy as np

from koopjax._core import expected, read

#: Seed of the draw that fixes which training images are held out: part of the definition of every
#: split here, so never to be changed.
_SPLIT_SEED = 20240211


class MissingData(FileNotFoundError):
    """A dataset that is nowhere to be had; the one-line message says where to get it."""


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Images with labels in three fixed splits, as NumPy arrays.

    Args:
        name: as given to `load`.
        x_train, x_val, x_test: float32 in [0, 1], shape `(n, *shape)`.
        y_train, y_val, y_test: int32, shape `(n,)`.
        classes: number of classes.
        shape: of one image, `(height, width, channels)`; one number after `flat`.
        source: where it was read from, in words.
        class_names: one name a class, where the source has them; else the numbers.
        verified: True where every byte has the published SHA-256, False where it has another,
            None where none is published.
    """

    name: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_val: np.ndarray
    y_val: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    classes: int
    shape: tuple[int, ...]
    source: str = ""
    class_names: tuple[str, ...] = ()
    verified: bool | None = None

    def __post_init__(self) -> None:
        """Take the arrays in: lists and frames too."""
        for split in ("train", "val", "test"):
            for name in (f"x_{split}", f"y_{split}"):
                array = np.asarray(read(name, getattr(self, name)))
                if array.ndim == 0:
                    raise expected(f"an array as {name}", "a scalar")
                object.__setattr__(self, name, array)

    def flat(self) -> "Dataset":
        """The same dataset with every image a vector: `shape` is `(prod(shape),)`; no copy."""
        size = math.prod(self.shape)
        return dataclasses.replace(
            self,
            x_train=self.x_train.reshape(-1, size),
            x_val=self.x_val.reshape(-1, size),
            x_test=self.x_test.reshape(-1, size),
            shape=(size,),
        )

    def train_and_val(self) -> tuple[np.ndarray, np.ndarray]:
        """All labelled data but the test split, `(x, y)`, to refit on once choices are made."""
        return (
            np.concatenate([self.x_train, self.x_val]),
            np.concatenate([self.y_train, self.y_val]),
        )

    def __repr__(self) -> str:
        return (
            f"Dataset({self.name!r}, shape={self.shape}, classes={self.classes}, "
            f"{len(self.y_train):,} train / {len(self.y_val):,} validation / "
            f"{len(self.y_test):,} test, from {self.source})"
        )


def unit_range(images: np.ndarray) -> np.ndarray:
    """Images as float32 in [0, 1]: integers by their type's range, floats as they are."""
    if np.issubdtype(images.dtype, np.integer):
        return images.astype(np.float32) / np.float32(np.iinfo(images.dtype).max)
    return images.astype(np.float32)


def held_out(n: int) -> int:
    """How many of `n` training images are validation images: a twelfth (5,000 of 60,000)."""
    return max(1, round(n / 12))


def hold_out(images: np.ndarray, labels: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices (kept, held out) of `count` images drawn by a keyed hash of their content.

    TFDS shuffles what it writes, so positions differ between sources of one set; the content does
    not, and the same images are held out wherever they were read from.
    """
    salt = _SPLIT_SEED.to_bytes(8, "little")
    draw = np.empty(len(labels), np.uint64)
    for k, (image, label) in enumerate(zip(images, labels, strict=True)):
        content = np.ascontiguousarray(image).tobytes() + int(label).to_bytes(8, "little")
        draw[k] = int.from_bytes(hashlib.blake2b(content, digest_size=8, salt=salt).digest())
    order = np.argsort(draw, kind="stable")
    return np.sort(order[count:]), np.sort(order[:count])


def stratified(labels: np.ndarray, fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Indices (kept, held out), the held-out `fraction` taken of each class by itself; fixed."""
    random = np.random.Generator(np.random.PCG64(_SPLIT_SEED))
    out = [
        random.permutation(np.flatnonzero(labels == label))[: round(fraction * count)]
        for label, count in zip(*np.unique(labels, return_counts=True), strict=True)
    ]
    held = np.sort(np.concatenate(out))
    return np.setdiff1d(np.arange(len(labels)), held), held


def as_images(images: np.ndarray) -> np.ndarray:
    """`(n, h, w)` or `(n, h, w, c)` as `(n, h, w, c)`."""
    return images[..., None] if images.ndim == 3 else images


def _require(holds: bool, where: str, what: str, got: str, advice: str) -> None:
    if not holds:
        raise ValueError(f"{where}: {expected(what, got, advice)}")


def check_arrays(where: str, arrays: dict[str, np.ndarray]) -> None:
    """Refuse images and labels that do not belong together."""
    for split in ("train", "test"):
        x, y = arrays[f"x_{split}"], arrays[f"y_{split}"]
        wanted = f"{split} images of shape (n, h, w) or (n, h, w, c) with n > 0"
        sound = x.ndim in (3, 4) and x.shape[0] > 0
        _require(sound, where, wanted, f"{x.shape}", "another file")
        wanted, advice = f"{x.shape[0]:,} {split} labels", "the label file of the same set"
        _require(y.shape == x.shape[:1], where, wanted, f"shape {y.shape}", advice)
        sound = np.issubdtype(y.dtype, np.integer) and y.min() >= 0
        got = f"{y.dtype} from {y.min()}"
        _require(sound, where, f"{split} labels 0, 1, 2, ...", got, "to number the classes")
        if np.issubdtype(x.dtype, np.floating):
            least, most = x.min(), x.max()
            advice = "uint8, or to divide by the largest value"
            sound = least >= 0 and most <= 1
            _require(sound, where, "float images in [0, 1]", f"{least} to {most}", advice)
    train, test = arrays["x_train"].shape[1:], arrays["x_test"].shape[1:]
    wanted = f"test images of shape {train} like the training images"
    _require(train == test, where, wanted, f"{test}", "files of one set")


def from_arrays(
    name: str,
    arrays: dict[str, np.ndarray],
    *,
    source: str,
    class_names: tuple[str, ...] = (),
    verified: bool | None = None,
) -> Dataset:
    """A `Dataset` of training and test arrays, validation from `x_val` or held out of training."""
    check_arrays(source, arrays)
    x, y = as_images(arrays["x_train"]), arrays["y_train"].astype(np.int32)
    y_test = arrays["y_test"].astype(np.int32)
    if "x_val" in arrays:
        x_val, y_val = as_images(arrays["x_val"]), arrays["y_val"].astype(np.int32)
    else:
        wanted = "at least 2 training images"
        _require(len(y) > 1, source, wanted, f"{len(y)}", "a larger set")
        train, val = hold_out(x, y, held_out(len(y)))
        x, x_val, y, y_val = x[train], x[val], y[train], y[val]
    classes = max(len(class_names), int(max(y.max(), y_val.max(), y_test.max())) + 1)
    return Dataset(
        name=name,
        x_train=unit_range(x),
        y_train=y,
        x_val=unit_range(x_val),
        y_val=y_val,
        x_test=unit_range(as_images(arrays["x_test"])),
        y_test=y_test,
        classes=classes,
        shape=tuple(x.shape[1:]),
        source=source,
        class_names=class_names or tuple(str(label) for label in range(classes)),
        verified=verified,
    )
