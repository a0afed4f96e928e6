"""The disks of small qcow2 images, read and written whole: flashes of virtual machines.

Distributions ship the templates of such flashes as qcow2 (F24, F25 of ``spec/foreign-state.md``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from blobstore.image.layers import QCOW2, image_format
from blobstore.image.place import open_place
from formats.devices.device import MemoryDevice, read_exactly
from formats.errors import FormatError, UnsupportedError
from formats.qcow2.creation import Qcow2Options, create
from formats.qcow2.features import READABLE
from formats.qcow2.header import CRYPT_NONE, read_header
from formats.qcow2.opening import open_image
from formats.state.padded_flash import MAX_FLASH_SIZE

if TYPE_CHECKING:
    import os

    from formats.devices.device import BlockDevice

#: Clusters as small as those of Fedora's templates: most of a flash is unused.
_CLUSTER_SIZE: Final = 4096


def read_disk(source: str | os.PathLike[str] | bytes) -> bytes:
    """Return the disk in a qcow2 image, or all bytes of any other file.

    Args:
        source: A path, or the bytes of the file themselves.

    Raises:
        FormatError: The image is damaged, or its disk is too large (F24).
        UnsupportedError: The image is encrypted, has a backing file or needs a feature
            that is not implemented.
        DeviceBusyError: Another process writes to the file.
        DeviceError: It cannot be read.
    """
    if isinstance(source, bytes):
        return _content(MemoryDevice(source))
    with open_place(source) as file:
        return _content(file)


def _content(file: BlockDevice) -> bytes:
    if image_format(file) != QCOW2:
        return read_exactly(file, 0, file.size)
    header = read_header(file, READABLE)
    if header.crypt_method != CRYPT_NONE:
        raise UnsupportedError(
            "the qcow2 image with the flash is encrypted [F24]",
            feature="encrypted flash in qcow2",
            hint="decrypt it with: blobstore convert --to raw",
        )
    if header.size > MAX_FLASH_SIZE:
        raise FormatError(
            f"the disk in the qcow2 image has {header.size} bytes; "
            f"a flash has at most {MAX_FLASH_SIZE}",
            rule="F24",
        )
    with open_image(file) as disk:
        return disk.read(0, disk.size)


def qcow2_with(content: bytes) -> bytes:
    """Return the bytes of a qcow2 image whose disk holds these bytes (F25).

    Args:
        content: A multiple of 512 bytes.
    """
    file = MemoryDevice(0)
    create(file, len(content), Qcow2Options(cluster_size=_CLUSTER_SIZE))
    zeros = bytes(_CLUSTER_SIZE)
    with open_image(file, read_only=False) as disk:
        for offset in range(0, len(content), _CLUSTER_SIZE):
            cluster = content[offset : offset + _CLUSTER_SIZE]
            if cluster != zeros[: len(cluster)]:
                disk.write(offset, cluster)
        disk.flush()
    return bytes(file.content)
