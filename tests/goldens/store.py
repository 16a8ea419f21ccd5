"""Goldens: results frozen as data, made by ``python -m tests.goldens`` and compared to rounding.

A group is a module of this folder with ``CASES``, a dictionary of name to function without
arguments that gives a dictionary of arrays, numbers and strings; its results lie in one compressed
file beside it. Integers, strings and shapes are compared exactly, real numbers to the relative
tolerance that a group states as ``CLOSE``, in units of the golden's greatest magnitude. Where a
solver's rounding decides, a group names the case in ``LOOSE`` with a tolerance for another machine:
its integers may differ by a percent there and its words are not compared, while ``--check`` holds
it to the letter on the machine that made it.
"""

import importlib
import pathlib

import numpy as np

FOLDER = pathlib.Path(__file__).parent
GROUPS = sorted(path.stem for path in FOLDER.glob("golden_*.py"))


def group(name):
    return importlib.import_module(f"tests.goldens.{name}")


def path(name):
    return FOLDER / f"{name}.npz"


def write(name):
    """Every case of a group anew."""
    np.savez_compressed(
        path(name),
        allow_pickle=False,
        **{
            f"{case}|{key}": value
            for case, make in group(name).CASES.items()
            for key, value in make().items()
        },
    )


def read(name):
    """case -> key -> array."""
    cases: dict[str, dict[str, np.ndarray]] = {}
    with np.load(path(name), allow_pickle=False) as held:
        for entry in held.files:
            case, key = entry.split("|")
            cases.setdefault(case, {})[key] = held[entry]
    return cases


def check(name, case, found, want, strict=False):
    """One case against its golden, on the machine that made it (strict) or another."""
    module = group(name)
    loose = 0.0 if strict else getattr(module, "LOOSE", {}).get(case, 0.0)
    close = max(loose, getattr(module, "CLOSE", 1e-5))
    assert sorted(found) == sorted(want)
    for key, golden in want.items():
        value = np.asarray(found[key])
        assert value.shape == golden.shape, key
        if golden.dtype.kind in "fc":
            unit = np.max(np.abs(golden), initial=0.0, where=np.isfinite(golden)) or 1.0
            np.testing.assert_allclose(
                value / unit, golden / unit, rtol=0, atol=close, equal_nan=True, err_msg=key
            )
        elif loose and golden.dtype.kind in "iu":
            np.testing.assert_allclose(value, golden, rtol=0.01, err_msg=key)
        elif not loose:
            assert value.tolist() == golden.tolist(), key
