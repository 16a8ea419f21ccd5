"""The plane of degrees and tensor-train ranks: its points, tables, sentences, blocks."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from koopjax import surgery
from koopjax._core import expected
from koopjax.analysis._rungs import Rung, measure_name, text_table
from koopjax.analysis._spectrum import Spectrum, interaction_spectrum
from koopjax.analysis._summary import one_sided
from koopjax.analysis._trains import bond_singular_values, truncated


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


def train_name(degree: int) -> str:
    """How a tensor train of a degree is called among dictionaries."""
    return f"tensor train, degree {degree}"


@dataclasses.dataclass(frozen=True)
class Plane:
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
    original: dict[str, Any]
    span: tuple[str, str]
    latent: int
    family: str
    tolerance: float
    choices: dict[tuple[int, int], float]
    validation: dict[tuple[int, int], float]
    trains: dict[tuple[int, int], Any] = dataclasses.field(repr=False)
    states: Any = dataclasses.field(repr=False)
    model: Any = dataclasses.field(repr=False)
    example: Any = dataclasses.field(repr=False)
    sample_axes: Any = None

    def find(self, degree: int, rank: int) -> Point:
        """The point of a degree and a rank."""
        for point in self.points:
            if (point.degree, point.rank) == (degree, rank):
                return point
        known = [(point.degree, point.rank) for point in self.points]
        raise expected(f"a (degree, rank) among {known}", f"{(degree, rank)}")

    def least(self, tolerance: float | None = None) -> Point | None:
        """The least degree with a point within the tolerance, and the least rank at that degree.

        Args:
            tolerance: accuracy (agreement without labels) that may be lost; the plane's own if
                left out.
        """
        tolerance = self.tolerance if tolerance is None else tolerance
        row = least_row([point.to_dict() for point in self.points], self.original, tolerance)
        return None if row is None else self.find(row["degree"], row["rank"])

    def sentence(self, tolerance: float | None = None) -> str:
        """The finding in one sentence; argument as for `least`."""
        tolerance = self.tolerance if tolerance is None else tolerance
        rows = [point.to_dict() for point in self.points]
        return plane_sentence(rows, self.original, self.span, self.latent, tolerance, 1)

    def table(self) -> str:
        """The rows to compare with and the points, as text in columns."""
        return text_table([rung.to_dict() for rung in [*self.nulls, *self.points]])

    def to_dict(self) -> dict[str, Any]:
        """Everything but models and arrays, as JSON can hold it."""
        least = self.least()
        return {
            "original": dict(self.original),
            "span": {"start": self.span[0], "stop": self.span[1]},
            "latent": self.latent,
            "family": self.family,
            "tolerance": self.tolerance,
            "sentence": self.sentence(),
            "least": None if least is None else {"degree": least.degree, "rank": least.rank},
            "choices": [
                {"degree": d, "rank": r, "alpha": a, "validation": _finite(self.validation[d, r])}
                for (d, r), a in self.choices.items()
            ],
            "nulls": [rung.to_dict() for rung in self.nulls],
            "rows": [point.to_dict() for point in self.points],
        }

    def spectrum(self, degree: int, rank: int, **settings: Any) -> Spectrum:
        """The interaction spectrum of a point, its outputs measured in the output's metric.

        Args:
            degree: of a point.
            rank: of a point.
            **settings: as of `interaction_spectrum`.
        """
        self.find(degree, rank)
        return interaction_spectrum(self.trains[degree, rank].fit, self.states, **settings)

    def bond_singular_values(self, degree: int, rank: int) -> list[np.ndarray]:
        """Singular values at the bonds of a point's train, as a function of the coordinates."""
        self.find(degree, rank)
        return bond_singular_values(self.trains[degree, rank].fit, self.states)

    def block(self, degree: int, rank: int, *, trainable: Any = True) -> Any:
        """The layer of a point, to be spliced in.

        Args:
            degree: of a point.
            rank: of a point.
            trainable: as in `nn.KoopmanBlock`.
        """
        self.find(degree, rank)
        return self.trains[degree, rank].block(trainable)

    def spliced(self, degree: int, rank: int, *, trainable: Any = True) -> Any:
        """The model with a point's layer in the span's place; an `nnx.Module`."""
        return self._with(self.block(degree, rank, trainable=trainable))

    def cut(self, degree: int, rank: int, kept: int) -> Any:
        """The model with a point's train in the span's place, its bonds cut, nothing refitted.

        Args:
            degree: of a point.
            rank: of a point.
            kept: singular values that each bond keeps at most, the largest of those of
                `bond_singular_values`.
        """
        self.find(degree, rank)
        return self._with(truncated(self.trains[degree, rank], kept, self.states).block())

    def _with(self, block: Any) -> Any:
        return surgery.splice(
            self.model, self.example, self.span, block, sample_axes=self.sample_axes
        )


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def least_row(
    rows: Sequence[dict[str, Any]], original: dict[str, Any], tolerance: float
) -> dict[str, Any] | None:
    """The row of least degree, then least rank, within a tolerance of the original."""
    whole = original["accuracy"]
    lost = lambda row: 1 - row["agreement"] if whole is None else whole - row["accuracy"]
    inside = [row for row in rows if lost(row) <= tolerance]
    return min(inside, key=lambda row: (row["degree"], row["rank"]), default=None)


