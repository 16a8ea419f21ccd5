"""What this code computed when its goldens were made, it still computes."""

import functools

import pytest

from tests.goldens import store

read = functools.cache(store.read)


#: Those of compression are compared in `tests/compress`, where the same networks are looked at.
HERE = [name for name in store.GROUPS if name != "golden_compress"]


@pytest.mark.parametrize(
    ("name", "case"), [(name, case) for name in HERE for case in store.group(name).CASES]
)
def test_a_result_stays_what_it_was(name, case):
    store.check(name, case, store.group(name).CASES[case](), read(name)[case])


@pytest.mark.parametrize("name", store.GROUPS)
def test_every_golden_has_its_case(name):
    assert sorted(read(name)) == sorted(store.group(name).CASES)
