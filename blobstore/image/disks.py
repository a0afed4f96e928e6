"""What is done with a whole qcow2 image by its place: check, repair, measure, snapshots.

None of it needs a key: it works on the tables of the image, not on what its disk holds.
The work is that of `formats.qcow2`; here the image is opened and locked for it.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, TypeVar

from blobstore.image.place import keeps_out_writers, open_place, place_of
from blobstore.image.qcow2 import LUKS_HEADER_SIZE
from blobstore.image.snapshot_devices import SnapshotDevice, not_set_back
from formats.devices.steady import steadily
from formats.errors import ArgumentError
from formats.qcow2 import snapshots
from formats.qcow2.check import check as check_tables
from formats.qcow2.creation import Qcow2Options
from formats.qcow2.header import is_qcow2
from formats.qcow2.measure import measure as measure_disk
from formats.qcow2.opening import open_image
from formats.qcow2.repair import repair as repair_tables

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from formats.devices.device import SharedDevice
    from formats.qcow2.measure import Measure
    from formats.qcow2.opening import BackingOpener
    from formats.qcow2.report import CheckReport
    from formats.qcow2.snapshot_table import Snapshot, SnapshotKey

    AnyPath = str | os.PathLike[str]

_Result = TypeVar("_Result")


def check(path: AnyPath, *, repair: Literal["leaks", "all"] | None = None) -> CheckReport:
    """Check the tables of a qcow2 image: does what is used count as used, and nothing else?

    What the disk in it contains is not looked at: `Store.verify` does that. No key is
    needed.

    Args:
        path: The image, which no other process writes to; with ``repair``, which none uses.
        repair: ``"leaks"`` frees what counts as used and is not. ``"all"`` puts right all
            that can be, counts and flags too. Either happens as a whole or not at all
            (Q10, Q20, Q25 of ``spec/qcow2.md``). None changes nothing.

    Returns:
        What is wrong, and how much of it was put right. It is not an error that something
        is wrong: see `CheckReport.ok`.

    Raises:
        FormatError, UnsupportedError: It is not a qcow2 image, or its header is not sound
            enough to say what belongs to the image.
        DeviceBusyError: Another process uses the image.
        ReadOnlyError: It is to be repaired and must not be written.
        DeviceError: It cannot be read or written.
        ValueError: There is no such repair.
    """
    if repair not in (None, "leaks", "all"):
        raise ArgumentError(f"a repair is of 'leaks' or of 'all', not of {repair!r}")
    if repair is None:
        return _read(path, check_tables)
    with open_place(path, read_only=False) as file:
        return repair_tables(file, leaks_only=repair == "leaks")


def measure(
    source: AnyPath | int,
    options: Qcow2Options | None = None,
    *,
    encrypted: bool = False,
    open_backing: BackingOpener | None = None,
) -> Measure:
    """Say how large a new qcow2 image becomes, before it is made.

    Args:
        source: The disk that it will hold: a qcow2 image, or any other file or block device,
            taken as it is. Holes need no room. Or the bytes of a disk that is empty.
        options: What the new image is to be; by default what `create` makes.
        encrypted: Keep room for the header of qcow2's own encryption with LUKS.
        open_backing: Opens backing files of the source, such as `BackingFiles`; None
            refuses a source that has one.

    Returns:
        The bytes of the image file with the data that there is, and once all of its disk
        was written.

    Raises:
        FormatError, UnsupportedError: The source is a qcow2 image that cannot be read.
        DeviceBusyError, DeviceError: The source cannot be read.
        ValueError: The options do not fit together, or the size is negative.
    """
    options = options or Qcow2Options()
    if encrypted:
        options = replace(options, luks_header_size=LUKS_HEADER_SIZE)
    if isinstance(source, int):
        if source < 0:
            raise ArgumentError(f"a disk cannot have {source} bytes")
        return measure_disk(source, options)
    with ExitStack() as stack:
        file = stack.enter_context(open_place(source))
        if not is_qcow2(file):
            return measure_disk(file.size, options, file.data_ranges(0, file.size))
        disk = stack.enter_context(open_image(file, open_backing=open_backing))
        return measure_disk(disk.size, options, disk.data_ranges(0, disk.size))


def list_snapshots(path: AnyPath) -> list[Snapshot]:
    """Return the snapshots of a qcow2 image, in the order of its table, or of a raw one on RBD.

    Args:
        path: Place of the image.

    Raises:
        FormatError, UnsupportedError: It is not a sound qcow2 image.
        DeviceBusyError, DeviceError: It cannot be read.
    """

    def read(file: SharedDevice) -> list[Snapshot]:
        keeping = _keeping(file)
        return snapshots.list_snapshots(file) if keeping is None else keeping.snapshots()

    return _read(path, read)


def _keeping(file: SharedDevice) -> SnapshotDevice | None:
    """Return the device that keeps the snapshots of an image; None if it is qcow2's affair."""
    return file if isinstance(file, SnapshotDevice) and not is_qcow2(file) else None


