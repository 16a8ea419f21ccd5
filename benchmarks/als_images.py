"""Images classified by one tensor train: alternating least squares over cos and sin of pixels.

```
.venv/bin/uv run --extra all benchmarks/als_images.py --data-dir DIR --part small
.venv/bin/uv run --extra all benchmarks/als_images.py --data-dir DIR --part choose --samples 20000
.venv/bin/uv run --extra all benchmarks/als_images.py --data-dir DIR --part large
```

`small`: MNIST averaged to 7×7, digits 0 and 1, 500 training and 100 test images, five seeds.
`choose`: ridge and pixel order on 5,000 validation images, 14×14, all digits.
`large`: with these settings a refit on all 60,000 images, and the 10,000 test images once.
Results of the parts are kept together in `results/als_images.json`.
"""

import argparse
import functools
import json
import math
import time

import _timing
import jax
import jax.numpy as jnp
import numpy as np

from koopjax import data, tensor_edmd
from koopjax.observables import CosSin, Product

SCALE = 0.19 * math.pi
RANK = 10


def averaged(images: np.ndarray, block: int) -> np.ndarray:
    """`(n, 28, 28, 1)` to `(n, side²)` by means over square blocks."""
    n, side = len(images), 28 // block
    cut = np.asarray(images, np.float32).reshape(n, side, block, side, block)
    return cut.mean(axis=(2, 4)).reshape(n, side * side)


