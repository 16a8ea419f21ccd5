"""Koopman blocks as Linen modules, under the parameter names of the NNX blocks."""

import math
from typing import Any

import jax
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
from koopjax.nn._operators import (
    Dense,
    LowRank,
    default_bias_init,
    default_kernel_init,
    precision_name,
)
from koopjax.nn._product import check_modes, ends_in_product
from koopjax.nn._registry import OPERATORS
from koopjax.nn._tt import TT
from koopjax.nn._variables import is_variable, trainable_parts, unfreeze

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


class HeldOperator:
    """A stored operator as a hashable attribute: its structure, and arrays to start from."""

    def __init__(self, operator: Any):
        # what computes is the module's to say: held operators of equal form are then equal
        plain = nnx.clone(unfreeze(operator))
        plain.dtype, plain.precision = None, functional.PRECISION
        self.definition, self.state = nnx.split(plain)
        self.name = type(operator).__name__
        self.values = _arrays(operator)
        self.constants = tuple(
            name for name in self.values if not isinstance(getattr(plain, name), nnx.Param)
        )
        self.features = operator.out_features

    def build(self, arrays: Any, dtype: Any, precision: Any) -> Any:
        """The NNX operator on these arrays."""
        flat = [
            (path, type(held).from_metadata(arrays[path[0]], held.get_metadata()))
            for path, held in nnx.to_flat_state(self.state)
        ]
        operator = nnx.merge(self.definition, nnx.from_flat_state(flat))
        operator.dtype = None if dtype is None else jnp.dtype(dtype)
        operator.precision = precision_name(precision)
        return operator

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, HeldOperator)
            and self.definition == other.definition
            and all(
                a.dtype == b.dtype and np.array_equal(a, b)
                for a, b in zip(self.values.values(), other.values.values(), strict=True)
            )
        )

    def __hash__(self) -> int:
        return hash(self.definition)

    def __repr__(self) -> str:
        shapes = {name: value.shape for name, value in self.values.items()}
        return f"{self.name}({shapes})"


class KoopmanBlock(flax_linen.Module):
    """The Koopman block of `nn.KoopmanBlock` in Linen: `psi(x) K`.

    Trainable parts are in the collection `params`, the others in `frozen`, each under
    `dictionary` and `operator`.

    Attributes:
        psi: dictionary; its arrays are the initial values of `dictionary`.
        features: width of the output, `q`.
        rank: inner width of a low-rank operator, or rank(s) of a TT operator; none for a dense one.
        use_bias: whether the operator has a bias.
        trainable: which parts train, as in the NNX block.
        dtype: dtype to compute in; none promotes input and parameters.
        param_dtype: dtype of the operator at initialisation.
        precision: of the operator's products.
        kernel_init: initializer of the operator's matrices.
        bias_init: initializer of the bias.
        modes: row and column modes of a TT operator, as in `nn.TT.create`; the row modes those of
            the dictionary where it ends in a `Product`. None for the other forms.
        form: order of contraction of a TT operator, as in `nn.TT`.
        stored: an `nn.Sparse`, `nn.Clustered` or `nn.Quantized` operator to start from; its indices
            or codes are in `frozen` whatever trains. None for the other forms.

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
    rank: int | tuple[int, ...] | None = None
    use_bias: bool = False
    trainable: bool | str | tuple[str, ...] = True
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    precision: Any = functional.PRECISION
    kernel_init: Any = default_kernel_init
    bias_init: Any = default_bias_init
    modes: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    form: str = "auto"
    stored: Any = None

    def __post_init__(self) -> None:
        # Linen hashes its attributes, arrays can't be: keep them behind hashable ones
        if not isinstance(self.psi, Held):
            object.__setattr__(self, "psi", Held(self.psi))
        if self.stored is not None and not isinstance(self.stored, HeldOperator):
            object.__setattr__(self, "stored", HeldOperator(self.stored))
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

        if self.stored is not None:
            operator = self._held()
        else:
            operator = (self._matrix if self.modes is None else self._train)(psi)
        return functional.apply_block(psi, operator, x, dtype=self.dtype)

    def _held(self) -> Any:
        """The stored operator; what does not train is among the frozen arrays."""
        held: HeldOperator = self.stored
        if self.features != held.features:
            raise expected(f"features={held.features}, those of stored", f"{self.features}")
        free = {k: v for k, v in held.values.items() if k not in held.constants}
        fixed = {k: v for k, v in held.values.items() if k in held.constants}
        if "operator" in trainable_parts(self.trainable):
            arrays = self.param("operator", lambda _: free)
            arrays = {**arrays, **self.variable("frozen", "operator", lambda: fixed).value}
        else:
            arrays = self._part("operator", lambda _: {**free, **fixed})
        return held.build(arrays, self.dtype, self.precision)

    def _matrix(self, psi: Any) -> Any:
        """The dense or low-rank operator, made when the width of its input is known."""
        del psi

        def operator(lifted: Array) -> Array:
            arrays = self._part("operator", lambda key: self._init(key, lifted.shape[-1]))
            names = ("matrix",) if self.rank is None else ("left", "right")
            held = (lifted, *(arrays[n] for n in names), arrays.get("bias"))
            promoted = dtypes.promote_dtype(held, dtype=self.dtype)
            low_rank = self.rank is not None
            apply: Any = functional.apply_low_rank if low_rank else functional.apply_dense
            return apply(*promoted, precision=self.precision)

        return operator

    def _train(self, psi: Any) -> TT:
        """The TT operator of the NNX blocks on the module's arrays."""
        if ends_in_product(psi):
            check_modes(psi, self.modes[0])  # pyright: ignore[reportOptionalSubscript]
        arrays = self._part("operator", lambda key: self._init(key, 0))
        return TT(**_given(arrays), dtype=self.dtype, precision=self.precision, form=self.form)

    def _init(self, key: Array, p: int) -> dict[str, Any]:
        settings: dict[str, Any] = {
            "use_bias": self.use_bias,
            "bias_init": self.bias_init,
            "param_dtype": self.param_dtype,
        }
        if self.modes is not None:
            rows, columns = self.modes
            if math.prod(columns) != self.features or self.rank is None:
                raise expected(
                    f"column modes of product {self.features}, the features, and a rank",
                    f"{columns} and rank {self.rank}",
                )
            product = ends_in_product(self.psi.structure.build(self.psi.values))
            init = "identity" if product else "normal"
            return _arrays(TT.create(key, rows, columns, self.rank, init=init, **settings))
        form = (p, self.features) if self.rank is None else (p, self.features, self.rank)
        create: Any = Dense.create if self.rank is None else LowRank.create
        return _arrays(create(key, *form, kernel_init=self.kernel_init, **settings))


