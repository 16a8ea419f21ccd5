"""Methods × budgets on one model: the rows of the first table."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

from jax.typing import ArrayLike
from jaxtyping import Array

from koopjax import models
from koopjax._core import expected
from koopjax.compress._budget import Budget, BudgetTooSmall, Inapplicable
from koopjax.compress._problem import ScoreFn
from koopjax.compress._result import Compressed, Report
from koopjax.compress.methods._registry import METHODS


@dataclasses.dataclass(frozen=True)
class Row:
    """One method at one budget.

    Attributes:
        method: name in `METHODS`.
        budget: as asked for.
        ratio: original over compressed bytes; None where the method has no form so small.
        stored_bytes: of the compressed file, or None.
        accuracy: on the test data, or None.
        seconds: that the method took.
        finetuned: False; what is measured is one-shot.
        report: the method's account, or None.
        note: why there is no result; empty where there is one.
        smallest: bytes of the method's smallest form, where the budget is below it.
    """

    method: str
    budget: str
    ratio: float | None
    stored_bytes: int | None
    accuracy: float | None
    seconds: float
    finetuned: bool = False
    report: Report | None = None
    note: str = ""
    smallest: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        out = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {**out, "report": None if self.report is None else self.report.as_dict()}


def table(
    model: Any,
    calibration: ArrayLike,
    test: tuple[ArrayLike, ArrayLike],
    budgets: Sequence[Any],
    methods: Sequence[str] | None = None,
    *,
    at: Any = None,
    labels: ArrayLike | None = None,
    validation: Any = None,
    key: Array,
    task: str | None = None,
    score_fn: ScoreFn | None = None,
    progress: Callable[[int, int, Row], None] | None = None,
    keep: Callable[[Row, Compressed], None] | None = None,
) -> list[Row]:
    """Compress a model by several methods to several budgets, and measure each once on test data.

    Args:
        model, calibration, labels, validation, key: as for every method; one key for all of them,
            so that the held-out samples are the same.
        test: `(x_test, y_test)`; with the model's output they say the task where it is left out.
        task: as for every method; for a regression, R² stands under accuracy.
        score_fn: in place of both, on the test data and wherever there are labels.
        budgets: see `Budget.parse`.
        methods: names in `METHODS`; all of them without.
        at: a cut or pair of cuts, as every method takes it: all compress the same span, and leave
            the rest of the model as it is.
        progress: called as `progress(done, total, row)` after each.
        keep: called with the row and the compressed model, to save the one that is wanted.

    Returns:
        A row a pair, budgets in the order given and methods within. A method that has no form
        within a budget gets a row without figures and a note with the smallest that it has; so does
        one that does not take a model of this kind.

    Raises:
        ValueError: an unknown method, a malformed budget (both before anything is run), or bad
            data.
    """
    names = list(METHODS) if methods is None else list(methods)
    for name in names:
        if name not in METHODS:
            raise expected(f"methods among {', '.join(METHODS)}", repr(name))
    parsed = [Budget.parse(budget) for budget in budgets]
    x_test, y_test = test
    like = models.output_like(model, x_test)
    task, _ = models.read_task(like, y_test, task, name="y_test", score_fn=score_fn)
    pair = isinstance(validation, tuple) and len(validation) == 2
    choose = score_fn if labels is not None or pair else None
    rows: list[Row] = []
    for budget in parsed:
        for name in names:
            start = time.perf_counter()
            try:
                made = METHODS[name](
                    model, calibration, budget, at=at, labels=labels, validation=validation,
                    task=task, score_fn=choose, key=key,
                )  # fmt: skip
            except (BudgetTooSmall, Inapplicable) as error:
                seconds = time.perf_counter() - start
                row = Row(
                    name, str(budget), None, None, None, seconds, note=str(error),
                    smallest=getattr(error, "smallest", None),
                )  # fmt: skip
            else:
                seconds = time.perf_counter() - start
                accuracy = models.score(made.model, x_test, y_test, task, score_fn)
                report = made.report
                row = Row(
                    name, str(budget), report.ratio, report.stored_bytes, accuracy, seconds,
                    report=report,
                )  # fmt: skip
                if keep is not None:
                    keep(row, made)
            rows.append(row)
            if progress is not None:
                progress(len(rows), len(parsed) * len(names), row)
    return rows
