"""Methods × budgets: rows, progress, and methods that do not fit."""

import json

import jax
import pytest

from koopjax import compress


def test_rows_and_progress(network, digits, calibration):
    seen, kept = [], []
    rows = compress.table(
        network, calibration, (digits.x_test, digits.y_test), ["3x", 900],
        ["magnitude", "whitened_svd"], key=jax.random.key(0),
        progress=lambda done, total, row: seen.append((done, total, row.method)),
        keep=lambda row, made: kept.append((row.method, made.model)),
    )  # fmt: skip
    assert [(r.method, r.budget) for r in rows] == [
        ("magnitude", "3x"), ("whitened_svd", "3x"), ("magnitude", "900 B"),
        ("whitened_svd", "900 B"),
    ]  # fmt: skip
    assert seen == [(k + 1, 4, row.method) for k, row in enumerate(rows)]
    first, last = rows[0], rows[-1]
    assert first.stored_bytes <= first.report.budget_bytes
    assert 0 <= first.accuracy <= 1
    assert last.accuracy is None
    assert "at least" in last.note
    assert len(kept) == sum(row.accuracy is not None for row in rows)
    again = json.loads(json.dumps([row.as_dict() for row in rows]))
    assert again[0]["report"]["ratio"] == pytest.approx(first.ratio)


def test_mistakes_are_found_before_anything_runs(network, digits, calibration):
    test = (digits.x_test, digits.y_test)
    with pytest.raises(ValueError, match="methods among"):
        compress.table(network, calibration, test, ["3x"], ["magic"], key=jax.random.key(0))
    with pytest.raises(ValueError, match="a budget"):
        compress.table(network, calibration, test, ["3x", "huh"], key=jax.random.key(0))
