"""From a trained PyTorch network to the embedded devices where it has to run, with an honest account of the cost."""

from pathlib import Path

__version__ = "0.1.0"

if not Path(__file__).with_name("targets").is_dir():
    # A checkout keeps schedules/, targets/ and models/ beside this package; a wheel keeps them inside it.
    __path__.append(str(Path(__file__).parents[1]))
