"""What lies between a path and a payload: the image file, qcow2, and LUKS.

Opening peels the layers off; `blobstore.image.creation` puts them on. What the payload
holds, a container or a disk, is not looked at here.

place ── SharedDevice ─┬─ Qcow2Device ─┬─ luks.Volume ── payload
                       └───────────────┴──────────────── payload     (unencrypted)

A qcow2 image can be encrypted by itself, too; then LUKS lies beside the disk.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, TypeVar

import luks
from blobstore.container.scan import looks_like_container
from blobstore.errors import StoreBusyError
from blobstore.image.image import Image
from blobstore.image.markers import (
    MARK_SIZE,
    first_bytes,
    require_not_being_encrypted,
    require_unmarked,
)
from blobstore.image.place import (
    for_luks,
    is_same_place,
    keeps_out_writers,
    open_place,
    owner_named,
    place_of,
)
from formats.errors import ArgumentError, SnapshotNotFoundError

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from blobstore.image.moving import MovingPayload
    from blobstore.image.place import Place
    from blobstore.image.qcow2 import Disk
    from formats.devices.device import BlockDevice, SharedDevice
    from formats.qcow2.creation import Qcow2Options
    from formats.qcow2.device import Qcow2Device
    from formats.qcow2.opening import BackingOpener
    from formats.qcow2.snapshot_table import SnapshotKey

    AnyPath = str | os.PathLike[str]
    AnySecret = bytes | luks.Secret | luks.VolumeKey

#: What an image file can be.
RAW: Final = "raw"
QCOW2: Final = "qcow2"

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Layers:
    """The layers of an image that is open; the function that opened them closes them all.

    Attributes:
        path: Place of the image.
        file: What it lies on: a file, a block device, or a device of another machine.
        qcow2: The disk in it, if it is a qcow2 image.
        volume: The unlocked LUKS volume in the file or disk, or None.
        header_path: Place of its detached LUKS header, or None.
        snapshot: Which snapshot the disk is; None for its active state.
        moving: The payload that is being re-encrypted, encrypted or decrypted by this process,
            in place of ``volume``; or None.
    """

    path: Place
    file: SharedDevice
    qcow2: Disk | None = None
    volume: luks.Volume | None = None
    header_path: Place | None = None
    snapshot: str | SnapshotKey | None = None
    moving: MovingPayload | None = None

    @property
    def disk(self) -> Qcow2Device | None:
        """The disk in the qcow2 image, if it is one."""
        return None if self.qcow2 is None else self.qcow2.device

    @property
    def own_luks(self) -> luks.Header | None:
        """Header of the qcow2 image's own encryption, or None."""
        return None if self.qcow2 is None else self.qcow2.luks

    @property
    def device(self) -> SharedDevice | Qcow2Device:
        """What the payload, or the volume with it, lies on."""
        return self.disk or self.file

    @property
    def payload(self) -> BlockDevice:
        """What is stored."""
        if self.moving is not None:
            return self.moving.payload
        return self.device if self.volume is None else self.volume

    @property
    def encrypted(self) -> bool:
        """Whether the payload is; one that is being moved counts as encrypted."""
        return self.volume is not None or self.moving is not None or self.encrypts_itself

    @property
    def encrypts_itself(self) -> bool:
        """Whether it is a qcow2 image that is encrypted as a whole."""
        return self.disk is not None and self.disk.header.crypt_method != 0

    def image(self, header: luks.Header | None = None) -> Image:
        """Return a description of the layers.

        Args:
            header: The LUKS header of an encrypted image, if it is known as it is now.
        """
        known = self.own_luks if self.volume is None else self.volume.header
        within = self.volume.header if self.volume is not None else header if self.moving else None
        return Image(
            self.path,
            self.device.size,
            format=RAW if self.disk is None else QCOW2,
            luks=header or known,
            luks_beside=self.own_luks is not None,
            cluster_size=None if self.disk is None else self.disk.header.cluster_size,
            header_path=self.header_path,
            payload_offset=0 if within is None else within.data_offset,
        )

    def follow(self) -> None:
        """Take the layers as they are now, if another program wrote to the image.

        Raises:
            FormatError, DeviceError: The qcow2 image is not sound any more.
            SnapshotNotFoundError: The snapshot was deleted, and its clusters may be in use.
            TruncatedImageError: The image ends before the payload.
        """
        self.file.measure()
        if self.disk is not None and self.snapshot is not None:
            from formats.qcow2.snapshot_table import find_snapshot  # noqa: PLC0415  few are read
            from formats.qcow2.snapshots import list_snapshots  # noqa: PLC0415  likewise

            find_snapshot(list_snapshots(self.file), self.snapshot)  # it never changes
        elif self.disk is not None:
            self.disk.reload()
        if self.volume is not None:
            self.volume.follow_image()


