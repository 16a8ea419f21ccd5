"""The states of a span, batch by batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from koopjax import models, surgery
from koopjax.surgery import _capture

X = np.random.default_rng(0).normal(size=(10, 6)).astype(np.float32)
AT = ("layers.0/relu", "layers.1/relu")


@pytest.fixture(scope="module")
def mlp():
    return models.MLP((6, 5, 4, 3), rngs=nnx.Rngs(0))


def together(pairs):
    xs, ys = zip(*pairs, strict=True)
    return np.concatenate(xs), np.concatenate(ys)


def test_every_form_of_batches_gives_the_same_states(mlp):
    head, span, _ = surgery.split(mlp, X, AT)
    want = head(X), span(head(X))
    batches = [X[:4], X[4:8], X[8:]]
    forms = {
        "array": (X, {"batch_size": 4}),
        "whole array": (X, {}),
        "with labels": ((X, np.zeros(10, int)), {"batch_size": 4}),
        "list": (batches, {}),
        "pairs": ([(b, np.zeros(len(b))) for b in batches], {}),
        "generator": ((b for b in batches), {}),
        "growing": ([X[:2], X[2:9], X[9:]], {}),
    }
    for name, (given, options) in forms.items():
        got = together(surgery.capture(mlp, given, AT, **options))
        for a, b in zip(got, want, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6, err_msg=name)


def test_one_compilation_for_each_size_of_a_batch(mlp):
    """None is filled up, which would change the states of a model that couples samples."""
    list(surgery.capture(mlp, X, AT, batch_size=4))
    before = _capture._both._cache_size()
    for end in (10, 6, 8):
        list(surgery.capture(mlp, X[:end], AT, batch_size=4))
    assert _capture._both._cache_size() == before


def test_a_stream_is_read_one_batch_at_a_time(mlp):
    read = []

    def stream():
        for k in range(5):
            read.append(k)
            yield X[:4]

    pairs = surgery.capture(mlp, stream(), AT)
    next(pairs)
    assert len(read) == 1


def test_sample_axes():
    model = models.CNN((8, 8, 1), 3, channels=(2, 3), hidden=4, rngs=nnx.Rngs(0))
    images = np.random.default_rng(1).normal(size=(3, 8, 8, 1)).astype(np.float32)
    at = ("convs.0", "norms.0/relu")

    def shapes(at, sample_axes):
        pairs = surgery.capture(model, images, at, batch_size=2, sample_axes=sample_axes)
        return [(x.shape, y.shape) for x, y in pairs]

    assert shapes(at, None)[1] == ((1, 8, 8, 2), (1, 8, 8, 2))
    assert shapes(at, "flatten")[0] == ((2, 128), (2, 128))
    assert shapes(at, "positions")[0] == ((128, 2), (128, 2))
    assert shapes(at, (0, 3))[0] == ((4, 64), (4, 64))
    assert shapes(("convs.0", "output"), "flatten")[0] == ((2, 128), (2, 3))
    with pytest.raises(ValueError, match="same positions"):
        shapes(("convs.0", "norms.0/max_pool"), "positions")
    with pytest.raises(ValueError, match="'flatten', 'positions'"):
        shapes(at, "pixels")
    with pytest.raises(ValueError, match="among the 4 axes"):
        shapes(at, (0, 7))


@pytest.mark.parametrize("axes", ["flatten", "positions", 0, (0, 2), (1,), None])
def test_rows_and_back(axes):
    x = jnp.arange(24.0).reshape(2, 3, 4)
    np.testing.assert_array_equal(surgery.from_rows(surgery.to_rows(x, axes), x.shape, axes), x)


def test_a_batch_folded_into_another_axis_is_cut_back():
    net = lambda p, x: jax.nn.relu(x.reshape(-1, 3) @ p).reshape(x.shape[0], -1)
    pairs = surgery.capture((net, jnp.eye(3)), X, (1, "output"), batch_size=4)
    assert [(x.shape, y.shape) for x, y in pairs][-1] == ((4, 3), (2, 6))


def test_a_model_of_one_batch_size_takes_a_partial_batch():
    net = lambda p, x: jnp.tanh((x @ p).reshape(4, 6)) @ p
    _, y = together(surgery.capture((net, jnp.eye(6)), X, (0, "output"), batch_size=4))
    np.testing.assert_allclose(y, np.tanh(X), rtol=1e-5)


def test_bad_batches(mlp):
    with pytest.raises(ValueError, match="at least one batch"):
        surgery.capture(mlp, [], AT)
    with pytest.raises(ValueError, match="at least one sample"):
        surgery.capture(mlp, X[:0], AT)
    with pytest.raises(ValueError, match="at least one sample"):
        surgery.capture(mlp, [X[:0]], AT)
    with pytest.raises(ValueError, match="batch_size"):
        surgery.capture(mlp, X, AT, batch_size=0)
    with pytest.raises(ValueError, match="arrays or tuples"):
        surgery.capture(mlp, [{"image": X}], AT)
    with pytest.raises(ValueError, match="iterable of batches"):
        surgery.capture(mlp, {"image": X}, AT)
    with pytest.raises(ValueError, match=r"shape \(n, 6\)"):
        list(surgery.capture(mlp, [X, X[:, :3]], AT))


def test_a_tuple_is_inputs_and_targets_and_a_list_is_batches(mlp):
    targets = X + 1
    pair = together(surgery.capture(mlp, (X, targets), AT))
    alone = together(surgery.capture(mlp, X, AT))
    both = together(surgery.capture(mlp, [X, targets], AT))
    for one, two, four in zip(pair, alone, both, strict=True):
        np.testing.assert_array_equal(one, two)
        assert len(four) == 2 * len(X)
