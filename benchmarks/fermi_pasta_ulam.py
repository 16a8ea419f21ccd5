"""Fermi-Pasta-Ulam: the error of the coefficient tensor that MANDy finds, its ranks and its time.

`python benchmarks/fermi_pasta_ulam.py` fits accelerations of chains of masses on all products of
`1, x, x², x³`, positions uniform in [-0.1, 0.1], 2,000 samples, float64. Errors are relative, in
the Frobenius norm of the plain coefficients, between trains: the exact coefficients are made a
train by TT-SVDs of their sparse entries, so that nothing has 4^d entries. What is minimised where
functions outnumber samples is the norm of the plain coefficients, too.
"""

import argparse
import json

import jax
import jax.numpy as jnp
import numpy as np
from _timing import seconds, summary, write

from koopjax.data.systems import FermiPastaUlam
from koopjax.observables import Polynomial1D, Product
from koopjax.tensor_edmd import mandy


def exact_train(system: FermiPastaUlam) -> list[np.ndarray]:
    """The coefficients as cores `(r, 4, s)`, the last `(r, 4 q)`, of the least ranks."""
    rows = dict(system.coefficients())
    cores = []
    for _ in range(system.d - 1):
        rank = len(next(iter(rows.values()))) // system.d
        tails = sorted({e[1:] for e in rows})
        block = np.zeros((rank, 4, len(tails), system.d))
        for e, v in rows.items():
            block[:, e[0], tails.index(e[1:])] = v.reshape(rank, system.d)
        u, s, vt = np.linalg.svd(block.reshape(rank * 4, -1), full_matrices=False)
        keep = s > 1e-12 * s[0]
        cores.append(u[:, keep].reshape(rank, 4, -1))
        rest = (s[keep, None] * vt[keep]).reshape(-1, len(tails), system.d)
        rows = {tail: rest[:, j].ravel() for j, tail in enumerate(tails)}
    rank = len(next(iter(rows.values()))) // system.d
    last = np.zeros((rank, 4, system.d))
    for e, v in rows.items():
        last[:, e[0]] = v.reshape(rank, system.d)
    return [*cores, last.reshape(rank, -1)]


def norm(cores: list[np.ndarray]) -> float:
    """Frobenius norm by QR from the left: no squares, so that small differences are seen."""
    carry = np.eye(1)
    for core in cores[:-1]:
        block = np.tensordot(carry, core, 1)
        carry = np.linalg.qr(block.reshape(-1, core.shape[2]), mode="r")
    return float(np.linalg.norm(carry @ cores[-1]))


def error(fit, exact: list[np.ndarray]) -> float:
    """`‖K − exact‖ / ‖exact‖`, of the train of the difference."""
    found = [np.asarray(c, np.float64) for c in fit.train.cores]
    found = [c[:, :, 0] for c in found[:-1]] + [found[-1].reshape(found[-1].shape[0], -1)]
    cores = [np.concatenate([found[0], exact[0]], axis=2)]
    for a, b in zip(found[1:-1], exact[1:-1], strict=True):
        core = np.zeros((a.shape[0] + b.shape[0], a.shape[1], a.shape[2] + b.shape[2]))
        core[: a.shape[0], :, : a.shape[2]] = a
        core[a.shape[0] :, :, a.shape[2] :] = b
        cores.append(core)
    cores.append(np.concatenate([found[-1], -exact[-1]]))
    return norm(cores) / norm(exact)


def measure(d: int, samples: int, seeds: int, repeats: int, **settings) -> dict:
    """Errors over seeds, and times after the first call."""
    system = FermiPastaUlam(d)
    exact = exact_train(system)
    psi = Product.of(Polynomial1D(3), d)
    errors, fit, times = [], None, []
    for seed in range(seeds):
        with jax.enable_x64(True):
            x, y = system.snapshots(jax.random.key(seed), samples, dtype=jnp.float64)
        fit = mandy(psi, x, y, **settings)
        errors.append(error(fit, exact))
        if seed == 0:
            times = seconds(lambda x=x, y=y: mandy(psi, x, y, **settings).train.cores, repeats)
    ranks = [c.shape[2] for c in exact[:-1]]
    return {
        "masses": d,
        "samples": samples,
        "settings": settings,
        "relative_errors": errors,
        "median_error": float(np.median(errors)),
        "ranks": list(fit.ranks[1:-1]),
        "exact_ranks": ranks,
        "largest_ratio_of_ranks": max(a / b for a, b in zip(fit.ranks[1:-1], ranks, strict=True)),
        "numbers": fit.numbers,
        "residual": float(fit.info.residual),
        "condition": float(fit.info.condition),
        "code": int(fit.result),
        "time": summary(times),
    }


def main() -> None:
    """Measure the three problems and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=2_000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    common = (given.samples, given.seeds, given.repeats)
    results = {
        "four_masses": measure(4, *common),
        "ten_masses_minimum_norm": measure(10, *common, rtol=3e-4),
        "ten_masses_total_degree_3": measure(10, *common, total_degree=3),
    }
    write("fermi_pasta_ulam", results)
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
