"""Dynamical systems with closed-form answers, for tests and teaching.

Each is a frozen pytree: `step` (a map, or the flow over `dt`) or `drift`, `snapshots(key, n)` of
pairs `(x, y)` with samples in rows, and whatever is known exactly (eigenvalues, eigenfunctions,
coefficients, densities), computed on the host in float64.
"""

from koopjax.data.systems._chain import FermiPastaUlam as FermiPastaUlam
from koopjax.data.systems._flow import runge_kutta as runge_kutta, trajectory as trajectory
from koopjax.data.systems._linear import Linear as Linear, SlowManifold as SlowManifold
from koopjax.data.systems._logistic import Logistic as Logistic
from koopjax.data.systems._oscillators import Duffing as Duffing, VanDerPol as VanDerPol

__all__ = [
    "Duffing",
    "FermiPastaUlam",
    "Linear",
    "Logistic",
    "SlowManifold",
    "VanDerPol",
    "runge_kutta",
    "trajectory",
]
