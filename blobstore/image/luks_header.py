"""Where the LUKS header of an image is: in a file, in the disk of a qcow2 image, or beside it.

`luks` works on headers, and knows nothing of images around them; here it gets the place.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import luks
from blobstore.container.scan import looks_like_container
from blobstore.image.files import outputs_kept, require_file
from blobstore.image.layers import is_qcow2
from blobstore.image.place import (
    RemotePlace,
    for_luks,
    is_same_place,
    open_place,
    owner_named,
    place_of,
)
from formats.devices.file import FileDevice
from formats.devices.steady import steadily
from formats.errors import ArgumentError, ForeignImageError, UnsupportedError
from luks.header.detection import opened
from luks.header.lock import exclusive

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    from formats.devices.device import SharedDevice

    AnyPath = str | os.PathLike[str]


@contextmanager
def luks_place(
    path: AnyPath, header: AnyPath | None = None, *, write: bool = False
) -> Iterator[luks.Place]:
    """Yield where the LUKS header of an image is, for the functions of `luks` that take a place.

    It is a path, or a device that stays open in the block: in a qcow2 image, or of another
    machine.

        with blobstore.luks_place("machine.qcow2", write=True) as place:
            luks.add_keyslot(place, b"passphrase", b"another")

    Args:
        path: Place of the image.
        header: Place of its detached header.
        write: Whether the header is to be changed.

    Raises:
        ValueError: ``header`` is the image itself.
        DeviceBusyError: The header lies in the disk of a qcow2 image, which another process
            uses.
        FormatError, UnsupportedError, DeviceError: The image cannot be opened.
    """
    if header is not None:
        if is_same_place(header, path):
            raise ArgumentError(f"{path} cannot be both the image and its LUKS header [L52]")
        with for_luks(place_of(header), write=write) as found:
            yield found
        return
    with _attached(path, write=write, move=False) as place:
        yield place


@contextmanager
def header_kept(path: AnyPath) -> Iterator[None]:
    """Keep programs from changing keys in the header of an image in the block.

    What lies on another machine is locked as a whole, as far as it can be.

    Raises:
        DeviceBusyError: One of them is doing so, and does not end.
        DeviceError: The image cannot be opened or locked.
    """
    place = place_of(path)
    if isinstance(place, RemotePlace):
        yield
    else:
        with exclusive(place):
            yield


def detach_header(path: AnyPath, header: AnyPath, *, overwrite: bool = False) -> luks.Header:
    """Move the LUKS header of an image to a file; random bytes take its place.

    As `luks.detach_header`, also where the image is a qcow2 image with a volume in its disk.

    Args:
        path: The image.
        header: The file to make.
        overwrite: Replace a file that exists.

    Returns:
        The header, as it is in the file.

    Raises:
        OutputExistsError: The file exists, and not ``overwrite``.
        UnsupportedError: It is the header of qcow2's own encryption, or of a re-encryption.
        ValueError: The file is the image itself.
        StorageError: As `luks.edit`, and for the file as for any.
    """
    require_file(header)
    with outputs_kept(header), _attached(path, write=True, move=True) as place:
        return luks.detach_header(place, header, overwrite=overwrite)


def attach_header(path: AnyPath, header: AnyPath) -> luks.Header:
    """Write a detached LUKS header to the start of its image, where there is room for it.

    As `luks.attach_header`, also where the image is a qcow2 image with a payload in its
    disk; and an image with a store in the clear is refused, which the header would
    overwrite.

    Args:
        path: The image.
        header: Place of its detached header, which stays as it is.

    Returns:
        The header as it is at its new place.

    Raises:
        ForeignImageError: There is a store in the clear, or something else.
        LuksExistsError: There is a header already.
        UnsupportedError: There is no room for one, or it would be that of qcow2's own
            encryption.
        TruncatedImageError: The image ends before its payload begins.
        StorageError: As `luks.edit`.
    """
    with _attached(path, write=True, move=True) as place:
        with opened(place) as device:
            if looks_like_container(device):
                raise ForeignImageError(
                    f"{path} holds a store in the clear, which the header would overwrite",
                    hint="convert encrypts a store",
                )
        with for_luks(place_of(header)) as found:
            return luks.attach_header(place, found)


def convert_header(
    path: AnyPath, version: int, *, header: AnyPath | None = None, force: bool = False
) -> luks.Header:
    """Replace the LUKS1 header of an image by one of LUKS2, or the other way round, in place.

    As `luks.convert_header`, also where the image is a qcow2 image with a volume in its disk.

    Args:
        path: The image.
        version: 1 or 2.
        header: Place of its detached header, which is then converted.
        force: Let tokens, labels, flags and priorities be lost, for which LUKS1 has no place.

    Returns:
        The header as it is then.

    Raises:
        UnsupportedError: It is the header of qcow2's own encryption, which is LUKS1 for QEMU;
            or LUKS1 cannot store it.
        DeviceBusyError: It lies in the disk of a qcow2 image, which another process uses.
        StorageError: As `luks.convert_header`.
    """
    if header is not None:
        with luks_place(path, header, write=True) as place:
            return luks.convert_header(place, version, force=force)
    with _attached(path, write=True, move=True) as place:
        return luks.convert_header(place, version, force=force)


@contextmanager
def _attached(path: AnyPath, *, write: bool, move: bool) -> Iterator[luks.Place]:
    """Yield where an attached header is, or is to come; ``move`` if it may not be qcow2's own."""
    with ExitStack() as stack:
        remote = isinstance(place_of(path), RemotePlace)
        file = stack.enter_context(open_place(path, read_only=not write, lock=remote and write))
        if is_qcow2(file, None):
            yield _in_qcow2(stack, file, path, write=write, move=move)
        elif remote:
            yield file
        else:
            stack.close()
            yield path


def _in_qcow2(
    stack: ExitStack, file: SharedDevice, path: AnyPath, *, write: bool, move: bool
) -> luks.Place:
    from blobstore.image.qcow2 import header_area, open_disk  # noqa: PLC0415  raw images need none of it

    area = steadily(file, lambda: header_area(file), settled=lambda _: False)
    if area is not None:
        if move:
            raise UnsupportedError(
                f"{path} is encrypted by qcow2 itself: its LUKS1 header stays as and where it is",
                feature="moving or converting the header of qcow2's own encryption",
                hint="one of luks1-in-qcow2 or luks2-in-qcow2 can: convert makes such an image",
            )
        # It has its own place in the file, whatever happens to clusters meanwhile.
        if write and isinstance(file, FileDevice):
            stack.enter_context(exclusive(path))
            file.require_name()
        return area
    if write:
        with owner_named(path):
            file.lock()
        return open_disk(stack, file, None, read_only=False).device
    # Only its tables: what reads the header sees to that itself (`luks.header.load`).
    disk = steadily(file, lambda: open_disk(stack, file, None), settled=lambda _: False)
    return disk.device
