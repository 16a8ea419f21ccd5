"""Cut a model, take it apart, record what flows through a span, put another block in its place."""

from koopjax.forms import Constant
from koopjax.surgery._capture import capture, check_rows, from_rows, to_rows
from koopjax.surgery._cuts import CutPoint, cut_points, find, middle
from koopjax.surgery._parts import Part, apply, split
from koopjax.surgery._splice import Positionwise, Spliced, Stage, splice

__all__ = [
    "Constant",
    "CutPoint",
    "Part",
    "Positionwise",
    "Spliced",
    "Stage",
    "apply",
    "capture",
    "check_rows",
    "cut_points",
    "find",
    "from_rows",
    "middle",
    "splice",
    "split",
    "to_rows",
]
