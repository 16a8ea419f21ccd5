"""Cores that a user wrote down in NumPy or lists: computed right, or refused in one line."""

import types

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from koopjax import tt

BIG = 2**40 + 1


def core(value, dtype=None):
    return np.full((1, 2, 1), value, dtype)


def as_matrix(train):
    return tt.TTMatrix([core[:, :, None] for core in train.cores])


def as_padded(train):
    cores = np.stack([np.asarray(core) for core in train.cores])
    return tt.PaddedTT(cores, np.ones((3, 1)), np.ones((2, 2)))


RIGHT = {
    "int64": ([core(BIG), core(1)], 2.0 * BIG, np.float32),
    "uint64": ([core(2**63 + 1, np.uint64), core(1)], 2.0**64, np.float32),
    "int32": ([core(3, np.int32), core(2)], 12, np.float32),
    "integers of JAX": ([jnp.full((1, 2, 1), 3), jnp.full((1, 2, 1), 2)], 12, np.float32),
    "booleans": ([core(True), core(True)], 2, np.float32),
    "objects": ([core(2, object), core(3)], 12, np.float32),
    "long doubles": ([core(2, np.longdouble), core(3)], 12, np.float32),
    "big-endian": ([core(2, ">f8"), core(3, ">i4")], 12, np.float32),
    "masked, with none": ([np.ma.array(core(2.0)), core(3)], 12, np.float32),
    "lists": ([[[[1.0], [2.0]]], [[[1.0], [2.0]]]], 5, np.float32),
    "float64": ([core(2.0), core(3.0)], 12, np.float32),
    "beyond float32": ([core(1e39), core(1e-39)], 2, np.float64),
    "below float32": ([core(1e-60), core(1e60)], 2, np.float64),
}


@pytest.mark.parametrize("case", RIGHT)
def test_written_cores_are_read(case):
    cores, norm, dtype = RIGHT[case]
    train = tt.TensorTrain(cores)
    kinds = [train, as_matrix(train), as_padded(train)]
    for one in kinds:
        found = tt.norm(one)
        assert float(found) == pytest.approx(norm, rel=1e-6)
        assert one.dtype == found.dtype == dtype
        dense = np.asarray(one.to_dense(), np.float64)
        assert np.linalg.norm(dense) == pytest.approx(norm, rel=1e-6)


@pytest.mark.parametrize("case", ["int64", "integers of JAX", "beyond float32"])
def test_verbs_on_written_cores(case):
    cores, norm, dtype = RIGHT[case]
    train, entry = tt.TensorTrain(cores), norm / 2
    found = {
        "subtract": tt.subtract(tt.scale(train, 2.0), train).to_dense(),
        "entries": tt.entries(train, [[0, 1]]),
        "part": train[0].to_dense(),
        "round": tt.round(train).to_dense(),
        "pad": tt.unpad(tt.pad(train, 1)).to_dense(),
        "quantize": tt.quantize(train).to_dense(),
    }
    for name, values in found.items():
        assert values.dtype == dtype, name
        np.testing.assert_allclose(np.asarray(values), entry, rtol=1e-6, err_msg=name)
    assert float(tt.dot(train, train)) == pytest.approx(norm**2, rel=1e-6)
    assert float(tt.singular_values(train)[0][0]) == pytest.approx(norm, rel=1e-6)


WRONG = {
    "masked entries": lambda: core(1.0).view(np.ma.MaskedArray) * np.ma.masked,
    "text": lambda: core("a"),
    "objects": lambda: core(None, object),
    "long doubles beyond float64": lambda: core(np.longdouble("1e400")),
    "float8": lambda: core(1, ml_dtypes.float8_e4m3fn),
    "float8 of JAX": lambda: jnp.ones((1, 2, 1), jnp.float8_e4m3fn),
    "ragged lists": lambda: [[[1.0], [2.0, 3.0]]],
    "none": lambda: None,
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_core_is_refused(case):
    if case == "long doubles beyond float64" and np.finfo(np.longdouble).maxexp <= 1024:
        pytest.skip("long doubles are float64 here")
    wrong = WRONG[case]()
    ones = (np.ones((2, 1)), np.ones((1, 2)))
    stacked = wrong[None] if hasattr(wrong, "shape") else wrong
    calls = [
        lambda: tt.norm(tt.TensorTrain([wrong])),
        lambda: tt.TensorTrain([wrong]).to_dense(),
        lambda: tt.TTMatrix([wrong]).to_dense(),
        lambda: tt.norm(tt.PaddedTT(stacked, *ones)),
        lambda: tt.PaddedTT(stacked, *ones).to_dense(),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"expected .*, got ") as caught:
            call()
        assert "\n" not in str(caught.value)


def test_float64_is_refused_where_there_is_none(monkeypatch):
    train = tt.TensorTrain([core(1e39), core(1e-39)])
    monkeypatch.setattr("koopjax.tt._precision.has_float64", lambda: False)
    with pytest.raises(ValueError, match="float32 holds"):
        tt.norm(train)


def test_trees_are_rebuilt_from_anything():
    train = tt.rank_one([jnp.ones(2), jnp.ones(2)])
    shaped = lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype)
    for leaf in (lambda _: None, lambda _: object(), lambda _: 0, lambda a: a.shape, shaped):
        for tree in (train, as_matrix(train), tt.pad(train, 1)):
            leaves = jax.tree.leaves(jax.tree.map(leaf, tree), is_leaf=lambda a: a is None)
            assert type(leaves[0]) is not np.ndarray
    # NumPy's floats stay what they are.
    cores = [core(1e-60), core(2.0, np.float32)]
    kept = jax.tree.map(lambda a: a, tt.TensorTrain(cores)).cores
    assert all(np.shares_memory(a, b) for a, b in zip(kept, cores, strict=True))
    held = types.SimpleNamespace(__jax_array__=lambda: jnp.ones(1))
    assert tt.TensorTrain([held]).cores[0] is held
