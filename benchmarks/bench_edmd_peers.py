"""The same EDMD by koopjax, deeptime and scikit-learn: equal solutions, times as ratios.

`python benchmarks/bench_edmd_peers.py` fits a quadratic dictionary with a ridge (scikit-learn) and
without one (deeptime's EDMD) on the same float64 data, checks that the solutions are equal, and
reports each peer's time over koopjax's. koopjax's time includes lifting, accumulation, solve and
the diagnosis (rank, condition, residual); the peers' time is that of their own fit on the same
dictionary. Needs the dependency group `bench`.
"""

import argparse
import json

import jax
import jax.numpy as jnp
import numpy as np
from _timing import interleaved, summary, write
from deeptime.basis import Observable
from deeptime.decomposition import EDMD
from sklearn.linear_model import Ridge

from koopjax import edmd
from koopjax.observables import Identity, Monomials


class Quadratic(Observable):
    """koopjax's dictionary behind deeptime's interface, so that both lift alike."""

    def __init__(self, psi: Monomials, d: int):
        self.psi, self.d = psi, d

    def _evaluate(self, x):
        return np.asarray(self.psi(jnp.asarray(x)))

    def _get_feature_names(self, input_features):
        return self.psi.names(self.d)

    @property
    def n_inputs(self) -> int:
        """Number of coordinates."""
        return self.d


def snapshots(n: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    """A contraction with a quadratic term: a well-conditioned problem that has a residual."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, size=(n, d))
    mix = rng.normal(size=(d, d)) / np.sqrt(d)
    return x, 0.8 * np.tanh(x @ mix) + 0.1 * np.roll(x, 1, axis=1) ** 2


def compare(name: str, ours, theirs, repeats: int, rtol: float) -> dict:
    """Check that two fits are equal, then time them by turns."""
    a, b = np.asarray(ours()), np.asarray(theirs())
    difference = float(np.abs(a - b).max() / np.abs(b).max())
    if difference > rtol:
        raise SystemExit(f"{name}: solutions differ by {difference:.1e}, expected {rtol:.0e}")
    times = interleaved({"koopjax": ours, "peer": theirs}, repeats)
    return {
        "koopjax": summary(times["koopjax"]),
        "peer": summary(times["peer"]),
        "peer_over_koopjax": min(times["peer"]) / min(times["koopjax"]),
        "relative_difference": difference,
    }


def main() -> None:
    """Parse arguments, measure, write the JSON, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=12_000)
    parser.add_argument("--inputs", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    psi = Monomials(2)
    with jax.enable_x64(True):
        x, y = snapshots(given.samples, given.inputs)
        observable = Quadratic(psi, given.inputs)

        def ridge_ours():
            return edmd.fit(psi, x, y, target=Identity(), solver=edmd.Ridge(1.0)).matrix

        def ridge_theirs():
            lifted = np.asarray(psi(jnp.asarray(x)))
            model = Ridge(alpha=1.0, fit_intercept=False, solver="cholesky")
            return model.fit(lifted, y).coef_.T

        def edmd_ours():
            return edmd.fit(psi, x, y).matrix

        def edmd_theirs():
            return EDMD(observable).fit((x, y)).fetch_model().operator

        results = {
            "samples": given.samples,
            "inputs": given.inputs,
            "observables": psi.size(given.inputs),
            "dtype": "float64",
            "scikit_learn_ridge": compare("ridge", ridge_ours, ridge_theirs, given.repeats, 1e-8),
            "deeptime_edmd": compare("edmd", edmd_ours, edmd_theirs, given.repeats, 1e-6),
        }
    write("edmd_peers", results)
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
