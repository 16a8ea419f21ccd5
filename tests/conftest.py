"""Shared fixtures: where genuine data lie, and strict settings for every test."""

import os
import pathlib

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
