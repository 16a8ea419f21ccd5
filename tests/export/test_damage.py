"""Files that claim what they do not hold: refused before anything is made of it."""

import tracemalloc

import jax.numpy as jnp
import msgpack
import numpy as np
import pytest
from flax import nnx

from koopjax import export, models, nn, observables as ob
from koopjax.export import _file, _symbols
from koopjax.export._arrays import FORMS, get_array, put_array
from koopjax.export._file import Reader, put_varint
from tests.fuzz import damage

FLOAT32 = np.dtype(np.float32)
HUGE = b"".join(map(put_varint, (2, 50_000, 50_000)))  # a shape of 10 GB in float32
TREE = {"a": np.zeros(2, np.float32)}


def body(node, *records):
    return msgpack.packb(node) + b"".join(records)


def arrays_alone(*records, count=None):
    return body(["T", "dict", bytes(count or len(records)), 0], *records)


def refused(path, content, model=None, most=200 << 20):
    """The message of the FileError; what Python and NumPy take stays small."""
    path.write_bytes(_file.frame(content))
    tracemalloc.start()
    try:
        with pytest.raises(export.FileError) as caught:
            export.load(path, model)
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("form", range(len(FORMS)))
def test_a_huge_shape_in_few_bytes_is_refused_in_every_form(form, tmp_path):
    record = bytes([0x20 | form]) + HUGE + bytes(12)
    assert "do not fit together" in refused(tmp_path / "f", arrays_alone(record), TREE)
    with pytest.raises(LookupError):
        get_array(Reader(record), None, FLOAT32)


@pytest.mark.parametrize(
    "node",
    [
        ["D", ["Product", [1, 10**9, ["Polynomial1D", 2]]]],
        ["D", ["Concat", [1, 60_000, ["Concat", [1, 60_000, ["Identity"]]]]]],
        ["D", ["Monomials", "two"]],
        ["D", ["Monomials", -1]],
        ["D", ["Orthogonal", 2, 7]],
        ["D", ["Custom", "sin", 3]],
        ["D", ["Fits", True, 1, 2, 3, "x"]],
        ["D", ["Neural", ["mlp", {"sizes": [1 << 20, 1 << 20]}]]],
        ["D", {}],
        ["O", [2 << 2, None, "", [10**6, 2, 2, 2]]],
        ["O", [2 << 2, None, "", [3, -2, 2, 2]]],
        ["O", [2 << 2, None, "", [3, 2.0, 2, 2]]],
        ["O", [-1]],
        ["O", [True, 1, 2, 3, 4, 5]],
        ["O", "dense"],
        ["O"],
        ["S", [[0]] * 1000, ["relu"] * 1000],
        ["S", 3, "relu"],
        ["K", ["Identity"]],
        ["P", ["mlp", {"sizes": [4, 1 << 28, 3]}], ["a", "b"], ["O", [0]], [6]],
        ["T", "dict", 10**9, 0],
        ["T", "dict"],
        ["mlp", {"sizes": [2] * 10_000}],
        ["mlp", {"sizes": [1 << 35, 1 << 35]}],
        ["mlp", {"sizes": [3, float("nan")]}],
        ["mlp", {"sizes": [3, 2], "rngs": 1}],
        ["mlp", [3, 2]],
        ["mlp", {"sizes": [3, 2]}, -1],
        ["residual_mlp", {"d_in": 2, "width": 2, "depth": 10**8, "classes": 2}],
    ],
    ids=str,
)
def test_a_header_that_does_not_fit_is_told(node, tmp_path):
    record = put_array(np.ones((2, 2), np.float32), None, FLOAT32)
    said = refused(tmp_path / "f", body(node, record * 3), TREE)
    assert said.startswith("expected a")


def test_an_unknown_name_of_several_lines_is_told_in_one(tmp_path):
    assert "got a b" in refused(tmp_path / "f", body(["a\nb", {}]))


