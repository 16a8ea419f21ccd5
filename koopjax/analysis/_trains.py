"""Tensor trains in the place of a span: latent coordinates, targets, blocks, bonds."""

import dataclasses
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from koopjax import nn, observables, tt
from koopjax._core import expected, matmul, on_device, pytree, semidefinite_root
from koopjax.analysis._dictionaries import Snapshots, leading
from koopjax.analysis._spectrum import second_moment_roots

#: Polynomials of one coordinate that the plane may be made of.
FAMILIES = ("hermite", "legendre", "chebyshev")


@pytree
class Readout:
    """From the coordinates that the output depends on back to the state: `t B + b`.

    The coordinates are `(y - bias) @ code`; squared errors in them are squared errors of the state
    in the metric.
    """

    code: Any
    matrix: Any
    bias: Any

    @classmethod
    def fit(cls, y: Any, metric: Any, most: int, share: float = 1e-6) -> "Readout":
        """The fewest coordinates that keep all but a small share of the variance in a metric.

        With the covariance `S` of the states, `M = L Lᵀ` and `Lᵀ S L = U Λ Uᵀ` the code is `L U`
        and the way back the regression of the state on it, `Λ⁻¹ Uᵀ Lᵀ S`.
        """
        states = np.asarray(y, np.float64)
        bias = states.mean(axis=0)
        centred = states - bias[None, :]
        covariance = centred.T @ centred / len(centred)
        half = semidefinite_root(np.asarray(metric, np.float64)).half
        spread, turned = np.linalg.eigh(half.T @ covariance @ half)
        spread, turned = np.maximum(spread[::-1], 0.0), turned[:, ::-1]
        missing = 1 - np.cumsum(spread) / max(spread.sum(), np.finfo(np.float64).tiny)
        count = max(1, min(most, int(np.sum(missing > share)) + 1, int(np.sum(spread > 0))))
        code = half @ turned[:, :count]
        back = code.T @ covariance / np.maximum(spread[:count], 1e-300)[:, None]
        return cls(*(on_device(a, y.dtype) for a in (code, back, bias)))

    def encode(self, y: Float[Array, "n q"]) -> Float[Array, "n c"]:
        """The coordinates of states."""
        return matmul(y - self.bias[None, :], self.code)

    def __call__(self, t: Float[Array, "n c"]) -> Float[Array, "n q"]:
        """States from coordinates."""
        return matmul(t, self.matrix) + self.bias[None, :]


@pytree
class SpanTrain:
    """A tensor train in the place of a span: `x ↦ train(psi(x)) B + b`.

    Attributes:
        fit: `TensorKoopman` from states before the span to coordinates after it.
        readout: from these to states after it.
    """

    fit: Any
    readout: Any

    def predict(self, x: Float[Array, "n d"]) -> Float[Array, "n q"]:
        """States after the span."""
        return self.readout(self.fit.predict(x))

    @property
    def numbers(self) -> int:
        """All numbers that are stored: projection, scales, cores, readout."""
        front = sum(int(np.size(leaf)) for leaf in jax.tree.leaves(self.fit.psi))
        back = sum(int(np.size(a)) for a in (self.readout.matrix, self.readout.bias))
        return front + self.fit.numbers + back

    def block(self, trainable: Any = True) -> Any:
        """The layer to be spliced in: a `KoopmanBlock` with a `TT` operator, then a `Dense`."""
        first = nn.KoopmanBlock(self.fit.psi, nn.TT.from_train(self.fit.train), trainable=trainable)
        return nnx.Sequential(first, nn.Dense(self.readout.matrix, self.readout.bias))


def coordinates(data: Snapshots, latent: int, family: str) -> Any:
    """The leading latent coordinates, scaled to where a family is orthonormal."""
    if family not in FAMILIES:
        raise expected(f"a family among {', '.join(map(repr, FAMILIES))}", repr(family))
    if family == "hermite":
        return leading(data, latent)
    directions = observables.Project.pca(data.x, latent, metric=data.metric, whiten=True)
    scale = observables.Standardize.fit_range(directions(data.x))
    return observables.Compose(directions, scale)


