"""The kernel form of tensor-based EDMD on images: accuracy, time and memory.

`python benchmarks/kernel_images.py --data-dir DIR` reduces the images to 14×14 by averaging, takes
cos and sin of 0.19π·x for every pixel (2^196 products), and regresses on one-hot labels: on 6,000
training images (a fixed random choice), directly, and on all 60,000, by landmarks. The ridge is
chosen on held-out images; the test images are used once. A peer (scikit_tt's kernel-based MANDy)
took 70 s to fit 6,000 images and 37 s to predict 10,000, at 0.969. Every fit of the table runs in
a process of its own, so that its peak memory is its own.
"""

import argparse
import json
import time

import jax
import jax.numpy as jnp
import numpy as np
from _timing import in_subprocess, peak_bytes, summary, write

from koopjax import data, tensor_edmd
from koopjax.observables import CosSin, Product

SCALE = 0.19 * np.pi
FEW = 6_000
RIDGES = (1e-3, 1e-2, 3e-2, 1e-1, 3e-1)
PEER_S = {"fit": 70.0, "predict": 37.0}


def pooled(images: np.ndarray) -> np.ndarray:
    """Images reduced to 14×14 by averaging, as vectors."""
    blocks = images.reshape(-1, 14, 2, 14, 2)
    return np.ascontiguousarray(blocks.mean((2, 4)).reshape(-1, 196).astype(np.float32))


def one_hot(labels: np.ndarray) -> np.ndarray:
    """Labels as targets."""
    return np.eye(10, dtype=np.float32)[labels]


def accuracy(fit: tensor_edmd.KernelKoopman, x: jax.Array, labels: np.ndarray) -> float:
    """Share of images whose largest output is the label's."""
    return float((np.argmax(np.asarray(fit.predict(x)), axis=1) == labels).mean())


def child(name: str, folder: str | None, landmarks: int, repeats: int) -> None:
    """Choose the ridge, refit, predict; prints the figures. No landmarks: 6,000 images."""
    found = data.load(name, data_dir=folder)
    x, labels = found.x_train, found.y_train
    if not landmarks:
        chosen = np.random.default_rng(0).permutation(len(x))[:FEW]
        x, labels = x[chosen], labels[chosen]
    x, y = pooled(x), one_hot(labels)
    x_val, x_test = pooled(found.x_val), pooled(found.x_test)
    psi = Product.of(CosSin(SCALE), 196)
    x, y, x_val, y_val = (jnp.asarray(a) for a in (x, y, x_val, one_hot(found.y_val)))
    settings = {"centers": landmarks or None, "key": jax.random.key(0)}
    start = time.perf_counter()
    fit = tensor_edmd.kernel(psi, x, y, alpha=RIDGES, x_val=x_val, y_val=y_val, **settings)
    jax.block_until_ready(fit)
    choice = time.perf_counter() - start
    alpha = float(fit.info.alpha)
    validation = accuracy(fit, x_val, found.y_val)
    if landmarks:
        x, labels = found.train_and_val()
        x, y = pooled(x), one_hot(labels)
    x, y, x_test = (jnp.asarray(a) for a in (x, y, x_test))
    out = jnp.zeros(())
    times: dict[str, list[float]] = {"fit": [], "predict": []}
    for _ in range(repeats + 1):
        start = time.perf_counter()
        fit = jax.block_until_ready(tensor_edmd.kernel(psi, x, y, alpha=alpha, **settings))
        middle = time.perf_counter()
        out = jax.block_until_ready(fit.predict(x_test))
        times["fit"].append(middle - start)
        times["predict"].append(time.perf_counter() - middle)
    correct = np.argmax(np.asarray(out), axis=1) == found.y_test
    # What was compiled for the choice is compiled already where shapes are equal.
    warm = {part: summary(values[1:] or values) for part, values in times.items()}
    row = {
        "dataset": name,
        "images": len(x),
        "landmarks": int(fit.info.landmarks),
        "alpha": alpha,
        "validation_accuracy": validation,
        "test_accuracy": float(correct.mean()),
        "choice_of_ridge_s": choice,
        "first_fit_s": times["fit"][0],
        "first_predict_s": times["predict"][0],
        "after_compilation": warm,
        "fit_plus_predict_s": warm["fit"]["best_s"] + warm["predict"]["best_s"],
        "peak_gib": peak_bytes() / 2**30,
        "method": fit.info.method,
        "dtype": fit.info.dtype,
        "reason": fit.info.reason,
        "result": int(fit.result),
        "iterations": int(fit.info.iterations),
        "condition": float(fit.info.condition),
        "residual": float(fit.info.residual),
    }
    print(json.dumps(row))


def main() -> None:
    """Parse arguments, measure, write the JSON, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", nargs="+", default=["mnist", "fashion_mnist"])
    parser.add_argument("--data-dir", nargs="+", help="a folder for each dataset, or one for all")
    parser.add_argument("--landmarks", type=int, default=10_000, help="0 leaves the 60,000 out")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    folders = given.data_dir or [None]
    if given.child:
        return child(given.child, folders[0], given.landmarks, given.repeats)
    rows = []
    for i, name in enumerate(given.dataset):
        folder = folders[min(i, len(folders) - 1)]
        where = ["--data-dir", folder] if folder else []
        for landmarks, repeats in ((0, given.repeats), (given.landmarks, 0)):
            if repeats or landmarks:
                rows.append(
                    in_subprocess(
                        __file__, "--child", name, *where, "--landmarks", str(landmarks),
                        "--repeats", str(repeats),
                    )
                )  # fmt: skip
                print(json.dumps(rows[-1], indent=2), flush=True)
                found = {"peer_s": PEER_S, "scale": SCALE, "ridges": RIDGES, "rows": rows}
                write("kernel_images", found)
    return None


if __name__ == "__main__":
    main()
