"""What the benchmarks share: timing with warm-up, peak memory, and results as JSON.

Results go to `benchmarks/results/NAME.json` with device, versions and settings, but no paths or
host names.
"""

import importlib.metadata
import json
import os
import pathlib
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax

ROOT = pathlib.Path(__file__).resolve().parent
PACKAGES = ("jax", "jaxlib", "flax", "numpy", "scikit-learn", "deeptime", "scipy")


def seconds(run: Callable[[], Any], repeats: int = 3, warm_up: int = 1) -> list[float]:
    """Wall times of calls that are waited for, after calls that compile."""
    for _ in range(warm_up):
        jax.block_until_ready(run())
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    return times


def interleaved(runs: dict[str, Callable[[], Any]], repeats: int = 3) -> dict[str, list[float]]:
    """Wall times of several functions by turns, so that a busy spell hits all of them alike."""
    for run in runs.values():
        jax.block_until_ready(run())
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            times[name] += seconds(run, 1, 0)
    return times


def summary(times: list[float]) -> dict[str, float]:
    """Best, median and spread of wall times in seconds."""
    return {
        "best_s": min(times),
        "median_s": statistics.median(times),
        "worst_s": max(times),
        "repeats": len(times),
    }


def peak_bytes() -> int:
    """Largest resident size of this process so far.

    From `VmHWM` where there is one: on Linux `ru_maxrss` of a child begins at its parent's size,
    so that a small child of a large benchmark would always show the parent's peak.
    """
    status = pathlib.Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def in_subprocess(*arguments: str) -> dict[str, Any]:
    """Run the calling script afresh with arguments; the JSON on its last line."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT.parent)}
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.strip().splitlines()[-1])


def versions() -> dict[str, str]:
    """Of the packages that matter, as far as they are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def write(name: str, results: dict[str, Any]) -> pathlib.Path:
    """Write `benchmarks/results/NAME.json`, replacing it in one move."""
    device = jax.devices()[0]
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    record = {
        "benchmark": name,
        "device": {"platform": device.platform, "kind": device.device_kind},
        "cores": os.cpu_count(),
        "load_average": load,
        "versions": versions(),
        **results,
    }
    path = ROOT / "results" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    partial = path.with_suffix(".tmp")
    partial.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)
    return path
