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
# # The Koopman matrix of a system that we know
#
# A nonlinear map $y = F(x)$ acts *linearly* on functions of the state: the Koopman operator takes
# an observable $g$ to $g \circ F$. Choose finitely many observables, the dictionary $\Psi$, and
# extended dynamic mode decomposition (EDMD) finds the matrix that acts on them,
#
# $$\Psi(y) \approx \Psi(x)\,K, \qquad K = \arg\min_K \lVert \Psi(Y) - \Psi(X) K \rVert_F,$$
#
# from pairs of snapshots alone. Rows are samples, and $K$ acts from the right.
#
# Here the system is known in closed form, so that every step can be checked: what $K$ is, what its
# eigenvalues are, how far it predicts, and which of its eigenvalues to believe.

# %%
# %matplotlib inline
import os

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from koopjax import edmd, observables, plot
from koopjax.data import systems

SMALL = bool(os.environ.get("KOOPJAX_NOTEBOOK_SMALL"))
n = 300 if SMALL else 3000

# %% [markdown]
# ## A fast fall onto a slow parabola
#
# $\dot x_1 = \mu x_1$, $\dot x_2 = \lambda (x_2 - x_1^2)$ with $\lambda \ll \mu < 0$. The
# right-hand side is nonlinear, yet the three observables $(x_1, x_2, x_1^2)$ are closed under the
# flow: the time derivative of each is a combination of the three. On them the Koopman operator *is*
# a 3 × 3 matrix, with eigenvalues $e^{\mu\,dt}, e^{\lambda\,dt}, e^{2\mu\,dt}$.

# %%
system = systems.SlowManifold(mu=-0.05, lam=-1.0, dt=0.5)
with jax.enable_x64(True):
    x, y = system.snapshots(jax.random.key(0), n, dtype=jnp.float64)
    closed = observables.Custom(system.invariant, size=3)
    koopman = edmd.fit(closed, x, y)
    found = np.sort(np.asarray(koopman.eigenvalues().real))
exact = np.sort(system.eigenvalues())
print("found ", found)
print("exact ", exact)
print("error ", np.abs(found - exact).max())

# %% [markdown]
# Nobody hands us the right dictionary, though. Take all monomials up to degree 3 instead, the ten
# products $x_1^a x_2^b$. Products of eigenfunctions are eigenfunctions, so most of what $K$ finds
# is right again; but $x_1^2 x_2$, say, evolves into $x_1^4$, which the dictionary lacks. The
# *residual* of each eigenpair,
#
# $$\mathrm{res}_j =
# \frac{\lVert \Psi(Y) v_j - \lambda_j \Psi(X) v_j \rVert}{\lVert \Psi(X) v_j \rVert},$$
#
# measured on fresh snapshots, tells the two kinds apart without knowing the answer (ResDMD).

# %%
with jax.enable_x64(True):
    koopman = edmd.fit(observables.Monomials(3), x, y)
    fresh = system.snapshots(jax.random.key(1), n, dtype=jnp.float64)
    eigenvalues = np.asarray(koopman.eigenvalues())
    residuals = np.asarray(koopman.residuals(*fresh))
for value, residual in zip(eigenvalues, residuals, strict=True):
    print(f"eigenvalue {value.real:+.6f}   residual {residual:.1e}")

# %%
plot.spectrum(eigenvalues, residuals, exact=exact)

# %% [markdown]
# ## Prediction
#
# `predict(x, steps)` propagates in the lifted space, $\Psi(x) K^{s}$, and reads the state out
# linearly at the end. In the closed dictionary that stays exact as long as one likes.

# %%
steps = 20
start = jnp.array([[1.8, -1.5], [-1.2, 1.9], [0.7, 1.0]])
truth = systems.trajectory(system.step, start, steps)
predicted = jnp.concatenate([start[None], edmd.fit(closed, x, y).simulate(start, steps)])

