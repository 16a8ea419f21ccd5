"""No public verb compiles anything on its second call with arrays of the same shapes."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from koopjax import edmd, export, models, nn, observables as ob, surgery, sweep

EVENT = "/jax/core/compile/backend_compile_duration"
compilations: list[str] = []


def _listen(event, _seconds, **_):
    if event == EVENT:
        compilations.append(event)


@pytest.fixture(scope="module", autouse=True)
def listener():
    jax.monitoring.register_event_duration_secs_listener(_listen)
    yield
    jax.monitoring.unregister_event_duration_listener(_listen)


@contextlib.contextmanager
def counted():
    before = len(compilations)
    counter = {}
    yield counter
    counter["new"] = len(compilations) - before


def snapshots(seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(60, 3)).astype(np.float32)
    return jnp.asarray(x), jnp.asarray(np.tanh(x @ rng.normal(size=(3, 3)).astype(np.float32)))


def network(seed):
    return models.MLP((3, 8, 8, 8, 4), rngs=nnx.Rngs(seed))


def fit(seed, **settings):
    x, y = snapshots(seed)
    return edmd.fit(ob.Monomials(2), x, y, **settings), x, y


def dictionaries(seed):
    x, _ = snapshots(seed)
    psi = ob.Compose(ob.Standardize.fit(x), ob.Concat(ob.Identity(), ob.Orthogonal(2)))
    rbf = ob.GaussianRBF.fit(x, 5, jax.random.key(seed))
    return psi(x), rbf(x), ob.RandomFourier.create(jax.random.key(seed), 3, 6, 1.0)(x)


def koopman(seed):
    koop, x, y = fit(seed)
    spectral = koop.eigenvalues(), koop.eigenfunctions(x), koop.modes(), koop.residuals(x, y)
    return koop.predict(x, steps=2), spectral


def solvers(seed):
    x, y = snapshots(seed)
    out = [
        edmd.fit(ob.Monomials(2), x, y, target=ob.Identity(), solver=solver).matrix
        for solver in (edmd.Ridge(1e-3 * (seed + 1)), edmd.TruncatedSVD(3), edmd.ReducedRank(2))
    ]
    chosen = edmd.CrossValidated(edmd.Ridge(0.0), jnp.asarray([1e-3, 1e-1]))
    return *out, edmd.fit(ob.Monomials(2), x, y, solver=chosen).matrix


def streamed(seed):
    x, y = snapshots(seed)
    pairs = [(x[:25], y[:25]), (x[25:50], y[25:50]), (x[50:], y[50:])]
    return edmd.fit(ob.Monomials(2), pairs).matrix, fit(seed, statistics="rfactor")[0].matrix


def cut(seed):
    model, (x, _) = network(seed), snapshots(seed)
    head, span, tail = surgery.split(model, x, at=surgery.middle(model, x))
    step = jax.value_and_grad(lambda part, v: jnp.sum(part(v) ** 2))
    return tail(span(head(x))), step(span, head(x))


def spliced(seed):
    model, (x, _) = network(seed), snapshots(seed)
    at = surgery.middle(model, x)
    before, after = zip(*surgery.capture(model, x, at=at), strict=True)
    koop = edmd.fit(
        ob.Monomials(2), jnp.concatenate(before), jnp.concatenate(after), target=ob.Identity()
    )
    block = nn.from_koopman(koop)
    return surgery.splice(model, x, at, block)(x), export.stored_bytes(model)


def trained(seed):
    x, _ = snapshots(seed)
    y = jnp.arange(60) % 4
    done = models.train(network(seed), x, y, key=jax.random.key(seed), epochs=2, batch_size=20)
    return models.accuracy(done.model, x, y), models.predict(done.model, x)


def damped(x, y, *, degree, alpha):
    psi = ob.Monomials(degree)(x)
    solved = edmd.solve(edmd.Gram.from_batch(psi, y), edmd.Ridge(alpha))
    return {"residual": solved.info.residual, "result": solved.result}


def swept(seed):
    x, y = snapshots(seed)
    axes = {"degree": [1, 2], "alpha": [1e-3 * (seed + 1), 1e-1, 1.0]}
    table = sweep.grid(damped, axes, data=(x, y), static="degree", chunk=2)
    statistics = edmd.Gram.from_batch(ob.Monomials(2)(x), y)
    ranks = sweep.ranks(statistics, alpha=[1e-3, 1e-2 * (seed + 1)])
    psi, key = ob.Product.of(ob.Polynomial1D(1), 3), jax.random.key(seed)
    trains = sweep.ranks(psi, x, y, [1, 2], key, alpha=1e-3 * (seed + 1), sweeps=1)
    return table["residual"], ranks["error"], trains["error"]


VERBS = [dictionaries, koopman, solvers, streamed, cut, spliced, trained, swept]


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.__name__)
def test_second_call_compiles_nothing(verb):
    with counted() as first:
        jax.block_until_ready(verb(0))
    assert first["new"] > 0
    with counted() as second:
        jax.block_until_ready(verb(1))
    assert second["new"] == 0