class LayersLock:
    """The lock of an image file, and the sizes that change while others hold it."""

    def __init__(self, layers: Layers) -> None:
        self._layers = layers

    def acquire(self, *, fence: bool = False) -> None:
        """Take it, and the layers as they are now; or raise, and do not hold it.

        Args:
            fence: Shut out the process that has it, if one does (P51).

        Raises:
            UnsupportedError: It is to be shut out, and this place cannot do that.
            DeviceBusyError: Another process has it.
            ImageReplacedError: Another file has the image's name by now.
            MovedImageError: It was handed over to a copy meanwhile.
            PolicyError: It is encrypted in another way by now.
            FormatError, DeviceError: The image is not sound any more.
        """
        from blobstore.image.handover import (  # noqa: PLC0415  only when a store is taken over
            require_closed,
            require_same_encryption,
        )

        try:
            with owner_named(self._layers.path):
                if fence:
                    self._layers.file.fence()
                else:
                    self._layers.file.lock()
            require_unmarked(first_bytes(self._layers.file, MARK_SIZE))
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
        from formats.devices.steady import steadily  # noqa: PLC0415  only without the lock

        def follow_and_attempt() -> _Result:
            self._layers.follow()
            return attempt()

        return steadily(self._layers.file, follow_and_attempt, settled=settled, busy=StoreBusyError)


def qcow2_options(cluster_size: int | None) -> Qcow2Options | None:
    """Return the options of a new qcow2 image with clusters of so many bytes.

    Args:
        cluster_size: A power of two from 512 to 2 MiB; None is the size that QEMU takes,
            for which no options are needed.

    Raises:
        ValueError: There are no such clusters.
    """
    if cluster_size is None:
        return None
    from formats.qcow2.creation import Qcow2Options  # noqa: PLC0415  only new qcow2 images have any

    return Qcow2Options(cluster_size=cluster_size)


def image_format(file: BlockDevice) -> str:
    """Say what an image file looks like: `RAW` or `QCOW2`.

    A program that may write to a raw image can make it look like any other.

    Raises:
        DeviceError: It cannot be read.
        UnfinishedCopyError, MovedImageError: It must not be opened.
    """
    first = first_bytes(file, MARK_SIZE)
    require_unmarked(first)
    return QCOW2 if first.startswith(b"QFI\xfb") else RAW


def require_image_format(name: str) -> None:
    """Check that there is such a format of images.

    Raises:
        ArgumentError: There is not.
    """
    if name not in (RAW, QCOW2):
        raise ArgumentError(f"{name!r} is not a format of images: {RAW} or {QCOW2}")


def is_qcow2(file: BlockDevice, known: str | None) -> bool:
    """Say whether an image file is one of qcow2: ``known`` is its format, or None to look.

    Raises:
        DeviceError: It cannot be read.
        ValueError: There is no such format.
    """
    if known is None:
        return image_format(file) == QCOW2
    require_image_format(known)
    require_unmarked(first_bytes(file, MARK_SIZE))
    return known == QCOW2


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
            from blobstore.image.qcow2 import is_disk_encrypted  # noqa: PLC0415  not for raw images
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
    limits: luks.KdfLimits | None = None,
    resume: bool = False,
) -> Layers:
    """Open an image down to its payload.

    Args:
        resources: Closes what is opened.
        path: Place of the image.
        secret: Opens what is encrypted.
        header: Place of the detached LUKS header.
        read_only: Permit no writing.
        lock: Keep other processes out. Otherwise what is found is what the image was at
            one moment (C66).
        image_format: `RAW` or `QCOW2`; None finds out. A program that may write to a raw
            image can make it look like any other.
        encrypted: Whether there is a LUKS volume in the file or disk; likewise.
        open_backing: Opens backing files of a qcow2 image; None refuses them.
        snapshot: Which internal snapshot to read, of a qcow2 image.
        limits: What one key derivation of LUKS may cost at most; None is the default.
        resume: Continue a re-encryption, if one is in progress; its payload is `Layers.moving`.

    Raises:
        SecretRequiredError: It is encrypted, and there is no secret.
        NoKeyslotMatchError, PolicyError, LuksHeaderError, UnsupportedError: As
            `luks.open`.
        SnapshotNotFoundError, FormatError: As `formats.qcow2.opening.open_image`.
        DeviceBusyError, ReadOnlyError, DeviceError: As `formats.devices.file.FileDevice`.
        StoreBusyError: It changes too much to be read without the lock.
    """
    place = place_of(path)
    file = resources.enter_context(open_place(place, read_only=read_only, lock=lock))
    lock = lock and keeps_out_writers(place, read_only=read_only)
    peeled = resources.enter_context(ExitStack())

    def peel() -> Layers:
        peeled.close()  # what an earlier attempt has opened
        with ExitStack() as opened:
            layers = _open_layers(
                opened,
                file,
                place,
                secret,
                header=header,
                locked=lock,
                image_format=image_format,
                encrypted=encrypted,
                open_backing=open_backing,
                snapshot=snapshot,
                limits=limits or luks.KdfLimits(),
                resume=resume,
            )
            peeled.push(opened.pop_all())
            return layers

    if lock:
        return peel()
    from formats.devices.steady import steadily  # noqa: PLC0415  only without the lock

    # Tables that do not belong together lead anywhere, even to what looks like no LUKS.
    return steadily(file, peel, settled=lambda layers: layers.qcow2 is None, busy=StoreBusyError)


