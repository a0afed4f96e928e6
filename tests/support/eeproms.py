"""A manifest with fields, and what images that are made of it hold."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import blobstore
from tests.support.cli import succeeds

if TYPE_CHECKING:
    from pathlib import Path

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


def write_manifest(directory: Path) -> Path:
    """Write `MANIFEST`, and the file that it names."""
    path = directory / "manifest.toml"
    path.write_text(MANIFEST)
    (directory / "custom.bin").write_bytes(b"\x01\x02")
    return path


def blobs(image: Path) -> dict[str, bytes]:
    """Return the blobs of an image in the clear, by section."""
    with blobstore.open(image, read_only=True) as store:
        return {name: store.get(name) for name in store}


def shown(*arguments: object) -> dict[str, object]:
    """Return the fields that ``show`` prints."""
    found: dict[str, object] = json.loads(succeeds("show", *arguments, "--json"))["fields"]
    return found
