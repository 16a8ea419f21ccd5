"""The 784 -> 625 layer of an MNIST network as a TT matrix of rank 16, with nothing retrained.

`python benchmarks/tt_layer.py --data-dir DIR --seeds 5` trains a ReLU network 784-625-10 on the
60,000 training images for each seed, replaces its first layer by a TT matrix (modes 7·4·7·4 and
5·5·5·5, rank 16, 14,960 numbers in place of 490,000) in several metrics and orders of pixels and
hidden units, and measures each on the 10,000 test images. Then it fine-tunes two of them for two
epochs. `--choose` does what chose the settings instead: networks of the 55,000, measured on the
5,000 that are held out. With `--cache DIR` finished seeds are kept and not run again.

None of the rows before "two epochs" uses a label or trains anything: they see the inputs and the
network's own outputs on the training images, through a Gram matrix and a metric of Jacobians; the
last of them also solves for the last layer by least squares on the network's own logits.
"""

import argparse
import json
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _timing import write
from flax import nnx

from koopjax import analysis, data, edmd, models, nn, tensor_edmd

SIZES = (784, 625, 10)
ROWS, COLUMNS, RANK = (7, 4, 7, 4), (5, 5, 5, 5), 16
SWEEPS = {"sweeps": 20, "rtol": 2e-3}
KIND, SAMPLES = "softmax", 10_000
TUNE = {"epochs": 2, "batch_size": 64, "learning_rate": 1e-3, "warmup": 0.05}
SEARCH = {"row_order": "search", "column_order": "search"}


def tail(kernel: jax.Array, bias: jax.Array, states: jax.Array) -> jax.Array:
    """What follows the layer: logits of pre-activations."""
    return jnp.matmul(jax.nn.relu(states), kernel, precision="highest") + bias


class Layer:
    """A trained network, the metrics of its first layer, and where it is measured."""

    def __init__(self, model: Any, x: Any, y: Any, x_test: Any, y_test: Any, kind: str) -> None:
        self.x, self.y = jnp.asarray(x), jnp.asarray(y)
        self.x_test, self.y_test = jnp.asarray(x_test), jnp.asarray(y_test)
        (self.w, self.b), (self.v, self.c) = (
            (layer.kernel.get_value(), layer.bias.get_value()) for layer in model.layers
        )
        self.states = jnp.matmul(self.x, self.w, precision="highest") + self.b
        self.mean = self.x.mean(0)
        self.gram = jnp.matmul(self.x.T, self.x, precision="highest") / len(self.x)
        after = jax.tree_util.Partial(tail, self.v, self.c)
        self.metric = analysis.output_metric(after, self.states, kind=kind, max_samples=SAMPLES)

    def network(self, found: Any, *, shift: bool = False, refit: bool = False) -> Any:
        """The network with the layer replaced; hidden units in the order of the train."""
        order = np.asarray(found.column_order)
        bias, kernel, last = self.b, self.v, self.c
        if shift or refit:
            bias = bias + self.mean @ (self.w - found.to_dense())
        if refit:
            hidden = jax.nn.relu(self.x @ found.to_dense() + bias)
            lifted = jnp.concatenate([jnp.ones((len(hidden), 1)), hidden], axis=1)
            statistics = edmd.Gram.from_batch(lifted, tail(self.v, self.c, self.states))
            both = edmd.solve(statistics, edmd.Ridge(relative=1e-6)).value
            last, kernel = both[0], both[1:]
        first = nn.TT.from_train(found.train, bias[order])
        return nn.Stack([first, nn.Dense(kernel[order], last)], ("relu",))

    def accuracy(self, network: Any, found: Any) -> float:
        """On the held-out images, pixels in the order of the train."""
        inputs = self.x_test[:, np.asarray(found.row_order)]
        return models.accuracy(network, inputs, self.y_test)

    def tuned(self, network: Any, found: Any, seed: int, **settings: Any) -> Any:
        """The network after a little training with labels."""
        key = jax.random.fold_in(jax.random.key(seed), 1)
        inputs = self.x[:, np.asarray(found.row_order)]
        return models.train(network, inputs, self.y, key=key, **(TUNE | settings)).model

    def approximate(self, *metrics: str, **settings: Any) -> Any:
        """The layer's TT matrix in some of the metrics."""
        chosen = {name: getattr(self, name) for name in metrics}
        return tensor_edmd.approximate(self.w, ROWS, COLUMNS, RANK, **chosen, **settings)


def trained(x: Any, y: Any, seed: int) -> Any:
    """The original network, by the recipe for this dataset."""
    recipe = models.recipe("mnist", (28, 28, 1), 10, len(x))
    model = models.MLP(SIZES, rngs=nnx.Rngs(seed))
    return models.train(model, x, y, key=jax.random.key(seed), **recipe.settings()).model


