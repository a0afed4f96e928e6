"""Where the payload of an image is, for what re-encrypts it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from blobstore.image.layers import is_qcow2
from blobstore.image.place import for_luks, is_same_place, open_place, owner_named, place_of
from formats.errors import ArgumentError, UnsupportedError
from formats.qcow2.header import read_header

if TYPE_CHECKING:
    import os
    from contextlib import ExitStack

    import luks
    from blobstore.image.place import Place
    from formats.devices.device import BlockDevice

    AnyPath = str | os.PathLike[str]


class Ends(NamedTuple):
    """What the functions of `luks` take for an image and its header.

    Attributes:
        path: Place of the image.
        device: The image, or the disk in it.
        header: The detached header, or None.
    """

    path: Place
    device: luks.Place
    header: luks.Place | None


def open_ends(
    resources: ExitStack, path: AnyPath, header: AnyPath | None, *, write: bool = True
) -> Ends:
    """Return an image and its header as `luks` takes them.

    A raw file stays a path, which `luks` opens and locks.

    Args:
        resources: Closes what is opened.
        path: Place of the image.
        header: Place of the detached header.
        write: Whether they are to be changed.

    Raises:
        ArgumentError: The header is the image itself.
        UnsupportedError: It is a qcow2 image that is encrypted by itself.
        StorageError: They cannot be opened.
    """
    place = place_of(path)
    if header is not None and is_same_place(header, path):
        raise ArgumentError(f"{path} cannot be both the image and its LUKS header [L52]")
    device = _device(resources, place, write=write)
    found = None
    if header is not None:
        found = resources.enter_context(for_luks(place_of(header), write=write))
    return Ends(place, device, found)


def _device(resources: ExitStack, place: Place, *, write: bool) -> luks.Place:
    with open_place(place, lock=False) as looked_at:
        qcow2 = is_qcow2(looked_at, None)
        if qcow2 and read_header(looked_at).crypt_method:
            raise UnsupportedError(
                f"{place} is encrypted by qcow2 itself, which has no re-encryption in place",
                feature="re-encryption of qcow2's own encryption",
                hint="blobstore convert writes it into another image",
            )
    if isinstance(place, Path) and not qcow2:
        return place
    with owner_named(place):
        file = resources.enter_context(open_place(place, read_only=not write, lock=write))
    return _disk(resources, file, write=write) if qcow2 else file


def _disk(resources: ExitStack, file: BlockDevice, *, write: bool) -> BlockDevice:
    from blobstore.image.qcow2 import open_disk  # noqa: PLC0415  not for raw images

    return open_disk(resources, file, None, read_only=not write, locked=write).device
