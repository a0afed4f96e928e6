#!/usr/bin/env python3
"""Make the three files of the example machine, with the programs that own them.

usage: generate.py [DIRECTORY]    (default: the directory of this script)

The VPD and the environment come out byte for byte the same each time; a TPM is
made of random numbers, so its state is another one each time.

Needs swtpm, tpm2-tools, libtss2-tcti-swtpm0 and u-boot-tools (mkenvimage).
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent

NV_INDEX = "0x1500016"
NV_TEXT = b"blobstore ships a throw-away TPM"
PRIMARY_KEY = "0x81000001"

VPD_SIZE = 256  # a 24C02 EEPROM
VPD_NAME = b"blobstore example adapter"
VPD_READ_ONLY = {
    b"PN": b"BS-2048-A",
    b"EC": b"A-0042",
    b"SN": b"20480001",
    b"MN": b"1014",
}

ENVIRONMENT_SIZE = 8192


def listens(path: Path) -> bool:
    """Say whether a server listens on a Unix socket."""
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


def tpm_state() -> bytes:
    """Make a new TPM, put a text and a key into it and return its permanent state."""
    with tempfile.TemporaryDirectory(prefix="tpm-") as directory:
        data = Path(directory, "tpm")
        control = Path(directory, "tpm.ctrl")  # the path that tpm2-tools expect
        log = Path(directory, "log")
        swtpm = subprocess.Popen(
            [
                *("swtpm", "socket", "--tpm2", "--flags=not-need-init"),
                f"--tpmstate=dir={directory}",
                f"--server=type=unixio,path={data}",
                f"--ctrl=type=unixio,path={control}",
                f"--log=file={log}",
            ]
        )
        try:
            while not (listens(data) and listens(control)):
                if swtpm.poll() is not None:
                    raise SystemExit(f"swtpm does not start: {log.read_text()}")
                time.sleep(0.01)

            def tpm2(command: str, text: bytes | None = None) -> None:
                subprocess.run(
                    ["tpm2", *command.split(), "--quiet"],
                    input=text,
                    env={**os.environ, "TPM2TOOLS_TCTI": f"swtpm:path={data}"},
                    cwd=directory,
                    check=True,
                )

            tpm2("startup --clear")
            tpm2(
                f"nvdefine {NV_INDEX} --hierarchy o --size {len(NV_TEXT)}"
                " --attributes ownerread|ownerwrite|authread|authwrite"
            )
            tpm2(f"nvwrite {NV_INDEX} --hierarchy o --input -", NV_TEXT)
            tpm2("createprimary --hierarchy o --key-algorithm ecc --key-context primary")
            tpm2(f"evictcontrol --hierarchy o --object-context primary {PRIMARY_KEY}")
            tpm2("shutdown --clear")
        finally:
            swtpm.terminate()
            swtpm.wait()
        return Path(directory, "tpm2-00.permall").read_bytes()


def pci_vpd() -> bytes:
    """Build vital product data as in PCI 3.0, appendix I.

    No program in Debian makes one; `lspci -vv` reads it and checks the sum.
    """

    def resource(tag: int, content: bytes) -> bytes:
        return bytes([tag]) + len(content).to_bytes(2, "little") + content

    def field(keyword: bytes, content: bytes) -> bytes:
        return keyword + bytes([len(content)]) + content

    name = resource(0x82, VPD_NAME)
    fields = b"".join(field(keyword, content) for keyword, content in VPD_READ_ONLY.items())
    # RV's first byte makes all bytes up to and including itself sum to zero. The
    # length before it is part of the sum, so a zero takes its place at first.
    read_only = resource(0x90, fields + field(b"RV", bytes(1)))
    read_only = read_only[:-1] + bytes([-sum(name + read_only) % 256])
    # RW is free space for the system: everything up to the end tag.
    room = VPD_SIZE - len(name) - len(read_only) - len(b"\x91..RW.\x78")
    return name + read_only + resource(0x91, field(b"RW", bytes(room))) + b"\x78"


def uboot_environment() -> bytes:
    """Let mkenvimage make an environment of uboot-env.txt."""
    return subprocess.run(
        ["mkenvimage", "-s", str(ENVIRONMENT_SIZE), "-o", "-", str(HERE / "uboot-env.txt")],
        stdout=subprocess.PIPE,
        check=True,
    ).stdout


def main() -> None:
    """Write all three files."""
    directory = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE
    directory.joinpath("pci-vpd.bin").write_bytes(pci_vpd())
    directory.joinpath("uboot-env.bin").write_bytes(uboot_environment())
    directory.joinpath("tpm2-permall.bin").write_bytes(tpm_state())


if __name__ == "__main__":
    main()
