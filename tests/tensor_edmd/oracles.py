"""Product dictionaries and trains written out in NumPy, for the tests to compare with."""

import numpy as np


def powers(x, degree):
    """Of every coordinate, `(n, degree + 1)` each."""
    return [np.stack([x[:, i] ** j for j in range(degree + 1)], 1) for i in range(x.shape[1])]


def hermites(x):
    """Orthonormal Hermite polynomials up to degree 2 of every coordinate."""
    return [np.stack([t**0, t, (t**2 - 1) / np.sqrt(2)], 1) for t in x.T]


def rows_product(factors):
    """All products of one function from each factor, the last running fastest."""
    full = np.ones((len(factors[0]), 1))
    for f in factors:
        full = (full[:, :, None] * f[:, None, :]).reshape(len(f), -1)
    return full


def dense(cores):
    """The matrix of a chain of cores `(r, m, q, r')`: rows run over `m`, columns over `q`."""
    out = np.ones((1, 1, 1))
    for core in cores:
        out = np.einsum("pqa,amnb->pmqnb", out, np.asarray(core))
        p, m, q, n, b = out.shape
        out = out.reshape(p * m, q * n, b)
    return out[:, :, 0]


def relative(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)
