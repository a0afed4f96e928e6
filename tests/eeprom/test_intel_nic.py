"""E-INTEL: the EEPROM of Intel's Ethernet controllers."""

from __future__ import annotations

import dataclasses
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from formats.eeprom.framework.codec import Findings
from formats.eeprom.intel_nic import CODEC, IntelNic
from formats.errors import EmptyImageError, FieldError, FormatError, TruncatedImageError
from tests.support.models import models

from .support import check_bytes, check_model, damaged, macs, with_tails

VECTOR = Path(__file__).parents[1] / "vectors" / "eeprom" / "intel-nic-damaged.hex"

# Words 3 to 0x3E of an 82540EM, as far as its manual names them: compatibility, PBA
# number, control, and the identifiers of subsystem and device.
_NAMED = {
    0x08: 0xA787,
    0x09: 0x0017,
    0x0A: 0x640A,
    0x0B: 0x001E,
    0x0C: 0x8086,
    0x0D: 0x100E,
    0x0E: 0x8086,
}
WORDS = [_NAMED.get(number, 0) for number in range(3, 0x3F)]
CARD = IntelNic(
    ethernet_address=bytes.fromhex("020000123456"), configuration=struct.pack("<60H", *WORDS)
)

cards = with_tails(models(IntelNic, ethernet_address=macs))


@given(cards)
def test_e_intel_any_model_is_written_and_read(card: IntelNic) -> None:
    check_model(CODEC, card)


@given(st.data())
def test_e_intel_damaged_bytes_are_read_or_refused(data: st.DataObject) -> None:
    check_bytes(CODEC, data.draw(damaged(CODEC.encode(CARD, 160))))


def test_e_intel1_to_3_the_words_are_where_the_manual_has_them() -> None:
    data = CODEC.encode(CARD, None)
    words = struct.unpack("<64H", data)
    # Word 0 has bytes 2 and 1 of the address, as the manual writes it.
    assert words[:3] == (0x0002, 0x1200, 0x5634)
    assert list(words[3:0x3F]) == WORDS
    assert sum(words) % 0x10000 == 0xBABA


def test_e_intel1_blank_and_short_ones_are_told_apart() -> None:
    with pytest.raises(EmptyImageError):
        CODEC.decode(b"\xff" * 128, Findings.tolerant())
    with pytest.raises(TruncatedImageError):
        CODEC.decode(CODEC.encode(CARD, None)[:127], Findings.tolerant())


def test_e_intel2_an_address_that_drivers_refuse_is_refused() -> None:
    group = bytes.fromhex("030000123456")
    with pytest.raises(FieldError, match="ethernet-address"):
        CODEC.encode(dataclasses.replace(CARD, ethernet_address=group), None)
    data = bytearray(CODEC.encode(CARD, None))
    # The first byte goes up by one and another of equal weight down: the sum holds.
    data[0] += 1
    data[20] -= 1
    with pytest.raises(FormatError, match="not the address of a device at byte 0"):
        CODEC.decode(data, Findings.strict())


def test_e_intel3_a_changed_address_without_a_new_checksum_is_found() -> None:
    data = bytearray(CODEC.encode(CARD, None))
    data[5] ^= 1
    with pytest.raises(FormatError, match=r"checksum is 0x.*at byte 126 \[E-INTEL3\]"):
        CODEC.decode(data, Findings.strict())
    report = Findings.tolerant()
    found = CODEC.decode(data, report)
    assert found.ethernet_address == bytes.fromhex("020000123457")
    assert CODEC.decode(CODEC.encode(found, 128), Findings.strict()) == found


def test_e_intel3_a_damaged_one_is_judged_as_linux_does() -> None:
    # e1000 said of it: Current EEPROM Checksum : 0x1e5e, Calculated : 0x2b5f
    data = bytes.fromhex(VECTOR.read_text())
    report = Findings.tolerant()
    found = CODEC.decode(data, report)
    assert [str(problem) for problem in report.problems] == [
        "the checksum is 0x1e5e, and should be 0x2b5f at byte 126 [E-INTEL3]",
        "ff:ff:56:16:16:fc is not the address of a device at byte 0 [E-INTEL2]",
    ]
    mended = dataclasses.replace(found, ethernet_address=CARD.ethernet_address)
    assert CODEC.decode(CODEC.encode(mended, 128), Findings.strict()) == mended


def test_e_intel4_what_follows_is_kept_and_not_summed_up() -> None:
    data = CODEC.encode(CARD, None) + b"PXE settings" + bytes(20)
    found = CODEC.decode(data, Findings.strict())
    assert (found.tail, found.fill) == (b"PXE settings", 0)
    assert CODEC.encode(found, len(data)) == data
