"""The registry of methods."""

from collections.abc import Callable

from koopjax.compress._koopman import koopman
from koopjax.compress._koopman_trained import koopman_trained
from koopjax.compress._magnitude import magnitude
from koopjax.compress._pruning import obs, wanda
from koopjax.compress._result import Compressed
from koopjax.compress._whitened_svd import whitened_svd

#: Name -> method, each called as
#: `method(model, calibration, budget, *, at=None, labels=None, validation=None, key)`.
#: Names of Koopman methods begin with "koopman".
METHODS: dict[str, Callable[..., Compressed]] = {
    "koopman": koopman,
    "koopman_trained": koopman_trained,
    "magnitude": magnitude,
    "obs": obs,
    "wanda": wanda,
    "whitened_svd": whitened_svd,
}
