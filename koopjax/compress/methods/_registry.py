"""The registry of methods."""

from collections.abc import Callable

from koopjax.compress._koopman import koopman
from koopjax.compress._koopman_trained import koopman_trained
from koopjax.compress._result import Compressed
from koopjax.compress.methods._clustering import kmeans
from koopjax.compress.methods._deep_compression import deep_compression
from koopjax.compress.methods._magnitude import magnitude
from koopjax.compress.methods._pruning import obs, wanda
from koopjax.compress.methods._rounding import int4, int8
from koopjax.compress.methods._svd import svd
from koopjax.compress.methods._tensor_train import tensor_train
from koopjax.compress.methods._whitened_svd import whitened_svd

#: Name -> method, each called as
#: `method(model, calibration, budget, *, at=None, labels=None, validation=None, key, task=None,
#: score_fn=None)`.
#: Names of Koopman methods begin with "koopman".
METHODS: dict[str, Callable[..., Compressed]] = {
    "koopman": koopman,
    "koopman_trained": koopman_trained,
    "magnitude": magnitude,
    "obs": obs,
    "wanda": wanda,
    "svd": svd,
    "whitened_svd": whitened_svd,
    "tensor_train": tensor_train,
    "kmeans": kmeans,
    "int8": int8,
    "int4": int4,
    "deep_compression": deep_compression,
}

#: What kind of method each is.
FAMILIES = {
    "koopman": "koopman",
    "koopman_trained": "koopman",
    "magnitude": "pruning",
    "wanda": "pruning",
    "obs": "pruning",
    "svd": "factorising",
    "whitened_svd": "factorising",
    "tensor_train": "factorising",
    "kmeans": "clustering",
    "int8": "quantising",
    "int4": "quantising",
    "deep_compression": "clustering",
}

#: Methods whose weights are not float32 numbers each: codebooks and grids, coded by entropy.
ANY_BITS = frozenset({"kmeans", "int8", "int4", "deep_compression"})
