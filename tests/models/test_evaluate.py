"""Logits and accuracy in batches, for every form of a model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from koopjax import models
from koopjax._core import pytree
from tests.nets import filled, linen_filled, normal, outputs

KEY = jax.random.key(0)
X = normal(23, 6)
Y = np.arange(23) % 4


@pytree
class Affine:
    weight: object
    shift: object

    def __call__(self, x):
        return x @ self.weight + jnp.asarray(self.shift, x.dtype)


LINEN = models.linen.MLP((6, 5, 4))
KERNEL = normal(6, 4, seed=1)
FORMS = {
    "nnx": lambda: filled(lambda: models.MLP((6, 5, 4), rngs=nnx.Rngs(0))),
    "linen": lambda: (LINEN, linen_filled(LINEN, X)),
    "function": lambda: (multiply, KERNEL),
    "pytree": lambda: Affine(KERNEL, np.asarray(1)),
    "plain": lambda: plain,
}


def multiply(weight, x):
    return x @ weight


def plain(x):
    return x[:, :4]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("batch_size", [1, 7, 23, 100])
def test_batches_make_no_difference(form, batch_size):
    model = FORMS[form]()
    whole = models.apply(model, X)
    assert whole.shape == (23, 4)
    np.testing.assert_allclose(models.predict(model, X, batch_size), whole, atol=1e-5)
    expected = np.mean(np.argmax(np.asarray(whole), axis=1) == np.asarray(Y))
    assert models.accuracy(model, X, Y, batch_size) == pytest.approx(expected, abs=1e-7)


def test_inference_whatever_the_mode():
    model = filled(lambda: models.CNN((4, 4, 1), 3, (2,), 4, rngs=nnx.Rngs(0)))
    x = normal(6, 4, 4, 1)
    model.train()
    mean = np.asarray(model.norms[0].mean[...])
    one = models.predict(model, x)
    np.testing.assert_array_equal(model.norms[0].mean[...], mean)
    assert not model.norms[0].use_running_average
    model.eval()
    np.testing.assert_allclose(one, outputs(model, x), atol=1e-5)


def test_a_linen_cnn_is_in_inference_too():
    module = models.linen.CNN(3, (2,), 4)
    x = normal(6, 4, 4, 1)
    variables = linen_filled(module, x)
    found = models.predict((module, variables), x, 4)
    np.testing.assert_allclose(found, jax.jit(module.apply)(variables, x), atol=1e-5)


def test_other_weights_of_one_structure_share_the_compilation():
    traces = []

    def counted(weight, x):
        traces.append(1)
        return x @ weight

    for scale in (1.0, 2.0, 3.0):
        models.predict((counted, np.full((6, 4), scale, np.float32)), X, 5)
    first = len(traces)
    for scale in (4.0, 5.0):
        models.predict((counted, np.full((6, 4), scale, np.float32)), X + scale, 5)
    # One a call, to see whether what the function closes over has changed; nothing is compiled.
    assert len(traces) == first + 2


def test_networks_from_other_seeds_compile_nothing(caplog):
    made = [models.MLP((6, 5, 4), rngs=nnx.Rngs(seed)) for seed in (0, 1)]
    texts = []
    for model in made:
        caplog.clear()
        with jax.log_compiles(True), caplog.at_level("WARNING"):
            models.accuracy(model, X, Y, 11)
        texts.append(caplog.text)
    assert "Compiling jit(_predict)" in texts[0]
    assert "Compiling" not in texts[1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: models.accuracy(m, X[:0], Y[:0]), "at least one sample"),
        (lambda m: models.accuracy(m, X, Y[:5]), r"23 targets.*got shape \(5,\)"),
        (lambda m: models.accuracy(m, X, Y[:, None]), r"shape \(23,\), got .*\(23, 1\); try y\["),
        (lambda m: models.accuracy(m, X, Y.astype(np.float32)), "integer labels, got float32"),
        (lambda m: models.predict(m, X[:, :5]), r"samples that the model takes, got shape \(5,\)"),
        (lambda m: models.predict("mlp", X), "expected a model.*got str"),
        (lambda m: models.predict((models.linen.MLP((6, 4)), {}), X), "'params' among"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call(FORMS["nnx"]())


def time_first(p, x):
    return jnp.swapaxes(x @ p, 0, 1)


def masked(p, x):
    return jnp.where(jax.random.bernoulli(KEY, 0.5, x.shape), x, 0) @ p


def numbers(output, y):
    return output[:, 0]


SQUARE = normal(5, 5, 6)  # as many samples as steps
WEIGHT = np.ones((6, 4), np.float32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: models.apply((masked, WEIGHT), X), "inference mode, got .*random numbers"),
        (lambda m: models.score((time_first, WEIGHT), SQUARE, np.zeros((5, 5), int)), "axis 0"),
        (lambda m: models.score((time_first, WEIGHT), SQUARE, np.ones((5, 5, 4))), "axis 0"),
        (lambda m: models.output_like((time_first, WEIGHT), SQUARE, by_rows=True), "axis 0"),
        (lambda m: models.score(m, X, None), "classes or targets as y, got None"),
        (lambda m: models.score((multiply, WEIGHT * np.nan), X, X[:, :4]), "finite numbers in the"),
        (lambda m: models.score(m, X, Y, score_fn=lambda o, y: np.nan), "one number of .*got nan"),
        (lambda m: models.score(m, X, Y, score_fn=numbers), r"one number of .*got Array"),
        (lambda m: models.score(m, X, Y, score_fn=lambda o, y: None), "one number of .*got None"),
        (lambda m: models.score(m, X, Y, score_fn=lambda o, y: "good"), "one number of .*'good'"),
        (lambda m: models.output_like(m, [1, "a"]), "array of numbers as models.output_like: x"),
        (lambda m: models.predict((models.linen.MLP((6, 4)), None), X), "'params' among.*NoneType"),
        (lambda m: models.predict((lambda p, x: x + p["w"], {"w": 10**30}), X), "overflow"),
    ],
)
def test_what_says_nothing_is_one_line(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call(FORMS["nnx"]())
    assert str(caught.value).startswith("expected ")
    assert "\n" not in str(caught.value)


def test_apply_is_traceable_whatever_it_closes_over():
    wanted = np.broadcast_to(X.sum(0)[:, None], (6, 4))
    for apply in (
        lambda w: models.apply((multiply, w), X).sum(),
        lambda w: models.apply(lambda x: x @ w, X).sum(),
    ):
        np.testing.assert_allclose(jax.jit(jax.grad(apply))(WEIGHT), wanted, rtol=1e-5)


def test_a_model_of_one_batch_size_is_scored_at_it():
    fixed = (lambda p, x: x.reshape(23, 6) @ p, WEIGHT)
    assert models.score(fixed, X, X @ WEIGHT) == pytest.approx(1)