@pytest.mark.parametrize(
    "head",
    [
        b"\xdd\x7f\xff\xff\xff", b"\xdf\x7f\xff\xff\xff", b"\xdb\x7f\xff\xff\xff", b"\xc1",
        b"\x91" * 100_000, b"\x92\xdd\x00\x00\x00\x09" * 20, b"", b"\x90", b"\x93\x01\x02\x03",
        b"\x81\xa1a\x01", b"\xc6\xff\xff\xff\xff",
    ],
    ids=lambda head: head[:6].hex(),
)  # fmt: skip
def test_headers_that_promise_too_much_are_told(head, tmp_path):
    assert "a readable header" in refused(tmp_path / "f", head, TREE)


def test_numbers_without_an_end_and_bytes_behind_the_arrays_are_told(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"\x8bkjx\x01" + b"\xff" * 1_000_000)
    with pytest.raises(export.FileError, match="truncated"):
        export.load(path)
    matrix = put_array(np.ones((2, 2), np.float32), None, FLOAT32)
    assert "bytes behind" in refused(path, body(["O", [0]], matrix, b"more"))


def test_many_arrays_are_not_read_for_a_model_of_few(tmp_path):
    record = put_array(np.ones(2, np.float32), None, FLOAT32)
    said = refused(tmp_path / "f", arrays_alone(*[record] * 50_000), TREE)
    assert "try the model of that file" in said


@pytest.mark.parametrize("n", [1, 5, 100])
def test_few_symbols_of_a_large_alphabet_come_back(n):
    rng = np.random.default_rng(n)
    symbols = rng.integers(0, 60_000, n)
    lines = np.arange(n) // 3, np.arange(n) % 3
    data = _symbols.put_symbols(symbols, 60_001, lines)
    assert data is not None
    reader = Reader(b"?" + data + b"!", 1)
    found, size = _symbols.get_symbols(reader, lines)
    assert (size, reader.at) == (60_001, 1 + len(data))
    np.testing.assert_array_equal(found, symbols)


@pytest.mark.parametrize("n", [_symbols.FEW - 1, _symbols.FEW + 1])
def test_counted_symbols_come_back_with_and_without_a_table(n):
    symbols = np.random.default_rng(0).geometric(0.3, n) % 50 * 3  # most of the alphabet never
    data = _symbols._counted(symbols, 200)
    reader = Reader(data)
    np.testing.assert_array_equal(_symbols._from_counted(reader, n, 200), symbols)
    assert reader.at == len(data)


def test_what_claims_more_than_its_size_is_filled_up_and_loads(tmp_path, monkeypatch):
    monkeypatch.setattr(_file, "FLOOR", 1 << 16)
    dense = nn.Dense(jnp.zeros((300, 300)))
    size = export.save(dense, tmp_path / "f")
    assert size >= (4 * 300 * 300 - (1 << 16)) / _file.RATIO
    assert size < 400
    assert export.load(tmp_path / "f").matrix.shape == (300, 300)
    psi = ob.Neural(models.MLP((300, 200), rngs=nnx.Rngs(0)))
    export.save(psi, tmp_path / "f")
    assert export.load(tmp_path / "f").size(300) == 200


def test_more_layers_than_a_file_names_need_a_template(tmp_path):
    cores = [np.ones((1, 1, 1, 1), np.float32)] * (_file.LAYERS_LIMIT + 1)
    train = nn.TT(cores)
    export.save(train, tmp_path / "f")
    with pytest.raises(export.FileError, match="expected a template"):
        export.load(tmp_path / "f")
    assert len(export.load(tmp_path / "f", train).cores) == len(cores)


@pytest.mark.parametrize("form", ["sparse", "quantized", "train", "dictionary", "product", "tree"])
def test_damaged_files_of_each_form_are_told(form):
    numbers = np.random.default_rng(0).integers(0, 1 << 30, 40)
    ways = list(damage.WAYS)
    for i, seed in enumerate(numbers):
        case = damage.Damage(form, ways[i % len(ways)], int(seed))
        outcome = damage.run(case)
        assert outcome is None or outcome.kind in ("right", "refused"), (case, outcome)
