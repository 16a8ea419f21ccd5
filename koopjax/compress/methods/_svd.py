"""Plain SVD: linear layers in two thin factors, by their weights alone."""

from typing import Any

from koopjax.compress._problem import Problem, posed
from koopjax.compress._result import Compressed
from koopjax.compress.methods._whitened_svd import factored


@posed
def svd(problem: Problem, at: Any) -> Compressed:
    """Truncated SVD of the weights, `W ≈ U_r S_r V_rᵀ`, with the rank split that validates best.

    Of all matrices of rank r it is the closest to W in the Frobenius norm; the inputs play no part
    but for the bias, which takes up the error at their mean where that validates better. The split
    is searched as by `whitened_svd`.

    Args:
        model: an `nnx.Module` with `nnx.Linear` layers, or a Linen MLP of `koopjax.models`.
        calibration, budget, at, labels, validation, task, score_fn, key: as for `whitened_svd`.

    Returns:
        `Compressed`: an `nn.Stack` for an MLP, else a copy of the model with `nn.LowRank` in place
        of layers; and the report.

    Numerics:
        One SVD a layer in float64 on the host; up to 160 evaluations on the validation samples.

    Raises:
        ValueError: as for `whitened_svd`.

    Reference:
        Denton, Zaremba, Bruna, LeCun & Fergus (2014), NeurIPS 27; Eckart & Young (1936).
    """
    return factored(problem, at, ["weights", "mean"])
