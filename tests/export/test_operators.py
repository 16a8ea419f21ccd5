"""Sparse, clustered and quantised operators: files to the bit, at the price of what they hold."""

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from koopjax import export, models, nn, observables as obs, surgery
from tests.nets import filled

P, Q = 196, 30
RNG = np.random.default_rng(0)
MATRIX = np.where(RNG.random((P, Q)) < 0.1, RNG.normal(size=(P, Q)), 0).astype(np.float32)
BIAS = RNG.normal(size=Q).astype(np.float32)
X = RNG.normal(size=(5, P)).astype(np.float32)


MAKE = {
    "sparse": lambda m, b, **how: nn.Sparse.from_dense(m, b, **how),
    "clustered": lambda m, b, **how: nn.Clustered.from_dense(m, 16, b, **how),
    "clustered_dense": lambda m, b, **how: nn.Clustered.from_dense(m + 1, 300, b, **how),
    "quantized": lambda m, b, **how: nn.Quantized.from_dense(m, 4, None, b, **how),
    "quantized_column": lambda m, b, **how: nn.Quantized.from_dense(m, 8, "column", b, **how),
    "quantized_row": lambda m, b, **how: nn.Quantized.from_dense(m, 8, "row", b, **how),
}
FORMS = list(MAKE)


def one_of(form: str, matrix: Any = MATRIX, bias: Any = BIAS, **extra: Any) -> Any:
    return MAKE[form](matrix, bias, **extra)


def same_bits(a, b):
    left, right = (nnx.to_flat_state(nnx.state(m)) for m in (a, b))
    for (path, one), (where, other) in zip(left, right, strict=True):
        assert path == where
        assert type(one) is type(other)
        assert one.dtype == other.dtype
        assert np.asarray(one[...]).tobytes() == np.asarray(other[...]).tobytes()


def round_trip(model, path, x=None):
    size = export.save(model, path)
    assert size == os.path.getsize(path) == export.stored_bytes(model)
    back = export.load(path)
    assert nnx.split(back)[0] == nnx.split(model)[0]
    same_bits(model, back)  # equal structure and bits are equal outputs
    if x is not None:
        both = nnx.jit(lambda pair, x: [one(x) for one in pair])([model, back], x)
        np.testing.assert_array_equal(*both)
    described = export.describe(path)
    assert described.named
    assert described.overhead + sum(a.bytes for a in described.arrays) == size
    zeros = jax.tree.map(lambda a: jax.device_put(np.zeros(a.shape, a.dtype)), model)
    same_bits(export.load(path, model=zeros), model)
    return size


def entropy_bytes(symbols):
    counts = np.unique(symbols, return_counts=True)[1]
    return float(-np.sum(counts * np.log2(counts / counts.sum()))) / 8


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("settings", [{}, {"bias": None}, {"dtype": jnp.bfloat16}])
def test_operators_alone(form, settings, tmp_path):
    operator = one_of(form, **settings)
    round_trip(operator, tmp_path / "o.kjx", None if settings else X)
    round_trip(nn.freeze(operator), tmp_path / "f.kjx")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_other_dtypes(form, dtype, tmp_path):
    round_trip(one_of(form, param_dtype=dtype, precision=None), tmp_path / "o.kjx")


@pytest.mark.parametrize("form", FORMS)
def test_float64_is_kept_without_the_global_switch(form, tmp_path):
    with jax.enable_x64(True):
        operator = one_of(form, jax.device_put(MATRIX.astype(np.float64) * np.pi))
    export.save(operator, tmp_path / "w.kjx")
    back = export.load(tmp_path / "w.kjx")
    same_bits(operator, back)
    with jax.enable_x64(True):
        assert back.to_dense().dtype == jnp.float64


def test_numbers_that_became_zero_or_nan_keep_their_places(tmp_path):
    operator = one_of("sparse")
    values = np.array(operator.values[...])
    values[3:6] = 0.0, -0.0, np.nan
    operator.values.set_value(jax.device_put(values))
    export.save(operator, tmp_path / "o.kjx")
    same_bits(export.load(tmp_path / "o.kjx"), operator)
    book = one_of("clustered")
    numbers = np.array(book.codebook[...])
    numbers[0] = -0.0
    book.codebook.set_value(jax.device_put(numbers))
    export.save(book, tmp_path / "o.kjx")
    same_bits(export.load(tmp_path / "o.kjx"), book)


