"""Tensors, matrices and entries of trains in NumPy, which compiles nothing: the oracles."""

import numpy as np

from koopjax import tt


def full(train):
    """The tensor of a train or of a sequence of cores; a padded train without its padding."""
    cores = getattr(train, "cores", train)
    if isinstance(train, tt.PaddedTT):
        ranks, modes = (np.asarray(mask, bool) for mask in (train.rank_mask, train.mode_mask))
        cores = [
            core[ranks[k]][:, modes[k]][:, :, ranks[k + 1]]
            for k, core in enumerate(np.asarray(cores))
        ]
    out = np.asarray(cores[0])
    for core in cores[1:]:
        out = np.tensordot(out, np.asarray(core), axes=1)
    return out[0, ..., 0]


def full_matrix(train):
    """The matrix of a TT matrix or of a sequence of its cores."""
    cores = getattr(train, "cores", train)
    d = len(cores)
    tensor = full(cores).transpose([*range(0, 2 * d, 2), *range(1, 2 * d, 2)])
    return tensor.reshape(np.prod(tensor.shape[:d]), -1)


def entries(train, indices):
    """Entries of a train at rows of indices."""
    left = np.ones((len(indices), 1))
    for k, core in enumerate(train.cores):
        left = np.einsum("sa,asb->sb", left, np.asarray(core)[:, indices[:, k]])
    return left[:, 0]


def assert_close(got, want, tolerance=1e-12):
    """Whether arrays (or a train) agree in norm."""
    got = full(got) if isinstance(got, tt.TensorTrain | tt.PaddedTT) else got
    got = full_matrix(got) if isinstance(got, tt.TTMatrix) else np.asarray(got)
    assert got.shape == np.shape(want)
    assert np.linalg.norm(got - want) <= tolerance * np.linalg.norm(want)


def normal(rng, *shape, complex_=False):
    """Real or complex normal numbers."""
    a = rng.normal(size=shape)
    return a + 1j * rng.normal(size=shape) if complex_ else a
