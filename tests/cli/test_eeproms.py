"""Manifests with fields, tables of units, bare binaries, show and edit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

import blobstore as library
from blobstore.manifests.schema import schema_text
from formats.eeprom.chips import CHIPS
from formats.eeprom.codec import Report
from formats.eeprom.ipmi_fru import CODEC as FRU
from formats.eeprom.pci_vpd import CODEC as PCI
from tests.support.cli import QUICK, blobstore, fails, succeeds

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = ROOT / "spec" / "manifest.schema.json"

MANIFEST = """
[image]
luks = false

[[section]]
name = "board"
type = "ipmi-fru"
chip = "24c02"
copies = 1
[section.fields.board]
manufacturer = "Example"
serial-number = "0000"
mfg-date-time = 2026-01-02T03:04:00Z
custom = [{ kind = "binary", data = { file = "custom.bin" } }]
[[section.fields.multirecords]]
kind = "dc-load"
output-number = 1

[[section]]
name = "card"
type = "pci-vpd"
size = 100
[section.fields]
identifier = "Example card"
read-only = { PN = "EX-1", SN = "0" }

[[section]]
name = "environment"
type = "uboot-env"
chip = "24c64"
fields.variables = { bootdelay = "3" }

[[section]]
name = "note"
text = "hello"
"""


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    path = tmp_path / "manifest.toml"
    path.write_text(MANIFEST)
    (tmp_path / "custom.bin").write_bytes(b"\x01\x02")
    return path


@pytest.fixture
def image(manifest: Path) -> Path:
    path = manifest.with_name("image")
    succeeds("pack", manifest, "-o", path)
    return path


def blobs(image: Path) -> dict[str, bytes]:
    with library.open(image, read_only=True) as store:
        return {name: store.get(name) for name in store}


def shown(*arguments: object) -> dict[str, object]:
    found: dict[str, object] = json.loads(succeeds("show", *arguments, "--json"))["fields"]
    return found


def test_sections_are_made_of_fields(image: Path) -> None:
    found = blobs(image)
    assert {name: len(blob) for name, blob in found.items()} == {
        "board": 256,
        "card": 100,
        "environment": 8192,
        "note": 5,
    }
    board = FRU.decode(found["board"], Report.strict()).board
    assert board
    assert (board.manufacturer, board.serial_number) == ("Example", "0000")
    assert PCI.decode(found["card"], Report.strict()).read_only == {"PN": "EX-1", "SN": "0"}


def test_json_is_a_manifest_as_well(manifest: Path) -> None:
    board = {"manufacturer": "Example", "mfg-date-time": "2026-01-02T03:04:00Z"}
    tables = {
        "image": {"luks": False},
        "section": [{"name": "board", "type": "ipmi-fru", "fields": {"board": board}}],
    }
    path = manifest.with_name("manifest.json")
    path.write_text(json.dumps(tables))
    succeeds("pack", path, "-o", path.with_name("image"))
    assert shown(path.with_name("image"), "board")["board"] == {
        "manufacturer": "Example",
        "mfg-date-time": "2026-01-02T03:04:00+00:00",
    }
    deep = {"section": [{"name": "a", "type": "ipmi-fru", "fields": {}}]}
    for levels in (60, 600, 60_000):
        text = json.dumps(deep).replace("{}", '{"a":' * levels + "1" + "}" * levels)
        path.write_text(text)
        done = blobstore("pack", path, "-o", path.with_name("other"), "--set", "fill=1")
        assert (done.returncode, b"nested too deeply" in done.stderr) == (71, True)
    for wrong in ("[", "[]", "3"):
        path.write_text(wrong)
        assert fails("pack", path, "-o", path.with_name("other")) == 71


@pytest.mark.parametrize("example", sorted((ROOT / "examples" / "eeprom").glob("*.toml")))
def test_every_example_is_packed_and_unpacked(example: Path, tmp_path: Path) -> None:
    manifest = library.ManifestFile(example, encrypted=False).manifest()
    with library.pack(manifest, tmp_path / "one") as store:
        unpacked = library.unpack(store, tmp_path / "unpacked")
    assert bool(unpacked.files) == (example.stem == "raw")
    again = library.load_manifest(tmp_path / "unpacked" / "manifest.toml")
    assert [spec.content for spec in again.sections] == [spec.content for spec in manifest.sections]
    validator = Draft202012Validator(json.loads(SCHEMA.read_text()))
    for path in (example, tmp_path / "unpacked" / "manifest.toml"):
        tables = json.loads(json.dumps(_read(path), default=lambda date: date.isoformat()))
        assert not list(validator.iter_errors(tables))


def test_the_machines_eeproms_are_fields_that_make_the_same_bytes(tmp_path: Path) -> None:
    machine = ROOT / "examples" / "machine" / "manifest.toml"
    manifest = library.ManifestFile(machine, encrypted=False).manifest()
    with library.pack(manifest, tmp_path / "image") as store:
        unpacked = library.unpack(store, tmp_path / "unpacked")
    # Others made both: generate.py, and mkenvimage.
    assert unpacked.fields == ["adapter-vpd", "uboot-environment"]
    again = library.load_manifest(tmp_path / "unpacked" / "manifest.toml")
    assert [spec.content for spec in again.sections] == [spec.content for spec in manifest.sections]


def test_values_that_do_harm_are_warned_of(tmp_path: Path) -> None:
    example, image = ROOT / "examples" / "eeprom" / "onie-tlv.toml", tmp_path / "image"
    setting = "board-info.mac-1-base=01:00:5e:00:00:01"
    done = blobstore("pack", example, "-o", image, "--no-encryption", "--set", setting)
    assert done.returncode == 0
    assert done.stderr.startswith(b"blobstore: onie-tlv: U-Boot and Linux refuse 01:00:5e")
    assert done.stderr.count(b"\n") == 1
    done = blobstore("edit", image, "board-info", "num-macs=3")
    assert done.returncode == 0
    assert done.stderr.startswith(b"blobstore: onie-tlv: U-Boot and Linux refuse 01:00:5e")


@pytest.mark.parametrize(
    ("name", "value", "section", "where"),
    [
        ("board.board.serial-number", "4711", "board", ("board", "serial-number")),
        ("board.serial-number", "4711", "board", ("board", "serial-number")),
        ("card.read-only.SN", "a=b", "card", ("read-only", "SN")),
        ("read-only.V0", "new", "card", ("read-only", "V0")),
        ("variables.ethaddr", "02:00", "environment", ("variables", "ethaddr")),
    ],
)
def test_settings_change_fields(
    manifest: Path, name: str, value: str, section: str, where: tuple[str, str]
) -> None:
    image = manifest.with_name("image")
    succeeds("pack", manifest, "-o", image, "--set", f"{name}={value}")
    found = shown(image, section)[where[0]]
    assert isinstance(found, dict)
    assert found[where[1]] == value


def test_settings_change_plain_contents(manifest: Path) -> None:
    image = manifest.with_name("image")
    succeeds("pack", manifest, "-o", image, "--set", "note.hex=0102")
    assert blobs(image)["note"] == b"\x01\x02"


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", ["--set", "board.serial=1"], "cannot set board.serial: there is no field 'serial'"),
        ("", ["--set", "serial=1"], "cannot set serial: of the sections with fields, none has it"),
        ("", ["--set", "fill=1"], "several have: board, card, environment"),
        ("", ["--set", "card.fill=256"], "section 'card': fields.fill: expected `int` <= 255"),
        ("", ["--set", "card.fill=x"], "cannot set card.fill: 'x' is no whole number"),
        ("", ["--set", "note.serial=1"], "this section has only text, hex"),
        ('chip = "24c02"\ntype = "pci-vpd"\nfields = 3', [], "fields: expected `object`"),
        ('chip = "24c03"\ntext = ""', [], "chip: '24c03' is not known"),
        ('size = "1TiB"\ntext = ""', [], "size: is 268435456 bytes at most"),
        ('hex = "0"', [], "hex: is no hexadecimal text of whole bytes"),
        ('base64 = "AAA"', [], "base64: is no base64"),
        ('chip = "24c02"\nsize = 3\ntext = ""', [], "both a chip and a size"),
        ('chip = "24c02"', [], "has a size, and no content"),
        ('chip = "24c00"\ntext = "more than sixteen"', [], "has 17 bytes, and the chip 16"),
        ("[section.fields]", [], "type: '' has no fields; these have: "),
        ('type = "x"\n[section.fields]', [], "type: 'x' has no fields; these have: "),
        ('type = "pci-vpd"\n[section.fields]', [], "missing required field `identifier`"),
        (
            'type = "pci-vpd"\nsize = 5\n[section.fields]\nidentifier = ""',
            [],
            "section 'new': fields: 11 bytes are needed, and the EEPROM has 5",
        ),
        (
            'type = "pci-vpd"\n[section.fields]\nidentifier = ""\ntail = { file = "none" }',
            [],
            "fields.tail: file: cannot read",
        ),
    ],
)
def test_what_is_wrong_is_named(
    manifest: Path, text: str, options: list[str], message: str
) -> None:
    if text:
        manifest.write_text(f'{MANIFEST}\n[[section]]\nname = "new"\n{text}\n')
    image = manifest.with_name("image")
    done = blobstore("pack", manifest, "-o", image, *options)
    assert done.returncode == 71, done
    assert f"{manifest}: " in done.stderr.decode()
    assert message in done.stderr.decode(), done.stderr.decode()
    assert not image.exists()


def test_a_bare_binary_is_exactly_what_the_chip_holds(manifest: Path) -> None:
    binary = manifest.with_name("board.bin")
    succeeds("pack", manifest, "--raw", "board", "-o", binary)
    assert binary.stat().st_size == CHIPS["24c02"] == 256
    board = shown(binary, "--type", "ipmi-fru")["board"]
    assert isinstance(board, dict)
    assert board["serial-number"] == "0000"
    assert fails("pack", manifest, "--raw", "board", "-o", binary) == 72
    succeeds("pack", manifest, "--raw", "board", "-o", binary, "--force")
    assert fails("pack", manifest, "--raw", "none", "-o", binary, "--force") == 71
    assert fails("pack", manifest, "--raw", "board", "-o", binary, "--key-file", manifest) == 2
    for stdout in ("-", "/dev/stdout"):
        written = succeeds("pack", manifest, "--raw", "board", "-o", stdout, cwd=manifest.parent)
        assert written == binary.read_bytes()
    assert fails("pack", manifest, "-o", "-", cwd=manifest.parent) == 2
    assert not manifest.with_name("-").exists()


def test_a_table_makes_an_image_of_each_row(manifest: Path) -> None:
    table = manifest.with_name("units.csv")
    table.write_text("serial,board.serial-number,read-only.SN\n1,A1,S1\n2,,S2\n\n3,A3,\n")
    succeeds("pack", manifest, "--table", table, "-o", manifest.with_name("unit-{serial}.img"))
    found = [blobs(manifest.with_name(f"unit-{serial}.img")) for serial in (1, 2, 3)]
    boards = [FRU.decode(unit["board"], Report.strict()).board for unit in found]
    cards = [PCI.decode(unit["card"], Report.strict()).read_only["SN"] for unit in found]
    assert [board and board.serial_number for board in boards] == ["A1", "0000", "A3"]
    assert cards == ["S1", "S2", "0"]
    pattern = manifest.with_name("{row}-{read-only.SN}.bin")
    table.write_text("read-only.SN\nS1\nS2\n")
    succeeds("pack", manifest, "--table", table, "--raw", "card", "-o", pattern)
    for row in (1, 2):
        card = PCI.decode(manifest.with_name(f"{row}-S{row}.bin").read_bytes(), Report.strict())
        assert card.read_only["SN"] == f"S{row}"


def test_a_table_comes_through_a_pipe(manifest: Path) -> None:
    arguments = ["--table", "/dev/stdin", "--raw", "card", "-o", manifest.with_name("{row}.bin")]
    rows = "".join(f"S{number}\n" for number in range(1, 21))
    succeeds("pack", manifest, *arguments, stdin=f"read-only.SN\n{rows}".encode())
    card = PCI.decode(manifest.with_name("20.bin").read_bytes(), Report.strict())
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


@pytest.mark.parametrize(
    ("table", "pattern", "message"),
    [
        ("", "{row}", "is empty"),
        ("a\n1\n", "{row}", "column 'a' is no field of the manifest"),
        ("read-only.SN\n1\n", "one", "names one file"),
        ("read-only.SN\n1\n", "{other}", "has no column 'other'"),
        ("read-only.SN,read-only.SN\n1,2\n", "{row}", "occurs twice"),
        ("read-only.SN\n1\n1,2\n", "{row}", "row 2: has 2 cells"),
        ("read-only.SN\n1\n1\n", "{read-only.SN}", "row 2: '1' is the file of another row"),
        ("read-only.SN\n../1\n", "{read-only.SN}", "row 1: read-only.SN: '../1' cannot be part of"),
        ("read-only.SN\n..\n", "{read-only.SN}", "'..' is no file's name"),
        ("card.fill\nx\n", "{row}", "row 1: "),
        ("read-only.SN\n\xff\n", "{row}", "is no CSV in UTF-8"),
        ('read-only.SN\nA\n"B\n', "{row}", "is no CSV: unexpected end of data in line 3"),
    ],
)
def test_a_bad_table_names_the_row(manifest: Path, table: str, pattern: str, message: str) -> None:
    path = manifest.with_name("units.csv")
    path.write_text(table, encoding="latin-1")
    done = blobstore("pack", manifest, "--table", path, "-o", manifest.with_name(pattern))
    assert done.returncode == 71, done
    assert message in done.stderr.decode(), done.stderr.decode()


def test_unpack_writes_fields_that_make_the_same_bytes(image: Path) -> None:
    directory = image.with_name("unpacked")
    succeeds("unpack", image, "-o", directory)
    text = (directory / "manifest.toml").read_text()
    assert text.count("[section.fields") >= 3
    assert 'chip = "24c64"' in text
    assert "size = 100" in text
    assert [path.name for path in directory.glob("*.bin")] == ["note.bin"]
    again = image.with_name("again")
    succeeds("pack", directory / "manifest.toml", "-o", again)
    assert blobs(again) == blobs(image)
    assert succeeds("diff", image, again) == b""


def test_unpack_writes_what_is_no_sound_format_to_files(image: Path) -> None:
    damaged = bytearray(blobs(image)["board"])
    damaged[20] ^= 1
    image.with_name("damaged").write_bytes(damaged)
    succeeds("put", image, "board", image.with_name("damaged"))
    directory = image.with_name("unpacked")
    succeeds("unpack", image, "-o", directory)
    assert (directory / "board.bin").read_bytes() == damaged


def test_show_prints_what_a_manifest_would_have(image: Path) -> None:
    text = succeeds("show", image, "card").decode()
    assert text == 'identifier = "Example card"\n\n[read-only]\nPN = "EX-1"\nSN = "0"\n'
    assert fails("show", image, "note") == 40
    assert fails("show", image, "none") == 61
    assert fails("show", image, "note", "--type", "pci-vpd") == 30
    assert fails("show", image) == 2
    large = image.with_name("large")
    with large.open("wb") as file:
        file.truncate(17 << 20)
    assert fails("show", large, "--type", "raw") == 30
    store = image.with_name("store")
    succeeds("create", store, "--no-encryption", "--section", "large=17MiB")
    succeeds("put", store, "large", large)
    assert fails("show", store, "large", "--type", "raw") == 30


def test_show_tells_what_is_wrong_and_shows_the_rest(image: Path) -> None:
    binary = image.with_name("card.bin")
    binary.write_bytes(blobs(image)["card"].replace(b"EX-1", b"EX-2"))
    done = blobstore("show", binary, "--type", "pci-vpd", "--json")
    assert done.returncode == 30
    found = json.loads(done.stdout)
    assert found["fields"]["read-only"]["PN"] == "EX-2"
    assert [problem["rule"] for problem in found["problems"]] == ["E-PCI5"]
    assert b"the checksum is wrong at byte" in done.stderr


def test_edit_changes_fields_and_checksums(image: Path) -> None:
    before = blobs(image)
    succeeds("edit", image, "card", "read-only.SN=0042", "identifier=Other card")
    after = blobs(image)
    assert len(after["card"]) == 100
    card = PCI.decode(after["card"], Report.strict())
    assert (card.identifier, card.read_only["SN"]) == ("Other card", "0042")
    assert {**after, "card": b""} == {**before, "card": b""}
    assert fails("edit", image, "card", "read-only.SN=" + "x" * 90) == 37
    assert fails("edit", image, "card", "read-only.S=1") == 37
    assert fails("edit", image, "card", "wrong=1") == 37
    assert fails("edit", image, "card", "wrong") == 2
    assert fails("edit", image, "note", "wrong=1") == 40
    assert blobs(image) == after


def test_edit_takes_bytes_from_files(image: Path) -> None:
    file = image.with_name("content")
    file.write_bytes(b"\x01\x02\x03")
    succeeds("edit", image, "card", f"tail=@{file}")
    assert shown(image, "card")["tail"] == "010203"
    assert fails("edit", image, "card", "tail=@/none") == 20


def test_edit_refuses_what_is_broken_already(image: Path) -> None:
    binary = image.with_name("card.bin")
    binary.write_bytes(blobs(image)["card"].replace(b"EX-1", b"EX-2"))
    succeeds("put", image, "card", binary)
    assert fails("edit", image, "card", "read-only.SN=1") == 30
    assert blobs(image)["card"] == binary.read_bytes()


def test_the_published_schema_is_that_of_the_codecs(manifest: Path) -> None:
    assert SCHEMA.read_text() == schema_text(plug_ins=False), (
        "make it again: blobstore pack --schema >spec/manifest.schema.json"
    )
    assert succeeds("pack", "--schema").decode() == schema_text(plug_ins=False)
    schema = json.loads(SCHEMA.read_text())
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)
    directory = manifest.with_name("unpacked")
    image = manifest.with_name("image")
    succeeds("pack", manifest, "-o", image)
    succeeds("unpack", image, "-o", directory)
    for path in (manifest, directory / "manifest.toml"):
        tables = json.loads(json.dumps(_read(path), default=lambda date: date.isoformat()))
        assert not list(validator.iter_errors(tables))
    for section in (
        {"name": "a", "type": "pci-vpd", "fields": {}},
        {"name": "a", "type": "none", "fields": {}},
        {"name": "a", "text": "", "hex": ""},
        {"name": "a", "chip": "24c03", "text": ""},
        {"text": ""},
    ):
        assert not validator.is_valid({"section": [section]}), section


def _read(path: Path) -> dict[str, object]:
    return tomllib.loads(path.read_text())


PLUG_IN = '''
from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from formats.eeprom.fields import validate
from formats.eeprom.padding import fill_up
from formats.errors import FormatError


@dataclass(frozen=True, slots=True, kw_only=True)
class AcmeBoard:
    """A board of Acme's."""

    serial: Annotated[str, Meta(pattern="^[A-Z0-9]{8}$")]


