"""The programs that device state belongs to, asked what they make of given bytes.

Each function takes bytes, whether from a file or read back out of a store, and
returns what the program read in them. A program that refuses them raises
`ForeignProgramError`, one that is not installed `MissingProgramError`: a test that
needs it then fails, for a skipped one would prove nothing.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sysconfig
import tempfile
import time
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

SYSTEM_PACKAGES = Path(__file__).resolve().parents[2] / "tools" / "system-packages.list"

# PCI configuration space with only the fields that lead lspci to the VPD.
_VENDOR, _DEVICE, _CLASS = 0x1AF4, 0x1000, 0x0880
_STATUS_CAPABILITIES = 0x10
_CAPABILITY_AT = 0x40
_CAPABILITY_VPD = 0x03


class MissingProgramError(Exception):
    """A program the tests need is not installed."""


class ForeignProgramError(Exception):
    """A program refused what it was given."""


def program(name: str) -> str:
    """Return the path of a program that tools/system-packages.list names."""
    package = _packages()[name]
    # /usr/sbin is where Debian keeps some that anyone may run.
    path = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    if path is None:
        raise MissingProgramError(
            f"{name} is not installed: it is in the Debian package {package}"
            " (tools/system-packages installs it)"
        )
    return path


@cache
def _packages() -> dict[str, str]:
    """Return the Debian package of each program that tests may run."""
    lines = SYSTEM_PACKAGES.read_text().splitlines()
    fields = [line.split() for line in lines if line and not line.startswith("#")]
    return {name: package for name, package, *_ in fields}


def system_file(path: str) -> Path:
    """Return the path of a file that tools/system-packages.list names.

    Raises:
        MissingProgramError: It is not installed.
    """
    package = _packages()[path]
    if not Path(path).is_file():
        raise MissingProgramError(f"{path} is in the Debian package {package}")
    return Path(path)


def virt_fw_vars(*arguments: object) -> str:
    """Run virt-fw-vars, which came with the tests' own packages; return what it said.

    Raises:
        ForeignProgramError: It failed.
    """
    script = Path(sysconfig.get_path("scripts"), "virt-fw-vars")
    done = subprocess.run(
        [script, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if done.returncode != 0:
        raise ForeignProgramError(f"virt-fw-vars failed: {done.stderr}")
    return done.stdout


def run(name: str, *arguments: object, environment: dict[str, str] | None = None) -> bytes:
    """Run a program to its end and return what it printed.

    Raises:
        MissingProgramError: It is not installed.
        ForeignProgramError: It failed; the message has what it said.
    """
    done = subprocess.run(
        [program(name), *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env={**os.environ, "LC_ALL": "C", **(environment or {})},
        timeout=60,
        check=False,
    )
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip()
        raise ForeignProgramError(f"{name} failed with status {done.returncode}: {said}")
    return done.stdout


def swtpm_nv_read(state: bytes, index: int) -> bytes:
    """Start swtpm from a TPM 2 permanent state and read one NV index with the owner's right."""
    with _swtpm(state) as environment:
        return run("tpm2", "nvread", hex(index), "--hierarchy", "o", environment=environment)


def swtpm_persistent_handles(state: bytes) -> set[int]:
    """Start swtpm from a TPM 2 permanent state and list the handles of the keys it keeps."""
    with _swtpm(state) as environment:
        lines = run("tpm2", "getcap", "handles-persistent", environment=environment)
    return {int(line.removeprefix("- "), 16) for line in lines.decode().splitlines()}


@contextmanager
def _swtpm(state: bytes) -> Iterator[dict[str, str]]:
    """Run swtpm on a copy of a permanent state, as `swtpm` does."""
    with tempfile.TemporaryDirectory(prefix="tpm-") as directory:
        Path(directory, "tpm2-00.permall").write_bytes(state)
        with swtpm(f"dir={directory}") as environment:
            yield environment


