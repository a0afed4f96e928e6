"""Snapshots of an image of Ceph RBD (P20): the cluster keeps them, whatever is in the image.

They are described as those in qcow2 images are; where their tables lie is Ceph's business.
"""

from __future__ import annotations

import errno
from ctypes import byref, c_int
from typing import TYPE_CHECKING, Final

from blobstore.image.remote.librbd import SnapshotInfo, Timestamp, check, functions
from formats.errors import ArgumentError, SnapshotExistsError
from formats.qcow2.snapshot_table import Snapshot, find_snapshot

if TYPE_CHECKING:
    from ctypes import c_void_p

    from formats.qcow2.snapshot_table import SnapshotKey

#: How many snapshots are asked for at first; Ceph says if there are more.
_SOME: Final = 64
#: What ends the name of an image or a snapshot in the names of places.
_NOT_IN_NAMES: Final = frozenset("@/\0")


def snapshots(image: c_void_p, name: str) -> list[Snapshot]:
    """Return the snapshots of an open image, in the order in which they were made.

    Args:
        image: The image.
        name: Its name, for messages.

    Raises:
        DeviceError: The cluster does not answer.
    """
    call = functions()
    count = c_int(_SOME)
    while True:
        infos = (SnapshotInfo * count.value)()
        found = call["rbd_snap_list"](image, infos, byref(count))
        if found != -errno.ERANGE:
            break
    check(found, f"cannot list the snapshots of {name}", writing=False)
    try:
        return [_described(image, name, infos[number]) for number in range(found)]
    finally:
        call["rbd_snap_list_end"](infos)


def create_snapshot(image: c_void_p, name: str, called: str) -> Snapshot:
    """Keep an open image as it is now, under a name; return the snapshot.

    Raises:
        SnapshotExistsError: There is one with this name.
        ArgumentError: This cannot be a name.
        DeviceError: It failed; the snapshot is there or not.
    """
    if not called or _NOT_IN_NAMES & set(called) or len(called.encode()) > 255:
        raise ArgumentError(
            f"{called!r} cannot be the name of a snapshot of {name}: it has 1 to 255 bytes,"
            " without @ and / [P20]"
        )
    known = snapshots(image, name)
    if any(called in (one.id, one.name) for one in known):
        raise SnapshotExistsError(f"{name} has a snapshot with the ID or name {called!r}")
    result = functions()["rbd_snap_create"](image, called.encode())
    check(result, f"cannot make a snapshot of {name}")
    return find_snapshot(snapshots(image, name), called)


def delete_snapshot(image: c_void_p, name: str, which: str | SnapshotKey) -> Snapshot:
    """Give up a snapshot of an open image; return what is gone.

    Raises:
        SnapshotNotFoundError, AmbiguousSnapshotError: It is not known which one is meant.
        DeviceError: It failed: a snapshot that others need, such as one with clones, stays.
    """
    found = find_snapshot(snapshots(image, name), which)
    check(
        functions()["rbd_snap_remove"](image, found.name.encode("utf-8", "surrogateescape")),
        f"cannot delete snapshot {found.name!r} of {name}",
    )
    return found


def _described(image: c_void_p, name: str, info: SnapshotInfo) -> Snapshot:
    made = Timestamp()
    check(
        functions()["rbd_snap_get_timestamp"](image, info.id, byref(made)),
        f"cannot ask when a snapshot of {name} was made",
        writing=False,
    )
    return Snapshot(
        id=str(info.id),
        name=(info.name or b"").decode("utf-8", "surrogateescape"),
        l1_offset=0,
        l1_size=0,
        seconds=made.seconds,
        nanoseconds=made.nanoseconds,
        disk_size=info.size,
    )
