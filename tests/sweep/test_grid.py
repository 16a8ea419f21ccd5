"""Grids against plain loops; chunks, memory limits, compilations, and mistakes."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from koopjax import sweep

EVENT = "/jax/core/compile/backend_compile_duration"


def polynomial(x, y, *, degree, alpha, key):
    psi = jnp.stack([x**k for k in range(degree + 1)], axis=1)
    noisy = y + 0.1 * jax.random.normal(key, y.shape, y.dtype)
    gram = psi.T @ psi + alpha * jnp.eye(degree + 1, dtype=x.dtype)
    k = jnp.linalg.solve(gram, psi.T @ noisy)
    return {"error": jnp.mean((psi @ k - y) ** 2), "size": k.size, "k": k}


single = jax.jit(polynomial, static_argnames="degree")


@pytest.fixture
def data():
    x = np.linspace(-1, 1, 30, dtype=np.float32)
    return x, np.tanh(3 * x)


AXES = {"degree": [1, 3], "alpha": [1e-3, 1e-1, 1.0]}


def keys(n=2):
    return jax.random.split(jax.random.key(0), n)


@pytest.mark.parametrize("lanes", ["vmap", "map"])
def test_product_equals_a_loop(data, lanes):
    axes = {**AXES, "key": keys()}
    table = sweep.grid(polynomial, axes, data=data, static="degree", lanes=lanes, chunk=4)
    assert table.columns == ("degree", "alpha", "key", "error", "size", "result")
    points = list(itertools.product(AXES["degree"], AXES["alpha"], range(2)))
    assert [(r["degree"], r["alpha"], r["key"]) for r in table] == points
    for row, k, (degree, alpha, seed) in zip(table, table.arrays["k"], points, strict=True):
        alone = single(*data, degree=degree, alpha=alpha, key=keys()[seed])
        assert row["error"] == pytest.approx(float(alone["error"]), rel=1e-4)
        np.testing.assert_allclose(k, alone["k"], rtol=1e-3, atol=1e-5)
        assert (row["size"], row["result"]) == (degree + 1, 0)


def test_axes_in_step():
    table = sweep.grid(lambda a, b: {"sum": a + b}, {"a": [1, 2], "b": [10, 20]}, zip=True)
    assert table["sum"].tolist() == [11, 22]
    with pytest.raises(ValueError, match="equal length"):
        sweep.grid(lambda a, b: {"sum": a + b}, {"a": [1, 2], "b": [10]}, zip=True)


def test_static_axes_alone_and_trees_on_an_axis():
    table = sweep.grid(
        lambda name, n: {"value": jnp.ones(n).sum()},
        {"name": ["a", "b"], "n": [1, 2]},
        static=["name", "n"],
    )
    assert table["value"].tolist() == [1, 2, 1, 2]
    trees = [{"w": jnp.full(3, v), "b": v} for v in (1.0, 2.0)]
    table = sweep.grid(lambda p: {"sum": p["w"].sum() + p["b"]}, {"p": trees})
    assert table["sum"].tolist() == [4, 8]
    assert table["p"].tolist() == [0, 1]


def test_numbers_and_their_types_are_kept_apart():
    def twice(n):
        return {"whole": isinstance(n, int)}

    assert sweep.grid(twice, {"n": [2, 2.0]}, static="n")["whole"].tolist() == [True, False]


def test_dtypes_follow_the_data(data):
    def dtype(x, alpha):
        return {"bytes": (x * alpha).dtype.itemsize}

    assert sweep.grid(dtype, {"alpha": np.logspace(-3, 0, 2)}, data=data[:1])["bytes"][0] == 4
    with jax.enable_x64(True):
        wide = jnp.ones(3)
        assert wide.dtype == jnp.float64
        assert sweep.grid(dtype, {"alpha": [0.1]}, data=data[:1])["bytes"][0] == 4
    # float64 data are swept in float64 though x64 is off here.
    table = sweep.grid(lambda x, a: {"y": x[0] + a}, {"a": [1e-12]}, data=(wide,))
    assert table["y"][0] == 1 + 1e-12


def test_one_compilation_a_static_value_and_none_the_second_time(data):
    compiled = []
    listen = lambda event, _, **about: event == EVENT and compiled.append(about.get("fun_name"))
    jax.monitoring.register_event_duration_secs_listener(listen)

    def function(x, y, *, degree, alpha):
        return polynomial(x, y, degree=degree, alpha=alpha, key=jax.random.key(0))

    try:
        axes = {"degree": [1, 2], "alpha": np.logspace(-3, 0, 7)}
        sweep.grid(function, axes, data=data, static="degree", chunk=3)
        assert [name for name in compiled if "run_lanes" in name] == 2 * ["jit(run_lanes)"]
        compiled.clear()
        axes["alpha"] = np.logspace(-2, 1, 7)
        sweep.grid(function, axes, data=data, static="degree", chunk=3)
        assert compiled == []
        sweep.grid(function, axes, data=data, static="degree", memory_limit="1GiB")
        assert [name for name in compiled if "run_lanes" in name] == 2 * ["jit(run_lanes)"]
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def large(x, a):
    return {"trace": jnp.trace(jnp.linalg.inv(x + a * jnp.eye(100)))}


def test_memory_limit_makes_chunks():
    x = jnp.eye(100)
    axes = {"a": np.linspace(1, 2, 40)}
    whole = sweep.grid(large, axes, data=(x,))
    chunks = []
    part = sweep.grid(
        large, axes, data=(x,), memory_limit="1MiB", progress=lambda *done: chunks.append(done)
    )
    assert len(chunks) > 2
    assert chunks[-1] == (40, 40)
    np.testing.assert_allclose(part["trace"], whole["trace"], rtol=1e-5)


def test_memory_limit_too_small_for_one_lane():
    with pytest.raises(ValueError, match="one lane takes") as caught:
        sweep.grid(large, {"a": [1.0, 2.0]}, data=(jnp.eye(100),), memory_limit=1000)
    needed = int(str(caught.value).split("(")[1].split()[0])
    table = sweep.grid(large, {"a": [1.0, 2.0]}, data=(jnp.eye(100),), memory_limit=needed)
    assert table["trace"] == pytest.approx([50, 100 / 3], rel=1e-4)


def test_what_is_not_finite_is_flagged():
    def root(a):
        return {"root": jnp.sqrt(a)}

    assert sweep.grid(root, {"a": [4.0, -1.0]})["result"].tolist() == [0, 5]
    own = sweep.grid(lambda a: {"root": jnp.sqrt(a), "result": 2}, {"a": [4.0, -1.0]})
    assert own["result"].tolist() == [2, 2]


@pytest.mark.parametrize(
    ("axes", "settings", "message"),
    [
        ({}, {}, "at least one name"),
        (None, {}, "at least one name"),
        ({"a": []}, {}, "at least one value on the axis 'a'"),
        ({"a": 3}, {}, "a sequence of values on the axis 'a'"),
        ({"a": "text"}, {}, "a sequence of values"),
        ({"a": ["x", "y"]}, {}, "static="),
        ({"a": [None]}, {}, "static="),
        ({"a": [1.0]}, {"static": ["b"]}, "static names among the axes"),
        ({"a": [[1]]}, {"static": "a"}, "hashable values"),
        ({"a": [1.0]}, {"chunk": 0}, "chunk as a whole number of at least 1"),
        ({"a": [1.0]}, {"lanes": "all"}, "lanes in"),
        ({"a": [1.0]}, {"memory_limit": "much"}, "a memory limit in bytes"),
        ({"a": [1.0]}, {"memory_limit": 0}, "a memory limit in bytes"),
        ({"a": [1.0]}, {"data": (1.0,)}, "a function of 1 data arguments"),
        ({"b": [1.0]}, {}, "the keywords"),
        ({"a": [np.ones(2), np.ones(3)]}, {}, "one structure and shape"),
    ],
)
def test_mistakes_are_one_line(axes, settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        sweep.grid(lambda a: {"b": a}, axes, **settings)
    assert "\n" not in str(caught.value)


def test_functions_that_return_something_else():
    with pytest.raises(ValueError, match="a dict of scalars or arrays"):
        sweep.grid(lambda a: a, {"a": [1.0]})
    with pytest.raises(ValueError, match="named differently from the axes"):
        sweep.grid(lambda a: {"a": a}, {"a": [1.0]})


def test_a_traced_axis_that_sets_a_shape_is_explained():
    with pytest.raises(TypeError) as caught:
        sweep.grid(lambda n: {"a": jnp.ones(n).sum()}, {"n": [1, 2]})
    assert any("static=" in note for note in caught.value.__notes__)
