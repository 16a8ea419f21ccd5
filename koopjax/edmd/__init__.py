"""Extended dynamic mode decomposition: statistics, solvers, the Koopman operator.

One pass over the data gives statistics (`accumulate`: `Gram` or `RFactor`, both monoids), from
which `solve` gets a Koopman matrix for any solver, ridge, rank, fold or sub-dictionary; with
`factorise` between them, many from one factorisation. `fit` does all, chooses the statistics by the
condition of the problem, and returns a `Koopman` operator.
"""

from koopjax.edmd._cross_validation import CrossValidated as CrossValidated
from koopjax.edmd._factorisation import (
    Factorisation as Factorisation,
    Info as Info,
    Outcome as Outcome,
    Solution as Solution,
    factorise as factorise,
)
from koopjax.edmd._fit import accumulate as accumulate, fit as fit
from koopjax.edmd._generator import Generator as Generator, generator as generator
from koopjax.edmd._koopman import Koopman as Koopman
from koopjax.edmd._solvers import (
    ReducedRank as ReducedRank,
    Ridge as Ridge,
    Solver as Solver,
    TruncatedSVD as TruncatedSVD,
    low_rank as low_rank,
    solve as solve,
    unwrap as unwrap,
)
from koopjax.edmd._statistics import (
    Gram as Gram,
    RFactor as RFactor,
    leave_one_out as leave_one_out,
    total as total,
)

__all__ = [
    "CrossValidated",
    "Factorisation",
    "Generator",
    "Gram",
    "Info",
    "Koopman",
    "Outcome",
    "RFactor",
    "ReducedRank",
    "Ridge",
    "Solution",
    "Solver",
    "TruncatedSVD",
    "accumulate",
    "factorise",
    "fit",
    "generator",
    "leave_one_out",
    "low_rank",
    "solve",
    "total",
    "unwrap",
]
