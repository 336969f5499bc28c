"""`python -m tvmflow` is the same as the `tvmflow` command."""

from tvmflow.cli import main

main()
