"""SIGKILL at random instants: of programs, and of the process that serves (M10, M15, M53)."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

import blobstore
from tests.mount import writer
from tests.support.effort import cases
from tests.support.mounts import MountProcess, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.interop]


@pytest.fixture
def chance() -> random.Random:
    return random.Random(20261130)


class Writer:
    """`writer` as a process."""

    def __init__(self, directory: Path, method: str, first: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-S", writer.__file__, directory, method, str(first)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        self.process.stdout.readline()  # it has begun

    def killed(self) -> int:
        """Kill it, or let it have failed; return the last number that it said."""
        self.process.kill()
        said, _ = self.process.communicate(timeout=60)
        lines = said.decode().splitlines(keepends=True)
        whole = [int(line) for line in lines if line.endswith("\n")]
        return whole[-1] if whole else -1


@pytest.mark.parametrize("method", writer.METHODS)
def test_m15_killed_programs_leave_the_old_or_the_new_file(
    mounted: MountProcess, method: str, chance: random.Random
) -> None:
    path = mounted.directory / "file"
    first = 0
    for _ in range(cases(15, 100)):
        process = Writer(mounted.directory, method, first)
        time.sleep(chance.random() * 0.05)
        last = process.killed()
        # The kernel lets go of the files of a process a little after its end.
        wait_for(lambda: writer.is_whole(path.read_bytes()))
        found = int(path.read_bytes()[:8])
        assert found in (last, last + 1) or last == -1
        first = found + 1
    mounted.end()
    with blobstore.open(mounted.image, direct=True) as store:
        assert store.verify().ok
        for name in store:
            if store.section(name).size is not None and name.startswith("file"):
                assert writer.is_whole(store.get(name))


@pytest.mark.parametrize("method", writer.METHODS)
def test_m10_m53_a_killed_mount_loses_nothing_that_was_committed(
    image: Path, tmp_path: Path, method: str, chance: random.Random
) -> None:
    first = 0
    for _ in range(cases(4, 40)):
        mounted = MountProcess(image, tmp_path / "mnt")
        process = Writer(mounted.directory, method, first)
        time.sleep(chance.random() * 0.2)
        mounted.end(signal.SIGKILL)
        last = process.killed()
        with blobstore.open(image, direct=True) as store:
            assert store.verify().ok
            content = store.get("file")
        assert writer.is_whole(content)
        found = int(content[:8])
        assert found in (last, last + 1) or last == -1
        first = found + 1


def test_programs_and_their_mount_are_killed_together(
    image: Path, tmp_path: Path, chance: random.Random
) -> None:
    for number in range(cases(3, 20)):
        mounted = MountProcess(image, tmp_path / "mnt")
        processes = [
            Writer(mounted.directory, method, number * 10_000) for method in ("save", "replace")
        ]
        time.sleep(chance.random() * 0.1)
        for one in (*processes, None) if number % 2 else (None, *processes):
            if one is None:
                mounted.end(signal.SIGKILL)
            else:
                one.killed()
        for name, content in committed(image):
            assert writer.is_whole(content), name


def committed(image: Path) -> Iterator[tuple[str, bytes]]:
    with blobstore.open(image, direct=True) as store:
        assert store.verify().ok
        for name in store:
            if name.startswith("file"):
                yield name, store.get(name)