class Codec:
    name, title, model = "acme-board", "Acme board", AcmeBoard

    def decode(self, data, report, /):
        if bytes(data[:4]) != b"ACME":
            raise FormatError("no board of Acme's", offset=0, rule="ACME1")
        return AcmeBoard(serial=bytes(data[4:12]).decode("ascii"))

    def encode(self, model, size, /):
        validate(model)
        return fill_up(b"ACME" + model.serial.encode(), size)


CODEC = Codec()
'''


def installed(base: Path, *entry_points: str) -> Path:
    """Return a directory into which a distribution with a codec was really installed."""
    wheel, target = base / "acme_eeprom-1-py3-none-any.whl", base / "installed"
    info = "acme_eeprom-1.dist-info"
    files = {
        "acme_eeprom.py": PLUG_IN,
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: acme-eeprom\nVersion: 1\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "\n".join(["[blobstore.codecs]", *entry_points, ""]),
    }
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    command = ["pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target)]
    subprocess.run([sys.executable, "-m", *command, str(wheel)], check=True)
    return target


@pytest.fixture(scope="module")
def plug_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("plug-in")
    return installed(base, "acme-board = acme_eeprom:CODEC", "pci-vpd = acme_eeprom:CODEC")


def with_plug_in(plug_in: Path, *arguments: object) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "blobstore", *map(str, arguments)],
        capture_output=True,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{plug_in}"},
        check=False,
    )


def test_a_distribution_adds_a_format_by_being_installed(plug_in: Path, tmp_path: Path) -> None:
    manifest, image = tmp_path / "manifest.toml", tmp_path / "image"
    manifest.write_text(
        '[image]\nluks = false\n[[section]]\nname = "board"\ntype = "acme-board"\n'
        'chip = "24c00"\nfields.serial = "AB12CD34"\n'
    )
    assert with_plug_in(plug_in, "pack", manifest, "-o", image).returncode == 0
    assert blobs(image) == {"board": b"ACMEAB12CD34\xff\xff\xff\xff"}
    shown = with_plug_in(plug_in, "show", image, "board")
    assert shown.stdout == b'serial = "AB12CD34"\n'
    done = with_plug_in(plug_in, "pack", manifest, "-o", image, "--set", "serial=x", "--force")
    assert b"fields.serial: expected `str` matching regex" in done.stderr
    assert b'"const": "acme-board"' in with_plug_in(plug_in, "pack", "--schema").stdout
    assert fails("show", image, "board") == 40  # without it


def test_a_plug_in_replaces_nothing_that_is_here(plug_in: Path, tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"ACMEAB12CD34")
    done = with_plug_in(plug_in, "show", tmp_path / "binary", "--type", "pci-vpd")
    assert b"no PCI VPD begins like this" in done.stderr


@pytest.mark.parametrize(
    ("entry_point", "message"),
    [
        ("acme-broken = acme_eeprom:NONE", "cannot be loaded"),
        ("acme-broken = acme_none:CODEC", "cannot be loaded"),
        ("acme-broken = acme_eeprom:AcmeBoard", "is no codec of that name"),
        ("acme-broken = acme_eeprom:CODEC", "is no codec of that name"),
    ],
)
def test_a_plug_in_that_does_not_work_is_named(
    tmp_path: Path, entry_point: str, message: str
) -> None:
    target = installed(tmp_path, entry_point)
    (tmp_path / "binary").write_bytes(b"ACMEAB12CD34")
    done = with_plug_in(target, "show", tmp_path / "binary", "--type", "acme-broken")
    assert done.returncode == 40
    assert "the codec 'acme-broken' of acme_" in done.stderr.decode()
    assert message in done.stderr.decode()


def test_quick_key_derivations_are_used_where_they_are_given(manifest: Path) -> None:
    manifest.write_text(MANIFEST.replace("luks = false", "luks = 2"))
    key, image = manifest.with_name("key"), manifest.with_name("image")
    key.write_bytes(b"secret")
    succeeds("pack", manifest, "-o", image, "--key-file", key, *QUICK)
    succeeds("edit", image, "card", "read-only.SN=1", "--key-file", key)
    assert shown(image, "card", "--key-file", key)["read-only"] == {"PN": "EX-1", "SN": "1"}
