"""The door for arrays, result codes, products at a stated precision, masked QR, R factors.

For all rooms: whatever is imported here under its own name.
"""

from koopjax._core._arrays import (
    at_least_float32 as at_least_float32,
    available_bytes as available_bytes,
    blocks as blocks,
    cast as cast,
    check_finite as check_finite,
    expected as expected,
    has_float64 as has_float64,
    has_x64 as has_x64,
    in_float64 as in_float64,
    is_tracing as is_tracing,
    is_wide as is_wide,
    leave as leave,
    on_device as on_device,
    on_host as on_host,
    own_rules as own_rules,
    precise as precise,
    precise_as as precise_as,
    precise_for as precise_for,
    promoted as promoted,
    traced as traced,
    working_dtype as working_dtype,
)
from koopjax._core._codebook import codebooks as codebooks
from koopjax._core._door import (
    as_array as as_array,
    as_integers as as_integers,
    as_numbers as as_numbers,
    as_pair as as_pair,
    as_rows as as_rows,
    as_states as as_states,
    held as held,
    held_leaves as held_leaves,
    loses_spread as loses_spread,
    needs_float64 as needs_float64,
    read as read,
    read_numbers as read_numbers,
)
from koopjax._core._ledger import Ledger as Ledger
from koopjax._core._linalg import (
    check_metric as check_metric,
    eig as eig,
    gram as gram,
    left_vectors as left_vectors,
    masked_qr as masked_qr,
    matmul as matmul,
    qr_r as qr_r,
    ridge_solve as ridge_solve,
    semidefinite_root as semidefinite_root,
    tol as tol,
)
from koopjax._core._paths import (
    as_path as as_path,
    existing as existing,
    read_json as read_json,
    write_whole as write_whole,
)
from koopjax._core._pytree import (
    Keyed as Keyed,
    Outline as Outline,
    Static as Static,
    firsts as firsts,
    is_array as is_array,
    native as native,
    pytree as pytree,
    static as static,
    take_apart as take_apart,
    watched as watched,
)
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
from koopjax._core._settings import (
    as_dtype as as_dtype,
    as_flag as as_flag,
    as_key as as_key,
    as_number as as_number,
    as_whole as as_whole,
    check_dictionary as check_dictionary,
    check_integer as check_integer,
    check_number as check_number,
)
from koopjax._core._text import aligned as aligned, plain as plain
from koopjax._core._watch import (
    changed as changed,
    digest as digest,
    fingerprint as fingerprint,
    note as note,
    run_equation as run_equation,
    trace_context as trace_context,
    version as version,
)
