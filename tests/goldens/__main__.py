"""``python -m tests.goldens [group ...]`` makes goldens anew, a commit of its own that says why.

With ``--check`` it compares instead, to the letter, as on the machine that made them.
"""

import sys

import tests.conftest  # noqa: F401  (its settings: a golden is made as it is compared)
from tests.goldens import store

names = [name for name in sys.argv[1:] if name != "--check"] or store.GROUPS
wrong = 0
for name in names:
    if "--check" not in sys.argv:
        store.write(name)
        print(f"{store.path(name).name}: {store.path(name).stat().st_size} bytes")
        continue
    held = store.read(name)
    for case, make in store.group(name).CASES.items():
        try:
            store.check(name, case, make(), held[case], strict=True)
        except AssertionError as error:
            wrong += 1
            print(f"{name}, {case}: {str(error).strip()[:500]}")
    print(f"{name}: {len(held)} results compared")
sys.exit(bool(wrong))
