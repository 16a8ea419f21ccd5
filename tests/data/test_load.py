"""Where datasets are looked for, and that their splits stay what they are."""

import hashlib

import numpy as np
import pytest

from koopjax import data


@pytest.fixture(autouse=True)
def nowhere(tmp_path, monkeypatch):
    """No folder but those a test names."""
    monkeypatch.delenv("KOOPJAX_DATA_DIR", raising=False)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "no-tfds"))
    known = data._load.KNOWN["fashion_mnist"]
    monkeypatch.setitem(
        data._load.KNOWN, "fashion_mnist", known.__class__(**{**vars(known), "system_folder": None})
    )


def small(seed=0, shape=(5, 5), n=36):
    """Random images that look like a set of the MNIST family."""
    random = np.random.default_rng(seed)
    return {
        "x_train": random.integers(0, 256, (n, *shape)).astype(np.uint8),
        "y_train": random.permutation(np.arange(n) % 10).astype(np.uint8),
        "x_test": random.integers(0, 256, (7, *shape)).astype(np.uint8),
        "y_test": (np.arange(7) % 10).astype(np.uint8),
    }


def write(folder, arrays, end=".gz"):
    folder.mkdir(parents=True, exist_ok=True)
    for split, stem in (("train", "train"), ("test", "t10k")):
        data.write_idx(folder / f"{stem}-images-idx3-ubyte{end}", arrays[f"x_{split}"])
        data.write_idx(folder / f"{stem}-labels-idx1-ubyte{end}", arrays[f"y_{split}"])
    return folder


def rows(x):
    return {row.tobytes() for row in np.asarray(x)}


def test_digits_are_split_by_class_without_overlap():
    digits = data.load("digits")
    assert (len(digits.y_train), len(digits.y_val), len(digits.y_test)) == (1156, 191, 450)
    assert digits.shape == (8, 8, 1)
    assert digits.classes == 10
    for x, y in ((digits.x_train, digits.y_train), (digits.x_test, digits.y_test)):
        assert x.dtype == np.float32
        assert y.dtype == np.int32
        assert x.min() >= 0
        assert x.max() <= 1
    share = np.bincount(digits.y_test) / np.bincount(np.concatenate([digits.y_train, digits.y_val]))
    assert np.ptp(share) < 0.02
    assert not rows(digits.x_train) & rows(digits.x_test)
    assert not rows(digits.x_train) & rows(digits.x_val)


def test_the_digits_split_is_pinned():
    digits = data.load("digits")
    text = digits.y_train.tobytes() + digits.y_val.tobytes() + digits.y_test.tobytes()
    assert hashlib.sha256(text).hexdigest()[:16] == "a6058fc344db48ca"


def test_flat_and_train_and_val():
    digits = data.load("digits").flat()
    assert digits.x_test.shape == (450, 64)
    assert digits.shape == (64,)
    x, y = digits.train_and_val()
    assert x.shape == (1347, 64)
    np.testing.assert_array_equal(x[:1156], digits.x_train)
    np.testing.assert_array_equal(y[1156:], digits.y_val)


@pytest.mark.parametrize("end", ["", ".gz"])
@pytest.mark.parametrize("sub", ["", "mnist"])
def test_idx_files_in_a_folder_or_its_sub_folder(tmp_path, end, sub):
    arrays = small()
    write(tmp_path / sub, arrays, end)
    loaded = data.load("mnist", tmp_path)
    assert len(loaded.y_train) == 33
    assert len(loaded.y_val) == 3
    assert loaded.shape == (5, 5, 1)
    assert loaded.verified is False
    np.testing.assert_array_equal(loaded.x_test[..., 0], arrays["x_test"].astype(np.float32) / 255)
    both, _ = loaded.train_and_val()
    assert rows(both[..., 0]) == rows(arrays["x_train"].astype(np.float32) / np.float32(255))


def test_npz_gives_the_same_as_idx(tmp_path):
    arrays = small()
    np.savez_compressed(tmp_path / "mnist.npz", **arrays)
    one = data.load("mnist", tmp_path)
    two = data.load("mnist", write(tmp_path / "idx", arrays))
    np.testing.assert_array_equal(one.x_val, two.x_val)
    np.testing.assert_array_equal(one.y_train, two.y_train)


