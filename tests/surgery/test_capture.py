"""The states of a span, batch by batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from koopjax import models, surgery
from koopjax.surgery import _capture
from tests.nets import filled

X = np.random.default_rng(0).normal(size=(10, 6)).astype(np.float32)
EYE = np.eye(3, dtype=np.float32)
AT = ("layers.0/relu", "layers.1/relu")


@pytest.fixture(scope="module")
def mlp():
    return filled(lambda: models.MLP((6, 5, 4, 3), rngs=nnx.Rngs(0)))


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
        "growing": ([X[:2], X[2:6], X[6:]], {}),
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
    model = filled(lambda: models.CNN((8, 8, 1), 3, (2, 3), 4, rngs=nnx.Rngs(0)))
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
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    np.testing.assert_array_equal(surgery.from_rows(surgery.to_rows(x, axes), x.shape, axes), x)


def test_a_batch_folded_into_another_axis_is_cut_back():
    net = lambda p, x: jax.nn.relu(x.reshape(-1, 3) @ p).reshape(x.shape[0], -1)
    pairs = surgery.capture((net, EYE), X, (1, "output"), batch_size=4)
    assert [(x.shape, y.shape) for x, y in pairs][-1] == ((4, 3), (2, 6))


def test_a_model_of_one_batch_size_takes_a_partial_batch():
    net = lambda p, x: jnp.tanh((x @ p).reshape(4, 6)) @ p
    _, y = together(
        surgery.capture((net, np.eye(6, dtype=np.float32)), X, (0, "output"), batch_size=4)
    )
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


def time_first(p, x):
    """Two layers with time in front and the batch behind it, then two of the usual order."""
    h = jnp.tanh(jnp.swapaxes(x, 0, 1) @ p[0])
    h = jnp.tanh(h @ p[1])[-1]
    return jnp.tanh(jnp.tanh(h @ p[2]) @ p[3]) @ p[4]


SEQUENCES = np.random.default_rng(2).normal(size=(5, 3, 6)).astype(np.float32)
WEIGHTS = [np.random.default_rng(k).normal(size=(6, 6)).astype(np.float32) / 2 for k in range(5)]
EARLY = ("params.0/tanh", "params.1/tanh")


def test_samples_on_another_axis_are_refused_or_read_along_it():
    model = time_first, WEIGHTS
    for sample_axes in (None, "flatten", 0):
        with pytest.raises(ValueError, match=r"batch on axis 0.*\(3, n, 6\).*sample_axes=1"):
            surgery.capture(model, SEQUENCES, EARLY, sample_axes=sample_axes)
    with pytest.raises(ValueError, match="batch on axis 0"):
        surgery.splice(model, SEQUENCES, EARLY, jnp.tanh, sample_axes="flatten")
    want = np.tanh(SEQUENCES @ WEIGHTS[0])  # (n, t, d)
    x, _ = together(surgery.capture(model, SEQUENCES, EARLY, sample_axes=1, batch_size=2))
    np.testing.assert_allclose(x, want.reshape(5, 18), atol=1e-5)
    doubled = surgery.splice(model, SEQUENCES, EARLY, lambda h: 2 * h, sample_axes=1)
    plain = surgery.splice(model, SEQUENCES, EARLY, lambda h: 2 * h)
    np.testing.assert_allclose(doubled(SEQUENCES), plain(SEQUENCES), rtol=1e-5, atol=1e-6)
    assert surgery.middle(model, SEQUENCES) == ("params.2/tanh", "params.3/tanh")


def test_a_transposed_state_is_no_row_a_sample():
    net = lambda p, x: jnp.tanh(p @ x.T).T @ p
    with pytest.raises(ValueError, match=r"\(6, n\).*sample_axes=1"):
        surgery.capture((net, WEIGHTS[0]), X, ("input", "params/tanh"))


def test_ends_with_different_positions_a_sample_are_refused():
    net = lambda p, x: jax.nn.relu(x.reshape(-1, 3) @ p).reshape(x.shape[0], -1)
    with pytest.raises(ValueError, match=r"same positions.*\(2 n, 3\) and \(n, 6\)"):
        surgery.capture((net, EYE), X, (1, "output"), sample_axes="positions")


def centred(p, x):
    """The samples of a batch are coupled by their mean."""
    return jnp.tanh((x - x.mean(0, keepdims=True)) @ p) @ p


def test_a_last_batch_is_as_it_would_be_alone():
    p = WEIGHTS[0]
    _, y = together(surgery.capture((centred, p), X, ("input", "params/tanh"), batch_size=4))
    want = [np.tanh((b - b.mean(0)) @ p) for b in (X[:4], X[4:8], X[8:])]
    np.testing.assert_allclose(y, np.concatenate(want), atol=1e-5)
    baked = lambda p, x: centred(p, x).reshape(4, 6) @ p
    with pytest.raises(ValueError, match=r"batches of 4 samples.*got 2"):
        list(surgery.capture((baked, p), X, ("input", "output"), batch_size=4))


def test_batches_enter_by_the_door(mlp):
    want = together(surgery.capture(mlp, X, AT))
    for given in (X.astype(">f4"), X.astype(np.longdouble), np.ma.array(X)):
        for a, b in zip(together(surgery.capture(mlp, given, AT)), want, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6)
    tokens = lambda p, ids: jnp.tanh(p[ids])
    with pytest.raises(ValueError, match="that fit in int32"):
        list(surgery.capture((tokens, WEIGHTS[0]), np.full((2,), 2**32 + 1), ("input", "output")))


@pytest.mark.parametrize(
    "call",
    [
        lambda: surgery.capture((centred, WEIGHTS[0]), X, AT, batch_size=np.array([2])),
        lambda: surgery.capture((centred, WEIGHTS[0]), X, AT, batch_size="4"),
        lambda: surgery.capture((centred, WEIGHTS[0]), X, ("input", 0), sample_axes=2.5),
        lambda: surgery.to_rows(None, "flatten"),
        lambda: surgery.to_rows(X, True),
        lambda: surgery.from_rows(X, None, "flatten"),
        lambda: surgery.from_rows("rows", (10, 6), "flatten"),
        lambda: surgery.to_rows(1.0, "flatten"),
        lambda: surgery.from_rows(X, [], "flatten"),
        lambda: surgery.check_rows(None),
        lambda: surgery.find(None, 1),
        lambda: surgery.find(surgery.cut_points((centred, WEIGHTS[0]), X), np.ones(2)),
        lambda: surgery.split((centred, WEIGHTS[0]), X, (0, np.ones(2))),
        lambda: surgery.cut_points((centred, WEIGHTS[0]), X, unroll=np.ones(2)),
        lambda: surgery.apply(3, X),
        lambda: surgery.cut_points((centred, WEIGHTS[0]), np.array(["a"])),
        lambda: surgery.cut_points((centred, "weights"), X),
        lambda: surgery.split((centred, WEIGHTS[0]), X, ("input", 0))[1](None),
        lambda: surgery.splice((centred, WEIGHTS[0]), X, ("input", 0), jnp.tanh, trainable=3),
        lambda: surgery.splice((centred, WEIGHTS[0]), X, ("input", 0), jnp.tanh)({"x": X}),
    ],
)
def test_malformed_calls_end_in_one_line(call):
    with pytest.raises(ValueError, match=r"^expected .*, got "):
        call()
