"""Values that are few or on a grid: back to the bit, at the price of their entropy."""

import time

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from koopjax import export
from koopjax.export import _arrays, _symbols, _values
from koopjax.export._arrays import get_array, put_array
from koopjax.export._file import Reader

FLOAT32 = np.dtype(np.float32)


def round_trip(array, dtype=FLOAT32):
    data = put_array(array, None, dtype)
    reader = Reader(b"??" + data + b"after", 2)
    record = get_array(reader, None, dtype)
    assert reader.at == 2 + len(data)
    assert record.size == len(data)
    assert record.value.dtype == array.dtype
    assert record.value.shape == array.shape
    assert record.value.tobytes() == array.tobytes()
    return record, data


def in_a_row(n):
    return np.zeros(n, int), np.arange(n)


def entropy_bytes(symbols):
    counts = np.unique(symbols, return_counts=True)[1]
    return float(-np.sum(counts * np.log2(counts / counts.sum()))) / 8


@st.composite
def arrays(draw):
    """Few values, many zeros, some of the special ones, in every floating dtype."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    name = draw(st.sampled_from(["float32", "float64", "float16", "bfloat16", "float8_e5m2"]))
    dtype = jnp.dtype(name)
    shape = tuple(draw(st.lists(st.integers(0, 12), max_size=3)))
    book = rng.integers(0, 256, (draw(st.integers(1, 20)), dtype.itemsize), np.uint8)
    book = book.reshape(-1).view(dtype)  # NaN payloads and infinities among them
    special = np.array([0.0, -0.0, np.inf, 1.0], dtype)
    book = np.concatenate([book, special[: draw(st.integers(0, 4))]])
    array = book[rng.integers(0, len(book), shape)]
    return np.where(rng.random(shape) < draw(st.floats(0, 1)), array, np.zeros((), dtype))


@settings(max_examples=200, deadline=None)
@given(arrays())
def test_few_values_come_back_to_the_bit(array):
    round_trip(np.asarray(array))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(1, 40), max_size=3),
    st.sampled_from(["float32", "float64"]),
    st.integers(1, 2000),
    st.floats(1e-30, 1e30),
    st.sampled_from([None, 0, 1]),
    st.integers(0, 2**32 - 1),
)
def test_a_grid_comes_back_to_the_bit(shape, name, most, scale, axis, seed):
    rng = np.random.default_rng(seed)
    steps = rng.integers(-most, most + 1, shape) * (rng.random(shape) < 0.7)
    matrix = steps.reshape(_arrays._as_matrix(steps.shape))
    scales = np.asarray(scale * rng.uniform(0.1, 1.0, matrix.shape), name)
    scales = {None: scales[:1, :1], 0: scales[:1], 1: scales[:, :1]}[axis]
    round_trip((scales * matrix.astype(name)).reshape(shape))


@pytest.mark.parametrize("steps", [7, 127])
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_a_quantised_matrix_costs_its_scales_and_the_entropy_of_its_steps(steps, axis):
    rng = np.random.default_rng(steps)
    weights = rng.normal(size=(300, 60)).astype(np.float32)
    most = np.max(np.abs(weights), axis=axis, keepdims=True)
    scales = most / np.float32(steps)
    codes = np.rint(weights / scales) + np.float32(0)  # no minus zero
    record, data = round_trip(scales * codes)
    assert record.form == "grid"
    assert len(data) < 4 * scales.size + 1.02 * entropy_bytes(codes) + 150


def test_scales_are_found_whatever_their_last_digits():
    rng = np.random.default_rng(3)
    for _ in range(50):
        scale = np.float32(rng.uniform(1e-3, 1e3))
        codes = rng.integers(3, 200, 400) * rng.choice([-1, 1], 400)
        codes[7] = 3
        assert round_trip(scale * codes.astype(np.float32))[0].form in ("grid", "palette")
        found = list(
            _values.grids((scale * codes.astype(np.float32))[None, :], np.ones((1, 400), bool))
        )
        assert len(found) == 1


def test_what_is_off_the_grid_by_one_bit_is_no_grid():
    array = np.float32(0.1) * np.arange(1, 4001, dtype=np.float32)
    assert round_trip(array)[0].form == "grid"
    array[1234] = np.nextafter(array[1234], np.float32(9e9))
    assert round_trip(array)[0].form == "raw"
    tiny = np.float32(1e-40) * np.arange(1, 4001, dtype=np.float32)
    assert round_trip(tiny)[0].form != "grid"  # subnormal: machines may flush them to zero
    minus = np.where(np.arange(1000) % 3 == 0, np.float32(-0.0), np.float32(0.5))
    assert round_trip(minus)[0].form == "palette"


@pytest.mark.parametrize("dtype", [np.float32, np.float16, jnp.bfloat16, np.float64])
def test_a_palette_costs_its_values_the_mask_and_the_entropy_of_what_is_where(dtype):
    rng = np.random.default_rng(0)
    book = rng.normal(size=16).astype(dtype)
    array = np.where(
        rng.random((400, 50)) < 0.2, book[rng.integers(0, 16, (400, 50))], np.zeros((), dtype)
    )
    record, data = round_trip(array)
    assert record.form == "palette"
    assert record.nonzero == np.count_nonzero(array)
    assert len(data) < book.nbytes + 1.02 * entropy_bytes(array.astype(np.float64)) + 60


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.uint16, np.int64, np.uint64])
def test_codes_cost_their_entropy(dtype):
    rng = np.random.default_rng(1)
    top = 100 if dtype == np.int8 else 200
    codes = np.clip(np.rint(top / 2 + 9 * rng.normal(size=(100, 50))), 0, top).astype(dtype)
    record, data = round_trip(codes)
    assert record.form == "symbols"
    assert len(data) < 1.03 * entropy_bytes(codes) + 40
    wide = codes + np.array(np.iinfo(dtype).max - top).astype(dtype)
    assert len(round_trip(wide)[1]) < 1.03 * entropy_bytes(codes) + 60


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 100, 256])
@pytest.mark.parametrize("spread", [0.0, 1.0, 4.0])
def test_five_thousand_symbols_cost_their_entropy(size, spread):
    rng = np.random.default_rng(size)
    p = np.exp(-spread * rng.random(size))
    symbols = rng.choice(size, 5000, p=p / p.sum())
    data = _symbols.put_symbols(symbols, size, in_a_row(5000))
    assert data is not None
    assert len(data) < 1.03 * entropy_bytes(symbols) + 40


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 400), st.integers(1, 300), st.integers(0, 2**32 - 1), st.booleans())
def test_symbols_come_back_from_either_coder(n, size, seed, skewed):
    rng = np.random.default_rng(seed)
    symbols = rng.integers(0, size, n)
    if skewed:
        symbols = symbols * (rng.random(n) < 0.01)
    for limit in (0, _symbols.ADAPTIVE_LIMIT):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_symbols, "ADAPTIVE_LIMIT", limit if n and size > 1 else 1)
            data = _symbols.put_symbols(symbols, size, in_a_row(n))
        assert data is not None
        reader = Reader(b"x" + data + b"\xff\xff", 1)
        found, alphabet = _symbols.get_symbols(reader, in_a_row(n))
        assert (alphabet, reader.at) == (size, 1 + len(data))
        np.testing.assert_array_equal(found, symbols)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_symbols_come_back_with_their_rows_and_columns(p, q, size, seed):
    rng = np.random.default_rng(seed)
    mask = rng.random((p, q)) < rng.random()
    lines = _values.lines_of(mask)
    up = rng.integers(0, 2, q if seed % 2 else p)[lines[seed % 2]]
    symbols = (rng.integers(0, size, len(up)) + up * (size - 1)) // 2
    data = _symbols.put_symbols(symbols, size, lines)
    assert data is not None
    reader = Reader(data + b"\xff\xff")
    found, alphabet = _symbols.get_symbols(reader, lines)
    assert (alphabet, reader.at) == (size, len(data))
    np.testing.assert_array_equal(found, symbols)


@pytest.mark.parametrize("axis", [0, 1])
def test_signs_that_stay_along_a_line_cost_little(axis):
    rng = np.random.default_rng(0)
    signs = np.where(np.cumsum(rng.random((200, 200)) < 0.05, axis=axis) % 2, 1, -1)
    steps = signs * rng.integers(1, 4, (200, 200))
    sparse = np.where(rng.random((200, 200)) < 0.3, steps, 0).astype(np.int8)
    _, data = round_trip(sparse)
    loose = np.where(sparse == 0, 0, sparse * rng.choice([-1, 1], sparse.shape)).astype(np.int8)
    assert len(data) < len(round_trip(loose)[1]) - 0.3 * np.count_nonzero(sparse) / 8


def test_a_large_alphabet_with_one_frequent_symbol():
    symbols = np.concatenate([np.arange(40_000), np.zeros(30_000, int)])
    lines = in_a_row(len(symbols))
    data = _symbols.put_symbols(symbols, 40_000, lines)
    assert data is not None
    np.testing.assert_array_equal(_symbols.get_symbols(Reader(data), lines)[0], symbols)
    counts = 2 * 40_000 / 8  # two bits to say that a symbol occurs once
    assert len(data) < 1.02 * entropy_bytes(symbols) + counts + 4000


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(0, np.float32),
        np.zeros((3, 0), np.int8),
        np.float32(2.5).reshape(()),
        np.int8(0).reshape(()),
        np.zeros((20, 5), np.float32),
        np.full((20, 5), 3, np.int8),
        np.full((20, 5), 3.5, np.float16),
        np.eye(9, dtype=np.float32) * np.float32(0.3),
        np.where(np.eye(40) > 0, np.float64(1.5), 0.0),
    ],
)
def test_the_ends_of_the_range(array):
    round_trip(array)


def records():
    rng = np.random.default_rng(5)
    grid = np.float32(0.3) * rng.integers(0, 3, (20, 10)).astype(np.float32)
    book = rng.normal(size=4).astype(np.float32)
    return {
        "grid": grid,
        "palette": book[rng.integers(0, 4, (20, 10))],
        "symbols": rng.choice([0, 0, 0, 9, -50], (20, 10)).astype(np.int8),
    }


@pytest.mark.parametrize("form", ["grid", "palette", "symbols"])
def test_a_record_that_ends_too_early_is_told(form):
    record, data = round_trip(records()[form])
    assert record.form == form
    for length in range(len(data)):
        with pytest.raises(LookupError):
            get_array(Reader(data[:length]), None, FLOAT32)


@pytest.mark.parametrize("form", ["grid", "palette", "symbols"])
def test_a_file_that_is_cut_anywhere_is_told(form, tmp_path):
    tree = {"a": records()[form]}
    export.save(tree, tmp_path / "t.kjx")
    assert export.describe(tmp_path / "t.kjx").arrays[0].form == form
    data = (tmp_path / "t.kjx").read_bytes()
    for length in range(len(data)):
        (tmp_path / "t.kjx").write_bytes(data[:length])
        with pytest.raises(export.FileError, match="truncated"):
            export.load(tmp_path / "t.kjx", model=tree)


@pytest.mark.parametrize(
    ("form", "body"), [("newer", b""), ("symbols", b"\x0f"), ("grid", b"\x30")]
)
def test_forms_of_a_newer_koopjax_are_told(form, body, tmp_path, monkeypatch):
    tree = {"a": np.arange(3.0, dtype=np.float32)}
    with monkeypatch.context() as patch:
        patch.setattr(_arrays, "FORMS", [*_arrays.FORMS, "newer"])
        patch.setattr(_arrays, "_smallest", lambda array: (form, body))
        export.save(tree, tmp_path / "t.kjx")
    with pytest.raises(
        export.FileError, match=r"expected arrays that this koopjax knows in .*; try a"
    ):
        export.load(tmp_path / "t.kjx", model=tree)


def test_a_weight_matrix_takes_well_below_a_third_of_a_second():
    rng = np.random.default_rng(0)
    keep = rng.random((784, 100)) < 0.5
    steps = np.rint(20 * rng.normal(size=(784, 100))) + 0.0
    array = np.where(keep, np.float32(0.01) * steps.astype(np.float32), np.float32(0))
    put_array(array, None, FLOAT32)
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        put_array(array, None, FLOAT32)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 1.0  # 0.1 s on a quiet machine
