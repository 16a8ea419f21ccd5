"""Shared fixtures: where genuine data lie, and strict settings for every test."""

import gc
import itertools
import json
import os
import pathlib
import sys
import tempfile
from collections import Counter

# Dozens of processes start in a run, and reading jax's sources takes each of them seconds of
# processor where compiled ones may not be kept beside them.
if sys.dont_write_bytecode:
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = str(pathlib.Path(tempfile.gettempdir(), "koopjax-pycache"))
    sys.pycache_prefix, sys.dont_write_bytecode = os.environ["PYTHONPYCACHEPREFIX"], False

# Each worker has a core: threads of its own BLAS would wait for each other on the others' cores.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# Nearly all of a test's time is compilation; what is compiled here runs once or twice. The older
# emitters of fused loops compile in half the time of today's, and one module of LLVM a program in
# two thirds of the time of 32.
CHEAP = (
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false "
    "--xla_cpu_parallel_codegen_split_count=1"
)
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {CHEAP}".strip()

import jax
import jax.monitoring
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


# What each test costs: programs compiled, seconds of tracing, lowering and XLA by jax's own events,
# and seconds of processor in all, those of its subprocesses too, which other work on the machine
# hardly changes. A test's count travels with its report, so that it is whole whichever worker ran
# it; the run ends with the totals and the costliest tests, and KOOPJAX_TEST_COUNTS names a file for
# all of them.
EVENTS = {
    "/jax/core/compile/jaxpr_trace_duration": "trace",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "lower",
    "/jax/core/compile/backend_compile_duration": "compile",
}


def _processor():
    return sum(os.times()[:4])


_spent: Counter[str] = Counter(processor=-_processor())
_tests: dict[str, Counter[str]] = {}


def _listen(event, seconds, **_):
    if kind := EVENTS.get(event):
        _spent[kind] += seconds
        _spent["programs"] += kind == "compile"


jax.monitoring.register_event_duration_secs_listener(_listen)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    now = _processor()
    _spent["processor"] += now
    report.user_properties.append(("spent", dict(_spent)))
    _spent.clear()
    _spent["processor"] = -now
    return report


def pytest_runtest_logreport(report):
    spent = dict(report.user_properties).get("spent", {})
    _tests.setdefault(report.nodeid, Counter()).update(spent)


def pytest_terminal_summary(terminalreporter):
    total = sum(_tests.values(), Counter())
    told = ", ".join(f"{kind} {total[kind]:.0f} s" for kind in (*EVENTS.values(), "processor"))
    terminalreporter.section("compilation", sep="-")
    terminalreporter.line(f"{total['programs']:.0f} programs: {told}")
    for name, spent in sorted(_tests.items(), key=lambda test: -test[1]["processor"])[:10]:
        terminalreporter.line(f"{spent['processor']:7.1f} s {spent['programs']:5.0f} {name}")
    if path := os.environ.get("KOOPJAX_TEST_COUNTS"):
        pathlib.Path(path).write_text(json.dumps(_tests, indent=1), encoding="utf-8")
