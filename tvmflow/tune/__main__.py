"""`python -m tvmflow.tune` is the same as `tvmflow tune`."""

import sys

from tvmflow.cli import main

sys.argv.insert(1, "tune")
main()
