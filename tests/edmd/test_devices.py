"""Eight forced host devices give the single-device K, both kinds of statistics, one or two axes."""

import os
import subprocess
import sys

SCRIPT = """
import jax, numpy as np
from koopjax import edmd
from koopjax.observables import Identity, Monomials

assert len(jax.devices()) == 8
rng = np.random.default_rng(0)
auto = jax.sharding.AxisType.Auto
meshes = [jax.make_mesh((8,), ("data",), axis_types=(auto,)),
          jax.make_mesh((2, 4), ("a", "b"), axis_types=(auto, auto)),
          jax.make_mesh((8,), ("data",))]
with jax.enable_x64(True):
    x = rng.uniform(-1, 1, size=(101, 2))  # not a multiple of the devices
    y = np.tanh(x)
    later = rng.uniform(-1, 1, size=(101, 2))
    stream = [(x, y), (later, np.tanh(later))]
    fit = lambda *data, **how: edmd.fit(Monomials(3), *data, **how)

    def same(alone, spread):
        error = np.abs(np.asarray(alone.matrix) - np.asarray(spread.matrix)).max()
        assert error <= 1e-12 * np.abs(alone.matrix).max(), alone.info.statistics

    for statistics in ("gram", "rfactor"):
        alone = fit(x, y, statistics=statistics)
        for mesh in meshes:
            spread = fit(x, y, statistics=statistics, mesh=mesh)
            same(alone, spread)
            assert float(spread.info.count) == 101
        same(fit(stream, statistics=statistics), fit(stream, statistics=statistics, mesh=meshes[0]))
    method = edmd.CrossValidated(edmd.Ridge(), np.array([1e-3, 1.0]))
    how = {"solver": method, "target": Identity()}
    same(fit(x, y, **how), fit(x, y, mesh=meshes[0], **how))
print("equal")
"""


def test_eight_devices_give_the_same_matrix():
    environment = {
        **os.environ,
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
    }
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", SCRIPT],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == "equal"
