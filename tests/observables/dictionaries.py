"""The registry of dictionaries that the shared contract runs over, all on four coordinates."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx

from koopjax import observables as ob

D = 4


def data(n=40, d=D, seed=0):
    return jax.random.normal(jax.random.key(seed), (n, d))


class LinenNet(linen.Module):
    width: int = 6

    @linen.compact
    def __call__(self, x):
        return linen.tanh(linen.Dense(self.width)(x))


def nnx_net():
    rngs = nnx.Rngs(0)
    return nnx.Sequential(nnx.Linear(D, 5, rngs=rngs), nnx.BatchNorm(5, rngs=rngs), jnp.tanh)


def shifted_sine(x):
    return jnp.sin(x) + 1


def one_state(x):
    return jnp.stack([x[0] * x[1], x[2], jnp.cos(x[3])])


def scaled(params, x):
    return x * params[None, :]


_key = jax.random.key(1)
_net = LinenNet()
_standard = ob.Standardize.fit(data(seed=3))
_project = ob.Project.pca(data(seed=3), 2)
_rbf = ob.GaussianRBF.fit(data(200), 6, _key)

DICTIONARIES = {
    "identity": ob.Identity(),
    "constant": ob.Monomials(0),
    "monomials": ob.Monomials(3),
    "hermite": ob.Orthogonal(3),
    "chebyshev": ob.Orthogonal(3, "chebyshev"),
    "kronecker": ob.Kronecker.fit(data(), (2, D // 2), (2, 1)),
    "shift": ob.Standardize(jnp.arange(float(D))),
    "rbf": _rbf,
    "rbf_widths": ob.GaussianRBF(_rbf.centers, jnp.linspace(1.0, 3.0, 6)),
    "fourier": ob.RandomFourier.create(_key, D, 7, 2.0),
    "product": ob.Product.of(ob.Polynomial1D(2, "hermite"), D),
    "product_mixed": ob.Product(
        [ob.Trigonometric(1, 0.5), ob.CosSin(), ob.Gaussian1D(jnp.arange(2.0)), ob.Monomials(2)]
    ),
    "product_kernel": ob.ProductKernel(ob.Product.of(ob.CosSin(0.2), D), data(5, seed=2), 5, 3),
    "product_kernel_mixed": ob.ProductKernel(
        ob.Product(
            [ob.Trigonometric(1, 0.5), ob.CosSin(), ob.Gaussian1D(jnp.arange(2.0)), ob.Monomials(2)]
        ),
        data(5, seed=2),
        0,
    ),
    "nnx": ob.Neural(nnx_net()),
    "linen": ob.Neural((_net, _net.init(_key, data()))),
    "function": ob.Neural((scaled, jnp.arange(1.0, 5.0))),
    "custom": ob.Custom(shifted_sine, D),
    "custom_single": ob.Custom(one_state, 3, labels=("a", "b", "c")),
    "custom_params": ob.Custom(scaled, D, params=jnp.ones(D)),
    "concat": ob.Concat([ob.Monomials(1), _rbf, ob.Concat(ob.Identity(), ob.Monomials(0))]),
    "standardized": ob.Compose(_standard, ob.Monomials(2)),
    "nested": ob.Compose(
        _standard, ob.Compose(_project, ob.Concat(ob.Orthogonal(2), ob.Identity()))
    ),
    "composed_twice": ob.Compose(ob.Compose(_standard, _project), ob.Monomials(2)),
    "select_monomials": ob.Select(ob.Monomials(3), np.array([0, 34, 5, 5])),
    "select_hermite": ob.Select(ob.Orthogonal(3), [34, 1, 0, 17]),
    "select_rbf": ob.Select(_rbf, [5, 0]),
    "select_fourier": ob.Select(ob.RandomFourier.create(_key, D, 7, 2.0), [6, 0, 3, 4]),
    "select_product": ob.Select(ob.Product.of(ob.Polynomial1D(2), D), [80, 0, 40]),
    "select_nested": ob.Select(
        ob.Select(ob.Compose(_standard, ob.Monomials(2)), [14, 3, 2]), [2, 0]
    ),
}
