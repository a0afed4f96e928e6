"""The EEPROM of Intel's Ethernet controllers: its MAC address and checksum (E-INTEL1 to 5)."""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import Annotated, Final

from msgspec import Meta

from formats.devices.device import ReadableBuffer
from formats.eeprom.framework.codec import Findings
from formats.eeprom.framework.fields import validate
from formats.eeprom.framework.limits import Fill, Tail
from formats.eeprom.parts.padding import BLANK, fill_up, split_rest
from formats.eeprom.parts.recognising import require_content, require_size
from formats.eeprom.parts.texts import MacAddress, is_unicast
from formats.errors import FieldError

_WORD: Final = struct.Struct("<H")
_SIZE: Final = 0x40 * _WORD.size
_CHECKSUM_AT: Final = 0x3F * _WORD.size
_SUM: Final = 0xBABA
_MAC_SIZE: Final = 6
#: Bytes of the regions of flash memories that hold two copies, each of them in one half.
_REGIONS: Final = (8 << 10, 16 << 10, 128 << 10)

Configuration = Annotated[bytes, Meta(min_length=120, max_length=120, description="words 3 to 3E")]


@dataclass(frozen=True, slots=True, kw_only=True)
class SecondCopy:
    """The copy in the second half of a region, as far as it differs from the first.

    Attributes:
        ethernet_address: None if it is that of the first copy.
        configuration: Likewise.
        tail: The bytes after the checksum; None if they are those of the first copy.
        fill: The value of unused bytes after a tail of its own.
    """

    ethernet_address: MacAddress | None = None
    configuration: Configuration | None = None
    tail: Tail | None = None
    fill: Fill = BLANK


@dataclass(frozen=True, slots=True, kw_only=True)
class IntelNic:
    """The EEPROM of a controller.

    Attributes:
        ethernet_address: Words 0 to 2, in the order of the wire.
        configuration: Words 3 to 0x3E, each with its low byte first. They differ between
            controllers, and are kept as they are.
        tail: The bytes after the checksum, which it does not cover.
        second: The second copy in the region of a flash memory; None if there is none.
        fill: The value of unused bytes.
    """

    ethernet_address: MacAddress
    configuration: Configuration
    tail: Tail = b""
    second: SecondCopy | None = None
    fill: Fill = BLANK


class _IntelNicCodec:
    name = "intel-nic"
    title = "EEPROM of Intel Ethernet controllers"
    model = IntelNic

    def decode(self, data: ReadableBuffer, report: Findings, /) -> IntelNic:
        content = bytes(data)
        require_content(content, "configuration of a controller", "E-INTEL1")
        require_size(content, _SIZE, "the EEPROM of a controller", "E-INTEL1")
        if not _has_second(content):
            return _read(content, 0, report)
        half = len(content) // 2
        first = _read(content[:half], 0, report)
        second = _read(content[half:], half, report)
        return replace(first, second=_difference(second, first))

    def encode(self, model: IntelNic, size: int | None, /) -> bytes:
        validate(model)
        if model.second is None:
            made = _written(model, size)
            if _has_second(made):
                raise FieldError("tail", "has a second copy in it: give that as second")
            return made
        first, second = _copies(model, model.second)
        if size is None:
            needed = 2 * max(_SIZE + len(first.tail), _SIZE + len(second.tail))
            size = next((region for region in _REGIONS if region >= needed), _REGIONS[-1])
        if size not in _REGIONS:
            raise FieldError("second", f"needs a region of 8, 16 or 128 KiB, not {size} bytes")
        made = _written(first, size // 2)
        try:
            return made + _written(second, size // 2)
        except FieldError as error:
            raise FieldError(f"second.{error.path}".rstrip("."), error.problem) from None

    def cautions(self, model: IntelNic, /) -> tuple[str, ...]:
        """Return that the copies disagree (E-INTEL5)."""
        second = model.second
        if second is None or second.ethernet_address in (None, model.ethernet_address):
            return ()
        caution = "the copies have different addresses: set second.ethernet-address, too"
        return (f"{caution} [E-INTEL5]",)


def _has_second(content: bytes) -> bool:
    """Say whether the bytes are a region whose second half is a copy (E-INTEL5)."""
    if len(content) not in _REGIONS:
        return False
    second = content[len(content) // 2 :][:_SIZE]
    mac = second[:_MAC_SIZE]
    is_of_first = mac == content[:_MAC_SIZE] and is_unicast(mac)
    return is_of_first or _checksum(second[:_CHECKSUM_AT]) == second[_CHECKSUM_AT:]


def _read(content: bytes, at: int, report: Findings) -> IntelNic:
    """Return what one copy says, which begins at an offset of the EEPROM."""
    start, stored = content[:_CHECKSUM_AT], content[_CHECKSUM_AT:_SIZE]
    report.compare(at + _CHECKSUM_AT, "E-INTEL3", "the checksum", stored, _checksum(start))
    mac = content[:_MAC_SIZE]
    if not is_unicast(mac):
        report.problem(at, "E-INTEL2", f"{mac.hex(':')} is not the address of a device")
    tail, fill = split_rest(content[_SIZE:])
    return IntelNic(ethernet_address=mac, configuration=start[_MAC_SIZE:], tail=tail, fill=fill)


def _written(copy: IntelNic, size: int | None) -> bytes:
    """Return the bytes of one copy; its second is not looked at."""
    if not is_unicast(copy.ethernet_address):
        raise FieldError("ethernet-address", "is not the address of a device")
    start = copy.ethernet_address + copy.configuration
    return fill_up(start + _checksum(start), size, tail=copy.tail, fill=copy.fill)


def _difference(second: IntelNic, first: IntelNic) -> SecondCopy:
    """Return what of the second copy is not as in the first."""
    has_same_rest = (second.tail, second.fill) == (first.tail, first.fill)
    return SecondCopy(
        ethernet_address=_unless_equal(second.ethernet_address, first.ethernet_address),
        configuration=_unless_equal(second.configuration, first.configuration),
        tail=None if has_same_rest else second.tail,
        fill=BLANK if has_same_rest else second.fill,
    )


def _copies(model: IntelNic, second: SecondCopy) -> tuple[IntelNic, IntelNic]:
    """Return both copies, each whole."""
    first = replace(model, second=None)
    changes = {
        name: value
        for name in ("ethernet_address", "configuration", "tail")
        if (value := getattr(second, name)) is not None
    }
    if second.tail is not None:
        changes["fill"] = second.fill
    return first, replace(first, **changes)


def _unless_equal(value: bytes, other: bytes) -> bytes | None:
    return None if value == other else value


def _checksum(content: bytes) -> bytes:
    """Return word 3F for the words before it (E-INTEL3)."""
    words: list[int] = [word for (word,) in _WORD.iter_unpack(content)]
    return _WORD.pack((_SUM - sum(words)) & 0xFFFF)


CODEC: Final = _IntelNicCodec()
