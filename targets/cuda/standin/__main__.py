"""The process that `call` starts: `python -m tvmflow.targets.cuda.standin JOB ANSWER`."""

from __future__ import annotations

import os
import pickle
import sys
import traceback
from pathlib import Path

# tvm_ffi imports torch wherever it is installed, which takes seconds and isn't needed here.
sys.modules["torch"] = None  # type: ignore[assignment]


def main() -> None:
    os.environ.pop("LD_PRELOAD", None)  # AddressSanitizer watches this process, not the compilers that it starts
    job, answer = map(Path, sys.argv[1:])
    try:
        with job.open("rb") as file:
            sys.path[:] = pickle.load(file)
            function, arguments, keywords = pickle.load(file)
        result = pickle.dumps((False, function(*arguments, **keywords)))
    except Exception as error:
        result = pickle.dumps((True, _portable(error)))
    part = answer.with_name("part")
    part.write_bytes(result)
    os.replace(part, answer)


def _portable(error: Exception) -> Exception:
    """`error`, or what can be said of it where it can't be pickled."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    error.add_note("".join(traceback.format_exception(error))) if hasattr(error, "add_note") else None
    return error


if __name__ == "__main__":
    main()
