"""One span for every method, and models of other dtypes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from koopjax import compress, export, models, surgery
from tests import nets

NAMES = [
    pytest.param(name, marks=pytest.mark.slow) if name == "koopman_trained" else name
    for name in compress.METHODS
]

X = nets.normal(180, 6)
MIDDLE = ("layers.0/relu", "layers.1/relu")
BUDGET = "1.4x"
KEY = jax.random.key(1)


def soon(name):
    """A search over Koopman matrices stops early: it is not what is looked at."""
    return {"seconds": 0} if name.startswith("koopman") else {}


def small(dtype=jnp.float32):
    """A 6-16-16-3 network with random weights."""
    model = nets.filled(lambda: models.MLP((6, 16, 16, 3), rngs=nnx.Rngs(0)), 1)
    cast = lambda a: jax.device_put(np.asarray(a).astype(dtype))
    nnx.update(model, jax.tree.map(cast, nnx.state(model, nnx.Param)))
    return model


def product(operator):
    """An operator's matrix."""
    if hasattr(operator, "tt_matrix"):
        return operator.tt_matrix.to_dense()
    if hasattr(operator, "matrix"):
        return operator.matrix[...]
    return operator.left[...] @ operator.right[...]


def kernels(model):
    """The weights of the layers, as products where they are in factors."""
    if hasattr(model, "operators"):
        return [np.asarray(product(operator)) for operator in model.operators]
    return [np.asarray(layer.kernel[...]) for layer in model.layers]


@pytest.mark.parametrize("form", ["linen", "function", "tree", "list"])
def test_magnitude_prunes_the_span_of_any_form(form):
    net = small()
    held = {
        f"layers_{k}": {"kernel": layer.kernel[...], "bias": layer.bias[...]}
        for k, layer in enumerate(net.layers)
    }
    weights = [layer["kernel"] for layer in held.values()]
    forms = {
        "linen": (models.linen.MLP((6, 16, 16, 3)), {"params": held}),
        "function": (lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"] @ p["c"],
                     dict(zip("abc", weights, strict=True))),
        "tree": jax.tree_util.Partial(lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"] @ p["c"],
                                      dict(zip("abc", weights, strict=True))),
        "list": (lambda p, x: jnp.tanh(x @ p[0]) @ p[1] @ p[2], weights),
    }  # fmt: skip
    model = forms[form]
    cuts = [c.name for c in surgery.cut_points(model, X)]
    # From behind the first layer on: the first weights stay, others are pruned.
    at = next(c for c in cuts if "relu" in c or "tanh" in c)
    made = compress.magnitude(model, X, BUDGET, at=at, key=KEY)
    assert made.report.settings["at"][0] == at
    old, new = (
        [a for a in jax.tree.leaves(m) if getattr(a, "ndim", 0) == 2] for m in (model, made.model)
    )
    np.testing.assert_array_equal(new[0], old[0])
    assert all(np.any(np.asarray(b) == 0) for b in new[1:])


def test_whitened_svd_takes_a_span_of_a_linen_model():
    net = small()
    held = {
        f"layers_{k}": {"kernel": layer.kernel[...], "bias": layer.bias[...]}
        for k, layer in enumerate(net.layers)
    }
    twin = (models.linen.MLP((6, 16, 16, 3)), {"params": held})
    cuts = [c.name for c in surgery.cut_points(twin, X)]
    at = tuple(c for c in cuts if c.endswith("relu"))
    made = compress.whitened_svd(twin, X, BUDGET, at=at, key=KEY)
    assert len(made.report.settings["ranks"]) == 1
    np.testing.assert_array_equal(kernels(made.model)[0], kernels(net)[0])


@pytest.mark.parametrize("name", ["magnitude", "whitened_svd"])
def test_a_span_without_weights_is_refused(name):
    with pytest.raises(ValueError, match=r"expected a span .* with"):
        compress.METHODS[name](small(), X, BUDGET, at=("layers.0", "layers.0/relu"), key=KEY)


@pytest.mark.parametrize("at", [pytest.param(None, marks=pytest.mark.slow), MIDDLE])
@pytest.mark.parametrize("name", NAMES)
def test_only_the_span_changes_and_a_float64_model_stays_one(name, at, tmp_path):
    with jax.enable_x64(True):
        x = X.astype(np.float64)
        model = small(jnp.float64)
        made = compress.METHODS[name](model, x, BUDGET, at=at, key=KEY, **soon(name))
        old, new = model(x), made.model(x)
        assert old.dtype == new.dtype == jnp.float64
        size = export.save(made.model, tmp_path / "m")
        assert size == made.report.stored_bytes <= made.report.original_bytes / 1.4
        np.testing.assert_array_equal(export.load(tmp_path / "m")(x), new)
        assert np.mean(np.argmax(new, 1) == np.argmax(old, 1)) > 0.7
        if at is None:
            return
        assert made.report.settings["at"] == list(MIDDLE)
        if name.startswith("koopman"):
            head, _, tail = surgery.split(model, x, MIDDLE)
            state = head(x)
            np.testing.assert_array_equal(made.model.head(x), state)
            np.testing.assert_allclose(new, tail(made.model.block(state)), atol=1e-5)
            return
        before, after = kernels(model), kernels(made.model)
        np.testing.assert_array_equal(after[0], before[0])
        np.testing.assert_array_equal(after[2], before[2])
        assert np.any(after[1] != before[1])


@pytest.mark.slow
def test_a_bfloat16_model_hands_on_bfloat16():
    x, model = jnp.asarray(X, jnp.bfloat16), small(jnp.bfloat16)
    made = compress.koopman(model, x, BUDGET, key=KEY)
    assert model(x).dtype == made.model(x).dtype == jnp.bfloat16
    assert np.mean(np.argmax(made.model(x), 1) == np.argmax(model(x), 1)) > 0.8
