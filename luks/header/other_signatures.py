"""Signatures of other data that may have replaced a LUKS header copy.

A missing header copy may have been overwritten on purpose: the volume was given
up, and a file system or partition table has taken its place. A repair from the
other copy must not overwrite it. cryptsetup asks libblkid; this module has the
signatures of what disks usually hold.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from formats.devices.device import read_exactly
from luks.errors import ForeignImageError

if TYPE_CHECKING:
    from formats.devices.device import BlockDevice

#: Name, byte offset from the start of the device, and bytes there.
_SIGNATURES: Final = (
    ("an LVM2 physical volume", 512, b"LABELONE"),
    ("an LVM2 physical volume", 0, b"LABELONE"),
    ("a GUID partition table", 512, b"EFI PART"),
    ("a GUID partition table", 4096, b"EFI PART"),
    ("a partition table", 510, b"\x55\xaa"),
    ("XFS", 0, b"XFSB"),
    ("ext2, ext3 or ext4", 0x438, b"\x53\xef"),
    ("NTFS", 3, b"NTFS    "),
    ("exFAT", 3, b"EXFAT   "),
    ("BitLocker", 3, b"-FVE-FS-"),
    ("SquashFS", 0, b"hsqs"),
    ("F2FS", 0x400, b"\x10\x20\xf5\xf2"),
    ("swap space", 4086, b"SWAPSPACE2"),
    ("swap space", 4086, b"SWAP-SPACE"),
    ("a RAID member", 4096, b"\xfc\x4e\x2b\xa9"),
    ("a RAID member", 0, b"\xfc\x4e\x2b\xa9"),
    ("a qcow2 image", 0, b"QFI\xfb"),
    ("bcache", 4120, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81"),
)
_TABLES: Final = ("a partition table", "a GUID partition table")
_LONGEST: Final = 4120 + 16


def check_place(device: BlockDevice, offset: int) -> None:
    """Check that a header copy may be rewritten.

    Only the start of a device is examined: no other format begins where secondary
    copies are.

    Raises:
        ForeignImageError: Other data is there.
    """
    found = None if offset else _signature(device)
    if found is not None:
        name, at = found
        raise ForeignImageError(
            f"the primary header copy has been overwritten by {name}",
            offset=at,
            hint="if the volume is still wanted, overwrite the first 4 KiB with zeros",
        )


def foreign_image(device: BlockDevice) -> ForeignImageError:
    """Return the error for a device that has no LUKS header, with its likely cause."""
    found = _signature(device)
    if found is None:
        return ForeignImageError(
            "the image is not a LUKS volume",
            hint="if its LUKS header is in another file, name that with --header",
        )
    name, at = found
    hint = "this seems to be a whole disk: give one of its partitions" if name in _TABLES else None
    return ForeignImageError(
        f"the image is not a LUKS volume: it has the signature of {name}", offset=at, hint=hint
    )


def _signature(device: BlockDevice) -> tuple[str, int] | None:
    """Return what seems to be on a device, and where its signature is."""
    start = read_exactly(device, 0, min(_LONGEST, device.size))
    for name, at, signature in _SIGNATURES:
        if start.startswith(signature, at):
            return name, at
    return None
