"""Eight forced host devices give the single-device K, both kinds of statistics, one or two axes."""

import os
import subprocess
import sys

SCRIPT = """
import jax, jax.numpy as jnp, numpy as np
from koopjax import edmd
from koopjax.observables import Identity, Monomials

assert len(jax.devices()) == 8
rng = np.random.default_rng(0)
auto = jax.sharding.AxisType.Auto
meshes = [jax.make_mesh((8,), ("data",), axis_types=(auto,)),
          jax.make_mesh((2, 4), ("a", "b"), axis_types=(auto, auto)),
          jax.make_mesh((8,), ("data",))]
with jax.enable_x64(True):
    x = rng.uniform(-1, 1, size=(201, 2))  # not a multiple of the devices
    y = np.tanh(x)
    for statistics in ("gram", "rfactor"):
        alone = edmd.fit(Monomials(3), x, y, statistics=statistics)
        for mesh in meshes:
            spread = edmd.fit(Monomials(3), x, y, statistics=statistics, mesh=mesh)
            scale = np.abs(alone.matrix).max()
            assert np.abs(alone.matrix - spread.matrix).max() <= 1e-12 * scale, statistics
            assert float(spread.info.count) == 201
    stream = [(x[:100], y[:100]), (x[100:], y[100:])]
    for statistics in ("gram", "rfactor"):
        alone = edmd.fit(Monomials(2), stream, statistics=statistics)
        spread = edmd.fit(Monomials(2), stream, statistics=statistics, mesh=meshes[0])
        assert np.abs(alone.matrix - spread.matrix).max() <= 1e-12
    method = edmd.CrossValidated(edmd.Ridge(), jnp.array([1e-3, 1.0]))
    alone = edmd.fit(Monomials(2), x[:200], y[:200], solver=method, target=Identity())
    spread = edmd.fit(
        Monomials(2), x[:200], y[:200], solver=method, target=Identity(), mesh=meshes[0]
    )
    assert np.abs(alone.matrix - spread.matrix).max() <= 1e-12
print("equal")
"""


def test_eight_devices_give_the_same_matrix():
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
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
