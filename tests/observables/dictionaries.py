"""The registry of dictionaries that the shared contract runs over, all on four coordinates."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx

from koopjax import observables as ob
from tests.nets import linen_filled

D = 4


def data(n=40, d=D, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


class LinenNet(linen.Module):
    width: int = 6

    @linen.compact
    def __call__(self, x):
        return linen.tanh(linen.Dense(self.width)(x))


def kernel_init(key, shape, dtype=np.float32, out_sharding=None):
    """Without a program for each draw."""
    numbers = np.random.default_rng(shape).normal(size=shape) / shape[0] ** 0.5
    return jax.device_put(numbers.astype(dtype))


def linear(width, rngs=None):
    return nnx.Linear(D, width, rngs=rngs or nnx.Rngs(0), kernel_init=kernel_init)


def nnx_net():
    rngs = nnx.Rngs(0)
    return nnx.Sequential(linear(5, rngs), nnx.BatchNorm(5, rngs=rngs), jnp.tanh)


def shifted_sine(x):
    return jnp.sin(x) + 1


def one_state(x):
    return jnp.stack([x[0] * x[1], x[2], jnp.cos(x[3])])


def scaled(params, x):
    return x * params[None, :]


def array(*values):
    return jax.device_put(np.array(values, np.float32))


_net = LinenNet()
_standard = ob.Standardize(*map(jax.device_put, (data(1, seed=3)[0], 1 + data(1, seed=4)[0] ** 2)))
_project = ob.Project(jax.device_put(data(D, 2, seed=5)), jax.device_put(data(1, seed=6)[0]))
_rbf = ob.GaussianRBF(jax.device_put(data(6, seed=1)), np.float32(1.5))
_fourier = ob.RandomFourier(jax.device_put(data(D, 4, seed=7)), np.float32(2.0), 7)
_mixed = ob.Product(
    [ob.Trigonometric(1, 0.5), ob.CosSin(), ob.Gaussian1D(array(0, 1)), ob.Monomials(2)]
)
_centers = jax.device_put(data(5, seed=2))

DICTIONARIES = {
    "identity": ob.Identity(),
    "constant": ob.Monomials(0),
    "monomials": ob.Monomials(3),
    "hermite": ob.Orthogonal(3),
    "chebyshev": ob.Orthogonal(3, "chebyshev"),
    "kronecker": ob.Kronecker((jax.device_put(data(2, 2)), jax.device_put(data(2, 1)))),
    "shift": ob.Standardize(array(0, 1, 2, 3)),
    "rbf": _rbf,
    "rbf_widths": ob.GaussianRBF(_rbf.centers, array(*np.linspace(1, 3, 6))),
    "fourier": _fourier,
    "product": ob.Product.of(ob.Polynomial1D(2, "hermite"), D),
    "product_mixed": _mixed,
    "product_kernel": ob.ProductKernel(ob.Product.of(ob.CosSin(0.2), D), _centers, 5, 3),
    "product_kernel_mixed": ob.ProductKernel(_mixed, _centers, 0),
    "nnx": ob.Neural(nnx_net()),
    "linen": ob.Neural((_net, linen_filled(_net, data()))),
    "function": ob.Neural((scaled, array(1, 2, 3, 4))),
    "custom": ob.Custom(shifted_sine, D),
    "custom_single": ob.Custom(one_state, 3, labels=("a", "b", "c")),
    "custom_params": ob.Custom(scaled, D, params=array(1, 1, 1, 1)),
    "concat": ob.Concat([ob.Monomials(1), _rbf, ob.Concat(ob.Identity(), ob.Monomials(0))]),
    "standardized": ob.Compose(_standard, ob.Monomials(2)),
    "nested": ob.Compose(
        _standard, ob.Compose(_project, ob.Concat(ob.Orthogonal(2), ob.Identity()))
    ),
    "composed_twice": ob.Compose(ob.Compose(_standard, _project), ob.Monomials(2)),
    "select_monomials": ob.Select(ob.Monomials(3), np.array([0, 34, 5, 5])),
    "select_hermite": ob.Select(ob.Orthogonal(3), [34, 1, 0, 17]),
    "select_rbf": ob.Select(_rbf, [5, 0]),
    "select_fourier": ob.Select(_fourier, [6, 0, 3, 4]),
    "select_product": ob.Select(ob.Product.of(ob.Polynomial1D(2), D), [80, 0, 40]),
    "select_nested": ob.Select(
        ob.Select(ob.Compose(_standard, ob.Monomials(2)), [14, 3, 2]), [2, 0]
    ),
}
