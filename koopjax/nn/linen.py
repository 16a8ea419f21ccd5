"""Koopman blocks as Linen modules, under the parameter names of the NNX blocks."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as flax_linen, nnx
from flax.nnx.nn import dtypes
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from koopjax._core import expected
from koopjax.nn import functional
from koopjax.nn._block import KoopmanBlock as NNXBlock
from koopjax.nn._dictionary import take_apart
from koopjax.nn._from_koopman import from_koopman as nnx_from_koopman
from koopjax.nn._operators import Dense, LowRank, default_bias_init, default_kernel_init
from koopjax.nn._variables import trainable_parts

__all__ = ["KoopmanBlock", "from_koopman", "from_nnx", "to_nnx"]


class Held:
    """A dictionary as a hashable attribute: its structure, and arrays to start from."""

    def __init__(self, psi: Any):
        self.structure, leaves = take_apart(psi)
        self.values = [
            leaf.get_value() if k else leaf for leaf, k in zip(leaves, self.kinds, strict=True)
        ]

    @property
    def kinds(self) -> tuple[Any, ...]:
        """The Variable class of each leaf, or None for plain arrays."""
        return self.structure.kinds

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Held)
            and self.structure == other.structure
            and all(
                a is b or (a.dtype == b.dtype and np.array_equal(a, b))
                for a, b in zip(self.values, other.values, strict=True)
            )
        )

    def __hash__(self) -> int:
        return hash(self.structure)

    def __repr__(self) -> str:
        return repr(self.structure)


class KoopmanBlock(flax_linen.Module):
    """The Koopman block of `nn.KoopmanBlock` in Linen: `psi(x) K`.

    Trainable parts are in the collection `params`, the others in `frozen`, each under
    `dictionary` and `operator`.

    Attributes:
        psi: dictionary; its arrays are the initial values of `dictionary`.
        features: width of the output, `q`.
        rank: inner width of a low-rank operator; none for a dense one.
        use_bias: whether the operator has a bias.
        trainable: which parts train, as in the NNX block.
        dtype: dtype to compute in; none promotes input and parameters.
        param_dtype: dtype of the operator at initialisation.
        precision: of the operator's products.
        kernel_init: initializer of the operator's matrices.
        bias_init: initializer of the bias.

    Example:
        >>> import jax
        >>> from koopjax import nn, observables
        >>> block = nn.linen.KoopmanBlock(observables.Identity(), features=3)
        >>> variables = block.init(jax.random.key(0), jax.numpy.ones((2, 4)))
        >>> variables["params"]["operator"]["matrix"].shape
        (4, 3)
    """

    psi: Any
    features: int
    rank: int | None = None
    use_bias: bool = False
    trainable: bool | str | tuple[str, ...] = True
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    precision: Any = functional.PRECISION
    kernel_init: Any = default_kernel_init
    bias_init: Any = default_bias_init

    def __post_init__(self) -> None:
        # Linen hashes its attributes, arrays can't be: keep the dictionary behind a hashable one
        if not isinstance(self.psi, Held):
            object.__setattr__(self, "psi", Held(self.psi))
        super().__post_init__()

    def _part(self, name: str, init: Any) -> Any:
        if name in trainable_parts(self.trainable):
            return self.param(name, init)
        key = self.make_rng("params") if self.is_initializing() else None
        return self.variable("frozen", name, init, key).value

    @flax_linen.compact
    def __call__(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch q"]:
        """`psi(x) K` along the last axis."""
        held: Held = self.psi
        structure = held.structure
        nested = self._part("dictionary", lambda _: structure.nest(held.values))
        psi = structure.build(structure.flat(nested), self.dtype)

        def operator(lifted: Array) -> Array:
            arrays = self._part("operator", lambda key: self._init(key, lifted.shape[-1]))
            names = ("matrix",) if self.rank is None else ("left", "right")
            held = (lifted, *(arrays[n] for n in names), arrays.get("bias"))
            promoted = dtypes.promote_dtype(held, dtype=self.dtype)
            low_rank = self.rank is not None
            apply: Any = functional.apply_low_rank if low_rank else functional.apply_dense
            return apply(*promoted, precision=self.precision)

        return functional.apply_block(psi, operator, x, dtype=self.dtype)

    def _init(self, key: Array, p: int) -> dict[str, Array]:
        form = (p, self.features) if self.rank is None else (p, self.features, self.rank)
        create = Dense.create if self.rank is None else LowRank.create
        made = create(
            key,
            *form,
            use_bias=self.use_bias,
            kernel_init=self.kernel_init,
            bias_init=self.bias_init,
            param_dtype=self.param_dtype,
        )
        return _arrays(made)


def from_nnx(block: NNXBlock) -> tuple[KoopmanBlock, dict[str, Any]]:
    """The Linen module and variables that compute what an NNX block computes.

    Args:
        block: an `nn.KoopmanBlock` on `Dense` or `LowRank`.

    Returns:
        `(module, variables)` with the arrays of the block under the same names.
    """
    operator = block.operator
    if not isinstance(operator, Dense | LowRank):
        raise expected("a block on Dense or LowRank", type(operator).__name__)
    structure = block.structure
    held = structure.flat(block.dictionary)
    values = {"dictionary": structure.nest([v.get_value() for v in held])}
    values["operator"] = _arrays(operator)
    parts = tuple(
        name
        for name, variables in (("dictionary", held), ("operator", _variables(operator)))
        if any(isinstance(v, nnx.Param) for v in variables)
    )
    module = KoopmanBlock(
        psi=structure.build([v.get_value() for v in held]),
        features=operator.out_features,
        rank=operator.rank if isinstance(operator, LowRank) else None,
        use_bias=operator.use_bias,
        trainable=parts,
        dtype=operator.dtype,
        precision=operator.precision,
    )
    variables: dict[str, Any] = {}
    for name, value in values.items():
        variables.setdefault("params" if name in parts else "frozen", {})[name] = value
    return module, variables


def to_nnx(module: KoopmanBlock, variables: Any) -> NNXBlock:
    """The NNX block that computes what a Linen module computes with these variables.

    Args:
        module: a `nn.linen.KoopmanBlock`.
        variables: its variables.

    Returns:
        An `nn.KoopmanBlock` with copies of the arrays under the same names.
    """
    merged = {**variables.get("frozen", {}), **variables.get("params", {})}
    structure = module.psi.structure
    psi = structure.build(structure.flat(merged["dictionary"] if structure.paths else {}))
    arrays = dict(merged["operator"])
    form = Dense if module.rank is None else LowRank
    return NNXBlock(
        psi,
        form(**arrays, dtype=module.dtype, precision=module.precision),
        trainable=module.trainable,
        dtype=module.dtype,
    )


def from_koopman(fit: Any, rank: int | None = None, **settings: Any) -> tuple[KoopmanBlock, Any]:
    """The Linen module and variables that a fit predicts with: `nn.from_koopman` in Linen.

    Args:
        fit: an `edmd.Koopman`.
        rank: as in `nn.from_koopman`.
        **settings: the other settings of `nn.from_koopman`.

    Returns:
        `(module, variables)`; `module.apply(variables, x)` is `fit.predict(x)` to rounding.
    """
    return from_nnx(nnx_from_koopman(fit, rank, **settings))


def _variables(operator: Any) -> list[Any]:
    return [getattr(operator, n) for n in operator.arrays if getattr(operator, n) is not None]


def _arrays(operator: Any) -> dict[str, Array]:
    held = {name: getattr(operator, name) for name in operator.arrays}
    return {name: v.get_value() for name, v in held.items() if v is not None}