def plane_sentence(
    rows: Sequence[dict[str, Any]],
    original: dict[str, Any],
    span: Any,
    latent: int,
    tolerance: float,
    seeds: int,
) -> str:
    """The least degree and rank, or the nearest point where none is within the tolerance."""
    what = "agreement" if original["accuracy"] is None else "accuracy"
    named = measure_name(original)
    text = f"From {span[0]!r} to {span[1]!r} over {latent} latent coordinates"
    text += f" and {seeds} seeds" if seeds > 1 else ""
    spread = lambda row: f" ± {row[f'{what}_std']:.4f}" if seeds > 1 else ""
    shown = lambda row: f"{row[what]:.4f}{spread(row)}"
    found = least_row(rows, original, tolerance)
    if found is None:
        best = max(rows, key=lambda row: row[what])
        return (
            f"{text}, no tensor train stays within {tolerance:g} of the original; the nearest has "
            f"degree {best['degree']} and rank {best['rank']} with {named} {shown(best)}."
        )
    against = "" if what == "agreement" else f" against {shown(original)}"
    return (
        f"{text}, degree {found['degree']} at tensor-train rank {found['rank']} is enough to stay "
        f"within {tolerance:g}: {named} {shown(found)}{against}, {round(found['numbers']):,} "
        "numbers."
    )


def summarize_planes(planes: Sequence[Plane | dict[str, Any]]) -> dict[str, Any]:
    """Planes of several seeds as one: means, standard deviations, intervals of the losses.

    Args:
        planes: of models that differ in their seeds alone; `Plane`s or what their `to_dict` gave.

    Returns:
        As `Plane.to_dict`, with `..._std` beside the means, `accuracies` by seed, and for the loss
        of accuracy against the same seed's original `loss`, `loss_std`, `loss_lower` and
        `loss_upper` (one-sided 95 % bounds; None for one seed). Points that not all planes have
        are left out.

    Raises:
        ValueError: no planes.
    """
    dicts = [one if isinstance(one, dict) else one.to_dict() for one in planes]
    if not dicts:
        raise expected("at least one plane", "none")
    first = dicts[0]
    accuracies = [one["original"]["accuracy"] for one in dicts]
    original = {**first["original"], **_moments("accuracy", accuracies)}
    original["accuracies"] = accuracies
    found = {
        name: _rows([one[name] for one in dicts], accuracies, keys)
        for name, keys in (("nulls", ("dictionary",)), ("rows", ("degree", "rank")))
    }
    span = first["span"]["start"], first["span"]["stop"]
    tolerance, latent = first["tolerance"], first["latent"]
    least = least_row(found["rows"], original, tolerance)
    return {
        **first,
        "original": original,
        "seeds": len(dicts),
        "sentence": plane_sentence(found["rows"], original, span, latent, tolerance, len(dicts)),
        "least": None if least is None else {k: least[k] for k in ("degree", "rank")},
        **found,
    }


def _rows(tables: list[list[dict[str, Any]]], accuracies: list[Any], keys: Any) -> list[Any]:
    """Rows that all tables have, with means and spreads."""
    place = lambda row: tuple(row[key] for key in keys)
    by_place = [{place(row): row for row in table} for table in tables]
    common = [p for p in by_place[0] if all(p in table for table in by_place)]
    return [_merge([table[p] for table in by_place], accuracies) for p in common]


def _merge(rows: list[dict[str, Any]], accuracies: list[Any]) -> dict[str, Any]:
    merged = dict(rows[0])
    for name in ("accuracy", "agreement", "kl", "r2", "numbers"):
        merged.update(_moments(name, [row[name] for row in rows]))
    gravest = max(rows, key=lambda row: row["result"])
    merged["result"], merged["message"] = gravest["result"], gravest["message"]
    if merged["accuracy"] is not None:
        merged["accuracies"] = [row["accuracy"] for row in rows]
        lost = [whole - row["accuracy"] for whole, row in zip(accuracies, rows, strict=True)]
    else:
        lost = [1 - row["agreement"] for row in rows]
    mean, lower, upper = one_sided(lost)
    merged.update(_moments("loss", lost), loss=mean)
    merged.update(loss_lower=_finite(lower), loss_upper=_finite(upper))
    return merged


def _moments(name: str, values: list[Any]) -> dict[str, Any]:
    if any(value is None for value in values):
        return {name: None, f"{name}_std": None}
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return {name: float(np.mean(values)), f"{name}_std": spread}
