"""IBM's keyword VPD: an identifier, keywords, a checksum (E-KW1 to E-KW3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final

from formats.eeprom.framework.fields import validate
from formats.eeprom.framework.limits import Fill, Tail
from formats.eeprom.parts.checksums import zero_sum
from formats.eeprom.parts.padding import fill_up, split_rest
from formats.eeprom.parts.recognising import require_signature
from formats.eeprom.parts.resources import (
    IDENTIFIER,
    Identifier,
    KeywordName,
    KeywordValue,
    encode_keywords,
    large_resource,
    read_keywords,
    read_resource,
)
from formats.errors import FieldError, ForeignImageError, TruncatedImageError

if TYPE_CHECKING:
    from formats.devices.device import ReadableBuffer
    from formats.eeprom.framework.codec import Findings

_KEYWORDS: Final = 0x84
_CHECKSUM: Final = 0x79
_END: Final = 0x78


@dataclass(frozen=True, slots=True, kw_only=True)
class KeywordVpd:
    """Vital product data in IBM's keyword format.

    Attributes:
        identifier: The name of the part, as text.
        keywords: At least one, such as ``PN``, ``FN``, ``SN``, ``CC``.
        tail: The bytes after the end tag.
        fill: The byte that fills the rest.
    """

    identifier: Identifier
    keywords: Mapping[KeywordName, KeywordValue]
    tail: Tail = b""
    fill: Fill = 0xFF


class KeywordVpdCodec:
    """See `formats.eeprom.framework.codec.Codec`."""

    name: ClassVar[str] = "keyword-vpd"
    title: ClassVar[str] = "IBM keyword VPD"
    model: ClassVar[type[KeywordVpd]] = KeywordVpd

    def decode(self, data: ReadableBuffer, report: Findings, /) -> KeywordVpd:
        content = bytes(data)
        require_signature(content, bytes((IDENTIFIER,)), "keyword VPD", "E-KW1")
        first = read_resource(content, 0, report, "E-KW1")
        if first is None:
            raise TruncatedImageError("the keyword VPD is cut short", offset=0, rule="E-KW1")
        second = read_resource(content, first.end, report, "E-KW1")
        if second is None:
            raise TruncatedImageError(
                "the resource with keywords is missing", offset=first.end, rule="E-KW1"
            )
        if second.tag != _KEYWORDS:
            raise ForeignImageError(
                f"the EEPROM has no keyword VPD: resource {second.tag:#04x} follows its identifier",
                offset=first.end,
                rule="E-KW1",
                hint="PCI VPD has another resource there: try the type pci-vpd",
            )
        found = read_keywords(content, second.start, second.end, report, "E-KW2")
        if not found:
            report.problem(second.offset, "E-KW2", "the resource has no keyword")
        trailer = content[second.end : second.end + 3]
        if len(trailer) < 3 or trailer[0] != _CHECKSUM or trailer[2] != _END:
            report.problem(second.end, "E-KW3", "the checksum and the end tag are missing")
        else:
            covered = content[second.offset : second.end]
            report.compare(
                second.end + 1, "E-KW3", "the checksum", trailer[1:2], bytes((zero_sum(covered),))
            )
        tail, fill = split_rest(content[second.end + 3 :])
        return KeywordVpd(
            identifier=content[first.start : first.end].decode("latin-1"),
            keywords={name: value.decode("latin-1") for name, _, value in found},
            tail=tail,
            fill=fill,
        )

    def encode(self, model: KeywordVpd, size: int | None, /) -> bytes:
        validate(model)
        if not model.keywords:
            raise FieldError("keywords", "there must be at least one")
        identifier = model.identifier.encode("latin-1")
        keywords = large_resource(_KEYWORDS, encode_keywords(model.keywords), "keywords")
        content = large_resource(IDENTIFIER, identifier, "identifier") + keywords
        content += bytes((_CHECKSUM, zero_sum(keywords), _END))
        return fill_up(content, size, tail=model.tail, fill=model.fill)


CODEC: Final = KeywordVpdCodec()
