"""The blobs of EEPROMs in sections and in files, as fields."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import blobstore
import luks
from tests.support.cli import succeeds

if TYPE_CHECKING:
    from pathlib import Path

MANIFEST = """
[image]
luks = false

[[section]]
name = "nic"
type = "pci-vpd"
max-size = 256
[section.fields]
identifier = "A network card"
[section.fields.read-only]
SN = "1"

[[section]]
name = "plain"
max-size = 64
hex = "00"
"""


@pytest.fixture
def image(tmp_path: Path) -> Path:
    manifest, image = tmp_path / "manifest.toml", tmp_path / "image"
    manifest.write_text(MANIFEST)
    succeeds("pack", manifest, "-o", image)
    return image


def test_a_section_is_decoded_as_its_type_or_another(image: Path) -> None:
    with blobstore.open(image, read_only=True) as store:
        decoded = blobstore.decode_section(store, "nic")
        assert (decoded.type, decoded.problems) == ("pci-vpd", ())
        assert decoded.fields["read-only"]["SN"] == "1"
        with pytest.raises(luks.UnsupportedError, match="no type"):
            blobstore.decode_section(store, "plain")
        with pytest.raises(luks.FormatError):
            blobstore.decode_section(store, "plain", "ipmi-fru")
        with pytest.raises(blobstore.BlobNotFoundError):
            blobstore.decode_section(store, "none")


def test_a_file_is_decoded(image: Path, tmp_path: Path) -> None:
    file = tmp_path / "nic.bin"
    with blobstore.open(image, read_only=True) as store:
        blobstore.write_file(file, store.get("nic"))
    assert blobstore.decode_file(file, "pci-vpd").fields["read-only"]["SN"] == "1"
    with pytest.raises(luks.DeviceError):
        blobstore.decode_file(tmp_path / "none", "pci-vpd")


def test_what_is_larger_than_any_eeprom_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "large"
    with file.open("wb") as stream:
        stream.truncate((16 << 20) + 1)
    with pytest.raises(luks.FormatError, match=f"{file} has 16777217 bytes; at most 16777216"):
        blobstore.decode_file(file, "pci-vpd")
    large = (16 << 20) + 1
    with blobstore.create(tmp_path / "image", {"a": large}, encrypted=False) as store:
        store.put("a", bytes(large))
        with pytest.raises(luks.FormatError, match="more than any EEPROM"):
            blobstore.decode_section(store, "a", "pci-vpd")


def test_a_section_is_edited_in_one_commit_or_not_at_all(image: Path) -> None:
    with blobstore.open(image) as store:
        generation = store.section("nic").generation
        blobstore.edit_section(store, "nic", [("read-only.SN", "4711")])
        assert store.section("nic").generation == generation + 1
        decoded = blobstore.decode_section(store, "nic")
        assert (decoded.fields["read-only"]["SN"], decoded.problems) == ("4711", ())
        with pytest.raises(luks.FormatError):
            blobstore.edit_section(store, "nic", [("read-only.SN", "1"), ("nonsense", "1")])
        assert blobstore.decode_section(store, "nic") == decoded
        assert store.section("nic").generation == generation + 1


def test_sizes_are_read_and_written_as_in_manifests() -> None:
    assert blobstore.parse_size("1.5MiB") == 3 << 19
    assert blobstore.format_size(3 << 19) == "1536 KiB"
    with pytest.raises(ValueError, match="3KB"):
        blobstore.parse_size("3KB")


def test_the_schema_is_that_of_manifests() -> None:
    assert "section" in blobstore.manifest_schema()["properties"]
