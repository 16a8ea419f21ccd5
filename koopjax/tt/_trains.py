"""Tensor trains and TT matrices with exact ranks, and padded ones, as pytrees of cores."""

import math
from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped

from koopjax._core import expected, on_host, pytree, read, read_numbers, traced
from koopjax.tt._cores import dense, dense_matrix, dense_padded, parsed, part
from koopjax.tt._precision import floating_dtype, precise


def _check_cores(kind: str, cores: tuple[Any, ...], ndim: int) -> None:
    """Raise unless cores chain: right number of axes, ranks that meet, ranks of 1 at the ends."""
    known = isinstance(cores, tuple) and all(
        hasattr(core, "shape") and hasattr(core, "dtype") for core in cores
    )
    if not known:
        raise expected(f"a list of arrays as cores of a {kind}", f"{cores!r:.60}")
    if not cores:
        raise expected(f"at least one core in a {kind}", "none")
    for core in cores:
        check_core_dtype(kind, core.dtype)
    shapes = [tuple(jnp.shape(core)) for core in cores]
    for k, shape in enumerate(shapes):
        if len(shape) != ndim or 0 in shape:
            raise expected(f"core {k} of a {kind} with {ndim} axes, none empty", f"shape {shape}")
    for k in range(len(shapes) - 1):
        if shapes[k][-1] != shapes[k + 1][0]:
            raise expected(
                f"equal ranks where core {k} meets core {k + 1}",
                f"shapes {shapes[k]} and {shapes[k + 1]}",
            )
    if shapes[0][0] != 1 or shapes[-1][-1] != 1:
        raise expected("ranks of 1 at both ends", f"{shapes[0][0]} and {shapes[-1][-1]}")


def check_core_dtype(kind: str, dtype: Any) -> None:
    """Raise unless the verbs compute in this dtype, or in floats in place of it."""
    number = jnp.issubdtype(dtype, jnp.number) or jnp.issubdtype(dtype, jnp.bool_)
    if not number or (jnp.issubdtype(dtype, jnp.inexact) and dtype.itemsize < 2):
        raise expected(
            f"numbers of 16 bits or more as cores of a {kind}",
            f"dtype {dtype}",
            "core.astype(jnp.float32)",
        )


def read_core(name: str, core: Any) -> Any:
    """What a user wrote down as a core, read by the door: NumPy's floats, integers as such.

    Arrays of JAX stay as they are, and so does all else that JAX puts in their place where it
    rebuilds a tree.
    """
    written = isinstance(core, list) or hasattr(core, "__array__")
    if not written or isinstance(core, jax.Array | np.generic) or hasattr(core, "__jax_array__"):
        return core
    core = read(name, core)
    return core if jnp.issubdtype(core.dtype, jnp.inexact) else read_numbers(name, core)


class _Train:
    """What both kinds share."""

    cores: Any

    def __post_init__(self) -> None:
        """Take a list as a tuple, so that equal trains have equal tree structures; read NumPy."""
        if isinstance(self.cores, list | tuple):
            cores = tuple(read_core(f"core {k}", core) for k, core in enumerate(self.cores))
            object.__setattr__(self, "cores", cores)

    @property
    def order(self) -> int:
        """Number of cores, `d`."""
        return len(self.cores)

    @property
    def ranks(self) -> tuple[int, ...]:
        """TT ranks `(r_0, ..., r_d)`, 1 at both ends."""
        return (*(int(core.shape[0]) for core in self.cores), int(self.cores[-1].shape[-1]))

    @property
    def numbers(self) -> int:
        """How many numbers the cores hold."""
        return sum(math.prod(core.shape) for core in self.cores)

    @property
    def dtype(self) -> Any:
        """The dtype of the cores, promoted to a common one; outside x64 NumPy's are float32.

        But for numbers that float32 does not hold: what has those is computed in float64.
        """
        return floating_dtype(*self.cores)


@pytree
class TensorTrain(_Train):
    """A tensor as a chain of cores: `A[i_1, ..., i_d] = G_1[i_1] G_2[i_2] ... G_d[i_d]`.

    Args:
        cores: `d` arrays `(r_{k-1}, n_k, r_k)`, with `r_0 = r_d = 1`.

    Reference: Oseledets (2011), SIAM J. Sci. Comput. 33, equation 1.2.
    """

    cores: Any

    def validate(self) -> "TensorTrain":
        """Raise `ValueError` unless the cores chain; returns the train."""
        _check_cores("TensorTrain", self.cores, 3)
        return self

    @property
    def modes(self) -> tuple[int, ...]:
        """Mode sizes `(n_1, ..., n_d)`: the shape of the tensor."""
        return tuple(int(core.shape[1]) for core in self.cores)

    def to_dense(self) -> Shaped[Array, "..."]:
        """The full tensor of shape `modes`."""
        self.validate()
        with precise(self):
            return dense(self)

    def __getitem__(self, index: Any) -> Any:
        """The part of the tensor that an index selects, as in NumPy: `train[1, :, 2:4]`.

        Args:
            index: an integer, a slice, `...`, or a tuple of them; integers drop their mode. Static.

        Returns:
            `TensorTrain` of the modes that are left; a scalar array where none is.

        Raises:
            IndexError: an integer outside its mode, or too many indices.
            ValueError: an empty slice, or an index of another kind.
        """
        check_train("the train", self)
        places, slices = parsed(self.modes, index)
        with precise(self):
            left = part(self, places, slices=slices)
        return TensorTrain(left) if isinstance(left, tuple) else left


