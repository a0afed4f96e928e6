"""Internal snapshots: list, create, apply, delete.

Each change happens as a whole or not at all (Q10, Q18, Q19). The functions work on the
device of an image that is not open; `Qcow2Device.rewrite` runs them on one that is.
"""

from __future__ import annotations

import time
from array import array
from typing import TYPE_CHECKING

from formats.errors import ArgumentError, SnapshotExistsError, UnsupportedError
from formats.qcow2 import features
from formats.qcow2.header import MAX_SNAPSHOTS, l1_entries, read_header
from formats.qcow2.host import Host, encode_table
from formats.qcow2.lost import cut_off, first_lost
from formats.qcow2.opening import prepare_writing
from formats.qcow2.rewrite import Rewrite, load_counts, tables_once
from formats.qcow2.snapshot_table import (
    Snapshot,
    SnapshotKey,
    find_snapshot,
    new_extra,
    read_snapshots,
    snapshot_l1,
)
from formats.qcow2.tables import COMPRESSED, COPIED, OFFSET_MASK, clusters_of

if TYPE_CHECKING:
    from formats.devices.device import BlockDevice
    from formats.qcow2.header import Qcow2Header

__all__ = [
    "Snapshot",
    "SnapshotKey",
    "apply_snapshot",
    "create_snapshot",
    "delete_snapshot",
    "list_snapshots",
]


def list_snapshots(device: BlockDevice) -> list[Snapshot]:
    """Return the snapshots of an image, in the order of its table; also of those of Q32.

    Raises:
        StorageError: The image is not sound.
    """
    header = read_header(device, features.READABLE)
    return read_snapshots(Host(device), header)


def create_snapshot(device: BlockDevice, name: str, *, when: float | None = None) -> Snapshot:
    """Keep the disk as it is now under a name.

    Args:
        device: Holds the image.
        name: Not empty, and neither name nor ID of another snapshot.
        when: The time to store, in seconds since 1970; by default now.

    Raises:
        ValueError: ``name`` is not a valid name.
        SnapshotExistsError: Another snapshot has this name or ID.
        UnsupportedError: The refcounts are too narrow for another one.
        StorageError: The image is not sound.
        DeviceError: It failed; the snapshot exists or not.
    """
    if not name or len(name.encode("utf-8", "surrogateescape")) > 255 or "\0" in name:
        raise ArgumentError("the name of a snapshot must have 1 to 255 bytes")
    host, header, snapshots = _load(device)
    for snapshot in snapshots:
        if name in (snapshot.id, snapshot.name):
            raise SnapshotExistsError(
                f"there is a snapshot with ID {snapshot.id!r} named {snapshot.name!r}, and {name!r}"
                " could mean either [Q18]"
            )
    if len(snapshots) >= MAX_SNAPSHOTS:
        raise UnsupportedError("the image has 65536 snapshots already", feature="more snapshots")
    rewrite = Rewrite(host, header, load_counts(host, header))
    rewrite.drop_refcounts()
    l1 = _shared(rewrite, host.read_table(header.l1_offset, header.l1_size), header)
    rewrite.release_table(header.l1_offset, header.l1_size * 8)
    seconds, fraction = divmod(time.time_ns() if when is None else int(when * 1e9), 10**9)
    snapshot = Snapshot(
        id=_new_id(snapshots),
        name=name,
        l1_offset=rewrite.write_new(encode_table(l1)),
        l1_size=len(l1),
        seconds=seconds,
        nanoseconds=fraction,
        disk_size=header.size,
        extra=new_extra(header.size),
    )
    active = rewrite.write_new(encode_table(l1))
    table = rewrite.write_snapshots([*snapshots, snapshot])
    rewrite.finish(l1_offset=active, snapshot_count=len(snapshots) + 1, snapshots_offset=table)
    return snapshot


