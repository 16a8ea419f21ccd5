"""A method of one's own, in one file: weights of few significant bits, in the contest."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from koopjax import compress, export, models


@compress.posed
def few_digits(problem: compress.Problem, at=None) -> compress.Compressed:
    """Round every array to powers of two times one of few fractions, the finest that fit."""
    trials = []
    for bits in range(1, 9):
        rounded = nnx.clone(problem.model)
        short = functools.partial(shortened, bits=bits)
        nnx.update(rounded, jax.tree.map(short, nnx.state(rounded)))
        trials.append(problem.trial(rounded, {"bits": bits}))
    return problem.best(trials, f"of eight precisions, the best validation {problem.measure}")


def shortened(array, bits):
    """An array with so many bits behind the leading one."""
    fraction, exponent = np.frexp(array)
    return jnp.asarray(np.ldexp(np.round(fraction * 2.0**bits) / 2.0**bits, exponent))


@pytest.fixture(autouse=True)
def entered(monkeypatch):
    """Into the registry; outside of a test, `compress.METHODS["few_digits"] = ...`."""
    own = compress.Method(few_digits, "quantising", any_bits=True)
    monkeypatch.setitem(compress.METHODS, "few_digits", own)


def test_it_is_called_as_all_methods_are(network, calibration):
    made = compress.METHODS["few_digits"](network, calibration, "2x", key=jax.random.key(0))
    assert made.report.method == "few_digits"
    assert export.stored_bytes(made.model) <= export.stored_bytes(network) / 2
    with pytest.raises(compress.BudgetTooSmall, match="for few_digits"):
        compress.METHODS["few_digits"](network, calibration, 90, key=jax.random.key(0))


def test_it_enters_the_contest_one_shot_and_trained(network, digits):
    names = [f"{x}_{part}" for x in "xy" for part in ("train", "val", "test")]
    few = SimpleNamespace(**{name: np.asarray(getattr(digits, name))[:200] for name in names})
    result = compress.pareto(network, few, ["few_digits", "svd"], ["2x"], tracks=["one-shot"])
    assert [point.family for point in result.points] == ["quantising", "factorising"]
    assert all(point.accuracy > 0.8 for point in result.points)
    tuned = compress.finetuned(
        "few_digits", network, few.x_train, "2x", labels=few.y_train, variant={},
        training=compress.Training(epochs=1, batch_size=64), key=jax.random.key(0),
    )  # fmt: skip
    assert models.accuracy(tuned.model, few.x_test, few.y_test) > 0.8
