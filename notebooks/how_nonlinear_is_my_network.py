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
# # How nonlinear is my network?
#
# Take a trained network, cut out a span of layers, and put one linear map $K$ between dictionaries
# of observables in its place. If an affine dictionary is enough, the span was as good as linear. If
# it takes products of two activations, it had interactions of order two; and so on up the ladder.
# What comes out is a number for the network's nonlinearity, and often a smaller network.

# %%
# %matplotlib inline
import os
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx

from koopjax import analysis, compress, data, export, models, plot, surgery

SMALL = bool(os.environ.get("KOOPJAX_NOTEBOOK_SMALL"))

# %% [markdown]
# ## A network
#
# An MLP on scikit-learn's 8 × 8 handwritten digits. Any network would do; see the end for your own.

# %%
digits = data.load("digits").flat()
x, y = digits.x_train, digits.y_train
width = 16 if SMALL else 64
model = models.MLP((64, width, width, width, 10), rngs=nnx.Rngs(0))
result = models.train(
    model, x, y, key=jax.random.key(0), epochs=10 if SMALL else 60, batch_size=32,
    learning_rate=3e-3, weight_decay=0.3, x_val=digits.x_val, y_val=digits.y_val,
)  # fmt: skip
model = result.model
print("test accuracy", models.accuracy(model, digits.x_test, digits.y_test))

# %%
plot.training(result.history)

# %% [markdown]
# ## Where can it be cut?
#
# At every value that alone carries everything the rest of the network needs. The cuts come from the
# traced computation, not from the class, so nothing has to be declared.

# %%
for cut in surgery.cut_points(model, digits.x_test[:1]):
    print(
        f"{cut.index:2}  {cut.name:18} {cut.sample_shape!s:8} {cut.parameters:7,} parameters before"
    )

# %% [markdown]
# ## The ladder
#
# The span is the middle of the network: from the activations after the first hidden layer to those
# after the last. Two nulls come first, the identity and the mean; then dictionaries of growing
# richness, each with its full $K$ and with $K$ cut to a few ranks, either by its plain singular
# values or in the metric of the network's output, which keeps what the classifier reads.

# %%
dictionaries = analysis.default_dictionaries(directions=10, centers=300, features=500)
if SMALL:
    dictionaries = {name: dictionaries[name] for name in ("affine", "degree 2")}
ladder = analysis.ladder(
    model, digits.x_train, digits.x_val, digits.y_val, digits.x_test, digits.y_test,
    key=jax.random.key(1), dictionaries=dictionaries, ranks=(2, 4, 6, 8, 10, 16, 32),
)  # fmt: skip
results = ladder.to_dict()
print(ladder.sentence())

# %%
plot.accuracy_ladder(results)

# %%
plot.rank_curve(results)

# %% [markdown]
# Agreement with the original and the divergence of its softmax are finer measures than accuracy: a
# replacement may score as well and still answer differently. These are the test images on which it
# does.

# %%
name = "degree 2"
rung = ladder.find(name)
print(f"{name}: accuracy {rung.accuracy:.4f}, agreement {rung.agreement:.4f}, KL {rung.kl:.4f}")
images = digits.x_test.reshape(-1, 8, 8)
examples = [
    {
        "pixels": images[i],
        "label": int(ladder.labels[i]),
        "original": int(ladder.answers["original"][i]),
        "replaced": int(ladder.answers[name][i]),
    }
    for i in ladder.disagreements(name)
]
plot.disagreements(examples) if examples else "they agree on all of them"

# %% [markdown]
# ## Put it in
#
# `spliced` gives the network with the rung's layer in the span's place: an ordinary `nnx.Module`
# that can be jitted, trained and saved. Mind the bytes: a rich dictionary may take more of them
# than the layers that it replaces. It measures; making things small is the next step.

# %%
least = ladder.least() or ladder.find("degree 2")
replaced = ladder.spliced(least.dictionary, least.rank, least.truncation)
print(least.name, "accuracy", models.accuracy(replaced, digits.x_test, digits.y_test))

folder = Path(tempfile.mkdtemp())
print("original", export.save(model, folder / "original.koopjax"), "bytes")
print("replaced", export.save(replaced, folder / "replaced.koopjax"), "bytes")

# %% [markdown]
# ## Make it small
#
# Replacing a span measures; compressing has a budget. `compress.koopman` goes from the input to the
# logits: a projection onto the directions that the output depends on, products of the coordinates,
# and $K$, all sized such that the file fits. No labels and no training.

# %%
budget = "5x" if SMALL else "8x"
small = compress.koopman(model, x, budget, task="classification", key=jax.random.key(2))
print(small.report)
stored = export.save(small.model, folder / "small.koopjax")
again = export.load(folder / "small.koopjax")
print(
    "loaded again:", stored, "bytes, accuracy", models.accuracy(again, digits.x_test, digits.y_test)
)

# %% [markdown]
# ## Your own model
#
# An `nnx.Module`, a pair `(linen_module, variables)` or a pair `(function, params)` with
# `function(params, x)`: nothing else is asked of it. Cuts are named after the parameters last used;
# `jax.ad_checkpoint.checkpoint_name` names them as you like.


# %%
def network(params, x):
    """Two gated layers and a head: a plain function that knows nothing of koopjax."""
    for layer in params["layers"]:
        x = jnp.tanh(x @ layer["w"]) * jax.nn.sigmoid(x @ layer["gate"])
    return x @ params["head"]


def draw(key, *shape):
    return jax.random.normal(key, shape) / jnp.sqrt(shape[0])


keys = iter(jax.random.split(jax.random.key(3), 5))
params = {
    "layers": [
        {"w": draw(next(keys), size, width), "gate": draw(next(keys), size, width)}
        for size in (64, width)
    ],
    "head": draw(next(keys), width, 10),
}
trained = models.train(
    (network, params), x, y, key=jax.random.key(4), epochs=5 if SMALL else 30, batch_size=32
).model
print([cut.name for cut in surgery.cut_points(trained, digits.x_test[:1])])

# %%
own = analysis.ladder(
    trained, digits.x_train, x_test=digits.x_test, y_test=digits.y_test,
    key=jax.random.key(5), dictionaries=dictionaries, ranks=(4, 8, 16),
)  # fmt: skip
print(own.sentence())
