"""Koopman blocks as Linen modules: the NNX operators on the module's own arrays."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as flax_linen, nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from koopjax._core import expected
from koopjax.nn._block import KoopmanBlock as NNXBlock, apply_block
from koopjax.nn._dictionary import check_modes, ends_in_product, take_apart
from koopjax.nn._from_koopman import from_koopman as nnx_from_koopman
from koopjax.nn._operators import (
    PRECISION,
    Dense,
    LowRank,
    Operator,
    default_bias_init,
    default_kernel_init,
    precision_name,
    values_of,
)
from koopjax.nn._stack import OPERATORS
from koopjax.nn._tt import TT
from koopjax.nn._variables import is_variable, trainable_parts, unfreeze

__all__ = ["KoopmanBlock", "from_koopman", "from_nnx", "to_nnx"]


class Held:
    """What is made of arrays as a hashable attribute: a structure, and arrays to start from."""

    def __init__(self, structure: Any, arrays: Any, like: Any = None):
        self.structure = structure
        self.arrays = arrays
        self.like = like  # the operator, which computes as the module says

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Held) or self.structure != other.structure:
            return False
        pairs = zip(jax.tree.leaves(self.arrays), jax.tree.leaves(other.arrays), strict=True)
        return all(a is b or (a.dtype == b.dtype and np.array_equal(a, b)) for a, b in pairs)

    def __hash__(self) -> int:
        return hash(self.structure)

    def __repr__(self) -> str:
        kind = "dictionary" if self.like is None else type(self.like).__name__
        return f"{kind}({jax.tree.map(jnp.shape, self.arrays)})"


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
    precision: Any = PRECISION
    kernel_init: Any = default_kernel_init
    bias_init: Any = default_bias_init
    modes: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    form: str = "auto"
    stored: Any = None

    def __post_init__(self) -> None:
        # Linen hashes its attributes, arrays can't be: keep them behind hashable ones
        if not isinstance(self.psi, Held):
            structure, leaves = take_apart(self.psi)
            values = [leaf.get_value() if is_variable(leaf) else leaf for leaf in leaves]
            object.__setattr__(self, "psi", Held(structure, structure.nest(values)))
        if self.stored is not None and not isinstance(self.stored, Held):
            # held operators of equal form are equal, whatever computes and trains
            plain = nnx.clone(unfreeze(self.stored))
            plain.dtype, plain.precision = None, PRECISION
            held = Held(nnx.split(plain)[0], _arrays(plain), plain)
            object.__setattr__(self, "stored", held)
        super().__post_init__()

    def _part(self, name: str, init: Any, trains: bool = True) -> Any:
        if trains and name in trainable_parts(self.trainable):
            return self.param(name, init)
        key = self.make_rng("params") if trains and self.is_initializing() else None
        return self.variable("frozen", name, init, key).value

    @flax_linen.compact
    def __call__(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch q"]:
        """`psi(x) K` along the last axis."""
        structure = self.psi.structure
        nested = self._part("dictionary", lambda _: self.psi.arrays)
        psi = structure.build(structure.flat(nested), self.dtype)
        if self.stored is None:
            arrays = self._part("operator", lambda key: _arrays(self._fresh(key, psi, x)))
        elif "operator" in trainable_parts(self.trainable):
            free, fixed = _divided(self.stored.arrays)
            arrays = self._part("operator", lambda _: free)
            arrays = {**arrays, **self._part("operator", lambda _: fixed, trains=False)}
        else:
            arrays = self._part("operator", lambda _: self.stored.arrays)
        operator = _operator(self, arrays)
        if operator.out_features != self.features:
            wanted = f"features={operator.out_features}, those of stored"
            raise expected(wanted, f"{self.features}")
        if isinstance(operator, TT) and ends_in_product(psi):
            check_modes(psi, operator.modes[0])
        return apply_block(psi, operator, x, self.dtype)

    def _fresh(self, key: Array, psi: Any, x: Array) -> Operator:
        """A random operator behind this dictionary."""
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
            init = "identity" if ends_in_product(psi) else "normal"
            return TT.create(key, rows, columns, self.rank, init=init, **settings)
        lift = lambda x: apply_block(psi, jnp.asarray, x, self.dtype)
        widths = jax.eval_shape(lift, x).shape[-1], self.features
        settings["kernel_init"] = self.kernel_init
        if self.rank is None:
            return Dense.create(key, *widths, **settings)
        return LowRank.create(key, *widths, self.rank, **settings)  # pyright: ignore[reportArgumentType]


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
    dictionary = [v.get_value() for v in held]
    variables = [v for v in jax.tree.leaves(operator, is_leaf=is_variable) if is_variable(v)]
    parts = tuple(
        name
        for name, some in (("dictionary", held), ("operator", variables))
        if any(isinstance(v, nnx.Param) for v in some)
    )
    train = isinstance(operator, TT)
    stored = not isinstance(operator, Dense | LowRank | TT)
    module = KoopmanBlock(
        psi=structure.build(dictionary),
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
    arrays = {"dictionary": structure.nest(dictionary), "operator": _arrays(operator)}
    collections: dict[str, Any] = {}
    for name, value in arrays.items():
        collections.setdefault("params" if name in parts else "frozen", {})[name] = value
    if stored and "operator" in parts:
        free, fixed = _divided(arrays["operator"])
        collections["params"]["operator"] = free
        collections.setdefault("frozen", {})["operator"] = fixed
    return module, collections


def to_nnx(module: KoopmanBlock, variables: Any) -> NNXBlock:
    """The NNX block that computes what a Linen module computes with these variables.

    Args:
        module: a `nn.linen.KoopmanBlock`.
        variables: its variables.

    Returns:
        An `nn.KoopmanBlock` with copies of the arrays under the same names.
    """
    frozen, params = variables.get("frozen", {}), variables.get("params", {})
    structure = module.psi.structure
    dictionary = {**frozen, **params}["dictionary"] if structure.paths else {}
    psi = structure.build(structure.flat(dictionary))
    operator = _operator(module, {**frozen.get("operator", {}), **params.get("operator", {})})
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


def _arrays(operator: Any) -> dict[str, Any]:
    """The arrays of an operator by name; those of a list under its numbers."""
    held = {name: values_of(getattr(operator, name)) for name in operator.arrays}
    return {
        name: {str(k): core for k, core in enumerate(v)} if isinstance(v, tuple) else v
        for name, v in held.items()
        if v is not None
    }


def _divided(arrays: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arrays of a stored operator that train, and its indices or codes."""
    trains = {name: jnp.issubdtype(v.dtype, jnp.inexact) for name, v in arrays.items()}
    free = {name: v for name, v in arrays.items() if trains[name]}
    return free, {name: v for name, v in arrays.items() if not trains[name]}


def _operator(module: KoopmanBlock, arrays: Any) -> Any:
    """The NNX operator of a Linen module on its arrays: the reverse of `_arrays`."""
    settings: dict[str, Any] = {"dtype": module.dtype, "precision": module.precision}
    if module.stored is not None:
        operator = nnx.clone(module.stored.like)
        for name, value in arrays.items():
            getattr(operator, name).set_value(value)
        operator.dtype = None if module.dtype is None else jnp.dtype(module.dtype)
        operator.precision = precision_name(module.precision)
        return operator
    if module.modes is None:
        return (Dense if module.rank is None else LowRank)(**arrays, **settings)
    cores = arrays["cores"]
    cores = [cores[str(k)] for k in range(len(cores))]
    return TT(cores, arrays.get("bias"), form=module.form, **settings)