def product(front: Any, latent: int, degree: int, family: str) -> Any:
    """All products of one polynomial a latent coordinate."""
    factor = observables.Polynomial1D(degree, family)
    return observables.Compose(front, observables.Product.of(factor, latent))


def truncated(train: SpanTrain, rank: int, x: Any) -> SpanTrain:
    """The same with every bond cut to its leading singular values on the samples, not refitted."""
    if rank < 1:
        raise expected("a rank of at least 1", f"{rank}")
    roots = second_moment_roots(train.fit, x)
    cores, _ = _swept(train.fit.train, roots, rank)
    # Back to the functions as they are: a core met U_kᵀ of them, with U_k U_kᵀ = E f_k f_kᵀ.
    backs = [np.linalg.pinv(u) for u in roots]
    kind = train.fit.train.dtype
    plain = [
        on_device(np.einsum("ruqs,um->rmqs", c, b), kind) for c, b in zip(cores, backs, strict=True)
    ]
    cut = dataclasses.replace(train.fit, train=tt.TTMatrix(tuple(plain)))
    return dataclasses.replace(train, fit=cut)


def bond_singular_values(
    fit: Any, x: Float[Any, "n d"] | None = None
) -> list[Float[np.ndarray, " r"]]:
    """Singular values at every bond of a fitted tensor train, from the first bond to the last.

    At bond k the matrix whose rows are the functions of the coordinates up to k, and whose columns
    are those of the others and the outputs, has exactly as many as the rank there; they say how
    much of each is carried across.

    Args:
        fit: a `TensorKoopman`, anything with a `train`, or a `tt.TTMatrix`.
        x: `(n, d)` samples; with them the functions of each coordinate are weighed by their
            second moments over the samples, so that the values are those of the *function* under
            the product of the marginals, whatever basis its coordinates are written in. Without,
            those of the tensor of coefficients.

    Returns:
        One array a bond, falling; none for a train of one core.

    Numerics: float64 on the host; `O(d m r³)`.

    Example:
        >>> import jax.numpy as jnp
        >>> first, second = jnp.diag(jnp.array([3.0, 1.0])), jnp.eye(2)
        >>> train = tt.TTMatrix([first[None, :, None, :], second[:, :, None, None]])
        >>> [values.tolist() for values in bond_singular_values(train)]
        [[3.0, 1.0]]
    """
    roots = None if x is None else second_moment_roots(fit, x)
    return _swept(getattr(fit, "train", fit), roots, None)[1]


def _swept(train: Any, roots: Any, rank: int | None) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Cores orthogonal from the left, cut to a rank, and the singular values at the bonds."""
    cores = [np.asarray(core, np.float64) for core in train.cores]
    if roots is not None:
        cores = [np.einsum("rmqs,mu->ruqs", c, u) for c, u in zip(cores, roots, strict=True)]
    # Right-orthogonal first; then each bond's values are those of the core left of it.
    for k in range(len(cores) - 1, 0, -1):
        r = cores[k].shape[0]
        q, upper = np.linalg.qr(cores[k].reshape(r, -1).T)
        cores[k] = q.T.reshape(-1, *cores[k].shape[1:])
        cores[k - 1] = np.einsum("rmqs,ts->rmqt", cores[k - 1], upper)
    found = []
    for k in range(len(cores) - 1):
        shape = cores[k].shape
        u, s, vt = np.linalg.svd(cores[k].reshape(-1, shape[3]), full_matrices=False)
        found.append(s)
        cores[k] = u[:, :rank].reshape(*shape[:3], -1)
        cores[k + 1] = np.einsum("ts,smqr->tmqr", s[:rank, None] * vt[:rank], cores[k + 1])
    return cores, found
