"""`python -m koopjax`: the command line."""

from koopjax.cli import main

main()
