"""The checksums that EEPROM formats use.

CRCs are named as the catalogue of parametrised CRC algorithms at
https://reveng.sourceforge.io/crc-catalogue/ names them; its check values, over
``123456789``, are in the tests.
"""

from __future__ import annotations

import binascii
import functools
import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from formats.devices.device import ReadableBuffer
    from formats.eeprom.framework.codec import Findings


def zero_sum(data: ReadableBuffer | tuple[int, ...]) -> int:
    """Return the byte that makes the sum of all bytes 0 modulo 256."""
    return -sum(bytes(data)) & 0xFF


def check_zero_sum(data: bytes, at: int, rule: str, what: str, report: Findings) -> None:
    """Check that the sum of all bytes is 0 modulo 256.

    Args:
        data: Its last byte is the checksum.
        at: Where that byte is in the EEPROM, for the report.
        rule: That says so.
        what: The checksum's name in the message.
        report: Gets a checksum that is wrong.
    """
    report.compare(at, rule, what, data[-1:], bytes((zero_sum(data[:-1]),)))


def crc8_smbus(data: ReadableBuffer) -> int:
    """Return CRC-8/SMBUS: polynomial 0x07, from 0, not reflected."""
    table, crc = _crc8_table(0x07), 0
    for byte in bytes(data):
        crc = table[crc ^ byte]
    return crc


def crc16_xmodem(data: ReadableBuffer) -> int:
    """Return CRC-16/XMODEM: polynomial 0x1021, from 0, not reflected."""
    return binascii.crc_hqx(data, 0)


def crc16_ibm_3740(data: ReadableBuffer) -> int:
    """Return CRC-16/IBM-3740, also called CCITT-FALSE: as XMODEM, but from 0xFFFF."""
    return binascii.crc_hqx(data, 0xFFFF)


def crc16_arc(data: ReadableBuffer) -> int:
    """Return CRC-16/ARC: polynomial 0x8005 reflected (0xA001), from 0."""
    table, crc = _crc16_reflected_table(0xA001), 0
    for byte in bytes(data):
        crc = crc >> 8 ^ table[(crc ^ byte) & 0xFF]
    return crc


def crc32(data: ReadableBuffer) -> int:
    """Return CRC-32/ISO-HDLC, the one of zlib and Ethernet."""
    return zlib.crc32(data)


@functools.cache
def _crc8_table(polynomial: int) -> tuple[int, ...]:
    table = []
    for value in range(256):
        crc = value
        for _ in range(8):
            crc = (crc << 1 ^ (polynomial if crc & 0x80 else 0)) & 0xFF
        table.append(crc)
    return tuple(table)


@functools.cache
def _crc16_reflected_table(polynomial: int) -> tuple[int, ...]:
    table = []
    for value in range(256):
        crc = value
        for _ in range(8):
            crc = crc >> 1 ^ (polynomial if crc & 1 else 0)
        table.append(crc)
    return tuple(table)
