"""dtype in is dtype out, nothing is configured globally, second calls compile nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from koopjax import tt

EVENT = "/jax/core/compile/backend_compile_duration"
DTYPES = [jnp.bfloat16, jnp.float64]
compilations = []


def listen(event, _seconds, **_):
    if event == EVENT:
        compilations.append(event)


@pytest.fixture(scope="module", autouse=True)
def listener():
    jax.monitoring.register_event_duration_secs_listener(listen)
    yield
    jax.monitoring.unregister_event_duration_listener(listen)


def every_verb(train):
    padded = tt.pad(train, 3)
    matrix = tt.diagonal_matrix(train)
    yield from (tt.add(train, train), tt.scale(train, 2.0), tt.hadamard(train, train))
    yield from (tt.orthogonalize(train, 1), tt.truncate(train, 2), tt.round(train, max_rank=1))
    yield from (tt.add(padded, padded), tt.orthogonalize(padded, 0), tt.truncate(padded, 2))
    yield from (tt.matvec(matrix, train), tt.matmul(matrix, matrix), tt.unpad(padded))
    yield from (tt.from_dense(train.to_dense(), max_rank=1), train[:, 1], tt.kron(train, train))


def numbers(train):
    yield from (tt.dot(train, train), tt.entries(train, np.asarray([[0, 1]])))


def magnitudes(train):
    yield from (tt.norm(train), tt.norm(tt.pad(train, 3)), tt.singular_values(train)[0])


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
def test_dtype_is_kept_without_x64_and_second_calls_compile_nothing(dtype):
    assert not jax.config.jax_enable_x64
    for seed in range(2):
        before = len(compilations)
        train = tt.random(jax.random.key(seed), (4, 4), 2, dtype)
        assert train.dtype == dtype
        assert all(result.dtype == dtype for result in every_verb(train))
        assert train.to_dense().dtype == dtype
        assert tt.pad(train, 3).to_dense().dtype == dtype
        assert all(number.dtype == dtype for number in numbers(train))
        real = jnp.finfo(dtype).dtype
        assert all(magnitude.dtype == real for magnitude in magnitudes(train))
        assert (len(compilations) > before) == (seed == 0)
    assert not jax.config.jax_enable_x64


def test_float32_has_the_digits_of_float32():
    with jax.enable_x64(True):
        wide = tt.random(jax.random.key(0), (4, 5, 4), 4, jnp.float64)
        narrow = tt.TensorTrain(tuple(core.astype(jnp.float32) for core in wide.cores))
        want = np.asarray(wide.to_dense())
    for got in (
        tt.orthogonalize(narrow, 2),
        tt.truncate(narrow, 4),
        tt.unpad(tt.truncate(tt.pad(narrow, 6), 5)),
        tt.round(narrow),
        tt.from_dense(narrow.to_dense()),
    ):
        assert np.linalg.norm(np.asarray(got.to_dense()) - want) <= 3e-6 * np.linalg.norm(want)
