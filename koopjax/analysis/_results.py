"""The results of ladders and planes: rungs, findings, and the blocks that they stand for."""

import dataclasses
from typing import Any, Generic, TypeVar

import numpy as np

from koopjax import nn, surgery
from koopjax._core import expected, message, on_device, plain
from koopjax.analysis import _rows as rows_of
from koopjax.analysis._spectrum import Spectrum, interaction_spectrum
from koopjax.analysis._trains import bond_singular_values, truncated


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
        return rows_of.key_of(vars(self))

    @property
    def name(self) -> str:
        """Readable, such as `degree 2 at rank 9`."""
        return rows_of.name_of(vars(self))

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON can hold them, and the message of the result code."""
        return {**plain(vars(self)), "message": message(self.result)}


@dataclasses.dataclass(frozen=True)
class Point(Rung):
    """One tensor train in the span's place: a `Rung` with a degree.

    `rank` is the TT rank that was asked for, `truncation` is "tt", `observables` the size of the
    full product, `alpha` the ridge relative to the number of samples, `numbers` those of the
    projection, the cores and the readout together.

    Attributes:
        degree: of the polynomials of each latent coordinate.
        latent: number of latent coordinates.
        ranks: TT ranks at the bonds.
    """

    degree: int = 0
    latent: int = 0
    ranks: tuple[int, ...] = ()


Kind = TypeVar("Kind", bound=Rung)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Replaced(Generic[Kind]):
    """A model with a span that others were measured in the place of."""

    original: dict[str, Any]
    span: tuple[str, str]
    tolerance: float
    model: Any = dataclasses.field(repr=False)
    example: Any = dataclasses.field(repr=False)
    sample_axes: Any = None

    def _splice(self, block: Any, stop: str | None = None) -> Any:
        at = self.span[0], stop or self.span[1]
        return surgery.splice(self.model, self.example, at, block, sample_axes=self.sample_axes)

    def _measured(self) -> list[Kind]:
        raise NotImplementedError

    def rows(self) -> list[dict[str, Any]]:
        """What was measured, as dictionaries."""
        return [one.to_dict() for one in self._measured()]

    def least(self, tolerance: float | None = None) -> Kind | None:
        """The rung of fewest numbers within the tolerance; of tensor trains of least degree, rank.

        Nulls count: a span that can be left out needs no dictionary at all. Rungs that map to the
        output replace more than the span and stay out.

        Args:
            tolerance: accuracy (agreement without labels) that may be lost; its own if left out.
        """
        rows, tolerance = self.rows(), self.tolerance if tolerance is None else tolerance
        least = rows_of.least(rows, self.original, tolerance)
        pairs = zip(self._measured(), rows, strict=True)
        return next((one for one, row in pairs if row is least), None)

    def sentence(self, tolerance: float | None = None) -> str:
        """The finding in one sentence; argument as for `least`."""
        tolerance = self.tolerance if tolerance is None else tolerance
        return rows_of.sentence(self.rows(), self.original, self.span, tolerance)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ladder(Replaced[Rung]):
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
    task: str
    choices: dict[str, float]
    singular_values: dict[str, Any] = dataclasses.field(repr=False)
    answers: dict[str, Any] = dataclasses.field(repr=False)
    labels: Any = dataclasses.field(repr=False)
    fits: dict[str, Any] = dataclasses.field(repr=False)

    def _measured(self) -> list[Rung]:
        return self.rungs

    def find(self, dictionary: str, rank: int | None = None, truncation: str | None = None) -> Rung:
        """One rung.

        Args:
            dictionary: its name.
            rank: `None` for the full matrix.
            truncation: "output" if left out and a rank is given.
        """
        return self.rungs[rows_of.find(self.rows(), dictionary, rank, truncation)]

    def table(self) -> str:
        """The rungs as text in columns."""
        return rows_of.table(self.rows())

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
        different = np.asarray(self.answers[dictionary]) != np.asarray(self.answers["original"])
        return np.flatnonzero(different.reshape(len(different), -1).any(axis=1))

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
        return self._splice(block, "output" if self.fits[dictionary].target == "logits" else None)


def make_block(fit: Any, rank: int | None, truncation: str, trainable: Any = True) -> Any:
    """The layer of a fit, whole or in the factors of a rank; the dictionary alone without a K."""
    if fit.forms is None:
        return fit.psi
    if rank is None:
        return nn.KoopmanBlock(fit.psi, nn.Dense(fit.forms.matrix), trainable=trainable)
    if truncation not in ("output", "svd"):
        raise expected("truncation 'output' or 'svd'", repr(truncation))
    # Cut on the host: on the device each rank would be a program of its own.
    left, right = (np.asarray(factor) for factor in getattr(fit.forms, truncation))
    if not 1 <= rank <= right.shape[0]:
        raise expected(f"a rank from 1 to {right.shape[0]}", f"{rank}")
    operator = nn.LowRank(*(on_device(part, part.dtype) for part in (left[:, :rank], right[:rank])))
    return nn.KoopmanBlock(fit.psi, operator, trainable=trainable)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plane(Replaced[Point]):
    """Accuracy over the plane of degree and tensor-train rank.

    Attributes:
        points: degrees rising, at each of them ranks rising.
        nulls: rows to compare with, of the ladder: identity and mean (nulls), then the full
            dictionaries.
        original: `accuracy`, `task`, `parameters`, `stored_bytes` of the model as it was.
        span: names of the two cuts.
        latent: number of latent coordinates.
        family: of polynomials.
        tolerance: accuracy that `least` lets go of.
        choices: relative ridge of each `(degree, rank)`, to pass on to another plane.
        validation: error of each `(degree, rank)` on the validation samples, relative, in the
            output's metric; NaN where the ridge was given.
        trains: `(degree, rank)` to the `SpanTrain` that was measured.
        states: states before the span of the training samples that were fitted on.
        model: the original.
        example: shape and dtype of one batch.
        sample_axes: how states are read.
    """

    points: list[Point]
    nulls: list[Rung]
    latent: int
    family: str
    choices: dict[tuple[int, int], float]
    validation: dict[tuple[int, int], float]
    trains: dict[tuple[int, int], Any] = dataclasses.field(repr=False)
    states: Any = dataclasses.field(repr=False)

    def find(self, degree: int, rank: int) -> Point:
        """The point of a degree and a rank."""
        known = [(point.degree, point.rank) for point in self.points]
        if (degree, rank) not in known:
            raise expected(f"a (degree, rank) among {known}", f"{(degree, rank)}")
        return self.points[known.index((degree, rank))]

    def _measured(self) -> list[Point]:
        return self.points

    def table(self) -> str:
        """The rows to compare with and the points, as text in columns."""
        return rows_of.table([*(rung.to_dict() for rung in self.nulls), *self.rows()])

    def to_dict(self) -> dict[str, Any]:
        """Everything but models and arrays, as JSON can hold it."""
        least = self.least()
        chosen = [
            {"degree": d, "rank": r, "alpha": a, "validation": self.validation[d, r]}
            for (d, r), a in self.choices.items()
        ]
        return {
            "original": dict(self.original),
            "span": {"start": self.span[0], "stop": self.span[1]},
            "latent": self.latent,
            "family": self.family,
            "tolerance": self.tolerance,
            "sentence": self.sentence(),
            "least": None if least is None else {"degree": least.degree, "rank": least.rank},
            "choices": plain(chosen),
            "nulls": [rung.to_dict() for rung in self.nulls],
            "rows": self.rows(),
        }

    def _train(self, degree: int, rank: int) -> Any:
        self.find(degree, rank)
        return self.trains[degree, rank]

    def spectrum(self, degree: int, rank: int, **settings: Any) -> Spectrum:
        """The interaction spectrum of a point, its outputs measured in the output's metric.

        Args:
            degree: of a point.
            rank: of a point.
            **settings: as of `interaction_spectrum`.
        """
        return interaction_spectrum(self._train(degree, rank).fit, self.states, **settings)

    def bond_singular_values(self, degree: int, rank: int) -> list[np.ndarray]:
        """Singular values at the bonds of a point's train, as a function of the coordinates."""
        return bond_singular_values(self._train(degree, rank).fit, self.states)

    def block(self, degree: int, rank: int, *, trainable: Any = True) -> Any:
        """The layer of a point, to be spliced in.

        Args:
            degree: of a point.
            rank: of a point.
            trainable: as in `nn.KoopmanBlock`.
        """
        return self._train(degree, rank).block(trainable)

    def spliced(self, degree: int, rank: int, *, trainable: Any = True) -> Any:
        """The model with a point's layer in the span's place; an `nnx.Module`."""
        return self._splice(self.block(degree, rank, trainable=trainable))

    def cut(self, degree: int, rank: int, kept: int) -> Any:
        """The model with a point's train in the span's place, its bonds cut, nothing refitted.

        Args:
            degree: of a point.
            rank: of a point.
            kept: singular values that each bond keeps at most, the largest of those of
                `bond_singular_values`.
        """
        return self._splice(truncated(self._train(degree, rank), kept, self.states).block())