def _read(path: AnyPath, read: Callable[[SharedDevice], _Result]) -> _Result:
    """Return what is read from the tables of an image, none of it while they change."""
    with open_place(path) as file:
        if keeps_out_writers(path, read_only=True):
            return read(file)
        return steadily(file, lambda: read(file), settled=lambda _: False)


def create_snapshot(path: AnyPath, name: str) -> Snapshot:
    """Keep the disk in a qcow2 image, or a raw image on RBD (P20), as it is now, under a name.

    Args:
        path: The image, which no other process uses: one that does, such as QEMU, makes
            its own snapshots.
        name: 1 to 255 bytes; neither name nor ID of another snapshot.

    Returns:
        The snapshot, with the ID that it got.

    Raises:
        SnapshotExistsError: A snapshot has this name or ID.
        FormatError, UnsupportedError: It is not a sound qcow2 image, or its refcounts are
            too narrow for another snapshot.
        DeviceBusyError: Another process uses the image.
        DeviceError: It failed; the snapshot is there or not.
        ValueError: This cannot be a name.
    """
    with open_place(path, read_only=False) as file:
        keeping = _keeping(file)
        if keeping is not None:
            return keeping.create_snapshot(name)
        return snapshots.create_snapshot(file, name)


def apply_snapshot(path: AnyPath, which: str | SnapshotKey) -> Snapshot:
    """Make the disk in a qcow2 image what it was when a snapshot was made; its size too.

    What it is now is lost, unless another snapshot has it. A store in it is set back as a
    whole; ``at_least_generation`` of `open` notices that.

    Args:
        path: The image, which no other process uses.
        which: ID or name of the snapshot, or a `SnapshotKey` that says which of the two.

    Returns:
        The snapshot, which stays.

    Raises:
        SnapshotNotFoundError: There is no such snapshot.
        AmbiguousSnapshotError: Several could be meant.
        FormatError, UnsupportedError: It is not a sound qcow2 image, or a raw one, which
            cannot be set back at once (P21).
        DeviceBusyError: Another process uses the image.
        DeviceError: It failed; the disk is as it was, or as it is to be.
    """
    with open_place(path, read_only=False) as file:
        if _keeping(file) is not None:
            raise not_set_back(place_of(path))
        return snapshots.apply_snapshot(file, which)


def delete_snapshot(path: AnyPath, which: str | SnapshotKey) -> Snapshot:
    """Give up a snapshot of a qcow2 image, or of a raw one on RBD; free what only it uses.

    Args:
        path: The image, which no other process uses.
        which: ID or name of the snapshot, or a `SnapshotKey` that says which of the two.

    Returns:
        The snapshot that is gone.

    Raises:
        SnapshotNotFoundError: There is no such snapshot.
        AmbiguousSnapshotError: Several could be meant.
        FormatError, UnsupportedError: It is not a sound qcow2 image.
        DeviceBusyError: Another process uses the image.
        DeviceError: It failed; the snapshot is there or not.
    """
    with open_place(path, read_only=False) as file:
        keeping = _keeping(file)
        if keeping is not None:
            return keeping.delete_snapshot(which)
        return snapshots.delete_snapshot(file, which)
