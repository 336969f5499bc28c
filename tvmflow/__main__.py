"""`python -m tvmflow` is the same as the `tvmflow` command."""

import os
import sys

if sys.path and sys.path[0] in ("", os.getcwd()):  # where nothing but this package was looked for
    del sys.path[0]

from tvmflow.cli import main

main()
