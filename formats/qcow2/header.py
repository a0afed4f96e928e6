"""The header of a qcow2 image: bytes to a checked `Qcow2Header`, and its fields back to bytes.

The first sector holds every field that changes while an image is in use, so one
write of it switches from one set of tables to another (Q10).

Source: QEMU's docs/interop/qcow2, "Header"; the rules are those of spec/qcow2.md.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from formats.devices.device import read_exactly
from formats.errors import (
    EmptyImageError,
    ForeignImageError,
    FormatError,
    TruncatedImageError,
    UnsupportedError,
)
from formats.qcow2 import features
from formats.qcow2.extensions import Extensions, decode_extensions

if TYPE_CHECKING:
    from formats.devices.device import BlockDevice

MAGIC: Final = b"QFI\xfb"
#: The first of these holds all fields that change; writes of one sector are not torn.
SECTOR_SIZE: Final = 512
MIN_CLUSTER_BITS: Final = 9
MAX_CLUSTER_BITS: Final = 21
#: Limits that QEMU has too; a hostile image must not cause larger reads.
MAX_L1_SIZE: Final = 32 << 20
MAX_REFCOUNT_TABLE_SIZE: Final = 8 << 20
MAX_SNAPSHOTS: Final = 65536
MAX_SIZE: Final = (1 << 63) - 512
MAX_BACKING_NAME: Final = 1023

_V2: Final = struct.Struct(">4sIQIIQIIQQIIQ")
_V3: Final = struct.Struct(">QQQII")
V2_SIZE: Final = 72
V3_SIZE: Final = 104

CRYPT_NONE, CRYPT_AES, CRYPT_LUKS = 0, 1, 2
COMPRESSION_ZLIB, COMPRESSION_ZSTD = 0, 1


@dataclass(frozen=True)
class Qcow2Header:
    """The header of a qcow2 image; offsets are bytes in the image.

    Attributes:
        version: 2 or 3.
        cluster_bits: Logarithm of the bytes of a cluster.
        size: Bytes of the virtual disk.
        crypt_method: 0 for none, 1 for QEMU's old AES, 2 for LUKS.
        l1_size: Entries of the active L1 table.
        l1_offset: Offset of this table.
        refcount_table_offset: Offset of the refcount table.
        refcount_table_clusters: Clusters of the refcount table.
        snapshot_count: Entries of the snapshot table.
        snapshots_offset: Offset of the snapshot table, or 0.
        incompatible: Feature bits.
        compatible: Feature bits.
        autoclear: Feature bits.
        refcount_order: Logarithm of the bits of a refcount.
        header_length: Bytes of the header, where its extensions begin.
        compression_type: 0 for deflate, 1 for zstd.
        backing_name: Name of the backing file, as it is stored, or None.
        extensions: Header extensions.
    """

    version: int
    cluster_bits: int
    size: int
    crypt_method: int
    l1_size: int
    l1_offset: int
    refcount_table_offset: int
    refcount_table_clusters: int
    snapshot_count: int = 0
    snapshots_offset: int = 0
    incompatible: int = 0
    compatible: int = 0
    autoclear: int = 0
    refcount_order: int = 4
    header_length: int = V2_SIZE
    compression_type: int = COMPRESSION_ZLIB
    backing_name: str | None = None
    backing_offset: int = 0
    extensions: Extensions = field(default_factory=Extensions)

    @property
    def cluster_size(self) -> int:
        """Bytes of a cluster."""
        return 1 << self.cluster_bits

    @property
    def refcount_bits(self) -> int:
        """Bits of a refcount."""
        return 1 << self.refcount_order

    @property
    def l2_entries(self) -> int:
        """Words of 8 bytes in an L2 table: its entries, unless they are extended."""
        return self.cluster_size // 8

    @property
    def has_extended_l2(self) -> bool:
        """Whether an L2 entry has a second word, which describes 32 parts of the cluster."""
        return bool(self.incompatible & features.EXTENDED_L2)

    @property
    def has_data_file(self) -> bool:
        """Whether the clusters of the disk are in a file of their own."""
        return bool(self.incompatible & features.EXTERNAL_DATA)

    @property
    def l1_needed(self) -> int:
        """Entries of the L1 table that the virtual disk needs."""
        return l1_entries(self.size, self.cluster_bits, extended=self.has_extended_l2)


def l1_entries(size: int, cluster_bits: int, *, extended: bool = False) -> int:
    """Return how many L1 entries a virtual disk of ``size`` bytes needs."""
    span_bits = 2 * cluster_bits - (4 if extended else 3)
    return (size + (1 << span_bits) - 1) >> span_bits


def is_qcow2(device: BlockDevice) -> bool:
    """Say whether a device begins like a qcow2 image; nothing else is checked."""
    return device.size >= V2_SIZE and read_exactly(device, 0, 8)[:8] in (
        MAGIC + b"\0\0\0\2",
        MAGIC + b"\0\0\0\3",
    )


def read_header(device: BlockDevice, implemented: int = features.IMPLEMENTED) -> Qcow2Header:
    """Read and check the header of an image.

    Args:
        device: Holds the image.
        implemented: The incompatible features that the caller can cope with (Q4, Q32).

    Raises:
        EmptyImageError, ForeignImageError: It is not a qcow2 image.
        TruncatedImageError: It ends before its own tables do.
        FormatError: The header breaks a rule.
        UnsupportedError: It needs a feature that is not implemented.
        DeviceError: It cannot be read.
    """
    start = read_exactly(device, 0, min(SECTOR_SIZE, device.size))
    if not start.strip(b"\0"):
        raise EmptyImageError("the image is not qcow2: it holds only zeros")
    if start[:4] != MAGIC:
        raise ForeignImageError("the image is not qcow2", offset=0, rule="Q1")
    if len(start) < V2_SIZE:
        raise TruncatedImageError("the qcow2 image ends within its header", rule="Q1")
    header = decode_fields(start)
    cluster = start
    if header.cluster_size > len(start) and device.size > len(start):
        # Extensions and the backing file's name end within the first cluster.
        size = min(header.cluster_size, device.size)
        cluster = start + read_exactly(device, len(start), size - len(start))
    header = _with_rest(header, cluster)
    check_header(header, device.size, implemented)
    return header


def decode_fields(data: bytes) -> Qcow2Header:
    """Read the fields of a header, without extensions and without the backing file's name.

    Args:
        data: The first sector, or the part of it that exists.

    Raises:
        TruncatedImageError: ``data`` ends too early.
        FormatError: A field that locates others is out of range.
        UnsupportedError: Version, cluster size or refcounts are not implemented.
    """
    (_, version, backing_offset, backing_size, cluster_bits, size, crypt, *tables) = (
        _V2.unpack_from(data)
    )
    if version not in (2, 3):
        raise UnsupportedError(
            f"qcow2 version {version} is not implemented [Q1]", feature=f"version {version}"
        )
    if not MIN_CLUSTER_BITS <= cluster_bits <= MAX_CLUSTER_BITS:
        raise UnsupportedError(
            f"clusters of 2**{cluster_bits} bytes are not implemented [Q2]", feature="cluster size"
        )
    incompatible = compatible = autoclear = 0
    refcount_order, header_length, compression_type = 4, V2_SIZE, COMPRESSION_ZLIB
    if version == 3:
        if len(data) < V3_SIZE:
            raise TruncatedImageError("the qcow2 image ends within its header", rule="Q1")
        incompatible, compatible, autoclear, refcount_order, header_length = _V3.unpack_from(
            data, V2_SIZE
        )
        if header_length < V3_SIZE or header_length % 8 or header_length > 1 << cluster_bits:
            raise FormatError(f"a header cannot have {header_length} bytes", offset=100, rule="Q1")
        if header_length > V3_SIZE and len(data) > V3_SIZE:
            compression_type = data[V3_SIZE]
    if refcount_order > 6:
        raise FormatError(f"refcounts cannot have 2**{refcount_order} bits", offset=96, rule="Q3")
    if backing_offset and backing_size > MAX_BACKING_NAME:
        raise FormatError("the name of the backing file is too long", offset=16, rule="Q6")
    l1_size, l1_offset, table_offset, table_clusters, snapshots, snapshots_offset = tables
    return Qcow2Header(
        version=version,
        cluster_bits=cluster_bits,
        size=size,
        crypt_method=crypt,
        l1_size=l1_size,
        l1_offset=l1_offset,
        refcount_table_offset=table_offset,
        refcount_table_clusters=table_clusters,
        snapshot_count=snapshots,
        snapshots_offset=snapshots_offset,
        incompatible=incompatible,
        compatible=compatible,
        autoclear=autoclear,
        refcount_order=refcount_order,
        header_length=header_length,
        compression_type=compression_type,
        backing_name="\0" * backing_size if backing_offset else None,
        backing_offset=backing_offset,
    )


def _with_rest(header: Qcow2Header, cluster: bytes) -> Qcow2Header:
    """Add what follows the fields: extensions and the name of the backing file."""
    name, end = None, header.cluster_size
    if header.backing_name is not None:
        length = len(header.backing_name)
        end = header.backing_offset
        if not header.header_length <= end <= header.cluster_size - length:
            raise FormatError(
                "the name of the backing file is outside the first cluster", offset=8, rule="Q6"
            )
        name = cluster[end : end + length].decode("utf-8", "surrogateescape")
        if "\0" in name or not name:
            raise FormatError("the backing file has an offset but no name", offset=end, rule="Q6")
    extensions = decode_extensions(cluster[: min(end, len(cluster))], header.header_length)
    return Qcow2Header(**{**header.__dict__, "backing_name": name, "extensions": extensions})


def check_header(
    header: Qcow2Header, device_size: int, implemented: int = features.IMPLEMENTED
) -> None:
    """Check the header's description of tables before any of them is read.

    Args:
        header: The header.
        device_size: Bytes of the device that holds it.
        implemented: As `read_header`.

    Raises:
        FormatError, TruncatedImageError, UnsupportedError: As `read_header`.
    """
    features.check_implemented(header.incompatible, header.extensions.feature_names, implemented)
    if header.crypt_method > CRYPT_LUKS:
        raise UnsupportedError(
            f"encryption method {header.crypt_method} is not implemented [Q7]",
            feature="encryption method",
        )
    _check_compression(header)
    if (header.crypt_method == CRYPT_LUKS) != (header.extensions.encryption is not None):
        raise FormatError("the LUKS header and the encryption method disagree", rule="Q7")
    if header.size > MAX_SIZE:
        raise FormatError(f"a disk cannot have {header.size} bytes", offset=24, rule="Q2")
    if header.l1_size * 8 > MAX_L1_SIZE:
        raise UnsupportedError("the L1 table is larger than 32 MiB [Q2]", feature="L1 size")
    if header.l1_size < header.l1_needed:
        raise FormatError("the L1 table is too small for the disk", offset=36, rule="Q2")
    table_size = header.refcount_table_clusters << header.cluster_bits
    if table_size > MAX_REFCOUNT_TABLE_SIZE:
        raise UnsupportedError(
            "the refcount table is larger than 8 MiB [Q3]", feature="refcount table size"
        )
    if header.refcount_table_offset % header.cluster_size:
        raise FormatError("the refcount table is not on a cluster boundary", offset=48, rule="Q3")
    if header.snapshot_count > MAX_SNAPSHOTS:
        raise UnsupportedError("the image has more than 65536 snapshots", feature="snapshots")
    for offset, size, what in (
        (header.l1_offset, header.l1_size * 8, "L1 table"),
        (header.snapshots_offset, header.snapshot_count * 40, "snapshot table"),
    ):
        check_table(header, offset, size, device_size, what)
    encryption = header.extensions.encryption
    if encryption is not None:
        check_table(header, encryption.offset, encryption.length, device_size, "LUKS header")


def is_refcount_table_lost(header: Qcow2Header, device_size: int) -> bool:
    """Say whether there is no refcount table where the header says, or not all of it (Q30)."""
    offset, clusters = header.refcount_table_offset, header.refcount_table_clusters
    return not (offset and clusters) or offset + (clusters << header.cluster_bits) > device_size


def check_table(header: Qcow2Header, offset: int, size: int, device_size: int, what: str) -> None:
    """Check that a table is on a cluster boundary, within the image and not on the header."""
    if not size:
        return
    if offset % header.cluster_size or not offset:
        raise FormatError(f"the {what} is not on a cluster boundary", offset=offset, rule="Q2")
    if offset + size > device_size:
        raise TruncatedImageError(
            f"the qcow2 image ends before its {what}", offset=offset, rule="Q2"
        )


def _check_compression(header: Qcow2Header) -> None:
    named = bool(header.incompatible & features.COMPRESSION_TYPE)
    if named != (header.compression_type != COMPRESSION_ZLIB):
        raise FormatError(
            "the compression type and its feature bit disagree", offset=104, rule="Q4"
        )
    if header.compression_type > COMPRESSION_ZSTD:
        raise UnsupportedError(
            f"compression type {header.compression_type} is not implemented [Q4]",
            feature="compression type",
        )


def encode_fields(header: Qcow2Header) -> bytes:
    """Return the bytes of a header's fields, without extensions."""
    backing = header.backing_name
    data = _V2.pack(
        MAGIC,
        header.version,
        header.backing_offset if backing else 0,
        len(backing.encode("utf-8", "surrogateescape")) if backing else 0,
        header.cluster_bits,
        header.size,
        header.crypt_method,
        header.l1_size,
        header.l1_offset,
        header.refcount_table_offset,
        header.refcount_table_clusters,
        header.snapshot_count,
        header.snapshots_offset,
    )
    if header.version == 2:
        return data
    data += _V3.pack(
        header.incompatible,
        header.compatible,
        header.autoclear,
        header.refcount_order,
        header.header_length,
    )
    if header.header_length > V3_SIZE:
        data += bytes([header.compression_type])
    return data
