"""Budgets: what is read, what is refused, and the bound that they are."""

import pytest
from hypothesis import given, strategies as st

from koopjax.compress import Budget


@given(st.floats(0.01, 1e6), st.integers(1, 10**9))
def test_a_ratio_bounds_the_quotient(ratio, original):
    budget = Budget.parse(f"{ratio!r}x")
    size = budget.bytes(original)
    assert size * ratio <= original * (1 + 1e-12)
    assert (size + 1) * ratio > original * (1 - 1e-12)


@given(st.integers(1, 10**6))
def test_units(number):
    for unit, factor in (("", 1), ("B", 1), ("kB", 1000), ("KiB", 1024), ("MiB", 1024**2)):
        for text in (f"{number}{unit}", f" {number} {unit.lower()} "):
            assert Budget.parse(text).bytes(7) == number * factor
    assert Budget.parse(number).bytes(7) == number


@given(st.one_of(st.integers(1, 10**9), st.floats(0.5, 1e5).map(lambda r: f"{r:g}x")))
def test_spelling_a_budget_reads_back(value):
    budget = Budget.parse(value)
    assert Budget.parse(str(budget)).bytes(10**6) == pytest.approx(budget.bytes(10**6), rel=1e-5)
    assert Budget.parse(budget) is budget


@pytest.mark.parametrize(
    "bad", ["", "x", "30y", "thirty", "-5x", "0x", "1e999x", 0, -3, 2.5, None, True, "0.2", "5 x x"]
)
def test_malformed_budgets_are_refused(bad):
    with pytest.raises(ValueError, match=r"expected a (budget|positive ratio)"):
        Budget.parse(bad)
