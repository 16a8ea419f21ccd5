"""A span of a small network of drawn weights, replaced by dictionaries and by tensor trains."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from koopjax import analysis, data, models, observables as ob, surgery
from tests.goldens.golden_fits import entries

#: Divergences are small differences of what the network says.
LOOSE = {"plane": 1e-4}
SPAN = ("layers.0/relu", "layers.2/relu")


@functools.cache
def problem():
    """The network, and inputs to fit on, to choose by and to measure on, with its answers."""
    x = data.load("digits").flat().train_and_val()[0][:400]
    network = models.MLP((64, 10, 10, 10, 10), rngs=nnx.Rngs(0))
    rng = np.random.default_rng(5)
    for layer in network.layers:
        shape = layer.kernel.shape
        kernel = rng.normal(size=shape) * math.sqrt(2 / shape[0])
        layer.kernel[...] = jnp.asarray(kernel, jnp.float32)
        layer.bias[...] = jnp.asarray(0.3 * rng.normal(size=shape[1]), jnp.float32)
    answers = np.asarray(models.predict(network, x[300:])).argmax(-1)
    return network, x[:240], x[240:300], x[300:], answers


def scores(rungs):
    numbers = ("accuracy", "agreement", "kl", "r2", "observables", "numbers", "result")
    return entries(
        [
            {
                "name": f"{rung.name}, {rung.truncation}, {rung.target}",
                "alpha": math.nan if rung.alpha is None else rung.alpha,
                **{name: getattr(rung, name) for name in numbers},
            }
            for rung in rungs
        ]
    )


def ladder():
    network, train, val, test, labels = problem()
    dictionaries = {"affine": lambda s: ob.Monomials(1), "degree 2": lambda s: ob.Monomials(2)}
    found = analysis.ladder(
        network, train, val, None, test, labels, key=jax.random.key(0), at=SPAN, ranks=(1, 4),
        dictionaries=dictionaries, alphas=(1e-3, 1.0), stored=False, logits=False,
    )  # fmt: skip
    values = {f"values of {k}": np.asarray(v) for k, v in found.singular_values.items()}
    choices = [f"{name}: {alpha:g}" for name, alpha in found.choices.items()]
    return {**scores(found.rungs), **values, "choices": choices, "sentence": found.sentence(0.2)}


def plane():
    network, train, val, test, labels = problem()
    found = analysis.plane(
        network, train, val, test, labels, key=jax.random.key(0), at=SPAN, degrees=(2,),
        ranks=(3,), latent=3, alphas=(1e-2, 1.0), sweeps=2, outputs=4, reference=None,
        stored=False,
    )  # fmt: skip
    shares = found.spectrum(2, 3)
    return {
        **scores(found.points),
        "ranks": [point.ranks for point in found.points],
        "validation": list(found.validation.values()),
        "orders": [*shares.orders, shares.beyond],
        "total": shares.total,
        "bonds": np.concatenate(found.bond_singular_values(2, 3)),
    }


def metric():
    network, train, *_ = problem()
    head, span, tail = surgery.split(network, train[:2], SPAN)
    return {"softmax": analysis.output_metric(tail, span(head(train[:40])), kind="softmax")}


CASES = {"ladder": ladder, "plane": plane, "output metric": metric}
