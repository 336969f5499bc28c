"""How large data sets, images and arrays may be; each is compared before memory is reserved for what a file announces.

docs/security.md has them in words. They are well above what the data sets have and what a network is calibrated on.
"""

from __future__ import annotations

MAX_IMAGE_BYTES = 1 << 20
"""Of an image file of a data set, whose images have 32 or 64 pixels a side."""

MAX_BATCH_BYTES = 64 << 20
"""Of a pickled batch of CIFAR-10; the real ones have 31 MB."""

MAX_OPCODES = 250_000
"""Of the pickle that such a batch is; the real ones have about 60,000."""

MAX_ARCHIVE_BYTES = 1 << 30
"""Of a data set's archive when it is unpacked, and as it lies on the disk."""

MAX_MEMBERS = 200_000
"""Of a data set's archive or folder: three times CIFAR-10's images."""

MAX_HEADER_BYTES = 1 << 20
"""Of all that a tar archive says of one member: long names, extended headers, maps of sparse files."""

MAX_XZ_MEMORY_BYTES = 256 << 20
"""Of an xz stream's decoder, whose dictionary the file chooses; `xz -9` takes 65 MiB."""

MAX_PIXELS = 1 << 26
"""Of one image, and of what it is resized to: 67 million."""

MAX_ARRAY_BYTES = 2 << 30
"""Of the array in a .npy or .npz file, packed or not."""

MAX_DIRECTORY_BYTES = 1 << 20
"""Of the list of its members that a .npz file has."""

MAX_LISTING_BYTES = 16 << 20
"""Of each of Tiny ImageNet's text files; the largest real one has 2.7 MB."""

MAX_CLASSES = 10_000
"""Of a data set that lists its classes itself."""

MAX_SHOWN = 200
"""Characters of a file's own words, such as a member's name, in a message."""


def shown(text: object) -> str:
    """A file's own words, or an error's about it, for a message: one line, printable, and not long."""
    words = " ".join(str(text)[: 4 * MAX_SHOWN].split())
    clean = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in words)
    return clean if len(clean) <= MAX_SHOWN else f"{clean[: MAX_SHOWN - 1]}…"
