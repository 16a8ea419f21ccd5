"""Sparse, clustered and quantised operators: files to the bit, at the price of what they hold."""

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from koopjax import export, models, nn, observables as obs, surgery

P, Q = 196, 30
RNG = np.random.default_rng(0)
MATRIX = np.where(RNG.random((P, Q)) < 0.1, RNG.normal(size=(P, Q)), 0).astype(np.float32)
BIAS = RNG.normal(size=Q).astype(np.float32)
X = jnp.asarray(RNG.normal(size=(5, P)).astype(np.float32))


def operators(matrix: Any = MATRIX, bias: Any = BIAS, **extra: Any) -> dict[str, Any]:
    return {
        "sparse": nn.Sparse.from_dense(matrix, bias, **extra),
        "clustered": nn.Clustered.from_dense(matrix, 16, bias, **extra),
        "clustered_dense": nn.Clustered.from_dense(matrix + 1, 300, bias, **extra),
        "quantized": nn.Quantized.from_dense(matrix, 4, None, bias, **extra),
        "quantized_column": nn.Quantized.from_dense(matrix, 8, "column", bias, **extra),
        "quantized_row": nn.Quantized.from_dense(matrix, 8, "row", bias, **extra),
    }


FORMS = list(operators())


def same_bits(a, b):
    left, right = (nnx.to_flat_state(nnx.state(m)) for m in (a, b))
    for (path, one), (where, other) in zip(left, right, strict=True):
        assert path == where
        assert type(one) is type(other)
        assert one.dtype == other.dtype
        assert np.asarray(one[...]).tobytes() == np.asarray(other[...]).tobytes()


def round_trip(model, path, x):
    size = export.save(model, path)
    assert size == os.path.getsize(path) == export.stored_bytes(model)
    back = export.load(path)
    assert nnx.split(back)[0] == nnx.split(model)[0]
    same_bits(model, back)
    np.testing.assert_array_equal(back(x), model(x))
    described = export.describe(path)
    assert described.named
    assert described.overhead + sum(a.bytes for a in described.arrays) == size
    same_bits(export.load(path, model=jax.tree.map(jnp.zeros_like, model)), model)
    return size


def entropy_bytes(symbols):
    counts = np.unique(symbols, return_counts=True)[1]
    return float(-np.sum(counts * np.log2(counts / counts.sum()))) / 8


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("settings", [{}, {"bias": None}, {"dtype": jnp.bfloat16}])
def test_operators_alone(form, settings, tmp_path):
    operator = operators(**settings)[form]
    round_trip(operator, tmp_path / "o.kjx", X)
    round_trip(nn.freeze(operator), tmp_path / "f.kjx", X)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_other_dtypes(form, dtype, tmp_path):
    round_trip(operators(param_dtype=dtype, precision=None)[form], tmp_path / "o.kjx", X)


@pytest.mark.parametrize("form", FORMS)
def test_float64_is_kept_without_the_global_switch(form, tmp_path):
    with jax.enable_x64(True):
        operator = operators(jnp.asarray(MATRIX, jnp.float64) * np.pi)[form]
    export.save(operator, tmp_path / "w.kjx")
    back = export.load(tmp_path / "w.kjx")
    same_bits(operator, back)
    with jax.enable_x64(True):
        assert back.to_dense().dtype == jnp.float64


def test_numbers_that_became_zero_or_nan_keep_their_places(tmp_path):
    operator = operators()["sparse"]
    values = operator.values[...].at[3].set(0.0).at[4].set(-0.0).at[5].set(jnp.nan)
    operator.values.set_value(values)
    export.save(operator, tmp_path / "o.kjx")
    same_bits(export.load(tmp_path / "o.kjx"), operator)
    book = operators()["clustered"]
    book.codebook.set_value(book.codebook[...].at[0].set(-0.0))
    export.save(book, tmp_path / "o.kjx")
    same_bits(export.load(tmp_path / "o.kjx"), book)


