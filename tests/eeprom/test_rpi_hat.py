"""E-HAT: identification of Raspberry Pi HATs and HAT+ boards."""

from __future__ import annotations

import dataclasses
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from formats.eeprom.framework.codec import Findings, cautions_of
from formats.eeprom.parts.ordering import stated_order
from formats.eeprom.rpi_hat import CODEC, Atom, RpiHat
from formats.eeprom.rpi_hat_atoms import FunctionSelect, GpioMap, Pin, PullType, VendorInfo
from formats.errors import (
    EmptyImageError,
    FieldError,
    ForeignImageError,
    FormatError,
    UnsupportedError,
)
from tests.support.models import models

from .support import check_bytes, check_model, damaged, with_tails

VECTOR = Path(__file__).parents[1] / "vectors" / "eeprom" / "rpi-hat-raspjamming.hex"

VENDOR = VendorInfo(
    uuid=bytes.fromhex("91ec7500-8c5f-403a-91f3-89977173dc01".replace("-", "")),
    pid=0x6C20,
    pver=0x0100,
    vstr="Grazer Computer Club (Austria)",
    pstr="GC2-xHAT (Raspjamming HAT)",
)
HAT = RpiHat(
    version=1,
    vendor_info=VENDOR,
    gpio_bank_0=GpioMap(
        drive=4,
        slew=2,
        hysteresis=1,
        back_power=1,
        pins=(
            Pin(gpio=2, func_sel=FunctionSelect.ALT0, pulltype=PullType.UP),
            Pin(gpio=27, func_sel=FunctionSelect.OUTPUT, pulltype=PullType.NONE),
        ),
    ),
    dt_blob=b"\xd0\x0d\xfe\xed",
    custom_data=(b"one", b"two"),
    gpio_bank_1=GpioMap(pins=(Pin(gpio=45, func_sel=FunctionSelect.ALT4),)),
    other=(Atom(type=0x1234, content=b"later"),),
)
HAT_PLUS = RpiHat(vendor_info=VENDOR, dt_blob=b"acme-sensor", current_supply=3000)


def crc(octets: bytes) -> int:
    """Divide by x¹⁶ + x¹⁵ + x² + 1 with the bits of each byte reversed, as eeplib.c does."""
    bits = [octet >> bit & 1 for octet in octets for bit in range(8)] + [0] * 16
    state = 0
    for bit in bits:
        state = state << 1 | bit
        if state & 0x10000:
            state ^= 0x18005
    return int(f"{state:016b}"[::-1], 2)


def by_hand(atoms: list[tuple[int, bytes]], *, version: int = 1, counts: int = 0) -> bytes:
    """Build what the specification lays out, atom by atom."""
    body = b""
    for count, (kind, data) in enumerate(atoms, counts):
        atom = struct.pack("<HHI", kind, count, len(data) + 2) + data
        body += atom + struct.pack("<H", crc(atom))
    return b"R-Pi" + struct.pack("<BBHI", version, 0, len(atoms), 12 + len(body)) + body


VENDOR_DATA = (
    VENDOR.uuid[::-1]
    + bytes.fromhex("206c 0001 1e 1a")
    + b"Grazer Computer Club (Austria)GC2-xHAT (Raspjamming HAT)"
)
NO_GPIO = bytes(30)


def pins(first: int, end: int) -> st.SearchStrategy[tuple[Pin, ...]]:
    drawn = models(Pin, gpio=st.integers(first, end - 1)).filter(
        lambda pin: bool(pin.is_used or pin.func_sel or pin.pulltype)
    )
    return st.lists(drawn, max_size=5, unique_by=lambda pin: pin.gpio).map(
        lambda found: tuple(sorted(found, key=lambda pin: pin.gpio))
    )


