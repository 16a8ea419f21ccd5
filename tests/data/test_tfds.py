"""Prepared TFDS folders, made and read without tensorflow."""

import subprocess
import sys

import numpy as np
import pytest
from test_load import rows, small, write

from koopjax import data

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def arrays():
    return small(shape=(28, 28), n=60)


@pytest.fixture(scope="module")
def folder(arrays, tmp_path_factory):
    """A small MNIST, prepared."""
    root = tmp_path_factory.mktemp("tfds")
    version = data.prepare_tfds("mnist", write(root / "idx", arrays), root / "prepared")
    assert version == root / "prepared" / "mnist" / "3.0.1"
    return root / "prepared"


def test_a_prepared_folder_reads_as_the_files_it_came_from(folder, arrays, tmp_path):
    prepared = data.load("mnist", folder)
    direct = data.load("mnist", write(tmp_path, arrays))
    assert prepared.shape == (28, 28, 1)
    assert prepared.classes == 10
    for split in ("x_train", "x_val", "x_test"):
        assert rows(getattr(prepared, split)) == rows(getattr(direct, split))
    number = {image.tobytes(): label for image, label in zip(*direct.train_and_val(), strict=True)}
    for image, label in zip(*prepared.train_and_val(), strict=True):
        assert number[image.tobytes()] == label


def test_the_public_interface_reads_it_without_tensorflow(folder):
    code = (
        "import sys, tensorflow_datasets as tfds\n"
        f"source = tfds.data_source('mnist', data_dir={str(folder)!r}, split='train',"
        " download=False)\n"
        "print(len(source), source[0]['image'].shape, 'tensorflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "60 (28, 28, 1) False"


@pytest.mark.parametrize("below", ["", "mnist", "mnist/3.0.1"])
def test_the_folder_may_be_named_at_any_depth(folder, below):
    assert len(data.load("mnist", folder / below).y_test) == 7


def test_it_is_listed(folder):
    mnist = next(info for info in data.available(folder) if info.name == "mnist")
    assert mnist.present
    assert mnist.source == str(folder)


def test_tfds_own_folder_is_looked_into(folder, monkeypatch):
    monkeypatch.delenv("KOOPJAX_DATA_DIR", raising=False)
    monkeypatch.setenv("TFDS_DATA_DIR", str(folder))
    assert str(folder) in data.load("mnist").source


def test_a_colour_set_of_an_unheard_of_name(tmp_path):
    """Whatever has an image and a label, here under names of its own and with a single split."""
    import tensorflow_datasets as tfds
    from PIL import Image

    random = np.random.default_rng(0)
    images = random.integers(0, 256, (24, 6, 4, 3)).astype(np.uint8)

    def examples():
        for k, image in enumerate(images):
            path = tmp_path / f"{k}.png"
            Image.fromarray(image).save(path)
            yield k, {"picture": str(path), "kind": k % 3}

    with tfds.core.registered.skip_registration():

        class Flags(tfds.core.GeneratorBasedBuilder):
            """Not of TFDS."""

            VERSION = tfds.core.Version("1.0.0")

            @property
            def name(self):
                return "flags"

            def _info(self):
                features = tfds.features.FeaturesDict(
                    {
                        "picture": tfds.features.Image(shape=(6, 4, 3)),
                        "kind": tfds.features.ClassLabel(names=["a", "b", "c"]),
                    }
                )
                return tfds.core.DatasetInfo(builder=self, features=features)

            def _split_generators(self, dl_manager):
                return {"train": examples()}

            def _generate_examples(self):
                raise NotImplementedError

    Flags.name = "flags"
    Flags.code_path = tfds.builder_cls("mnist").code_path
    Flags.url_infos = {}
    Flags(data_dir=str(tmp_path / "d"), file_format="array_record").download_and_prepare()
    flags = data.load("flags", tmp_path / "d")
    assert flags.shape == (6, 4, 3)
    assert flags.class_names == ("a", "b", "c")
    assert (len(flags.y_train), len(flags.y_val), len(flags.y_test)) == (18, 2, 4)
    everything = np.concatenate([flags.x_train, flags.x_val, flags.x_test])
    assert rows(everything) == rows(images.astype(np.float32) / np.float32(255))
    info = data.available(tmp_path / "d")[-1]
    assert (info.name, info.train, info.validation, info.test) == ("flags", 18, 2, 4)


def test_a_download_is_checked_and_read_without_tensorflow(tmp_path, monkeypatch, arrays):
    """The network's part is played by files; everything after it is the real thing."""
    import tensorflow_datasets as tfds

    files = write(tmp_path / "idx", arrays)
    asked = []

    def download(self, urls):
        asked.extend(urls.values())
        return {role: files / url.rsplit("/", 1)[1] for role, url in urls.items()}

    monkeypatch.setattr(tfds.download.DownloadManager, "download", download)
    loaded = data.load("mnist", tmp_path / "new", download=True)
    assert len(loaded.y_train) + len(loaded.y_val) == 60
    # Each address is one whose checksum TFDS knows, or nothing would be checked.
    known = tfds.builder_cls("mnist").url_infos
    assert len(asked) == 4
    assert all(url in known for url in asked)


def test_no_network_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    def offline(self, urls):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(tfds.download.DownloadManager, "download", offline)
    with pytest.raises(data.MissingData, match=r"could not prepare it .*no route.*try again") as e:
        data.load("fashion_mnist", tmp_path, download=True)
    assert "\n" not in str(e.value)
    assert not list(tmp_path.rglob("dataset_info.json"))
    assert not list(tmp_path.rglob("*.array_record*"))


def test_preparing_says_what_it_lacks(tmp_path):
    with pytest.raises(data.MissingData, match="expected idx or npz files of mnist"):
        data.prepare_tfds("mnist", tmp_path, tmp_path)
    with pytest.raises(ValueError, match="got 'mnits'; try"):
        data.prepare_tfds("mnits", tmp_path, tmp_path)
