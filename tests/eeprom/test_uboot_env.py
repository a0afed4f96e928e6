"""E-ENV: U-Boot environments, and what mkenvimage and fw_printenv say of them."""

from __future__ import annotations

import dataclasses
import subprocess
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from formats.eeprom import uboot_env, uboot_env_redundant
from formats.eeprom.framework.codec import Findings
from formats.eeprom.framework.limits import ByteOrder
from formats.eeprom.parts.gaps import Other
from formats.eeprom.uboot_env import UbootEnvironment
from formats.eeprom.uboot_env_redundant import EnvironmentCopy, RedundantEnvironment
from formats.errors import FieldError, FormatError
from tests.support.foreign import program

from .support import check_bytes, check_model, damaged, fills, tails

CODEC, TWO = uboot_env.CODEC, uboot_env_redundant.CODEC

BOARD = UbootEnvironment(variables={"bootdelay": "3", "ethaddr": "02:00:00:00:00:01"})
PAIR = RedundantEnvironment(
    first=EnvironmentCopy(flags=2, variables={"bootdelay": "3"}),
    second=EnvironmentCopy(flags=1, variables={"bootdelay": "2", "x": "y"}),
)

letters = st.characters(exclude_characters="=\0", exclude_categories=["Cs"])
variables = st.dictionaries(
    st.text(letters, min_size=1), st.text(letters) | st.just("a=b"), max_size=4
)


@st.composite
def environments(draw: st.DrawFn) -> UbootEnvironment:
    fill = draw(fills)
    area = draw(st.none() | st.just(1024))
    return UbootEnvironment(
        variables=draw(variables),
        flags=draw(st.none() | st.integers(0, 255)),
        byte_order=draw(st.sampled_from(ByteOrder)),
        area_size=area,
        tail=draw(tails(fill)),
        outer_tail=draw(tails(fill)) if area else b"",
        fill=fill,
    )


@given(environments())
def test_e_env_any_model_is_written_and_read(model: UbootEnvironment) -> None:
    check_model(CODEC, model)


@st.composite
def pairs(draw: st.DrawFn) -> RedundantEnvironment:
    fill = draw(fills)
    copies = st.builds(
        EnvironmentCopy,
        flags=st.integers(0, 255),
        variables=variables,
        tail=tails(fill),
        fill=st.just(fill),
    )
    return RedundantEnvironment(
        first=draw(copies),
        second=draw(st.none() | copies),
        byte_order=draw(st.sampled_from(ByteOrder)),
    )


@given(pairs())
def test_e_env6_any_pair_is_written_and_read(model: RedundantEnvironment) -> None:
    check_model(TWO, model)


@given(st.binary(max_size=200) | damaged(CODEC.encode(BOARD, 128)))
def test_e_env_any_bytes_are_read_or_refused(data: bytes) -> None:
    check_bytes(CODEC, data)
    check_bytes(TWO, data)


@given(damaged(TWO.encode(PAIR, 256)))
def test_e_env6_any_bytes_are_read_or_refused(data: bytes) -> None:
    check_bytes(TWO, data)


def test_e_env4_an_area_smaller_than_the_eeprom_is_found() -> None:
    area = CODEC.encode(BOARD, 192)
    found = CODEC.decode(area + b"behind" + b"\xff" * 20, Findings.strict())
    assert (found.area_size, found.outer_tail) == (192, b"behind")


@pytest.mark.parametrize(("offset", "size"), [(0, 200), (64, 192), (4096, 1000), (8192, 8192)])
def test_e_env4_an_area_is_found_at_any_place_and_of_any_size(offset: int, size: int) -> None:
    data = b"boot loader".ljust(offset, b"\xff")[:offset] + CODEC.encode(BOARD, size)
    data += b"\xff" * 50 + b"more" + b"\xff" * 10
    found = CODEC.decode(data, Findings.strict())
    assert (found.offset, found.area_size, found.variables) == (offset, size, BOARD.variables)
    assert CODEC.encode(found, len(data)) == data


@pytest.mark.parametrize("order", ByteOrder)
@pytest.mark.parametrize(
    ("first", "second", "size"),
    [(0, 8192, 4096), (0, 8192, 1000), (4096, 12288, 4096), (512, 5120, 4608), (0, 4096, 100)],
)
def test_e_env7_copies_smaller_than_their_sectors_are_found(
    first: int, second: int, size: int, order: ByteOrder
) -> None:
    pair = dataclasses.replace(
        PAIR, area_size=size, first_offset=first, second_offset=second, byte_order=order
    )
    data = TWO.encode(pair, 16384)
    for offset in (first, second):
        assert CODEC.decode(data[offset : offset + size], Findings.strict()).flags is not None
    found = TWO.decode(data, Findings.strict())
    assert found == dataclasses.replace(pair, second_offset=None if second == 8192 else second)
    assert TWO.encode(found, len(data)) == data
    check_bytes(TWO, data[:-1])
    damaged_one = bytearray(data)
    damaged_one[second + size - 1] ^= 1
    report = Findings.tolerant()
    TWO.decode(damaged_one, report)
    assert [(problem.offset, problem.checksum) for problem in report.problems] == [(second, 4)]


def test_e_env7_what_is_outside_of_the_copies_is_kept() -> None:
    pair = dataclasses.replace(
        PAIR,
        area_size=1024,
        first_offset=1024,
        second_offset=4096,
        other=(Other(offset=3, data=b"loader"), Other(offset=2048, data=b"x")),
    )
    data = TWO.encode(pair, 8192)
    found = TWO.decode(data, Findings.strict())
    assert found == dataclasses.replace(pair, second_offset=None)
    assert TWO.encode(found, 8192) == data