@st.composite
def hats(draw: st.DrawFn) -> RpiHat:
    chosen: dict[str, st.SearchStrategy[Any]] = {"order": st.just(())}
    if draw(st.booleans()):
        chosen |= {
            "version": st.just(1),
            "gpio_bank_0": models(GpioMap, pins=pins(0, 28)),
            "gpio_bank_1": st.none() | models(GpioMap, pins=pins(28, 46), back_power=st.just(0)),
            "current_supply": st.none(),
            "dt_blob": st.none() | st.binary(min_size=1, max_size=20),
        }
    else:
        chosen |= {
            "version": st.just(2),
            "gpio_bank_0": st.none(),
            "gpio_bank_1": st.none(),
            "dt_blob": st.none() | st.from_regex(rb"\A[A-Za-z0-9].{0,20}\Z"),
        }
    chosen["custom_data"] = st.lists(st.binary(min_size=1, max_size=20), max_size=3).map(tuple)
    chosen["other"] = st.lists(
        models(Atom, content=st.binary(min_size=1, max_size=20)), max_size=3
    ).map(tuple)
    found: RpiHat = draw(with_tails(models(RpiHat, **chosen)))
    kinds = [
        1,
        *[2] * (found.gpio_bank_0 is not None),
        *[3] * (found.dt_blob is not None),
        *[4] * len(found.custom_data),
        *[5] * (found.gpio_bank_1 is not None),
        *[6] * (found.current_supply is not None),
        *[atom.type for atom in found.other],
    ]
    types = iter(atom.type for atom in found.other)
    order = [kind if kind <= 6 else next(types) for kind in draw(st.permutations(kinds))]
    return dataclasses.replace(found, order=stated_order(order, kinds))


@given(hats())
def test_e_hat_any_model_is_written_and_read(hat: RpiHat) -> None:
    check_model(CODEC, hat)


@given(st.data(), st.sampled_from([HAT, HAT_PLUS]))
def test_e_hat_damaged_bytes_are_read_or_refused(data: st.DataObject, hat: RpiHat) -> None:
    check_bytes(CODEC, data.draw(damaged(CODEC.encode(hat, 512))))


@given(
    st.lists(st.tuples(st.integers(0, 8), st.binary(max_size=40)), max_size=6),
    st.integers(0, 3),
    st.integers(0, 1),
)
def test_e_hat_any_atoms_are_read_or_refused(
    atoms: list[tuple[int, bytes]], version: int, counts: int
) -> None:
    check_bytes(CODEC, by_hand([(1, VENDOR_DATA), *atoms], version=version, counts=counts))


def test_e_hat1_to_7_every_atom_is_where_the_specification_has_it() -> None:
    gpio = bytearray(30)
    gpio[0] = 4 | 2 << 4 | 1 << 6
    gpio[1] = 1
    gpio[2 + 2] = 0x80 | 1 << 5 | 4
    gpio[2 + 27] = 0x80 | 3 << 5 | 1
    bank_1 = bytearray(20)
    bank_1[2 + 45 - 28] = 0x80 | 3
    data = by_hand(
        [
            (1, VENDOR_DATA),
            (2, bytes(gpio)),
            (3, b"\xd0\x0d\xfe\xed"),
            (4, b"one"),
            (4, b"two"),
            (5, bytes(bank_1)),
            (0x1234, b"later"),
        ]
    )
    assert CODEC.encode(HAT, None) == data
    assert CODEC.decode(data, Findings.strict()) == HAT


def test_e_hat8_a_hat_plus_names_its_overlay_and_supplies_power() -> None:
    data = by_hand(
        [(1, VENDOR_DATA), (3, b"acme-sensor"), (6, bytes.fromhex("b80b0000"))], version=2
    )
    assert CODEC.encode(HAT_PLUS, None) == data
    assert CODEC.decode(data, Findings.strict()) == HAT_PLUS


def test_e_hat_a_board_on_sale_is_read() -> None:
    data = bytes.fromhex(VECTOR.read_text())
    found = CODEC.decode(data, Findings.strict())
    assert found == RpiHat(version=1, vendor_info=VENDOR, gpio_bank_0=GpioMap(), fill=0)
    assert CODEC.encode(found, len(data)) == data
    assert CODEC.encode(found, None) == data[:0x8C]


