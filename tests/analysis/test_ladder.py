"""The ladder on networks small enough to know the answers."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from koopjax import analysis, data, edmd, export, models, observables, surgery

EVENT = "/jax/core/compile/backend_compile_duration"
KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(600, 4)).astype(np.float32)
TRAIN, VAL, TEST = X[:400], X[400:500], X[500:]
TWO = {
    "affine": lambda s: observables.Monomials(1),
    "degree 2": lambda s: observables.Monomials(2),
}


def matrix(rows, cols, seed):
    return np.random.default_rng(seed).normal(size=(rows, cols)).astype(np.float32)


def squares(params, x):
    """A span that is exactly quadratic, between two linear layers."""
    h = x @ params["a"]
    g = jnp.tanh(0 * h) + h * h + h @ params["b"]
    return jnp.maximum(g, -1e9) @ params["c"]


QUADRATIC = (squares, {"a": matrix(4, 3, 1), "b": matrix(3, 3, 2), "c": matrix(3, 5, 3)})


def span_of(model):
    """From the first layer's output to the last layer's input."""
    cuts = [cut.name for cut in surgery.cut_points(model, TRAIN[:2])]
    return cuts[0], cuts[-2]


def climb(model, **given):
    labels = np.asarray(models.predict(model, TEST)).argmax(-1)
    given = {"ranks": (1, 2), "dictionaries": TWO, "alphas": (1e-9,), "stored": False, **given}
    given = {"key": KEY, **given}
    return analysis.ladder(model, TRAIN, VAL, None, TEST, labels, **given)


@pytest.fixture(scope="module")
def quadratic():
    return climb(QUADRATIC, at=span_of(QUADRATIC))


@pytest.fixture(scope="module")
def mlp():
    return models.MLP((4, 6, 6, 3), rngs=nnx.Rngs(3))


@pytest.fixture(scope="module")
def ladder(mlp):
    return climb(mlp)


def test_a_quadratic_span_needs_degree_2_and_no_more(quadratic):
    exact, poor = quadratic.find("degree 2"), quadratic.find("affine")
    assert exact.accuracy == exact.agreement == 1
    assert exact.r2 > 1 - 1e-6
    assert exact.kl < 1e-6
    assert poor.accuracy < 0.95
    assert poor.r2 < 0.9
    assert quadratic.find("degree 2, to the logits").r2 > 1 - 1e-6
    assert quadratic.least(0.0).dictionary == "degree 2"
    assert "degree 2" in quadratic.sentence(0.0)
    assert quadratic.original["accuracy"] == 1


def test_a_span_is_prepared_once_for_several_ladders(mlp, ladder):
    span = analysis.prepare(mlp, TRAIN, VAL, None, TEST, ladder.labels)
    given = {"dictionaries": TWO, "alphas": (1e-9,), "key": KEY, "stored": False}
    found = analysis.ladder_of(span, ranks=(1, 2), **given)
    assert found.rungs == ladder.rungs
    assert len(analysis.ladder_of(span, ranks=(), **given).rungs) < len(found.rungs)


def test_a_keyword_that_nobody_has_is_told_before_anything_runs():
    with pytest.raises(TypeError, match="'memory_limt', try memory_limit"):
        analysis.ladder(QUADRATIC, None, key=KEY, memory_limt=3)
    with pytest.raises(TypeError, match="'sweps', try sweeps"):
        analysis.plane(QUADRATIC, None, key=KEY, sweps=3)


def test_nulls_are_what_they_say(quadratic):
    head, span, tail = surgery.split(QUADRATIC, TEST[:2], quadratic.span)
    before = head(TEST)
    reference = np.asarray(tail(span(before)))
    outputs = {
        "identity": tail(before),
        "mean": jnp.broadcast_to(tail(span(head(TRAIN)).mean(0)[None]), reference.shape),
    }
    for name, output in outputs.items():
        found = analysis.evaluate(output, reference, reference.argmax(-1))
        rung = quadratic.find(name)
        assert rung.null
        assert rung.accuracy == pytest.approx(found["accuracy"])
        assert rung.kl == pytest.approx(found["kl"], rel=1e-3)
    assert quadratic.find("identity").numbers == 0
    assert quadratic.find("mean").numbers == 3


def test_rungs_are_the_spliced_models(mlp):
    """Scores, numbers and bytes of a rung are those of the model that it stands for."""
    found = climb(mlp, ranks=(2,), stored=True)
    labels, reference = found.labels, models.predict(mlp, TEST)
    keys = [("mean", None, "none"), ("degree 2", None, "none"), ("identity", None, "none")]
    keys += [("degree 2", 2, t) for t in ("svd", "output")]
    keys += [("degree 2, to the logits", 2, "output")]
    for name, rank, truncation in keys:
        rung = found.find(name, rank, truncation)
        spliced = found.spliced(name, rank, truncation)
        scores = analysis.evaluate(models.predict(spliced, TEST), reference, labels)
        assert rung.accuracy == pytest.approx(scores["accuracy"], abs=1e-6)
        assert rung.kl == pytest.approx(scores["kl"], rel=1e-3, abs=1e-6)
        assert rung.stored_bytes == pytest.approx(export.stored_bytes(spliced), abs=8)
        if name == "degree 2":
            operator = nnx.state(spliced.block.operator)
            assert rung.numbers == sum(leaf.size for leaf in jax.tree.leaves(operator))


def test_ridge_is_that_of_all_samples_after_the_refit(mlp):
    alpha = 1e-2
    found = climb(mlp, alphas=(alpha,), logits=False)
    head, span, _ = surgery.split(mlp, X[:2], found.span)
    both = np.concatenate([TRAIN, VAL])
    before = head(both)
    psi = np.asarray(observables.Monomials(2)(before), np.float64)
    gram, y = psi.T @ psi, np.asarray(span(before), np.float64)
    ridge = alpha * np.trace(gram) / len(gram)
    oracle = np.linalg.solve(gram + ridge * np.eye(len(gram)), psi.T @ y)
    fit = found.fits["degree 2"]
    np.testing.assert_allclose(fit.forms.matrix, oracle, rtol=1e-4, atol=1e-5)
    values = np.linalg.svd(oracle, compute_uv=False)
    np.testing.assert_allclose(found.singular_values["degree 2"], values, rtol=1e-4, atol=1e-6)
    exact = np.sqrt((np.linalg.eigvalsh(gram)[-1] + ridge) / (np.linalg.eigvalsh(gram)[0] + ridge))
    assert found.find("degree 2").condition == pytest.approx(exact, rel=1e-3)


def test_truncations_are_optimal_in_their_metrics(mlp):
    alpha, root = 1e-3, np.random.default_rng(5).normal(size=(6, 6))
    metric = root @ root.T + 0.1 * np.eye(6)
    found = climb(mlp, alphas=(alpha,), metric=metric.astype("f4"), refit=False)
    forms, before = found.fits["degree 2"].forms, surgery.split(mlp, X[:2], found.span)[0](TRAIN)
    psi = np.asarray(observables.Monomials(2)(before), np.float64)
    k = np.asarray(forms.matrix, np.float64)
    u, s, vt = np.linalg.svd(k, full_matrices=False)
    ridge = alpha * np.trace(psi.T @ psi) / len(k)
    rows = np.concatenate([psi, np.sqrt(ridge) * np.eye(len(k))]) @ k
    # Reduced-rank regression: the augmented prediction cut in the Cholesky coordinates of M.
    lower = np.linalg.cholesky(metric)
    v = np.linalg.svd(rows @ lower)[2]
    for rank in (1, 2, 3, 4):
        plain = np.asarray(forms.svd[0])[:, :rank] @ np.asarray(forms.svd[1])[:rank]
        np.testing.assert_allclose(plain, (u[:, :rank] * s[:rank]) @ vt[:rank], atol=1e-5)
        best = np.asarray(forms.output[0])[:, :rank] @ np.asarray(forms.output[1])[:rank]
        oracle = k @ lower @ v[:rank].T @ v[:rank] @ np.linalg.inv(lower)
        np.testing.assert_allclose(best, oracle, atol=2e-4)


def test_rank_of_the_output_loses_nothing_in_its_metric(ladder):
    """Three logits have two differences: rank 2 in the centred metric is the whole answer."""
    whole, cut = ladder.find("degree 2"), ladder.find("degree 2", 2)
    assert cut.kl == pytest.approx(whole.kl, rel=1e-3)
    assert cut.accuracy == whole.accuracy
    assert ladder.find("degree 2", 2, "svd").kl > cut.kl


def test_nested_dictionaries_share_one_pass(mlp, monkeypatch, ladder):
    passes, accumulate = [], edmd.accumulate

    def counted(psi, *given, **settings):
        passes.append(psi.degree)
        return accumulate(psi, *given, **settings)

    monkeypatch.setattr(edmd, "accumulate", counted)
    climb(mlp)
    assert passes == [2, 2]  # of the samples to fit on and to choose on
    alone = climb(mlp, dictionaries={"affine": TWO["affine"]})
    np.testing.assert_allclose(
        ladder.fits["affine"].forms.matrix, alone.fits["affine"].forms.matrix, atol=1e-5
    )


def test_choices_are_kept_and_reused(mlp):
    first = climb(mlp, alphas=(1e-6, 1.0))
    assert set(first.choices.values()) <= {1e-6, 1.0}
    second = climb(mlp, choices=first.choices)
    assert second.choices == first.choices
    assert second.find("degree 2").kl == pytest.approx(first.find("degree 2").kl, rel=1e-5)
    with pytest.raises(ValueError, match="a ridge for 'affine'"):
        climb(mlp, choices={"degree 2": 1.0})


def test_the_better_ridge_is_chosen(mlp):
    assert climb(mlp, alphas=(1e-6, 1e6)).choices["affine"] == 1e-6
    labels = np.asarray(models.predict(mlp, VAL)).argmax(-1)
    found = analysis.ladder(
        mlp, TRAIN, VAL, labels, TEST, None, key=KEY, dictionaries=TWO, ranks=(1,),
        alphas=(1e-6, 1e6), choose="accuracy", stored=False,
    )  # fmt: skip
    assert found.choices["degree 2"] == 1e-6


def test_without_labels_there_is_agreement(mlp):
    found = analysis.ladder(
        mlp, TRAIN, x_test=TEST, key=KEY, dictionaries=TWO, ranks=(1,), task="classification",
        stored=False,
    )  # fmt: skip
    assert found.original["accuracy"] is None
    assert found.find("affine").accuracy is None
    assert 0 < found.find("affine").agreement <= 1
    assert "agreement" in found.sentence(0.5)
    assert "no rung stays" in found.sentence(-1.0)
    assert analysis.summarize([found, found]).find("affine")["loss"] == pytest.approx(
        1 - found.find("affine").agreement
    )


def test_regression_and_a_score_of_ones_own(mlp):
    targets = np.asarray(models.predict(mlp, TEST))
    error = lambda output, labels: -jnp.mean(jnp.abs(output - labels))
    common = {"key": KEY, "dictionaries": TWO, "ranks": (1,), "task": "regression"}
    common |= {"stored": False, "logits": False}
    plain = analysis.ladder(mlp, TRAIN, VAL, None, TEST, targets, **common)
    own = analysis.ladder(mlp, TRAIN, VAL, None, TEST, targets, score_fn=error, **common)
    assert plain.original["accuracy"] == pytest.approx(1)
    assert 0.5 < plain.find("degree 2").accuracy < 1
    assert plain.find("degree 2").accuracy == pytest.approx(plain.find("degree 2").agreement)
    assert own.original["accuracy"] == 0
    assert -1 < own.find("degree 2").accuracy < 0


@pytest.mark.slow
def test_feature_maps_are_replaced_position_by_position():
    model = models.CNN((8, 8, 1), 3, channels=(3, 4), hidden=8, rngs=nnx.Rngs(0))
    images = RNG.normal(size=(60, 8, 8, 1)).astype(np.float32)
    cuts = [cut for cut in surgery.cut_points(model, images[:2]) if len(cut.shape) == 4]
    same = [c for c in cuts if c.shape[:3] == cuts[0].shape[:3]]
    at = (same[0].name, same[-1].name)
    found = analysis.ladder(
        model, images[:40], None, None, images[40:], None, at=at, key=KEY, dictionaries=TWO,
        ranks=(1,), sample_axes="positions", alphas=(1e-6,),
    )  # fmt: skip
    assert "degree 2, to the logits" not in found.fits
    rung = found.find("degree 2")
    scores = analysis.evaluate(
        models.predict(found.spliced("degree 2"), images[40:]), models.predict(model, images[40:])
    )
    assert rung.kl == pytest.approx(scores["kl"], rel=1e-3, abs=1e-7)
    with pytest.raises(ValueError, match="vectors at both cuts"):
        analysis.ladder(model, images[:40], x_test=images[40:], at=at, key=KEY)


class Plain(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.relu(linen.Dense(5)(x))
        x = linen.relu(linen.Dense(5)(x))
        return linen.Dense(3)(x)


@pytest.mark.slow
def test_linen_models_and_default_dictionaries():
    module = Plain()
    model = (module, module.init(KEY, TRAIN[:2]))
    found = analysis.ladder(
        model, TRAIN, VAL, None, TEST, None, key=KEY, ranks=(1, 2), stored=False,
        dictionaries=analysis.default_dictionaries(directions=3, centers=20, features=20),
    )  # fmt: skip
    names = [r.dictionary for r in found.rungs if r.rank is None and r.target == "state"]
    assert names == [
        "identity", "mean", "affine", "degree 2", "degree 3, leading 3", "rbf", "random fourier",
    ]  # fmt: skip
    assert all(rung.result == 0 for rung in found.rungs)
    assert (
        found.find("degree 3, leading 3").r2 > found.find("degree 2").r2 > found.find("affine").r2
    )


def test_dead_units_and_few_samples_do_no_harm(mlp):
    net = nnx.clone(mlp)
    net.layers[0].kernel[...] = net.layers[0].kernel[...].at[:, :2].set(0)
    some = {k: analysis.default_dictionaries()[k] for k in ("affine", "degree 2")}
    found = analysis.ladder(
        net, TRAIN[:24], x_test=TEST, key=KEY, stored=False, dictionaries=some, logits=False,
        task="classification",
    )  # fmt: skip
    assert all(np.isfinite(rung.kl) for rung in found.rungs)
    assert found.find("degree 2").observables == 15


def test_second_call_compiles_nothing(mlp):
    other, compiled = models.MLP((4, 6, 6, 3), rngs=nnx.Rngs(9)), []
    climb(mlp, ranks=(1,))
    listen = lambda event, *_, **about: event == EVENT and compiled.append(about.get("fun_name"))
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        climb(other, ranks=(2,), alphas=(1e-5,))
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert compiled == []


def test_results_are_json_and_tables(quadratic):
    found = json.loads(json.dumps(quadratic.to_dict()))
    assert found["replaced"][0]["message"] == "success"
    assert found["span"]["start"] == quadratic.span[0]
    lines = quadratic.table().splitlines()
    assert len(lines) == 1 + len(quadratic.rungs)
    assert len(quadratic.rows()) == len(quadratic.rungs)
    assert quadratic.disagreements("degree 2").size == 0
    wrong = quadratic.disagreements("mean")
    assert len(wrong) == round((1 - quadratic.find("mean").agreement) * len(TEST))


def test_weights_are_those_of_the_samples(mlp):
    """What weighs two counts as two, and what weighs nothing not at all."""
    weights = np.repeat(np.float32([0, 0, 2, 1]), 100)
    first = climb(mlp, weights=weights, refit=False)
    twice = np.concatenate([TRAIN[200:300], TRAIN[200:300], TRAIN[300:], TRAIN[300:]])
    second = analysis.ladder(
        mlp, twice, VAL, None, TEST, first.labels, key=KEY, dictionaries=TWO, ranks=(1, 2),
        alphas=(1e-9,), refit=False, stored=False, weights=np.repeat(np.float32([1, 1, 1, 0]), 100),
    )  # fmt: skip
    np.testing.assert_allclose(
        first.fits["degree 2"].forms.matrix, second.fits["degree 2"].forms.matrix, atol=1e-3
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ranks": (0,)}, "ranks of at least 1"),
        ({"alphas": (0.0,)}, "all above 0"),
        ({"alphas": ()}, "at least one ridge"),
        ({"choose": "luck"}, "choose='kl'"),
        ({"choose": "accuracy"}, "y_val"),
        ({"task": "poetry"}, "a task among"),
        ({"metric": "mile"}, "a metric among"),
        ({"metric": np.eye(2)}, "a metric of shape"),
        ({"dictionaries": {}}, "at least one dictionary"),
        ({"dictionaries": {"mean": TWO["affine"]}}, "another name"),
        ({"dictionaries": {"odd": lambda s: 3}}, "observables"),
        ({"weights": np.ones(3)}, "weights of shape"),
        ({"at": ("layers.9", "output")}, "layers.9"),
    ],
)
def test_mistakes_are_told(mlp, given, message):
    with pytest.raises(ValueError, match=message):
        climb(mlp, **given)


def test_wrong_data_are_told(mlp):
    go = lambda *sets, **more: analysis.ladder(mlp, *sets, key=KEY, dictionaries=TWO, **more)
    with pytest.raises(ValueError, match="x_test"):
        go(TRAIN)
    with pytest.raises(ValueError, match="n > 0"):
        go(TRAIN[:0], x_test=TEST)
    with pytest.raises(ValueError, match="n > 0"):
        go(TRAIN, x_test=TEST[:0])
    with pytest.raises(ValueError, match="finite numbers in x_train"):
        go(np.full((5, 4), np.nan, np.float32), x_test=TEST)
    with pytest.raises(ValueError, match="100 labels"):
        go(TRAIN, x_test=TEST, y_test=np.zeros(3, int))
    with pytest.raises(ValueError, match="integer classes"):
        go(TRAIN, x_test=TEST, y_test=np.zeros(100))
    with pytest.raises(ValueError, match="fit"):
        go(TRAIN, x_test=TEST, memory_limit=10)
    found = climb(mlp)
    with pytest.raises(ValueError, match="a rung among"):
        found.find("degree 7")
    with pytest.raises(ValueError, match="a rank from 1"):
        found.block("degree 2", 99)


@pytest.mark.slow
def test_embedded_digits_keep_their_accuracy():
    sets = data.load("digits").flat()
    x, y = sets.train_and_val()
    model = models.MLP((64, 24, 24, 10), rngs=nnx.Rngs(0))
    model = models.train(
        model, x, y, key=KEY, epochs=30, batch_size=64, learning_rate=4e-3, weight_decay=0.3
    ).model
    found = analysis.ladder(
        model, sets.x_train, sets.x_val, None, sets.x_test, sets.y_test, key=KEY, ranks=(9,),
        dictionaries={"degree 2": analysis.default_dictionaries()["degree 2"]}, stored=False,
    )  # fmt: skip
    assert found.original["accuracy"] > 0.94
    assert found.find("degree 2").accuracy > found.original["accuracy"] - 0.01
    assert found.find("mean").accuracy < 0.2


def test_a_richer_rung_holds_the_poorer_beyond_the_limit(mlp):
    """On the samples of the fit, R² does not fall from rung to rung where few products fit."""
    known = analysis.default_dictionaries(limit=10, directions=3)
    found = analysis.ladder(
        mlp, TRAIN, x_test=TRAIN, key=KEY, at=("input", "output"), ranks=(), logits=False,
        alphas=(1e-6,), stored=False, task="regression",
        dictionaries={name: known[name] for name in known if name.startswith(("affine", "degree"))},
    )  # fmt: skip
    rungs = [found.find(name) for name in ("affine", "degree 2", "degree 3, leading 3")]
    assert rungs[1].observables <= 10
    scores = [rung.agreement for rung in rungs]
    assert all(b > a + 0.05 for a, b in itertools.pairwise(scores))
    assert scores[-1] > 0.8


def test_one_output_is_measured_by_r2_and_a_logit_by_its_sign():
    random = np.random.default_rng(5)
    w = [jnp.asarray(random.normal(size=s), jnp.float32) for s in ((4, 4), (4, 1))]
    net = lambda p, x: jnp.tanh(x @ p[0]) @ p[1]
    x = random.normal(size=(400, 4)).astype(np.float32)
    common = {"key": KEY, "dictionaries": {"affine": TWO["affine"]}, "ranks": (), "stored": False}
    common |= {"at": ("input", "params.0/tanh"), "logits": False}
    found = analysis.ladder((net, w), x[:200], x_test=x[200:], **common)
    out = np.asarray(net(w, x[200:]), np.float64)
    identity = x[200:] @ np.asarray(w[1], np.float64)
    wanted = 1 - ((identity - out) ** 2).sum() / ((out - out.mean()) ** 2).sum()
    assert found.rungs[0].dictionary == "identity"
    assert found.rungs[0].agreement == pytest.approx(wanted, rel=1e-4)
    assert "R²" in found.sentence()
    y = (out[:, 0] > 0.2).astype(int)
    signs = analysis.ladder((net, w), x[:200], x_test=x[200:], y_test=y, **common)
    assert signs.original["accuracy"] == pytest.approx(np.mean((out[:, 0] > 0) == y))
    assert signs.rungs[0].accuracy == pytest.approx(np.mean((identity[:, 0] > 0) == y))
