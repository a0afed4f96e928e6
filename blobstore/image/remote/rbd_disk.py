"""An image of Ceph RBD as a block device.

The cluster keeps one process from writing after another has taken the image over: it has
a lock, and a process that breaks it shuts the old holder out, which is what fencing means.
librbd gives its automatic lock away when another client asks, so the explicit one is taken.
"""

from __future__ import annotations

import errno
import os
import sys
import threading
from contextlib import closing
from ctypes import byref, c_char, c_int, c_uint64, c_void_p
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from blobstore.image.remote import librbd, rbd_snapshots
from blobstore.image.remote.librbd import LOCK_EXCLUSIVE, Cluster, DiffCallback, check, functions
from formats.devices.device import SharedDevice
from formats.errors import DeviceBusyError, DeviceError, ReadOnlyError
from formats.logs import LateLogger
from formats.process import Owned, Owner
from formats.qcow2.snapshot_table import find_snapshot

if TYPE_CHECKING:
    from collections.abc import Iterator

    from formats.devices.device import ReadableBuffer, WritableBuffer
    from formats.qcow2.snapshot_table import Snapshot, SnapshotKey

_log = LateLogger(__name__)

#: Most bytes of one request.
_PIECE: Final = 4 << 20
#: Of new images: layering, exclusive-lock, object-map, fast-diff, deep-flatten, as Ceph has it.
_FEATURES: Final = 61
#: How often breaking a lock is tried that changes hands meanwhile.
_TRIES: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class RbdAddress:
    """Where an image of Ceph is.

    Attributes:
        pool: Its name.
        image: Its name.
        snapshot: Name of the snapshot to read, or None.
        conf: Path of the cluster's configuration file; None looks where Ceph does.
        user: Without ``client.``; None is ``admin``.
        timeout: Seconds that the cluster may take to answer when it is connected to.
    """

    pool: str
    image: str
    snapshot: str | None = None
    conf: str | None = None
    user: str | None = None
    timeout: float = 30

    def __str__(self) -> str:
        """Return the place as a message names it."""
        snapshot = "" if self.snapshot is None else f"@{self.snapshot}"
        return f"rbd:{self.pool}/{self.image}{snapshot}"

    @property
    def identity(self) -> str:
        """The image and its cluster, as any user (P12)."""
        conf = self.conf or os.environ.get("CEPH_CONF") or "/etc/ceph/ceph.conf"
        return f"{self} of {os.path.realpath(conf)}"


