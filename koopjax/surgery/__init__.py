"""Cut a model, take it apart, record what flows through a span, put another block in its place."""

from koopjax.forms import Constant as Constant
from koopjax.surgery._capture import capture as capture
from koopjax.surgery._cuts import (
    CutPoint as CutPoint,
    cut_points as cut_points,
    find as find,
    middle as middle,
)
from koopjax.surgery._parts import Part as Part, apply as apply, split as split
from koopjax.surgery._rows import (
    check_rows as check_rows,
    from_rows as from_rows,
    to_rows as to_rows,
)
from koopjax.surgery._splice import (
    Positionwise as Positionwise,
    Spliced as Spliced,
    Stage as Stage,
    splice as splice,
)

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