def _open_layers(
    resources: ExitStack,
    file: SharedDevice,
    path: Place,
    secret: AnySecret | None,
    *,
    header: AnyPath | None,
    locked: bool,
    image_format: str | None,
    encrypted: bool | None,
    open_backing: BackingOpener | None,
    snapshot: str | SnapshotKey | None,
    limits: luks.KdfLimits,
    resume: bool,
) -> Layers:
    read_only = file.read_only
    layers = Layers(path, file)
    if is_qcow2(file, image_format):
        from blobstore.image.qcow2 import open_disk  # noqa: PLC0415  not for raw images

        disk = open_disk(
            resources,
            file,
            secret,
            read_only=read_only,
            locked=locked,
            open_backing=open_backing,
            snapshot=snapshot,
            limits=limits,
        )
        layers = replace(layers, qcow2=disk, snapshot=snapshot)
    elif snapshot is not None:
        from blobstore.image.snapshot_devices import SnapshotDevice  # noqa: PLC0415  few are read

        if not isinstance(file, SnapshotDevice):
            raise SnapshotNotFoundError(f"{path} is not a qcow2 image and has no snapshots")
        then = resources.enter_context(file.at_snapshot(snapshot))
        layers = replace(layers, file=then, snapshot=snapshot)
    device = layers.device
    if encrypted is None:
        clear = header is None and (looks_like_container(device) or not luks.is_luks(device))
        encrypted = not clear
    if not encrypted:
        require_not_being_encrypted(device)
        return layers
    if secret is None:
        raise luks.SecretRequiredError(f"{path} is encrypted: a passphrase is needed")
    if resume:
        from blobstore.image.moving import resumed  # noqa: PLC0415  hardly ever wanted

        header_path = None if header is None else place_of(header)
        moving = resumed(resources, device, secret, header_path, limits)
        if moving is not None:
            return replace(layers, moving=moving, header_path=header_path)
    if header is None:
        volume = _unlock(device, secret, None, read_only=read_only, limits=limits)
        resources.enter_context(volume)
        return replace(layers, volume=volume)
    header_path = place_of(header)
    if is_same_place(header_path, path):
        raise ArgumentError(f"{path} cannot be both the image and its LUKS header [L52]")
    with for_luks(header_path) as found:
        volume = _unlock(device, secret, found, read_only=read_only, limits=limits)
    resources.enter_context(volume)
    return replace(layers, volume=volume, header_path=header_path)


def _unlock(
    device: BlockDevice,
    secret: AnySecret,
    header: luks.Place | None,
    *,
    read_only: bool,
    limits: luks.KdfLimits,
) -> luks.Volume:
    """Open a volume; say so if a part of it is in the clear because that is being changed (O208).

    Raises:
        UnfinishedReencryptionError: It is being encrypted or decrypted.
        StorageError: As `luks.open`.
    """
    try:
        return luks.open(device, secret, header=header, read_only=read_only, limits=limits)
    except luks.PolicyError as error:
        status = luks.reencryption_status(device, header=header)
        if status is None or status.mode == "reencrypt":
            raise
        raise luks.UnfinishedReencryptionError(
            f"the image is in the middle of being {status.mode}ed in place [O208]",
            hint=f"resume it: blobstore {status.mode} --resume",
        ) from error