def from_nnx(block: NNXBlock) -> tuple[KoopmanBlock, dict[str, Any]]:
    """The Linen module and variables that compute what an NNX block computes.

    Args:
        block: an `nn.KoopmanBlock` on one of `nn.OPERATORS`.

    Returns:
        `(module, variables)` with the arrays of the block under the same names.
    """
    operator = block.operator
    if type(operator) not in OPERATORS.values():
        raise expected("a block on one of nn.OPERATORS", type(operator).__name__)
    structure = block.structure
    held = structure.flat(block.dictionary)
    values = {"dictionary": structure.nest([v.get_value() for v in held])}
    values["operator"] = _arrays(operator)
    parts = tuple(
        name
        for name, variables in (("dictionary", held), ("operator", _variables(operator)))
        if any(isinstance(v, nnx.Param) for v in variables)
    )
    train = isinstance(operator, TT)
    stored = not isinstance(operator, Dense | LowRank | TT)
    module = KoopmanBlock(
        psi=structure.build([v.get_value() for v in held]),
        features=operator.out_features,
        rank=operator.ranks[1:-1] if train else getattr(operator, "rank", None),
        modes=operator.modes if train else None,
        form=operator.form if train else "auto",
        use_bias=operator.use_bias,
        trainable=parts,
        dtype=operator.dtype,
        precision=operator.precision,
        stored=operator if stored else None,
    )
    variables: dict[str, Any] = {}
    for name, value in values.items():
        variables.setdefault("params" if name in parts else "frozen", {})[name] = value
    if stored and "operator" in parts:
        arrays, fixed = values["operator"], module.stored.constants
        variables["params"]["operator"] = {k: v for k, v in arrays.items() if k not in fixed}
        frozen = variables.setdefault("frozen", {})
        frozen["operator"] = {k: v for k, v in arrays.items() if k in fixed}
    return module, variables


def to_nnx(module: KoopmanBlock, variables: Any) -> NNXBlock:
    """The NNX block that computes what a Linen module computes with these variables.

    Args:
        module: a `nn.linen.KoopmanBlock`.
        variables: its variables.

    Returns:
        An `nn.KoopmanBlock` with copies of the arrays under the same names.
    """
    frozen, params = variables.get("frozen", {}), variables.get("params", {})
    merged = {**frozen, **params}
    structure = module.psi.structure
    psi = structure.build(structure.flat(merged["dictionary"] if structure.paths else {}))
    settings: dict[str, Any] = {"dtype": module.dtype, "precision": module.precision}
    if module.stored is not None:
        arrays = {**frozen.get("operator", {}), **params.get("operator", {})}
        operator = module.stored.build(arrays, **settings)
    else:
        form: Any = Dense if module.rank is None else LowRank
        if module.modes is not None:
            form, settings["form"] = TT, module.form
        operator = form(**_given(merged["operator"]), **settings)
    return NNXBlock(psi, operator, trainable=module.trainable, dtype=module.dtype)


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
    return [v for v in jax.tree.leaves(operator, is_leaf=is_variable) if is_variable(v)]


def _arrays(operator: Any) -> dict[str, Any]:
    """The arrays of an operator by name; those of a list under its numbers."""
    held = {name: getattr(operator, name) for name in operator.arrays}
    return {
        name: {str(k): core.get_value() for k, core in enumerate(v)}
        if name == "cores"
        else v.get_value()
        for name, v in held.items()
        if v is not None
    }


def _given(arrays: Any) -> dict[str, Any]:
    """The arguments of an operator's constructor: the reverse of `_arrays`."""
    return {
        name: [v[str(k)] for k in range(len(v))] if name == "cores" else v
        for name, v in arrays.items()
    }
