"""The network of the goldens, which is trained already, for the whole room."""

import pytest

from koopjax import data
from tests.goldens import golden_compress


@pytest.fixture(scope="session")
def digits():
    """The embedded digits as vectors."""
    return data.load("digits").flat()


@pytest.fixture(scope="session")
def network():
    """A trained 64-24-24-10 network."""
    return golden_compress.network()


@pytest.fixture(scope="session")
def calibration():
    """Four hundred unlabelled samples."""
    return golden_compress.digits()["calibration"]