figure = Figure(figsize=(5.6, 3.6), layout="constrained")
axes = figure.subplots()
parabola = np.linspace(-2, 2, 101)
axes.plot(parabola, parabola**2 * float(system.lam / (system.lam - 2 * system.mu)), color="0.8")
axes.plot(truth[..., 0], truth[..., 1], "-", color=plot.COLOURS["affine"])
axes.plot(predicted[..., 0], predicted[..., 1], "o", mfc="none", color=plot.COLOURS["degree 2"])
axes.set(xlabel="$x_1$", ylabel="$x_2$", ylim=(-1.7, 2.3), title="lines: the flow, circles: K")
print("largest error", float(jnp.abs(truth - predicted).max()))
figure

# %% [markdown]
# ## A system that no finite dictionary closes
#
# The Duffing oscillator with two wells. Each well has a Koopman spectrum of its own, and no finite
# set of polynomials is invariant. A richer dictionary predicts one step ever better, yet the
# residuals fall slowly: a good step is no evidence for the eigenvalues. (The constant function is
# exact in every dictionary; the residual shown is the least among the others.)

# %%
duffing = systems.Duffing(dt=0.25)
pairs = duffing.snapshots(jax.random.key(2), n, low=-1.5, high=1.5)
test = duffing.snapshots(jax.random.key(3), n, low=-1.5, high=1.5)


def error(koopman):
    """Root mean squared error of one step, relative to the size of the step."""
    x, y = test
    return float(jnp.sqrt(jnp.mean((koopman.predict(x) - y) ** 2) / jnp.mean((y - x) ** 2)))


degrees = (1, 3, 5) if SMALL else (1, 2, 3, 4, 5, 6, 7, 8)
fits = {}
for degree in degrees:
    psi = observables.Orthogonal(degree, family="legendre")
    # Legendre polynomials are orthogonal on [-1, 1]; the box of the data is wider.
    scaled = observables.Compose(observables.Project(jnp.eye(2) / 1.5), psi)
    fits[degree] = edmd.fit(scaled, *pairs)
    residuals = fits[degree].residuals(*test)
    least = float(jnp.sort(residuals)[1])
    print(f"degree {degree}: one-step error {error(fits[degree]):.1e}, least residual {least:.1e}")

# %%
last = fits[degrees[-1]]
plot.spectrum(last.eigenvalues(), last.residuals(*test))

# %% [markdown]
# ## How ill-conditioned was it?
#
# Monomials of degree 8 are nearly dependent. Summing their Gram matrix in float32 squares the
# condition number and loses the answer; R factors of a QR decomposition keep it. `fit` decides by
# the condition that it meets, and its result code says in words what happened. The system is linear
# here, so that all 45 eigenvalues are known: the products of 0.9 and 0.7 up to degree 8.


# %%
def verdict(fitted):
    """What the result code says; `unwrap` raises it as an error."""
    try:
        edmd.unwrap(fitted)
    except ArithmeticError as error:
        return str(error)
    return "fine"


linear = systems.Linear(np.diag([0.9, 0.7]))
x32, y32 = linear.snapshots(jax.random.key(4), n)
expected = np.sort(linear.eigenvalues(8))
for kind in ("gram", "rfactor", "auto"):
    dtype = jnp.float32 if kind == "gram" else None
    fitted = edmd.fit(observables.Monomials(8), x32, y32, statistics=kind, accumulate_dtype=dtype)
    off = np.abs(np.sort(np.asarray(fitted.eigenvalues().real)) - expected).max()
    print(f"{kind}: largest error of an eigenvalue {off:.1e}")
    print(f"  condition {float(fitted.info.condition):.1e}, {verdict(fitted)}")

# %% [markdown]
# ## From here to networks
#
# A stack of layers is a map too: activations at one depth are $x$, those at a later depth $y$. How
# rich the dictionary has to be before $K$ can stand in for the layers measures how nonlinear they
# are. That is the next notebook, `how_nonlinear_is_my_network`.