def test_e_env7_places_where_copies_are_not_found_are_refused() -> None:
    first = EnvironmentCopy(variables={"n\u00e4me": "1"})
    pair = RedundantEnvironment(first=first, area_size=256, first_offset=256, second_offset=None)
    with pytest.raises(FieldError, match="area-size: and the offsets are such"):
        TWO.encode(pair, 4096)
    with pytest.raises(FieldError, match="offset: is such"):
        CODEC.encode(UbootEnvironment(offset=64, area_size=128), 4096)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"novalue\0\0", "'novalue' is not a variable"),
        (b"=x\0\0", "'=x' is not a variable"),
        (b"a=1\0a=2\0\0", "'a' occurs twice"),
        (b"a=\xff\0\0", "not valid UTF-8"),
        (b"a=1", "have no zero byte at their end"),
    ],
)
def test_e_env2_what_is_wrong_is_named(body: bytes, message: str) -> None:
    data = zlib.crc32(body).to_bytes(4, "little") + body
    with pytest.raises(FormatError, match=message) as caught:
        CODEC.decode(data, Findings.strict())
    assert caught.value.rule == "E-ENV2"


def test_e1_a_thousand_problems_are_listed_and_a_variable_in_part() -> None:
    report = Findings.tolerant()
    CODEC.decode(bytes(4) + b"first=1\0" + b"x" * 5000 + b"\0" + b"a\0" * 2000, report)
    assert len(report.problems) == 1001
    assert report.problems[1].message == f"'{'x' * 40}'... is not a variable"
    assert str(report.problems[-1]).startswith("more is wrong, and not listed, at byte ")


@pytest.mark.parametrize(
    ("model", "size", "path"),
    [
        (UbootEnvironment(variables={"a=b": ""}), None, "variables"),
        (UbootEnvironment(variables={"a": "\0"}), None, "variables.a"),
        (UbootEnvironment(area_size=4), None, "area-size"),
        (UbootEnvironment(area_size=128), 64, ""),
        (UbootEnvironment(outer_tail=b"x"), None, "outer-tail"),
        (UbootEnvironment(area_size=128, outer_tail=b"\xff"), 256, "outer-tail"),
        (BOARD, 32, ""),
    ],
)
def test_e_env_what_cannot_be_written_is_named(
    model: UbootEnvironment, size: int | None, path: str
) -> None:
    with pytest.raises(FieldError) as caught:
        CODEC.encode(model, size)
    assert caught.value.path == path


def test_e_env6_what_cannot_be_written_is_named() -> None:
    with pytest.raises(FieldError, match="second: the variables need"):
        TWO.encode(PAIR, 40)
    with pytest.raises(FieldError, match="halved"):
        TWO.encode(PAIR, 257)


@pytest.mark.interop
@pytest.mark.parametrize(
    ("options", "change"),
    [
        ([], {}),
        (["-r"], {"flags": 1}),
        (["-b"], {"byte_order": ByteOrder.BIG}),
        (["-p", "0"], {"fill": 0}),
    ],
)
def test_e_env_mkenvimage_makes_the_same(
    tmp_path: Path, options: list[str], change: dict[str, object]
) -> None:
    text, image = tmp_path / "text", tmp_path / "image"
    text.write_text("bootdelay=3\nethaddr=02:00:00:00:00:01\n")
    command = [program("mkenvimage"), *options, "-s", "256", "-o", str(image), str(text)]
    subprocess.run(command, check=True, capture_output=True)
    model = UbootEnvironment(variables=BOARD.variables, **change)  # type: ignore[arg-type]
    assert CODEC.encode(model, 256) == image.read_bytes()
    assert CODEC.decode(image.read_bytes(), Findings.strict()) == model


@pytest.mark.interop
def test_e_env_fw_printenv_reads_ours_and_we_what_fw_setenv_writes(tmp_path: Path) -> None:
    image, settings = tmp_path / "image", tmp_path / "fw_env.config"
    settings.write_text(f"{image} 0x0 0x100\n")
    image.write_bytes(CODEC.encode(BOARD, 256))
    listing = subprocess.run(
        [program("fw_printenv"), "-c", str(settings)], check=True, capture_output=True, text=True
    )
    assert listing.stdout == "bootdelay=3\nethaddr=02:00:00:00:00:01\n"
    assert "bad CRC" not in listing.stderr

    command = [program("fw_setenv"), "-c", str(settings), "bootdelay", "7"]
    subprocess.run(command, check=True, capture_output=True)
    found = CODEC.decode(image.read_bytes(), Findings.strict())
    assert found.variables == {**BOARD.variables, "bootdelay": "7"}


@pytest.mark.interop
def test_e_env6_fw_printenv_takes_the_newer_copy(tmp_path: Path) -> None:
    image, settings = tmp_path / "image", tmp_path / "fw_env.config"
    settings.write_text(f"{image} 0x0 0x100\n{image} 0x100 0x100\n")
    image.write_bytes(TWO.encode(PAIR, 512))
    command = [program("fw_printenv"), "-c", str(settings)]
    listing = subprocess.run(command, check=True, capture_output=True, text=True)
    assert listing.stdout == "bootdelay=3\n"

    command = [program("fw_setenv"), "-c", str(settings), "bootdelay", "7"]
    subprocess.run(command, check=True, capture_output=True)
    found = TWO.decode(image.read_bytes(), Findings.strict())
    assert found.second
    assert found.second.variables == {"bootdelay": "7"}
    assert found.second.flags == 3
    assert found.first == PAIR.first
