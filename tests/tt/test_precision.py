"""dtype in is dtype out, nothing is configured globally, second calls compile nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from koopjax import tt
from tests.tt.dense import assert_close, full

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
    """On ragged trains of one dtype and padded ones of the other."""
    one = tt.pad(train, 3) if train.dtype == jnp.bfloat16 else train
    with jax.enable_x64(train.dtype == np.float64):
        cores = [jnp.asarray(np.asarray(core)[:, :, None]) for core in train.cores]
    matrix = tt.TTMatrix(cores)
    yield from (tt.add(one, one), tt.scale(one, 2.0), tt.hadamard(one, one))
    yield from (tt.orthogonalize(one, 1), tt.truncate(one, 2), tt.round(train, max_rank=1))
    yield from (tt.vecmat(train, matrix), tt.matmul(tt.transpose(matrix), matrix))
    yield from (tt.from_dense(train.to_dense(), max_rank=1), train[:, 1], tt.pad(train, 3))
    yield from (tt.dot(one, one), tt.entries(train, np.asarray([[0, 1]])), one.to_dense())
    yield tt.unpad(tt.pad(train, 3))


def magnitudes(train):
    one = tt.pad(train, 3) if train.dtype == jnp.bfloat16 else train
    yield from (tt.norm(one), tt.singular_values(one)[0])


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
def test_dtype_is_kept_without_x64_and_second_calls_compile_nothing(dtype):
    assert not jax.config.jax_enable_x64
    for seed in range(2):
        before = len(compilations)
        train = tt.random(jax.random.key(seed), (4, 4), 2, dtype)
        assert train.dtype == dtype
        assert all(result.dtype == dtype for result in every_verb(train))
        real = jnp.finfo(dtype).dtype
        assert all(magnitude.dtype == real for magnitude in magnitudes(train))
        assert (len(compilations) > before) == (seed == 0)
    assert not jax.config.jax_enable_x64


def test_float32_has_the_digits_of_float32():
    rng = np.random.default_rng(0)
    cores = [rng.normal(size=shape) for shape in ((1, 4, 4), (4, 4, 4), (4, 4, 1))]
    narrow, want = tt.TensorTrain([core.astype(np.float32) for core in cores]), full(cores)
    for got in (
        tt.orthogonalize(narrow, 2),
        tt.truncate(narrow, 4),
        tt.unpad(tt.truncate(tt.pad(narrow, 6), 5)),
        tt.round(narrow),
        tt.from_dense(want.astype(np.float32)),
    ):
        assert_close(got, want, 3e-6)
