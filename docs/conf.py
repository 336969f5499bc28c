"""The documentation as a site, which `make docs` builds.

The root of its pages is the checkout, so that a link between two pages is the same here and on a code host.
docs/generated is written anew by each build (generate.py).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

import generate  # noqa: E402

project = html_title = "tvmflow"
copyright = "the authors of tvmflow"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]

root_doc = "docs/index"
include_patterns = ["README.md", "CHANGELOG.md", "docs/**.md", "benchmarks/results/*.md", "models/weights/*.md"]
exclude_patterns = [".*", "build", "dist", "runs", "**/__pycache__"]

myst_heading_anchors = 3
highlight_language = "none"

default_role = "code"  # docstrings are written as Markdown
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
# Other projects' names: their inventories are on the network. Ours without a page: what users needn't name.
nitpick_ignore_regex = [
    ("py:.*", r"(np|numpy|pathlib|collections|subprocess|torch|tvm|tirx)\..*|Path|PrimFunc|Module"),
    ("py:.*", r"tvmflow\.(integer\.chain|integer\.tail|system\.toolchain|tune|schedules\.cortex_m\._kernel)\..*"),
    ("py:.*", r"tvmflow\.(measure\.cycles|targets\.vta\.config)\..*"),
    (
        "py:.*",
        r"Best|Data|Dtype|Model|Numbers|QuantisedBy|tvmflow\.spec\.OfKind|FloatLayer|Made|Rule|Runner|Scheme|Shape",
    ),
]

html_theme = "furo"
html_copy_source = False


def setup(app: Sphinx) -> None:
    app.connect("builder-inited", lambda app: generate.write(HERE / "generated"))
    app.connect("autodoc-process-signature", _parseable)
    app.connect("build-finished", _begin)


def _parseable(app: Sphinx, what: str, name: str, found: Any, options: Any, signature: str, returns: str) -> Any:
    """Sphinx can't read the signature of a dataclass whose default is made by a function."""
    return signature and signature.replace("<factory>", "..."), returns


def _begin(app: Sphinx, error: Exception | None) -> None:
    """The first page is where a browser looks for it."""
    if error is None:
        beginning = (
            '<!DOCTYPE html><meta charset="utf-8"><meta http-equiv="refresh" content="0; url=docs/index.html">\n'
        )
        Path(app.outdir, "index.html").write_text(beginning, encoding="utf-8")
