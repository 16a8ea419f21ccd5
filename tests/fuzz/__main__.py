"""Wrong calls of public verbs, damaged files or command lines, counted by what becomes of them.

usage: python -m tests.fuzz [--calls 10000 | --files 1000 | --lines 200] [--seed 0] [--out FILE]
       python -m tests.fuzz --only NUMBER        one call, with its traceback

What is done is kept in the file beside `--out` with the ending `.jsonl`, a line a call; called
again, it goes on where it stopped. The calls run in a process of their own, started anew now and
then, or when it hangs or dies; memory is limited.
"""

from __future__ import annotations

import argparse
import collections
import importlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

TOGETHER = 400  # calls of a process: compiled programs pile up
MEMORY = 12 << 30  # bytes of address space
FLAGS = "--xla_backend_optimization_level=0 --xla_cpu_multi_thread_eigen=false"


def work_of(arguments: argparse.Namespace) -> Any:
    """The module that draws and runs what was asked for."""
    name = "damage" if arguments.files else "lines" if arguments.lines else "calls"
    return importlib.import_module(f"tests.fuzz.{name}")


def worker(arguments: argparse.Namespace) -> None:
    """Calls from one number to another, a line each on standard output."""
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    sink, sys.stdout = sys.stdout, sys.stderr  # a verb may print
    work = work_of(arguments)
    import faulthandler

    work.prepare()
    for number in range(arguments.start, arguments.stop):
        call = work.draw(arguments.seed, number)
        print(json.dumps({"begin": number, "call": str(call)}), file=sink, flush=True)
        with open(arguments.trace, "w") as trace:
            faulthandler.dump_traceback_later(arguments.limit * 5, exit=True, file=trace)
            start = time.process_time()
            outcome = work.run(call, arguments.limit)
            seconds = round(time.process_time() - start, 3)
            faulthandler.cancel_dump_traceback_later()
        row = {"number": number, "call": str(call), "seconds": seconds}
        row |= {"kind": "none to make"} if outcome is None else vars(outcome)
        print(json.dumps(row), file=sink, flush=True)


def last_place(trace: pathlib.Path) -> str:
    """The innermost line of the package in a traceback that `faulthandler` left."""
    lines = trace.read_text().splitlines() if trace.exists() else []
    for line in lines:
        if "/koopjax/" in line and "line" in line:
            path, _, rest = line.strip().removeprefix('File "').partition('"')
            return f"koopjax/{path.rsplit('/koopjax/', 1)[1]}:{rest.split()[2]}"
    return "somewhere"


def control(arguments: argparse.Namespace) -> None:
    """Start workers until all calls are made, and write what they say."""
    lines = pathlib.Path(arguments.out).with_suffix(".jsonl")
    rows = [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
    done = rows[-1]["number"] + 1 if rows else 0
    total = arguments.files or arguments.lines or arguments.calls
    trace = pathlib.Path(tempfile.mkdtemp()) / "trace"
    with lines.open("a") as log:
        while done < total:
            begun, ended = run_worker(
                arguments, done, min(total, done + TOGETHER), trace, log, rows
            )
            if begun is not None:  # it died within a call
                what = "hang" if trace.exists() and "Timeout" in trace.read_text() else "crash"
                row = {"number": begun["begin"], "call": begun["call"], "kind": what,
                       "where": last_place(trace), "message": what}  # fmt: skip
                print(json.dumps(row), file=log, flush=True)
                rows.append(row)
                ended = begun["begin"] + 1
            if ended == done:
                raise SystemExit("the worker died before its first call")
            done = ended
            counts = dict(collections.Counter(row["kind"] for row in rows))
            print(f"{done} of {total}: {counts}", file=sys.stderr, flush=True)
    summary = summarise(rows)
    pathlib.Path(arguments.out).write_text(json.dumps(summary, indent=1))
    print(json.dumps(summary["classes"], indent=1))


def run_worker(
    arguments: argparse.Namespace, start: int, stop: int, trace: Any, log: Any, rows: list[Any]
) -> tuple[Any, int]:
    """One worker: the call in which it died, if any, and the number behind its last call."""
    command = [sys.executable, *(["-P"] if sys.flags.safe_path else []), "-m", "tests.fuzz"]
    command += ["--worker", "--start", start, "--stop", stop, "--seed", arguments.seed]
    command += ["--trace", trace, "--limit", arguments.limit]
    command += ["--files", arguments.files, "--lines", arguments.lines]
    environment = {
        **os.environ,
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}".strip(),
        "JAX_TRACEBACK_FILTERING": "off",
        "MPLBACKEND": "agg",
    }
    process = subprocess.Popen(
        [str(part) for part in command], stdout=subprocess.PIPE, text=True, env=environment
    )
    begun, ended = None, start
    assert process.stdout is not None
    for line in process.stdout:
        row = json.loads(line)
        if "begin" in row:
            begun = row
        else:
            begun, ended = None, row["number"] + 1
            rows.append(row)
            print(json.dumps(row), file=log, flush=True)
    process.wait()
    return begun, ended


def summarise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts by class, and the places of what is wrong with an example each."""
    classes = collections.Counter(row["kind"] for row in rows)
    places: dict[str, dict[str, Any]] = {}
    good = ("right", "flagged", "refused", "own", "none to make")
    for row in rows:
        if row["kind"] in good:
            continue
        place = f"{row['kind']}: {row['where']}"
        entry = places.setdefault(
            place, {"count": 0, "call": row["call"], "number": row["number"],
                    "message": row.get("message", "")}
        )  # fmt: skip
        entry["count"] += 1
    ordered = dict(sorted(places.items(), key=lambda pair: -pair[1]["count"]))
    return {"calls": len(rows), "classes": dict(classes.most_common()), "places": ordered}


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.fuzz")
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--files", type=int, default=0)
    parser.add_argument("--lines", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="fuzz.json")
    parser.add_argument("--only", type=int)
    parser.add_argument("--limit", type=float, default=60.0, help="seconds of computing a call")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--start", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--stop", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--trace", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments)
    elif arguments.only is not None:
        work = work_of(arguments)
        call = work.draw(arguments.seed, arguments.only)
        print(call)
        print(work.run(call, arguments.limit, show=True))
    else:
        control(arguments)


if __name__ == "__main__":
    main()