def test_the_same_images_are_held_out_in_any_order(tmp_path):
    arrays = small(n=240)
    one = data.load("mnist", write(tmp_path / "a", arrays))
    order = np.random.default_rng(1).permutation(240)
    arrays |= {"x_train": arrays["x_train"][order], "y_train": arrays["y_train"][order]}
    two = data.load("mnist", write(tmp_path / "b", arrays))
    assert len(one.y_val) == 20
    assert rows(one.x_val) == rows(two.x_val)
    assert rows(one.x_train) == rows(two.x_train)


def test_the_environment_variable_names_a_folder(tmp_path, monkeypatch):
    write(tmp_path / "env" / "mnist", small(1))
    write(tmp_path / "arg" / "mnist", small(2))
    monkeypatch.setenv("KOOPJAX_DATA_DIR", str(tmp_path / "env"))
    assert data.load("mnist").source == str(tmp_path / "env" / "mnist")
    assert data.load("mnist", tmp_path / "arg").source == str(tmp_path / "arg" / "mnist")


def test_a_name_of_ones_own(tmp_path):
    write(tmp_path / "runes", small(shape=(4, 6)))
    assert data.load("runes", tmp_path).shape == (4, 6, 1)


def test_missing_data_say_in_one_line_where_to_get_them(tmp_path):
    for call in (
        lambda: data.load("mnist"),
        lambda: data.load("fashion_mnist", tmp_path),
        lambda: data.load("kmnist", tmp_path / "none"),
    ):
        with pytest.raises(data.MissingData, match=r"^dataset '.*download.*KOOPJAX_DATA_DIR$") as e:
            call()
        assert isinstance(e.value, FileNotFoundError)
        assert "\n" not in str(e.value)
    with pytest.raises(data.MissingData, match="none is not a folder"):
        data.load("kmnist", tmp_path / "none")


def test_an_unknown_name_proposes_known_ones():
    with pytest.raises(ValueError, match=r"got 'fashion_mnits'; try fashion_mnist"):
        data.load("fashion_mnits")


def test_an_incomplete_folder_says_what_lacks(tmp_path):
    write(tmp_path, small())
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(data.MissingData, match="got 3; try to add t10k-labels"):
        data.load("mnist", tmp_path)


def test_a_truncated_file_is_named(tmp_path):
    path = write(tmp_path, small(), "") / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte: expected 916 bytes .* got 915"):
        data.load("mnist", tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y_train": np.zeros(3, np.uint8)}, "expected 36 train labels"),
        ({"x_test": np.zeros((7, 4, 4), np.uint8)}, r"expected test images of shape \(5, 5\)"),
        ({"x_train": np.zeros((36, 25), np.uint8)}, r"expected train images of shape \(n, h, w\)"),
        ({"y_test": np.full(7, -1, np.int8)}, "expected test labels 0, 1, 2"),
        ({"x_test": np.full((7, 5, 5), 2.0, np.float32)}, r"expected float images in \[0, 1\]"),
        ({"x_train": np.zeros((0, 5, 5), np.uint8), "y_train": np.zeros(0, np.uint8)}, "n > 0"),
    ],
)
def test_arrays_that_do_not_belong_together(tmp_path, change, message):
    np.savez(tmp_path / "mnist.npz", **(small() | change))
    with pytest.raises(ValueError, match=message):
        data.load("mnist", tmp_path)


def test_genuine_mnist(mnist_dir):
    mnist = data.load("mnist", mnist_dir)
    assert mnist.verified is True
    assert (len(mnist.y_train), len(mnist.y_val), len(mnist.y_test)) == (55_000, 5_000, 10_000)
    assert mnist.y_test[:5].tolist() == [7, 2, 1, 0, 4]
    assert np.bincount(mnist.y_val).tolist() == [498, 570, 501, 529, 494, 430, 493, 505, 464, 516]
    with pytest.raises(data.MissingData, match="which holds mnist"):
        data.load("fashion_mnist", mnist_dir)


def test_genuine_fashion_mnist(fashion_dir):
    fashion = data.load("fashion_mnist", fashion_dir)
    assert fashion.verified is True
    assert fashion.class_names[fashion.y_test[0]] == "Ankle boot"


def test_available_tells_what_is_here(tmp_path):
    write(tmp_path / "mnist", small())
    digits, mnist, fashion = data.available(tmp_path)
    assert digits.present
    assert mnist.present
    assert mnist.source == str(tmp_path / "mnist")
    assert not fashion.present
    assert mnist.bytes == 70_000 * 785 * 4
