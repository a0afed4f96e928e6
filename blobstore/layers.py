"""What lies between a path and a payload: the image file, and LUKS inside it.

Opening peels the layers off, making puts them on; what the payload holds, a
container or a disk, is not looked at here.

path ── FileDevice ── luks.Volume ── payload
                 └────────────────── payload     (unencrypted)
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import luks
from blobstore.errors import ImageExistsError
from blobstore.image import Image
from blobstore.scan import looks_like_container
from formats.device import is_blank
from formats.errors import DeviceFullError, ForeignImageError
from formats.file import FileDevice, new_file

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator
    from contextlib import ExitStack

    from formats.device import BlockDevice

    AnyPath = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class Layers:
    """The layers of an image that is open; all of them are closed by who opened them.

    Attributes:
        path: Of the image.
        device: The image file or block device.
        volume: The unlocked LUKS volume in it, or None.
        header_path: File of its detached LUKS header, or None.
    """

    path: Path
    device: FileDevice
    volume: luks.Volume | None = None
    header_path: Path | None = None

    @property
    def payload(self) -> BlockDevice:
        """What is stored: the volume, or the whole image if that is in the clear."""
        return self.device if self.volume is None else self.volume

    def image(self) -> Image:
        """Return what the layers are, for those who describe the image."""
        if self.volume is None:
            return Image(self.path, self.device.size)
        header = self.volume.header
        return Image(
            self.path,
            self.device.size,
            luks=header,
            header_path=self.header_path,
            payload_offset=header.data_offset,
        )


class LayersLock:
    """The lock of an image file, and the sizes that change while others hold it."""

    def __init__(self, layers: Layers) -> None:
        self._layers = layers

    def acquire(self) -> None:
        """Take it, and the sizes that the layers have now; or raise `DeviceBusyError`."""
        self._layers.device.lock()
        if self._layers.volume:
            self._layers.volume.follow_image()

    def release(self) -> None:
        """Give it up."""
        self._layers.device.unlock()


def is_encrypted(path: AnyPath) -> bool:
    """Say whether an image is a LUKS volume with its header attached.

    Raises:
        DeviceError: It cannot be read.
    """
    with FileDevice(path, lock=False) as device:
        return not looks_like_container(device) and luks.is_luks(device)


def open_layers(
    resources: ExitStack,
    path: AnyPath,
    secret: bytes | luks.Secret | luks.VolumeKey | None = None,
    *,
    header: AnyPath | None = None,
    read_only: bool = True,
    lock: bool = True,
    encrypted: bool | None = None,
) -> Layers:
    """Open an image down to its payload.

    Args:
        resources: Closes what is opened.
        path: Image file or block device.
        secret: Opens the LUKS volume, if it is one.
        header: File of the detached LUKS header.
        read_only: Permit no writing.
        lock: Keep other processes out.
        encrypted: Whether there is a LUKS volume; None finds out. Whoever may
            have written to an image in the clear can make it look like one.

    Raises:
        SecretRequiredError: It is encrypted, and there is no secret.
        NoKeyslotMatchError, PolicyError, LuksHeaderError, UnsupportedError: As
            `luks.open`.
        DeviceBusyError, ReadOnlyError, DeviceError: As `formats.file.FileDevice`.
    """
    device = resources.enter_context(FileDevice(path, read_only=read_only, lock=lock))
    if encrypted is None:
        clear = header is None and (looks_like_container(device) or not luks.is_luks(device))
        encrypted = not clear
    if not encrypted:
        return Layers(Path(path), device)
    if secret is None:
        raise luks.SecretRequiredError(f"{path} is encrypted: a passphrase is needed")
    volume = luks.open(device, secret, header=header, read_only=read_only)
    resources.enter_context(volume)
    return Layers(Path(path), device, volume, None if header is None else Path(header))


def make_layers(
    names: ExitStack,
    resources: ExitStack,
    path: AnyPath,
    payload_size: int,
    secret: bytes | luks.Secret | None = None,
    *,
    size: int | None = None,
    header: AnyPath | None = None,
    overwrite: bool = False,
    luks_options: dict[str, Any] | None = None,
) -> Layers:
    """Make a new image; its payload is not written.

    Args:
        names: At its end new files take their names, the image last.
        resources: Closes what is opened.
        path: Image file or block device. An existing file is replaced if it is
            blank, or with ``overwrite``.
        payload_size: Bytes, unless the image's size is given or fixed.
        secret: Passphrase or content of a key file; None makes an image in the
            clear.
        size: Bytes of the whole image. A device or a blank file keeps its size.
        header: File that gets the LUKS header, detached.
        overwrite: Destroy what is there.
        luks_options: Further ones of `luks.format`.

    Raises:
        ImageExistsError: There is a store, or a LUKS volume, already.
        ForeignImageError: There is something else.
        FileExistsError: A file of that name appeared meanwhile; or the header's.
        DeviceFullError, DeviceBusyError, DeviceError: The image cannot be made.
        ValueError: The options do not fit together.
    """
    device = _target(names, resources, path, size, overwrite=overwrite)
    if secret is None:
        if not device.size:
            device.resize(payload_size)
        return Layers(Path(path), device)
    header_device = None
    if header is not None:
        header_device = names.enter_context(new_file(header, 0, overwrite=overwrite))
        resources.push(header_device)
    volume = luks.format(
        device,
        secret,
        header=header_device,
        size=None if device.size else payload_size,
        overwrite=True,  # whether it may be is decided above
        **(luks_options or {}),
    )
    resources.enter_context(volume)
    return Layers(Path(path), device, volume, None if header is None else Path(header))


@contextmanager
def existing_images_refused() -> Iterator[None]:
    """Turn the `FileExistsError` of a new file into an `ImageExistsError`."""
    try:
        yield
    except FileExistsError as error:
        raise ImageExistsError(
            f"{error.filename} exists", hint="overwrite it only if nothing in it is needed"
        ) from error


def _target(
    names: ExitStack, resources: ExitStack, path: AnyPath, size: int | None, *, overwrite: bool
) -> FileDevice:
    """Return the device that becomes the image: a new file, or a block device."""
    keep_size = 0
    replaces = Path(path).exists()
    if replaces:
        existing = FileDevice(path, read_only=False)
        names.push(existing)
        if not overwrite:
            _require_blank(path, existing)
            keep_size = existing.size
        if Path(path).is_block_device():
            names.pop_all()
            resources.push(existing)
            if size is not None and size > existing.size:
                raise DeviceFullError(f"{path} has {existing.size} bytes, not {size}")
            return existing
    # Replaces the old file in the end; until then that is open, and locked.
    device = names.enter_context(new_file(path, size or keep_size, overwrite=replaces))
    resources.push(device)
    return device


def _require_blank(path: AnyPath, device: FileDevice) -> None:
    if looks_like_container(device) or luks.is_luks(device):
        raise ImageExistsError(
            f"{path} holds a store or a LUKS volume already",
            hint="overwrite it only if nothing in it is needed: all keys in it are lost",
        )
    if not is_blank(device):
        raise ForeignImageError(
            f"{path} holds something else", hint="overwrite it only if nothing in it is needed"
        )
