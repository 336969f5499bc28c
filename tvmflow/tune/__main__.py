"""`python -m tvmflow.tune` is the same as `tvmflow tune`."""

import sys

# Python has put the current folder first, where nothing but this package is looked for.
if not (sys.flags.isolated or getattr(sys.flags, "safe_path", False)):
    del sys.path[0]

from tvmflow.cli import main

sys.argv.insert(1, "tune")
main()
