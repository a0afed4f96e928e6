"""What lies between a path and a payload: the image file, qcow2, and LUKS.

Opening peels the layers off, making puts them on; what the payload holds, a
container or a disk, is not looked at here.

path ── FileDevice ─┬─ Qcow2Device ─┬─ luks.Volume ── payload
                    └───────────────┴──────────────── payload     (unencrypted)

A qcow2 image can be encrypted by itself, too; then LUKS lies beside the disk.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import luks
from blobstore.container.scan import looks_like_container
from blobstore.errors import ImageExistsError, StoreBusyError
from blobstore.image.image import Image
from formats.devices.device import is_blank
from formats.devices.file import FileDevice
from formats.errors import ArgumentError, DeviceFullError, ForeignImageError, SnapshotNotFoundError

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator

    from blobstore.image.qcow2 import Disk
    from formats.devices.device import BlockDevice
    from formats.qcow2.creation import Options
    from formats.qcow2.device import Qcow2Device
    from formats.qcow2.opening import BackingOpener
    from formats.qcow2.snapshot_table import SnapshotKey

    AnyPath = str | os.PathLike[str]
    AnySecret = bytes | luks.Secret | luks.VolumeKey

#: What an image file can be.
RAW: Final = "raw"
QCOW2: Final = "qcow2"
_SECTOR_SIZE: Final = 512

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Layers:
    """The layers of an image that is open; all of them are closed by who opened them.

    Attributes:
        path: Of the image.
        file: The image file or block device.
        qcow2: The disk in it, if it is a qcow2 image.
        volume: The unlocked LUKS volume in the file or disk, or None.
        header_path: File of its detached LUKS header, or None.
    """

    path: Path
    file: FileDevice
    qcow2: Disk | None = None
    volume: luks.Volume | None = None
    header_path: Path | None = None

    @property
    def disk(self) -> Qcow2Device | None:
        """The disk in the qcow2 image, if it is one."""
        return None if self.qcow2 is None else self.qcow2.device

    @property
    def own_luks(self) -> luks.Header | None:
        """Header of the qcow2 image's own encryption, or None."""
        return None if self.qcow2 is None else self.qcow2.luks

    @property
    def device(self) -> FileDevice | Qcow2Device:
        """What the payload, or the volume with it, lies on."""
        return self.disk or self.file

    @property
    def payload(self) -> BlockDevice:
        """What is stored."""
        return self.device if self.volume is None else self.volume

    @property
    def encrypted(self) -> bool:
        """Whether the payload is."""
        return self.volume is not None or self.encrypts_itself

    @property
    def encrypts_itself(self) -> bool:
        """Whether it is a qcow2 image that is encrypted as a whole."""
        return self.disk is not None and self.disk.header.crypt_method != 0

    def image(self) -> Image:
        """Return what the layers are, for those who describe the image."""
        header = self.own_luks if self.volume is None else self.volume.header
        return Image(
            self.path,
            self.device.size,
            format=RAW if self.disk is None else QCOW2,
            luks=header,
            luks_beside=self.own_luks is not None,
            cluster_size=None if self.disk is None else self.disk.header.cluster_size,
            header_path=self.header_path,
            payload_offset=0 if self.volume is None else self.volume.header.data_offset,
        )

    def follow(self) -> None:
        """Take the layers as they are now, if somebody else wrote to the image.

        Raises:
            FormatError, DeviceError: The qcow2 image is not sound any more.
            TruncatedImageError: The image ends before the payload.
        """
        self.file.measure()
        if self.disk is not None:
            self.disk.reload()
        if self.volume is not None:
            self.volume.follow_image()


