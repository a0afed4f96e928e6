"""Compressed clusters: deflate and zstd, never more than a cluster of output.

Source: QEMU's docs/interop/qcow2, "compression_type".
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Final

from formats.errors import FormatError
from formats.qcow2.header import COMPRESSION_ZSTD

if TYPE_CHECKING:
    from formats.devices.device import ReadableBuffer

#: Largest window that a zstd frame may ask for, as a logarithm: clusters have 2 MiB at most.
_MAX_WINDOW_BITS: Final = 23


def decompress(data: ReadableBuffer, cluster_size: int, compression_type: int) -> bytes:
    """Return the content of a compressed cluster.

    Args:
        data: Compressed; bytes after its end are ignored.
        cluster_size: Bytes of the content.
        compression_type: As in the header.

    Raises:
        FormatError: It is damaged, or decompresses to another number of bytes.
    """
    if compression_type == COMPRESSION_ZSTD:
        content = _unzstd(data, cluster_size)
    else:
        try:
            # The stream has no header and a window of 4 KiB; a larger window reads it too.
            content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, cluster_size)
        except zlib.error as error:
            raise FormatError(f"a compressed cluster is damaged: {error}", rule="Q17") from error
    if len(content) != cluster_size:
        raise FormatError(
            f"a compressed cluster has {len(content)} bytes instead of {cluster_size}", rule="Q17"
        )
    return content


def _unzstd(data: ReadableBuffer, cluster_size: int) -> bytes:
    from formats.qcow2.zstd import DecompressionParameter, ZstdDecompressor, ZstdError  # noqa: PLC0415  rarely needed

    limits: dict[int, int] = {DecompressionParameter.window_log_max: _MAX_WINDOW_BITS}
    content = b""
    try:
        # QEMU writes one frame; several in a row are valid zstd too.
        while len(content) < cluster_size and data:
            decompressor = ZstdDecompressor(options=limits)
            content += decompressor.decompress(data, cluster_size - len(content))
            if not decompressor.eof:
                break
            data = decompressor.unused_data
    except ZstdError as error:
        raise FormatError(f"a compressed cluster is damaged: {error}", rule="Q17") from error
    return content
