"""Directions of axes and single entries of K, as choices of the closed form."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from koopjax import compress, export, models, observables
from koopjax.compress._koopman.block import jacobian_metric, product_factors, products
from koopjax.compress._koopman.fit import fit, fit_entries, refit_entries
from koopjax.compress._koopman.search import Tally, search
from koopjax.compress._koopman.span import behind_axes, readings, span_of
from koopjax.compress._problem import pose

KEY = jax.random.key(1)


def posed(model, x, budget, at=None):
    """The whole of a classifier, or a span of it, within a budget."""
    task = "classification"
    return span_of(pose("koopman", model, x, budget, None, None, KEY, task), at)


@pytest.fixture(scope="module")
def span(network, calibration):
    """The whole small network at a tenth of its bytes."""
    return posed(network, calibration, "10x")


def test_products_on_the_host_are_those_of_the_dictionary():
    z = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
    for degree in (1, 2, 3):
        table = product_factors(5, degree)
        np.testing.assert_allclose(
            products(z, table), observables.Monomials(degree)(jnp.asarray(z)), rtol=1e-6
        )


def test_a_flat_image_is_read_along_its_rows_and_columns(span, monkeypatch):
    monkeypatch.setattr("koopjax.compress._koopman.span.SHORT", 8)
    found = list(readings(span))
    assert found[0] is span
    assert len(found) > 1
    for read in found[1:]:
        rows, columns = (np.asarray(a, np.float64) for a in read.reader.factors)
        image = np.asarray(span.h[3], np.float64).reshape(8, 8)
        expected = (rows.T @ image @ columns).ravel()
        np.testing.assert_allclose(read.h[3], expected, atol=1e-4)
        # What the directions take is not there for the rest.
        assert span.room - read.room >= 4 * (rows.size + columns.size) - 8


def test_short_axes_and_hidden_vectors_are_read_as_they_are(span, network, calibration):
    hidden = posed(network, calibration, "1.2x", 1)
    assert hidden.ends[0] != "input"
    assert list(readings(hidden)) == [hidden]
    model = models.MLP((6, 8, 3), rngs=nnx.Rngs(0))
    x = jax.random.normal(KEY, (200, 6))
    short = posed(model, x, "1x")
    assert list(readings(short)) == [short]


def test_slopes_of_what_is_read_are_those_of_the_chain_rule(span):
    read = behind_axes(span, (8, 8), (8, 8))
    back = np.kron(*(np.asarray(a, np.float64) for a in read.reader.factors))
    metric = jacobian_metric(
        span.parts, span.raw[:200], 10, jax.random.fold_in(KEY, 1), centred=True
    )
    np.testing.assert_allclose(
        read.slopes(200), back.T @ metric @ back, atol=1e-4 * np.trace(metric)
    )


def test_a_block_behind_directions_is_a_file_within_the_budget(span, tmp_path):
    read = behind_axes(span, (8, 8), (5, 5))
    fitted = fit(read, search(read, read.room, Tally(0.0))[0][1])
    assert fitted.over <= 0
    size = export.save(fitted.model, tmp_path / "m")
    assert size <= span.problem.limit
    again = export.load(tmp_path / "m")
    x = span.problem.x[:9]
    np.testing.assert_array_equal(again(x), fitted.model(x))
    assert fitted.score.value > 0.8
    assert read.reading() == {"directions": "5 of 8 x 5 of 8"}


def test_directions_on_a_grid_take_fewer_bytes(span):
    wide, narrow = behind_axes(span, (8, 8), (6, 6)), behind_axes(span, (8, 8), (6, 6), 4)
    assert narrow.room > wide.room + 100
    for factor in narrow.reader.factors:
        assert all(len(np.unique(column)) < 64 for column in np.asarray(factor).T)


def test_no_room_for_directions_is_no_task(network, calibration):
    small = posed(network, calibration, 420)
    assert behind_axes(small, (8, 8), (6, 6)).room < 0


def test_entries_of_k_fit_the_budget_and_are_refitted(span):
    setting = search(span, span.room, Tally(0.0))[0][1]
    fitted = fit_entries(span, setting)
    assert export.stored_bytes(fitted.model) <= span.problem.limit
    assert export.stored_bytes(fitted.model) > 0.8 * span.problem.limit
    count = fitted.setting.entries
    k = np.asarray(fitted.model.operator.matrix[...])
    assert np.count_nonzero(k) == count
    assert count < k.size
    assert fitted.setting.as_dict(64)["entries of K"] == count
    # Whole observables at the same bytes are what the entries have to beat; they come near at
    # the least, on few samples.
    assert fitted.score.value > fit(span, setting).score.value - 0.03


def test_entries_need_logits(span):
    setting = search(span, span.room, Tally(0.0))[0][1]
    problem = dataclasses.replace(span.problem, task="regression")
    assert fit_entries(dataclasses.replace(span, problem=problem), setting) is None


def test_refit_solves_on_the_entries_that_are_left():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(60, 12))
    h = (a.T @ a).reshape(4, 3, 4, 3)
    r = rng.normal(size=(4, 3))
    mask = rng.random((4, 3)) < 0.6
    k = refit_entries(h, r, mask)
    assert np.all(k[~mask] == 0)
    left = np.einsum("iajb,jb->ia", h, k) - r
    np.testing.assert_allclose(left[mask], 0, atol=1e-3 * np.abs(r).max())


@pytest.mark.slow
def test_the_report_says_how_the_state_was_read(network, calibration):
    made = compress.koopman(network, calibration, "20x", key=KEY)
    assert made.report.stored_bytes <= made.report.budget_bytes
    assert made.report.candidates > 20
    kronecker = "directions" in made.report.settings
    psi = made.model.psi
    while hasattr(psi, "first") and not isinstance(psi, observables.Kronecker):
        psi = psi.first
    assert isinstance(psi, observables.Kronecker) == kronecker
