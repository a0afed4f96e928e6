"""Scenarios on a file system of 8 MiB: `python -m tests.store.on_full_disk NAME DIRECTORY`.

`test_full_disk` mounts one for each and runs it there.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import blobstore
import luks
from blobstore.container.initialise import SectionSpec
from formats.errors import DeviceFullError

if TYPE_CHECKING:
    from collections.abc import Callable

MIB = 1 << 20
KIB = 1 << 10
SECRET = b"passphrase"
KINDS: dict[str, dict[str, Any]] = {
    "clear": {"encrypted": False},
    "luks2": {"secret": SECRET, "kdf": luks.Pbkdf2("sha256", 1000)},
    "qcow2": {"encrypted": False, "image_format": "qcow2"},
}


def register_more_than_there_is(path: Path, kind: str) -> None:
    """Neither is the disk filled, nor does the image stay larger, nor is the store poisoned."""
    with create(path, kind, {"a": KIB}) as store:
        before = path.stat().st_size, free(path)
        # qcow2's own tables may have moved; that is all.
        slack = 512 * KIB if kind == "qcow2" else 0
        for size in (1 << 40, 64 * MIB, 5 * MIB):
            for change in (
                lambda s=size: store.register("x", s),
                lambda s=size: store.resize("a", s),
            ):
                expect_full(change)
                assert path.stat().st_size <= before[0] + slack
                assert free(path) >= before[1] - slack
        store.put("a", b"still works")
        store.register("x", 100 * KIB)
        store.put("x", bytes(100 * KIB))
    check(path, kind, {"a": b"still works", "x": bytes(100 * KIB)})


def space_that_a_section_had_is_used_first(path: Path, kind: str) -> None:
    """The end of the free space is a hole that a full disk cannot fill; its start is not."""
    sections = [SectionSpec("a", KIB), SectionSpec("last", 300 * KIB, content=bytes(300 * KIB))]
    with create(path, kind, sections, free=6 * MIB) as store:
        store.put("last", os.urandom(300 * KIB))
        store.delete("last")
        fill(path)
        store.register("x", 250 * KIB)
        store.put("x", b"x" * 250 * KIB)
        expect_full(lambda: store.register("y", 250 * KIB))
        store.put("a", b"still works")
        assert store.verify().ok
    check(path, kind, {"a": b"still works", "x": b"x" * 250 * KIB})


def what_fails_on_a_full_disk_works_once_there_is_room(path: Path, kind: str) -> None:
    with create(path, kind, {"a": KIB}, free=0) as store:
        ballast = fill(path)
        expect_full(lambda: store.register("x", 500 * KIB))
        expect_full(lambda: store.resize("a", 500 * KIB))
        store.put("a", b"a")
        ballast.unlink()
        store.register("x", 500 * KIB)
        store.put("x", b"x")
    check(path, kind, {"a": b"a", "x": b"x"})


SCENARIOS = {
    function.__name__: function
    for function in (
        register_more_than_there_is,
        space_that_a_section_had_is_used_first,
        what_fails_on_a_full_disk_works_once_there_is_room,
    )
}


def create(path: Path, kind: str, sections: Any, **options: Any) -> blobstore.Store:
    return blobstore.create(path, sections, **{"free": 64 * KIB, **KINDS[kind], **options})


def check(path: Path, kind: str, expected: dict[str, bytes]) -> None:
    with blobstore.open(path, KINDS[kind].get("secret")) as store:
        assert {name: store.get(name) for name in store} == expected
        assert store.verify().ok


def expect_full(change: Callable[[], object]) -> None:
    try:
        change()
    except DeviceFullError:
        return
    raise AssertionError("it found room")


def free(path: Path) -> int:
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


def fill(path: Path) -> Path:
    """Write a file beside ``path`` until the file system is full."""
    ballast = path.with_name("ballast")
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return ballast


if __name__ == "__main__":
    SCENARIOS[sys.argv[1]](Path(sys.argv[3]) / "image", sys.argv[2])
