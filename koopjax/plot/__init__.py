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
    confusion as confusion,
    disagreements as disagreements,
    singular_values as singular_values,
    spectrum as spectrum,
    training as training,
)
from koopjax.plot._pareto import pareto as pareto
from koopjax.plot._results import (
    accuracy_ladder as accuracy_ladder,
    budget_curve as budget_curve,
    figures as figures,
    rank_curve as rank_curve,
)
from koopjax.plot._style import COLOURS as COLOURS, colour as colour
from koopjax.plot._trains import (
    bond_singular_values as bond_singular_values,
    interaction_spectrum as interaction_spectrum,
    plane as plane,
)

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
