"""Making images: what a new one is to be, and the order in which making one is undone.

`NewImage` says what is wanted, and is checked before anything is opened. `new_image`
makes it, and is the only place that knows when new files take their names, and when
what is open is closed.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import luks
from blobstore.container.scan import looks_like_container
from blobstore.errors import ImageExistsError
from blobstore.image.files import new_file
from blobstore.image.layers import QCOW2, RAW, Layers, image_format, require_image_format
from blobstore.image.place import is_file, is_same_place, open_file, open_place, place_of
from formats.devices.device import is_blank
from formats.errors import ArgumentError, DeviceError, DeviceFullError, ForeignImageError

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    from blobstore.image.place import Place, RemotePlace
    from formats.devices.device import SharedDevice
    from formats.devices.file import FileDevice
    from formats.qcow2.creation import Qcow2Options

    AnyPath = str | os.PathLike[str]

_SECTOR_SIZE: Final = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class NewImage:
    """What a new image is to be.

    Attributes:
        path: Place of the image. An existing file is replaced if it is blank, or with
            ``overwrite``; a device is written in place.
        secret: Passphrase or content of a key file; None for an image in the clear.
        luks: How the volume is made, or the image's own encryption; None for an image
            in the clear.
        header: Place that gets the LUKS header, detached: a new file, or a device.
        size: Bytes of the whole image, or of the disk in it. A device or a blank file
            keeps its size.
        overwrite: Destroy what is there.
        image_format: `RAW` or `QCOW2`.
        qcow2_options: Of `formats.qcow2.creation.create`.
        own_luks: Let the qcow2 image be encrypted by itself, not what is in its disk.

    Raises:
        ArgumentError: These do not fit together.
    """

    path: AnyPath
    secret: bytes | luks.Secret | None = field(default=None, repr=False)
    luks: luks.FormatOptions | None = None
    header: AnyPath | None = None
    size: int | None = None
    overwrite: bool = False
    image_format: str = RAW
    qcow2_options: Qcow2Options | None = None
    own_luks: bool = False

    def __post_init__(self) -> None:
        require_image_format(self.image_format)
        if self.luks is None and (self.secret is not None or self.header is not None):
            raise ArgumentError("an image in the clear has no secret and no LUKS header")
        if self.luks is not None and self.secret is None:
            raise ArgumentError("an encrypted image needs a secret")
        if self.own_luks and (
            self.luks is None or self.header is not None or self.image_format != QCOW2
        ):
            raise ArgumentError(
                "only an encrypted qcow2 image, without another header, has its own LUKS"
            )
        if self.header is not None and is_same_place(self.header, self.path):
            raise ArgumentError(f"{self.path} cannot be both the image and its LUKS header")


class UnfinishedImage:
    """An image that `new_image` is making.

    Attributes:
        layers: All of it, open for writing.
    """

    def __init__(self, layers: Layers, resources: ExitStack) -> None:
        """Begin with the layers, and what closes them."""
        self.layers = layers
        self._resources = resources
        self.is_handed_over: bool = False

    def hand_over(self) -> ExitStack:
        """Return what closes the layers: the caller's, if `new_image` ends well."""
        self.is_handed_over = True
        return self._resources


@contextmanager
def new_image(new: NewImage, payload_size: int) -> Iterator[UnfinishedImage]:
    """Make a new image, whose payload the caller writes within the ``with``.

    At its end the following happens, in this order. Nothing else takes part in it, so
    callers have no order to keep.

    If the block ended well:

    1. The new files become durable and take their names: first that of the LUKS header,
       then that of the image. So a process that finds the image finds its header.
    2. The file that the image has replaced is closed, and with it its lock is given up:
       until then no other program can write to a file that has no name any more (C65).
    3. The layers are closed, from the payload outwards, unless `UnfinishedImage.hand_over`
       has given them to another owner, such as a store.

    If the block, or one of these steps, has raised:

    1. New files without a name yet are removed. A block device stays as it is.
    2. The file that was to be replaced is closed; it is what it was.
    3. The layers are closed, from the payload outwards, handed over or not.

    Args:
        new: What it is to be.
        payload_size: Bytes, unless the image's size is given or fixed.

    Raises:
        ImageExistsError: There is a store, a LUKS volume or a qcow2 image already, or
            a file of that name appeared meanwhile.
        ForeignImageError: There is something else.
        DeviceFullError, DeviceBusyError, DeviceError: The image cannot be made.
        ArgumentError: The options do not fit the image.
    """
    with ExitStack() as failed:
        resources = failed.enter_context(ExitStack())
        with existing_images_refused(), ExitStack() as names:
            unfinished = UnfinishedImage(_make(new, payload_size, names, resources), resources)
            yield unfinished
        if unfinished.is_handed_over:
            failed.pop_all()  # `resources` itself stays as it is


@contextmanager
def existing_images_refused() -> Iterator[None]:
    """Turn the `FileExistsError` of a new file into an `ImageExistsError`."""
    try:
        yield
    except FileExistsError as error:
        raise ImageExistsError(
            f"{error.filename} exists", hint="overwrite it only if nothing in it is needed"
        ) from error


