"""Latency of TT blocks against the dense layers that they replace, at batch 1 and 256.

`python benchmarks/latency.py` times, by turns in one process and compiled with the arrays as
arguments, the middle layers of a 100- and of a 512-wide perceptron, the Koopman blocks (dense,
low-rank, TT in each order of contraction) that can stand in their place, and a layer 784→625
against TT layers of the same width. Beside each time stand the operations of one call; at the end
what the automatic choice took, and how it compares with the dense layers and the best form.
"""

import argparse
import functools
import json
import random
import statistics
import time

import jax
import jax.numpy as jnp
from _timing import write

from koopjax import nn, observables as obs, tt

LATENT, RANK, DEGREE = 8, 4, 2
LAYER = ((7, 4, 7, 4), (5, 5, 5, 5))


@functools.partial(jax.jit, static_argnames="structure")
def call(leaves, x, *, structure):
    """A module from its arrays."""
    return jax.tree.unflatten(structure, leaves)(x)


def span(width: int) -> dict:
    """Two dense layers with activations, and blocks in their place: module and operations."""
    keys = jax.random.split(jax.random.key(0), 6)
    dense = [nn.Dense.create(k, width, width, use_bias=True) for k in keys[:2]]
    project = obs.Project(jax.random.normal(keys[2], (width, LATENT)) / width**0.5)
    family = obs.Polynomial1D(DEGREE, family="hermite")
    quadratic = obs.Compose(project, obs.Monomials(DEGREE))
    product = obs.Compose(project, obs.Product.of(family, LATENT))
    p = quadratic.size(width)
    modes = ((DEGREE + 1,) * LATENT, (*(1,) * (LATENT // 2), width, *(1,) * (LATENT // 2 - 1)))
    train = nn.TT.create(keys[3], *modes, RANK, use_bias=True, init="identity")
    into = nn.Dense.create(keys[4], p, width, use_bias=True)
    thin = nn.LowRank.create(keys[5], p, width, 10, use_bias=True)
    front = lambda n: 2 * n * width * LATENT
    found = {
        "dense_layers": (
            nn.Stack(dense, ("relu", "relu")),
            lambda n: sum(op.flops(n) for op in dense),
        ),
        "block_dense": (nn.KoopmanBlock(quadratic, into), lambda n: front(n) + into.flops(n)),
        "block_low_rank": (nn.KoopmanBlock(quadratic, thin), lambda n: front(n) + thin.flops(n)),
    }
    for form in tt.FORMS:
        block = nn.with_form(nn.KoopmanBlock(product, train), form)
        flops = lambda n, op=block.operator: front(n) + op.flops(n, kind="product")
        found[f"block_tt_{form}"] = (block, flops)
    return found


def layer(rank: int) -> dict:
    """A layer 784→625 and TT layers of the same width."""
    first, then = jax.random.split(jax.random.key(1))
    dense = nn.Dense.create(first, 784, 625, use_bias=True)
    train = nn.TT.create(then, *LAYER, rank, use_bias=True)
    found = {"dense_layers": (dense, dense.flops)}
    for form in ("auto", "chain", "grouped", "dense"):
        made = nn.with_form(train, form)
        found[f"layer_tt_{form}"] = (made, made.flops)
    return found


def measure(rows: dict, width: int, n: int, repeats: int) -> dict:
    """Times of all rows by turns."""
    x = jax.random.normal(jax.random.key(2), (n, width))
    parts = {name: jax.tree.flatten(module) for name, (module, _) in rows.items()}
    for leaves, structure in parts.values():
        for _ in range(3):
            jax.block_until_ready(call(leaves, x, structure=structure))
    times: dict[str, list[float]] = {name: [] for name in parts}
    turns = list(parts.items())
    shuffle = random.Random(0).shuffle  # whoever follows the largest weights finds a full cache
    for _ in range(repeats):
        shuffle(turns)
        for name, (leaves, structure) in turns:
            start = time.perf_counter()
            jax.block_until_ready(call(leaves, x, structure=structure))
            times[name].append(time.perf_counter() - start)
    found = {
        name: {
            "flops": rows[name][1](n),
            "best_us": 1e6 * min(values),
            "median_us": 1e6 * statistics.median(values),
        }
        for name, values in times.items()
    }
    reference = found["dense_layers"]
    for row in found.values():
        row["flops_ratio"] = row["flops"] / reference["flops"]
        row["time_ratio"] = row["median_us"] / reference["median_us"]
        row["best_ratio"] = row["best_us"] / reference["best_us"]
    return found


def chosen(rows: dict, found: dict, n: int) -> dict:
    """What `form="auto"` took, and how it stands against the fastest form."""
    (name,) = [name for name in rows if name.endswith("_tt_auto")]
    module, _ = rows[name]
    operator, kind = getattr(module, "operator", module), "vector"
    if operator is not module:
        kind = "product"
    order = tt.contraction_order(operator.ranks, *operator.modes, n, kind=kind)
    forms = {key: row for key, row in found.items() if "_tt_" in key and key != name}
    fastest = min(forms, key=lambda key: forms[key]["median_us"])
    return {
        "auto_takes": order.form,
        "groups": [list(group) for group in order.groups],
        "expected_us": 1e6 * order.seconds,
        "fastest_form": fastest.rsplit("_", 1)[1],
        "auto_over_fastest": found[name]["median_us"] / forms[fastest]["median_us"],
        "auto_over_dense_layers": found[name]["time_ratio"],
        "fewer_flops_than_dense_layers": found[name]["flops_ratio"] < 1,
    }


def main() -> None:
    """Parse arguments, measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=300)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 256])
    given = parser.parse_args()
    cases = {f"span_{width}": (span(width), width) for width in (100, 512)}
    cases |= {f"layer_784_625_rank_{rank}": (layer(rank), 784) for rank in (2, 4, 16)}
    results: dict = {}
    for name, (rows, width) in cases.items():
        if given.only not in name:
            continue
        for n in given.batches:
            found = measure(rows, width, n, given.repeats)
            picked = chosen(rows, found, n)
            results[f"{name}_batch_{n}"] = {"rows": found, "choice": picked}
            print(f"\n{name}, batch {n}")
            for key, row in found.items():
                print(
                    f"  {key:18s} {row['flops']:>12,} flop  {row['median_us']:9.1f} us median "
                    f"{row['best_us']:9.1f} us best  {row['time_ratio']:6.2f} of dense layers"
                )
            print("  " + json.dumps(picked))
    settings = {"latent": LATENT, "rank": RANK, "degree": DEGREE, "repeats": given.repeats}
    if not given.only:
        print(
            write("latency", {"settings": settings, "dtype": str(jnp.float32(0).dtype), **results})
        )


if __name__ == "__main__":
    main()
