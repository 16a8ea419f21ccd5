"""How nonlinear is a span: the ladder of dictionaries and ranks in its place, measured.

`ladder` replaces a span of a trained model by Koopman matrices on ever richer dictionaries and by
their truncations, `summarize` puts the ladders of several seeds together, and both end in one
sentence: the least dictionary and rank within a tolerance.
"""

from koopjax.analysis._dictionaries import (
    Snapshots as Snapshots,
    default_dictionaries as default_dictionaries,
)
from koopjax.analysis._fits import Fit as Fit, Forms as Forms
from koopjax.analysis._ladder import ladder as ladder, ladder_of as ladder_of
from koopjax.analysis._metric import output_metric as output_metric
from koopjax.analysis._metrics import confusion as confusion, evaluate as evaluate
from koopjax.analysis._plane import plane as plane, plane_of as plane_of
from koopjax.analysis._points import (
    Plane as Plane,
    Point as Point,
    summarize_planes as summarize_planes,
)
from koopjax.analysis._rungs import Ladder as Ladder, Rung as Rung
from koopjax.analysis._span import Span as Span, prepare as prepare
from koopjax.analysis._spectrum import (
    Spectrum as Spectrum,
    interaction_spectrum as interaction_spectrum,
    summarize_spectra as summarize_spectra,
)
from koopjax.analysis._summary import (
    Summary as Summary,
    one_sided as one_sided,
    summarize as summarize,
)
from koopjax.analysis._trains import (
    SpanTrain as SpanTrain,
    bond_singular_values as bond_singular_values,
)

__all__ = [
    "Fit",
    "Forms",
    "Ladder",
    "Plane",
    "Point",
    "Rung",
    "Snapshots",
    "Span",
    "SpanTrain",
    "Spectrum",
    "Summary",
    "bond_singular_values",
    "confusion",
    "default_dictionaries",
    "evaluate",
    "interaction_spectrum",
    "ladder",
    "ladder_of",
    "one_sided",
    "output_metric",
    "plane",
    "plane_of",
    "prepare",
    "summarize",
    "summarize_planes",
    "summarize_spectra",
]
