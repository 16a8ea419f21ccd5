"""The `koopjax` command.

`main` is a click group: call it, or run `koopjax --help`. Exit status 0; 2 with one line on stderr
for a mistake that the user can mend; 130 after an interruption. Tables go to standard output,
progress to standard error.
"""

from koopjax._extras import needed

needed("click", "cli")

from koopjax.cli import (
    _commands as _commands,
    _compress as _compress,
    _demo as _demo,
    _study as _study,
)
from koopjax.cli._app import UserError, main

__all__ = ["UserError", "main"]
