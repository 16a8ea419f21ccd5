"""idx and npz files: round trips, and what damaged ones say."""

import gzip

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as hnp

from koopjax import data

DTYPES = ["uint8", "int8", "int16", "int32", "float32", "float64"]


@settings(max_examples=40, deadline=None)
@given(
    array=st.sampled_from(DTYPES).flatmap(
        lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, max_side=5))
    ),
    end=st.sampled_from(["", ".gz"]),
)
def test_idx_round_trip(tmp_path_factory, array, end):
    path = tmp_path_factory.mktemp("idx") / f"a-idx-ubyte{end}"
    data.write_idx(path, array)
    back = data.read_idx(path)
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_idx_bytes_are_those_of_the_format(tmp_path):
    path = tmp_path / "a"
    data.write_idx(path, np.array([[1, 2, 3]], np.int16))
    assert path.read_bytes() == bytes([0, 0, 0x0B, 2, 0, 0, 0, 1, 0, 0, 0, 3, 0, 1, 0, 2, 0, 3])


def test_gzip_is_told_by_content(tmp_path):
    path = tmp_path / "unnamed"
    data.write_idx(tmp_path / "a.gz", np.arange(6, dtype=np.uint8).reshape(2, 3))
    path.write_bytes((tmp_path / "a.gz").read_bytes())
    assert data.read_idx(path).shape == (2, 3)


@pytest.mark.parametrize("cut", [2, 7, 15, 30])
def test_a_truncated_idx_file_names_file_and_bytes(tmp_path, cut):
    path = tmp_path / "train-images-idx3-ubyte"
    data.write_idx(path, np.zeros((2, 4, 4), np.uint8))
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte: expected .*, got .*; try") as e:
        data.read_idx(path)
    if cut > 20:
        assert "expected 48 bytes" in str(e.value)
        assert "got 30" in str(e.value)


def test_a_truncated_gzip_file_names_file_and_bytes(tmp_path):
    path = tmp_path / "train-images-idx3-ubyte.gz"
    data.write_idx(path, np.random.default_rng(0).integers(0, 255, (9, 9, 9)).astype(np.uint8))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"idx3-ubyte\.gz: expected a whole gzip .*got 200 bytes"):
        data.read_idx(path)


def test_a_corrupt_gzip_file_and_a_huge_header_are_refused(tmp_path):
    raw = bytearray(gzip.compress(bytes(1000), mtime=0))
    raw[-6] ^= 0xFF
    (tmp_path / "a.gz").write_bytes(raw)
    with pytest.raises(ValueError, match="whole gzip stream"):
        data.read_idx(tmp_path / "a.gz")
    (tmp_path / "b").write_bytes(bytes([0, 0, 8, 4]) + b"\xff" * 16 + b"abc")
    with pytest.raises(ValueError, match=r"b: expected .* bytes for shape"):
        data.read_idx(tmp_path / "b")


def test_a_gzip_file_longer_than_its_header_says_is_refused(tmp_path):
    raw = bytes([0, 0, 8, 1, 0, 0, 0, 3]) + bytes(5000)
    (tmp_path / "a.gz").write_bytes(gzip.compress(raw))
    with pytest.raises(ValueError, match=r"a\.gz: expected 11 bytes for shape \(3,\)"):
        data.read_idx(tmp_path / "a.gz")


def test_idx_refuses_a_dtype_it_has_no_code_for(tmp_path):
    with pytest.raises(ValueError, match=r"expected dtype .*, got complex64"):
        data.write_idx(tmp_path / "a", np.zeros(2, np.complex64))
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a"
    data.write_idx(path, np.zeros(2, np.uint8))

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        data.write_idx(path, np.ones(3, np.uint8))
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert data.read_idx(path).shape == (2,)


def test_npz_needs_its_four_arrays_and_to_be_whole(tmp_path):
    path = tmp_path / "mnist.npz"
    np.savez(path, x_train=np.zeros(3))
    with pytest.raises(ValueError, match=r"mnist\.npz: expected arrays x_train.*got x_train; try"):
        data.read_npz(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"mnist\.npz: expected a whole npz archive, got 100"):
        data.read_npz(path)
