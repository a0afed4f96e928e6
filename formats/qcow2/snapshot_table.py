"""The table of internal snapshots: bytes to `Snapshot` and back.

Source: QEMU's docs/interop/qcow2, "Snapshots".
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, NamedTuple

from formats.errors import (
    AmbiguousSnapshotError,
    FormatError,
    SnapshotNotFoundError,
    TruncatedImageError,
)
from formats.qcow2.header import MAX_L1_SIZE, l1_entries

if TYPE_CHECKING:
    from array import array
    from collections.abc import Iterable, Sequence

    from formats.qcow2.header import Qcow2Header
    from formats.qcow2.host import Host

_ENTRY: Final = struct.Struct(">QIHHIIQII")
_EXTRA: Final = struct.Struct(">QQQ")
#: As in QEMU.
MAX_TABLE_SIZE: Final = 64 << 20
MAX_EXTRA: Final = 1024
#: The value for "no instruction count".
_NO_ICOUNT: Final = (1 << 64) - 1


@dataclass(frozen=True)
class Snapshot:
    """An internal snapshot.

    Attributes:
        id: Its identifier; QEMU uses consecutive numbers.
        name: Its name; several may have the same.
        l1_offset: Byte offset of its L1 table in the image.
        l1_size: Entries of that table.
        seconds: When it was made, in seconds since 1970.
        nanoseconds: The fraction of that second.
        vm_clock: How long the machine had run, in nanoseconds.
        vm_state_size: Bytes of the machine's state, stored after the disk; 0 for none.
        disk_size: Bytes of its disk; None if the table does not say.
        extra: Bytes of the entry after the fields of version 2.
    """

    id: str
    name: str
    l1_offset: int
    l1_size: int
    seconds: int
    nanoseconds: int = 0
    vm_clock: int = 0
    vm_state_size: int = 0
    disk_size: int | None = None
    extra: bytes = b""


def read_snapshots(host: Host, header: Qcow2Header) -> list[Snapshot]:
    """Read the table of an image.

    Raises:
        FormatError: It breaks a rule.
        DeviceError: It cannot be read.
    """
    if not header.snapshot_count:
        return []
    size = min(host.size - header.snapshots_offset, MAX_TABLE_SIZE)
    reader = _Reader(host, header.snapshots_offset, size)
    return [reader.next() for _ in range(header.snapshot_count)]


class _Reader:
    """Reads consecutive entries, and no more of the image than they take."""

    def __init__(self, host: Host, offset: int, size: int) -> None:
        self._host = host
        self._offset = offset
        self._end = offset + size

    def next(self) -> Snapshot:
        place = self._offset
        fields = _ENTRY.unpack(self._take(_ENTRY.size))
        l1_offset, l1_size, id_size, name_size, seconds, nanoseconds, clock, state, extra_size = (
            fields
        )
        if extra_size > MAX_EXTRA:
            raise FormatError("a snapshot has too much extra data", offset=place, rule="Q18")
        extra = self._take(extra_size)
        id_ = self._take(id_size).decode("utf-8", "surrogateescape")
        name = self._take(name_size).decode("utf-8", "surrogateescape")
        used = _ENTRY.size + extra_size + id_size + name_size
        self._offset += -used % 8
        if len(extra) >= 8:
            state = int.from_bytes(extra[:8])
        disk_size = int.from_bytes(extra[8:16]) if len(extra) >= 16 else None
        return Snapshot(
            id=id_,
            name=name,
            l1_offset=l1_offset,
            l1_size=l1_size,
            seconds=seconds,
            nanoseconds=nanoseconds,
            vm_clock=clock,
            vm_state_size=state,
            disk_size=disk_size,
            extra=extra,
        )

    def _take(self, size: int) -> bytes:
        if self._offset + size > self._end:
            raise TruncatedImageError(
                "the image ends within its snapshot table", offset=self._offset, rule="Q18"
            )
        data = bytes(self._host.read(self._offset, size)) if size else b""
        self._offset += size
        return data


def encode_snapshots(snapshots: Iterable[Snapshot]) -> bytes:
    """Return the bytes of a snapshot table; unknown extra data is kept."""
    table = bytearray()
    for snapshot in snapshots:
        id_ = snapshot.id.encode("utf-8", "surrogateescape")
        name = snapshot.name.encode("utf-8", "surrogateescape")
        table += _ENTRY.pack(
            snapshot.l1_offset,
            snapshot.l1_size,
            len(id_),
            len(name),
            snapshot.seconds,
            snapshot.nanoseconds,
            snapshot.vm_clock,
            min(snapshot.vm_state_size, 0xFFFF_FFFF),
            len(snapshot.extra),
        )
        table += snapshot.extra + id_ + name
        table += bytes(-len(table) % 8)
    return bytes(table)


def new_extra(disk_size: int) -> bytes:
    """Return the extra data of a new snapshot without a machine's state."""
    return _EXTRA.pack(0, disk_size, _NO_ICOUNT)


