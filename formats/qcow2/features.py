"""Feature bits of qcow2 headers: their names, and which of them are implemented.

Source: QEMU's docs/interop/qcow2, "Header" and "Feature name table"; rules Q4, Q5.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from formats.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

INCOMPATIBLE, COMPATIBLE, AUTOCLEAR = 0, 1, 2

#: Incompatible features, as bits.
DIRTY: Final = 1 << 0
CORRUPT: Final = 1 << 1
EXTERNAL_DATA: Final = 1 << 2
COMPRESSION_TYPE: Final = 1 << 3
EXTENDED_L2: Final = 1 << 4

#: Compatible features.
LAZY_REFCOUNTS: Final = 1 << 0

#: Auto-clear features.
BITMAPS: Final = 1 << 0

#: Incompatible features that are implemented.
IMPLEMENTED: Final = DIRTY | CORRUPT | COMPRESSION_TYPE

#: Those with which a disk can be read (Q35, Q36), and tables be checked (Q32).
READABLE: Final = IMPLEMENTED | EXTERNAL_DATA | EXTENDED_L2

#: (kind, bit number) to name; the names are those that QEMU writes.
FeatureNames = dict[tuple[int, int], str]

NAMES: Final[FeatureNames] = {
    (INCOMPATIBLE, 0): "dirty bit",
    (INCOMPATIBLE, 1): "corrupt bit",
    (INCOMPATIBLE, 2): "external data file",
    (INCOMPATIBLE, 3): "compression type",
    (INCOMPATIBLE, 4): "extended L2 entries",
    (COMPATIBLE, 0): "lazy refcounts",
    (AUTOCLEAR, 0): "bitmaps",
    (AUTOCLEAR, 1): "raw external data",
}

_ENTRY_SIZE: Final = 48


def decode_names(data: bytes) -> FeatureNames:
    """Read a feature name table; an incomplete entry at its end is ignored."""
    names: FeatureNames = {}
    for at in range(0, len(data) - _ENTRY_SIZE + 1, _ENTRY_SIZE):
        text = data[at + 2 : at + _ENTRY_SIZE].split(b"\0")[0].decode("utf-8", "replace")
        names[data[at], data[at + 1]] = "".join(c if c.isprintable() else "?" for c in text)
    return names


def encode_names(names: Mapping[tuple[int, int], str]) -> bytes:
    """Return a feature name table."""
    return b"".join(
        bytes(key) + name.encode()[: _ENTRY_SIZE - 2].ljust(_ENTRY_SIZE - 2, b"\0")
        for key, name in names.items()
    )


def check_implemented(
    incompatible: int, names: FeatureNames, implemented: int = IMPLEMENTED
) -> None:
    """Refuse incompatible features that are not implemented, by name.

    Args:
        incompatible: The header's bits.
        names: The image's own names, used only for features that are unknown here.
        implemented: Those that what is done with the image can cope with.

    Raises:
        UnsupportedError: The header has such features.
    """
    missing = list(_missing(incompatible & ~implemented, names))
    if missing:
        features = ", ".join(missing)
        raise UnsupportedError(
            f"the qcow2 image needs features that are not implemented: {features} [Q4]",
            feature=features,
        )


def _missing(bits: int, names: FeatureNames) -> Iterator[str]:
    for bit in range(64):
        if bits >> bit & 1:
            key = INCOMPATIBLE, bit
            yield NAMES.get(key) or names.get(key) or f"incompatible feature bit {bit}"
