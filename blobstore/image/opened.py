"""What is done with an image while its store is open: snapshots, and its LUKS header of today."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import luks
from blobstore.image.handover import load_header, require_same
from blobstore.image.place import RemotePlace, is_there
from blobstore.image.snapshot_devices import not_set_back, require_snapshot_device
from formats.devices.device import SliceDevice
from formats.errors import FormatError, StorageError, UnsupportedError
from formats.logs import LateLogger

if TYPE_CHECKING:
    from collections.abc import Iterator

    from blobstore.image.layers import Layers
    from formats.devices.device import BlockDevice
    from formats.qcow2.device import Qcow2Device
    from formats.qcow2.snapshot_table import Snapshot, SnapshotKey

_log = LateLogger(__name__)


def require_snapshots(layers: Layers) -> None:
    """Refuse an image that has no snapshots, because it is raw and lies where none are made.

    Raises:
        UnsupportedError: It is such an image.
    """
    if layers.disk is None:
        require_snapshot_device(layers.file, layers.path)


def require_disk(layers: Layers) -> Qcow2Device:
    """Return the disk of a qcow2 image, which can be set back to a snapshot.

    Raises:
        UnsupportedError: The image is not one.
    """
    if layers.disk is None:
        require_snapshots(layers)
        raise not_set_back(layers.path)
    return layers.disk


def list_snapshots(layers: Layers) -> list[Snapshot]:
    """Return the snapshots of an image; errors as `formats.qcow2.snapshots.list_snapshots`."""
    from formats.qcow2.snapshots import list_snapshots  # noqa: PLC0415  not for raw images

    if layers.disk is None:
        return require_snapshot_device(layers.file, layers.path).snapshots()
    return list_snapshots(layers.file)


def create_snapshot(layers: Layers, name: str) -> Snapshot:
    """Keep the disk as it is now; errors as `formats.qcow2.snapshots.create_snapshot`."""
    from formats.qcow2.snapshots import create_snapshot  # noqa: PLC0415  not for raw images

    if layers.disk is None:
        return require_snapshot_device(layers.file, layers.path).create_snapshot(name)
    return layers.disk.rewrite(lambda device: create_snapshot(device, name))


def delete_snapshot(layers: Layers, which: str | SnapshotKey) -> Snapshot:
    """Give up a snapshot; errors as `formats.qcow2.snapshots.delete_snapshot`."""
    from formats.qcow2.snapshots import delete_snapshot  # noqa: PLC0415  not for raw images

    if layers.disk is None:
        return require_snapshot_device(layers.file, layers.path).delete_snapshot(which)
    return layers.disk.rewrite(lambda device: delete_snapshot(device, which))


def apply_snapshot(layers: Layers, which: str | SnapshotKey) -> Snapshot:
    """Set the disk back; errors as `formats.qcow2.snapshots.apply_snapshot`.

    What the payload holds after that is another matter: its user has to read it again.
    """
    from formats.qcow2.snapshots import apply_snapshot  # noqa: PLC0415  not for raw images

    return require_disk(layers).rewrite(lambda device: apply_snapshot(device, which))


@contextmanager
def snapshot_payload(layers: Layers, which: str | SnapshotKey) -> Iterator[BlockDevice]:
    """Yield what was the payload when a snapshot was made, for reading.

    Raises:
        SnapshotNotFoundError, AmbiguousSnapshotError: It is not known which one is meant.
        PolicyError: It was encrypted in another way then.
        FormatError, DeviceError: It cannot be read.
    """
    from formats.qcow2.opening import open_image  # noqa: PLC0415  not for raw images

    require_disk(layers)
    cipher = layers.qcow2.cipher if layers.qcow2 else None
    with ExitStack() as stack:
        disk = stack.enter_context(open_image(layers.file, cipher=cipher, snapshot=which))
        if layers.volume is None:
            yield disk
            return
        if layers.header_path is None:
            require_same(layers.volume.header, luks.load_header(disk))
        yield stack.enter_context(layers.volume.over(disk))


def header_in_disk(layers: Layers) -> SliceDevice | None:
    """Return where the LUKS header is, if only the process that has the image can change it.

    So it is in the disk of a qcow2 image, and on a device of another machine (P14). Elsewhere
    it has a place of its own, which `blobstore.image.luks_header.luks_place` finds.
    """
    if layers.volume is None or layers.header_path is not None:
        return None
    if layers.disk is None and not isinstance(layers.path, RemotePlace):
        return None
    return SliceDevice(layers.device, 0, layers.volume.header.data_offset)


def current_header(layers: Layers) -> luks.Header | None:
    """Return the LUKS header as it is now, which changes of keys make another one.

    A header that cannot be read now is described as it was when the image was opened.
    """
    try:
        return _load_header(layers)
    except StorageError as error:
        _log.warning("the LUKS header of %s cannot be read now: %s", layers.path, error)
        return layers.own_luks if layers.volume is None else layers.volume.header


def header_problem(layers: Layers) -> str | None:
    """Say what is wrong with the LUKS header as it is now, if anything is.

    A detached header that is not there any more is not wrong: it may be kept elsewhere.
    """
    if layers.header_path is not None and not is_there(layers.header_path):
        return None
    try:
        stale = layers.image(_load_header(layers)).damaged_header_copy
    except (FormatError, UnsupportedError) as error:
        return f"the LUKS header is damaged: {error}"
    return None if stale is None else f"the {stale} LUKS header copy is damaged or old"


def _load_header(layers: Layers) -> luks.Header | None:
    if layers.volume is not None or layers.moving is not None:
        return load_header(layers)
    if layers.own_luks is None:
        return None
    from formats.qcow2.opening import luks_area  # noqa: PLC0415  not for raw images

    return luks.load_header(luks_area(layers.file))