def completed(snapshot: Snapshot, disk_size: int) -> Snapshot:
    """Return a snapshot whose entry states the size of its disk, as version 3 needs (Q31).

    Args:
        snapshot: An entry; returned as it is if it states the size.
        disk_size: Bytes of the disk now, which QEMU too takes for those of the snapshot's.
    """
    if snapshot.disk_size is not None:
        return snapshot
    extra = _EXTRA.pack(snapshot.vm_state_size, disk_size, _NO_ICOUNT)
    return replace(snapshot, disk_size=disk_size, extra=extra)


class SnapshotKey(NamedTuple):
    """Selects a snapshot by ID, by name, or by both, where one text could be either.

    Attributes:
        id: Its ID, or None for any.
        name: Its name, or None for any.
    """

    id: str | None = None
    name: str | None = None


def find_snapshot(snapshots: Sequence[Snapshot], which: str | SnapshotKey) -> Snapshot:
    """Return the one snapshot that matches (Q18).

    Args:
        snapshots: All snapshots.
        which: A text that is its ID or its name, or a key.

    Raises:
        SnapshotNotFoundError: None matches.
        AmbiguousSnapshotError: Several match.
        ValueError: A key has neither ID nor name.
    """
    if isinstance(which, SnapshotKey):
        if which.id is None and which.name is None:
            raise ValueError("a snapshot must be selected by its ID, its name, or both")
        found = [
            one
            for one in snapshots
            if which.id in (None, one.id) and which.name in (None, one.name)
        ]
        parts = (
            f"{part} {value!r}" for part, value in which._asdict().items() if value is not None
        )
        wanted = " and ".join(parts)
    else:
        found = [one for one in snapshots if which in (one.id, one.name)]
        wanted = f"ID or name {which!r}"
    if not found:
        raise SnapshotNotFoundError(f"the image has no snapshot with {wanted}")
    if len(found) > 1:
        several = ", ".join(f"ID {one.id!r} named {one.name!r}" for one in found[:3])
        raise AmbiguousSnapshotError(
            f"the image has {len(found)} snapshots with {wanted}: {several} [Q18]",
            hint="select one by its ID: --id or --snapshot-id, or SnapshotKey(id=...)",
        )
    return found[0]


def snapshot_l1(host: Host, header: Qcow2Header, snapshot: Snapshot) -> array[int]:
    """Read a snapshot's L1 table, which covers its disk.

    Raises:
        FormatError: The table is impossible.
        DeviceError: It cannot be read.
    """
    size = header.size if snapshot.disk_size is None else snapshot.disk_size
    if (
        snapshot.l1_size * 8 > MAX_L1_SIZE
        or snapshot.l1_offset % header.cluster_size
        or snapshot.l1_offset + snapshot.l1_size * 8 > host.size
        or snapshot.l1_size < l1_entries(size, header.cluster_bits, extended=header.has_extended_l2)
    ):
        raise FormatError(
            f"the L1 table of snapshot {snapshot.id!r} is impossible",
            offset=snapshot.l1_offset,
            rule="Q18",
        )
    return host.read_table(snapshot.l1_offset, snapshot.l1_size)
