"""E-INTEL: the EEPROM of Intel's Ethernet controllers."""

from __future__ import annotations

import dataclasses
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from formats.eeprom.framework.codec import Findings
from formats.eeprom.intel_nic import CODEC, IntelNic, SecondCopy
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

cards = with_tails(models(IntelNic, ethernet_address=macs, second=st.none()))


@given(cards)
def test_e_intel_any_model_is_written_and_read(card: IntelNic) -> None:
    check_model(CODEC, card)


@st.composite
def regions(draw: st.DrawFn) -> IntelNic:
    first: IntelNic = draw(cards)
    second: SecondCopy = draw(models(SecondCopy, ethernet_address=st.none() | macs))
    if second.tail is None or (second.tail, second.fill) == (first.tail, first.fill):
        second = dataclasses.replace(second, tail=None, fill=0xFF)
    else:
        second = dataclasses.replace(second, tail=second.tail.rstrip(bytes((second.fill,))))
    # What is as in the first copy is left out.
    same = {
        name: None
        for name in ("ethernet_address", "configuration")
        if getattr(second, name) == getattr(first, name)
    }
    alone: IntelNic = dataclasses.replace(first, second=dataclasses.replace(second, **same))  # type: ignore[arg-type]
    return alone


@given(regions(), st.sampled_from([8, 16, 128]))
def test_e_intel5_any_region_is_written_and_read(region: IntelNic, kib: int) -> None:
    data = CODEC.encode(region, kib << 10)
    assert CODEC.decode(data, Findings.strict()) == region
    check_bytes(CODEC, data)


def test_e_intel5_a_new_address_reaches_both_copies() -> None:
    both = CODEC.encode(CARD, 4096) * 2
    found = CODEC.decode(both, Findings.strict())
    assert found.second == SecondCopy()
    new = bytes.fromhex("020000123499")
    data = CODEC.encode(dataclasses.replace(found, ethernet_address=new), len(both))
    for copy in (data[:4096], data[4096:]):
        assert CODEC.decode(copy, Findings.strict()).ethernet_address == new


def test_e_intel5_copies_that_disagree_are_shown_and_cautioned_of() -> None:
    new = bytes.fromhex("020000123499")
    other = CODEC.encode(dataclasses.replace(CARD, ethernet_address=new), 4096)
    data = CODEC.encode(CARD, 4096) + other
    found = CODEC.decode(data, Findings.strict())
    assert found.second == SecondCopy(ethernet_address=new)
    assert "different addresses" in CODEC.cautions(found)[0]
    assert CODEC.encode(found, len(data)) == data
    alike = dataclasses.replace(found, second=SecondCopy(ethernet_address=CARD.ethernet_address))
    assert CODEC.encode(alike, len(data)) == CODEC.encode(CARD, 4096) * 2
    assert not CODEC.cautions(alike)


def test_e_intel5_a_damaged_second_copy_is_one_by_its_address() -> None:
    data = bytearray(CODEC.encode(CARD, 4096) * 2)
    data[4096 + 40] ^= 1
    report = Findings.tolerant()
    CODEC.decode(data, report)
    assert [(problem.offset, problem.checksum) for problem in report.problems] == [(4096 + 126, 2)]


def test_e_intel5_a_blank_half_and_other_sizes_have_one_copy() -> None:
    for data in (CODEC.encode(CARD, 8192), CODEC.encode(CARD, 2048) * 2):
        found = CODEC.decode(data, Findings.strict())
        assert found.second is None
        assert CODEC.encode(found, len(data)) == data


def test_e_intel5_what_cannot_be_written_is_named() -> None:
    region = dataclasses.replace(CARD, second=SecondCopy())
    assert len(CODEC.encode(region, None)) == 8192
    with pytest.raises(FieldError, match="second: needs a region of 8, 16 or 128 KiB"):
        CODEC.encode(region, 4096)
    large = dataclasses.replace(CARD, second=SecondCopy(tail=b"x" * 5000))
    assert len(CODEC.encode(large, None)) == 16384
    with pytest.raises(FieldError, match="second: 5128 bytes are needed"):
        CODEC.encode(large, 8192)
    both = CODEC.encode(region, 8192)
    hidden = dataclasses.replace(CARD, tail=both[128:].rstrip(b"\xff"))
    with pytest.raises(FieldError, match="tail: has a second copy in it"):
        CODEC.encode(hidden, 8192)


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
    with pytest.raises(FormatError, match=r"checksum is .*at byte 126 \[E-INTEL3\]"):
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
        "the checksum is 5e1e, and should be 5f2b at byte 126 [E-INTEL3]",
        "ff:ff:56:16:16:fc is not the address of a device at byte 0 [E-INTEL2]",
    ]
    mended = dataclasses.replace(found, ethernet_address=CARD.ethernet_address)
    assert CODEC.decode(CODEC.encode(mended, 128), Findings.strict()) == mended


def test_e_intel4_what_follows_is_kept_and_not_summed_up() -> None:
    data = CODEC.encode(CARD, None) + b"PXE settings" + bytes(20)
    found = CODEC.decode(data, Findings.strict())
    assert (found.tail, found.fill) == (b"PXE settings", 0)
    assert CODEC.encode(found, len(data)) == data
