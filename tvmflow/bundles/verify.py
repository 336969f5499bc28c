"""A bundle that has been built against its golden vectors, on this computer."""

from __future__ import annotations

from typing import Any

from tvmflow.bundles.bundle import Bundle
from tvmflow.spec import VerificationError
from tvmflow.targets import kind


def verify_bundle(bundle: Bundle) -> dict[str, Any]:
    """`verify_library` for a bundle that has been built, on this computer; what the build left out is named again.

    Of a library for C whose bits were those of TVM's runtime, `same_bits` says whether they still are. Raises
    VerificationError if not, unless it calls functions of real numbers, in which C libraries differ.
    """
    vectors = bundle.vectors()
    verdict = kind.verify_library(bundle.library, bundle.target, vectors, bundle.outputs, bundle.tolerances(vectors))
    known = bundle.manifest["verify"]
    if "bits" in verdict and known.get("bits") and known.get("same_bits"):
        verdict["same_bits"] = verdict["bits"] == known["bits"]
        if not verdict["same_bits"] and not (bundle.manifest.get("c_library") or {}).get("math"):
            raise VerificationError(f"{bundle.path} gives other bits than TVM's runtime gave when it was built.")
    left_out = known.get("left_out")
    return {**verdict, "left_out": left_out} if left_out else verdict
