"""A part of the embedded digits for all commands: what they do is the same, in a fourth of it."""

import dataclasses

import pytest

from koopjax import data, plot

WHOLE = data.load
FEW = {"train": 300, "val": 100, "test": 150}


def few(name, *given, **settings):
    """The first images of each split of the digits; other datasets as they are."""
    loaded = WHOLE(name, *given, **settings)
    if name != "digits":
        return loaded
    return dataclasses.replace(
        loaded,
        **{f"{xy}_{s}": getattr(loaded, f"{xy}_{s}")[:n] for xy in "xy" for s, n in FEW.items()},
    )


@pytest.fixture(autouse=True, scope="module")
def few_digits():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "load", few)
        yield


@pytest.fixture
def whole_digits(monkeypatch):
    monkeypatch.setattr(data, "load", WHOLE)


@pytest.fixture
def no_figures(monkeypatch):
    """Reports without pictures, for tests that look at other things."""
    monkeypatch.setattr(plot, "figures", lambda results: {})