def test_what_each_costs():
    held = {form: one_of(form) for form in FORMS}
    sizes = {form: export.stored_bytes(held[form]) for form in FORMS}
    nonzero = np.count_nonzero(MATRIX)
    mask = entropy_bytes(MATRIX != 0)
    fixed = BIAS.nbytes + 40
    assert sizes["sparse"] < 4 * nonzero + 1.05 * mask + fixed
    assert sizes["sparse"] <= export.stored_bytes(nn.Dense(MATRIX, BIAS)) + 12
    for form, numbers in (
        ("clustered", 4 * 16),
        ("quantized", 4),
        ("quantized_column", 4 * Q),
        ("quantized_row", 4 * P),
    ):
        codes = entropy_bytes(held[form].codes[...])
        assert sizes[form] < 1.03 * codes + numbers + fixed + 40
        assert sizes[form] < 0.65 * sizes["sparse"]
    full = RNG.normal(size=(P, Q)).astype(np.float32)
    assert export.stored_bytes(nn.Clustered.from_dense(full, 16)) < 4 * P * Q * 0.13 + 100
    assert export.stored_bytes(nn.Quantized.from_dense(full, 4)) < 4 * P * Q * 0.1 + 100


@pytest.mark.parametrize("form", FORMS)
def test_headers_are_tens_of_bytes(form):
    operator = one_of(form, np.ones_like(MATRIX), None)
    assert export.stored_bytes(operator) < 45 + 4 * P * Q * (form == "sparse")


@pytest.mark.parametrize("form", FORMS)
def test_blocks_and_stacks(form, tmp_path):
    psi = obs.Compose(obs.Project(np.eye(P, 12).astype(np.float32)), obs.Monomials(2))
    small = RNG.normal(size=(91, 10)).astype(np.float32)
    operator = one_of(form, np.where(np.abs(small) > 1, small, np.float32(0)), None)
    for trainable in (True, False, "operator", "dictionary"):
        block = nn.KoopmanBlock(psi, operator, trainable=trainable)
        round_trip(block, tmp_path / "b.kjx", X if trainable is True else None)
    pair = [RNG.normal(size=shape).astype(np.float32) for shape in ((Q, 2), (2, 10))]
    round_trip(nn.Stack([one_of(form), nn.LowRank(*pair)], ("relu",)), tmp_path / "s.kjx")
    text = str(export.describe(tmp_path / "s.kjx"))
    name = "places" if form == "sparse" else "codes"
    line = next(line for line in text.splitlines() if f"operators/0/{name}" in line)
    assert any(word in line for word in ("rice", "arithmetic", "symbols"))


@pytest.mark.parametrize("form", ["sparse", "clustered", "quantized"])
def test_a_spliced_mlp(form, tmp_path):
    model = filled(lambda: models.MLP((20, 16, 16, 5), rngs=nnx.Rngs(0)))
    x = RNG.normal(size=(6, 20)).astype(np.float32)
    matrix = np.where(RNG.random((16, 16)) < 0.5, RNG.normal(size=(16, 16)), 0)
    operator = one_of(form, matrix.astype(np.float32), None)
    block = nn.KoopmanBlock(obs.Identity(), operator, trainable=False)
    spliced = surgery.splice(model, x, ("layers.0/relu", "layers.1/relu"), block)
    round_trip(spliced, tmp_path / "s.kjx", x)


@pytest.mark.parametrize("form", ["sparse", "clustered", "quantized_column"])
def test_a_loaded_model_trains_on(form, tmp_path):
    layers = [one_of(form), nn.Dense(np.ones((Q, 3), np.float32))]
    export.save(nn.Stack(layers, ("relu",)), tmp_path / "s.kjx")
    model = export.load(tmp_path / "s.kjx")
    y = RNG.integers(0, 3, 40)
    x = RNG.normal(size=(40, P)).astype(np.float32)
    settings = {"epochs": 1, "batch_size": 20, "learning_rate": 1e-3}
    made = models.train(model, x, y, key=jax.random.key(0), **settings).model
    before, after = (nnx.state(m, nnx.Param) for m in (model, made))
    changed = jax.tree.map(lambda a, b: bool(np.any(np.asarray(a) != np.asarray(b))), before, after)
    assert all(jax.tree.leaves(changed))
    round_trip(made, tmp_path / "t.kjx")
    keys = list(jax.random.split(jax.random.key(0), 2))
    lanes = models.train_lanes([model, made], x, y, keys=keys, **settings)
    round_trip(lanes[1].model, tmp_path / "t.kjx")


def test_changed_operators_are_not_taken_for_what_they_were(tmp_path):
    operator = one_of("sparse")
    operator.rows.set_value(operator.rows[...][::-1])
    export.save(operator, tmp_path / "o.kjx")
    with pytest.raises(export.FileError, match="a changed Sparse"):
        export.load(tmp_path / "o.kjx")
    same_bits(export.load(tmp_path / "o.kjx", model=operator), operator)
    other = one_of("quantized")
    export.save(other, tmp_path / "o.kjx")
    with pytest.raises(export.FileError, match="expected the model that"):
        export.load(tmp_path / "o.kjx", model=operator)


def test_a_form_of_a_newer_koopjax_is_told(tmp_path, monkeypatch):
    from koopjax.export import _operators

    export.save(one_of("quantized"), tmp_path / "o.kjx")
    monkeypatch.setattr(_operators, "FORMS", _operators.FORMS[:5])
    with pytest.raises(export.FileError, match="operator form 5; try a newer koopjax"):
        export.load(tmp_path / "o.kjx")