class LayersLock:
    """The lock of an image file, and the sizes that change while others hold it."""

    def __init__(self, layers: Layers) -> None:
        self._layers = layers

    def acquire(self) -> None:
        """Take it, and the layers as they are now; or raise, and do not hold it.

        Raises:
            DeviceBusyError: Another process has it.
            ImageReplacedError: Another file has the image's name by now.
            PolicyError: It is encrypted in another way by now.
            FormatError, DeviceError: The image is not sound any more.
        """
        from blobstore.image.handover import (  # noqa: PLC0415  only a take-over needs it
            require_closed,
            require_same_encryption,
        )

        self._layers.file.lock()
        try:
            self._layers.follow()
            require_closed(self._layers)
            require_same_encryption(self._layers)
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Give it up."""
        self._layers.file.unlock()

    def read_anew(
        self, attempt: Callable[[], _Result], settled: Callable[[_Result], bool]
    ) -> _Result:
        """Return what ``attempt`` reads, though others may be writing (`formats.devices.steady`).

        Raises:
            StorageError: As ``attempt``; `StoreBusyError` if the image does not hold still.
        """
        from formats.devices.steady import steadily  # noqa: PLC0415  only reading without the lock needs it

        def follow_and_attempt() -> _Result:
            self._layers.follow()
            return attempt()

        return steadily(self._layers.file, follow_and_attempt, settled=settled, busy=StoreBusyError)


def open_place(path: AnyPath, *, read_only: bool = True, lock: bool = True) -> FileDevice:
    """Open what a path names: nothing else in `blobstore` does.

    Args:
        path: Image file or block device, or any other file.
        read_only: Permit no writing.
        lock: Keep other processes out until it is closed.

    Raises:
        DeviceBusyError, ImageReplacedError, ReadOnlyError, DeviceError: As
            `formats.devices.file.FileDevice`.
    """
    return FileDevice(path, read_only=read_only, lock=lock)


def qcow2_options(cluster_size: int | None) -> Options | None:
    """Return the options of a new qcow2 image with clusters of so many bytes.

    Args:
        cluster_size: A power of two from 512 to 2 MiB; None is the size that QEMU takes,
            for which no options are needed.

    Raises:
        ValueError: There are no such clusters.
    """
    if cluster_size is None:
        return None
    from formats.qcow2.creation import Options  # noqa: PLC0415  only new qcow2 images have any

    return Options(cluster_size=cluster_size)


def image_format(file: BlockDevice) -> str:
    """Say what an image file looks like: `RAW` or `QCOW2`.

    Whoever may have written to a raw image can make it look like any other.

    Raises:
        DeviceError: It cannot be read.
    """
    magic = bytearray(min(4, file.size))
    file.read_into(0, magic)
    return QCOW2 if magic == b"QFI\xfb" else RAW


def is_qcow2(file: BlockDevice, known: str | None) -> bool:
    """Say whether an image file is one of qcow2: ``known`` is its format, or None to look.

    Raises:
        DeviceError: It cannot be read.
        ValueError: There is no such format.
    """
    if known not in (None, RAW, QCOW2):
        raise ArgumentError(f"{known!r} is no format of images: {RAW} or {QCOW2}")
    return (known or image_format(file)) == QCOW2


def is_encrypted(
    path: AnyPath,
    *,
    image_format: str | None = None,
    open_backing: BackingOpener | None = None,
) -> bool:
    """Say whether an image is encrypted, with its LUKS header attached.

    Args:
        path: Of the image.
        image_format: What it is; None looks.
        open_backing: As `open_layers`.

    Raises:
        DeviceError, FormatError, UnsupportedError: It cannot be read.
    """
    with open_place(path, lock=False) as file:
        if is_qcow2(file, image_format):
            from blobstore.image.qcow2 import is_disk_encrypted  # noqa: PLC0415  raw images need none of it
            from formats.devices.steady import steadily  # noqa: PLC0415  likewise

            return steadily(
                file, lambda: is_disk_encrypted(file, open_backing), settled=lambda _: False
            )
        return not looks_like_container(file) and luks.is_luks(file)


def open_layers(
    resources: ExitStack,
    path: AnyPath,
    secret: AnySecret | None = None,
    *,
    header: AnyPath | None = None,
    read_only: bool = True,
    lock: bool = True,
    image_format: str | None = None,
    encrypted: bool | None = None,
    open_backing: BackingOpener | None = None,
    snapshot: str | SnapshotKey | None = None,
) -> Layers:
    """Open an image down to its payload.

    Args:
        resources: Closes what is opened.
        path: Image file or block device.
        secret: Opens what is encrypted.
        header: File of the detached LUKS header.
        read_only: Permit no writing.
        lock: Keep other processes out. Otherwise what is found is what the image was at
            one moment (C66).
        image_format: `RAW` or `QCOW2`; None finds out. Whoever may have written to a raw
            image can make it look like any other.
        encrypted: Whether there is a LUKS volume in the file or disk; likewise.
        open_backing: Opens backing files of a qcow2 image; None refuses them.
        snapshot: Which internal snapshot to read, of a qcow2 image.

    Raises:
        SecretRequiredError: It is encrypted, and there is no secret.
        NoKeyslotMatchError, PolicyError, LuksHeaderError, UnsupportedError: As
            `luks.open`.
        SnapshotNotFoundError, FormatError: As `formats.qcow2.opening.open_image`.
        DeviceBusyError, ReadOnlyError, DeviceError: As `formats.devices.file.FileDevice`.
        StoreBusyError: It changes too much to be read without the lock.
    """
    file = resources.enter_context(open_place(path, read_only=read_only, lock=lock))

    peeled = resources.enter_context(ExitStack())

    def peel() -> Layers:
        peeled.close()  # what an earlier attempt has opened
        with ExitStack() as opened:
            layers = _open_layers(
                opened,
                file,
                Path(path),
                secret,
                header=header,
                locked=lock,
                image_format=image_format,
                encrypted=encrypted,
                open_backing=open_backing,
                snapshot=snapshot,
            )
            peeled.push(opened.pop_all())
            return layers

    if lock:
        return peel()
    from formats.devices.steady import steadily  # noqa: PLC0415  only reading without the lock needs it

    # Tables that do not belong together lead anywhere, even to what looks like no LUKS.
    return steadily(file, peel, settled=lambda layers: layers.qcow2 is None, busy=StoreBusyError)


def _open_layers(
    resources: ExitStack,
    file: FileDevice,
    path: Path,
    secret: AnySecret | None,
    *,
    header: AnyPath | None,
    locked: bool,
    image_format: str | None,
    encrypted: bool | None,
    open_backing: BackingOpener | None,
    snapshot: str | SnapshotKey | None,
) -> Layers:
    read_only = file.read_only
    layers = Layers(path, file)
    if is_qcow2(file, image_format):
        from blobstore.image.qcow2 import open_disk  # noqa: PLC0415  raw images need none of it

        disk = open_disk(
            resources,
            file,
            secret,
            read_only=read_only,
            locked=locked,
            open_backing=open_backing,
            snapshot=snapshot,
        )
        layers = replace(layers, qcow2=disk)
    elif snapshot is not None:
        raise SnapshotNotFoundError(f"{path} is no qcow2 image and has no snapshots")
    device = layers.device
    if encrypted is None:
        clear = header is None and (looks_like_container(device) or not luks.is_luks(device))
        encrypted = not clear
    if not encrypted:
        return layers
    if secret is None:
        raise luks.SecretRequiredError(f"{path} is encrypted: a passphrase is needed")
    volume = luks.open(device, secret, header=header, read_only=read_only)
    resources.enter_context(volume)
    return replace(layers, volume=volume, header_path=None if header is None else Path(header))


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
    image_format: str = RAW,
    qcow2_options: Options | None = None,
    own_luks: bool = False,
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
        size: Bytes of the whole image, or of the disk in it. A device or a blank file
            keeps its size.
        header: File that gets the LUKS header, detached.
        overwrite: Destroy what is there.
        image_format: `RAW` or `QCOW2`.
        qcow2_options: Of `formats.qcow2.creation.create`.
        own_luks: Let the qcow2 image be encrypted by itself, not what is in its disk.
        luks_options: Further ones of `luks.format`.

    Raises:
        ImageExistsError: There is a store, or a LUKS volume, already.
        ForeignImageError: There is something else.
        FileExistsError: A file of that name appeared meanwhile; or the header's.
        DeviceFullError, DeviceBusyError, DeviceError: The image cannot be made.
        ValueError: The options do not fit together.
    """
    from formats.devices.identity import is_same_file  # noqa: PLC0415  only new images need it
    from formats.devices.new_file import new_file  # noqa: PLC0415  likewise

    if header is not None and is_same_file(header, path):
        raise ArgumentError(f"{path} cannot be both the image and its LUKS header")
    file = _target(names, resources, path, size, overwrite=overwrite)
    layers = Layers(Path(path), file)
    if image_format == QCOW2:
        from blobstore.image.qcow2 import make_disk  # noqa: PLC0415  raw images need none of it

        disk_size = size or (0 if file.path.is_block_device() else file.size)
        if own_luks or secret is None:
            disk_size = disk_size or payload_size + -payload_size % _SECTOR_SIZE
        disk = make_disk(
            resources,
            file,
            disk_size,
            secret if own_luks else None,
            options=qcow2_options,
            luks_options=luks_options,
        )
        layers = replace(layers, qcow2=disk)
    device = layers.device
    if secret is None or own_luks:
        if not device.size:
            device.resize(payload_size)
        return layers
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
    return replace(layers, volume=volume, header_path=None if header is None else Path(header))


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
    from formats.devices.new_file import new_file  # noqa: PLC0415  only new images need it

    keep_size = 0
    existing = None
    replaces = Path(path).exists()
    if replaces:
        existing = open_place(path, read_only=False)
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
    device = names.enter_context(
        new_file(path, size or keep_size, overwrite=replaces, existing=existing)
    )
    resources.push(device)
    return device


def _require_blank(path: AnyPath, device: FileDevice) -> None:
    if looks_like_container(device) or luks.is_luks(device) or image_format(device) != RAW:
        raise ImageExistsError(
            f"{path} holds a store, a LUKS volume or a qcow2 image already",
            hint="overwrite it only if nothing in it is needed: all keys in it are lost",
        )
    if not is_blank(device):
        raise ForeignImageError(
            f"{path} holds something else", hint="overwrite it only if nothing in it is needed"
        )
