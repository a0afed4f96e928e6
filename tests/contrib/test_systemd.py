"""contrib/: what systemd and AppArmor say of the unit templates and the profile."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.cli import succeeds
from tests.support.foreign import program

CONTRIB = Path(__file__).resolve().parents[2] / "contrib"


def said(name: str, *arguments: object) -> tuple[int, str]:
    """Run a program; return its exit code, and what it printed."""
    done = subprocess.run(
        [program(name), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units, with a program that is there in the place of an installed one."""
    program = tmp_path / "blobstore"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    for unit in CONTRIB.joinpath("systemd").iterdir():
        text = unit.read_text().replace("/usr/bin/blobstore", str(program))
        tmp_path.joinpath(unit.name).write_text(text)
    return tmp_path


def test_systemd_understands_the_units(units: Path) -> None:
    instances = [str(unit).replace("@.", "@machine.") for unit in sorted(units.glob("*@.*"))]
    assert len(instances) == 3
    assert said("systemd-analyze", "verify", "--man=no", *instances) == (0, "")


def test_systemd_finds_a_mistake_in_the_units(units: Path) -> None:
    unit = units / "blobstore@.service"
    unit.write_text(unit.read_text().replace("ProtectClock=", "ProtectsClock="))
    machine = units / "blobstore@machine.service"
    assert "ProtectsClock" in said("systemd-analyze", "verify", "--man=no", machine)[1]


def test_the_service_is_confined(units: Path) -> None:
    """systemd rates how exposed a service is, from 0 to 10; below 2 is what it calls OK."""
    options = ("--offline=yes", "--threshold=15")
    machine = units / "blobstore@machine.service"
    code, text = said("systemd-analyze", "security", *options, machine)
    assert code == 0, text


def test_the_options_of_the_service_are_there(units: Path, tmp_path: Path) -> None:
    start = next(
        line
        for line in units.joinpath("blobstore@.service").read_text().splitlines()
        if line.startswith("ExecStart=")
    )
    config = tmp_path / "serve.toml"
    config.write_text('image = "machine.img"\n')
    words = start.replace("/etc/blobstore/%i.toml", str(config)).split()[1:]
    assert words[0] == "serve"
    succeeds(*words, "--check-config")


def test_sockets_are_called_as_fronts_are(units: Path) -> None:
    names = {
        line.partition("=")[2]
        for unit in units.glob("*.socket")
        for line in unit.read_text().splitlines()
        if line.startswith("FileDescriptorName=")
    }
    schema = json.loads((CONTRIB.parent / "spec" / "serve.schema.json").read_text())
    assert names == {"store", schema["$defs"]["NbdFront"]["properties"]["name"]["default"]}


def test_apparmor_understands_the_profile(tmp_path: Path) -> None:
    profile = CONTRIB / "apparmor" / "usr.bin.blobstore"
    assert said("apparmor_parser", "-Q", "-K", profile)[0] == 0
    wrong = tmp_path / "wrong"
    shutil.copy(profile, wrong)
    wrong.write_text(wrong.read_text().replace("capability chown", "capability chowns"))
    code, text = said("apparmor_parser", "-Q", "-K", wrong)
    assert (code, "chowns" in text) == (1, True), text
