"""The manifests in examples/eeprom say what their formats' programs then read."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from formats.eeprom.codec import Codec, Report
from formats.eeprom.fields import from_plain, to_plain
from formats.eeprom.registry import built_in_codec
from tests.support.foreign import decode_dimms, edid_decode

EXAMPLES = Path(__file__).parents[2] / "examples" / "eeprom"
#: All but raw: what is read of that has no checksums (E-RAW2).
MANIFESTS = sorted(path.name for path in EXAMPLES.glob("*.toml") if path.stem != "raw")


def section_of(name: str) -> dict[str, Any]:
    (section,) = tomllib.loads((EXAMPLES / name).read_text())["section"]
    assert isinstance(section, dict)
    return section


def encoded(name: str) -> bytes:
    section = section_of(name)
    codec: Codec[Any] = built_in_codec(section["type"])
    return codec.encode(from_plain(section["fields"], codec.model), None)


@pytest.mark.parametrize("name", MANIFESTS)
def test_an_example_is_written_and_read(name: str) -> None:
    section = section_of(name)
    codec: Codec[Any] = built_in_codec(section["type"])
    model = from_plain(section["fields"], codec.model)
    data = codec.encode(model, None)
    assert codec.decode(data, Report.strict()) == model
    assert from_plain(to_plain(model), codec.model) == model


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