def one_seed(dataset: Any, seed: int) -> dict[str, Any]:
    """Every row for one seed: accuracy, numbers in the layer, seconds."""
    x, y = dataset.train_and_val()
    start = time.perf_counter()
    model = trained(x, y, seed)
    seconds = time.perf_counter() - start
    rows = {
        "original": {
            "accuracy": models.accuracy(model, dataset.x_test, dataset.y_test),
            "layer_numbers": SIZES[0] * SIZES[1],
            "network_numbers": sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model))),
            "seconds": seconds,
        }
    }
    start = time.perf_counter()
    layer = Layer(model, x, y, dataset.x_test, dataset.y_test, KIND)
    jax.block_until_ready(layer.metric)
    metrics_seconds = time.perf_counter() - start

    def add(name: str, network: Any, found: Any, seconds: float) -> None:
        rows[name] = {
            "accuracy": layer.accuracy(network, found),
            "layer_numbers": found.numbers,
            "network_numbers": sum(leaf.size for leaf in jax.tree.leaves(nnx.state(network))),
            "pixel_indices": 0 if (np.diff(found.row_order) == 1).all() else SIZES[0],
            "relative_error": float(found.info.error),
            "swaps": [int(n) for n in found.info.swaps],
            "sweeps": len(found.info.history),
            "seconds": seconds,
        }
        print(seed, name, rows[name], flush=True)

    found, took = None, 0.0
    for name, metrics, settings in (
        ("plain TT-SVD", (), {"sweeps": 0, "init": "plain"}),
        ("Gram metric", ("gram",), SWEEPS),
        ("Gram and output metric", ("gram", "metric"), SWEEPS),
        ("... and pixel order", ("gram", "metric"), SWEEPS | {"row_order": "search"}),
        ("... and order of hidden units", ("gram", "metric"), SWEEPS | SEARCH),
    ):
        start = time.perf_counter()
        found = layer.approximate(*metrics, **settings)
        took = time.perf_counter() - start
        network = layer.network(found)
        add(name, network, found, took)
        if name == "plain TT-SVD":
            start = time.perf_counter()
            network = layer.tuned(network, found, seed)
            add("plain TT-SVD, two epochs", network, found, time.perf_counter() - start)
    network = layer.network(found, shift=True)
    add("... and mean of the bias", network, found, took)
    refitted = layer.network(found, refit=True)
    add("... and last layer by least squares on the own logits", refitted, found, took)
    start = time.perf_counter()
    add("two epochs", layer.tuned(network, found, seed), found, time.perf_counter() - start)
    return {"rows": rows, "metrics_seconds": metrics_seconds}


def choose(dataset: Any, seed: int) -> dict[str, Any]:
    """Validation accuracies that the settings above were chosen by."""
    model = trained(dataset.x_train, dataset.y_train, seed)
    given = (dataset.x_train, dataset.y_train, dataset.x_val, dataset.y_val)
    out: dict[str, Any] = {"original": models.accuracy(model, *given[2:])}
    for kind in ("output", "centred", "softmax"):
        layer = Layer(model, *given, kind)
        found = layer.approximate("gram", "metric", **SWEEPS, **SEARCH)
        network = layer.network(found, shift=True)
        out[kind] = layer.accuracy(network, found)
        if kind == KIND:
            for rate in (5e-4, 1e-3, 2e-3):
                tuned = layer.tuned(network, found, seed, learning_rate=rate)
                out[f"two epochs at {rate:g}"] = layer.accuracy(tuned, found)
        print(seed, out, flush=True)
    return out


def summary(seeds: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation of each row over the seeds."""
    table = {}
    for name, first in seeds[0]["rows"].items():
        values = np.array([seed["rows"][name]["accuracy"] for seed in seeds])
        times = [seed["rows"][name]["seconds"] for seed in seeds]
        spread = float(values.std(ddof=1)) if len(values) > 1 else 0.0
        table[name] = {
            "accuracy": float(values.mean()),
            "std": spread,
            "least": float(values.min()),
            "layer_numbers": first["layer_numbers"],
            "network_numbers": first["network_numbers"],
            "pixel_indices": first.get("pixel_indices", 0),
            "seconds": float(np.median(times)),
        }
    return table


def cached(folder: pathlib.Path | None, name: str, run: Any) -> dict[str, Any]:
    """What `run` returns, or what it returned before."""
    path = folder / f"{name}.json" if folder else None
    if path and path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    found = run()
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found), encoding="utf-8")
    return found


def main() -> None:
    """Parse arguments, run the seeds, write the JSON, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--choose", action="store_true", help="on validation images, seed 100")
    parser.add_argument("--cache", type=pathlib.Path, help="folder for finished seeds")
    given = parser.parse_args()
    dataset = data.load("mnist", data_dir=given.data_dir).flat()
    if given.choose:
        print(json.dumps(cached(given.cache, "choose", lambda: choose(dataset, 100)), indent=2))
        return
    seeds = [
        cached(given.cache, f"seed{s}", lambda s=s: one_seed(dataset, s))
        for s in range(given.seeds)
    ]
    results = {
        "dataset": "mnist", "sizes": SIZES, "row_modes": ROWS, "column_modes": COLUMNS,
        "rank": RANK, "output_metric": KIND, "search": SWEEPS, "fine_tuning": TUNE,
        "table": summary(seeds), "seeds": seeds,
    }  # fmt: skip
    if given.cache and (given.cache / "choose.json").exists():
        results["chosen_on_validation"] = cached(given.cache, "choose", dict)
    write("tt_layer", results)
    for name, row in results["table"].items():
        print(f"{name:55s} {100 * row['accuracy']:.2f} ± {100 * row['std']:.2f} {row}")


if __name__ == "__main__":
    main()
