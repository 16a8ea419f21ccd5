"""The house rules that a machine can keep: layers, public names, what an import costs."""

import ast
import importlib
import importlib.metadata
import inspect
import itertools
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "koopjax"
LAYERS = [
    {"_extras"},
    {"_core"},
    {"forms"},
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


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def module_of(path, root=ROOT):
    """Absolute name of the module that a file is."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path, root=ROOT):
    """Absolute (module, name) of what a file imports, name None for a module as a whole."""
    package = path.relative_to(root).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            stem = ".".join(part for part in (base, node.module) if part)
            yield from ((stem, alias.name) for alias in node.names)


def imported_modules(path):
    """Absolute names of the modules that a file of the package imports."""
    for stem, name in imports(path):
        yield f"{stem}.{name}" if stem == "koopjax" and name else stem


def private_imports(root):
    """Private names that a room takes from another; what `_core` itself exports is for all."""
    for path in sorted((root / "koopjax").rglob("*.py")):
        room = path.relative_to(root / "koopjax").parts[0]
        for stem, name in imports(path, root):
            first, _, rest = f"{stem}.{name or ''}".partition(".")
            other, _, inside = rest.partition(".")
            if first == "koopjax" and other != room and re.search(r"(^|\.)_[a-z]", inside):
                yield f"{path.relative_to(root)} takes {stem}.{name}"


def circles(root):
    """Modules that import themselves by way of others, packages' doors left out."""
    files = [p for p in (root / "koopjax").rglob("*.py") if p.name != "__init__.py"]
    graph = {
        module_of(path, root): {
            target for stem, name in imports(path, root) for target in (stem, f"{stem}.{name}")
        }
        for path in files
    }
    for start in sorted(graph):
        seen, ahead = set(), [start]
        while ahead:
            new = (graph[ahead.pop()] & set(graph)) - seen
            seen |= new
            ahead += new
        if start in seen:
            yield start


def untyped(module):
    """Functions, and methods of classes, among a module's public names that lack a type."""
    for name in module.__all__:
        value = getattr(module, name)
        members = [(name, value)]
        if inspect.isclass(value) and value.__module__.startswith("koopjax"):
            members = [
                (f"{name}.{member}", getattr(held, "__func__", held))
                for member, held in vars(value).items()
                if not member.startswith("_")
            ]
        for where, function in members:
            if not inspect.isfunction(function) or function.__module__ == "builtins":
                continue
            parameters = inspect.signature(function).parameters.values()
            own = [p for p in parameters if p.name not in ("self", "cls")]
            bare = [p.name for p in own if p.annotation is p.empty]
            if bare or "return" not in function.__annotations__:
                yield f"{module.__name__}.{where}: {', '.join(bare) or 'what it returns'}"


def undeclared(root, project):
    """Packages that koopjax imports and pyproject does not name."""
    extras = itertools.chain(*project["optional-dependencies"].values())
    wanted = [*project["dependencies"], *extras]
    declared = {re.match(r"[\w.-]+", line)[0].lower().replace("_", "-") for line in wanted}
    sources = importlib.metadata.packages_distributions()
    for path in sorted((root / "koopjax").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        taken = {stem.partition(".")[0] for stem, _ in imports(path, root)}
        taken |= {name.partition(".")[0] for name in re.findall(r'needed\(\s*"([\w.]+)"', text)}
        for package in sorted(taken - {"koopjax", *sys.stdlib_module_names}):
            names = {name.lower().replace("_", "-") for name in sources.get(package, [package])}
            if not names & declared:
                yield f"{path.relative_to(root)} imports {package}"


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
    import koopjax

    assert koopjax.__version__ == PROJECT["project"]["version"]
    with pytest.raises(AttributeError, match="its rooms are"):
        _ = koopjax.nothing


def test_no_private_name_crosses_rooms():
    assert not list(private_imports(ROOT))


def test_no_module_imports_itself_by_way_of_others():
    assert not list(circles(ROOT))


@pytest.mark.parametrize("room", PUBLIC)
def test_public_functions_are_typed(room):
    assert not list(untyped(importlib.import_module(f"koopjax.{room}")))


def test_what_is_imported_is_declared():
    assert not list(undeclared(ROOT, PROJECT["project"]))


def planted(tmp_path, **files):
    """A package of a few files, `a__b` being the file `koopjax/a/b.py`."""
    for name, text in files.items():
        path = tmp_path / "koopjax" / (name.replace("__", "/", 1) + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return tmp_path


def test_the_rules_find_what_breaks_them(tmp_path):
    root = planted(
        tmp_path,
        tt___dense="from koopjax.tt import _parts\nfrom koopjax._core._linalg import gram\n",
        tt___parts="def late():\n    from koopjax.tt._dense import x\n",
        nn___block="import tensorly\nfrom koopjax.tt import _hidden, TensorTrain\n",
        nn___plain="from koopjax._core import gram\nfrom koopjax.nn._block import x\nimport jax\n",
        plot___style='matplotlib = needed("seaborn.colours", "report")\n',
    )
    assert list(private_imports(root)) == [
        "koopjax/nn/_block.py takes koopjax.tt._hidden",
        "koopjax/tt/_dense.py takes koopjax._core._linalg.gram",
    ]
    assert list(circles(root)) == ["koopjax.tt._dense", "koopjax.tt._parts"]
    assert list(undeclared(root, PROJECT["project"])) == [
        "koopjax/nn/_block.py imports tensorly",
        "koopjax/plot/_style.py imports seaborn",
    ]
    module = type(sys)("koopjax.planted")
    code = (
        "def bare(x): ...\ndef half(x: int): ...\ndef typed(x: int) -> int: ...\n"
        "class Kept:\n    def solve(self, gram): ...\n    def _own(self, x): ...\n"
        "__all__ = ['bare', 'half', 'typed', 'Kept']\n"
    )
    exec(code, module.__dict__)
    assert [line.partition(":")[0] for line in untyped(module)] == [
        "koopjax.planted.bare",
        "koopjax.planted.half",
        "koopjax.planted.Kept.solve",
    ]
