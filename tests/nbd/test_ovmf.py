"""OVMF and AAVMF boot with their flash in a window of a store, and find it again. N24, F60."""

from __future__ import annotations

import subprocess
import time
from typing import TYPE_CHECKING

import pytest

import blobstore
from tests.support.foreign import program, system_file, virt_fw_vars

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.interop, pytest.mark.slow]

CODE = "/usr/share/OVMF/OVMF_CODE_4M.fd"
VARS = "/usr/share/OVMF/OVMF_VARS_4M.fd"


PC = ("qemu-system-x86_64", "-machine", "q35,smm=off,pflash0=code,pflash1=vars")
ARM = ("qemu-system-aarch64", "-machine", "virt,pflash0=code,pflash1=vars", "-cpu", "cortex-a57")


def boot(socket: Path, directory: Path, machine: tuple[str, ...] = PC, code: str = CODE) -> None:
    """Start a machine, wait until its firmware looks for something to boot, and end it."""
    serial = directory / "serial"
    command = [program(machine[0]), *machine[1:], "-accel", "tcg", "-nodefaults"]
    command += ["-display", "none", "-m", "256", "-serial", f"file:{serial}"]
    flash = f"driver=file,node-name=code,read-only=on,filename={system_file(code)}"
    nbd = f"driver=nbd,node-name=vars,export=vars,server.type=unix,server.path={socket}"
    command += ["-blockdev", flash, "-blockdev", nbd]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 240
        while not (serial.exists() and b"BdsDxe: " in serial.read_bytes()):
            assert process.poll() is None
            assert time.monotonic() < deadline, serial.read_bytes()
            time.sleep(0.1)
        process.terminate()
    serial.unlink()


def test_n27_ovmf_keeps_its_variables_in_a_section(tmp_path: Path) -> None:
    template = system_file(VARS).read_bytes()
    found = tmp_path / "found"
    with blobstore.create(tmp_path / "image", {}, encrypted=False) as store:
        store.register("vars", len(template), kind="window")
        store.put("vars", template)
        with blobstore.NbdServer(tmp_path / "s", blobstore.NbdSections(store)):
            boot(tmp_path / "s", tmp_path)
        first = store.get("vars")
        assert first != template
        found.write_bytes(first)
        assert "BootOrder" in virt_fw_vars("--input", found, "--print")
        generation = store.digest().generation
        assert generation > 2  # it was committed while it ran, and at the end
    with blobstore.open(tmp_path / "image", direct=True) as store:
        assert store.verify().ok
        with blobstore.NbdServer(tmp_path / "s", blobstore.NbdSections(store)):
            boot(tmp_path / "s", tmp_path)
        found.write_bytes(store.get("vars"))
        assert "BootOrder" in virt_fw_vars("--input", found, "--print")


def test_f60_f61_aavmf_makes_its_variables_in_a_blank_flash(tmp_path: Path) -> None:
    """Its machine has a flash of 64 MiB, of which the image has room for one."""
    template = system_file("/usr/share/AAVMF/AAVMF_VARS.fd")
    found = tmp_path / "found"
    with blobstore.create(tmp_path / "image", {}, encrypted=False) as store:
        blobstore.import_state(store, template, "ovmf-vars", name="vars", blank=True)
        with blobstore.NbdServer(tmp_path / "s", blobstore.NbdSections(store)):
            boot(tmp_path / "s", tmp_path, ARM, "/usr/share/AAVMF/AAVMF_CODE.fd")
        blobstore.export_state(store, found, "ovmf-vars", name="vars")
        assert found.stat().st_size == 64 << 20
        assert "BootOrder" in virt_fw_vars("--input", found, "--print")
    assert (tmp_path / "image").stat().st_size < 12 << 20
