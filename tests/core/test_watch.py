"""Fingerprints of what functions compute, and versions that follow them."""

import jax
import jax.numpy as jnp
import numpy as np

from koopjax._core import changed, fingerprint, note, version


def traced(function, *shapes):
    return fingerprint(jax.make_jaxpr(function)(*(jnp.ones(shape) for shape in shapes)))


def test_a_fingerprint_is_that_of_the_computation():
    made = lambda factor: lambda x: jnp.tanh(x * factor)
    assert traced(made(2.0), 3) == traced(made(2.0), 3)
    assert traced(made(2.0), 3) != traced(made(2.5), 3)
    assert traced(made(2.0), 3) != traced(made(2.0), 4)
    assert traced(made(np.ones(3)), 3) != traced(made(np.arange(3.0)), 3)
    assert traced(jnp.sin, 3) != traced(jnp.cos, 3)
    inside = lambda factor: jax.jit(lambda x: jax.lax.scan(lambda h, w: (h * factor, w), x, x))
    assert traced(inside(2.0), 3) != traced(inside(3.0), 3)


def test_operands_in_another_order_differ():
    assert traced(lambda x, y: x - y, 3, 3) != traced(lambda x, y: y - x, 3, 3)
    assert traced(lambda x, y: (x, y), 3, 3) != traced(lambda x, y: (y, x), 3, 3)


def test_a_version_stays_until_the_function_computes_something_else():
    held = {"factor": 2.0}
    function = lambda x: x * held["factor"]
    first = version("key of this test")
    note("key of this test", function, jnp.ones(3))
    assert version("key of this test") == first
    with jax.enable_x64(True), jax.default_matmul_precision("float32"):
        assert version("key of this test") == first  # traced again as it was traced
    held["factor"] = 3.0
    assert changed("key of this test", first)
    second = version("key of this test")
    assert second != first
    assert version("key of this test") == second
    assert not changed("a key that nobody knows", 0)
