"""Arrays come back to the bit, in the smallest of their forms."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from koopjax.export._arrays import DTYPES, FORMS, get_array, put_array
from koopjax.export._file import Reader, put_signed, put_varint
from koopjax.export._masks import CODINGS, get_mask, put_mask
from koopjax.export._values import from_narrow, narrow

FLOAT32 = np.dtype(np.float32)


def round_trip(array, shape=None, dtype=FLOAT32):
    data = put_array(array, shape, dtype)
    reader = Reader(b"??" + data + b"after", 2)
    record = get_array(reader, shape, dtype)
    assert reader.at == 2 + len(data)
    assert record.size == len(data)
    assert record.value.dtype == array.dtype
    assert record.value.shape == array.shape
    assert record.value.tobytes() == array.tobytes()
    return record, data


@st.composite
def arrays(draw):
    dtype = jnp.dtype(draw(st.sampled_from(DTYPES)))
    shape = tuple(draw(st.lists(st.integers(0, 9), max_size=3)))
    size = int(np.prod(shape))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from(["bits", "sparse", "equal", "small", "increasing"]))
    if dtype == np.bool_:
        return (rng.random(shape) < draw(st.floats(0, 1))).reshape(shape)
    raw = rng.integers(0, 256, (size, dtype.itemsize), np.uint8)  # NaN payloads and -0.0 among them
    if kind == "sparse":
        raw[rng.random(size) < draw(st.floats(0, 1))] = 0
    elif kind == "equal":
        raw[:] = raw[:1]
    elif kind == "small":
        return rng.integers(0, 5, shape).astype(dtype)
    elif kind == "increasing":
        return np.cumsum(rng.integers(1, 2, size)).astype(dtype).reshape(shape)
    return raw.reshape(-1).view(dtype).reshape(shape)


@settings(max_examples=200, deadline=None)
@given(array=arrays(), known=st.booleans())
def test_every_array_comes_back_to_the_bit(array, known):
    round_trip(array, array.shape if known else None)
    round_trip(array, array.shape, array.dtype)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=300), st.integers(1, 20))
def test_every_index_coding_gives_the_mask_back(bits, columns):
    mask = np.resize(np.array(bits), (-(-len(bits) // columns), columns))
    codes = {
        name: write(mask.T if "columns" in name else mask) for name, (write, _) in CODINGS.items()
    }
    assert put_mask(mask) == min(codes.items(), key=lambda pair: len(pair[1]))
    for name, data in codes.items():
        reader = Reader(b"." + data + b"\xff\0after", 1)
        np.testing.assert_array_equal(get_mask(name, reader, *mask.shape), mask)
        assert reader.at == 1 + len(data)


@given(st.integers(0, 2**70))
def test_varints(value):
    data = put_varint(value)
    reader = Reader(b"x" + data + put_signed(-(value >> 1)) + b"y", 1)
    assert (reader.varint(), reader.at) == (value, 1 + len(data))
    assert len(data) == max(1, -(-value.bit_length() // 7))
    assert reader.signed() == -(value >> 1)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=40))
def test_integers_in_few_bits(values):
    data = narrow(np.array(values, np.int64))
    reader = Reader(data + b"z")
    assert (from_narrow(reader, len(values)), reader.at) == (values, len(data))


def sparse(density, shape=(784, 100), seed=0):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=shape).astype(np.float32)
    return np.where(rng.random(shape) < density, values, np.float32(0))


def entropy_bytes(probability):
    p = np.clip(probability, 1e-12, 1 - 1e-12)
    return float(np.sum(-p * np.log2(p) - (1 - p) * np.log2(1 - p))) / 8


@pytest.mark.parametrize("density", [0.5, 0.3, 0.1, 0.03, 0.01])
def test_a_sparse_array_costs_its_values_and_little_above_the_entropy_of_its_places(density):
    array = sparse(density)
    _, data = round_trip(array)
    values = 4 * np.count_nonzero(array)
    places = len(data) - values
    bound = entropy_bytes(np.full(array.shape, np.count_nonzero(array) / array.size))
    assert bound - 8 < places < 1.02 * bound + 16
    assert len(data) < array.nbytes


def test_rows_and_columns_of_different_density_cost_less_than_their_mean_density():
    rng = np.random.default_rng(1)
    rows = np.exp(-(np.linspace(-3, 3, 784) ** 2))[:, None]
    columns = np.exp(0.7 * rng.normal(size=100))[None, :]
    p = np.clip(0.1 * rows * columns / np.mean(rows * columns), 0, 0.95)
    array = np.where(rng.random(p.shape) < p, rng.normal(size=p.shape), 0).astype(np.float32)
    record, data = round_trip(array)
    places = len(data) - 4 * np.count_nonzero(array)
    flat = entropy_bytes(np.full(p.shape, np.count_nonzero(array) / p.size))
    assert record.form.startswith("arithmetic")
    assert places < 0.85 * flat


def test_dead_rows_cost_next_to_nothing():
    array = np.zeros((784, 100), np.float32)
    array[100:150] = np.random.default_rng(0).normal(size=(50, 100))
    _, data = round_trip(array)
    assert len(data) < 4 * 50 * 100 + 60


@pytest.mark.parametrize(
    ("array", "form", "size"),
    [
        (np.zeros((100, 10), np.float32), "equal", 1 + 3 + 4),
        (np.full(50, -0.0, np.float32), "equal", 1 + 2 + 4),
        (np.ones(0, np.float32), "raw", 1 + 2),
        (np.float32(3.0).reshape(()), "raw", 1 + 1 + 4),
        (np.arange(100, 140, dtype=np.int32), "increasing", 1 + 1 + 2 + 2 + 18),
        (np.arange(40, dtype=np.int64)[::-1].copy(), "narrow", 1 + 1 + 2 + 2 + 30),
    ],
)
def test_small_forms(array, form, size):
    record, data = round_trip(array)
    assert record.form == form
    assert len(data) <= size


def test_minus_zero_is_a_value_and_nan_payloads_are_kept():
    array = np.zeros(1000, np.float32)
    array[17] = -0.0
    array[500] = np.array(0x7FC12345, np.uint32).view(np.float32)
    record, _ = round_trip(array)
    assert record.nonzero == 2
    assert np.signbit(record.value[17])


def test_no_dtype_is_guessed():
    with pytest.raises(ValueError, match=r"expected arrays of a dtype among float32.*got float128"):
        put_array(np.zeros(3, np.longdouble), None, FLOAT32)
    big = np.arange(1.0, 9.0).astype(">f4")
    data = put_array(big, big.shape, FLOAT32)
    record = get_array(Reader(data), big.shape, FLOAT32)
    np.testing.assert_array_equal(record.value, big)


def test_the_tables_that_files_rely_on_only_grow():
    assert DTYPES[:5] == ["float32", "bfloat16", "float16", "float64", "bool"]
    assert FORMS[:4] == ["raw", "equal", "bitmask", "rice"]
    assert len(FORMS) <= 16
