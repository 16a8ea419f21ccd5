"""Shared fixtures: where genuine data lie, and strict settings for every test."""

import gc
import itertools
import os
import pathlib

# Nearly all of a test's time is compilation; what is compiled here runs once or twice.
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0".strip()
)

import jax
import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
MNIST = ROOT.parent / "shared" / "data" / "mnist"
FASHION = pathlib.Path("/usr/share/datasets/fashion-mnist")


@pytest.fixture(autouse=True)
def strict():
    """Rank promotion is an error in the tests, so that broadcasting is always meant."""
    with jax.numpy_rank_promotion("raise"):
        yield


#: Compiled programs are memory maps, of which Linux gives a process 65,530; XLA crashes at the end.
MOST_MAPS = 25_000
_MAPS = pathlib.Path("/proc/self/maps")
_count = itertools.count(1)


@pytest.fixture(autouse=True)
def few_programs():
    """Let go of compiled programs now and then, in a process that runs a thousand tests."""
    yield
    if next(_count) % 10 == 0 and _MAPS.exists():
        with _MAPS.open("rb") as lines:
            many = sum(1 for _ in lines) > MOST_MAPS
        if many:
            jax.clear_caches()
            gc.collect()


@pytest.fixture
def mnist_dir() -> pathlib.Path:
    """A folder with the four genuine MNIST files."""
    folder = pathlib.Path(os.environ.get("KOOPJAX_TEST_MNIST", MNIST))
    if not folder.is_dir():
        pytest.skip("genuine MNIST not found; set KOOPJAX_TEST_MNIST to its folder of idx files")
    return folder


@pytest.fixture
def fashion_dir() -> pathlib.Path:
    """A folder with the four genuine Fashion-MNIST files."""
    folder = pathlib.Path(os.environ.get("KOOPJAX_TEST_FASHION", FASHION))
    if not folder.is_dir():
        pytest.skip("Fashion-MNIST not found; install the package dataset-fashion-mnist")
    return folder
