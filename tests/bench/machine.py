"""The machine that something was measured on, in a line."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path

from cryptography.hazmat.backends.openssl import backend


def describe(directory: Path) -> str:
    """Return what figures depend on; ``directory`` is on the disk that was measured."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    openssl = " ".join(backend.openssl_version_text().split()[:2])
    parts = [
        _processor(),
        f"{len(os.sched_getaffinity(0))} cores",
        f"{memory:.0f} GiB",
        f"{platform.system()} {platform.release()}",
        f"{_file_system(directory)} for durable puts",
        f"Python {platform.python_version()}",
        f"cryptography {version('cryptography')} with {openssl}",
        f"NumPy {version('numpy')}",
    ]
    return ", ".join(parts)


def _processor() -> str:
    """Return its name, and on x86 the family, which says more than some names."""
    fields: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    name = fields.get("model name") or platform.machine()
    return f"{name} (family {fields['cpu family']})" if "cpu family" in fields else name


def _file_system(directory: Path) -> str:
    """Return the type of the file system that a directory is in."""
    device = directory.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        mount, _, source = line.partition(" - ")
        if mount.split()[2] == wanted:
            return source.split()[0]
    return "an unknown file system"
