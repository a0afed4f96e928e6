"""Devices that keep snapshots of themselves, for raw images on them (P20)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from formats.errors import UnsupportedError

if TYPE_CHECKING:
    from blobstore.image.place import Place
    from formats.devices.device import BlockDevice, SharedDevice
    from formats.qcow2.snapshot_table import Snapshot, SnapshotKey


@runtime_checkable
class SnapshotDevice(Protocol):
    """A device that keeps snapshots of itself, such as an image of Ceph RBD."""

    def snapshots(self) -> list[Snapshot]:
        """Return them, in the order in which they were made."""

    def create_snapshot(self, name: str, /) -> Snapshot:
        """Keep the device as it is now."""

    def delete_snapshot(self, which: str | SnapshotKey, /) -> Snapshot:
        """Give one up."""

    def at_snapshot(self, which: str | SnapshotKey, /) -> SharedDevice:
        """Open what it was then, for reading; the caller closes that."""


def require_snapshot_device(device: BlockDevice, place: Place) -> SnapshotDevice:
    """Return a device as one that keeps snapshots of itself.

    Args:
        device: On which a raw image lies.
        place: Its place, for messages.

    Raises:
        UnsupportedError: It keeps none.
    """
    if not isinstance(device, SnapshotDevice):
        raise UnsupportedError(
            f"{place} is a raw image, which has no snapshots [O80]",
            feature="snapshots of raw images",
            hint="back it up instead, or convert it to qcow2",
        )
    return device


def not_set_back(place: Place) -> UnsupportedError:
    """Return the error for a device that would be set back to one of its own snapshots."""
    return UnsupportedError(
        f"{place} cannot be set back at once: a crash would leave parts of two states [P21]",
        feature="applying snapshots of RBD",
        hint="convert reads a snapshot (--snapshot) and makes another image of it",
    )
