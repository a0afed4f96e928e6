"""The disks of qcow2 images, and the encryption that qcow2 itself has.

`formats.qcow2` knows no cryptography: here its clusters get a cipher, whose key is in
the LUKS header that the image keeps for it. That header is like a detached one, with
the image in the place of a file; the payload it describes lies in clusters.

Source: QEMU's docs/interop/qcow2.txt, "Full disk encryption header pointer", and
spec/qcow2.md.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple

import luks
from blobstore.errors import StoreBusyError
from formats.devices.device import read_exactly
from formats.errors import ArgumentError, UnsupportedError
from formats.frozen import replace as replace_fields
from formats.qcow2.creation import Qcow2Options, create
from formats.qcow2.features import DIRTY, READABLE
from formats.qcow2.header import CRYPT_AES, CRYPT_LUKS, CRYPT_NONE, is_qcow2, read_header
from formats.qcow2.opening import luks_area, open_image
from luks.crypto.ciphers import sector_cipher
from luks.header.policy import check_openable
from luks.secret.randomness import source_or_system
from luks.secret.secrets import view_of

if TYPE_CHECKING:
    from contextlib import ExitStack

    from formats.devices.device import BlockDevice
    from formats.qcow2.content import ClusterCipher
    from formats.qcow2.device import Qcow2Device
    from formats.qcow2.opening import BackingOpener
    from formats.qcow2.snapshot_table import SnapshotKey

    AnySecret = bytes | luks.Secret | luks.VolumeKey

#: Bytes of the LUKS header that QEMU makes, and we: LUKS1 with keys of 64 bytes.
LUKS_HEADER_SIZE: Final = 2_068_480
#: QEMU's old encryption: AES-128, the key is the passphrase itself, cut or filled up.
_AES_CIPHER: Final = "aes-cbc-plain64"
_AES_KEY_SIZE: Final = 16
_SECTOR_SIZE: Final = 512
#: How often a header that changes is read again.
_ATTEMPTS: Final = 10


class Disk(NamedTuple):
    """The disk of a qcow2 image.

    Attributes:
        device: The disk.
        luks: Header of the image's own LUKS encryption, or None.
        cipher: Of the image's own encryption, by LUKS or not, or None.
    """

    device: Qcow2Device
    luks: luks.Header | None
    cipher: ClusterCipher | None


def is_disk_encrypted(file: BlockDevice, open_backing: BackingOpener | None = None) -> bool:
    """Say whether a qcow2 image is encrypted, by itself or by what its disk holds.

    Raises:
        FormatError, UnsupportedError, DeviceError: The image cannot be opened.
    """
    if read_header(file, READABLE).crypt_method != CRYPT_NONE:
        return True
    with open_image(file, open_backing=open_backing) as disk:
        return luks.is_luks(disk)


def open_disk(
    resources: ExitStack,
    file: BlockDevice,
    secret: AnySecret | None,
    *,
    read_only: bool = True,
    locked: bool = True,
    open_backing: BackingOpener | None = None,
    snapshot: str | SnapshotKey | None = None,
    limits: luks.KdfLimits | None = None,
) -> Disk:
    """Open the disk in a qcow2 image, and decrypt it if the image itself is encrypted.

    Args:
        resources: Closes what is opened.
        file: Holds the image; stays the caller's.
        secret: Opens the image's own encryption; not looked at where there is none.
        read_only: Permit no writing.
        locked: Whether others are kept from writing to the image.
        open_backing: Opens backing files; None refuses images that have one.
        snapshot: Name or ID of the internal snapshot to read, or a key that says which.
        limits: What one key derivation of LUKS may cost at most; None is the default.

    Raises:
        SecretRequiredError, NoKeyslotMatchError, PolicyError: As `luks.open`.
        DeviceBusyError: Another program may be in the middle of writing to it.
        SnapshotNotFoundError, AmbiguousSnapshotError, FormatError, UnsupportedError,
            DeviceError: As `formats.qcow2.opening.open_image`.
    """
    found = read_header(file, READABLE) if read_only else read_header(file)
    if found.incompatible & DIRTY and not (read_only or locked):
        # To open it for writing would remake its refcounts, under its writer's feet.
        raise luks.DeviceBusyError("the qcow2 image was not closed by its writer, or not yet")
    method = found.crypt_method
    header = cipher = None
    if method != CRYPT_NONE:
        if secret is None:
            raise luks.SecretRequiredError("the qcow2 image is encrypted: a passphrase is needed")
        if method == CRYPT_LUKS:
            header, cipher = _unlock(resources, luks_area(file), secret, limits or luks.KdfLimits())
        elif method == CRYPT_AES:
            cipher = _old_cipher(resources, secret)
    device = open_image(
        file, read_only=read_only, cipher=cipher, open_backing=open_backing, snapshot=snapshot
    )
    return Disk(resources.enter_context(device), header, cipher)


def make_disk(
    resources: ExitStack,
    file: BlockDevice,
    size: int,
    secret: bytes | luks.Secret | None,
    *,
    options: Qcow2Options | None = None,
    luks_options: luks.FormatOptions | None = None,
) -> Disk:
    """Make a qcow2 image and open its disk for writing.

    Args:
        resources: Closes what is opened.
        file: What it held is lost; stays the caller's.
        size: Bytes of the disk.
        secret: Encrypts the image by itself; None leaves that to others.
        options: Of `formats.qcow2.creation.create`.
        luks_options: How the LUKS1 header is made, if there is a secret.

    Raises:
        DeviceError: The image cannot be made.
        ArgumentError: There cannot be such an image.
    """
    options = options or Qcow2Options()
    if secret is None:
        create(file, size, options)
        return Disk(resources.enter_context(open_image(file, read_only=False)), None, None)
    luks_options = luks_options or luks.FormatOptions(version=1)
    if luks_options.data_offset is not None:
        raise ArgumentError("data_offset: a qcow2 image says itself where its payload is")
    create(file, size, replace(options, luks_header_size=LUKS_HEADER_SIZE))
    area = luks_area(file)
    with _volume_key(luks_options) as key:
        # The payload of this volume is nowhere: what counts is the header.
        luks.format(
            file,
            secret,
            replace_fields(luks_options, data_offset=LUKS_HEADER_SIZE, volume_key=key),
            header=area,
            overwrite=True,
        ).close()
        file.flush()
        header = luks.load_header(area)
        cipher = _cipher(resources, header, luks.verify_volume_key(header, key.view()))
    device = open_image(file, read_only=False, cipher=cipher)
    return Disk(resources.enter_context(device), header, cipher)


def _volume_key(options: luks.FormatOptions) -> luks.Secret:
    """Return a copy of the key that is given, or a new one."""
    if options.volume_key is not None:
        return luks.Secret(view_of(options.volume_key))
    return luks.Secret(source_or_system(options.random)(options.volume_key_size))


def make_copy(resources: ExitStack, file: BlockDevice, disk: Disk, source: BlockDevice) -> Disk:
    """Make a qcow2 image like another one, with an empty disk and the same keys.

    Args:
        resources: Closes what is opened.
        file: What it held is lost; stays the caller's.
        disk: Of the other image.
        source: Which that lies in.

    Raises:
        UnsupportedError: The other one has QEMU's old encryption.
        DeviceError: The image cannot be made, or the other one not read.
    """
    header = disk.device.header
    area = None if disk.luks is None else luks_area(source)
    options = Qcow2Options(
        version=header.version,
        cluster_size=header.cluster_size,
        refcount_bits=header.refcount_bits,
        luks_header_size=0 if area is None else area.size,
    )
    if area is None and disk.cipher is not None:
        raise UnsupportedError(
            "an image with QEMU's old AES encryption is not made", feature="writing AES"
        )
    create(file, disk.device.size, options)
    if area is not None:
        luks_area(file).write(0, _settled(area))
    device = open_image(file, read_only=False, cipher=disk.cipher)
    return Disk(resources.enter_context(device), disk.luks, disk.cipher)


def _settled(area: BlockDevice) -> bytes:
    """Return a LUKS header that holds still: keys can be changed while an image is copied."""
    content = read_exactly(area, 0, area.size)
    for _ in range(_ATTEMPTS):
        again = read_exactly(area, 0, area.size)
        if again == content:
            return content
        content = again
    raise StoreBusyError("the LUKS header is changed again and again", hint="try again")


def header_area(file: BlockDevice) -> BlockDevice | None:
    """Return where the LUKS header of an image's own encryption is, if it has that.

    Args:
        file: Of any format.

    Raises:
        UnsupportedError: It has QEMU's old encryption, which has no such header.
        FormatError, UnsupportedError, DeviceError: It is a qcow2 image, and unsound.
    """
    method = read_header(file).crypt_method if is_qcow2(file) else CRYPT_NONE
    if method == CRYPT_AES:
        raise UnsupportedError(
            "QEMU's old AES encryption has no LUKS header, and one passphrase for good",
            feature="keys of QEMU's old AES encryption",
            hint="convert the image",
        )
    return luks_area(file) if method == CRYPT_LUKS else None


def _unlock(
    resources: ExitStack, area: BlockDevice, secret: AnySecret, limits: luks.KdfLimits
) -> tuple[luks.Header, ClusterCipher]:
    header = luks.load_header(area)
    check_openable(header)
    if isinstance(secret, luks.VolumeKey):
        key = luks.verify_volume_key(header, secret.key.view(), limits=limits)
    else:
        key = luks.unlock(area, header, secret, limits=limits)
    return header, _cipher(resources, header, key)


def _cipher(resources: ExitStack, header: luks.Header, key: luks.VolumeKey) -> ClusterCipher:
    resources.callback(key.key.wipe)
    return sector_cipher(header.cipher or "", key.key.view(), _SECTOR_SIZE)


def _old_cipher(resources: ExitStack, secret: AnySecret) -> ClusterCipher:
    if isinstance(secret, luks.VolumeKey):
        raise luks.PolicyError("QEMU's old AES encryption has no volume key")
    key = luks.Secret(bytes(view_of(secret)[:_AES_KEY_SIZE]).ljust(_AES_KEY_SIZE, b"\0"))
    resources.callback(key.wipe)
    return sector_cipher(_AES_CIPHER, key.view(), _SECTOR_SIZE)
