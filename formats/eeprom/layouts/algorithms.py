"""The checksums that a layout can name, or give the parameters of (E-LAY8)."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Final

from formats.eeprom.parts import checksums
from formats.errors import FieldError

if TYPE_CHECKING:
    from collections.abc import Callable

    from formats.eeprom.framework.limits import ByteOrder
    from formats.eeprom.layouts.declaration import Checksum, Crc

_NAMED: Final[dict[str, tuple[Callable[[bytes], int], int]]] = {
    "zero-sum-8": (checksums.zero_sum, 1),
    "sum-8": (lambda octets: sum(octets) & 0xFF, 1),
    "sum-16": (lambda octets: sum(octets) & 0xFFFF, 2),
    "sum-32": (lambda octets: sum(octets) & 0xFFFF_FFFF, 4),
    "xor-8": (lambda octets: functools.reduce(int.__xor__, octets, 0), 1),
    "crc-8-smbus": (checksums.crc8_smbus, 1),
    "crc-16-xmodem": (checksums.crc16_xmodem, 2),
    "crc-16-ibm-3740": (checksums.crc16_ibm_3740, 2),
    "crc-16-arc": (checksums.crc16_arc, 2),
    "crc-32": (checksums.crc32, 4),
}


def compute_of(
    declared: Checksum, order: ByteOrder, path: str
) -> tuple[Callable[[bytes], bytes], int]:
    """Return what computes a checksum as it is stored, and how many bytes it has.

    Raises:
        FieldError: There is no such algorithm.
    """
    if (declared.algorithm is None) == (declared.crc is None):
        raise FieldError(path, "has either an algorithm or the parameters of a crc")
    if declared.crc is not None:
        function, size = functools.partial(_crc, declared.crc), declared.crc.width // 8
    elif declared.algorithm in _NAMED:
        function, size = _NAMED[declared.algorithm]  # type: ignore[assignment]
    else:
        raise FieldError(
            f"{path}.algorithm", f"{declared.algorithm} is not one of {', '.join(_NAMED)}"
        )
    return lambda octets: function(octets).to_bytes(size, order.value), size


def _crc(crc: Crc, octets: bytes) -> int:
    """Return a CRC, as the catalogue at reveng.sourceforge.io defines its parameters."""
    mask = (1 << crc.width) - 1
    table = _table(crc.width, crc.poly & mask)
    value = crc.init & mask
    for octet in octets:
        index = value >> crc.width - 8 ^ (_reflected(octet, 8) if crc.refin else octet)
        value = (value << 8 ^ table[index & 0xFF]) & mask
    if crc.refout:
        value = _reflected(value, crc.width)
    return value ^ crc.xorout & mask


@functools.cache
def _table(width: int, poly: int) -> tuple[int, ...]:
    mask, top = (1 << width) - 1, 1 << width - 1
    table = []
    for octet in range(256):
        value = octet << width - 8
        for _ in range(8):
            value = (value << 1 ^ (poly if value & top else 0)) & mask
        table.append(value)
    return tuple(table)


@functools.lru_cache(maxsize=512)
def _reflected(value: int, width: int) -> int:
    return int(f"{value:0{width}b}"[::-1], 2)
