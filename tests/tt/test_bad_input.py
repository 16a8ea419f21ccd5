"""A user's mistakes: one ValueError that says what was expected and what came."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from koopjax import tt

ones = tt.rank_one([jnp.ones(2), jnp.ones(3)])
other = tt.rank_one([jnp.ones(2), jnp.ones(4)])
square = tt.identity((2, 3))
spoiled = tt.TensorTrain([jnp.ones((1, 2, 1)), jnp.full((1, 3, 1), jnp.nan)])
wrong_chain = tt.TensorTrain([jnp.ones((1, 2, 2)), jnp.ones((3, 3, 1))])
empty_rank = tt.TensorTrain([jnp.ones((1, 2, 0)), jnp.ones((0, 3, 1))])

MISTAKES = {
    "modes of a sum": lambda: tt.add(ones, other),
    "modes of a difference": lambda: tt.subtract(ones, other),
    "modes of a product": lambda: tt.hadamard(ones, other),
    "modes of an inner product": lambda: tt.dot(ones, other),
    "number of cores": lambda: tt.dot(ones, tt.rank_one([jnp.ones(2)])),
    "padded modes": lambda: tt.add(tt.pad(ones, 2, 4), tt.pad(other, 2)),
    "kinds": lambda: tt.add(ones, tt.pad(ones, 2)),
    "not a train": lambda: tt.norm(jnp.ones((2, 3))),
    "matvec": lambda: tt.matvec(square, other),
    "vecmat": lambda: tt.vecmat(other, square),
    "matmul": lambda: tt.matmul(square, tt.identity((3, 2))),
    "matvec of a matrix": lambda: tt.matvec(square, square),
    "matrix modes": lambda: tt.matrix_from_dense(np.eye(6), (2, 2), (2, 3)),
    "matrix mode counts": lambda: tt.matrix_from_dense(np.eye(6), (2, 3), (6,)),
    "rank 0 of a random train": lambda: tt.random(jax.random.key(0), (2, 3), 0),
    "rank 0 of a random bond": lambda: tt.random(jax.random.key(0), (2, 3, 2), (2, 0)),
    "rank 0 of a vector": lambda: tt.random(jax.random.key(0), (2,), 0),
    "rank 0 of a truncation": lambda: tt.truncate(ones, 0),
    "rank 0 of a padded truncation": lambda: tt.truncate(tt.pad(ones, 2), 0),
    "rank 0 of a rounding": lambda: tt.round(ones, max_rank=0),
    "rank 0 of a TT-SVD": lambda: tt.from_dense(np.ones((2, 3)), max_rank=0),
    "padded rank 0": lambda: tt.truncate(tt.pad(ones, 2), 1, max_rank=0),
    "padding below the rank": lambda: tt.pad(ones, 0),
    "padding below the mode": lambda: tt.pad(ones, 1, 2),
    "rank that is no number": lambda: tt.round(ones, max_rank=1.5),
    "too many ranks": lambda: tt.truncate(ones, (1, 2, 2, 1)),
    "ranks of 0 in cores": lambda: tt.norm(empty_rank),
    "ranks that do not meet": lambda: tt.norm(wrong_chain),
    "mode of 0": lambda: tt.feasible_ranks((2, 0)),
    "no modes": lambda: tt.random(jax.random.key(0), (), 1),
    "empty tensor": lambda: tt.from_dense(np.ones((2, 0))),
    "scalar": lambda: tt.from_dense(np.float32(1)),
    "text": lambda: tt.from_dense(np.asarray(["a"])),
    "NaN tensor": lambda: tt.from_dense(np.asarray([[1.0, np.nan]])),
    "NaN vector": lambda: tt.rank_one([np.asarray([np.nan])]),
    "negative tolerance of round": lambda: tt.round(ones, rtol=-1e-3),
    "negative tolerance of from_dense": lambda: tt.from_dense(np.ones((2, 2)), rtol=-1.0),
    "tolerance NaN": lambda: tt.round(ones, rtol=float("nan")),
    "centre": lambda: tt.orthogonalize(ones, 2),
    "vectors that are matrices": lambda: tt.rank_one([jnp.ones((2, 2))]),
    "nothing": lambda: tt.rank_one([]),
    "unpad a ragged train": lambda: tt.unpad(ones),
    "pad twice": lambda: tt.pad(tt.pad(ones, 2), 3),
    "round under jit": lambda: jax.jit(tt.round)(ones),
    "TT-SVD under jit": lambda: jax.jit(tt.from_dense)(jnp.ones((2, 3))),
    "unpad under jit": lambda: jax.jit(tt.unpad)(tt.pad(ones, 2)),
    "traced rank of a ragged train": lambda: jax.jit(tt.truncate)(ones, 1),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(mistake):
    with pytest.raises(ValueError, match=r"expected .*, got ") as caught:
        MISTAKES[mistake]()
    assert "\n" not in str(caught.value)


VERBS = {
    "add": lambda a: tt.add(a, a),
    "scale": lambda a: tt.scale(a, 2.0),
    "hadamard": lambda a: tt.hadamard(a, a),
    "dot": lambda a: tt.dot(a, a),
    "norm": tt.norm,
    "orthogonalize": lambda a: tt.orthogonalize(a, 0),
    "singular_values": tt.singular_values,
    "truncate": lambda a: tt.truncate(a, 1),
    "round": tt.round,
}


@pytest.mark.parametrize("verb", VERBS)
def test_nan_cores(verb):
    with pytest.raises(ValueError, match="finite cores"):
        VERBS[verb](spoiled)
    good = tt.pad(ones, 2)
    bad = tt.PaddedTT(good.cores.at[0, 0, 0, 0].set(jnp.inf), good.rank_mask, good.mode_mask)
    with pytest.raises(ValueError, match="finite cores"):
        VERBS[verb](bad)


def test_nan_cores_of_matrices():
    bad = tt.scale(square, 1.0)
    bad = tt.TTMatrix([bad.cores[0] * jnp.nan, bad.cores[1]])
    calls = [
        lambda: tt.matvec(bad, ones),
        lambda: tt.matmul(bad, bad),
        lambda: tt.transpose(bad),
        lambda: tt.quantize(tt.scale(spoiled, 1.0)),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="finite"):
            call()


def test_masks_of_zero_ranks():
    good = tt.pad(ones, 2)
    bad = tt.PaddedTT(good.cores, good.rank_mask.at[1].set(0), good.mode_mask)
    with pytest.raises(ValueError, match="at least 1"):
        tt.norm(bad)
    with pytest.raises(ValueError, match="rank_mask"):
        tt.norm(tt.PaddedTT(good.cores, good.rank_mask[1:], good.mode_mask))
    lanes = jax.tree.map(lambda a: a[None], good)
    with pytest.raises(ValueError, match=r"jax\.vmap"):
        tt.norm(lanes)
