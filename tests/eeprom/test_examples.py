"""The manifests in examples/eeprom say what their formats' programs then read."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from blobstore import decode_blob, edit_blob, load_manifest
from blobstore.manifests.sizes import parse_size
from formats.eeprom.framework.codec import Codec, Findings
from formats.eeprom.framework.fields import from_plain, to_plain
from formats.eeprom.framework.registry import built_in_codec
from formats.eeprom.parts.chips import CHIPS
from tests.support.foreign import decode_dimms, edid_decode

EXAMPLES = Path(__file__).parents[2] / "examples" / "eeprom"
#: All but raw: what is read of that has no checksums (E-RAW2).
MANIFESTS = sorted(path.name for path in EXAMPLES.glob("*.toml") if path.stem != "raw")


def section_of(name: str) -> dict[str, Any]:
    (section,) = tomllib.loads((EXAMPLES / name).read_text())["section"]
    assert isinstance(section, dict)
    return section


def encoded(name: str) -> bytes:
    """Return what pack makes of the only section of an example."""
    (section,) = load_manifest(EXAMPLES / name).sections
    assert section.content is not None
    return bytes(section.content)


@pytest.mark.parametrize("name", MANIFESTS)
def test_an_example_is_written_and_read(name: str) -> None:
    section = section_of(name)
    codec: Codec[Any] = built_in_codec(section["type"])
    model = from_plain(section["fields"], codec.model)
    data = encoded(name)
    assert len(data) == (
        CHIPS[section["chip"]] if "chip" in section else parse_size(section["size"])
    )
    assert codec.decode(data, Findings.strict()) == model
    assert from_plain(to_plain(model), codec.model) == model


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        ("edid.toml", "descriptors[2].text", "SN0002"),
        ("google-vpd.toml", "pairs.serial_number", "EX0000002"),
        ("intel-nic.toml", "ethernet-address", "020000123457"),
        ("onie-tlv.toml", "serial-number", "A much longer number than before"),
        ("rpi-hat.toml", "vendor-info.uuid", "0d4a6bd01d6e4d3f8a5f2f3c3c5a7b11"),
        ("rpi-hat-plus.toml", "vendor-info.pstr", "Another sensor HAT+"),
        ("sl28-vpd.toml", "serial-number", "000000001234568"),
        ("spd-ddr3.toml", "module-serial-number", "01abcdf0"),
        ("spd-ddr4.toml", "module-part-number", "EX4-8G-3200-B"),
        ("spd-ddr5.toml", "module-manufacturing-week", "8"),
    ],
)
def test_a_field_of_an_example_is_changed_with_its_checksums(
    name: str, path: str, value: str
) -> None:
    type_, before = section_of(name)["type"], encoded(name)
    after = edit_blob(before, type_, [(path, value)])
    assert len(after) == len(before)
    decoded = decode_blob(after, type_)
    assert decoded.problems == ()
    assert str(_at(decoded.fields, path)) == value
    # Nothing else has changed.
    old = str(_at(decode_blob(before, type_).fields, path))
    assert edit_blob(after, type_, [(path, old)]) == before


def _at(plain: Any, path: str) -> Any:
    for part in path.replace("[", ".").replace("]", "").split("."):
        plain = plain[int(part) if isinstance(plain, list) else part]
    return plain


@pytest.mark.interop
def test_edid_decode_reads_the_example(tmp_path: Path) -> None:
    said = edid_decode(encoded("edid.toml"), tmp_path)
    assert "EDID conformity: PASS" in said
    assert "Display Product Name: 'Example 24'" in said


@pytest.mark.interop
@pytest.mark.parametrize("generation", [3, 4])
def test_decode_dimms_reads_the_examples(generation: int, tmp_path: Path) -> None:
    said = decode_dimms(encoded(f"spd-ddr{generation}.toml"), tmp_path)
    assert said["Fundamental Memory type"] == f"DDR{generation} SDRAM"
    assert said["Size"] == "8192 MB"
    assert said["Assembly Serial Number"] == "0x01ABCDEF"
    assert all("OK" in value for name, value in said.items() if "CRC" in name)
