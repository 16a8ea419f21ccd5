"""Files that can't be read, and writes that can't be finished."""

import errno
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from koopjax import export, models, nn
from koopjax.export import _file


@pytest.fixture
def model():
    made = nn.Dense.create(jax.random.key(0), 3, 2, use_bias=True)
    return made


@pytest.fixture
def stored(tmp_path, model):
    path = tmp_path / "m.kjx"
    export.save(model, path)
    return path


def fails(path, kind=export.FileError):
    with pytest.raises(kind) as caught:
        export.load(path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("expected ")
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_every_truncation_is_told(stored):
    data = stored.read_bytes()
    for length in range(len(data)):
        stored.write_bytes(data[:length])
        assert "truncated" in fails(stored)


def test_every_flipped_bit_is_told(stored):
    data = stored.read_bytes()
    for at in range(len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[at] ^= 1 << bit
            stored.write_bytes(changed)
            fails(stored)


def test_appended_bytes_are_told(stored):
    stored.write_bytes(stored.read_bytes() + b"\0")
    assert "corrupt" in fails(stored)


def test_a_newer_version_is_told(stored):
    data = bytearray(stored.read_bytes())
    data[4] = _file.VERSION + 1
    stored.write_bytes(data)
    assert fails(stored).endswith("try a newer koopjax")


def test_another_kind_of_file_is_told(stored):
    for data in (b"PK\x03\x04 a zip file", b"x", b"\x89PNG\r\n"):
        stored.write_bytes(data)
        assert "of another kind" in fails(stored)


def test_an_architecture_of_a_newer_koopjax_is_told(stored, monkeypatch):
    small = models.MLP((2, 3, 2), rngs=nnx.Rngs(0))
    export.save(small, stored)
    monkeypatch.delitem(models.REGISTRY, "mlp")
    assert "an architecture that this koopjax knows" in fails(stored)


def test_no_file_and_a_folder(tmp_path, model):
    assert "try export.save first" in fails(tmp_path / "none.kjx", FileNotFoundError)
    assert "a file in it" in fails(tmp_path, IsADirectoryError)
    with pytest.raises(IsADirectoryError, match="expected a path for a file"):
        export.save(model, tmp_path)
    with pytest.raises(FileNotFoundError, match="expected an existing folder"):
        export.save(model, tmp_path / "no" / "m.kjx")


def break_at(monkeypatch, name, error):
    def broken(*args, **kwargs):
        raise error

    monkeypatch.setattr(os, name, broken)


@pytest.mark.parametrize("at", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(stored, monkeypatch, at, error):
    before = stored.read_bytes()
    with monkeypatch.context() as patch:
        break_at(patch, at, error)
        with pytest.raises(type(error)) as caught:
            export.save(nn.Dense(jnp.ones((30, 30))), stored)
    if isinstance(error, OSError):
        assert "No space left; nothing was left behind" in str(caught.value)
        assert caught.value.errno == errno.ENOSPC
    assert os.listdir(stored.parent) == [stored.name]
    assert stored.read_bytes() == before


def test_saving_over_a_file_replaces_it_whole(stored, model):
    bigger = nn.Dense(jnp.arange(3000.0).reshape(30, 100))
    size = export.save(bigger, str(stored))
    assert os.path.getsize(stored) == size
    export.save(model, stored)
    np.testing.assert_array_equal(export.load(stored).matrix[...], model.matrix[...])
    assert os.listdir(stored.parent) == [stored.name]


def test_files_keep_the_permissions_that_the_user_asks_for(tmp_path, model):
    old = os.umask(0o027)
    try:
        export.save(model, tmp_path / "m.kjx")
    finally:
        os.umask(old)
    assert (tmp_path / "m.kjx").stat().st_mode & 0o777 == 0o640


def test_a_file_is_the_same_each_time(model):
    first, second = (export.stored_bytes(nnx.clone(model)) for _ in range(2))
    assert first == second