def test_e_hat1_other_things_are_told_apart() -> None:
    for data, error in (
        (b"\xff" * 64, EmptyImageError),
        (b"R-pi" + bytes(60), ForeignImageError),
        (by_hand([(1, VENDOR_DATA)], version=3), UnsupportedError),
    ):
        with pytest.raises(error):
            CODEC.decode(data, Findings.tolerant())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (by_hand([(1, VENDOR_DATA), (2, NO_GPIO)])[:-1], "at byte 8 .E-HAT2"),
        (by_hand([(1, VENDOR_DATA), (2, NO_GPIO)], counts=1), "number 1 at byte 14 .E-HAT3"),
        (by_hand([(1, VENDOR_DATA), (2, NO_GPIO), (0, b"x")]), "0x0000 are not valid.*E-HAT3"),
        (by_hand([(1, VENDOR_DATA), (1, VENDOR_DATA)]), "more than one atom of type 1"),
        (by_hand([(1, VENDOR_DATA), (2, NO_GPIO[:-1])]), "type 2 has 29 bytes instead of 30"),
        (
            by_hand([(1, VENDOR_DATA), (2, b"\x09" + NO_GPIO[1:])]),
            "0x09 has reserved settings .*E-HAT6",
        ),
        (
            by_hand([(1, VENDOR_DATA), (2, b"\x30" + NO_GPIO[1:])]),
            "0x30 has reserved settings .*E-HAT6",
        ),
        (
            by_hand([(1, VENDOR_DATA), (2, b"\x00\x04" + NO_GPIO[2:])]),
            "0x04 has a reserved power.*E-HAT6",
        ),
        (by_hand([(1, VENDOR_DATA), (2, b"\x00\x00\x08" + NO_GPIO[3:])]), "reserved.*E-HAT7"),
        (by_hand([(1, VENDOR_DATA)]), "gpio-bank-0 is missing.*E-HAT9"),
        (by_hand([(1, VENDOR_DATA), (2, NO_GPIO)], version=2), "is for a HAT, not.*E-HAT9"),
        (by_hand([(1, VENDOR_DATA), (2, NO_GPIO), (4, b"")]), "atom 2 is empty.*E-HAT11"),
        (
            by_hand([(1, VENDOR_DATA), (3, b"\xd0\x0d\xfe\xed")], version=2),
            "dt-blob is not the name of an overlay.*E-HAT9",
        ),
    ],
)
def test_e_hat2_to_9_what_breaks_a_rule_is_named_and_the_rest_read(
    data: bytes, message: str
) -> None:
    with pytest.raises(FormatError, match=message):
        CODEC.decode(data, Findings.strict())
    report = Findings.tolerant()
    assert CODEC.decode(data, report).vendor_info == VENDOR
    assert report.problems


@pytest.mark.parametrize("size", [0, 1, 33, 0xFFFF_FFFF])
def test_e_hat3_an_atom_that_ends_where_it_cannot_is_found(size: int) -> None:
    data = bytearray(by_hand([(1, VENDOR_DATA), (2, NO_GPIO)]))
    at = 12 + 8 + len(VENDOR_DATA) + 2
    data[at + 4 : at + 8] = size.to_bytes(4, "little")
    with pytest.raises(FormatError, match=rf"atom 1 has an impossible length at byte {at} .E-HAT3"):
        CODEC.decode(data, Findings.strict())
    assert CODEC.decode(data, Findings.tolerant()).vendor_info == VENDOR


def test_e_hat4_a_ccitt_crc_as_the_text_once_said_is_refused() -> None:
    import binascii

    data = bytearray(by_hand([(1, VENDOR_DATA), (2, NO_GPIO)]))
    data[-2:] = binascii.crc_hqx(data[-42:-2], 0xFFFF).to_bytes(2, "little")
    with pytest.raises(FormatError, match=rf"CRC of atom 1 .* at byte {len(data) - 2} .E-HAT4"):
        CODEC.decode(data, Findings.strict())
    data[-2:] = bytes(2)
    found = CODEC.decode(data, Findings.tolerant())
    assert CODEC.encode(found, None) == by_hand([(1, VENDOR_DATA), (2, NO_GPIO)])


