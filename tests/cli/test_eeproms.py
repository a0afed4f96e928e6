"""Manifests with fields, bare binaries, unpack, show and edit."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

import blobstore as library
from blobstore.manifests.schema import schema_text
from formats.eeprom.framework.codec import Findings
from formats.eeprom.ipmi_fru import CODEC as FRU
from formats.eeprom.parts.chips import CHIPS
from formats.eeprom.pci_vpd import CODEC as PCI
from tests.support.cli import QUICK, blobstore, fails, succeeds
from tests.support.eeproms import MANIFEST, blobs, shown, write_manifest

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = ROOT / "spec" / "manifest.schema.json"


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    return write_manifest(tmp_path)


@pytest.fixture
def image(manifest: Path) -> Path:
    path = manifest.with_name("image")
    succeeds("pack", manifest, "-o", path)
    return path


def test_sections_are_made_of_fields(image: Path) -> None:
    found = blobs(image)
    assert {name: len(blob) for name, blob in found.items()} == {
        "board": 256,
        "card": 100,
        "environment": 8192,
        "note": 5,
    }
    board = FRU.decode(found["board"], Findings.strict()).board
    assert board
    assert (board.manufacturer, board.serial_number) == ("Example", "0000")
    assert PCI.decode(found["card"], Findings.strict()).read_only == {"PN": "EX-1", "SN": "0"}


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
        (
            "",
            ["--set", "card.fill=256"],
            "section 'card': fields.fill: 256 is not a whole number from 0 to 255",
        ),
        ("", ["--set", "card.fill=x"], "cannot set card.fill: 'x' is not a whole number"),
        ("", ["--set", "note.serial=1"], "this section has only text, hex"),
        ('chip = "24c02"\ntype = "pci-vpd"\nfields = 3', [], "fields: 3 is not a table"),
        ('chip = "24c03"\ntext = ""', [], "chip: '24c03' is not known"),
        ('size = "1TiB"\ntext = ""', [], "size: is 268435456 bytes at most"),
        ('hex = "0"', [], "hex: is not hexadecimal text of whole bytes"),
        ('base64 = "AAA"', [], "base64: is not base64"),
        ('chip = "24c02"\nsize = 3\ntext = ""', [], "both a chip and a size"),
        ('chip = "24c02"', [], "has a size, and no content"),
        ('chip = "24c00"\ntext = "more than sixteen"', [], "has 17 bytes, and the chip 16"),
        ("[section.fields]", [], "type: '' has no fields; these have: "),
        ('type = "x"\n[section.fields]', [], "type: 'x' has no fields; these have: "),
        ('type = "pci-vpd"\n[section.fields]', [], "the field 'identifier' is missing"),
        (
            'type = "pci-vpd"\nsize = 5\n[section.fields]\nidentifier = ""',
            [],
            "section 'new': fields: 11 bytes are needed, but the EEPROM has 5",
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
    assert fails("show", image, "note", "--type", "pci-vpd") == 32
    assert fails("show", image) == 32
    large = image.with_name("large")
    with large.open("wb") as file:
        file.truncate(17 << 20)
    assert fails("show", large, "--type", "raw") == 30
    store = image.with_name("store")
    succeeds("create", store, "--no-encryption", "--section", "large=17MiB")
    succeeds("put", store, "large", large)
    assert fails("show", store, "large", "--type", "raw") == 30


def test_show_gives_a_terminal_nothing_to_obey(manifest: Path) -> None:
    binary, text = manifest.with_name("board.bin"), "\x9b2J\x7f\x1b[2J\xe9"
    setting = ("--set", f"board.manufacturer={text}")
    succeeds("pack", manifest, "--raw", "board", "-o", binary, *setting)
    for form, read in (((), tomllib.loads), (("--json",), json.loads)):
        printed = succeeds("show", binary, "--type", "ipmi-fru", *form).decode()
        assert all(character.isprintable() or character == "\n" for character in printed)
        fields = read(printed)
        assert fields.get("fields", fields)["board"]["manufacturer"] == text


def test_show_tells_what_is_wrong_and_shows_the_rest(image: Path) -> None:
    binary = image.with_name("card.bin")
    binary.write_bytes(blobs(image)["card"].replace(b"EX-1", b"EX-2"))
    done = blobstore("show", binary, "--type", "pci-vpd", "--json")
    assert done.returncode == 30
    found = json.loads(done.stdout)
    assert found["fields"]["read-only"]["PN"] == "EX-2"
    assert [problem["rule"] for problem in found["problems"]] == ["E-PCI5"]
    assert b"the checksum is 35, and should be 34 at byte 32" in done.stderr


def test_edit_changes_fields_and_checksums(image: Path) -> None:
    before = blobs(image)
    succeeds("edit", image, "card", "read-only.SN=0042", "identifier=Other card")
    after = blobs(image)
    assert len(after["card"]) == 100
    card = PCI.decode(after["card"], Findings.strict())
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


def test_quick_key_derivations_are_used_where_they_are_given(manifest: Path) -> None:
    manifest.write_text(MANIFEST.replace("luks = false", "luks = 2"))
    key, image = manifest.with_name("key"), manifest.with_name("image")
    key.write_bytes(b"secret")
    succeeds("pack", manifest, "-o", image, "--key-file", key, *QUICK)
    succeeds("edit", image, "card", "read-only.SN=1", "--key-file", key)
    assert shown(image, "card", "--key-file", key)["read-only"] == {"PN": "EX-1", "SN": "1"}