@pytree
class TTMatrix(_Train):
    """A matrix between tensor spaces as a chain of cores, acting from the right.

    `M[(i_1 ... i_d), (j_1 ... j_d)] = G_1[i_1, j_1] ... G_d[i_d, j_d]`, multi-indices in C order.
    A tensor with one output index is the case of column modes `(1, ..., q, ..., 1)`.

    Args:
        cores: `d` arrays `(r_{k-1}, m_k, n_k, r_k)`, with `r_0 = r_d = 1`.
    """

    cores: Any

    def validate(self) -> "TTMatrix":
        """Raise `ValueError` unless the cores chain; returns the matrix."""
        _check_cores("TTMatrix", self.cores, 4)
        return self

    @property
    def row_modes(self) -> tuple[int, ...]:
        """Modes of the rows `(m_1, ..., m_d)`: what a row vector is contracted over."""
        return tuple(int(core.shape[1]) for core in self.cores)

    @property
    def column_modes(self) -> tuple[int, ...]:
        """Modes of the columns `(n_1, ..., n_d)`."""
        return tuple(int(core.shape[2]) for core in self.cores)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the matrix, `(∏ m_k, ∏ n_k)`."""
        return math.prod(self.row_modes), math.prod(self.column_modes)

    def to_dense(self) -> Shaped[Array, "p q"]:
        """The full matrix `(∏ m_k, ∏ n_k)`."""
        self.validate()
        with precise(self):
            return dense_matrix(self)


@pytree
class PaddedTT:
    """A tensor train whose cores are stacked in one array: what vmap and scan run over.

    `A[i_1, ..., i_d] = G_1[i_1] ... G_d[i_d]` as in `TensorTrain`, with every core padded to
    `(R, N, R)`. Invariant: zero outside the masks, so sums over the padding add nothing. Ranks are
    data (masks), hence a vmap axis; only `R`, `N` and `d` are shapes.

    Args:
        cores: `(d, R, N, R)`, zero outside the masks.
        rank_mask: `(d + 1, R)`: 1 for ranks in use. The first and last rows are `(1, 0, ..., 0)`.
        mode_mask: `(d, N)`: 1 for indices in use.

    Example:
        >>> import jax.numpy as jnp
        >>> pad(TensorTrain([jnp.ones((1, 2, 1))] * 3), 4).cores.shape
        (3, 4, 2, 4)
    """

    cores: Any
    rank_mask: Any
    mode_mask: Any

    def __post_init__(self) -> None:
        """Read what was written down in NumPy."""
        for name in ("cores", "rank_mask", "mode_mask"):
            object.__setattr__(self, name, read_core(name, getattr(self, name)))

    def validate(self) -> "PaddedTT":
        """Raise `ValueError` unless the shapes fit and no rank or mode is zero; returns itself."""
        arrays = (self.cores, self.rank_mask, self.mode_mask)
        if not all(hasattr(array, "dtype") for array in arrays):
            kinds = ", ".join(type(array).__name__ for array in arrays)
            raise expected("arrays as cores and masks of a PaddedTT", kinds, "tt.pad(train, rank)")
        check_core_dtype("PaddedTT", self.cores.dtype)
        shapes = [tuple(jnp.shape(array)) for array in arrays]
        core = shapes[0]
        if len(core) != 4 or 0 in core or core[1] != core[3]:
            raise expected(
                "stacked cores (d, R, N, R), none of the sizes zero",
                f"shape {core}",
                "jax.vmap where there is a leading axis of lanes",
            )
        d, rank, size, _ = core
        if shapes[1:] != [(d + 1, rank), (d, size)]:
            raise expected(
                f"rank_mask {(d + 1, rank)} and mode_mask {(d, size)} for cores {core}",
                f"{shapes[1]} and {shapes[2]}",
                "tt.pad(train, rank)",
            )
        if not traced(self.rank_mask, self.mode_mask):
            if 0 in self.ranks or 0 in self.modes:
                raise expected(
                    "ranks and modes of at least 1", f"ranks {self.ranks}, modes {self.modes}"
                )
            if self.ranks[0] != 1 or self.ranks[-1] != 1:
                raise expected("ranks of 1 at both ends", f"{self.ranks[0]} and {self.ranks[-1]}")
        return self

    @property
    def order(self) -> int:
        """Number of cores, `d`."""
        return int(self.cores.shape[0])

    @property
    def max_rank(self) -> int:
        """The padded rank `R`."""
        return int(self.cores.shape[1])

    @property
    def ranks(self) -> tuple[int, ...]:
        """TT ranks in use `(r_0, ..., r_d)`; needs concrete masks."""
        return tuple(int(r) for r in np.asarray(self.rank_mask).astype(bool).sum(axis=1))

    @property
    def modes(self) -> tuple[int, ...]:
        """Mode sizes in use; needs concrete masks."""
        return tuple(int(n) for n in np.asarray(self.mode_mask).astype(bool).sum(axis=1))

    @property
    def numbers(self) -> int:
        """How many numbers the cores hold inside the masks; needs concrete masks."""
        ranks = self.ranks
        pairs = zip(ranks[:-1], self.modes, ranks[1:], strict=True)
        return sum(r * n * s for r, n, s in pairs)

    @property
    def dtype(self) -> Any:
        """The dtype of the cores, as that of a `TensorTrain`."""
        return floating_dtype(self.cores)

    def to_dense(self) -> Shaped[Array, "..."]:
        """The full tensor of the padded shape `(N, ..., N)`, zero where a mode is masked.

        The shape does not depend on the masks, so that this works under jit and vmap;
        `tt.unpad(train).to_dense()` has the shape `modes`.
        """
        self.validate()
        with precise(self):
            return dense_padded(self)


T = TypeVar("T", TensorTrain, TTMatrix, PaddedTT)


@jax.jit
def _finite_on_device(leaves: list[Any]) -> Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves])


def _finite(leaves: list[Any]) -> np.ndarray:
    """Whether each array is finite; in NumPy where that copies nothing, so nothing is compiled."""
    if all(map(on_host, leaves)):
        return np.asarray([np.isfinite(np.asarray(leaf)).all() for leaf in leaves])
    with precise(leaves):
        return np.asarray(_finite_on_device(leaves))


def check_train(name: str, train: Any, *kinds: type) -> None:
    """Raise unless this is a train whose cores chain and, where they can be looked at, are finite.

    Ranks and modes of zero, ranks that do not meet and NaN are all refused here. Any kind of train
    will do, where none is named.
    """
    kinds = kinds or (TensorTrain, TTMatrix, PaddedTT)
    if not isinstance(train, kinds):
        named = " or ".join(kind.__name__ for kind in kinds)
        advice = "tt.from_dense(array), tt.matrix_from_dense(array, row_modes, column_modes)"
        advice = "tt.unpad(train)" if isinstance(train, PaddedTT) else advice
        raise expected(f"a {named} as {name}", type(train).__name__, advice)
    train.validate()
    cores = list(train.cores) if isinstance(train.cores, tuple) else [train.cores]
    if traced(cores):
        return
    finite = _finite(cores)
    if not finite.all():
        where = "" if isinstance(train, PaddedTT) else f", core {int(np.argmin(finite))} among them"
        raise expected(
            f"finite cores in {name}",
            f"NaN or infinite entries{where}",
            "a larger ridge, or standardised data, where the cores come from a fit",
        )


def check_same(verb: str, a: Any, b: Any) -> None:
    """Raise unless two trains are of one kind and have the same modes."""
    check_train("the first train", a)
    check_train("the second train", b)
    if type(a) is not type(b):
        raise expected(
            f"two trains of one kind in {verb}",
            f"{type(a).__name__} and {type(b).__name__}",
            "tt.pad or tt.unpad on one of them",
        )
    if isinstance(a, PaddedTT):
        first, second = (a.cores.shape[0], a.cores.shape[2]), (b.cores.shape[0], b.cores.shape[2])
        if first == second and not traced(a.mode_mask, b.mode_mask):
            first, second = a.modes, b.modes
    elif isinstance(a, TensorTrain):
        first, second = a.modes, b.modes
    else:
        first, second = (a.row_modes, a.column_modes), (b.row_modes, b.column_modes)
    if first != second:
        raise expected(f"equal modes in {verb}", f"{first} and {second}", "trains of one shape")


def as_train(train: Any) -> TensorTrain:
    """A TT matrix as the train of its merged modes `m_k n_k`; a tensor train as it is."""
    if isinstance(train, TTMatrix):
        return TensorTrain(tuple(c.reshape(c.shape[0], -1, c.shape[-1]) for c in train.cores))
    return train


def split_modes(cores: Any, rows: Sequence[int], columns: Sequence[int]) -> tuple[Any, ...]:
    """Cores `(r, m n, s)` as those of a matrix, `(r, m, n, s)`."""
    triples = zip(cores, rows, columns, strict=True)
    return tuple(c.reshape(c.shape[0], m, n, c.shape[-1]) for c, m, n in triples)


def like(train: Any, original: T) -> T:
    """The inverse of `as_train`: merged modes split as in the original."""
    if not isinstance(original, TTMatrix):
        return train
    return TTMatrix(split_modes(train.cores, original.row_modes, original.column_modes))