def test_e_hat5_the_serial_number_of_four_bytes_is_no_vendor_info() -> None:
    # As the text had it at first: serial 4, product ID, version, and two texts.
    early = bytes.fromhex("01000000 0100 0100 04 03") + b"ACMEHAT"
    with pytest.raises(FormatError, match="type 1 has 17 bytes, but needs at least 22"):
        CODEC.decode(by_hand([(1, early)]), Findings.strict())
    with pytest.raises(FormatError, match="the vendor info is missing"):
        CODEC.decode(by_hand([(1, early)]), Findings.tolerant())


def test_e_hat5_a_uuid_of_zeros_is_warned_of() -> None:
    blank = dataclasses.replace(HAT, vendor_info=dataclasses.replace(VENDOR, uuid=bytes(16)))
    assert "UUID is zero" in cautions_of(CODEC, blank)[0]
    assert cautions_of(CODEC, HAT) == ()


@pytest.mark.parametrize(
    ("hat", "change", "path"),
    [
        (HAT, {"current_supply": 1}, "current-supply"),
        (HAT, {"gpio_bank_0": None}, "gpio-bank-0"),
        (HAT_PLUS, {"gpio_bank_0": GpioMap()}, "gpio-bank-0"),
        (HAT_PLUS, {"dt_blob": b"\xd0\x0d\xfe\xed"}, "dt-blob"),
        (HAT, {"gpio_bank_1": GpioMap(back_power=1)}, "gpio-bank-1.back-power"),
        (HAT, {"gpio_bank_1": GpioMap(pins=(Pin(gpio=2),))}, "gpio-bank-1.pins[0].gpio"),
        (HAT, {"gpio_bank_0": GpioMap(pins=(Pin(gpio=2),) * 2)}, "gpio-bank-0.pins[1].gpio"),
        (
            HAT,
            {"gpio_bank_0": GpioMap(pins=(Pin(gpio=2, is_used=False),))},
            "gpio-bank-0.pins[0]",
        ),
        (HAT, {"gpio_bank_0": GpioMap(drive=9)}, "gpio-bank-0.drive"),
        (HAT, {"gpio_bank_0": GpioMap(slew=3)}, "gpio-bank-0.slew"),
        (HAT, {"gpio_bank_0": GpioMap(hysteresis=3)}, "gpio-bank-0.hysteresis"),
        (HAT, {"other": (Atom(type=4),)}, "other[0].type"),
        (HAT, {"order": (1, 2)}, "order"),
        (HAT, {"order": (4, 4, 4)}, "order"),
        (HAT, {"order": (1, 2, 3, 4, 4, 5, 0x1234)}, "order"),
        (
            HAT,
            {"other": (Atom(type=7, content=b"x"), Atom(type=8, content=b"y")), "order": (8,)},
            "order",
        ),
        (HAT, {"custom_data": (b"one", b"")}, "custom-data[1]"),
        (HAT, {"dt_blob": b""}, "dt-blob"),
        (HAT, {"other": (Atom(type=7),)}, "other[0].content"),
        (HAT, {"vendor_info": dataclasses.replace(VENDOR, vstr="€")}, "vendor-info.vstr"),
        (HAT, {"vendor_info": dataclasses.replace(VENDOR, pstr="x" * 256)}, "vendor-info.pstr"),
        (HAT, {"vendor_info": dataclasses.replace(VENDOR, uuid=bytes(4))}, "vendor-info.uuid"),
    ],
)
def test_e_hat_what_cannot_be_written_is_named(
    hat: RpiHat, change: dict[str, Any], path: str
) -> None:
    with pytest.raises(FieldError) as caught:
        CODEC.encode(dataclasses.replace(hat, **change), None)
    assert caught.value.path == path
