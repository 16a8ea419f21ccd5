"""Sweeps that are interrupted and go on; ledgers of other sweeps, cut and foreign files."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from koopjax import sweep

ROOT = pathlib.Path(__file__).resolve().parents[2]


def function(x, alpha):
    return {"value": jnp.sum(x) * alpha, "pair": {"a": x * alpha, "b": alpha > 1}}


X = jnp.arange(3.0)
AXES = {"alpha": [0.5, 1.0, 1.5, 2.0, 2.5]}


def run(path, **settings):
    settings = {"data": (X,), "chunk": 2, **settings}
    return sweep.grid(settings.pop("function", function), AXES, ledger=path, **settings)


def test_an_interrupted_sweep_computes_only_what_is_missing(tmp_path):
    path = tmp_path / "new" / "ledger"

    def interrupt(done, _):
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(path, progress=interrupt)
    seen = []
    table = run(path, progress=lambda *done: seen.append(done))
    assert seen == [(4, 5), (5, 5)]
    whole = sweep.grid(function, AXES, data=(X,))
    assert table.rows == whole.rows
    for resumed, once in zip(table.arrays["pair"], whole.arrays["pair"], strict=True):
        jax.tree.map(np.testing.assert_array_equal, resumed, once)
    seen.clear()
    assert run(path, progress=lambda *done: seen.append(done)).rows == whole.rows
    assert seen == [(5, 5)]


def test_cut_off_anywhere_it_goes_on(tmp_path):
    path = tmp_path / "ledger"
    rows = run(path).rows
    data = path.read_bytes()
    for end in sorted({*range(0, len(data), 37), len(data) - 1}):
        path.write_bytes(data[:end])
        assert run(path).rows == rows
    damaged = bytearray(data)
    damaged[len(data) - 3] ^= 1
    path.write_bytes(bytes(damaged))
    assert run(path).rows == rows
    assert path.read_bytes() == data


def other(x, alpha):
    return {"value": jnp.sum(x) * alpha + 1}


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"function": other}, "function"),
        ({"data": (X + 1,)}, "data"),
        ({"static": "alpha"}, "axes"),
    ],
    ids=["function", "data", "axes"],
)
def test_a_ledger_of_another_sweep_is_refused(tmp_path, settings, part):
    run(tmp_path / "ledger")
    before = (tmp_path / "ledger").read_bytes()
    with pytest.raises(ValueError, match=f"the ledger of this sweep.*other.*{part}"):
        run(tmp_path / "ledger", **settings)
    assert (tmp_path / "ledger").read_bytes() == before


def test_constants_inside_the_function_count(tmp_path):
    def holding(constant):
        return lambda x, alpha: {"value": jnp.sum(x * constant) * alpha}

    run(tmp_path / "ledger", function=holding(jnp.ones(3)))
    run(tmp_path / "ledger", function=holding(jnp.ones(3)))
    with pytest.raises(ValueError, match="other function"):
        run(tmp_path / "ledger", function=holding(jnp.arange(3.0)))


def test_foreign_files_and_ledgers_in_use(tmp_path):
    (tmp_path / "text").write_text("something else")
    with pytest.raises(ValueError, match="ledger of this sweep"):
        run(tmp_path / "text")
    assert (tmp_path / "text").read_text() == "something else"
    with pytest.raises(ValueError, match="another run that is writing"):
        run(tmp_path / "ledger", progress=lambda *_: run(tmp_path / "ledger"))


def test_random_keys_and_bfloat16_are_restored(tmp_path):
    def noise(key):
        return {"noise": jax.random.normal(key, (2,), jnp.bfloat16)}

    axes = {"key": jax.random.split(jax.random.key(0), 3)}
    first = sweep.grid(noise, axes, ledger=tmp_path / "l").arrays["noise"]
    second = sweep.grid(noise, axes, ledger=tmp_path / "l").arrays["noise"]
    assert second[0].dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(first, np.float32), np.asarray(second, np.float32))
    with pytest.raises(ValueError, match="other axes"):
        sweep.grid(noise, {"key": axes["key"][::-1]}, ledger=tmp_path / "l")


CHILD = """
import json, sys, time
import jax.numpy as jnp
from koopjax import sweep

def function(x, alpha):
    return {"value": jnp.sum(jnp.sin(x)) * alpha}

def progress(done, total):
    print(done, flush=True)
    time.sleep(float(sys.argv[2]))

table = sweep.grid(
    function, {"alpha": [float(i) for i in range(20)]}, data=(jnp.arange(4.0),), chunk=1,
    ledger=sys.argv[1], progress=progress,
)
print(json.dumps(table["value"].tolist()))
"""


def child(path, pause):
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(path), str(pause)],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_a_killed_process_loses_at_most_the_running_chunk(tmp_path):
    path = tmp_path / "ledger"
    first = child(path, 0.2)
    for line in first.stdout:
        if int(line) >= 3:
            break
    time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    first.stdout.close()
    second = child(path, 0)
    lines = second.communicate()[0].splitlines()
    assert second.returncode == 0
    assert 3 <= int(lines[0]) < 20  # finished before, and not computed again
    assert len(lines) == 20 - int(lines[0]) + 2
    expected = np.sum(np.sin(np.arange(4.0))) * np.arange(20.0)
    np.testing.assert_allclose(json.loads(lines[-1]), expected, rtol=1e-5, atol=1e-6)