def _make(new: NewImage, payload_size: int, names: ExitStack, resources: ExitStack) -> Layers:
    """Put the layers on; `new_image` says what the two stacks are for."""
    place = place_of(new.path)
    file = _image_file(new, place, names, resources)
    layers = Layers(place, file)
    if new.image_format == QCOW2:
        from blobstore.image.qcow2 import make_disk  # noqa: PLC0415  not for raw images

        disk_size = new.size or (file.size if is_file(place) else 0)
        if new.own_luks or new.luks is None:
            disk_size = disk_size or payload_size + -payload_size % _SECTOR_SIZE
        disk = make_disk(
            resources,
            file,
            disk_size,
            new.secret if new.own_luks else None,
            options=new.qcow2_options,
            luks_options=new.luks,
        )
        layers = replace(layers, qcow2=disk)
    device = layers.device
    if new.luks is None or new.secret is None or new.own_luks:
        if not device.size:
            device.resize(payload_size)
        return layers
    with ExitStack() as formatting:
        header_device = None
        if new.header is not None:
            header_device = _header_device(new.header, new, names, resources, formatting)
        volume = luks.format(
            device,
            new.secret,
            new.luks,
            header=header_device,
            size=None if device.size else payload_size,
            overwrite=True,  # whether it may be is decided already
        )
        resources.enter_context(volume)
    header_path = None if new.header is None else place_of(new.header)
    return replace(layers, volume=volume, header_path=header_path)


def _header_device(
    path: AnyPath, new: NewImage, names: ExitStack, resources: ExitStack, formatting: ExitStack
) -> SharedDevice:
    """Return the device that gets the LUKS header: a new file, or what is written in place."""
    place = place_of(path)
    if isinstance(place, Path):
        file = names.enter_context(new_file(place, 0, overwrite=new.overwrite))
        resources.push(file)
        return file
    # Only as long as it is written: keys are changed later, while the image is open.
    device = formatting.enter_context(_remote_device(place, names, resources))
    if not new.overwrite:
        _require_blank(place, device)
    return device


def _image_file(
    new: NewImage, place: Place, names: ExitStack, resources: ExitStack
) -> SharedDevice:
    """Return the device that becomes the image: a new file, or what is written in place."""
    if isinstance(place, Path):
        return _local_device(new, place, names, resources)
    device = resources.enter_context(_remote_device(place, names, resources))
    if not new.overwrite:
        _require_blank(place, device)
    if device.size == 0:
        device.resize(new.size or 0)
    if (new.size or 0) > device.size:
        raise DeviceFullError(f"{place} has {device.size} bytes, not {new.size}")
    return device


def _remote_device(place: RemotePlace, names: ExitStack, resources: ExitStack) -> SharedDevice:
    """Open a device of another machine, or make it where that is possible (P15).

    What was made is removed if the image is not: when `resources` has closed it.
    """
    try:
        return open_place(place, read_only=False)
    except DeviceError as error:
        from blobstore.image.remote import rbd_disk  # noqa: PLC0415  few images are remote

        address, cause = place.address, error.__cause__
        if not (isinstance(address, rbd_disk.RbdAddress) and isinstance(cause, FileNotFoundError)):
            raise
    rbd_disk.create_image(address)

    is_made = False

    def made(kind: type[BaseException] | None, *_: object) -> None:
        nonlocal is_made
        is_made = kind is None

    def undo(kind: type[BaseException] | None, *_: object) -> None:
        # Not if closing fails, of an image that is whole: that may be much later.
        if kind is not None and not is_made:
            rbd_disk.remove_image(address)

    names.push(made)
    resources.push(undo)
    return open_place(place, read_only=False)


def _local_device(new: NewImage, path: Path, names: ExitStack, resources: ExitStack) -> FileDevice:
    size, existing = new.size or 0, None
    if path.exists():
        with ExitStack() as checked:
            existing = checked.enter_context(open_file(path, read_only=False))
            if not new.overwrite:
                _require_blank(path, existing)
                size = size or existing.size
            if path.is_block_device():
                if size > existing.size:
                    raise DeviceFullError(f"{path} has {existing.size} bytes, not {size}")
                resources.push(checked.pop_all())
                return existing
            names.push(checked.pop_all())
    # Replaces the old file in the end; until then that is open, and locked.
    device = names.enter_context(
        new_file(path, size, overwrite=existing is not None, existing=existing)
    )
    resources.push(device)
    return device


def _require_blank(path: Place, device: SharedDevice) -> None:
    if looks_like_container(device) or luks.is_luks(device) or image_format(device) != RAW:
        raise ImageExistsError(
            f"{path} holds a store, a LUKS volume or a qcow2 image already",
            hint="overwrite it only if nothing in it is needed: all keys in it are lost",
        )
    if not is_blank(device):
        raise ForeignImageError(
            f"{path} holds something else", hint="overwrite it only if nothing in it is needed"
        )
