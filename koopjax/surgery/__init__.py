"""Cut a model, take it apart, record what flows through a span, put another block in its place."""

from koopjax.surgery._cuts import (
    CutPoint as CutPoint,
    cut_points as cut_points,
    find as find,
    middle as middle,
)
from koopjax.surgery._parts import Part as Part, apply as apply, split as split

__all__ = ["CutPoint", "Part", "apply", "cut_points", "find", "middle", "split"]
