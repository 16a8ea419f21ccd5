"""How nonlinear is a span: the ladder of dictionaries and ranks in its place, measured.

`ladder` replaces a span of a trained model by Koopman matrices on ever richer dictionaries and by
their truncations, `summarize` puts the ladders of several seeds together, and both end in one
sentence: the least dictionary and rank within a tolerance.
"""

from koopjax.analysis._dictionaries import Snapshots, default_dictionaries
from koopjax.analysis._fits import Fit, Forms
from koopjax.analysis._ladder import ladder, ladder_of
from koopjax.analysis._plane import plane, plane_of
from koopjax.analysis._results import Ladder, Plane, Point, Rung
from koopjax.analysis._rows import one_sided
from koopjax.analysis._scores import confusion, evaluate, output_metric
from koopjax.analysis._span import Span, prepare
from koopjax.analysis._spectrum import Spectrum, interaction_spectrum, summarize_spectra
from koopjax.analysis._summary import Summary, summarize, summarize_planes
from koopjax.analysis._trains import SpanTrain, bond_singular_values

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
