"""Dictionaries of observables `psi`, in any combination.

A dictionary maps states `(n, d)` to observables `(n, p)`. It is a pytree: degrees, families and
sizes are static, centres, bandwidths, means and parameters are leaves. Call it as `psi(x)`; ask
for `psi.size(d)` and `psi.names(d)` before there is any data.

| data | dictionary |
|---|---|
| affine map | `Monomials(1)` |
| smooth, up to a hundred coordinates | `Compose(Standardize.fit(x), Monomials(2))` |
| degree 3 and above | `Compose(Standardize.fit(x), Orthogonal(3))` |
| many coordinates | `Compose(Project.pca(x, r), ...)` or `Project.active_subspace` |
| local structure | `Concat(Monomials(1), GaussianRBF.fit(x, m, key))` |
| images, many entries | `Compose(Kronecker.fit(x, (28, 28), (10, 10)), ...)` |
| tensor trains | `Product.of(Polynomial1D(2), d)` |
| learned | `Neural(module)` |
"""

from koopjax._core import pytree as pytree, static as static
from koopjax.observables._base import (
    Observables as Observables,
    require_rowwise as require_rowwise,
)
from koopjax.observables._combine import Compose as Compose, Concat as Concat, Select as Select
from koopjax.observables._functions import Custom as Custom, Neural as Neural
from koopjax.observables._kernels import GaussianRBF as GaussianRBF, RandomFourier as RandomFourier
from koopjax.observables._polynomials import (
    Identity as Identity,
    Monomials as Monomials,
    Orthogonal as Orthogonal,
)
from koopjax.observables._product import (
    CosSin as CosSin,
    Gaussian1D as Gaussian1D,
    Polynomial1D as Polynomial1D,
    Product as Product,
    Trigonometric as Trigonometric,
    Univariate as Univariate,
)
from koopjax.observables._product_kernel import ProductKernel as ProductKernel
from koopjax.observables._project import Kronecker as Kronecker, Project as Project
from koopjax.observables._sizes import (
    Fits as Fits,
    bytes_needed as bytes_needed,
    contains_state as contains_state,
    fits as fits,
    largest_degree as largest_degree,
    largest_dimension as largest_dimension,
)
from koopjax.observables._standardize import Standardize as Standardize

__all__ = [
    "Compose",
    "Concat",
    "CosSin",
    "Custom",
    "Fits",
    "Gaussian1D",
    "GaussianRBF",
    "Identity",
    "Kronecker",
    "Monomials",
    "Neural",
    "Observables",
    "Orthogonal",
    "Polynomial1D",
    "Product",
    "ProductKernel",
    "Project",
    "RandomFourier",
    "Select",
    "Standardize",
    "Trigonometric",
    "Univariate",
    "bytes_needed",
    "contains_state",
    "fits",
    "largest_degree",
    "largest_dimension",
    "pytree",
    "require_rowwise",
    "static",
]
