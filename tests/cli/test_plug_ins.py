"""Formats that other distributions add by entry points."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support.cli import fails
from tests.support.eeproms import blobs

ROOT = Path(__file__).resolve().parents[2]

PLUG_IN = '''
from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from formats.eeprom.framework.fields import validate
from formats.eeprom.parts.padding import fill_up
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
    assert b"fields.serial: 'x' is not text that matches ^[A-Z0-9]{8}$" in done.stderr
    assert b'"const": "acme-board"' in with_plug_in(plug_in, "pack", "--schema").stdout
    assert fails("show", image, "board") == 40  # without it


def test_a_plug_in_replaces_nothing_that_is_here(plug_in: Path, tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"ACMEAB12CD34")
    done = with_plug_in(plug_in, "show", tmp_path / "binary", "--type", "pci-vpd")
    assert b"the EEPROM has no PCI VPD" in done.stderr


@pytest.mark.parametrize(
    ("entry_point", "message"),
    [
        ("acme-broken = acme_eeprom:NONE", "cannot be loaded"),
        ("acme-broken = acme_none:CODEC", "cannot be loaded"),
        ("acme-broken = acme_eeprom:AcmeBoard", "is not a codec of that name"),
        ("acme-broken = acme_eeprom:CODEC", "is not a codec of that name"),
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
