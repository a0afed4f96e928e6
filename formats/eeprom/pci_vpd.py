"""PCI vital product data, which a PCI device's VPD capability returns (E-PCI1 to E-PCI7)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, ClassVar, Final

from msgspec import Meta

from formats.eeprom.framework.fields import validate
from formats.eeprom.framework.limits import Fill, Tail
from formats.eeprom.parts.checksums import check_zero_sum, zero_sum
from formats.eeprom.parts.padding import fill_up, split_rest
from formats.eeprom.parts.recognising import require_signature
from formats.eeprom.parts.resources import (
    IDENTIFIER,
    Identifier,
    KeywordName,
    KeywordValue,
    encode_keyword,
    encode_keywords,
    large_resource,
    read_keywords,
    read_resource,
)
from formats.errors import FieldError

if TYPE_CHECKING:
    from formats.devices.device import ReadableBuffer
    from formats.eeprom.framework.codec import Findings

_READ_ONLY: Final = 0x90
_READ_WRITE: Final = 0x91
_END: Final = 0x78

_CHECKSUM_KEYWORD: Final = "RV"
_FREE_KEYWORD: Final = "RW"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reserve:
    """Bytes without a meaning: ``content``, then zeros.

    Attributes:
        size: Bytes in all.
        content: The bytes before the zeros; they do not end with a zero.
    """

    size: Annotated[int, Meta(ge=0, le=255, description="bytes in all")] = 0
    content: Annotated[bytes, Meta(max_length=255, description="the bytes before the zeros")] = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class PciVpd:
    """The vital product data of a PCI device.

    Attributes:
        identifier: The product's name.
        read_only: Keywords of VPD-R, such as ``PN`` and ``SN``, without ``RV``.
        reserved: The content of ``RV`` after its checksum.
        read_write: Keywords of VPD-W without ``RW``; None if there is no VPD-W.
        has_free: VPD-W, if there is one, ends with ``RW``.
        free: The content of ``RW``.
        tail: The bytes after the end tag.
        fill: The byte that fills the rest.
    """

    identifier: Identifier
    read_only: Mapping[KeywordName, KeywordValue] = field(default_factory=dict)
    reserved: Reserve = Reserve()
    read_write: Mapping[KeywordName, KeywordValue] | None = None
    has_free: bool = True
    free: Reserve = Reserve()
    tail: Tail = b""
    fill: Fill = 0xFF


class PciVpdCodec:
    """See `formats.eeprom.framework.codec.Codec`."""

    name: ClassVar[str] = "pci-vpd"
    title: ClassVar[str] = "PCI vital product data"
    model: ClassVar[type[PciVpd]] = PciVpd

    def decode(self, data: ReadableBuffer, report: Findings, /) -> PciVpd:
        content = bytes(data)
        require_signature(content, bytes((IDENTIFIER,)), "PCI VPD", "E-PCI3")
        return _Reader(content, report).read()

    def encode(self, model: PciVpd, size: int | None, /) -> bytes:
        validate(model)
        _check(model)
        identifier = model.identifier.encode("latin-1")
        head = large_resource(IDENTIFIER, identifier, "identifier")
        reserve = _reserve_bytes(model.reserved)
        read_only = encode_keywords(model.read_only)
        read_only += encode_keyword(_CHECKSUM_KEYWORD, b"\x00" + reserve)
        head += large_resource(_READ_ONLY, read_only, "read-only")
        place = len(head) - len(reserve) - 1
        head = head[:place] + bytes((zero_sum(head[:place]),)) + reserve
        if model.read_write is not None:
            read_write = encode_keywords(model.read_write)
            if model.has_free:
                read_write += encode_keyword(_FREE_KEYWORD, _reserve_bytes(model.free))
            head += large_resource(_READ_WRITE, read_write, "read-write")
        return fill_up(head + bytes((_END,)), size, tail=model.tail, fill=model.fill)


CODEC: Final = PciVpdCodec()


class _Reader:
    def __init__(self, data: bytes, report: Findings) -> None:
        self._data = data
        self._report = report

    def read(self) -> PciVpd:
        data, report = self._data, self._report
        read_only: dict[str, str] | None = None
        read_write: dict[str, str] | None = None
        reserved = Reserve()
        free: Reserve | None = Reserve()
        identifier = ""
        offset = 0
        while resource := read_resource(data, offset, report, "E-PCI1"):
            offset = resource.end
            if resource.tag == _END:
                if data[resource.offset] != _END:
                    report.problem(resource.offset, "E-PCI3", "the end tag is not 0x78")
                break
            if resource.tag == IDENTIFIER and not resource.offset:
                identifier = data[resource.start : resource.end].decode("latin-1")
            elif resource.tag == _READ_ONLY and read_only is None and read_write is None:
                read_only, reserved = self._read_only(resource.start, resource.end)
            elif resource.tag == _READ_WRITE and read_only is not None and read_write is None:
                read_write, free = self._read_write(resource.start, resource.end)
            else:
                report.problem(
                    resource.offset, "E-PCI3", f"resource {resource.tag:#04x} must not be here"
                )
        else:
            report.problem(offset, "E-PCI3", "the end tag is missing")
        if read_only is None:
            report.problem(offset, "E-PCI3", "VPD-R is missing")
        tail, fill = split_rest(data[offset:])
        return PciVpd(
            identifier=identifier,
            read_only=read_only or {},
            reserved=reserved,
            read_write=read_write,
            has_free=free is not None,
            free=free or Reserve(),
            tail=tail,
            fill=fill,
        )

    def _read_only(self, start: int, end: int) -> tuple[dict[str, str], Reserve]:
        values, last = self._keywords(start, end, _CHECKSUM_KEYWORD, "E-PCI4")
        if last is None:
            self._report.problem(start, "E-PCI4", f"{_CHECKSUM_KEYWORD} is missing")
            return values, Reserve()
        offset, value = last
        if not value:
            self._report.problem(offset, "E-PCI4", "RV has no checksum")
        else:
            covered = self._data[: offset + 4]
            check_zero_sum(covered, offset + 3, "E-PCI5", "the checksum", self._report)
        return values, _reserve_of(value[1:])

    def _read_write(self, start: int, end: int) -> tuple[dict[str, str], Reserve | None]:
        values, last = self._keywords(start, end, _FREE_KEYWORD, "E-PCI6")
        return values, None if last is None else _reserve_of(last[1])

    def _keywords(
        self, start: int, end: int, last: str, rule: str
    ) -> tuple[dict[str, str], tuple[int, bytes] | None]:
        """Return the keywords, and separately the one that must be the last."""
        keywords = read_keywords(self._data, start, end, self._report, "E-PCI2")
        values = {name: value.decode("latin-1") for name, _, value in keywords if name != last}
        special = [(offset, value) for name, offset, value in keywords if name == last]
        if special and keywords[-1][0] != last:
            self._report.problem(start, rule, f"{last} is not the last keyword")
        return values, special[0] if special else None


def _check(model: PciVpd) -> None:
    for path, keywords, computed in (
        ("read-only", model.read_only, _CHECKSUM_KEYWORD),
        ("read-write", model.read_write or {}, _FREE_KEYWORD),
    ):
        if computed in keywords:
            raise FieldError(f"{path}.{computed}", "is computed and cannot be given")
    if model.reserved.size > 254:
        raise FieldError("reserved.size", "at most 254 bytes are possible after the checksum")
    for path, reserve in (("reserved", model.reserved), ("free", model.free)):
        if len(reserve.content) > reserve.size:
            raise FieldError(f"{path}.size", f"is less than the {len(reserve.content)} bytes in it")
        if reserve.content.endswith(b"\x00"):
            raise FieldError(
                f"{path}.content", "ends with a zero, but zeros are added after it: leave them out"
            )
    if model.read_write is None and model.free != Reserve():
        raise FieldError("free", "is a part of VPD-W, but read-write is not given")
    if model.read_write is None and not model.has_free:
        raise FieldError("has-free", "is about VPD-W, but read-write is not given")
    if not model.has_free and model.free != Reserve():
        raise FieldError("free", "is given, but has-free says that there is no RW")


def _reserve_of(value: bytes) -> Reserve:
    return Reserve(size=len(value), content=value.rstrip(b"\x00"))


def _reserve_bytes(reserve: Reserve) -> bytes:
    return reserve.content.ljust(reserve.size, b"\x00")