def hilbert(side: int) -> list[int]:
    """Pixels along a Hilbert curve on the next power of two, those outside left out."""
    size = 1 << (side - 1).bit_length()
    order = []
    for t in range(size * size):
        x = y = 0
        s = 1
        while s < size:
            rx = 1 & (t // 2)
            ry = 1 & (t ^ rx)
            if ry == 0:
                if rx == 1:
                    x, y = s - 1 - x, s - 1 - y
                x, y = y, x
            x, y, t, s = x + s * rx, y + s * ry, t // 4, 2 * s
        if x < side and y < side:
            order.append(side * x + y)
    return order


def orders(side: int) -> dict[str, np.ndarray]:
    """Ways to string the pixels of a square on a line."""
    grid = np.arange(side * side).reshape(side, side)
    snake = grid.copy()
    snake[1::2] = snake[1::2, ::-1]
    return {
        "row": grid.ravel(),
        "snake": snake.ravel(),
        "column": grid.T.ravel(),
        "hilbert": np.array(hilbert(side)),
    }


def accuracy(fit: tensor_edmd.TensorKoopman, x: np.ndarray, labels: np.ndarray) -> float:
    """Share of images whose largest output is their digit; in blocks of 2,500."""
    out = [np.argmax(fit.predict(jnp.asarray(part)), axis=1) for part in np.array_split(x, 4)]
    return float(np.mean(np.concatenate(out) == labels))


def one_hot(labels: np.ndarray, classes: int) -> np.ndarray:
    return np.eye(classes, dtype=np.float32)[labels]


def small(dataset: data.Dataset, settings: argparse.Namespace) -> dict:
    """Digits 0 and 1 at 7×7; the time is the best of five seeds' fits, all compiled before."""
    psi = Product.of(CosSin(SCALE), 49)
    sides = [(dataset.x_train, dataset.y_train), (dataset.x_test, dataset.y_test)]
    parts = [(averaged(x[y < 2], 4), np.asarray(y)[y < 2]) for x, y in sides]
    rows = []
    for seed in range(settings.seeds):
        rng = np.random.default_rng(seed)
        (x, y), (x_test, y_test) = (
            (a[i], b[i])
            for (a, b), m in zip(parts, (500, 100), strict=True)
            for i in [rng.permutation(len(a))[:m]]
        )
        fit = functools.partial(
            tensor_edmd.als, psi, x, one_hot(y, 2), RANK, jax.random.key(seed), alpha=1e-3,
            sweeps=1, batch_size=500,
        )  # fmt: skip
        times = _timing.seconds(lambda fit=fit: fit().train, repeats=3)
        fitted = fit()
        rows.append(
            {
                "seed": seed,
                **_timing.summary(times),
                "right_of_100": round(100 * accuracy(fitted, x_test, y_test)),
                "accuracy_all_test": accuracy(fitted, *parts[1]),
                "residual": float(fitted.info.residual),
                "result": int(fitted.result),
            }
        )
        print(rows[-1], flush=True)
    return {"alpha": 1e-3, "sweeps": 1, "rank": RANK, "seeds": rows}


def choose(dataset: data.Dataset, settings: argparse.Namespace) -> dict:
    """Validation accuracy over ridges and pixel orders on some of the training images."""
    n, rows = settings.samples, []
    psi = Product.of(CosSin(SCALE), 196)
    x, x_val = averaged(dataset.x_train[:n], 2), averaged(dataset.x_val, 2)
    y, y_val = np.asarray(dataset.y_train[:n]), np.asarray(dataset.y_val)
    for name in settings.orders.split(","):
        order = orders(14)[name]
        for alpha in map(float, settings.alphas.split(",")):
            start = time.perf_counter()
            fit = tensor_edmd.als(
                psi, x[:, order], one_hot(y, 10), RANK, jax.random.key(0), alpha=alpha,
                sweeps=settings.sweeps, x_val=x_val[:, order], y_val=one_hot(y_val, 10),
            )  # fmt: skip
            rows.append(
                {
                    "samples": n,
                    "order": name,
                    "alpha": alpha,
                    "sweeps": settings.sweeps,
                    "validation_accuracy": accuracy(fit, x_val[:, order], y_val),
                    "history": np.asarray(fit.info.history).tolist(),
                    "seconds_with_compilation": time.perf_counter() - start,
                    "reason": fit.info.reason,
                }
            )
            print(rows[-1], flush=True)
    return {"rank": RANK, "rows": rows}


def large(dataset: data.Dataset, settings: argparse.Namespace) -> dict:
    """All 60,000 images, the settings chosen before; the test images once."""
    order = orders(14)[settings.orders.split(",")[0]]
    alpha = float(settings.alphas.split(",")[0])
    images = np.concatenate([dataset.x_train, dataset.x_val])
    labels = np.concatenate([dataset.y_train, dataset.y_val])
    x, x_test = averaged(images, 2)[:, order], averaged(dataset.x_test, 2)[:, order]
    psi = Product.of(CosSin(SCALE), 196)
    rows = []
    for seed in range(settings.seeds):
        start, busy = time.perf_counter(), time.process_time()
        fit = tensor_edmd.als(
            psi, x, one_hot(labels, 10), RANK, jax.random.key(seed), alpha=alpha,
            sweeps=settings.sweeps,
        )  # fmt: skip
        jax.block_until_ready(fit.train)
        rows.append(
            {
                "seed": seed,
                "fit_seconds_with_compilation": time.perf_counter() - start,
                "fit_cpu_seconds": time.process_time() - busy,
                "test_accuracy": accuracy(fit, x_test, np.asarray(dataset.y_test)),
                "training_residual": float(fit.info.residual),
                "history": np.asarray(fit.info.history)[:, 0].tolist(),
                "condition": float(fit.info.condition),
                "reason": fit.info.reason,
                "numbers": fit.numbers,
                "peak_bytes": _timing.peak_bytes(),
            }
        )
        print(rows[-1], flush=True)
    return {
        "rank": RANK,
        "alpha": alpha,
        "order": settings.orders.split(",")[0],
        "sweeps": settings.sweeps,
        "samples": len(x),
        "seeds": rows,
    }


PARTS = {"small": small, "choose": choose, "large": large}


def main() -> None:
    """Run one part and keep the results of the others."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", default=None)
    parser.add_argument("--part", choices=sorted(PARTS), required=True)
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--orders", default="snake")
    parser.add_argument("--alphas", default="0.01")
    parser.add_argument("--sweeps", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=1)
    settings = parser.parse_args()
    dataset = data.load("mnist", data_dir=settings.data_dir)
    path = _timing.ROOT / "results" / "als_images.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    results = {name: known[name] for name in PARTS if name in known}
    results[settings.part] = PARTS[settings.part](dataset, settings)
    _timing.write("als_images", results)


if __name__ == "__main__":
    main()
