"""The registry of methods."""

import functools
from collections.abc import Callable
from typing import Any

from koopjax.compress._koopman.method import koopman
from koopjax.compress._koopman.trained import koopman_trained
from koopjax.compress._result import Compressed
from koopjax.compress.methods._deep_compression import deep_compression
from koopjax.compress.methods._few_values import int4, int8, kmeans
from koopjax.compress.methods._pruning import magnitude, obs, wanda
from koopjax.compress.methods._svd import svd, whitened_svd
from koopjax.compress.methods._tensor_train import tensor_train


class Method:
    """A method of compression; called as the function that it holds, whose docstring it has.

    Args:
        solve: `solve(model, calibration, budget, *, at=None, labels=None, validation=None, key,
            task=None, score_fn=None)`, as `posed` makes it.
        family: "koopman", "pruning", "factorising", "clustering" or "quantising"; only the first
            is told the span of a contest.
        any_bits: whether its weights are codebooks or grids, coded by entropy, rather than float32
            numbers each.
    """

    def __init__(self, solve: Callable[..., Compressed], family: str, any_bits: bool = False):
        functools.update_wrapper(self, solve)
        self.solve, self.family, self.any_bits = solve, family, any_bits

    def __call__(self, *given: Any, **settings: Any) -> Compressed:
        """What `solve` makes of the same arguments."""
        return self.solve(*given, **settings)


#: Name -> method; one's own may be added. Names of Koopman methods begin with "koopman".
METHODS: dict[str, Method] = {
    "koopman": Method(koopman, "koopman"),
    "koopman_trained": Method(koopman_trained, "koopman"),
    "magnitude": Method(magnitude, "pruning"),
    "obs": Method(obs, "pruning"),
    "wanda": Method(wanda, "pruning"),
    "svd": Method(svd, "factorising"),
    "whitened_svd": Method(whitened_svd, "factorising"),
    "tensor_train": Method(tensor_train, "factorising"),
    "kmeans": Method(kmeans, "clustering", any_bits=True),
    "int8": Method(int8, "quantising", any_bits=True),
    "int4": Method(int4, "quantising", any_bits=True),
    "deep_compression": Method(deep_compression, "clustering", any_bits=True),
}

#: The library's methods whose weights are not float32 numbers each.
ANY_BITS = frozenset(name for name, method in METHODS.items() if method.any_bits)
