"""Gram matrices free of the units of their inputs."""

import numpy as np
from jaxtyping import Float


def unit_diagonal(
    gram: Float[np.ndarray, "p p"],
) -> tuple[Float[np.ndarray, "p p"], Float[np.ndarray, " p"]]:
    """`U G U` and the diagonal of `U = diag(G)^(-1/2)`: the inputs scaled to unit second moment.

    `x W = (x U)(U⁻¹ W)`, so that what is decided about `U⁻¹ W` with `U G U` is the same in any
    units, and one ridge suits all inputs. An input that is always zero keeps its scale and its row
    of zeros: the ridge alone gives it the coefficient zero.
    """
    power = np.diag(gram)
    unit = 1 / np.sqrt(np.where(power > 0, power, 1.0))
    return gram * unit[:, None] * unit, unit
