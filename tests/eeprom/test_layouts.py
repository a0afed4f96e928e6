"""E-LAY: layouts that are declared, read like any other format."""

from __future__ import annotations

import dataclasses
import tomllib
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import blobstore
from blobstore.errors import ManifestError
from formats.eeprom.framework.codec import Findings
from formats.eeprom.framework.fields import from_plain, to_plain
from formats.eeprom.framework.registry import LAYOUTS, built_in_codec
from formats.eeprom.layouts.loading import layout_of_text
from formats.errors import (
    FieldError,
    ForeignImageError,
    FormatError,
    TruncatedImageError,
    UnsupportedError,
)
from tests.support.cli import fails, succeeds

from .support import check_bytes, check_model, damaged

if TYPE_CHECKING:
    from pathlib import Path

    from formats.eeprom.layouts.codec import DeclaredCodec

ACME = """
name = "acme-board"
title = "Acme board"
byte-order = "big"

[[field]]
kind = "constant"
content = { text = "ACME" }
[[field]]
kind = "length"
size = 2
[[field]]
kind = "text"
name = "serial-number"
size = 16
[[field]]
kind = "mac"
name = "base-mac"
[[field]]
kind = "uuid"
name = "id"
form = "microsoft"
[[field]]
kind = "bits"
name = "options"
size = 2
bits = [
  { name = "has-fan" }, { name = "speed", width = 3, values = { slow = 0, fast = 1 } },
  { width = 4 }, { name = "slots", width = 8 },
]
[[field]]
kind = "date"
name = "made"
form = "bcd-yymmdd"
[[field]]
kind = "enumeration"
name = "variant"
size = 1
values = { basic = 0, pro = 1 }
[[field]]
kind = "group"
name = "radio"
when = { field = "variant", equals = "pro" }
fields = [
  { kind = "unsigned", name = "gain", size = 1, default = "3" },
  { kind = "signed", name = "offset", size = 2 },
  { kind = "checksum", algorithm = "xor-8" },
]
[[field]]
kind = "count"
size = 1
of = "sensors"
[[field]]
kind = "array"
name = "sensors"
item = { kind = "unsigned", name = "sensor", size = 2, byte-order = "little" }
[[field]]
kind = "length"
of = "notes"
size = 2
[[field]]
kind = "tlvs"
name = "notes"
[[field.values]]
tag = 1
value = { kind = "text", name = "note", charset = "utf-8" }
[[field.values]]
tag = 2
value = { kind = "unsigned", name = "port", size = 2 }
[[field]]
kind = "checksum"
algorithm = "crc-32"
"""
BOARD = {
    "serial-number": "A1",
    "base-mac": "020000000001",
    "id": "00112233445566778899aabbccddeeff",
    "options": {"has-fan": True, "speed": "fast", "slots": 7},
    "made": "2026-11-30",
    "variant": "pro",
    "radio": {"offset": -5},
    "sensors": [1, 2],
    "notes": {"note": "für", "port": 80, "other": [{"type": 9, "value": "ff"}], "order": [9]},
}


def declared(*fields: str, head: str = 'name = "x"\n') -> DeclaredCodec:
    """Return the codec of a layout with these fields."""
    return layout_of_text(head + "".join(f"[[field]]\n{field}\n" for field in fields))


def read(codec: DeclaredCodec, data: bytes) -> Any:
    return codec.decode(data, Findings.strict())


@pytest.fixture(scope="module")
def acme() -> DeclaredCodec:
    return layout_of_text(ACME)


def test_e_lay1_a_layout_is_written_and_read_as_a_format_in_code_is(acme: DeclaredCodec) -> None:
    board = from_plain(BOARD, acme.model)
    data = check_model(acme, board)
    assert to_plain(read(acme, data)) == BOARD
    # By hand: what the layout says, in its order.
    assert data[:6] == b"ACME" + (len(data) - 16).to_bytes(2, "big")
    assert data[6:28] == b"A1".ljust(16, b"\0") + bytes.fromhex("020000000001")
    assert data[28:44] == bytes.fromhex("33221100554477668899aabbccddeeff")
    assert data[44:50] == bytes.fromhex("9007 261130 01")
    assert data[50:54] == bytes.fromhex("03 fffb") + bytes((0x03 ^ 0xFF ^ 0xFB,))
    assert data[54:59] == bytes.fromhex("02 0100 0200")
    assert data[59:66] == bytes.fromhex("000d 0901ff 0104")
    assert data[66:74] == "für".encode() + bytes.fromhex("02020050")


@given(st.data())
def test_e_lay_damaged_bytes_are_read_or_refused(data: st.DataObject) -> None:
    codec = layout_of_text(ACME)
    made = codec.encode(from_plain(BOARD, codec.model), 128)
    check_bytes(codec, data.draw(damaged(made)))


