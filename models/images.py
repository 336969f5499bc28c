"""Images as arrays: of few formats, one frame, and no more pixels than there is room for."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from tvmflow.spec import UserError
from tvmflow.system.limits import IMAGE
from tvmflow.system.untrusted import shortened

FORMATS = ("JPEG", "PNG", "BMP", "PPM", "WEBP")
"""As Pillow names them. It knows many more, which nobody trains on, and some of them run other programs."""

MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr")
"""Pillow's, of 8 bits a channel or fewer. Grey of 16 bits is taken as well, by its upper 8, as Pillow takes RGB."""


def read_pixels(
    source: Path | bytes, name: str, size: tuple[int, int], *, grey: bool = False, resize: bool = False
) -> np.ndarray:
    """uint8 H×W×3 (RGB), or H×W if `grey`, of an image file or its content, which `name` is called in messages.

    `size` is width and height in pixels: what the image has to have or, with `resize`, is brought to. Raises UserError.
    """
    from PIL import Image

    if max(size) > IMAGE.elements or size[0] * size[1] > IMAGE.elements:
        raise UserError(
            f"An input of {size[0]:,}×{size[1]:,} pixels is no image: {IMAGE.elements:,} pixels are the most."
        )
    with warnings.catch_warnings():
        # Pillow warns of many pixels, which are refused below
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
                _check(image, name, None if resize else size)
                pixels = _eight_bits(image).convert("L" if grey else "RGB")
                return np.asarray(pixels.resize(size, Image.Resampling.BILINEAR) if resize else pixels)
        except UserError:
            raise
        except MemoryError as error:
            raise UserError(f"{shortened(name)} is too large for this computer's memory.") from error
        except Exception as error:  # Pillow's decoders raise nearly everything on damaged files
            raise UserError(
                f"{shortened(name)} can't be decoded as {', '.join(FORMATS[:-1])} or {FORMATS[-1]}: "
                f"{shortened(error) or type(error).__name__}."
            ) from error


def _check(image: Any, name: str, size: tuple[int, int] | None) -> None:
    """What the header says, before there is memory for any pixel. Raises UserError."""
    if image.width * image.height > IMAGE.elements:
        raise UserError(
            f"{shortened(name)} has {image.width:,}×{image.height:,} pixels; {IMAGE.elements:,} are the most "
            f"({IMAGE.remedy('elements')}). Make it smaller."
        )
    if size is not None and image.size != size:
        raise UserError(
            f"{shortened(name)} is {image.width}×{image.height} pixels; this data set's images are {size[0]}×{size[1]}."
        )
    # many a phone's photograph is a JPEG with smaller ones after it, and the first is the photograph
    if getattr(image, "is_animated", False) and image.format != "MPO":
        raise UserError(f"{shortened(name)} is animated; give one of its frames as an image of its own.")
    if image.mode not in MODES and not image.mode.startswith("I"):
        raise UserError(f"{shortened(name)} has pixels of the kind {image.mode!r}; give an image of 8 bits a channel.")


def _eight_bits(image: Any) -> Any:
    """`convert` would make everything above 255 white."""
    from PIL import Image

    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
