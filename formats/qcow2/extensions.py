"""Header extensions, between the header's fields and the name of the backing file.

Source: QEMU's docs/interop/qcow2, "Header extensions".
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from formats.errors import FormatError
from formats.qcow2.features import FeatureNames, decode_names

if TYPE_CHECKING:
    from collections.abc import Iterable

_HEAD: Final = struct.Struct(">II")
_ENCRYPTION: Final = struct.Struct(">QQ")
_BITMAPS: Final = struct.Struct(">IIQQ")

END: Final = 0
BACKING_FORMAT: Final = 0xE2792ACA
FEATURE_NAMES: Final = 0x6803F857
BITMAPS: Final = 0x23852875
ENCRYPTION: Final = 0x0537BE77
DATA_FILE: Final = 0x44415441

_ONCE: Final = frozenset({BACKING_FORMAT, FEATURE_NAMES, BITMAPS, ENCRYPTION, DATA_FILE})


@dataclass(frozen=True)
class EncryptionPointer:
    """The place of the LUKS header in an image.

    Attributes:
        offset: Byte offset in the image, on a cluster boundary.
        length: Bytes.
    """

    offset: int
    length: int


@dataclass(frozen=True)
class BitmapsPointer:
    """The place of the directory of persistent bitmaps.

    Attributes:
        count: Bitmaps in it.
        size: Bytes.
        offset: Byte offset in the image, on a cluster boundary.
    """

    count: int
    size: int
    offset: int


@dataclass(frozen=True)
class Extensions:
    """The header extensions of an image.

    Attributes:
        backing_format: Format of the backing file, or None.
        feature_names: The image's own names of feature bits.
        encryption: Where the LUKS header is, or None.
        bitmaps: Where the bitmaps are, or None.
        data_file: Name of the external data file, or None.
    """

    backing_format: str | None = None
    feature_names: FeatureNames = field(default_factory=dict)
    encryption: EncryptionPointer | None = None
    bitmaps: BitmapsPointer | None = None
    data_file: str | None = None


def decode_extensions(data: bytes, start: int) -> Extensions:
    """Read the extensions; unknown ones are ignored.

    Args:
        data: The first cluster up to the offset where the extensions must have ended.
        start: The offset in it where they begin: the length of the header.

    Raises:
        FormatError: One of them ends outside, occurs twice or is impossible.
    """
    found: dict[int, bytes] = {}
    at = start
    while at + _HEAD.size <= len(data):
        kind, length = _HEAD.unpack_from(data, at)
        if kind == END:
            break
        body = data[at + _HEAD.size : at + _HEAD.size + length]
        if len(body) < length:
            raise FormatError(
                "a header extension does not fit into its place", offset=at, rule="Q1"
            )
        if kind in found and kind in _ONCE:
            raise FormatError(f"header extension {kind:#010x} occurs twice", offset=at, rule="Q1")
        found[kind] = body
        at += _HEAD.size + length + -length % 8
    return Extensions(
        backing_format=_text(found.get(BACKING_FORMAT)),
        feature_names=decode_names(found.get(FEATURE_NAMES, b"")),
        encryption=_encryption(found.get(ENCRYPTION)),
        bitmaps=_bitmaps(found.get(BITMAPS)),
        data_file=_text(found.get(DATA_FILE)),
    )


def encode_extensions(extensions: Iterable[tuple[int, bytes]]) -> bytes:
    """Return the bytes of extensions, with the one that ends them."""
    parts = [
        _HEAD.pack(kind, len(body)) + body + bytes(-len(body) % 8) for kind, body in extensions
    ]
    return b"".join(parts) + _HEAD.pack(END, 0)


def encode_encryption(pointer: EncryptionPointer) -> bytes:
    """Return the content of the extension that points to the LUKS header."""
    return _ENCRYPTION.pack(pointer.offset, pointer.length)


def _text(body: bytes | None) -> str | None:
    return None if body is None else body.decode("utf-8", "surrogateescape")


def _encryption(body: bytes | None) -> EncryptionPointer | None:
    if body is None:
        return None
    if len(body) != _ENCRYPTION.size:
        raise FormatError("the pointer to the LUKS header has a wrong length", rule="Q7")
    return EncryptionPointer(*_ENCRYPTION.unpack(body))


def _bitmaps(body: bytes | None) -> BitmapsPointer | None:
    if body is None:
        return None
    if len(body) != _BITMAPS.size:
        raise FormatError("the bitmaps extension has a wrong length", rule="Q8")
    count, _, size, offset = _BITMAPS.unpack(body)
    return BitmapsPointer(count, size, offset)
