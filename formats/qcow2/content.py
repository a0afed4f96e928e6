"""The content of a disk: clusters, decrypted or decompressed, backing files, zeros."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from formats.errors import UnsupportedError
from formats.qcow2.compression import decompress
from formats.qcow2.header import CRYPT_AES, CRYPT_NONE
from formats.qcow2.mapping import Extent, extents
from formats.qcow2.tables import EntryKind, compressed_place

if TYPE_CHECKING:
    from formats.devices.device import BlockDevice, ReadableBuffer, WritableBuffer
    from formats.qcow2.header import Qcow2Header
    from formats.qcow2.host import Host
    from formats.qcow2.metadata import Metadata

#: Sectors of encrypted images, bytes.
SECTOR: Final = 512
#: Largest number of bytes that are combined, encrypted or cleared at a time.
CHUNK: Final = 1 << 20
ZEROS: Final = memoryview(bytes(CHUNK))


class ClusterCipher(Protocol):
    """Encrypts and decrypts whole sectors of 512 bytes; safe in several threads.

    ``first_sector`` is the number of the first one: of the sector in the image for
    LUKS, of that in the disk for QEMU's old AES.
    """

    def encrypt(self, first_sector: int, data: ReadableBuffer, out: WritableBuffer, /) -> None:
        """Encrypt ``data`` to ``out``, which is as long and may be the same memory."""

    def decrypt(self, first_sector: int, data: ReadableBuffer, out: WritableBuffer, /) -> None:
        """Decrypt ``data`` to ``out``, which is as long and may be the same memory."""


class Content:
    """Reads a disk. Only `decrypt` is safe in several threads.

    Attributes:
        metadata: The image's tables.
        size: Bytes of the disk.
        cipher: For an encrypted image.
        backing: The content of the disk where the image has none.
        data: What the clusters are in; None for an external data file that was not opened.
    """

    def __init__(
        self,
        metadata: Metadata,
        size: int,
        cipher: ClusterCipher | None,
        backing: BlockDevice | None,
        data: Host | None = None,
    ) -> None:
        self.metadata = metadata
        self.data = data if metadata.header.has_data_file else metadata.host
        self.size = size
        self.cipher = cipher
        self.backing = backing
        self._inflated: tuple[int, bytes] = (0, b"")

    def forget(self) -> None:
        """Drop decompressed data: its clusters may be used for something else now."""
        self._inflated = 0, b""

    def read(self, offset: int, view: memoryview) -> list[tuple[Extent, memoryview]]:
        """Fill ``view`` with the content of the disk at ``offset``.

        Returns:
            The parts that were read and still have to be decrypted: extents of whole
            sectors, and their parts of ``view``.

        Raises:
            FormatError: A table or a compressed cluster is damaged.
            DeviceError: It cannot be read.
        """
        encrypted: list[tuple[Extent, memoryview]] = []
        start = offset
        for extent in extents(self.metadata, offset, offset + len(view)):
            part = view[extent.offset - start :][: extent.length]
            if extent.kind is EntryKind.DATA:
                if self.data is None:
                    raise _data_file_missing(self.metadata.header)
                if self.cipher is None:
                    self.data.read_into(extent.host, part)
                else:
                    self._read_sectors(extent, part, encrypted)
            elif extent.kind is EntryKind.COMPRESSED:
                at = extent.offset % self.metadata.header.cluster_size
                part[:] = self._inflate(extent.host)[at : at + len(part)]
            elif extent.kind is EntryKind.UNALLOCATED and self.backing is not None:
                _read_backing(self.backing, extent.offset, part)
            else:
                _clear(part)
        return encrypted

    def _read_sectors(
        self, extent: Extent, part: memoryview, encrypted: list[tuple[Extent, memoryview]]
    ) -> None:
        """Read whole sectors to decrypt later, and partial ones at the edges at once."""
        # Zeros in place of the part that was cut off would be decrypted to noise.
        size = extent.length + -(extent.host + extent.length) % SECTOR
        self.metadata.host.check_whole(extent.host, size, "an encrypted cluster")
        end = extent.offset + extent.length
        first = min(end, extent.offset + -extent.offset % SECTOR)
        last = max(first, end - end % SECTOR)
        for start, stop in ((extent.offset, first), (first, last), (last, end)):
            if start == stop:
                continue
            piece = part[start - extent.offset : stop - extent.offset]
            host = extent.host + start - extent.offset
            if start == first and stop == last:
                self.metadata.host.read_into(host, piece)
                encrypted.append((Extent(start, len(piece), EntryKind.DATA, host), piece))
                continue
            before = start % SECTOR
            sector = memoryview(bytearray(SECTOR))
            self.metadata.host.read_into(host - before, sector)
            self.decrypt(Extent(start - before, SECTOR, EntryKind.DATA, host - before), sector)
            piece[:] = sector[before : before + len(piece)]

    def decrypt(self, extent: Extent, part: memoryview) -> None:
        """Decrypt the bytes read of an extent in place; safe in several threads."""
        assert self.cipher is not None
        self.cipher.decrypt(self.sector(extent.offset, extent.host), part, part)

    def sector(self, offset: int, host: int) -> int:
        """Return a sector's number for the cipher, from byte offsets in disk and image (Q7)."""
        return (offset if self.metadata.header.crypt_method == CRYPT_AES else host) // SECTOR

    def _inflate(self, entry: int) -> bytes:
        if self._inflated[0] == entry:
            return self._inflated[1]
        header, host = self.metadata.header, self.metadata.host
        if header.crypt_method != CRYPT_NONE:
            raise UnsupportedError(
                "compressed clusters in an encrypted image are not implemented",
                feature="compressed and encrypted",
            )
        offset, size = compressed_place(entry, header.cluster_bits)
        # It may end at any byte of its last sector, and so may the image; but zeros in place
        # of a part that was cut off could be taken for data.
        data = host.read(offset, max(1, min(size, host.size - offset)))
        content = decompress(data, header.cluster_size, header.compression_type)
        self._inflated = entry, content
        return content


def _data_file_missing(header: Qcow2Header) -> UnsupportedError:
    return UnsupportedError(
        f"the qcow2 image has an external data file, {header.extensions.data_file!r}, but none is"
        " permitted [Q36]",
        feature="external data file",
        hint="permit files beside the image with --backing, or BackingFiles()",
    )


def _clear(view: memoryview) -> None:
    for at in range(0, len(view), CHUNK):
        part = view[at : at + CHUNK]
        part[:] = ZEROS[: len(part)]


def _read_backing(backing: BlockDevice, offset: int, part: memoryview) -> None:
    available = max(0, min(len(part), backing.size - offset))
    if available:
        backing.read_into(offset, part[:available])
    _clear(part[available:])
