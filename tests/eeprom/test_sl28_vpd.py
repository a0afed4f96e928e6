"""E-SL: the VPD of Kontron's sl28 boards."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from formats.eeprom.framework.codec import Findings, cautions_of
from formats.eeprom.sl28_vpd import CODEC, Sl28Vpd
from formats.errors import (
    EmptyImageError,
    FieldError,
    ForeignImageError,
    FormatError,
    TruncatedImageError,
    UnsupportedError,
)
from tests.support.models import models

from .support import check_bytes, check_model, damaged, macs, with_tails

BOARD = Sl28Vpd(serial_number="000000001234567", base_mac_address=bytes.fromhex("02a0c9112233"))

boards = with_tails(models(Sl28Vpd, base_mac_address=macs))


def _by_hand(serial: bytes, mac: bytes, version: int = 1) -> bytes:
    """Build what `struct sl28vpd_v1` of Linux's drivers/nvmem/layouts/sl28vpd.c lays out."""
    start = b"V" + bytes((version,)) + serial.ljust(15, b"\x00") + mac
    # The remainder of a division by x⁸ + x² + x + 1, done as a long one.
    remainder = int.from_bytes(start + b"\x00", "big")
    for bit in range(remainder.bit_length() - 1, 7, -1):
        if remainder >> bit & 1:
            remainder ^= 0x107 << (bit - 8)
    return start + bytes((remainder,))


@given(boards)
def test_e_sl_any_model_is_written_and_read(board: Sl28Vpd) -> None:
    check_model(CODEC, board)


@given(st.data())
def test_e_sl_damaged_bytes_are_read_or_refused(data: st.DataObject) -> None:
    check_bytes(CODEC, data.draw(damaged(CODEC.encode(BOARD, 32))))


def test_e_sl1_to_sl4_what_linux_lays_out_is_written() -> None:
    data = _by_hand(b"000000001234567", BOARD.base_mac_address)
    assert CODEC.encode(BOARD, None) == data
    assert len(data) == 24
    assert CODEC.decode(data + b"\xff" * 8, Findings.strict()) == BOARD


def test_e_sl1_other_things_are_told_apart() -> None:
    for data, error in (
        (b"", EmptyImageError),
        (b"\xff" * 64, EmptyImageError),
        (b"W" + bytes(63), ForeignImageError),
        (b"V\x01" + bytes(10), TruncatedImageError),
        (_by_hand(b"1", BOARD.base_mac_address, version=2), UnsupportedError),
    ):
        with pytest.raises(error):
            CODEC.decode(data, Findings.tolerant())


def test_e_sl2_a_short_serial_number_is_followed_by_zeros() -> None:
    data = _by_hand(b"7", BOARD.base_mac_address)
    assert CODEC.decode(data, Findings.strict()).serial_number == "7"


def test_e_sl3_linux_takes_no_address_of_a_group_and_no_zeros() -> None:
    for mac in (bytes(6), bytes.fromhex("01005e000001"), b"\xff" * 6):
        with pytest.raises(FieldError, match="base-mac-address"):
            CODEC.encode(Sl28Vpd(serial_number="1", base_mac_address=mac), None)
        with pytest.raises(FormatError, match="not the address of a device at byte 17"):
            CODEC.decode(_by_hand(b"1", mac), Findings.strict())


def test_codecs_that_know_of_no_harm_have_no_cautions() -> None:
    assert cautions_of(CODEC, BOARD) == ()


def test_e_sl4_a_wrong_crc_is_found_and_the_rest_read() -> None:
    data = bytearray(CODEC.encode(BOARD, None))
    data[3] ^= 0x40
    with pytest.raises(FormatError, match="E-SL4"):
        CODEC.decode(data, Findings.strict())
    report = Findings.tolerant()
    assert CODEC.decode(data, report).base_mac_address == BOARD.base_mac_address
    assert [problem.rule for problem in report.problems] == ["E-SL4"]