@contextmanager
def swtpm(
    tpmstate: str, *options: str, flags: str = "startup-clear", tpm2: bool = True
) -> Iterator[dict[str, str]]:
    """Run swtpm on the state that ``--tpmstate`` names, which it changes.

    Yields the environment that leads tpm2-tools to it; SWTPM_CTRL is its control socket.
    """
    # Not pytest's tmp_path, which may be too long for the name of a socket.
    with tempfile.TemporaryDirectory(prefix="tpm-") as directory:
        data = Path(directory, "tpm")
        control = Path(directory, "tpm.ctrl")  # where the TCTI looks for it
        log = Path(directory, "log")
        process = subprocess.Popen(
            [
                *(program("swtpm"), "socket", *(["--tpm2"] if tpm2 else [])),
                *(f"--flags=not-need-init,{flags}", *options),
                f"--tpmstate={tpmstate}",
                f"--server=type=unixio,path={data}",
                f"--ctrl=type=unixio,path={control}",
                f"--log=file={log}",
            ],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,  # it says there what the log says too
        )
        try:
            deadline = time.monotonic() + 30
            while not (_listens(data) and _listens(control)):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise ForeignProgramError(f"swtpm does not start: {log.read_text()}")
                time.sleep(0.01)
            yield {
                "TPM2TOOLS_TCTI": f"swtpm:path={data}",
                "SWTPM_CTRL": str(control),
                "SWTPM_PID": str(process.pid),
            }
        finally:
            process.terminate()
            process.wait(timeout=30)


def _listens(path: Path) -> bool:
    """Tell whether a server listens on a Unix socket."""
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


def lspci_vpd(vpd: bytes) -> str:
    """Return lspci's account of a PCI device that has the given VPD and nothing else.

    lspci says "checksum good" or "checksum bad" of it and does not fail on either.
    """
    config = bytearray(256)
    config[0x00:0x02] = _VENDOR.to_bytes(2, "little")
    config[0x02:0x04] = _DEVICE.to_bytes(2, "little")
    config[0x06] = _STATUS_CAPABILITIES
    config[0x0A:0x0C] = _CLASS.to_bytes(2, "little")
    config[0x34] = _CAPABILITY_AT
    config[_CAPABILITY_AT] = _CAPABILITY_VPD
    with tempfile.TemporaryDirectory(prefix="pci-") as sysfs:
        device = Path(sysfs, "devices", "0000:00:01.0")
        device.mkdir(parents=True)
        device.joinpath("config").write_bytes(config)
        device.joinpath("vendor").write_text(f"{_VENDOR:#06x}\n")
        device.joinpath("device").write_text(f"{_DEVICE:#06x}\n")
        device.joinpath("class").write_text(f"{_CLASS << 8:#08x}\n")
        device.joinpath("irq").write_text("0\n")
        device.joinpath("resource").write_text(f"{0:#018x} {0:#018x} {0:#018x}\n" * 13)
        device.joinpath("vpd").write_bytes(vpd)
        return run("lspci", "-O", f"sysfs.path={sysfs}", "-vvv").decode()


def fw_printenv(env: bytes) -> dict[str, str]:
    """Return the variables that fw_printenv reads in a U-Boot environment (none with newlines)."""
    with tempfile.TemporaryDirectory(prefix="env-") as directory:
        image = Path(directory, "env")
        image.write_bytes(env)
        config = Path(directory, "fw_env.config")
        config.write_text(f"{image} 0 {len(env):#x}\n")
        lines = run("fw_printenv", "--config", config).decode().splitlines()
    return dict(line.split("=", 1) for line in lines)


def edid_decode(edid: bytes, directory: Path) -> str:
    """Return what edid-decode reads in an EDID, and whether it conforms.

    Raises:
        ForeignProgramError: It fails, as it does where it does not.
    """
    file = directory / "edid.bin"
    file.write_bytes(edid)
    return run("edid-decode", "--check", "--skip-hex-dump", file).decode()


def decode_dimms(spd: bytes, directory: Path) -> dict[str, str]:
    """Return what decode-dimms reads in an SPD, by the names of its lines.

    A wrong CRC of the first bytes is a line, and everything else is read nevertheless.
    """
    file = directory / "spd.txt"
    rows = [f"{start:08x}  {spd[start : start + 16].hex(' ')}" for start in range(0, len(spd), 16)]
    file.write_text("\n".join([*rows, f"{len(spd):08x}", ""]))
    said = run("decode-dimms", "-c", "-x", file).decode()
    pairs = [line.split("  ", 1) for line in said.splitlines() if "  " in line.strip()]
    return {name.strip(): value.strip() for name, value in pairs}
