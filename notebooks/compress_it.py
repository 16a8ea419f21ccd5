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
# # Compress it
#
# A trained network, and a budget of bytes: the size of the one file from which the smaller network
# runs, header included. The whole network from its input to its logits is replaced by a few
# coordinates, their products, and a Koopman matrix; first in closed form, then trained to the size,
# then with few bits a value. At the end it is held against two conventional methods at the same
# bytes.

# %%
# %matplotlib inline
import os
import tempfile
import time
from pathlib import Path

import jax
from flax import nnx

from koopjax import compress, data, export, models, nn, plot

SMALL = bool(os.environ.get("KOOPJAX_NOTEBOOK_SMALL"))

# %% [markdown]
# ## A network
#
# An MLP on scikit-learn's 8 × 8 handwritten digits. Any Flax model, or plain function with its
# parameters, would do.

# %%
digits = data.load("digits").flat()
x, y = digits.x_train, digits.y_train
validation = digits.x_val, digits.y_val
width = 16 if SMALL else 100
model = models.train(
    models.MLP((64, width, width, width, 10), rngs=nnx.Rngs(0)), x, y, key=jax.random.key(0),
    epochs=8 if SMALL else 40, batch_size=32, learning_rate=3e-3,
).model  # fmt: skip


def accuracy(model):
    return models.accuracy(model, digits.x_test, digits.y_test)


original_bytes = export.stored_bytes(model)
print(f"test accuracy {accuracy(model):.4f}, {original_bytes:,} bytes")

# %% [markdown]
# ## Closed form
#
# No labels and no training: the projection comes from the directions that the output depends on,
# the Koopman matrix from least squares. How many coordinates, products and pixels, which rank and
# which ridge is chosen on held-out images. The report says what, and why.

# %%
budgets = ("3x",) if SMALL else ("10x", "30x")
closed = compress.koopman(
    model, x, budgets[0], task="classification", validation=digits.x_val, key=jax.random.key(1)
)
print(closed.report)
print(closed.report.why)
print(f"test accuracy {accuracy(closed.model):.4f}")

# %% [markdown]
# ## Trained to the size
#
# `compress.finetuned` starts from a Koopman model that is somewhat too large (here a chain of two:
# a projection and its products, mapped to a few new coordinates, whose products are mapped to the
# logits) and trains it to answer as the original does. On the way the entries that matter least go,
# until the file fits. `variant` takes one of the recipe's settings; without, all are tried and the
# best on validation images is kept.

# %%
training = compress.Training(epochs=2 if SMALL else 20, batch_size=32)


def finetuned(name, budget, **settings):
    """A method at a budget, everything else the same."""
    return compress.finetuned(
        name, model, x, budget, labels=y, validation=validation, key=jax.random.key(2),
        training=training, variant=compress.RECIPES[name].variants[0], **settings,
    )  # fmt: skip


chains = {budget: finetuned("koopman_chain", budget) for budget in budgets}
for budget, made in chains.items():
    print(
        f"{budget}: {made.report.stored_bytes:,} bytes, {made.report.parameters:,} numbers, "
        f"test accuracy {accuracy(made.model):.4f}"
    )

# %% [markdown]
# ## Any bits
#
# A float32 is more than a pruned value needs. With `value_bits` the values are brought to a grid
# while the network trains, and the file stores which and where at the price of their entropy: at
# the same bytes, more entries stay.

# %%
few = "8x" if SMALL else "60x"
bits = finetuned("koopman_chain", few, value_bits=4.0)
print(f"{few}: {bits.report.stored_bytes:,} bytes, test accuracy {accuracy(bits.model):.4f}")

# %% [markdown]
# ## It is a file, and a Flax model
#
# What is saved is what is loaded, to the bit; it jits, trains on, and goes where the original went.
# `nn.decoded` puts together once what is stored in parts, to be served as fast as it can be.

# %%
folder = Path(tempfile.mkdtemp())
files = {"original": model, "closed form": closed.model, "any bits": bits.model}
files |= {f"trained to {budget}": made.model for budget, made in chains.items()}


def milliseconds(model, batch):
    """The best of a few timings of a compiled call."""
    graph, state = nnx.split(model)
    call = jax.jit(lambda state, x: nnx.merge(graph, state)(x))
    images = jax.numpy.tile(digits.x_test, (2, 1))[:batch]
    call(state, images).block_until_ready()
    times = []
    for _ in range(5 if SMALL else 30):
        start = time.perf_counter()
        call(state, images).block_until_ready()
        times.append(time.perf_counter() - start)
    return 1000 * min(times)


for name, one in files.items():
    path = folder / f"{name.replace(' ', '_')}.koopjax"
    size = export.save(one, path)
    again = export.load(path)
    assert (models.predict(again, digits.x_test) == models.predict(one, digits.x_test)).all()
    print(
        f"{name:15} {size:7,} bytes on disk, {original_bytes / size:5.1f}x smaller, accuracy "
        f"{accuracy(again):.4f}, batch of 1 {milliseconds(nn.decoded(again), 1):.3f} ms, "
        f"of 256 {milliseconds(nn.decoded(again), 256):.3f} ms"
    )

# %% [markdown]
# ## Against conventional methods
#
# Gradual pruning of the original (the entries of least `|w| √E[g²]` go while it trains), and a
# smaller dense network, trained from scratch by the same distillation for as long. The budget is
# the same for all: bytes of the file.

# %%
contest = {("koopman_chain", budget): made for budget, made in chains.items()}
contest |= {
    (name, budget): finetuned(name, budget)
    for name in ("fisher", "small_network")
    for budget in budgets
}
points = [
    compress.Point(
        track="fine-tuned", method=name, budget=budget, seed=0,
        family=compress.RECIPES[name].family, accuracy=accuracy(made.model),
        ratio=made.report.ratio, stored_bytes=made.report.stored_bytes,
        parameters=made.report.parameters, original_accuracy=accuracy(model), seconds=0.0,
    )
    for (name, budget), made in contest.items()
]  # fmt: skip
for point in points:
    print(f"{point.method:14} {point.budget:4} {point.stored_bytes:6,} bytes {point.accuracy:.4f}")

# %%
results = compress.Pareto(points, {}, {0: {"accuracy": accuracy(model)}})
plot.pareto(results)

# %% [markdown]
# One network, one seed and 450 test images: a difference of a point is two or three images. The
# contest proper is one call, which chooses every method's settings on validation images, runs
# several seeds, keeps what is finished in a ledger, and goes on from it when it was interrupted:
#
# ```python
# compress.pareto(
#     train,  # train(seed, x, y) makes the original
#     digits, ["koopman_chain", "fisher", "small_network"], ["10x", "30x", "100x"], range(5),
#     tracks=["fine-tuned", "any-bits"], ledger="contest.jsonl",
# )
# ```
#
# The same from the command line, with a report:
# `koopjax compress --tracks fine-tuned,any-bits --seeds 5 --budget 10x,30x,100x`.
