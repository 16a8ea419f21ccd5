"""Every method of compression on the embedded digits: bytes, settings and outputs.

The network is a committed file, so that no golden hangs on how training rounds. Which entries a
search over Koopman matrices takes does hang on it: two machines agree there to about a percent.
"""

import functools
import json

import jax
import numpy as np

from koopjax import compress, data, export
from tests.goldens.store import FOLDER

#: Trained steps amplify rounding.
CLOSE = 2e-3
LOOSE = {"koopman 8x": 0.1, "koopman_trained 3x": 0.1}
FINETUNED = {
    "koopman": ("koopman", {"coordinates": 10, "factors": (4, 4), "learning_rate": 1e-2}, {}),
    "koopman_chain": (
        "koopman_chain",
        {"coordinates": 10, "factors": (4, 4), "hidden": (6,), "learning_rate": 1e-2},
        {},
    ),
    "pruning": ("fisher", {"learning_rate": 5e-3}, {}),
    "factorising": ("whitened_svd", {"learning_rate": 5e-3}, {}),
    "clustering": ("kmeans", {"learning_rate": 5e-3}, {}),
    "small network": ("small_network", {"bottleneck": 2.0, "learning_rate": 5e-3}, {}),
    "label-free": ("fisher", {"learning_rate": 5e-3}, {"labels": None}),
    "any bits": ("fisher", {"learning_rate": 5e-3}, {"value_bits": 4.0}),
}


@functools.cache
def network():
    return export.load(FOLDER / "network.koopjax")


@functools.cache
def digits():
    held = data.load("digits").flat()
    return {
        "calibration": np.asarray(held.x_train)[:400],
        "labels": np.asarray(held.y_train)[:400],
        "validation": (np.asarray(held.x_train)[400:600], np.asarray(held.y_train)[400:600]),
        "test": np.asarray(held.x_test)[:32],
    }


def rounded(value):
    """Settings with their real numbers to four digits."""
    if isinstance(value, dict):
        return {name: rounded(held) for name, held in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(held) for held in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def account(made):
    """What a golden holds of a compressed network."""
    report = made.report
    return {
        "bytes": report.stored_bytes,
        "settings": json.dumps(rounded(report.as_dict()["settings"]), sort_keys=True),
        "score": report.score,
        "candidates": report.candidates,
        "outputs": np.asarray(made.model(digits()["test"])),
    }


@functools.cache
def one_shot(name):
    held = digits()
    return compress.METHODS[name](
        network(), held["calibration"], ONE_SHOT[name], validation=held["validation"],
        key=jax.random.key(1),
    )  # fmt: skip


@functools.cache
def tuned(case):
    held = digits()
    name, variant, settings = FINETUNED[case]
    given = {"labels": held["labels"], **settings}
    return compress.finetuned(
        name, network(), held["calibration"], "3x", validation=held["validation"],
        key=jax.random.key(1), variant=variant,
        training=compress.Training(epochs=2, batch_size=50), **given,
    )  # fmt: skip


ONE_SHOT = dict.fromkeys(compress.METHODS, "3x") | {"koopman": "8x"}
#: `test_methods.py` and `test_recipes.py` of `tests/compress` compare these, and look at the same
#: networks.
CASES = {
    **{f"{name} {size}": lambda name=name: account(one_shot(name))
       for name, size in ONE_SHOT.items()},
    **{f"finetuned {name}": lambda name=name: account(tuned(name)) for name in FINETUNED},
}  # fmt: skip
