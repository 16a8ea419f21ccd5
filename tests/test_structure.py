"""The house rules that a machine can keep: layers, public names, what an import costs."""

import ast
import importlib
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "koopjax"
LAYERS = [
    {"_core"},
    {"observables", "tt", "data", "models"},
    {"edmd"},
    {"tensor_edmd"},
    {"nn"},
    {"surgery", "sweep"},
    {"export"},
    {"analysis"},
    {"compress"},
    {"plot", "report"},
    {"cli"},
]
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
ROOMS = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))
PUBLIC = [room for room in ROOMS if not room.startswith("_")]


def imported_modules(path):
    """Absolute names of what a file of the package imports."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            stem = ".".join(part for part in (base, node.module) if part)
            if stem == "koopjax":
                yield from (f"koopjax.{alias.name}" for alias in node.names)
            else:
                yield stem


def test_every_room_is_in_the_design():
    assert set(ROOMS) <= set(LEVEL)
    assert {"_core", "observables", "edmd", "nn", "surgery"} <= set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_rooms_above_it(room):
    wrong = []
    for path in (PACKAGE / room).rglob("*.py"):
        for name in imported_modules(path):
            parts = name.split(".")
            if parts[0] != "koopjax" or len(parts) < 2 or parts[1] == room:
                continue
            if LEVEL.get(parts[1], 99) >= LEVEL[room]:
                wrong.append(f"{path.name} imports {name}")
    assert not wrong


@pytest.mark.parametrize("room", PUBLIC)
def test_public_names_exist_once_and_are_documented(room):
    module = importlib.import_module(f"koopjax.{room}")
    assert module.__doc__
    assert len(module.__all__) == len(set(module.__all__))
    undocumented = []
    for name in module.__all__:
        value = getattr(module, name)
        doc = (getattr(value, "__doc__", None) or "").strip()
        # A dataclass without a docstring is given its signature as one.
        if callable(value) and (not doc or doc.startswith(f"{name}(")):
            undocumented.append(name)
    assert not undocumented


def test_importing_every_room_of_the_core_loads_nothing_heavy():
    light = [r for r in PUBLIC if r not in {"plot", "report", "cli"}]
    heavy = ["matplotlib", "tensorflow_datasets", "sklearn", "PIL", "click", "jinja2", "orbax"]
    code = (
        "import sys, koopjax\n"
        + "".join(f"import koopjax.{room}\n" for room in light)
        + f"print([m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_global_configuration_is_changed():
    pattern = re.compile(r"config\.update\(|config\.jax_\w+\s*=[^=]|os\.environ\[.*\]\s*=")
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in PACKAGE.rglob("*.py")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if pattern.search(line)
    ]
    assert not found


def test_the_package_knows_its_version():
    import tomllib

    import koopjax

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert koopjax.__version__ == project["version"]
    with pytest.raises(AttributeError, match="its rooms are"):
        _ = koopjax.nothing
