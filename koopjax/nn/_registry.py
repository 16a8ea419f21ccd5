"""The forms of an operator by name."""

from koopjax.nn._operators import Dense, LowRank, Operator
from koopjax.nn._tt import TT

OPERATORS: dict[str, type[Operator]] = {"dense": Dense, "low_rank": LowRank, "tt": TT}