class RbdDisk(Owned, SharedDevice):
    """An image, or a snapshot of one, as a device. It may be used by several threads.

    Attributes:
        address: Where it is.
        read_only: Whether writing is refused.
    """

    def __init__(self, address: RbdAddress, *, read_only: bool = True, lock: bool = True) -> None:
        """Open the image.

        Args:
            address: Where it is.
            read_only: Permit no writing. Then there is no lock: the image may be written
                meanwhile.
            lock: Take the exclusive lock until `close`.

        Raises:
            DeviceBusyError: Another process holds the lock.
            ReadOnlyError: It is to be written, and is a snapshot, or may not be.
            DeviceError: The cluster does not answer, or has no such image.
            UnsupportedError: librbd is not installed.
        """
        if not read_only and address.snapshot is not None:
            raise ReadOnlyError(f"{address} is a snapshot, and can only be read")
        self.address = address
        self.read_only = read_only
        self._owner = Owner(f"the image {address}")
        self._call = functions()
        self._image = c_void_p()
        self._closing = threading.Lock()
        self._cluster = Cluster(
            address.pool, conf=address.conf, user=address.user, timeout=address.timeout
        )
        try:
            self._open()
            if lock and not read_only:
                self.lock()
            else:
                self.measure()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        opening = self._call["rbd_open_read_only" if self.read_only else "rbd_open"]
        snapshot = None if self.address.snapshot is None else self.address.snapshot.encode()
        check(
            opening(self._cluster.io, self.address.image.encode(), byref(self._image), snapshot),
            f"cannot open {self.address}",
            writing=not self.read_only,
        )

    # --------------------------------------------------------------- lock

    def lock(self) -> None:
        """Take the exclusive lock, and note the size that the image has now.

        Raises:
            DeviceBusyError: Another process holds it.
            DeviceError: The cluster does not answer.
        """
        self._owner.require()
        owners = librbd.lock_owners(self._handle)
        result = self._call["rbd_lock_acquire"](self._handle, LOCK_EXCLUSIVE)
        if result in (-errno.EROFS, -errno.EBUSY, -errno.EAGAIN):
            who = ", ".join(owners or librbd.lock_owners(self._handle)) or "another process"
            raise DeviceBusyError(
                f"{self.address} is in use: {who} holds its lock",
                hint="if that host is dead, take the image over",
            )
        check(result, f"cannot lock {self.address}")
        self.measure()

    def unlock(self) -> None:
        """Give up the lock; the image stays open. No error if it is not held."""
        self._owner.require()
        held = c_int()
        check(
            self._call["rbd_is_exclusive_lock_owner"](self._handle, byref(held)),
            "cannot ask for the lock",
        )
        if held.value:
            check(self._call["rbd_lock_release"](self._handle), f"cannot unlock {self.address}")

    def fence(self) -> None:
        """Shut out the process that holds the lock, and take it: that can write no more.

        Raises:
            DeviceBusyError: Others took it again and again.
            DeviceError: The cluster does not answer, or does not permit it.
        """
        self._owner.require()
        for _ in range(_TRIES):
            for owner in librbd.lock_owners(self._handle):
                _log.warning("%s: shutting out %s, which has the lock", self.address, owner)
                result = self._call["rbd_lock_break"](self._handle, LOCK_EXCLUSIVE, owner.encode())
                if result != -errno.ENOENT:
                    check(result, f"cannot break the lock of {self.address}")
            try:
                self.lock()
            except DeviceBusyError:
                continue
            return
        raise DeviceBusyError(f"{self.address}: others take its lock again and again")

    # -------------------------------------------------------------- bytes

    @property
    def size(self) -> int:
        return self._size

    @property
    def block_size(self) -> int:
        return 512

    def measure(self) -> None:
        """Note the size that the image has now, if another process may have changed it."""
        size = c_uint64()
        check(
            self._call["rbd_get_size"](self._handle, byref(size)),
            f"cannot measure {self.address}",
            writing=False,
        )
        self._size = size.value

    def read_into(self, offset: int, buffer: WritableBuffer, /) -> None:
        self._owner.require()
        self._check_range(offset, len(buffer))
        view = memoryview(buffer)
        for at in range(0, len(view), _PIECE):
            piece = view[at : at + _PIECE]
            memory = (c_char * len(piece)).from_buffer(piece)
            count = check(
                self._call["rbd_read"](self._handle, offset + at, len(piece), memory),
                f"cannot read {self.address} at byte {offset + at}",
                writing=False,
            )
            del memory
            if count != len(piece):
                raise DeviceError(f"{self.address} ends at byte {offset + at + count}: it shrank")
        if self.observer is not None:
            self.observer(offset, view)

    def write(self, offset: int, data: ReadableBuffer, /) -> None:
        self._owner.require()
        self._check_range(offset, len(data))
        self._require_writable()
        view = memoryview(data)
        for at in range(0, len(view), _PIECE):
            piece = bytes(view[at : at + _PIECE])
            count = check(
                self._call["rbd_write"](
                    self._handle,
                    offset + at,
                    len(piece),
                    (c_char * len(piece)).from_buffer_copy(piece),
                ),
                f"cannot write {self.address} at byte {offset + at}",
            )
            if count != len(piece):
                raise DeviceError(f"{self.address} took {count} of {len(piece)} bytes")

    def flush(self) -> None:
        self._owner.require()
        if not self.read_only:
            check(self._call["rbd_flush"](self._handle), f"cannot flush {self.address}")

    def resize(self, size: int, /) -> None:
        self._owner.require()
        self._require_writable()
        check(
            self._call["rbd_resize"](self._handle, size),
            f"cannot resize {self.address} to {size} bytes",
        )
        self._size = size

    def discard(self, offset: int, size: int, /) -> None:
        """Give space back; the range then reads as zeros."""
        self._owner.require()
        self._check_range(offset, size)
        self._require_writable()
        for at in range(offset, offset + size, 1 << 30):
            length = min(1 << 30, offset + size - at)
            check(
                self._call["rbd_write_zeroes"](self._handle, at, length, 0, 0),
                f"cannot discard {length} bytes of {self.address} at byte {at}",
            )

    def data_ranges(self, offset: int, size: int) -> Iterator[tuple[int, int]]:
        """Yield offset and length of the parts of a range that have data, in order.

        Raises:
            DeviceError: It failed.
        """
        self._owner.require()
        self._check_range(offset, size)
        found: list[tuple[int, int]] = []

        def note(at: int, length: int, exists: int, _: object) -> int:
            if exists:
                found.append((at, length))
            return 0

        result = self._call["rbd_diff_iterate2"](
            self._handle, None, offset, size, 1, 0, DiffCallback(note), None
        )
        check(result, f"cannot look for data in {self.address}", writing=False)
        yield from sorted(found)

    # ---------------------------------------------------------- snapshots

    def snapshots(self) -> list[Snapshot]:
        """Return its snapshots, in the order in which they were made.

        Raises:
            DeviceError: The cluster does not answer.
        """
        self._owner.require()
        return rbd_snapshots.snapshots(self._handle, str(self.address))

    def create_snapshot(self, name: str) -> Snapshot:
        """Keep the image as it is now under a name; as `rbd_snapshots.create_snapshot`."""
        self._owner.require()
        self._require_writable()
        self.flush()
        return rbd_snapshots.create_snapshot(self._handle, str(self.address), name)

    def delete_snapshot(self, which: str | SnapshotKey) -> Snapshot:
        """Give up a snapshot; as `rbd_snapshots.delete_snapshot`."""
        self._owner.require()
        self._require_writable()
        return rbd_snapshots.delete_snapshot(self._handle, str(self.address), which)

    def at_snapshot(self, which: str | SnapshotKey) -> RbdDisk:
        """Open what the image was when a snapshot was made, for reading.

        Raises:
            SnapshotNotFoundError, AmbiguousSnapshotError: It is not known which is meant.
            DeviceError: It cannot be opened.
        """
        found = find_snapshot(self.snapshots(), which)
        return RbdDisk(replace(self.address, snapshot=found.name))

    def __del__(self) -> None:
        """Release the image and its lock, if the code that opened it was interrupted."""
        if hasattr(self, "_cluster") and not sys.is_finalizing():
            self.close()

    def close(self) -> None:
        """Close the image and drop its lock; nothing is flushed. In a child, do nothing."""
        if self._owner.is_other:
            return  # librbd's threads are not in this process
        with self._closing:
            image, self._image = self._image, c_void_p()
            if image.value:
                self._call["rbd_close"](image)
            self._cluster.close()

    @property
    def _handle(self) -> c_void_p:
        """The open image: librbd believes every pointer that it is given."""
        if not self._image.value:
            raise DeviceError(f"{self.address} was closed")
        return self._image

    def _require_writable(self) -> None:
        if self.read_only:
            raise ReadOnlyError(f"{self.address} is open for reading only")


def create_image(address: RbdAddress) -> None:
    """Make an image of no bytes, which `RbdDisk.resize` changes (P15).

    Raises:
        DeviceError: The cluster does not answer, has no such pool, or does not permit it.
    """
    if address.snapshot is not None:
        raise ReadOnlyError(f"{address} is a snapshot, and can only be read")
    order = c_int(0)
    with _cluster_of(address) as cluster:
        check(
            functions()["rbd_create2"](
                cluster.io, address.image.encode(), 0, _FEATURES, byref(order)
            ),
            f"cannot create {address}",
        )


def remove_image(address: RbdAddress) -> None:
    """Remove an image that no process has open.

    Raises:
        DeviceError: It failed.
    """
    with _cluster_of(address) as cluster:
        check(
            functions()["rbd_remove"](cluster.io, address.image.encode()),
            f"cannot remove {address}",
        )


def _cluster_of(address: RbdAddress) -> closing[Cluster]:
    return closing(
        Cluster(address.pool, conf=address.conf, user=address.user, timeout=address.timeout)
    )
