"""Images for the tests of qcow2, and what QEMU's tools say of them."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any

from formats.devices.device import MemoryDevice
from formats.qcow2.creation import DEFAULTS, Qcow2Options, create
from formats.qcow2.opening import open_image
from tests.support.foreign import program, run

if TYPE_CHECKING:
    from pathlib import Path

    from formats.qcow2.device import Qcow2Device


def new_image(size: int, options: Qcow2Options = DEFAULTS) -> MemoryDevice:
    """Return an empty image in memory."""
    device = MemoryDevice(0)
    create(device, size, options)
    return device


def new_disk(size: int, options: Qcow2Options = DEFAULTS) -> Qcow2Device:
    """Return the disk of an empty image in memory, to be written."""
    return open_image(new_image(size, options), read_only=False)


def content(device: MemoryDevice) -> bytes:
    """Return what an image's disk has."""
    with open_image(device) as disk:
        return disk.read(0, disk.size)


def qemu_img(*arguments: object) -> bytes:
    """Run qemu-img, which must succeed; return what it printed."""
    return run("qemu-img", *arguments)


def qemu_io(path: Path, *commands: str) -> None:
    """Run qemu-io commands on an image of any format."""
    options = [word for command in commands for word in ("-c", command)]
    run("qemu-io", *options, path)


def qemu_check(path: Path, *options: str) -> dict[str, Any]:
    """Return what qemu-img check says, whatever it finds."""
    done = subprocess.run(
        [program("qemu-img"), "check", "--output=json", "-f", "qcow2", *options, path],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode in (0, 2, 3), done
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def assert_clean(path: Path) -> None:
    """Assert that qemu-img finds neither corruptions nor leaks."""
    found = qemu_check(path)
    assert (found.get("corruptions", 0), found.get("leaks", 0), found["check-errors"]) == (0, 0, 0)


def assert_same(path: Path, expected: bytes) -> None:
    """Assert that qemu-img reads ``expected`` in a qcow2 image."""
    raw = path.with_suffix(".expected")
    raw.write_bytes(expected)
    qemu_img("compare", "-f", "raw", "-F", "qcow2", raw, path)
