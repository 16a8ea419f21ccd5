"""The form of a Koopman block: what is chosen, the bytes that it takes, and the module itself."""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from koopjax import nn, observables
from koopjax._core import on_device


@dataclasses.dataclass(frozen=True, eq=False)
class Setting:
    """One choice of everything.

    Attributes:
        directions: the coordinates, before entries of the state are given up.
        kept: which of these are read.
        coordinates: how many, degree: of their products, columns: which of these, rank: of K.
        ridge: relative to the number of samples.
        bits: of an entry of projection and K where they lie on a grid; None for float32.
        entries: of K that are kept; None for all of the kept products.
        limited: whether the number of samples bounded the dictionaries that were tried.
    """

    directions: Any
    kept: np.ndarray
    coordinates: int
    degree: int
    columns: np.ndarray
    rank: int
    ridge: float
    bits: int | None = None
    entries: int | None = None
    limited: bool = False

    @property
    def observables(self) -> int:
        """How many products are kept."""
        return len(self.columns)

    def as_dict(self, d: int) -> dict[str, Any]:
        """For the report."""
        return {
            "entries": f"{len(self.kept)} of {d}", "coordinates": self.coordinates,
            "degree": self.degree, "observables": self.observables, "rank": self.rank,
            "ridge": self.ridge, **({} if self.bits is None else {"bits": self.bits}),
            **({} if self.entries is None else {"entries of K": self.entries}),
        }  # fmt: skip


def lift(
    matrix: Any, shift: Any, degree: int, columns: Any = None, before: tuple[Any, ...] = ()
) -> observables.Compose:
    """The dictionary of a block: project `(m, r)`, take off a shift, form products (or some).

    The shift `(r,)` is behind the product, where it is so few numbers. The dictionaries `before`
    read the state first.
    """
    # A scale would say what the projection says already, and fill the file once it is trained.
    coordinates: Any = observables.Compose(
        observables.Project(on_device(matrix, jnp.float32)),
        observables.Standardize(on_device(shift, jnp.float32)),
    )
    for read in reversed(before):
        coordinates = observables.Compose(read, coordinates)
    products: Any = observables.Monomials(degree)
    if columns is not None:
        products = observables.Select(products, columns)
    return observables.Compose(coordinates, products)


def koopman_block(
    d: int, reader: Any, setting: Setting, matrix: np.ndarray, shift: Any, k: Any
) -> nn.KoopmanBlock:
    """A Koopman block for `d` entries, as the reader gives them; K is `(p, q)` or two factors."""
    before = () if reader is None else (reader,)
    if len(setting.kept) < d:
        before += (observables.Select(observables.Identity(), _small(setting.kept, d)),)
    total = math.comb(setting.coordinates + setting.degree, setting.degree)
    columns = _small(setting.columns, total) if setting.observables < total else None
    operator = nn.LowRank(*k) if isinstance(k, tuple) else nn.Dense(k)
    return nn.KoopmanBlock(lift(matrix, shift, setting.degree, columns, before), operator)


def least_block(d: int, q: int, reader: Any) -> nn.KoopmanBlock:
    """A block of the smallest form: one entry, one coordinate, and a line in it."""
    least = Setting(None, np.arange(1), 1, 1, np.arange(2), q, 0.0)
    # Numbers in general position: equal ones, and those on a grid, would take less of the file.
    k = np.random.default_rng(0).normal(size=(2, q)).astype(np.float32)
    return koopman_block(d, reader, least, np.ones((1, 1)), np.zeros(1), k)


def least_bytes(d: int, q: int) -> int:
    """Bytes of the arrays of the smallest form."""
    return array_bytes(d, q, 1, 1, 2, 2, q)


def _small(indices: np.ndarray, size: int) -> np.ndarray:
    """Indices in the least unsigned type that holds `size` of them."""
    kinds = (np.uint8, np.uint16, np.uint32)
    return np.asarray(indices, next(k for k in kinds if size <= np.iinfo(k).max + 1))


def index_bytes(count: int, size: int) -> int:
    """Bytes of a sorted choice of `count` out of `size`: its entropy, and a little more.

    The file codes such a choice near its entropy; the last steps of a search look at true files.
    """
    if count in (0, size):
        return 0
    share = count / size
    bits = -share * math.log2(share) - (1 - share) * math.log2(1 - share)
    return math.ceil(1.05 * size * bits / 8) + 12


def array_bytes(d: int, q: int, m: int, r: int, p: int, total: int, rank: int) -> int:
    """Bytes of all arrays of a block: m of d entries, r coordinates, p of all observables.

    A rank of `q` stands for a dense K.
    """
    k = p * rank + (rank * q if rank < q else 0)
    return 4 * (m * r + r + k) + index_bytes(m, d) + index_bytes(p, total)


def most_observables(limit: int, d: int, q: int, m: int, r: int, total: int, rank: int) -> int:
    """The largest number of observables that a number of bytes allows."""
    if array_bytes(d, q, m, r, total, total, rank) <= limit:
        return total
    p = min(total - 1, max(0, limit - array_bytes(d, q, m, r, 0, total, rank)) // (4 * rank))
    while p > 0 and array_bytes(d, q, m, r, p, total, rank) > limit:
        p -= 1
    return p