@pytest.mark.parametrize("name", LAYOUTS)
@given(data=st.binary(max_size=700))
def test_e_lay_any_bytes_are_read_or_refused(name: str, data: bytes) -> None:
    codec = built_in_codec(name)
    check_bytes(codec, data)
    if codec._marks:  # type: ignore[attr-defined]
        check_bytes(codec, codec._marks[0][1] + data)  # type: ignore[attr-defined]


def test_e_lay2_what_is_not_of_the_layout_is_foreign(acme: DeclaredCodec) -> None:
    with pytest.raises(ForeignImageError, match="no Acme board"):
        read(acme, b"EMCA" + bytes(100))
    two = declared(
        'kind = "constant"\ncontent = "aa"', 'kind = "constant"\noffset = 4\ncontent = "bb"'
    )
    with pytest.raises(FormatError, match=r"cc is in place of bb at byte 4 \[E-LAY2\]"):
        read(two, bytes.fromhex("aa000000cc"))


def test_e_lay3_what_is_cut_short_says_where(acme: DeclaredCodec) -> None:
    data = acme.encode(from_plain(BOARD, acme.model), None)
    with pytest.raises(TruncatedImageError, match="serial-number is cut short"):
        acme.decode(data[:12], Findings.tolerant())
    fixed = declared('kind = "unsigned"\nname = "n"\nsize = 1', head='name = "x"\nsize = 8\n')
    with pytest.raises(TruncatedImageError):
        read(fixed, bytes.fromhex("01020304"))
    with pytest.raises(FieldError, match="has 8 bytes, not 9"):
        fixed.encode(fixed.model(n=1), 9)
    assert fixed.encode(fixed.model(n=1), None) == b"\x01" + b"\xff" * 7


@pytest.mark.parametrize(
    ("change", "rule", "message"),
    [
        ((6, "ff"), "E-LAY4", "serial-number is not ascii text"),
        ((7, "00"), None, None),
        ((45, "ff"), None, None),
        ((44, "f0"), "E-LAY4", "options has 7 in speed, which no name stands for"),
        ((44, "98"), "E-LAY4", "options has reserved bits that are not 0"),
        ((46, "261330"), "E-LAY4", "made is 261330, which is not a date"),
        ((46, "ffffff"), None, None),
        ((53, "00"), "E-LAY8", "the checksum is 00"),
        ((4, "0000"), "E-LAY7", "the length is 0, and should be"),
        ((61, "0900"), "E-LAY11", None),
    ],
)
def test_e_lay_what_breaks_a_rule_is_named(
    acme: DeclaredCodec, change: tuple[int, str], rule: str | None, message: str | None
) -> None:
    data = bytearray(acme.encode(from_plain(BOARD, acme.model), None))
    at, octets = change
    data[at : at + len(octets) // 2] = bytes.fromhex(octets)
    report = Findings.tolerant()
    acme.decode(bytes(data), report)
    found = [problem for problem in report.problems if problem.rule != "E-LAY8" or rule == "E-LAY8"]
    assert [problem.rule for problem in found][:1] == ([rule] if rule else [])
    if message:
        assert message in found[0].message


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"serial-number": "x" * 17}, "serial-number"),
        ({"serial-number": "ä"}, "serial-number"),
        ({"made": "1999-01-01"}, "made"),
        ({"made": "2026-02-30"}, "made"),
        ({"variant": "basic"}, "radio"),
        ({"radio": {"offset": 40000}}, "radio.offset"),
        ({"sensors": [70000]}, "sensors[0]"),
        ({"sensors": [1] * 300}, "sensors"),
        ({"notes": {"note": "x" * 256}}, "notes"),
        ({"notes": {"other": [{"type": 1}]}}, "notes.other[0].type"),
        ({"options": {"slots": 256, "speed": "slow"}}, "options.slots"),
        ({"more": 1}, ""),
    ],
)
def test_e_lay_what_cannot_be_written_is_named(
    acme: DeclaredCodec, change: dict[str, Any], path: str
) -> None:
    with pytest.raises(FieldError) as caught:
        acme.encode(from_plain(BOARD | change, acme.model), None)
    assert caught.value.path == path


