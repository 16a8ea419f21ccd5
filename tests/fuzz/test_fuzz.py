"""Calls with wrong arguments: right, or one line of the package's own. Small here, large by `slow`.

`python -m tests.fuzz --calls 10000 --out counts.json` does the same in processes of its own, goes
on where it was stopped, and counts what it found by class and by place.
"""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from koopjax import edmd, observables as ob
from tests.fuzz import calls, damage, values
from tests.fuzz.judge import RIGHT, VISIBLE, Outcome, judge_error, judge_result
from tests.fuzz.verbs import VERBS, X, Y

FINE = (*RIGHT, *VISIBLE)
# Quick ones, in which most arrays and settings enter.
QUICK = [
    "observables.Monomials.__call__", "observables.Standardize.fit", "edmd.Gram.from_batch",
    "edmd.Ridge", "tt.add", "tt.norm", "tt.from_dense", "tt.rank_one", "tt.clip_ranks",
    "nn.Clustered.from_dense", "nn.Quantized.from_dense", "models.accuracy", "models.cross_entropy",
    "analysis.evaluate", "analysis.confusion", "compress.Budget.parse", "compress.matrix_curves",
    "export.save of an array", "export.load", "data.read_idx", "sweep.Table.best",
    "surgery.find", "report.write_atomically",
]  # fmt: skip


@pytest.mark.parametrize("name", QUICK)
def test_right_calls_are_right(name):
    assert calls.run(calls.Call(name)) == Outcome("right")


#: Calls that once ended in an error from inside, in NaN or a wrong value: verb, argument, change.
FOUND = [
    ("analysis.bond_singular_values", "x", "objects"),
    ("analysis.interaction_spectrum", "batch_size", "an ellipsis"),
    ("analysis.output_metric", "function", "gives a list"),
    ("analysis.output_metric", "function", "gives text"),
    ("compress.refit", "alpha", "in a dict"), ("compress.refit", "cross", "one dimension more"),
    ("compress.refit", "gram", "complex"), ("compress.refit", "mask", "one inf"),
    ("compress.removal_order", "gram", "a ragged list"),
    ("compress.removal_order", "matrix", "complex"),
    ("compress.removal_order", "protect", "as floats"),
    ("compress.select_forward", "alpha", "in a dict"),
    ("compress.select_forward", "statistics", "a random key"),
    ("compress.select_observables", "statistics", "an ellipsis"),
    ("compress.small_student", "key", "in a dict"), ("data.Dataset", "x_test", "a random key"),
    ("data.Dataset", "x_val", "a frame"), ("data.systems.runge_kutta", "drift", "gives text"),
    ("data.systems.runge_kutta", "dt", "tuple (1, 2)"), ("data.write_idx", "array", "a random key"),
    ("edmd.Gram.merge", "other", "a tree of other arrays"),
    ("edmd.Koopman.simulate", "steps", "2**70"), ("edmd.solve", "statistics", "arrays of text"),
    ("models.MLP", "sizes", "2**70"), ("models.apply", "x", "empty text"),
    ("models.predict of a model", "model", "big-endian arrays"),
    ("models.recipe", "n", "an ellipsis"), ("nn.Clustered", "codebook", "big-endian"),
    ("nn.Clustered.from_dense", "weights", "no samples"),
    ("nn.Dense.create", "use_bias", "one for each"), ("nn.Stack", "activations", "an object"),
    ("nn.Stack", "operators", "a random key"), ("nn.from_koopman", "lifted", "one for each"),
    ("nn.Quantized", "scale", "no samples"),
    ("observables.CosSin", "scale", "None"), ("observables.Custom", "labels", "a random key"),
    ("observables.Custom.__call__", "x", "no columns"),
    ("observables.GaussianRBF", "bandwidth", "a dictionary of observables"),
    ("observables.GaussianRBF.fit", "key", "floats"),
    ("observables.Kronecker.__call__", "x", "no samples"),
    ("observables.Product", "factors", "2**70"),
    ("observables.ProductKernel", "product", "two of it"),
    ("observables.Project", "matrix", "a ragged list"),
    ("observables.Project", "mean", "masked, none hidden"),
    ("observables.RandomFourier.create", "key", "in a dict"),
    ("observables.Standardize", "scale", "complex without imaginary part"),
    ("observables.names", "d", "in a list"), ("plot.confusion", "classes", "2**70"),
    ("plot.training", "history", "two of it"), ("report.render", "results", "two of it"),
    ("report.render", "results", "a tree of other arrays"),
    ("nn.from_koopman", "fit", "big-endian arrays"),
    ("nn.from_koopman", "fit", "a tree of other arrays"),
    ("report.to_json", "results", "an ellipsis"),
    ("surgery.cut_points", "model", "big-endian arrays"),
    ("surgery.splice", "at", "a random key"), ("sweep.grid", "x", "a set"),
    ("sweep.ranks of statistics", "validation", "an ellipsis"),
    ("tensor_edmd.order_by_correlation", "x", "an ellipsis"),
    ("observables.Trigonometric", "scale", "one for each"),
    ("tensor_edmd.order_by_mutual_information", "bins", "int 2147483648"),
    ("tt.contraction_order", "ranks", "one less"), ("tt.random", "key", "raw"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "argument", "how"), FOUND)
