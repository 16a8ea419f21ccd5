"""Pictures of results: pure functions from arrays or a results dictionary to a matplotlib figure.

Nothing here touches pyplot or any global matplotlib state: every function builds a
`matplotlib.figure.Figure` of its own and returns it, so it may be called from threads, servers and
notebooks alike. `figure.savefig(path)` writes it; a notebook shows it.

The functions that take `results` read the dictionary that `koopjax demo`, `analyze` and `compress`
write as ``results.json`` (its fields are listed in `koopjax.report`).
"""

from koopjax._extras import needed

needed("matplotlib", "report")

from koopjax.plot._arrays import (
    bond_singular_values,
    confusion,
    disagreements,
    singular_values,
    spectrum,
    training,
)
from koopjax.plot._results import (
    accuracy_ladder,
    budget_curve,
    figures,
    pareto,
    rank_curve,
)
from koopjax.plot._style import COLOURS, colour
from koopjax.plot._trains import interaction_spectrum, plane

__all__ = [
    "COLOURS",
    "accuracy_ladder",
    "bond_singular_values",
    "budget_curve",
    "colour",
    "confusion",
    "disagreements",
    "figures",
    "interaction_spectrum",
    "pareto",
    "plane",
    "rank_curve",
    "singular_values",
    "spectrum",
    "training",
]