@pytest.mark.parametrize(
    ("form", "text", "octets"),
    [
        ("bcd-yymmdd", "2026-11-30", "261130"),
        ("bcd-yyyymmdd", "1999-12-31", "19991231"),
        ("bcd-yyww", "2026-W48", "2648"),
        ("ascii-yymmdd", "2026-11-30", b"261130".hex()),
        ("ascii-yyyymmdd", "2026-11-30", b"20261130".hex()),
        ("ascii-yyww", "2026-W48", b"2648".hex()),
        ("ascii-wwyy", "2026-W48", b"4826".hex()),
        ("unix", "2033-05-18T03:33:20Z", (2_000_000_000).to_bytes(4, "little").hex()),
        ("fru-minutes", "1996-01-02T00:01:00Z", "a10500"),
    ],
)
def test_e_lay6_dates_have_many_forms(form: str, text: str, octets: str) -> None:
    codec = declared(f'kind = "date"\nname = "made"\nform = "{form}"')
    assert codec.encode(codec.model(made=text), None).hex() == octets
    assert read(codec, bytes.fromhex(octets) + b"\xff").made == text
    unset = codec.encode(codec.model(), None)
    assert unset.strip(b"\xff") == b""


def test_e_lay5_a_value_without_a_name_is_a_problem() -> None:
    codec = declared('kind = "enumeration"\nname = "a"\nsize = 2\nvalues = { x = 1 }')
    with pytest.raises(FormatError, match=r"a has the value 0x2, which no name.*E-LAY4"):
        read(codec, bytes.fromhex("0200"))


def test_e_lay8_checksums_are_those_of_the_catalogue() -> None:
    # The check values over 123456789, and CRC-8/MAXIM-DOW by its parameters.
    for algorithm, value in (("crc-32", "2639f4cb"), ("sum-16", "dd01"), ("xor-8", "31")):
        codec = declared(
            'kind = "text"\nname = "t"\nsize = 9',
            f'kind = "checksum"\nalgorithm = "{algorithm}"',
        )
        assert codec.encode(codec.model(t="123456789"), None)[9:].hex() == value
    for crc, value in (
        ("{ width = 8, poly = 0x31, refin = true, refout = true }", "a1"),
        ("{ width = 16, poly = 0x8005, init = 0xffff, refin = true, refout = true }", "374b"),
        ("{ width = 32, poly = 0x04c11db7, init = 0xffffffff, xorout = 0xffffffff }", "181989fc"),
    ):
        codec = declared('kind = "text"\nname = "t"\nsize = 9', f'kind = "checksum"\ncrc = {crc}')
        assert codec.encode(codec.model(t="123456789"), None)[9:].hex() == value


def test_e_lay8_a_checksum_in_its_own_range_counts_as_zeros() -> None:
    codec = declared(
        'kind = "checksum"\nalgorithm = "sum-8"\nstart = 0\nend = 4',
        'kind = "bytes"\nname = "b"\nsize = 3',
    )
    assert codec.encode(codec.model(b=b"\x01\x02\x03"), None).hex() == "06010203"
    read(codec, bytes.fromhex("06010203"))


def test_e_lay8_a_checksum_covers_what_is_between_fields() -> None:
    codec = declared(
        'kind = "unsigned"\nname = "a"\nsize = 1',
        'kind = "checksum"\noffset = 6\nalgorithm = "sum-8"',
        head='name = "x"\nsize = 8\n',
    )
    data = bytes.fromhex("01 ff 77 ff ff ff 74 ff")
    found = read(codec, data)
    assert [(other.offset, other.data) for other in found.other] == [(2, b"\x77")]
    assert codec.encode(found, None) == data


def test_e_lay_bytes_outside_of_fields_are_kept() -> None:
    codec = declared(
        'kind = "unsigned"\nname = "a"\nsize = 1',
        'kind = "skip"\nsize = 3',
        'kind = "unsigned"\nname = "b"\nsize = 1',
    )
    data = bytes.fromhex("01 ff77ff 02 ffff 99 ffff")
    found = read(codec, data)
    assert [(other.offset, other.data) for other in found.other] == [(2, b"\x77"), (7, b"\x99")]
    assert codec.encode(found, len(data)) == data


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        (('kind = "unsigned"\nname = "a"\nsize = 17',), "field[0].size"),
        (('kind = "number"\nname = "a"',), "field[0].kind"),
        (('kind = "unsigned"\nname = "A"\nsize = 1',), "field[0].name"),
        (('kind = "unsigned"\nname = "class"\nsize = 1',), "field[0].name"),
        (('kind = "unsigned"\nname = "fill"\nsize = 1',), "field[0].name"),
        (('kind = "unsigned"\nname = "a"\nsize = 1',) * 2, "field[1].name"),
        (('kind = "unsigned"\nname = "a"\nsize = 1\nmost = 256',), "field[0].most"),
        (('kind = "unsigned"\nname = "a"\nsize = 1\ndefault = "256"',), "field[0].default"),
        (('kind = "bits"\nname = "a"\nsize = 1\nbits = [{ width = 7 }]',), "field[0].bits"),
        (
            ('kind = "enumeration"\nname = "a"\nsize = 1\nvalues = { x = 256 }',),
            "field[0].values.x",
        ),
        (('kind = "length"\nsize = 1\nof = "b"',), "field[0].of"),
        (
            ('kind = "length"\nsize = 1\nof = "b"', 'kind = "mac"\nname = "b"'),
            "field[0].of",
        ),
        (('kind = "count"\nsize = 1\nof = "b"', 'kind = "bytes"\nname = "b"'), "field[0].of"),
        (('kind = "checksum"\nalgorithm = "md5"',), "field[0].algorithm"),
        (('kind = "checksum"',), "field[0]"),
        (('kind = "text"\nname = "t"\npattern = "("\nsize = 1',), "field[0].pattern"),
        (('kind = "text"\nname = "t"', 'kind = "mac"\nname = "m"'), "field[0]"),
        (
            ('kind = "mac"\nname = "m"\nwhen = { field = "n", equals = "1" }',),
            "field[0].when",
        ),
        (("kind = 3",), "field[0].kind"),
    ],
)
def test_e_lay12_what_is_wrong_in_a_layout_is_named(fields: tuple[str, ...], path: str) -> None:
    with pytest.raises(FieldError) as caught:
        declared(*fields)
    assert caught.value.path == path