def test_what_each_costs(tmp_path):
    held = operators()
    sizes = {form: round_trip(held[form], tmp_path / f"{form}.kjx", X) for form in FORMS}
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
    operator = operators(np.float32(1.0) + 0 * MATRIX, None)[form]
    assert export.stored_bytes(operator) < 45 + 4 * P * Q * (form == "sparse")


@pytest.mark.parametrize("form", FORMS)
def test_blocks_and_stacks(form, tmp_path):
    psi = obs.Compose(obs.Project(np.eye(P, 12).astype(np.float32)), obs.Monomials(2))
    small = RNG.normal(size=(91, 10)).astype(np.float32)
    operator = operators(np.where(np.abs(small) > 1, small, 0), None)[form]
    for trainable in (True, False, "operator", "dictionary"):
        block = nn.KoopmanBlock(psi, operator, trainable=trainable)
        round_trip(block, tmp_path / "b.kjx", X)
    layers = [operators()[form], nn.LowRank.create(jax.random.key(0), Q, 10, 2)]
    round_trip(nn.Stack(layers, ("relu",)), tmp_path / "s.kjx", X)
    text = str(export.describe(tmp_path / "s.kjx"))
    name = "places" if form == "sparse" else "codes"
    line = next(line for line in text.splitlines() if f"operators/0/{name}" in line)
    assert any(word in line for word in ("rice", "arithmetic", "symbols"))


@pytest.mark.parametrize("form", ["sparse", "clustered", "quantized"])
def test_a_spliced_mlp(form, tmp_path):
    model = models.MLP((20, 16, 16, 5), rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (6, 20))
    matrix = np.where(RNG.random((16, 16)) < 0.5, RNG.normal(size=(16, 16)), 0)
    operator = operators(matrix.astype(np.float32), None)[form]
    block = nn.KoopmanBlock(obs.Identity(), operator, trainable=False)
    spliced = surgery.splice(model, x, ("layers.0/relu", "layers.1/relu"), block)
    round_trip(spliced, tmp_path / "s.kjx", x)


@pytest.mark.parametrize("form", ["sparse", "clustered", "quantized_column"])
def test_a_loaded_model_trains_on(form, tmp_path):
    layers = [operators()[form], nn.Dense(jnp.ones((Q, 3)))]
    export.save(nn.Stack(layers, ("relu",)), tmp_path / "s.kjx")
    model = export.load(tmp_path / "s.kjx")
    y = RNG.integers(0, 3, 40)
    x = RNG.normal(size=(40, P)).astype(np.float32)
    settings = {"epochs": 1, "batch_size": 20, "learning_rate": 1e-3}
    made = models.train(model, x, y, key=jax.random.key(0), **settings).model
    assert np.abs(np.asarray(made(X) - model(X))).max() > 0
    round_trip(made, tmp_path / "t.kjx", X)
    keys = list(jax.random.split(jax.random.key(0), 2))
    lanes = models.train_lanes([model, made], x, y, keys=keys, **settings)
    round_trip(lanes[1].model, tmp_path / "t.kjx", X)


def test_changed_operators_are_not_taken_for_what_they_were(tmp_path):
    operator = operators()["sparse"]
    operator.rows.set_value(operator.rows[...][::-1])
    export.save(operator, tmp_path / "o.kjx")
    with pytest.raises(export.FileError, match="a changed Sparse"):
        export.load(tmp_path / "o.kjx")
    same_bits(export.load(tmp_path / "o.kjx", model=operator), operator)
    other = operators()["quantized"]
    export.save(other, tmp_path / "o.kjx")
    with pytest.raises(export.FileError, match="expected the model that"):
        export.load(tmp_path / "o.kjx", model=operator)


def test_a_form_of_a_newer_koopjax_is_told(tmp_path, monkeypatch):
    from koopjax.export import _operators

    export.save(operators()["quantized"], tmp_path / "o.kjx")
    monkeypatch.setattr(_operators, "FORMS", _operators.FORMS[:5])
    with pytest.raises(export.FileError, match="operator form 5; try a newer koopjax"):
        export.load(tmp_path / "o.kjx")
