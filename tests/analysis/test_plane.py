"""The plane of degrees and tensor-train ranks, and what bonds carry."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name

from koopjax import analysis, export, surgery, tensor_edmd, tt
from koopjax.analysis._trains import truncated
from koopjax.observables import Polynomial1D, Product

SETTINGS = {"degrees": (1, 2), "ranks": (1, 4), "latent": 3, "alphas": (1e-6,), "sweeps": 3}


def network(params, x):
    """Between the names a product of two coordinates and a square: degree 2 exactly."""
    h = checkpoint_name(x @ params["before"], "before")
    y = jnp.concatenate([h[:, :1] * h[:, 1:2], h[:, 1:2] ** 2, h[:, 2:3]], axis=1)
    return checkpoint_name(y, "after") @ params["after"]


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    params = {"before": rng.normal(size=(5, 3)), "after": rng.normal(size=(3, 4))}
    params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), params)
    x = jnp.asarray(rng.normal(size=(600, 5)), jnp.float32)
    labels = network(params, x).argmax(-1)
    return (network, params), x[:400], x[400:500], x[500:], labels[500:]


@pytest.fixture(scope="module")
def plane(problem):
    model, train, val, test, labels = problem
    with jax.numpy_rank_promotion("raise"):
        return analysis.plane(
            model, train, val, test, labels, at=("before", "after"), key=jax.random.key(0),
            **SETTINGS,
        )  # fmt: skip


def test_a_span_of_degree_two_needs_degree_two_and_a_rank(plane):
    assert plane.original["accuracy"] == 1
    full = plane.find(2, 4)
    assert full.accuracy >= 0.99
    assert full.r2 > 0.9999
    assert plane.find(1, 4).accuracy < 0.9
    assert plane.find(2, 1).accuracy < 0.9
    assert plane.least(0.02) is full
    assert plane.least(1.0) is plane.find(1, 1)
    assert "degree 2 at tensor-train rank 4 is enough" in plane.sentence(0.02)
    assert [rung.dictionary for rung in plane.nulls] == ["identity", "mean", "affine", "degree 2"]
    assert plane.nulls[3].accuracy >= 0.99


def test_points_say_what_is_stored_and_the_spliced_model_scores_it(plane, problem, tmp_path):
    model, _, _, test, labels = problem
    point = plane.find(2, 4)
    train = plane.trains[2, 4]
    cores = sum(np.size(core) for core in train.fit.train.cores)
    # Projection with mean, two numbers a coordinate to scale, cores, readout with bias.
    coded = train.readout.matrix.shape[0]
    assert point.numbers == (3 * 3 + 3) + 2 * 3 + cores + coded * 3 + 3
    assert point.observables == 3**3
    made = plane.spliced(2, 4)
    output = made(test)
    assert float(np.mean(np.asarray(output).argmax(-1) == labels)) == pytest.approx(point.accuracy)
    assert export.save(made, tmp_path / "made.koopjax") == point.stored_bytes
    state = surgery.split(model, test[:2], ("before", "after"))[0](test)
    want = train.predict(state)
    np.testing.assert_allclose(plane.block(2, 4)(state), want, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_choices_are_kept_and_seeds_summarised(plane, problem):
    model, train, _, test, labels = problem
    again = analysis.plane(
        model, train, None, test, labels, at=("before", "after"), key=jax.random.key(1),
        choices=plane.choices, reference="nulls", stored=False, **SETTINGS,
    )  # fmt: skip
    assert again.choices == plane.choices
    assert [rung.dictionary for rung in again.nulls] == ["identity", "mean"]
    assert np.isnan(again.validation[2, 4])
    found = analysis.summarize_planes([plane, again.to_dict()])
    row = next(r for r in found["rows"] if (r["degree"], r["rank"]) == (2, 4))
    values = [plane.find(2, 4).accuracy, again.find(2, 4).accuracy]
    assert row["accuracy"] == pytest.approx(np.mean(values))
    assert row["accuracy_std"] == pytest.approx(np.std(values, ddof=1))
    assert row["loss"] == pytest.approx(1 - np.mean(values), abs=1e-6)
    assert [r["dictionary"] for r in found["nulls"]] == ["identity", "mean"]
    assert "over 3 latent coordinates and 2 seeds" in found["sentence"]
    assert "loss_upper" in row


def test_without_labels_agreement_decides(problem):
    model, train, val, test, _ = problem
    found = analysis.plane(
        model, train, val, test, at=("before", "after"), key=jax.random.key(0), stored=False,
        reference=None, **SETTINGS,
    )  # fmt: skip
    assert found.find(2, 4).accuracy is None
    assert found.find(2, 4).agreement >= 0.99
    assert "agreement" in found.sentence(0.02)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"degrees": (0,)}, "degrees of at least 1"),
        ({"ranks": ()}, "ranks of at least 1"),
        ({"latent": 4}, "latent from 1 to 3"),
        ({"family": "fourier"}, "family"),
        ({"alphas": (-1.0,)}, "ridge"),
        ({"choices": {(1, 1): 1e-3}}, r"\(1, 4\)"),
        ({"reference": "none"}, "reference"),
        ({"x_test": None}, "x_test"),
    ],
)
def test_mistakes_are_named(problem, change, says):
    model, train, val, test, _ = problem
    settings = {**SETTINGS, "x_test": test, "reference": "nulls", **change}
    with pytest.raises(ValueError, match=says):
        analysis.plane(
            model, train, val, at=("before", "after"), key=jax.random.key(0), stored=False,
            **settings,
        )  # fmt: skip


def unfoldings(dense):
    """Singular values of every unfolding."""
    shape = dense.shape
    return [
        np.linalg.svd(dense.reshape(int(np.prod(shape[:k])), -1), compute_uv=False)
        for k in range(1, len(shape))
    ]


def test_bond_singular_values_are_those_of_the_unfoldings():
    rng = np.random.default_rng(1)
    shapes = [(1, 3, 1, 2), (2, 2, 4, 3), (3, 3, 1, 1)]
    cores = [rng.normal(size=shape) for shape in shapes]
    with jax.enable_x64(True):
        train = tt.TTMatrix([jnp.asarray(core, jnp.float64) for core in cores])
    tensor = np.einsum("ai,ibqj,jc->abqc", cores[0][0, :, 0], cores[1], cores[2][:, :, 0, 0])
    found = analysis.bond_singular_values(train)
    # The output belongs to the right of the first bond and to the left of the second.
    np.testing.assert_allclose(found[0], unfoldings(tensor)[0][:2], rtol=1e-12)
    np.testing.assert_allclose(found[1], unfoldings(tensor)[2][:3], rtol=1e-12)


def test_with_samples_they_do_not_depend_on_the_basis_of_the_coordinates():
    rng = np.random.default_rng(2)
    x = jnp.asarray(rng.normal(size=(50, 3)))
    core = rng.normal(size=(2, 3, 1, 2))
    cores = [core[:1], core, core[..., :1]]
    # He_2 = (t² - 1) / √2: the same functions of a coordinate in another basis.
    change = np.array([[1, 0, 0], [0, 1, 0], [-(0.5**0.5), 0, 0.5**0.5]])
    other = [np.einsum("rmqs,mk->rkqs", c, change) for c in cores]
    with jax.enable_x64(True):
        fits = [
            types.SimpleNamespace(
                psi=Product.of(Polynomial1D(2, family), 3),
                train=tt.TTMatrix([jnp.asarray(c, jnp.float64) for c in chosen]),
            )
            for family, chosen in (("hermite", cores), ("monomial", other))
        ]
        found = [analysis.bond_singular_values(fit, x) for fit in fits]
    for first, second in zip(*found, strict=True):
        np.testing.assert_allclose(first, second, rtol=1e-5)
    plain = [analysis.bond_singular_values(fit)[0] for fit in fits]
    assert not np.allclose(plain[0], plain[1])


def test_cutting_bonds_loses_what_their_singular_values_say(plane, problem):
    test = problem[3]
    most = max(plane.trains[2, 4].fit.ranks)
    want = plane.spliced(2, 4)(test)
    np.testing.assert_allclose(plane.cut(2, 4, most)(test), want, rtol=1e-3, atol=1e-3)
    rng = np.random.default_rng(3)
    product = Product.of(Polynomial1D(2), 3)
    cores = [rng.normal(size=s) for s in ((1, 3, 1, 3), (3, 3, 2, 3), (3, 3, 1, 1))]
    with jax.enable_x64(True):
        train = tt.TTMatrix([jnp.asarray(core) for core in cores])
        fit = tensor_edmd.TensorKoopman(product, train, None, 0)
        x = jnp.asarray(rng.normal(size=(5, 3)))
        bonds = analysis.bond_singular_values(fit, x)
        # All combinations of what each coordinate takes: the product of the marginals.
        grid = jnp.stack(jnp.meshgrid(*x.T, indexing="ij"), axis=-1).reshape(-1, 3)
        for kept in (1, 2, 3):
            cut = truncated(analysis.SpanTrain(fit, None), kept, x).fit
            assert max(cut.ranks) <= kept
            lost = float(jnp.sum((fit.predict(grid) - cut.predict(grid)) ** 2)) / len(grid)
            tails = [float(np.sum(values[kept:] ** 2)) for values in bonds]
            assert max(tails) * (1 - 1e-9) <= lost + 1e-12
            assert lost <= sum(tails) * (1 + 1e-9) + 1e-12
