"""Several spans, a search over spans, few bits and bounded time."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from koopjax import compress, export, models, surgery
from koopjax.compress._koopman import method
from koopjax.compress._koopman.fit import fit
from koopjax.compress._koopman.search import Tally, search
from koopjax.compress._koopman.span import span_of
from koopjax.compress._problem import pose
from tests import nets

X = nets.normal(300, 12)
KEY = jax.random.key(1)


def small():
    """Layers of one width, so that spans of them share programs, with random weights."""
    return nets.filled(lambda: models.MLP((12,) * 5, rngs=nnx.Rngs(0)))


def agreement(a, b, x):
    return np.mean(np.argmax(a(x), 1) == np.argmax(b(x), 1))


SPANS = [
    [("input", "layers.0/relu"), ("layers.1/relu", "output")],
    [("layers.2/relu", "output"), ("layers.0/relu", "layers.2/relu")],
]


@pytest.mark.parametrize("spans", [SPANS[0], pytest.param(SPANS[1], marks=pytest.mark.slow)])
def test_two_spans_share_a_budget_and_the_rest_stays(spans, tmp_path):
    model = small()
    made = compress.koopman(model, X, "1.2x", at=spans, key=KEY, seconds=0)
    report = made.report
    assert export.save(made.model, tmp_path / "m") == report.stored_bytes <= report.budget_bytes
    assert report.stored_bytes > 0.6 * report.budget_bytes
    assert len(report.settings["at"]) == 2
    assert agreement(model, made.model, X) > 0.55
    again = export.load(tmp_path / "m", model=made.model)
    np.testing.assert_array_equal(again(X), made.model(X))
    kept = "layers.1.kernel" if spans is SPANS[0] else "layers.0.kernel"
    place = model.layers[int(kept.split(".")[1])].kernel[...]
    leaves = jax.tree.leaves(nnx.state(made.model))
    assert any(a.shape == place.shape and np.array_equal(a, place) for a in leaves)


@pytest.mark.slow
def test_a_later_span_is_fitted_on_what_the_earlier_delivers(monkeypatch):
    seen = []
    best = method._best
    monkeypatch.setattr(method, "_best", lambda span, *a: seen.append(span) or best(span, *a))
    at = [("input", "layers.1/relu"), ("layers.1/relu", "output")]
    compress.koopman(small(), X, "1.5x", at=at, key=KEY)
    first, second = seen[-2:]
    head = surgery.split(small(), X, at[1])[0]
    x = first.problem.x
    assert not np.allclose(second.h, head(x), atol=1e-3)
    np.testing.assert_allclose(second.y, small()(x), atol=1e-5)


@pytest.mark.slow
def test_two_spans_of_a_convolutional_network(digits):
    cnn = models.CNN((8, 8, 1), 10, channels=(4, 4), hidden=16, rngs=nnx.Rngs(0))
    x = np.asarray(digits.x_train).reshape(-1, 8, 8, 1)[:300]
    sample = jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.float32)
    hidden = [c.name for c in surgery.cut_points(cnn, sample) if c.hidden]
    at = [(hidden[0], hidden[1]), (hidden[-1], "output")]
    made = compress.koopman(cnn, x, "0.6x", at=at, key=KEY)
    assert made.report.stored_bytes <= made.report.budget_bytes
    assert made.model(x[:7]).shape == (7, 10)


def test_spans_that_overlap_are_refused():
    at = [("input", "layers.1/relu"), ("layers.0/relu", "output")]
    with pytest.raises(ValueError, match="spans that do not overlap") as caught:
        compress.koopman(small(), X, "1.5x", at=at, key=KEY)
    assert "\n" not in str(caught.value)
    at = [("input", "layers.0/relu"), ("layers.1/relu", "output")]
    with pytest.raises(compress.BudgetTooSmall, match="at least"):
        compress.koopman(small(), X, 300, at=at, key=KEY)


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ({"bits": "int8"}, "bits 'float32' or 'any'"),
        ({"seconds": -1}, "seconds at least 0"),
        ({"search_spans": "all"}, "True or False as koopman: search_spans"),
        ({"search_spans": True, "at": 1}, "at or search_spans"),
        ({"at": ("nowhere", "output")}, "the name or index of a cut"),
        ({"at": ("output", "input")}, "."),
    ],
)
def test_bad_extras_get_one_line(extra, says):
    with pytest.raises(ValueError, match=says) as caught:
        compress.koopman(small(), X, "2x", key=KEY, **extra)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_few_bits_are_never_worse_and_lie_on_a_grid(network, calibration, tmp_path):
    plain = compress.koopman(network, calibration, "12x", key=KEY)
    made = compress.koopman(network, calibration, "12x", key=KEY, bits="any")
    assert made.report.score >= plain.report.score
    assert made.report.stored_bytes <= made.report.budget_bytes
    assert made.report.settings["bits"] in (4, 5, 6)
    matrix = np.asarray(made.model.operator.matrix[...])
    for column in matrix.T:
        assert len(np.unique(column)) <= 63
    export.save(made.model, tmp_path / "m")
    again = export.load(tmp_path / "m")
    np.testing.assert_array_equal(again(calibration[:9]), made.model(calibration[:9]))


@pytest.mark.slow
def test_a_search_over_spans_is_not_worse_than_the_whole():
    model = small()
    plain = compress.koopman(model, X, "1.4x", key=KEY)
    made = compress.koopman(model, X, "1.4x", key=KEY, search_spans=True)
    assert made.report.score >= plain.report.score
    assert made.report.candidates > plain.report.candidates


def test_time_bounds_the_search():
    made = compress.koopman(small(), X, "1.4x", key=KEY, seconds=0, bits="any", search_spans=True)
    assert "left out" in str(made.report)
    assert made.report.score > 0.5


def test_fewer_observables_than_ranks_make_a_dense_k(network, calibration):
    problem = pose("koopman", network, calibration, "10x", None, None, KEY)
    span = span_of(problem, None)
    setting = search(span, span.room, Tally(0.0))[0][1]
    few = dataclasses.replace(setting, columns=setting.columns[:5], rank=7)
    fitted = fit(span, few)
    assert fitted.clean.shape == (5, 10)
    assert fitted.over <= 0
