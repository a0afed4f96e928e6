"""New qcow2 images, and how large they become."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from formats.errors import ArgumentError, UnsupportedError
from formats.qcow2 import features
from formats.qcow2.counts import Counts
from formats.qcow2.extensions import (
    BACKING_FORMAT,
    ENCRYPTION,
    FEATURE_NAMES,
    EncryptionPointer,
    Extensions,
    encode_encryption,
    encode_extensions,
)
from formats.qcow2.header import (
    COMPRESSION_ZLIB,
    COMPRESSION_ZSTD,
    CRYPT_LUKS,
    CRYPT_NONE,
    MAX_BACKING_NAME,
    MAX_L1_SIZE,
    MAX_SIZE,
    SECTOR_SIZE,
    V2_SIZE,
    Qcow2Header,
    encode_fields,
    l1_entries,
)
from formats.qcow2.host import Host, encode_table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from formats.devices.device import BlockDevice

#: Length of the version 3 header that this project and QEMU write.
_HEADER_LENGTH: Final = 112
#: Largest number of zero bytes written at a time.
_CHUNK: Final = 1 << 20


@dataclass(frozen=True)
class Qcow2Options:
    """The options of a new image.

    Attributes:
        version: 2 or 3.
        cluster_size: Bytes, a power of two from 512 to 2 MiB.
        refcount_bits: 1, 2, 4, 8, 16, 32 or 64; 16 in version 2.
        backing_name: Name of the backing file, as it is stored, or None.
        backing_format: Its format, ``raw`` or ``qcow2``; needed with a name.
        luks_header_size: Bytes to keep for a LUKS header, which then encrypts the
            image; 0 for none.
        lazy_refcounts: Permit QEMU to defer the counts. This project never does.
        zstd: Announce that clusters may be compressed with zstd. This project
            compresses none.
    """

    version: int = 3
    cluster_size: int = 65536
    refcount_bits: int = 16
    backing_name: str | None = None
    backing_format: str | None = None
    luks_header_size: int = 0
    lazy_refcounts: bool = False
    zstd: bool = False

    def __post_init__(self) -> None:
        if self.version not in (2, 3):
            raise ArgumentError(f"the qcow2 version must be 2 or 3, not {self.version}")
        if self.cluster_size not in [1 << bits for bits in range(9, 22)]:
            raise ArgumentError("a cluster must have 512 bytes to 2 MiB, a power of two")
        if self.refcount_bits not in [1 << order for order in range(7)]:
            raise ArgumentError("a refcount must have 1, 2, 4, 8, 16, 32 or 64 bits")
        if self.version == 2 and (self.refcount_bits != 16 or self.lazy_refcounts or self.zstd):
            raise ArgumentError("version 2 has only refcounts of 16 bits and no features")
        if self.backing_name is not None:
            self._check_backing(self.backing_name)

    def _check_backing(self, name: str) -> None:
        if (
            not name
            or "\0" in name
            or len(name.encode("utf-8", "surrogateescape")) > (MAX_BACKING_NAME)
        ):
            raise ArgumentError("the name of a backing file must have 1 to 1023 bytes")
        if self.backing_format not in ("raw", "qcow2"):
            # A guest could make a raw file look like another format.
            raise ArgumentError("a backing file needs its format, raw or qcow2")


DEFAULTS: Final = Qcow2Options()


def create(device: BlockDevice, size: int, options: Qcow2Options = DEFAULTS) -> Qcow2Header:
    """Make an image with a disk of ``size`` bytes, all of it unallocated.

    The magic number is written last, when everything else is durable (Q15). The
    bytes kept for a LUKS header are zero; `formats.qcow2.opening.luks_area` returns
    them.

    Args:
        device: Its old content is lost. It is resized if possible, and otherwise must
            be large enough.
        size: Bytes, a multiple of 512.
        options: All other options.

    Returns:
        The header.

    Raises:
        ValueError: Such an image is impossible.
        DeviceError: It failed; the device holds no image.
    """
    header, refcount_blocks = layout(size, options)
    cluster_size = header.cluster_size
    end = _end(header)
    host = Host(device)
    first = _first_cluster(header, options)
    # The old image must be gone before the new one is complete.
    try:
        device.resize(0)
        host.flush()
    except UnsupportedError:
        host.write(0, bytes(SECTOR_SIZE))
        host.flush()
        for at in range(0, end, _CHUNK):
            host.write(at, bytes(min(_CHUNK, end - at)))
    host.reach(end)
    table_end = header.refcount_table_offset + header.refcount_table_clusters * cluster_size
    table = array("Q", [table_end + number * cluster_size for number in range(refcount_blocks)])
    host.write(header.refcount_table_offset, encode_table(table))
    for number, content in enumerate(_blocks(header, refcount_blocks, end // cluster_size)):
        host.write(table_end + number * cluster_size, content)
    host.write(SECTOR_SIZE, first[SECTOR_SIZE:])
    host.flush()
    host.write(0, first[:SECTOR_SIZE])
    host.flush()
    return header


def layout(size: int, options: Qcow2Options) -> tuple[Qcow2Header, int]:
    """Return the header of a new image, and how many refcount blocks it begins with.

    Raises:
        ValueError: Such an image is impossible.
    """
    bits = options.cluster_size.bit_length() - 1
    entries = l1_entries(size, bits)
    if not 0 <= size <= MAX_SIZE or size % SECTOR_SIZE or entries * 8 > MAX_L1_SIZE:
        raise ArgumentError(f"a qcow2 disk with these clusters cannot have {size} bytes")
    l1 = max(1, _clusters(entries * 8, options.cluster_size))
    luks = _clusters(options.luks_header_size, options.cluster_size)
    table, blocks = refcount_clusters(1 + l1 + luks, options)
    luks_offset = (1 + table + blocks) * options.cluster_size
    pointer = EncryptionPointer(luks_offset, options.luks_header_size) if luks else None
    extensions = Extensions(backing_format=options.backing_format, encryption=pointer)
    header = Qcow2Header(
        version=options.version,
        cluster_bits=bits,
        size=size,
        crypt_method=CRYPT_LUKS if luks else CRYPT_NONE,
        l1_size=max(1, entries),
        l1_offset=luks_offset + luks * options.cluster_size,
        refcount_table_offset=options.cluster_size,
        refcount_table_clusters=table,
        incompatible=features.COMPRESSION_TYPE if options.zstd else 0,
        compatible=features.LAZY_REFCOUNTS if options.lazy_refcounts else 0,
        refcount_order=options.refcount_bits.bit_length() - 1,
        header_length=V2_SIZE if options.version == 2 else _HEADER_LENGTH,
        compression_type=COMPRESSION_ZSTD if options.zstd else COMPRESSION_ZLIB,
        backing_name=options.backing_name,
        extensions=extensions,
    )
    end = len(_extensions(header, options))
    header = replace(header, backing_offset=end if options.backing_name else 0)
    if end + len(_name(header)) > options.cluster_size:
        raise ArgumentError("the name of the backing file does not fit into the first cluster")
    return header, blocks


def refcount_clusters(others: int, options: Qcow2Options) -> tuple[int, int]:
    """Return how many clusters the refcount table needs, and how many the blocks."""
    region = options.cluster_size * 8 // options.refcount_bits
    table = blocks = 1
    while True:
        needed = _clusters((others + table + blocks), region)
        needed_table = _clusters(needed * 8, options.cluster_size)
        if (needed_table, needed) == (table, blocks):
            return table, blocks
        table, blocks = needed_table, needed


def _blocks(header: Qcow2Header, count: int, used: int) -> Iterator[bytearray]:
    for _ in range(count):
        counts = Counts(bytearray(header.cluster_size), header.refcount_bits)
        here = min(used, len(counts))
        counts.fill(0, here)
        used -= here
        yield counts.raw


def _end(header: Qcow2Header) -> int:
    size = max(1, _clusters(header.l1_size * 8, header.cluster_size)) * header.cluster_size
    return header.l1_offset + size


def _first_cluster(header: Qcow2Header, options: Qcow2Options) -> bytes:
    """Return the used part of the first cluster, at least one sector."""
    content = _extensions(header, options) + _name(header)
    return content.ljust(max(SECTOR_SIZE, header.cluster_size), b"\0")


def _extensions(header: Qcow2Header, options: Qcow2Options) -> bytes:
    """Return the header and its extensions."""
    found: list[tuple[int, bytes]] = []
    if options.backing_format is not None:
        found.append((BACKING_FORMAT, options.backing_format.encode()))
    if header.extensions.encryption is not None:
        found.append((ENCRYPTION, encode_encryption(header.extensions.encryption)))
    start = encode_fields(header).ljust(header.header_length, b"\0")
    names = (FEATURE_NAMES, features.encode_names(features.NAMES))
    whole = start + encode_extensions([*found, names])
    if header.version == 3 and len(whole) + len(_name(header)) <= header.cluster_size:
        return whole
    # The names serve messages only.
    return start + encode_extensions(found)


def _name(header: Qcow2Header) -> bytes:
    return (header.backing_name or "").encode("utf-8", "surrogateescape")


def _clusters(size: int, cluster_size: int) -> int:
    return -(-size // cluster_size)
