"""E-RAW: raw binaries with fill bytes and checksums."""

from __future__ import annotations

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from formats.eeprom.framework.limits import ByteOrder
from formats.eeprom.raw import CODEC, Algorithm, Checksum, Raw
from formats.errors import FieldError

from .support import check_bytes, check_model, fills, tails

WIDTHS = dict(zip(Algorithm, (1, 1, 2, 2, 2, 4), strict=True))


@given(fills.flatmap(lambda fill: st.builds(Raw, content=tails(fill), fill=st.just(fill))))
def test_e_raw1_any_content_is_written_and_read(model: Raw) -> None:
    check_model(CODEC, model)


@given(st.binary(max_size=64))
def test_e_raw2_any_bytes_are_read(data: bytes) -> None:
    assert check_bytes(CODEC, data) is not None


def test_e_raw1_checksums_are_written_in_their_order() -> None:
    model = Raw(
        content=b"123456789",
        fill=0,
        checksums=(
            Checksum(algorithm=Algorithm.CRC_16_XMODEM, end=9, offset=9),
            Checksum(algorithm=Algorithm.CRC_32, end=9, offset=12, byte_order=ByteOrder.BIG),
            Checksum(algorithm=Algorithm.ZERO_SUM_8, offset=19),
        ),
    )
    data = CODEC.encode(model, 20)
    assert data[9:11] == bytes.fromhex("c331")
    assert data[12:16] == zlib.crc32(b"123456789").to_bytes(4, "big")
    assert sum(data) % 256 == 0
    assert len(data) == 20


@pytest.mark.parametrize("algorithm", Algorithm)
def test_e_raw1_a_place_within_its_range_counts_as_zeros(algorithm: Algorithm) -> None:
    checksum = Checksum(algorithm=algorithm, offset=2)
    blank, dirty = (
        CODEC.encode(Raw(content=b"ab" + place + b"c", checksums=(checksum,)), 16)
        for place in (bytes(4), b"\xaa" * WIDTHS[algorithm] + bytes(4 - WIDTHS[algorithm]))
    )
    assert blank == dirty
    assert blank[2:6] != bytes(4)


@pytest.mark.parametrize(
    ("checksum", "message"),
    [
        (Checksum(algorithm=Algorithm.CRC_32, offset=13), r"checksums\[0\].offset: is beyond"),
        (Checksum(algorithm=Algorithm.CRC_32, offset=0, end=17), "covers bytes 0 to 17"),
        (Checksum(algorithm=Algorithm.CRC_32, offset=0, start=9, end=8), "covers bytes 9 to 8"),
        (
            Checksum(algorithm=Algorithm.CRC_32, offset=-1),
            r"checksums\[0\].offset: -1 is not a whole number of at least 0",
        ),
    ],
)
def test_e_raw_what_cannot_be_written_is_named(checksum: Checksum, message: str) -> None:
    with pytest.raises(FieldError, match=message):
        CODEC.encode(Raw(checksums=(checksum,)), 16)
