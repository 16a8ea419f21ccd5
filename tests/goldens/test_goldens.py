"""What this code computed when its goldens were made, it still computes."""

import functools

import pytest

from tests.goldens import golden_compress, store

read = functools.cache(store.read)


@pytest.mark.parametrize(
    ("name", "case"),
    [
        (name, case)
        for name in store.GROUPS
        for case in store.group(name).CASES
        if case not in golden_compress.METHODS
    ],
)
def test_a_result_stays_what_it_was(name, case):
    store.check(name, case, store.group(name).CASES[case](), read(name)[case])


@pytest.mark.parametrize("name", store.GROUPS)
def test_every_golden_has_its_case(name):
    assert sorted(read(name)) == sorted(store.group(name).CASES)
