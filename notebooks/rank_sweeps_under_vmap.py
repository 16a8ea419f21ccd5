# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Rank sweeps under vmap
#
# A dictionary of all products of $k$ functions of each of $d$ coordinates has $k^d$ members. As a
# tensor train the Koopman matrix over it is a chain of $d$ small cores; its *degree* says how
# nonlinear a span of layers is in one coordinate, its *rank* how entangled the coordinates are. To
# find out which degree and which rank a span needs, all of them are tried: the ranks are lanes of
# one compiled program.

# %%
# %matplotlib inline
import os

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from koopjax import analysis, data, models, plot, surgery, sweep, tensor_edmd
from koopjax.observables import Compose, Polynomial1D, Product, Project, Standardize

SMALL = bool(os.environ.get("KOOPJAX_NOTEBOOK_SMALL"))

# %% [markdown]
# ## A network and its span
#
# An MLP on 8 × 8 handwritten digits. The span is its middle: from the activations after the first
# hidden layer to those after the last.

# %%
digits = data.load("digits").flat()
width = 12 if SMALL else 32
model = models.train(
    models.MLP((64, width, width, width, 10), rngs=nnx.Rngs(0)), digits.x_train, digits.y_train,
    key=jax.random.key(0), epochs=10 if SMALL else 60, batch_size=64, learning_rate=3e-3,
    weight_decay=0.3,
).model  # fmt: skip
print("test accuracy", models.accuracy(model, digits.x_test, digits.y_test))
at = surgery.middle(model, digits.x_test[:1])
head, rest, _ = surgery.split(model, digits.x_test[:1], (at[0], "output"))
x = head(digits.x_train)
y = rest(x)
print(at, x.shape, "to the logits", y.shape)

# %% [markdown]
# ## Latent coordinates
#
# The units of a hidden layer are many, and none is special. A projection onto the directions that
# vary and that the output depends on leaves a few; scaled to $[-1, 1]$ they meet Legendre
# polynomials.

# %%
latent = 3 if SMALL else 5
metric = analysis.output_metric(rest, x, kind="centred")
directions = Project.pca(x, latent, metric=metric, whiten=True)
front = Compose(directions, Standardize.fit_range(directions(x)))
psi = Compose(front, Product.of(Polynomial1D(2, "legendre"), latent))
print(f"{3**latent} products of {latent} coordinates")

# %% [markdown]
# ## All ranks in one call
#
# `als_padded` fits a train whose cores are padded to the largest rank, with a mask for the rank
# itself: a number that may be traced. So `jax.vmap` runs over ranks as over anything else, and over
# ridges and random starts just as well.

# %%
ranks = jnp.arange(1, 5 if SMALL else 9)


@jax.jit
def sweep_ranks(x, y, ranks):
    def one(rank):
        fit = tensor_edmd.als_padded(
            psi, x, y, rank, jax.random.key(1), max_rank=len(ranks), alpha=1e-5 * len(x), sweeps=2
        )
        return fit.info.residual

    return jax.vmap(one)(ranks)


errors = jax.block_until_ready(sweep_ranks(x, y - y.mean(axis=0), ranks))
for rank, error in zip(ranks, errors, strict=True):
    print(f"rank {int(rank)}: relative error {float(error):.3f}")

# %% [markdown]
# A single fit at the largest rank, without padding, sums in float64 where lanes under a
# transformation keep the dtype of the data; else the two are the same computation.

# %%
single = tensor_edmd.als(
    psi, x, y - y.mean(axis=0), int(ranks[-1]), jax.random.key(1), alpha=1e-5 * len(x), sweeps=2
)
print(f"a single fit: relative error {float(single.info.residual):.3f}")

# %% [markdown]
# `sweep.grid` does the same over any grid, in chunks that fit a memory limit, with a ledger on disk
# from which an interrupted sweep goes on, and returns a table.


# %%
def fitted(x, y, *, rank, alpha):
    fit = tensor_edmd.als_padded(
        psi, x, y, rank, jax.random.key(1), max_rank=4, alpha=alpha * x.shape[0], sweeps=1
    )
    return {"error": fit.info.residual, "result": fit.result}


table = sweep.grid(
    fitted, {"rank": [1, 2, 4], "alpha": [1e-6, 1e-2]}, data=(x, y - y.mean(axis=0)),
    memory_limit="1GiB", lanes="map",
)  # fmt: skip
print(table)

# %% [markdown]
# ## The plane
#
# `analysis.plane` puts it together: for every degree and every rank it fits a train, splices it in
# the span's place, and measures the network on the test images; the ridges are chosen on the
# validation images. The outlined cell is the least degree, and at that the least rank, within the
# tolerance.

# %%
plane = analysis.plane(
    model, digits.x_train, digits.x_val, digits.x_test, digits.y_test, key=jax.random.key(2),
    degrees=(2,) if SMALL else (1, 2, 3), ranks=(1, 4) if SMALL else (1, 2, 3, 4, 6, 8),
    latent=latent, tolerance=0.01, reference="nulls" if SMALL else "all", stored=not SMALL,
)  # fmt: skip
print(plane.sentence())
print(plane.table())

# %%
plot.plane(plane)

# %% [markdown]
# ## What the bonds carry, and what interacts
#
# At every bond of a train there are as many singular values as its rank: what the coordinates on
# its left tell those on its right.

# %%
point = plane.points[-1]
plot.bond_singular_values(plane.bond_singular_values(point.degree, point.rank))

# %% [markdown]
# A train is easily taken apart into a mean, functions of one coordinate, of two, of three, ..., all
# orthogonal under the product of the coordinates' distributions (ANOVA). How much of the output's
# variance comes from which order, and from which coordinates, costs a pass over the cores.

# %%
spectrum = plane.spectrum(point.degree, point.rank)
print(spectrum.sentence())
print("shares by order:", np.round(spectrum.orders, 4))

# %%
plot.interaction_spectrum(spectrum)
