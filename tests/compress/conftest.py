"""One small trained network for the whole room."""

import jax
import numpy as np
import pytest
from flax import nnx

from koopjax import data, models


@pytest.fixture(scope="session")
def digits():
    """The embedded digits as vectors."""
    return data.load("digits").flat()


@pytest.fixture(scope="session")
def network(digits):
    """A trained 64-40-40-10 network."""
    model = models.MLP((64, 40, 40, 10), rngs=nnx.Rngs(0))
    return models.train(
        model, digits.x_train, digits.y_train, key=jax.random.key(0), epochs=40, batch_size=64,
        learning_rate=3e-3,
    ).model  # fmt: skip


@pytest.fixture(scope="session")
def calibration(digits):
    """Unlabelled samples."""
    return np.asarray(digits.x_train)
