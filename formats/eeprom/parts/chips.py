"""Memory chips by name, and their sizes, which are those of Linux's at24 and at25 drivers."""

from __future__ import annotations

from typing import Final

#: Name to size in bytes.
CHIPS: Final[dict[str, int]] = {
    "24c00": 16,
    **{f"24c{kilobits:02}": kilobits * 128 for kilobits in (1, 2, 4, 8, 16, 32, 64)},
    **{f"24c{kilobits}": kilobits * 128 for kilobits in (128, 256, 512)},
    "24c1024": 128 << 10,
    "24c2048": 256 << 10,
    "25010": 128,
    "25020": 256,
    "25040": 512,
    **{f"25{kilobits:03}": kilobits * 128 for kilobits in (80, 160, 320, 640)},
    "93c46": 128,
    "93c56": 256,
    "93c66": 512,
    "spd": 256,  # ee1002, DDR3 and older
    "ee1004": 512,  # DDR4
    "spd5118": 1024,  # DDR5
}


def chip_of_size(size: int) -> str | None:
    """Return the name of the first chip in the table with this size in bytes, or None."""
    return next((name for name, bytes_ in CHIPS.items() if bytes_ == size), None)
