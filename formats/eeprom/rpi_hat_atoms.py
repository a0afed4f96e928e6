"""The content of the atoms of a HAT: vendor info and GPIO maps (E-HAT5 to E-HAT7)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated, Final

from msgspec import Meta

from formats.eeprom.framework.codec import Findings
from formats.eeprom.framework.limits import UInt16
from formats.eeprom.parts.texts import LATIN1
from formats.errors import FieldError

#: The first GPIO of each bank, and the one after its last.
GPIO_BANK_0_PINS: Final = range(28)
GPIO_BANK_1_PINS: Final = range(28, 46)

_VENDOR: Final = struct.Struct("<16sHHBB")  # UUID, product ID, version, lengths of both texts
_DRIVE_MOST: Final = 8
_SETTING_MOST: Final = 2

Text = Annotated[str, Meta(max_length=255, pattern=LATIN1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class VendorInfo:
    """The identification of a board.

    Attributes:
        uuid: Unique for every board ever made; its bytes in the order of its text.
        pid: Product ID.
        pver: Product version.
        vstr: The vendor.
        pstr: The product.
    """

    uuid: Annotated[bytes, Meta(min_length=16, max_length=16, description="a UUID")]
    pid: UInt16 = 0
    pver: UInt16 = 0
    vstr: Text
    pstr: Text


class FunctionSelect(IntEnum):
    """The function of a GPIO, by the numbers of the BCM2835."""

    INPUT = 0
    OUTPUT = 1
    ALT5 = 2
    ALT4 = 3
    ALT0 = 4
    ALT1 = 5
    ALT2 = 6
    ALT3 = 7


class PullType(IntEnum):
    """The pull resistor of a GPIO."""

    DEFAULT = 0
    UP = 1
    DOWN = 2
    NONE = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """One GPIO.

    Attributes:
        gpio: Its number at the BCM2835, not the number of the connector's pin.
        func_sel: Its function.
        pulltype: Its pull resistor.
        is_used: The board uses it.
    """

    gpio: Annotated[int, Meta(ge=0, le=45)]
    func_sel: FunctionSelect = FunctionSelect.INPUT
    pulltype: PullType = PullType.DEFAULT
    is_used: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class GpioMap:
    """How a board uses a bank of GPIOs.

    Attributes:
        drive: 0 for the default, otherwise units of 2 mA.
        slew: 0 for the default, 1 for limited, 2 for not limited.
        hysteresis: 0 for the default, 1 for off, 2 for on.
        back_power: 0 if the board does not power the Pi, 1 for up to 1.3 A, 2 for 2 A;
            of bank 0 only.
        pins: Those that the board uses, in ascending order; others are zero.
    """

    drive: Annotated[int, Meta(ge=0, le=_DRIVE_MOST)] = 0
    slew: Annotated[int, Meta(ge=0, le=_SETTING_MOST)] = 0
    hysteresis: Annotated[int, Meta(ge=0, le=_SETTING_MOST)] = 0
    back_power: Annotated[int, Meta(ge=0, le=_SETTING_MOST)] = 0
    pins: tuple[Pin, ...] = ()


def decode_vendor_info(data: bytes) -> VendorInfo:
    """Return the vendor info in the data of an atom (E-HAT5).

    Raises:
        ValueError: Its size does not match its lengths.
    """
    if len(data) < _VENDOR.size:
        raise ValueError(f"has {len(data)} bytes, but needs at least {_VENDOR.size}")
    number, pid, pver, vendor_size, product_size = _VENDOR.unpack_from(data)
    if len(data) != _VENDOR.size + vendor_size + product_size:
        raise ValueError(
            f"has {len(data)} bytes, but announces {_VENDOR.size + vendor_size + product_size}"
        )
    texts = data[_VENDOR.size :].decode("latin-1")
    vstr, pstr = texts[:vendor_size], texts[vendor_size:]
    # The last byte of the text comes first, as eepmake stores it.
    return VendorInfo(uuid=number[::-1], pid=pid, pver=pver, vstr=vstr, pstr=pstr)


def encode_vendor_info(model: VendorInfo) -> bytes:
    """Return the data of an atom with vendor info (E-HAT5)."""
    vstr, pstr = model.vstr.encode("latin-1"), model.pstr.encode("latin-1")
    head = _VENDOR.pack(model.uuid[::-1], model.pid, model.pver, len(vstr), len(pstr))
    return head + vstr + pstr


def decode_gpio_map(data: bytes, bank: range, at: int, report: Findings) -> GpioMap:
    """Return the GPIO map in the data of an atom (E-HAT6, E-HAT7).

    Args:
        data: Of the atom.
        bank: The GPIOs that it is about.
        at: Where the data is in the EEPROM, for the report.
        report: Collects the problems.

    Raises:
        ValueError: It has a wrong size.
    """
    if len(data) != 2 + len(bank):
        raise ValueError(f"has {len(data)} bytes instead of {2 + len(bank)}")
    settings, power = data[0], data[1]
    found = GpioMap(
        drive=settings & 0x0F,
        slew=settings >> 4 & 3,
        hysteresis=settings >> 6,
        back_power=power & 3,
        pins=tuple(
            Pin(
                gpio=gpio,
                func_sel=FunctionSelect(octet & 7),
                pulltype=PullType(octet >> 5 & 3),
                is_used=bool(octet & 0x80),
            )
            for gpio, octet in zip(bank, data[2:], strict=True)
            if octet
        ),
    )
    if found.drive > _DRIVE_MOST or max(found.slew, found.hysteresis) > _SETTING_MOST:
        report.problem(at, "E-HAT6", f"{settings:#04x} has reserved settings")
    if found.back_power > _SETTING_MOST or power & ~3 or (bank != GPIO_BANK_0_PINS and power):
        report.problem(at + 1, "E-HAT6", f"{power:#04x} has a reserved power setting")
    for index, octet in enumerate(data[2:]):
        if octet & 0x18:
            report.problem(at + 2 + index, "E-HAT7", f"{octet:#04x} has reserved bits")
    return found


def encode_gpio_map(model: GpioMap, bank: range, path: str) -> bytes:
    """Return the data of an atom with a GPIO map (E-HAT6, E-HAT7).

    Args:
        model: The map.
        bank: The GPIOs that it is about.
        path: Of the map, for errors.

    Raises:
        FieldError: It does not fit this bank.
    """
    if model.back_power and bank != GPIO_BANK_0_PINS:
        raise FieldError(f"{path}.back-power", "is possible in bank 0 only")
    settings = model.drive | model.slew << 4 | model.hysteresis << 6
    made = bytearray((settings, model.back_power)) + bytearray(len(bank))
    last = -1
    for index, pin in enumerate(model.pins):
        if pin.gpio not in bank or pin.gpio <= last:
            raise FieldError(
                f"{path}.pins[{index}].gpio",
                f"must ascend from {bank.start} to {bank.stop - 1}",
            )
        last = pin.gpio
        octet = pin.func_sel | pin.pulltype << 5 | pin.is_used << 7
        if not octet:
            raise FieldError(f"{path}.pins[{index}]", "has only defaults: leave it out")
        made[2 + pin.gpio - bank.start] = octet
    return bytes(made)
