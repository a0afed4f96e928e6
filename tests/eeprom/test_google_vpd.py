"""E-GVPD: Google VPD 2.0."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from formats.eeprom.framework.codec import Findings
from formats.eeprom.google_vpd import CODEC, GoogleVpd
from formats.errors import (
    EmptyImageError,
    FieldError,
    ForeignImageError,
    FormatError,
    TruncatedImageError,
)
from tests.support.models import models

from .support import check_bytes, damaged, latin1, with_tails

#: The encoding examples of the README of ChromeOS's vpd.
README = (
    b"\x01\x04UUID\x100123456789ABCDEF"
    b"\x01\x073G_IMEI\x0eAABBBBBB-CC-DD"
    b"\x01\x0cethernet_mac\x06\x2a\x02\x03\xb3\xd5\x7c"
    b"\x00"
)
PAIRS = {
    "UUID": "0123456789ABCDEF",
    "3G_IMEI": "AABBBBBB-CC-DD",
    "ethernet_mac": "\x2a\x02\x03\xb3\xd5\x7c",
}
REGION = 0x1000
INFO = b"\xfe\x09\x01gVpdInfo\x04"


def region(pairs: bytes, *, stated: int | None = None, behind: bytes = b"") -> bytes:
    """Build a region of 4 KiB, otherwise erased."""
    size = len(pairs) if stated is None else stated
    return (b"\xff" * 0x600 + INFO + size.to_bytes(4, "little") + pairs + behind).ljust(
        REGION, b"\xff"
    )


names = st.text("abcXYZ019_", min_size=1, max_size=8)
vpds = with_tails(
    models(
        GoogleVpd,
        pairs=st.dictionaries(names, latin1 | latin1.map(lambda text: text * 40), max_size=4),
        info_size=st.none() | st.integers(0, 40),
        front=st.binary(max_size=40).map(lambda front: front.rstrip(b"\xff")),
    )
)


@given(vpds)
def test_e_gvpd_any_model_is_written_and_read_or_refused(vpd: GoogleVpd) -> None:
    if not vpd.pairs:
        vpd = dataclasses.replace(vpd, has_info=True)
    if not vpd.is_terminated:
        vpd = dataclasses.replace(vpd, tail=b"", fill=0xFF)
    if vpd.info_size is not None:
        without = dataclasses.replace(vpd, info_size=None, is_terminated=False, fill=0xFF, tail=b"")
        least = len(CODEC.encode(without, None)) - 0x600 - 16 * vpd.has_info
        stated = least + vpd.info_size
        is_usual = stated == least + vpd.is_terminated
        kept = None if is_usual or not vpd.has_info else stated
        vpd = dataclasses.replace(vpd, info_size=kept)
    data = CODEC.encode(vpd, 0x4000)
    found = CODEC.decode(data, Findings.strict())
    assert found == vpd
    assert list(found.pairs) == list(vpd.pairs)
    check_bytes(CODEC, data)


@given(st.data())
def test_e_gvpd_damaged_bytes_are_read_or_refused(data: st.DataObject) -> None:
    good = CODEC.encode(GoogleVpd(pairs=PAIRS, tail=b"x"), 0x700)
    changed = data.draw(damaged(good[0x600:]))
    check_bytes(CODEC, good[:0x600] + changed)


@given(st.binary(max_size=60))
def test_e_gvpd_any_pairs_are_read_or_refused(octets: bytes) -> None:
    check_bytes(CODEC, region(octets))
    check_bytes(CODEC, b"\xff" * 0x600 + b"\x01" + octets)


def test_e_gvpd1_to_5_the_examples_of_the_readme() -> None:
    found = CODEC.decode(region(README), Findings.strict())
    assert found == GoogleVpd(pairs=PAIRS)
    assert list(found.pairs) == list(PAIRS)
    assert CODEC.encode(found, REGION) == region(README)


def test_e_gvpd4_the_long_example_of_the_readme() -> None:
    long = "Very long " * 6579 + "..."
    assert len(long) == 65793
    data = CODEC.encode(GoogleVpd(pairs={"any": long}), None)
    start = b"\x01\x03any\x84\x82\x01Very long"
    assert data[0x610:].startswith(start)
    assert CODEC.decode(data + b"\xff", Findings.strict()).pairs == {"any": long}
    with pytest.raises(FormatError, match=r"more bytes than it needs.*E-GVPD4"):
        CODEC.decode(region(b"\x01\x80\x01a\x01b\x00"), Findings.strict())
    # Five bytes of length are more than any flash has.
    with pytest.raises(FormatError, match="E-GVPD3"):
        CODEC.decode(region(b"\x01\x01a\x81\x80\x80\x80\x01b\x00"), Findings.strict())


def test_e_gvpd1_old_images_have_no_header_and_an_entry_point_in_front() -> None:
    data = b"_SM_entry point".ljust(0x600, b"\xff") + README + b"\xff" * 100
    found = CODEC.decode(data, Findings.strict())
    assert found == GoogleVpd(pairs=PAIRS, has_info=False, front=b"_SM_entry point")
    assert CODEC.encode(found, len(data)) == data


def test_e_gvpd1_other_things_are_told_apart() -> None:
    for data, error in (
        (b"\xff" * REGION, EmptyImageError),
        (b"\x01" + b"\xff" * REGION, EmptyImageError),
        (b"\x01" + bytes(REGION), EmptyImageError),
        (b"_SM_" * 0x400, ForeignImageError),
        (region(README)[:0x600], EmptyImageError),
        (b"x" + region(README)[1:0x600], TruncatedImageError),
        (region(README)[:0x60E], TruncatedImageError),
    ):
        with pytest.raises(error):
            CODEC.decode(data, Findings.tolerant())


def test_e_gvpd2_a_size_that_is_not_that_of_the_pairs() -> None:
    padded = region(README, stated=0x100)
    found = CODEC.decode(padded, Findings.strict())
    assert found.info_size == 0x100
    assert CODEC.encode(found, REGION) == padded
    for stated in (len(README) - 2, 30, REGION):
        with pytest.raises(FormatError, match="E-GVPD"):
            CODEC.decode(region(README, stated=stated), Findings.strict())
    report = Findings.tolerant()
    assert len(CODEC.decode(region(README, stated=30), report).pairs) == 1
    assert report.problems


def test_e_gvpd5_erased_flash_ends_the_pairs() -> None:
    data = region(README[:-1])
    found = CODEC.decode(data, Findings.strict())
    assert (found.is_terminated, found.pairs) == (False, PAIRS)
    assert CODEC.encode(found, REGION) == data
    with pytest.raises(FormatError, match="the terminator is missing"):
        CODEC.decode(data[: 0x610 + len(README) - 1], Findings.strict())


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (b"\x01\x03a-b\x01c\x00", "'a-b' is not a name.*E-GVPD6"),
        (b"\x01\x00\x01c\x00", "'' is not a name.*E-GVPD6"),
        (b"\x01\x01a\x01c\x01\x01a\x01d\x00", "a occurs twice.* at byte 1557 .E-GVPD6"),
        (b"\x01\x01a\x01c\xfe\x01a\x01d\x00", "type 0xfe is not that of a pair.*E-GVPD3"),
        (b"\x01\x01a\x7fc\x00", "does not end inside the region.*E-GVPD3"),
    ],
)
def test_e_gvpd3_and_6_what_breaks_a_rule_is_named(pairs: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        CODEC.decode(region(pairs), Findings.strict())
    report = Findings.tolerant()
    found = CODEC.decode(region(pairs), report)
    assert report.problems
    assert found.pairs.get("a", "c") == "c"


def test_e_gvpd7_padding_is_part_of_the_value() -> None:
    data = region(b"\x01\x03SKU\x100123".ljust(22, b"\x00") + b"\x00")
    found = CODEC.decode(data, Findings.strict())
    assert found.pairs == {"SKU": "0123" + "\x00" * 12}
    assert CODEC.encode(found, REGION) == data


@pytest.mark.parametrize(
    ("vpd", "path"),
    [
        (GoogleVpd(pairs={"a-b": "c"}), "pairs"),
        (GoogleVpd(pairs={"a": "€"}), "pairs.a"),
        (GoogleVpd(has_info=False), "has-info"),
        (GoogleVpd(pairs=PAIRS, has_info=False, info_size=70), "info-size"),
        (GoogleVpd(pairs=PAIRS, info_size=len(README)), "info-size"),
        (GoogleVpd(pairs=PAIRS, info_size=1), "info-size"),
        (GoogleVpd(pairs=PAIRS, info_size=REGION), "info-size"),
        (GoogleVpd(pairs=PAIRS, is_terminated=False, fill=0), "is-terminated"),
        (GoogleVpd(pairs=PAIRS, is_terminated=False, tail=b"x"), "is-terminated"),
        (GoogleVpd(pairs=PAIRS, front=b"x\xff"), "front"),
        (GoogleVpd(pairs={"a": "b" * REGION}), ""),
    ],
)
def test_e_gvpd_what_cannot_be_written_is_named(vpd: GoogleVpd, path: str) -> None:
    with pytest.raises(FieldError) as caught:
        CODEC.encode(vpd, REGION)
    assert caught.value.path == path