def test_what_the_fuzzer_found(name, argument, how):
    verb = VERBS[name]
    call = calls.Call(name, (argument,) if argument in verb.optional else (), ((argument, how),))
    outcome = calls.run(call)
    assert outcome is not None
    assert outcome.kind in FINE, (str(call), outcome)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.sampled_from(QUICK), st.data())
def test_wrong_arguments_are_taken_rightly_or_refused_in_one_line(name, data):
    arguments = VERBS[name].needed
    argument = data.draw(st.sampled_from(list(arguments)))
    own = values.KINDS[arguments[argument].kind]
    how = data.draw(st.sampled_from([*own, *values.ANY]))
    call = calls.Call(name, (), ((argument, how),))
    outcome = calls.run(call)
    assert outcome is None or outcome.kind in FINE, (str(call), outcome)


def test_what_is_wrong_is_told_apart():
    verb = VERBS["edmd.fit and predict"]

    def outcome(function, **arguments):
        try:
            return judge_result(verb, function(), arguments).kind
        except Exception as error:
            return judge_error(error, True).kind

    given = {"psi": ob.Monomials(1), "x": X, "y": Y}
    fit = edmd.fit(**given, target=ob.Identity())
    assert outcome(lambda: (fit, fit.predict(X)), **given) == "right"
    assert outcome(lambda: (fit, 1.1 * fit.predict(X)), **given) == "wrong value"
    assert outcome(lambda: (fit, fit.predict(X) * jnp.nan), **given) == "silent NaN"
    assert outcome(lambda: (fit, fit.predict(X) / 0), **given) in ("silent NaN", "overflow")
    hidden = np.ma.MaskedArray(X, X > 0.5)
    assert outcome(lambda: (fit, fit.predict(X)), **{**given, "x": hidden}) == "wrong value"
    assert outcome(lambda: edmd.fit(**{**given, "x": X[:3]})) == "refused"
    assert outcome(lambda: jnp.ones(3) @ jnp.ones(4)) == "foreign error"
    assert outcome(lambda: np.zeros(1 << 58)) == "out of memory"


def test_a_number_draws_the_same_call_whatever_was_called_before():
    first = calls.draw(0, 123)
    calls.draw(0, 7)
    assert calls.draw(0, 123) == first
    assert len({str(calls.draw(0, i)) for i in range(50)}) > 40


@pytest.mark.slow
@pytest.mark.parametrize("block", range(100))
def test_ten_thousand_calls(block):
    found = {}
    for number in range(100 * block, 100 * block + 100):
        call = calls.draw(0, number)
        outcome = calls.run(call)
        if outcome is not None and outcome.kind not in FINE:
            found[number] = (str(call), outcome)
    assert not found


@pytest.mark.slow
@pytest.mark.parametrize("block", range(10))
def test_a_thousand_damaged_files(block):
    for number in range(100 * block, 100 * block + 100):
        case = damage.draw(0, number)
        outcome = damage.run(case)
        assert outcome is None or outcome.kind in FINE, (str(case), outcome)
