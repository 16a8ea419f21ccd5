"""Latency of compressed networks at a tenth of the bytes, against the original, in one run.

`python benchmarks/compressed_latency.py` builds 784-100-100-100-10 and every form that compression
makes of it (random numbers; latency does not depend on them), stores each, and times them by turns
at batch 1 and 256, compiled with the arrays as arguments: as they are stored, and after
`nn.decoded`, which puts stored forms together once, as one would after loading them to serve.
"""

import argparse
import functools
import random
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from _timing import write
from flax import nnx

from koopjax import export, models, nn, observables as obs

SIZES = (784, 100, 100, 100, 10)


@functools.partial(jax.jit, static_argnames="structure")
def call(leaves, x, *, structure):
    """A module from its arrays."""
    return jax.tree.unflatten(structure, leaves)(x)


def pruned(array, share: float, key):
    """An array with this share of its entries."""
    return jnp.where(jax.random.uniform(key, array.shape) < share, array, 0)


def layers(key) -> list:
    """Dense operators of the original's sizes, with biases."""
    keys = jax.random.split(key, len(SIZES) - 1)
    pairs = zip(keys, SIZES[:-1], SIZES[1:], strict=True)
    return [nn.Dense.create(k, a, b, use_bias=True) for k, a, b in pairs]


def koopman(key, *, axes: bool, hidden: int | None, share: float) -> nn.KoopmanBlock:
    """A Koopman block as `compress.koopman_student` makes them, pruned to a share."""
    keys = iter(jax.random.split(key, 12))
    normal = lambda *shape: pruned(
        jax.random.normal(next(keys), shape) / shape[0] ** 0.5, share, next(keys)
    )
    psi = obs.Project(normal(784, 24))
    if axes:
        psi = obs.Compose(obs.Kronecker((normal(28, 10), normal(28, 10))),
                          obs.Project(normal(100, 24)))  # fmt: skip
    psi = obs.Compose(psi, obs.Standardize(jnp.ones(24)))
    psi = obs.Compose(psi, obs.Monomials(2))
    if hidden is not None:
        psi = obs.Compose(psi, obs.Compose(obs.Project(normal(325, hidden)), obs.Monomials(2)))
    return nn.KoopmanBlock(psi, nn.Dense(normal(psi.size(784), 10)))


def networks() -> dict[str, nnx.Module]:
    """The original and its compressed forms, each at a tenth of the bytes or less."""
    key = jax.random.key(0)
    dense = layers(key)
    relus = ("relu",) * 3
    matrices = [(op.matrix.get_value(), op.bias.get_value()) for op in dense]
    sparse = [(pruned(w, 0.082, key), b) for w, b in matrices]
    modes = (((4, 7, 7, 4), (5, 2, 2, 5)), *[((10, 10), (10, 10))] * 2)
    trains = [nn.TT.create(k, *m, 8, use_bias=True)
              for k, m in zip(jax.random.split(key, 3), modes, strict=True)]  # fmt: skip
    ranks = (6, 7, 7, 5)
    thin = [
        nn.LowRank.create(k, a, b, r, use_bias=True)
        for k, a, b, r in zip(jax.random.split(key, 4), SIZES[:-1], SIZES[1:], ranks, strict=True)
    ]
    return {
        "original": models.MLP(SIZES, rngs=nnx.Rngs(0)),
        "koopman": koopman(key, axes=True, hidden=None, share=1.0),
        "koopman_chain": koopman(key, axes=True, hidden=12, share=1.0),
        "koopman_sparse": koopman(key, axes=False, hidden=12, share=0.25),
        "pruned": nn.Stack([nn.Dense(w, b) for w, b in sparse], relus),
        "sparse": nn.Stack([nn.Sparse.from_dense(w, b) for w, b in sparse], relus),
        "low_rank": nn.Stack(thin, relus),
        "tensor_train": nn.Stack([*trains, nn.Dense.create(key, 100, 10, use_bias=True)], relus),
        "clustered": nn.Stack(
            [nn.Clustered.from_dense(w, 8, b) for w, b in matrices], relus
        ),
        "quantized": nn.Stack(
            [nn.Quantized.from_dense(w, bits=4, bias=b) for w, b in matrices], relus
        ),
        "small_network": nn.Stack(
            [nn.Dense.create(key, 784, 11), nn.Dense.create(key, 11, 22, use_bias=True),
             nn.Dense.create(key, 22, 10, use_bias=True)], ("identity", "relu"),
        ),
    }  # fmt: skip


def main() -> None:
    """Time all forms by turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=200)
    args = parser.parse_args()
    made = networks()
    original = export.stored_bytes(made["original"])
    rows = {
        name: {"stored_bytes": (stored := export.stored_bytes(m)), "ratio": original / stored}
        for name, m in made.items()
    }
    for batch in (1, 256):
        x = jnp.asarray(np.random.default_rng(0).random((batch, 784)), jnp.float32)
        runs = {}
        for name, model in made.items():
            for how, one in (("stored", model), ("decoded", nn.decoded(model))):
                leaves, structure = jax.tree.flatten(one)
                runs[name, how] = functools.partial(call, leaves, x, structure=structure)
        times: dict = {k: [] for k in runs}
        for run in runs.values():
            jax.block_until_ready(run())
        order = list(runs)
        for turn in range(args.repeats):
            random.Random(turn).shuffle(order)
            for k in order:
                start = time.perf_counter()
                jax.block_until_ready(runs[k]())
                times[k].append(time.perf_counter() - start)
        for name, how in runs:
            own, base = times[name, how], times["original", how]
            rows[name][f"{how}_{batch}"] = {
                "median_us": 1e6 * statistics.median(own), "best_us": 1e6 * min(own),
                "over_original": statistics.median(own) / statistics.median(base),
                "best_over_original": min(own) / min(base),
            }  # fmt: skip
    for name, row in rows.items():
        figures = [
            f"{how} {batch}: {row[f'{how}_{batch}']['over_original']:.2f}"
            for how in ("stored", "decoded") for batch in (1, 256)
        ]  # fmt: skip
        print(f"{name:15} {row['ratio']:5.1f}x  " + "  ".join(figures))
    write("compressed_latency", {"repeats": args.repeats, "sizes": SIZES, "networks": rows})


if __name__ == "__main__":
    main()
