"""What a compression returns: the model, and an account of it."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from koopjax import export, models
from koopjax._core import RESULTS, SUCCESS, firsts
from koopjax.compress._budget import Budget


@dataclasses.dataclass(frozen=True)
class Report:
    """The account of a compression.

    Attributes:
        method: name in `METHODS`.
        budget: as it was asked for, in words.
        budget_bytes: the same in bytes.
        stored_bytes: size of the file that `export.save` writes; never above `budget_bytes`.
        original_bytes: size of the original's own file.
        parameters: non-zero numbers in the compressed model.
        settings: what was chosen, by name (projection, observables, rank, ridge, ...).
        why: one sentence on how it was chosen.
        score: on the validation data; see `measure`.
        measure: of a classification "accuracy" where labels were given, else "agreement" with the
            original's answers; of a regression "r2" of the original's outputs, labels or not; or
            the name of the caller's `score_fn`.
        divergence: mean KL of the original's softmax to the compressed one's there; None for a
            regression.
        task: how the output is read, "classification" or "regression".
        candidates: how many settings were compared.
        result: result code of the numerics (`koopjax._core.RESULTS`); 0 is success.
        notes: advice, such as too few samples; empty where there is none.
    """

    method: str
    budget: str
    budget_bytes: int
    stored_bytes: int
    original_bytes: int
    parameters: int
    settings: dict[str, Any]
    why: str
    score: float
    measure: str
    divergence: float | None = None
    task: str = "classification"
    candidates: int = 1
    result: int = SUCCESS
    notes: tuple[str, ...] = ()

    @property
    def ratio(self) -> float:
        """Original over compressed bytes, the whole model."""
        return self.original_bytes / self.stored_bytes

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists, for JSON."""
        out = {**dataclasses.asdict(self), "ratio": self.ratio, "notes": list(self.notes)}
        return {name: _plain(value) for name, value in out.items()}

    def __str__(self) -> str:
        chosen = ", ".join(f"{name} {value}" for name, value in self.settings.items())
        text = (
            f"{self.method}: {self.stored_bytes:,} of {self.original_bytes:,} bytes "
            f"({self.ratio:.1f}x), validation {self.measure} {self.score:.4f}; {chosen}"
        )
        return "\n".join([text, *self.notes])


class Compressed(NamedTuple):
    """A compressed model and its report.

    Attributes:
        model: a Flax model: jit, grad, train, `export.save` and `export.load` work on it.
        report: a `Report`.
    """

    model: Any
    report: Report


def finish(
    model: Any, *, method: str, budget: Budget, original_bytes: int, result: int = SUCCESS,
    notes: tuple[str, ...] = (), advice: tuple[str, ...] = (), **account: Any,
) -> Compressed:  # fmt: skip
    """Measure the file, make sure that it fits, and write the report.

    `advice`, in place of what `result` says, goes before the notes.
    """
    limit, stored = budget.bytes(original_bytes), export.stored_bytes(model)
    if stored > limit:  # a fault of the method's search, never of the user's
        raise AssertionError(f"{method} made a file of {stored} bytes for a budget of {limit}")
    if result != SUCCESS and not advice:
        advice = (RESULTS[result],)
    report = Report(
        method=method,
        budget=str(budget),
        budget_bytes=limit,
        stored_bytes=stored,
        original_bytes=original_bytes,
        parameters=count_nonzero(model),
        result=result,
        notes=(*advice, *notes),
        **account,
    )
    return Compressed(model, report)


def count_nonzero(model: Any) -> int:
    """Non-zero floating numbers among the arrays of a model; what two names share counts once."""
    _, *arrays = models.form_of(model)
    floating = lambda leaf: jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(arrays) if floating(leaf)]
    return int(sum(np.count_nonzero(leaves[place]) for place in set(firsts(leaves))))


def count_tied(model: Any) -> int:
    """How many parameters are the very array of another."""
    leaves = jax.tree.leaves(models.form_of(model)[1])
    return len(leaves) - len(set(firsts(leaves)))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _plain(v) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value.item() if hasattr(value, "item") else value
