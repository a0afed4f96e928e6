"""The check values of https://reveng.sourceforge.io/crc-catalogue/."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from formats.devices.device import ReadableBuffer
from formats.eeprom.parts import checksums


@pytest.mark.parametrize(
    ("function", "check"),
    [
        (checksums.crc8_smbus, 0xF4),
        (checksums.crc16_xmodem, 0x31C3),
        (checksums.crc16_ibm_3740, 0x29B1),
        (checksums.crc16_arc, 0xBB3D),
        (checksums.crc32, 0xCBF43926),
    ],
)
def test_each_crc_gives_its_check_value(
    function: Callable[[ReadableBuffer], int], check: int
) -> None:
    assert function(b"123456789") == check
    assert function(memoryview(b"123456789")) == check


def test_the_byte_of_a_zero_sum() -> None:
    assert checksums.zero_sum(b"\x01\x02") == 0xFD
    assert checksums.zero_sum(b"") == 0