def apply_snapshot(
    device: BlockDevice,
    which: str | SnapshotKey | None = None,
    /,
    *,
    id: str | None = None,  # noqa: A002  the name of the field
    name: str | None = None,
) -> Snapshot:
    """Restore the disk, and its size, from a snapshot.

    A machine's state stays in the snapshot.

    Args:
        device: Holds the image.
        which: ID or name of the snapshot, whichever it is.
        id: Its ID, instead.
        name: Its name, instead or as well.

    Raises:
        SnapshotNotFoundError: There is none.
        AmbiguousSnapshotError: Several match.
        StorageError: The image is not sound.
        DeviceError: It failed; the disk is unchanged, or restored.
        TypeError: No argument selects it, or too many do.
    """
    key = _key(which, id, name)
    host, header, snapshots = _load(device)
    snapshot = find_snapshot(snapshots, key)
    size = header.size if snapshot.disk_size is None else snapshot.disk_size
    wanted = snapshot_l1(host, header, snapshot)[: max(1, l1_entries(size, header.cluster_bits))]
    rewrite = Rewrite(host, header, load_counts(host, header))
    rewrite.drop_refcounts()
    rewrite.use_tree(wanted, 1)
    rewrite.use_tree(host.read_table(header.l1_offset, header.l1_size), -1)
    rewrite.release_table(header.l1_offset, header.l1_size * 8)
    l1 = rewrite.flagged(wanted)
    active = rewrite.write_new(encode_table(l1))
    rewrite.finish(content_changes=True, l1_offset=active, l1_size=len(l1), size=size)
    return snapshot


def delete_snapshot(
    device: BlockDevice,
    which: str | SnapshotKey | None = None,
    /,
    *,
    id: str | None = None,  # noqa: A002  the name of the field
    name: str | None = None,
) -> Snapshot:
    """Delete a snapshot, and free the clusters that only it uses.

    Args:
        device: Holds the image.
        which: ID or name of the snapshot, whichever it is.
        id: Its ID, instead.
        name: Its name, instead or as well.

    Raises:
        SnapshotNotFoundError: There is none.
        AmbiguousSnapshotError: Several match.
        StorageError: The image is not sound.
        DeviceError: It failed; the snapshot exists or not.
        TypeError: No argument selects it, or too many do.
    """
    key = _key(which, id, name)
    host, header, snapshots = _load(device)
    snapshot = find_snapshot(snapshots, key)
    rewrite = Rewrite(host, header, load_counts(host, header))
    rewrite.drop_refcounts()
    rewrite.use_tree(snapshot_l1(host, header, snapshot), -1)
    rewrite.release_table(snapshot.l1_offset, snapshot.l1_size * 8)
    rewrite.release_table(header.l1_offset, header.l1_size * 8)
    l1 = rewrite.flagged(host.read_table(header.l1_offset, header.l1_size))
    rest = [other for other in snapshots if other is not snapshot]
    table = rewrite.write_snapshots(rest)
    rewrite.finish(
        l1_offset=rewrite.write_new(encode_table(l1)),
        snapshot_count=len(rest),
        snapshots_offset=table,
    )
    return snapshot


def _key(which: str | SnapshotKey | None, id_: str | None, name: str | None) -> str | SnapshotKey:
    named = id_ is not None or name is not None
    if named == (which is not None):
        raise TypeError("a snapshot must be selected by one argument, or by id= and name=")
    return SnapshotKey(id_, name) if which is None else which


def _load(device: BlockDevice) -> tuple[Host, Qcow2Header, list[Snapshot]]:
    header = prepare_writing(device, read_header(device))
    lost = first_lost(device)
    if lost is not None:
        raise cut_off(lost, header)
    host = Host(device)
    return host, header, read_snapshots(host, header)


def _shared(rewrite: Rewrite, l1: array[int], header: Qcow2Header) -> array[int]:
    """Return an L1 table for the active state and the new snapshot, and count all it uses twice."""
    bits = header.cluster_bits
    shared = l1[:]
    for _ in tables_once(l1):
        pass  # none occurs twice
    for index, entry in enumerate(l1):
        offset = entry & OFFSET_MASK
        shared[index] = offset
        if not offset:
            continue
        old = rewrite.read_l2(offset)
        for each in old:
            if each:
                for cluster in clusters_of(each, bits):
                    rewrite.counts.add(cluster, 1)
        entries = array("Q", [each if each & COMPRESSED else each & ~COPIED for each in old])
        if entries != old:
            # Both get a copy without flags; the table with them becomes free.
            shared[index] = rewrite.write_new(encode_table(entries))
            rewrite.release_clusters([offset >> bits])
        rewrite.counts.add(shared[index] >> bits, 1)
    return shared


def _new_id(snapshots: list[Snapshot]) -> str:
    """Return the next number, as QEMU counts, that is not the name of a snapshot (Q18)."""
    ids = [found.id for found in snapshots]
    numbers = [int(id_) for id_ in ids if id_.isascii() and id_.isdigit() and len(id_) < 20]
    names = {found.name for found in snapshots}
    number = max(numbers, default=0) + 1
    while str(number) in names:
        number += 1
    return str(number)
