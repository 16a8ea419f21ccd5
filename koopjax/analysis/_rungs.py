"""The result of a ladder: its rungs, tables, sentences, and the blocks that they stand for."""

import dataclasses
import math
from typing import Any

import numpy as np

from koopjax import nn, observables, surgery
from koopjax._core import expected, message


@dataclasses.dataclass(frozen=True)
class Rung:
    """One replacement of the span.

    Attributes:
        dictionary: its name in the ladder; "identity" and "mean" are the nulls.
        rank: of K; `None` where it is not cut.
        truncation: "none", "svd" (plain singular values of K) or "output" (reduced-rank regression
            in the metric of the model's output).
        target: "state" (K maps to the end of the span) or "logits" (straight to the output).
        null: whether it is a null, without a fit worth the name.
        accuracy: share of right answers (R² against labels for a regression); None without labels.
        agreement: share of answers equal to the original's (R² against its output).
        kl: KL divergence to the original's softmax (mean squared difference of outputs).
        r2: R² of the activations (of the output for the target "logits").
        observables: size of the dictionary.
        numbers: numbers stored in the block: dictionary and factors of K.
        stored_bytes: of the file of the whole model with the block in place; None if not asked for.
        alpha: ridge, relative to the mean squared column norm; None for the nulls.
        condition: bound on the condition number of the ridge problem.
        result: result code; `message` says what it means.
    """

    dictionary: str
    rank: int | None
    truncation: str
    target: str
    null: bool
    accuracy: float | None
    agreement: float
    kl: float
    r2: float
    observables: int
    numbers: int
    stored_bytes: int | None
    alpha: float | None
    condition: float
    result: int

    @property
    def key(self) -> tuple[str, int | None, str]:
        """What tells rungs apart: dictionary, rank, truncation."""
        return self.dictionary, self.rank, self.truncation

    @property
    def name(self) -> str:
        """Readable, such as `degree 2 at rank 9`."""
        if self.rank is None:
            return self.dictionary
        plain = " (plain SVD)" if self.truncation == "svd" else ""
        return f"{self.dictionary} at rank {self.rank}{plain}"

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON can hold them, and the message of the result code."""
        found = dataclasses.asdict(self)
        found["condition"] = self.condition if math.isfinite(self.condition) else None
        return {**found, "message": message(self.result)}


def measure_name(original: dict[str, Any]) -> str:
    """What a sentence calls accuracy, or agreement without labels: for a regression both are R²."""
    labelled = original["accuracy"] is not None
    if original.get("task", "classification") == "classification":
        return "accuracy" if labelled else "agreement"
    return "R² against the labels" if labelled else "agreement (R²)"


def logits_name(dictionary: str) -> str:
    """How a rung that maps to the output is called."""
    return f"{dictionary}, to the logits"


@dataclasses.dataclass(frozen=True)
class Ladder:
    """How much nonlinearity a span needs: every rung, from the nulls to the richest dictionary.

    Attributes:
        rungs: in order of richness, ranks of a dictionary after its full matrix.
        original: `accuracy`, `task`, `parameters`, `stored_bytes` of the model as it was.
        span: names of the two cuts.
        task: "classification" or "regression".
        tolerance: accuracy that a sentence lets go of.
        choices: relative ridge of each (dictionary, target), to pass on to another ladder.
        singular_values: of K, by name of the dictionary.
        answers: answered classes (or outputs) of the test samples, by name; "original" among them.
        labels: of the test samples, or None.
        model: the original.
        example: shape and dtype of one batch.
        fits: what `block` builds from.
        sample_axes: how states are read.
    """

    rungs: list[Rung]
    original: dict[str, Any]
    span: tuple[str, str]
    task: str
    tolerance: float
    choices: dict[str, float]
    singular_values: dict[str, Any] = dataclasses.field(repr=False)
    answers: dict[str, Any] = dataclasses.field(repr=False)
    labels: Any = dataclasses.field(repr=False)
    model: Any = dataclasses.field(repr=False)
    example: Any = dataclasses.field(repr=False)
    fits: dict[str, Any] = dataclasses.field(repr=False)
    sample_axes: Any = None

    def rows(self) -> list[dict[str, Any]]:
        """The rungs as dictionaries."""
        return [rung.to_dict() for rung in self.rungs]

    def find(self, dictionary: str, rank: int | None = None, truncation: str | None = None) -> Rung:
        """One rung.

        Args:
            dictionary: its name.
            rank: `None` for the full matrix.
            truncation: "output" if left out and a rank is given.
        """
        kind = ("none" if rank is None else "output") if truncation is None else truncation
        for rung in self.rungs:
            if rung.key == (dictionary, rank, kind):
                return rung
        names = list(dict.fromkeys(rung.dictionary for rung in self.rungs))
        raise expected(
            f"a rung among {', '.join(map(repr, names))} with one of the ladder's ranks",
            f"{dictionary!r}, rank {rank}, truncation {kind!r}",
        )

    def least(self, tolerance: float | None = None) -> Rung | None:
        """The rung of fewest numbers whose accuracy (agreement without labels) stays in tolerance.

        Nulls count: a span that can be left out needs no dictionary at all. Rungs that map to the
        output replace more than the span and stay out.
        """
        tolerance = self.tolerance if tolerance is None else tolerance
        whole = self.original["accuracy"]
        value = lambda r: 1 - r.agreement if whole is None else whole - r.accuracy
        inside = [r for r in self.rungs if r.target == "state" and value(r) <= tolerance]
        return min(inside, key=lambda r: r.numbers, default=None)

    def sentence(self, tolerance: float | None = None) -> str:
        """The finding in one sentence: the least dictionary and rank within the tolerance.

        Args:
            tolerance: accuracy (or agreement, without labels) that may be lost; the ladder's own
                if left out.
        """
        tolerance = self.tolerance if tolerance is None else tolerance
        found = self.least(tolerance)
        span = f"From {self.span[0]!r} to {self.span[1]!r}"
        what = "accuracy" if self.original["accuracy"] is not None else "agreement"
        named = measure_name(self.original)
        if found is None:
            best = max(self.rungs, key=lambda r: getattr(r, what))
            return (
                f"{span}, no rung stays within {tolerance:g} of the original; the nearest is "
                f"{best.name} with {named} {getattr(best, what):.4f}."
            )
        against = "" if what == "agreement" else f" against {self.original['accuracy']:.4f}"
        return (
            f"{span}, {found.name} is enough to stay within {tolerance:g}: {named} "
            f"{getattr(found, what):.4f}{against}, {found.numbers:,} numbers."
        )

    def table(self) -> str:
        """The rungs as text in columns."""
        return text_table([rung.to_dict() for rung in self.rungs])

    def to_dict(self) -> dict[str, Any]:
        """Everything but models and arrays of samples, as JSON can hold it."""
        return {
            "original": dict(self.original),
            "span": {"start": self.span[0], "stop": self.span[1]},
            "task": self.task,
            "tolerance": self.tolerance,
            "sentence": self.sentence(),
            "choices": dict(self.choices),
            "replaced": self.rows(),
            "singular_values": {
                name: np.asarray(s, np.float64).tolist() for name, s in self.singular_values.items()
            },
        }

    def disagreements(self, dictionary: str) -> np.ndarray:
        """Indices of test samples that the original and the replaced model answer differently."""
        if dictionary not in self.answers:
            raise expected(f"a dictionary among {sorted(self.answers)}", repr(dictionary))
        other, own = np.asarray(self.answers[dictionary]), np.asarray(self.answers["original"])
        different = other != own
        return np.flatnonzero(different.reshape(len(own), -1).any(axis=1))

    def block(
        self,
        dictionary: str,
        rank: int | None = None,
        truncation: str = "output",
        *,
        trainable: Any = True,
    ) -> Any:
        """The layer of a rung, to be spliced in (see `spliced`).

        Args:
            dictionary: name of a rung, nulls included.
            rank: `None` for the full matrix.
            truncation: "output" or "svd", with a rank.
            trainable: as in `nn.KoopmanBlock`.
        """
        if dictionary == "identity" and "identity" in self.fits:
            return observables.Identity()
        if dictionary not in self.fits:
            raise expected(f"a dictionary among {sorted(self.fits)}", repr(dictionary))
        return make_block(self.fits[dictionary], rank, truncation, trainable)

    def spliced(
        self,
        dictionary: str,
        rank: int | None = None,
        truncation: str = "output",
        *,
        trainable: Any = True,
    ) -> Any:
        """The model with a rung's layer in the span's place; an `nnx.Module`."""
        block = self.block(dictionary, rank, truncation, trainable=trainable)
        fit = self.fits[dictionary]
        stop = "output" if getattr(fit, "target", "state") == "logits" else self.span[1]
        return surgery.splice(
            self.model, self.example, (self.span[0], stop), block, sample_axes=self.sample_axes
        )


def make_block(fit: Any, rank: int | None, truncation: str, trainable: Any = True) -> Any:
    """The layer of a fit, whole or in the factors of a rank."""
    if rank is None:
        return nn.KoopmanBlock(fit.psi, nn.Dense(fit.forms.matrix), trainable=trainable)
    if truncation not in ("output", "svd"):
        raise expected("truncation 'output' or 'svd'", repr(truncation))
    left, right = getattr(fit.forms, truncation)
    if not 1 <= rank <= right.shape[0]:
        raise expected(f"a rank from 1 to {right.shape[0]}", f"{rank}")
    operator = nn.LowRank(left[:, :rank], right[:rank])
    return nn.KoopmanBlock(fit.psi, operator, trainable=trainable)


_COLUMNS = ("accuracy", "agreement", "kl", "r2", "numbers", "stored_bytes")


def _cell(row: dict[str, Any], column: str) -> str:
    value = row.get(column)
    if value is None:
        return "-"
    if column in ("numbers", "stored_bytes"):
        return f"{round(value):,}"
    spread = row.get(f"{column}_std")
    return f"{value:.4f}" + ("" if spread is None else f" ± {spread:.4f}")


def text_table(rows: list[dict[str, Any]]) -> str:
    """Rows of a ladder or of a summary as aligned text."""
    head = ["dictionary", "rank", "truncation", *_COLUMNS, "note"]
    lines = [head]
    for row in rows:
        note = "" if row["message"] == "success" else row["message"].split(",")[0].split(".")[0]
        rank = "full" if row["rank"] is None else str(row["rank"])
        cells = [_cell(row, column) for column in _COLUMNS]
        lines.append([row["dictionary"], rank, row["truncation"], *cells, note])
    widths = [max(len(line[i]) for line in lines) for i in range(len(head) - 1)]
    pad = lambda line: "  ".join(
        cell.ljust(w) if i in (0, 2) else cell.rjust(w)
        for i, (cell, w) in enumerate(zip(line, widths, strict=False))
    )
    return "\n".join(f"{pad(line)}  {line[-1]}".rstrip() for line in lines)
