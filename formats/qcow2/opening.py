"""Opening qcow2 images: the disk, its backing files, and where the LUKS header is.

This module opens no files. A caller that wants backing files passes an opener, which
decides what names may be followed (`formats.qcow2.files` has one).
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from formats.devices.device import SliceDevice
from formats.errors import CorruptImageError, FormatError, UnsupportedError
from formats.logs import LateLogger
from formats.qcow2 import features
from formats.qcow2.device import Qcow2Device
from formats.qcow2.header import (
    CRYPT_AES,
    CRYPT_NONE,
    is_qcow2,
    is_refcount_table_lost,
    read_header,
)
from formats.qcow2.host import Host
from formats.qcow2.metadata import Metadata
from formats.qcow2.snapshot_table import find_snapshot, read_snapshots, snapshot_l1

if TYPE_CHECKING:
    from formats.devices.device import BlockDevice
    from formats.qcow2.device import ClusterCipher
    from formats.qcow2.header import Qcow2Header
    from formats.qcow2.snapshot_table import SnapshotKey

_log = LateLogger(__name__)

#: Longest chain of backing files, unless the caller gives another limit.
MAX_DEPTH: Final = 32


@dataclass(frozen=True)
class BackingFile:
    """The name and format of a backing file, as the image states them.

    Attributes:
        name: As stored: a path, or another notation of QEMU's.
        format: Its format, or None if the image does not say.
    """

    name: str
    format: str | None


class BackingOpener(Protocol):
    """Opens those backing files that it permits, for reading.

    One that has an attribute ``probe``, and it is true, permits a guess too: whether a
    backing file is raw or qcow2, if the image does not name its format. A guest that could
    write a raw file can make it look like another format (Q6).
    """

    def __call__(self, backing: BackingFile, referrer: BlockDevice, /) -> BlockDevice:
        """Return the backing file that the image on ``referrer`` names; the caller closes it.

        Raises:
            StorageError: It cannot be opened, or is not permitted.
        """


def open_image(
    device: BlockDevice,
    *,
    read_only: bool = True,
    cipher: ClusterCipher | None = None,
    open_backing: BackingOpener | None = None,
    snapshot: str | SnapshotKey | None = None,
    depth: int = MAX_DEPTH,
) -> Qcow2Device:
    """Open the disk in a qcow2 image.

    An image whose refcounts were deferred is repaired before it is written (Q5).

    Args:
        device: Holds the image; the caller closes it.
        read_only: Refuse writing.
        cipher: For an encrypted image. Without it, its content cannot be read.
        open_backing: Opens backing files, and an external data file; without it, an image
            that has a backing file is refused, and what is in a data file is not read.
        snapshot: Name or ID of an internal snapshot to read instead; read-only. A
            `SnapshotKey` says which of the two it is.
        depth: Longest chain of backing files.

    Raises:
        EmptyImageError, ForeignImageError, TruncatedImageError, FormatError: The
            device does not hold a sound qcow2 image.
        CorruptImageError: It is marked as corrupt or has lost its refcount table, and
            writing was requested.
        SnapshotNotFoundError: The image has no such snapshot.
        AmbiguousSnapshotError: Several snapshots match.
        UnsupportedError: It needs a feature that is not implemented or not permitted.
        DeviceError: It cannot be read.
    """
    if snapshot is not None and not read_only:
        raise ValueError("a snapshot can be opened for reading only")
    header = read_header(device, features.READABLE if read_only else features.IMPLEMENTED)
    if not read_only:
        header = prepare_writing(device, header)
        if header.crypt_method == CRYPT_AES:
            raise UnsupportedError(
                "images with QEMU's old AES encryption can be read only [Q7]",
                feature="writing AES",
                hint="convert the image to one with LUKS",
            )
    if header.crypt_method == CRYPT_AES:
        _log.warning("the image has QEMU's old AES encryption, which is weak: convert it")
    host = Host(device)
    size = header.size
    if snapshot is None:
        l1 = host.read_table(header.l1_offset, header.l1_size)
    else:
        found = find_snapshot(read_snapshots(host, header), snapshot)
        l1, size = snapshot_l1(host, header, found), found.disk_size or header.size
    with ExitStack() as stack:
        backing = None
        if header.backing_name is not None:
            backing = _open_backing(device, header, open_backing, depth=depth)
            stack.callback(backing.close)
        data = None
        if header.has_data_file and open_backing is not None:
            data = _open_data_file(device, header, open_backing)
            stack.callback(data.close)
        metadata = Metadata(host, header, l1, read_only=read_only)
        image = Qcow2Device(
            metadata,
            size=size,
            cipher=cipher,
            backing=backing,
            owned=tuple(one for one in (backing, data) if one is not None),
            data=None if data is None else Host(data),
        )
        stack.pop_all()
    return image


def _open_data_file(
    device: BlockDevice, header: Qcow2Header, open_backing: BackingOpener
) -> BlockDevice:
    """Open the file that has the clusters of the disk (Q36)."""
    name = header.extensions.data_file
    if name is None:
        raise UnsupportedError(
            "the qcow2 image does not name its external data file [Q36]",
            feature="external data file without a name",
        )
    if header.crypt_method != CRYPT_NONE:
        raise UnsupportedError(
            "the qcow2 image is encrypted, and has an external data file [Q36]",
            feature="encrypted external data file",
        )
    return open_backing(BackingFile(name, "raw"), device)


def luks_area(device: BlockDevice, header: Qcow2Header | None = None) -> SliceDevice:
    """Return the bytes of an image that are kept for its LUKS header, as a device.

    `luks` reads it and changes keyslots in it; the payload that it describes lies in
    other clusters.

    Args:
        device: Holds the image.
        header: Its header, if it was read already.

    Raises:
        UnsupportedError: The image is not encrypted with LUKS.
        StorageError: As `read_header`.
    """
    header = read_header(device) if header is None else header
    pointer = header.extensions.encryption
    if pointer is None:
        raise UnsupportedError("the qcow2 image has no LUKS header", feature="LUKS in qcow2")
    return SliceDevice(device, pointer.offset, pointer.length)


def prepare_writing(device: BlockDevice, header: Qcow2Header) -> Qcow2Header:
    """Refuse or repair an image that must not be written as it is (Q5, Q30).

    Args:
        device: Holds the image; written if its refcounts were deferred.
        header: Its header.

    Returns:
        The header as it is now.

    Raises:
        CorruptImageError: It is marked as corrupt, or has no refcount table.
        StorageError: As `formats.qcow2.repair.repair_counts`.
    """
    if header.incompatible & features.CORRUPT:
        raise CorruptImageError(
            "the qcow2 image is marked as corrupt and cannot be written [Q5]",
            hint="examine it with blobstore check, and repair it with --repair all",
        )
    if is_refcount_table_lost(header, device.size):
        raise CorruptImageError(
            "the qcow2 image has lost its refcount table and can only be read [Q30]",
            hint="repair it with blobstore check --repair all",
        )
    if header.incompatible & features.DIRTY:
        from formats.qcow2.repair import repair_counts  # noqa: PLC0415  hardly ever needed

        repair_counts(device)
        header = read_header(device)
    return header


def _open_backing(
    device: BlockDevice,
    header: Qcow2Header,
    open_backing: BackingOpener | None,
    *,
    depth: int,
) -> BlockDevice:
    assert header.backing_name is not None
    backing = BackingFile(header.backing_name, header.extensions.backing_format)
    if open_backing is None:
        raise UnsupportedError(
            f"the qcow2 image has a backing file, {backing.name!r}, but none is permitted [Q6]",
            feature="backing file",
        )
    if depth <= 0:
        raise FormatError("the chain of backing files is too long, perhaps a loop", rule="Q6")
    if backing.format not in (None, "raw", "qcow2"):
        raise UnsupportedError(
            f"a backing file of format {backing.format!r} is not implemented [Q6]",
            feature=f"backing format {backing.format}",
        )
    with ExitStack() as stack:
        file = open_backing(backing, device)
        stack.callback(file.close)
        looks = is_qcow2(file)
        if backing.format is None and looks and not getattr(open_backing, "probe", False):
            raise UnsupportedError(
                f"the image does not name the format of backing file {backing.name!r}, which may"
                " be raw or qcow2 [Q6]",
                feature="unnamed backing format",
                hint="if no guest could write to that file as a raw one, permit a guess:"
                " --probe-backing, or BackingFiles(probe=True)",
            )
        if backing.format == "qcow2" or (backing.format is None and looks):
            image = open_image(file, open_backing=open_backing, depth=depth - 1)
            if image.header.crypt_method != CRYPT_NONE:
                raise UnsupportedError(
                    f"backing file {backing.name!r} is encrypted", feature="encrypted backing file"
                )
            file = image.with_owned(file)
        stack.pop_all()
    return file