def test_e_lay1_a_layout_serves_all_verbs(tmp_path: Path) -> None:
    layout, manifest, image, binary = (
        tmp_path / name for name in ("acme.toml", "m.toml", "image", "board.bin")
    )
    layout.write_text(ACME)
    import tomli_w

    section = {"name": "board", "type": "acme-board", "chip": "24c02", "fields": BOARD}
    tables: dict[str, Any] = {"image": {"luks": False}, "section": [section]}
    manifest.write_text(tomli_w.dumps(tables | {"layout": [{"file": "acme.toml"}]}))
    succeeds("pack", manifest, "-o", image, "--set", "serial-number=B2")
    succeeds("pack", manifest, "--raw", "board", "-o", binary)
    assert len(binary.read_bytes()) == 256
    declared_codec = blobstore.load_layout(layout)
    with blobstore.open(image, read_only=True) as store:
        found = blobstore.decode_section(store, "board", declared_codec)
        assert found.fields["serial-number"] == "B2"
        with pytest.raises(UnsupportedError, match="no codec for 'acme-board'"):
            blobstore.decode_section(store, "board")
    shown = succeeds("show", image, "board", "--layout", layout)
    assert shown == succeeds("show", binary, "--layout", layout).replace(b"A1", b"B2")
    assert fails("show", image, "board") == 40
    succeeds("edit", binary, "--layout", layout, "serial-number=C3")
    assert b"C3" in succeeds("show", binary, "--layout", layout)
    succeeds("edit", binary, "--layout", layout, "serial-number=A1")
    succeeds("edit", image, "board", "--layout", layout, "options.slots=9")
    succeeds("edit", image, "board", "--layout", layout, "options.slots=7")
    directory = tmp_path / "unpacked"
    succeeds("unpack", image, "-o", directory, "--layout", layout)
    text = (directory / "manifest.toml").read_text()
    assert tomllib.loads(text)["section"][0]["fields"]["serial-number"] == "B2"
    succeeds("pack", directory / "manifest.toml", "-o", tmp_path / "again")
    with blobstore.open(image) as first, blobstore.open(tmp_path / "again") as second:
        assert first.get("board") == second.get("board")
        first.put("board", second.get("board")[:-200] + b"x")
    succeeds("verify", image)
    assert fails("verify", image, "--layout", layout) in (0, 30)
    assert blobstore.likely_types(binary.read_bytes(), [declared_codec]) == ("acme-board",)
    # In the manifest itself, and with a name that is taken.
    manifest.write_text(tomli_w.dumps(tables | {"layout": [tomllib.loads(ACME)]}))
    succeeds("pack", manifest, "--raw", "board", "-o", tmp_path / "inline.bin")
    assert (tmp_path / "inline.bin").read_bytes() == binary.read_bytes()
    layout.write_text(ACME.replace("acme-board", "edid"))
    with pytest.raises(ManifestError, match="there is a format edid already"):
        blobstore.ManifestFile(manifest, layouts=[blobstore.load_layout(layout)])
    layout.write_text(ACME.replace("size = 16", "size = 0"))
    with pytest.raises(ManifestError, match=r"acme.toml: field\[2\].size: 0 is not a whole number"):
        blobstore.load_layout(layout)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_shipped_layout_says_where_it_is_from(name: str) -> None:
    codec = built_in_codec(name)
    declaration = codec.declaration  # type: ignore[attr-defined]
    assert declaration["name"] == name
    assert declaration["source"]
    assert codec.title
    assert dataclasses.is_dataclass(codec.model)
