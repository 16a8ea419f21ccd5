"""Gram statistics of quadratic monomials: rate against a plain matrix product, and peak memory.

`python benchmarks/bench_gram.py` times, by turns in one process, the Gram matrix of 5,151
observables over 60,000 samples (the dictionary built on the way) and a plain product `F.T @ F` of
the same size on an `F` that lies in memory, both float32 and both counted as 2 n p² operations;
beside them the float64 accumulation and the R factor, on fewer samples and counted alike. Then it
measures, each in a fresh process, the peak memory of a stream of n and 2n generated samples.
"""

import argparse
import json

import jax
import jax.numpy as jnp
import numpy as np
from _timing import in_subprocess, interleaved, peak_bytes, summary, write

from koopjax import edmd
from koopjax.observables import Identity, Monomials

OUTPUTS = 10


def snapshots(n: int, d: int, key: int) -> tuple[jax.Array, jax.Array]:
    """States and targets of a regression onto a few outputs."""
    first, second = jax.random.split(jax.random.key(key))
    x = jax.random.uniform(first, (n, d), minval=-1.0)
    return x, jnp.tanh(x @ jax.random.normal(second, (d, OUTPUTS)))


@jax.jit
def plain(f: jax.Array) -> jax.Array:
    """The product to compare with."""
    return f.T @ f


def rates(n: int, d: int, repeats: int, heavy: int) -> dict:
    """Wall times and rates of all variants, by turns."""
    psi = Monomials(2)
    p = psi.size(d)
    x, y = snapshots(n, d, 0)
    f = jax.random.uniform(jax.random.key(1), (n, p))
    few_x, few_y = x[:heavy], y[:heavy]

    def accumulate(x, y, statistics, dtype):
        return edmd.accumulate(
            psi, x, y, target=Identity(), statistics=statistics, accumulate_dtype=dtype
        )

    main = interleaved(
        {
            "plain_product_float32": lambda: plain(f),
            "gram_float32": lambda: accumulate(x, y, "gram", jnp.float32),
        },
        repeats,
    )
    del f
    beside = interleaved(
        {
            "gram_float64": lambda: accumulate(few_x, few_y, "gram", jnp.float64),
            "rfactor_float32": lambda: accumulate(few_x, few_y, "rfactor", jnp.float32),
        },
        max(1, repeats // 3),
    )
    rows = {}
    for times, count in ((main, n), (beside, heavy)):
        for name, values in times.items():
            rate = 2 * count * p * p / min(values) / 1e9
            rows[name] = {**summary(values), "samples": count, "gflops_2npp": rate}
    ratio = rows["gram_float32"]["gflops_2npp"] / rows["plain_product_float32"]["gflops_2npp"]
    pairs = zip(main["plain_product_float32"], main["gram_float32"], strict=True)
    return {
        "samples": n,
        "observables": p,
        "rates": rows,
        "gram_over_plain": ratio,
        "gram_over_plain_by_turn": [a / b for a, b in pairs],
    }


def stream(n: int, d: int, batch: int, statistics: str) -> None:
    """Child process: statistics of generated batches; prints the peak memory."""
    rng = np.random.default_rng(0)

    def batches():
        for _ in range(0, n, batch):
            x = rng.uniform(-1, 1, size=(batch, d)).astype(np.float32)
            yield x, np.tanh(x[:, :OUTPUTS])

    result = edmd.accumulate(Monomials(2), batches(), target=Identity(), statistics=statistics)
    jax.block_until_ready(result)
    print(json.dumps({"samples": float(result.count), "peak_bytes": peak_bytes()}))


def resident(n: int, d: int, batch: int) -> None:
    """Child process: the same for arrays in memory, whose lifted form would not fit at once."""
    x, y = snapshots(n, d, 0)
    result = edmd.accumulate(Monomials(2), x, y, target=Identity(), batch_size=batch)
    jax.block_until_ready(result)
    print(json.dumps({"samples": float(result.count), "peak_bytes": peak_bytes()}))


def memory(n: int, d: int) -> dict:
    """Peak memory at n and 2n samples; the difference is what grows with the samples."""
    found = {}
    for name, arguments in {
        "stream_gram": ["--child", "gram"],
        "stream_rfactor": ["--child", "rfactor"],
        "arrays_gram": ["--child", "arrays"],
    }.items():
        one, two = (
            in_subprocess(__file__, *arguments, "--samples", str(k * n), "--inputs", str(d))
            for k in (1, 2)
        )
        found[name] = {
            "samples": [one["samples"], two["samples"]],
            "peak_mib": [one["peak_bytes"] / 2**20, two["peak_bytes"] / 2**20],
            "growth_mib": (two["peak_bytes"] - one["peak_bytes"]) / 2**20,
            "data_growth_mib": 4 * n * (d + OUTPUTS) / 2**20,
        }
    return found


def main() -> None:
    """Parse arguments, measure, write the JSON, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=60_000)
    parser.add_argument("--inputs", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--heavy", type=int, default=12_000, help="samples for float64 and R")
    parser.add_argument("--memory-inputs", type=int, default=40)
    parser.add_argument("--skip-memory", action="store_true")
    parser.add_argument("--child", choices=["gram", "rfactor", "arrays"], help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child == "arrays":
        return resident(given.samples, given.inputs, 2_000)
    if given.child:
        return stream(given.samples, given.inputs, 2_000, given.child)
    results = rates(given.samples, given.inputs, given.repeats, given.heavy)
    if not given.skip_memory:
        results["memory"] = memory(given.samples, given.memory_inputs)
    write("gram", results)
    print(json.dumps(results, indent=2))
    return None


if __name__ == "__main__":
    main()
