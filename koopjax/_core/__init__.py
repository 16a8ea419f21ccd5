"""Array types, result codes, products at a stated precision, masked QR, merging of R factors."""

from koopjax._core._arrays import (
    blocks as blocks,
    check_finite as check_finite,
    expected as expected,
    has_float64 as has_float64,
    is_tracing as is_tracing,
    on_device as on_device,
)
from koopjax._core._inference import inference_arguments as inference_arguments
from koopjax._core._linalg import (
    gram as gram,
    masked_qr as masked_qr,
    matmul as matmul,
    merge_r as merge_r,
    qr_r as qr_r,
    tol as tol,
)
from koopjax._core._precision import (
    at_least_float32 as at_least_float32,
    cast as cast,
    precise as precise,
    precise_as as precise_as,
    traced as traced,
    working_dtype as working_dtype,
)
from koopjax._core._pytree import pytree as pytree, static as static
from koopjax._core._results import (
    ILL_CONDITIONED as ILL_CONDITIONED,
    NONFINITE_DATA as NONFINITE_DATA,
    NONFINITE_SOLUTION as NONFINITE_SOLUTION,
    NOT_CONVERGED as NOT_CONVERGED,
    RANK_DEFICIENT as RANK_DEFICIENT,
    RESULTS as RESULTS,
    SUCCESS as SUCCESS,
    UNDERDETERMINED as UNDERDETERMINED,
    NumericalError as NumericalError,
    check as check,
    message as message,
    worst as worst,
)

__all__ = [
    "ILL_CONDITIONED",
    "NONFINITE_DATA",
    "NONFINITE_SOLUTION",
    "NOT_CONVERGED",
    "RANK_DEFICIENT",
    "RESULTS",
    "SUCCESS",
    "UNDERDETERMINED",
    "NumericalError",
    "at_least_float32",
    "blocks",
    "cast",
    "check",
    "check_finite",
    "expected",
    "gram",
    "has_float64",
    "inference_arguments",
    "is_tracing",
    "masked_qr",
    "matmul",
    "merge_r",
    "message",
    "on_device",
    "precise",
    "precise_as",
    "pytree",
    "qr_r",
    "static",
    "tol",
    "traced",
    "working_dtype",
    "worst",
]
