"""A machine that says which variables its firmware has."""

from __future__ import annotations

import re
import subprocess
import time
import uuid
from typing import TYPE_CHECKING, Final

from tests.support.foreign import program, system_file

if TYPE_CHECKING:
    from pathlib import Path

CODE: Final = "/usr/share/OVMF/OVMF_CODE_4M.fd"
SECURE_CODE: Final = "/usr/share/OVMF/OVMF_CODE_4M.secboot.fd"
VARS: Final = "/usr/share/OVMF/OVMF_VARS_4M.fd"
ENROLLED: Final = "/usr/share/OVMF/OVMF_VARS_4M.ms.fd"

_LINE: Final = re.compile(rb"@LIST (\w+) (\w+) (\w+) (\w*)\r\n")
_SECONDS: Final = 240

Found = dict[tuple[uuid.UUID, str], tuple[int, bytes]]


def started_variables(
    flash: Path | str, application: Path, *, secure: bool = False
) -> tuple[Found | None, bytes]:
    """Start a machine on a flash, which it changes.

    Args:
        flash: OVMF's variables, of 528 KiB: a file, or the URI of an NBD export.
        application: `tests.owner.guest.build_lister` made it.
        secure: Use the build of OVMF that has Secure Boot.

    Returns:
        The variables that the application found, None if firmware refused to start it; and
        what appeared on the serial port.
    """
    serial = application.with_suffix(".serial")
    serial.unlink(missing_ok=True)
    code = system_file(SECURE_CODE if secure else CODE)
    command = [program("qemu-system-x86_64"), "-accel", "tcg", "-cpu", "max", "-m", "256"]
    command += ["-machine", f"q35,smm={'on' if secure else 'off'}", "-nodefaults"]
    if secure:
        command += ["-global", "driver=cfi.pflash01,property=secure,value=on"]
    command += ["-display", "none", "-serial", f"file:{serial}", "-kernel", str(application)]
    command += ["-drive", f"if=pflash,format=raw,readonly=on,file={code}"]
    command += ["-drive", f"if=pflash,format=raw,file={flash}"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + _SECONDS
            said = b""
            while b"@END" not in said and not _refused(said):
                assert process.poll() is None, said[-500:]
                assert time.monotonic() < deadline, said[-500:]
                time.sleep(0.1)
                said = serial.read_bytes() if serial.exists() else b""
        finally:
            process.terminate()
    if b"@END" not in said:
        return None, said
    found: Found = {}
    for line in _LINE.findall(said):
        guid, name, attributes, data = (bytes.fromhex(part.decode()) for part in line)
        key = uuid.UUID(bytes_le=guid), name.decode("utf-16-le")
        found[key] = int.from_bytes(attributes, "little"), data
    return found, said


def _refused(said: bytes) -> bool:
    return b"Access Denied" in said or b"Security Violation" in said or b"No bootable" in said
