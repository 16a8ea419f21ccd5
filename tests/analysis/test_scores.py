"""Scores, metrics on states, and summaries over seeds, against closed forms."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from koopjax import analysis

RNG = np.random.default_rng(1)


class Linear:
    """A tail `y W + b` as a callable pytree."""

    def __init__(self, w, b):
        self.w, self.b = w, b

    def __call__(self, y):
        return y @ self.w + self.b


jax.tree_util.register_pytree_node(
    Linear, lambda t: ((t.w, t.b), None), lambda _, leaves: Linear(*leaves)
)


@pytest.fixture
def tail():
    w = RNG.normal(size=(5, 3)).astype(np.float32)
    return Linear(jnp.asarray(w), jnp.zeros((1, 3)))


def test_the_metric_of_a_linear_tail_is_closed(tail):
    y = RNG.normal(size=(40, 5)).astype(np.float32)
    w = np.asarray(tail.w, np.float64)
    np.testing.assert_allclose(analysis.output_metric(tail, y), w @ w.T, rtol=1e-4, atol=1e-5)
    centre = np.eye(3) - 1 / 3
    np.testing.assert_allclose(
        analysis.output_metric(tail, y, kind="centred"), w @ centre @ w.T, rtol=1e-4, atol=1e-5
    )


def test_the_softmax_metric_is_the_divergence_of_small_errors(tail):
    y = RNG.normal(size=(1, 5)).astype(np.float32)
    metric = np.asarray(analysis.output_metric(tail, y, kind="softmax"), np.float64)
    w, e = np.asarray(tail.w, np.float64), 1e-3 * RNG.normal(size=(1, 5))
    log_p, log_q = (z - np.log(np.exp(z).sum()) for z in (y @ w, (y + e) @ w))
    kl = (np.exp(log_p) * (log_p - log_q)).sum()
    assert (e @ metric @ e.T).item() / 2 == pytest.approx(kl, rel=1e-2)


def test_the_metric_of_positions_sums_over_them():
    y = RNG.normal(size=(6, 2, 2, 3)).astype(np.float32)
    pool = jax.tree_util.Partial(lambda s: 2 * jnp.mean(s, axis=(1, 2)))
    metric = analysis.output_metric(pool, y, sample_axes="positions")
    np.testing.assert_allclose(metric, 4 * (2 / 4) ** 2 * np.eye(3), atol=1e-6)


def test_mistakes_about_metrics_are_told(tail):
    with pytest.raises(ValueError, match="a metric among"):
        analysis.output_metric(tail, np.ones((2, 5), np.float32), kind="other")
    with pytest.raises(ValueError, match="n > 0"):
        analysis.output_metric(tail, np.ones((0, 5), np.float32))


def test_scores_agree_with_float64():
    reference, output = RNG.normal(size=(2, 50, 4))
    labels = RNG.integers(0, 4, 50)
    found = analysis.evaluate(output.astype("f4"), reference.astype("f4"), labels)
    p, q = (np.exp(z) / np.exp(z).sum(-1, keepdims=True) for z in (reference, output))
    assert found["kl"] == pytest.approx((p * np.log(p / q)).sum(-1).mean(), rel=1e-4)
    assert found["accuracy"] == pytest.approx((output.argmax(-1) == labels).mean())
    assert found["agreement"] == pytest.approx((output.argmax(-1) == reference.argmax(-1)).mean())
    found = analysis.evaluate(output, reference, reference, task="regression")
    r2 = 1 - ((reference - output) ** 2).sum() / ((reference - reference.mean(0)) ** 2).sum()
    assert found["accuracy"] == found["agreement"] == pytest.approx(r2, rel=1e-4)
    assert found["kl"] == pytest.approx(((reference - output) ** 2).mean(), rel=1e-4)


def test_mistakes_about_scores_are_told():
    ones = np.ones((3, 2), np.float32)
    with pytest.raises(ValueError, match="outputs of shape"):
        analysis.evaluate(ones, ones[:2])
    with pytest.raises(ValueError, match="at least one sample"):
        analysis.evaluate(ones[:0], ones[:0])
    with pytest.raises(ValueError, match="3 labels"):
        analysis.evaluate(ones, ones, np.zeros(2, int))


def test_confusion_counts():
    labels, answers = np.array([0, 0, 1, 2]), np.array([0, 1, 1, 0])
    assert analysis.confusion(labels, answers, 3).tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]
    logits = np.eye(3)[answers]
    assert (analysis.confusion(labels, logits, 3) == analysis.confusion(labels, answers, 3)).all()
    with pytest.raises(ValueError, match="labels from 0 to 1"):
        analysis.confusion(labels, answers, 2)
    with pytest.raises(ValueError, match="one a label"):
        analysis.confusion(labels, answers[:2], 3)


@pytest.mark.parametrize("n", [2, 5, 12, 31, 60])
def test_bounds_are_those_of_student(n):
    values = RNG.normal(size=n)
    mean, low, high = analysis.one_sided(values)
    half = stats.t.ppf(0.95, n - 1) * values.std(ddof=1) / math.sqrt(n)
    assert mean == pytest.approx(values.mean())
    assert high - mean == pytest.approx(half, rel=1e-3)
    assert mean - low == pytest.approx(half, rel=1e-3)


def row(accuracy, name="degree 2", numbers=10, target="state", result=0):
    return {
        "dictionary": name, "rank": None, "truncation": "none", "target": target, "null": False,
        "accuracy": accuracy, "agreement": 0.9, "kl": 0.1, "r2": 0.9, "observables": 5,
        "numbers": numbers, "stored_bytes": None, "alpha": 1e-3, "condition": 10.0,
        "result": result, "message": "success" if not result else "odd",
    }  # fmt: skip


def made(original, rows):
    return {
        "original": {"accuracy": original, "parameters": 7, "stored_bytes": 40},
        "span": {"start": "a", "stop": "b"}, "tolerance": 0.01, "replaced": rows,
    }  # fmt: skip


def test_a_summary_is_mean_spread_and_paired_loss():
    ladders = [
        made(0.98, [row(0.97), row(0.90, "affine", 3), row(0.98, "free", 1, "logits")]),
        made(0.96, [row(0.96, result=2), row(0.91, "affine", 3), row(0.96, "free", 1, "logits")]),
    ]
    found = analysis.summarize(ladders)
    degree = found.find("degree 2")
    assert degree["accuracy"] == pytest.approx(0.965)
    assert degree["accuracy_std"] == pytest.approx(np.std([0.97, 0.96], ddof=1))
    assert degree["loss"] == pytest.approx(0.005)
    assert degree["loss_upper"] == pytest.approx(analysis.one_sided([0.01, 0.0])[2])
    assert (degree["result"], degree["message"]) == (2, "odd")
    assert found.original["accuracy"] == pytest.approx(0.97)
    assert found.least()["dictionary"] == "degree 2"
    assert found.least(0.1)["dictionary"] == "affine"
    assert found.least(confident=True) is None
    assert "degree 2 is enough" in found.sentence()
    assert "no rung" in found.sentence(1e-6)
    assert len(found.table().splitlines()) == 4
    json.dumps(found.to_dict(), allow_nan=False)
    json.dumps(analysis.summarize(ladders[:1]).to_dict(), allow_nan=False)


def test_mistakes_about_summaries_are_told():
    with pytest.raises(ValueError, match="at least one ladder"):
        analysis.summarize([])
    with pytest.raises(ValueError, match="some of each"):
        analysis.summarize([made(0.9, [row(0.9)]), made(None, [row(None)])])
    with pytest.raises(ValueError, match="a rung among"):
        analysis.summarize([made(0.9, [row(0.9)])]).find("degree 3")
    with pytest.raises(ValueError, match="at least one value"):
        analysis.one_sided([])


def test_labels_as_a_column_are_refused():
    logits = jnp.eye(3)
    with pytest.raises(ValueError, match=r"shape \(3,\), got shape \(3, 1\); try y\[:, 0\]"):
        analysis.evaluate(logits, logits, np.arange(3)[:, None])


def test_a_plain_function_gives_a_metric_and_what_it_closes_over_is_read_anew():
    w = np.array([[1.0], [2.0]], np.float32)
    measure = lambda: analysis.output_metric(lambda x: x @ w, np.ones((3, 2)))
    np.testing.assert_allclose(measure(), w @ w.T)
    w *= 2
    np.testing.assert_allclose(measure(), w @ w.T)
