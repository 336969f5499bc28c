"""A bundle that has been built against its golden vectors, on this computer."""

from __future__ import annotations

from typing import Any

from tvmflow.bundles.bundle import Bundle
from tvmflow.targets import kind


def verify_bundle(bundle: Bundle) -> dict[str, Any]:
    """`verify_library` for a bundle that has been built, on this computer; what the build left out is named again."""
    vectors = bundle.vectors()
    verdict = kind.verify_library(bundle.library, bundle.target, vectors, bundle.outputs, bundle.tolerances(vectors))
    left_out = bundle.manifest["verify"].get("left_out")
    return {**verdict, "left_out": left_out} if left_out else verdict
