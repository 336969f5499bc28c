"""From a trained PyTorch network to the embedded devices where it has to run, with an honest account of the cost."""

import os

__version__ = "0.1.0"

_folder = os.path.dirname(__file__)
if not os.path.isdir(os.path.join(_folder, "targets")):
    # A checkout keeps schedules/, targets/ and models/ beside this package; a wheel keeps them inside it.
    __path__.append(os.path.dirname(_folder))

from tvmflow.system.moved import keep_old_names  # noqa: E402 (the path has to be whole)

keep_old_names()
