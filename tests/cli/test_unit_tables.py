"""One manifest and a table: a file for each unit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from formats.eeprom.framework.codec import Findings
from formats.eeprom.ipmi_fru import CODEC as FRU
from formats.eeprom.pci_vpd import CODEC as PCI
from tests.support.cli import blobstore, fails, succeeds
from tests.support.eeproms import MANIFEST, blobs, shown, write_manifest

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    return write_manifest(tmp_path)


def test_a_table_makes_an_image_of_each_row(manifest: Path) -> None:
    table = manifest.with_name("units.csv")
    table.write_text("serial,board.serial-number,read-only.SN\n1,A1,S1\n2,,S2\n\n3,A3,\n")
    succeeds("pack", manifest, "--table", table, "-o", manifest.with_name("unit-{serial}.img"))
    found = [blobs(manifest.with_name(f"unit-{serial}.img")) for serial in (1, 2, 3)]
    boards = [FRU.decode(unit["board"], Findings.strict()).board for unit in found]
    cards = [PCI.decode(unit["card"], Findings.strict()).read_only["SN"] for unit in found]
    assert [board and board.serial_number for board in boards] == ["A1", "0000", "A3"]
    assert cards == ["S1", "S2", "0"]
    pattern = manifest.with_name("{row}-{read-only.SN}.bin")
    table.write_text("read-only.SN\nS1\nS2\n")
    succeeds("pack", manifest, "--table", table, "--raw", "card", "-o", pattern)
    for row in (1, 2):
        card = PCI.decode(manifest.with_name(f"{row}-S{row}.bin").read_bytes(), Findings.strict())
        assert card.read_only["SN"] == f"S{row}"


def test_a_table_comes_through_a_pipe(manifest: Path) -> None:
    arguments = ["--table", "/dev/stdin", "--raw", "card", "-o", manifest.with_name("{row}.bin")]
    rows = "".join(f"S{number}\n" for number in range(1, 21))
    succeeds("pack", manifest, *arguments, stdin=f"read-only.SN\n{rows}".encode())
    card = PCI.decode(manifest.with_name("20.bin").read_bytes(), Findings.strict())
    assert card.read_only["SN"] == "S20"
    assert fails("pack", manifest, *arguments, "--force", stdin=b"") == 71


def test_nothing_takes_the_place_of_what_is_read(manifest: Path) -> None:
    table = manifest.with_name("units.csv")
    table.write_text("batch\nmanifest.toml\n")
    before = manifest.read_bytes()
    pattern = manifest.with_name("{batch}")
    assert fails("pack", manifest, "--table", table, "-o", pattern, "--force") == 71
    assert fails("pack", manifest, "--raw", "board", "-o", manifest, "--force") == 2
    assert fails("pack", manifest, "-o", manifest, "--force") == 2
    assert manifest.read_bytes() == before


def test_a_table_of_encrypted_images_has_one_key(manifest: Path) -> None:
    manifest.write_text(MANIFEST.replace("luks = false", "luks = 1"))
    table, key = manifest.with_name("units.csv"), manifest.with_name("key")
    table.write_text("read-only.SN\nS1\nS2\n")
    key.write_bytes(b"secret")
    pattern = manifest.with_name("{read-only.SN}.img")
    options = ("--key-file", key, "--pbkdf", "pbkdf2", "--iter-time", "1")
    succeeds("pack", manifest, "--table", table, "-o", pattern, *options)
    for serial in ("S1", "S2"):
        found = shown(manifest.with_name(f"{serial}.img"), "card", "--key-file", key)
        assert found["read-only"] == {"PN": "EX-1", "SN": serial}


def test_a_unit_that_is_too_large_is_named(manifest: Path) -> None:
    text = MANIFEST.replace("luks = false", 'luks = false\nsize = "100KiB"')
    manifest.write_text(text)
    table, pattern = manifest.with_name("units.csv"), manifest.with_name("{batch}.img")
    table.write_text(f"batch,note.text\na,x\nb,{'x' * 90_000}\n")
    done = blobstore("pack", manifest, "--table", table, "-o", pattern)
    assert done.returncode == 71, done
    assert b"b.img: image.size is too small: the sections need" in done.stderr
    assert manifest.with_name("a.img").exists()
    assert not manifest.with_name("b.img").exists()


@pytest.mark.parametrize(
    ("table", "pattern", "message"),
    [
        ("", "{row}", "is empty"),
        ("a\n1\n", "{row}", "column 'a' is not a field of the manifest"),
        ("read-only.SN\n1\n", "one", "names one file"),
        ("read-only.SN\n1\n", "{other}", "has no column 'other'"),
        ("read-only.SN,read-only.SN\n1,2\n", "{row}", "occurs twice"),
        ("read-only.SN\n1\n1,2\n", "{row}", "row 2: has 2 cells"),
        ("read-only.SN\n1\n1\n", "{read-only.SN}", "row 2: '1' is the file of another row"),
        ("read-only.SN\n../1\n", "{read-only.SN}", "row 1: read-only.SN: '../1' cannot be part of"),
        ("read-only.SN\n..\n", "{read-only.SN}", "'..' is not the name of a file"),
        ("card.fill\nx\n", "{row}", "row 1: "),
        ("read-only.SN\n\xff\n", "{row}", "is not CSV in UTF-8"),
        ('read-only.SN\nA\n"B\n', "{row}", "is not CSV: unexpected end of data in line 3"),
    ],
)
def test_a_bad_table_names_the_row(manifest: Path, table: str, pattern: str, message: str) -> None:
    path = manifest.with_name("units.csv")
    path.write_text(table, encoding="latin-1")
    done = blobstore("pack", manifest, "--table", path, "-o", manifest.with_name(pattern))
    assert done.returncode == 71, done
    assert message in done.stderr.decode(), done.stderr.decode()
