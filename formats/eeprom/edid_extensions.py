"""Extension blocks of EDID; those of CTA-861 are decoded in parts (E-EDID7 to E-EDID10)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Final

from msgspec import Meta

from formats.eeprom.edid_descriptors import SIZE as DESCRIPTOR_SIZE
from formats.eeprom.edid_descriptors import (
    AlphanumericDataString,
    Descriptor,
    DetailedTiming,
    DisplayDescriptor,
    DisplayProductName,
    DisplayProductSerialNumber,
    decode_descriptor,
    encode_descriptor,
    without_idle_padding,
)
from formats.eeprom.framework.codec import Findings
from formats.eeprom.framework.limits import UInt8
from formats.eeprom.parts.checksums import check_zero_sum, zero_sum
from formats.errors import FieldError

BLOCK_SIZE: Final = 128
_CTA: Final = 0x02
_CTA_HEAD_SIZE: Final = 4
#: Before this revision there are no data blocks.
_CTA_LEAST: Final = 3
_SUM_AT: Final = 127


@dataclass(frozen=True, slots=True, kw_only=True)
class DataBlock:
    """A CTA data block, as it is stored.

    Attributes:
        tag: Its kind: 1 audio, 2 video, 3 vendor-specific, 4 speakers, 7 extended.
        content: Its payload.
    """

    tag: Annotated[int, Meta(ge=0, le=7)]
    content: Annotated[bytes, Meta(max_length=31)] = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class CtaExtension:
    """A CTA-861 block.

    Attributes:
        revision: 3 or more.
        underscan: The display underscans IT formats.
        basic_audio: It supports basic audio.
        ycbcr_444: It supports YCbCr 4:4:4.
        ycbcr_422: It supports YCbCr 4:2:2.
        native_formats: How many of its detailed timings are native.
        data_blocks: The formats and features that it supports.
        descriptors: As in the base block, up to six.
    """

    revision: Annotated[int, Meta(ge=_CTA_LEAST, le=0xFF)] = _CTA_LEAST
    underscan: bool = False
    basic_audio: bool = False
    ycbcr_444: bool = False
    ycbcr_422: bool = False
    native_formats: Annotated[int, Meta(ge=0, le=15)] = 0
    data_blocks: tuple[DataBlock, ...] = ()
    descriptors: Annotated[
        tuple[
            DetailedTiming
            | DisplayProductName
            | DisplayProductSerialNumber
            | AlphanumericDataString
            | DisplayDescriptor,
            ...,
        ],
        Meta(max_length=6),
    ] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Extension:
    """A block of another kind, as it is stored.

    Attributes:
        tag: Its kind.
        content: Bytes 1 to 126.
    """

    tag: UInt8
    content: Annotated[bytes, Meta(min_length=126, max_length=126)]


def check_sum(content: bytes, at: int, report: Findings) -> None:
    """Check the sum of a block (E-EDID2)."""
    block = content[at : at + BLOCK_SIZE]
    check_zero_sum(block, at + _SUM_AT, "E-EDID2", "the checksum", report)


def with_checksum(block: bytes) -> bytes:
    """Return a block whose last byte makes the sum of all 0 (E-EDID2)."""
    return block[:_SUM_AT] + bytes((zero_sum(block[:_SUM_AT]),))


def decode_extension(content: bytes, at: int, report: Findings) -> CtaExtension | Extension:
    """Return the block at an offset; one that breaks a rule stays as it is stored."""
    check_sum(content, at, report)
    block = content[at : at + BLOCK_SIZE]
    tag, revision, descriptors_at = block[:3]
    if tag == _CTA and revision >= _CTA_LEAST and descriptors_at >= _CTA_HEAD_SIZE:
        found = _decode_cta(block, at, report)
        if found is not None:
            return found
    return Extension(tag=tag, content=block[1:_SUM_AT])


def encode_extension(extension: CtaExtension | Extension, path: str) -> bytes:
    """Return a block.

    Raises:
        FieldError: It has no room for everything, or would be read as something else.
    """
    if isinstance(extension, CtaExtension):
        descriptors = tuple(map(without_idle_padding, extension.descriptors))
        extension = replace(extension, descriptors=descriptors)
        block = _encode_cta(extension, path)
    else:
        block = with_checksum(bytes((extension.tag,)) + extension.content)
    if decode_extension(block, 0, Findings.tolerant()) != extension:
        raise FieldError(path, "is an extension of another kind")
    return block


def _decode_cta(block: bytes, at: int, report: Findings) -> CtaExtension | None:
    """Return the parts of a block, or None if they break a rule."""
    revision, descriptors_at, flags = block[1:_CTA_HEAD_SIZE]
    blocks: list[DataBlock] = []
    here = _CTA_HEAD_SIZE
    if descriptors_at > _SUM_AT:
        report.problem(at + 2, "E-EDID8", "its descriptors begin after its end")
        return None
    while here < descriptors_at:
        tag, size = block[here] >> 5, block[here] & 0x1F
        following = here + 1 + size
        if following > descriptors_at:
            report.problem(at + here, "E-EDID9", "a data block runs into the descriptors")
            return None
        blocks.append(DataBlock(tag=tag, content=block[here + 1 : following]))
        here = following
    descriptors: list[Descriptor] = []
    while here + DESCRIPTOR_SIZE <= _SUM_AT and any(block[here:_SUM_AT]):
        octets = block[here : here + DESCRIPTOR_SIZE]
        descriptors.append(decode_descriptor(octets, at + here, report))
        here += DESCRIPTOR_SIZE
    if any(block[here:_SUM_AT]):
        report.problem(at + here, "E-EDID10", "unused bytes after the descriptors are not 0")
        return None
    return CtaExtension(
        revision=revision,
        underscan=bool(flags & 0x80),
        basic_audio=bool(flags & 0x40),
        ycbcr_444=bool(flags & 0x20),
        ycbcr_422=bool(flags & 0x10),
        native_formats=flags & 0x0F,
        data_blocks=tuple(blocks),
        descriptors=tuple(descriptors),
    )


def _encode_cta(extension: CtaExtension, path: str) -> bytes:
    flags = (
        extension.underscan << 7
        | extension.basic_audio << 6
        | extension.ycbcr_444 << 5
        | extension.ycbcr_422 << 4
        | extension.native_formats
    )
    blocks = b"".join(
        bytes((block.tag << 5 | len(block.content),)) + block.content
        for block in extension.data_blocks
    )
    descriptors = b"".join(map(encode_descriptor, extension.descriptors))
    needed = _CTA_HEAD_SIZE + len(blocks) + len(descriptors)
    if needed > _SUM_AT:
        raise FieldError(path, f"takes {needed + 1} bytes of {BLOCK_SIZE}")
    head = bytes((_CTA, extension.revision, _CTA_HEAD_SIZE + len(blocks), flags))
    return with_checksum((head + blocks + descriptors).ljust(_SUM_AT, b"\x00"))
