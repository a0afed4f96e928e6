"""The same calls on a mounted directory and on an ordinary one give the same results.

Random calls of programs, with their errors, on files that several descriptors have open; what
stat(2), read(2) and readdir(2) say of both directories is the same.
"""

from __future__ import annotations

import ctypes
import errno
import os
import random
import stat
from typing import TYPE_CHECKING, Any

import pytest

import blobstore
from tests.support.effort import cases
from tests.support.mounts import MountProcess

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.interop

NAMES = ("a", "b", "c", "d.tmp", "a name", "ü", "n" * 200)
FLAGS = (os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR | os.O_APPEND, os.O_WRONLY | os.O_TRUNC)
CREATING = (0, os.O_CREAT, os.O_CREAT, os.O_CREAT | os.O_EXCL)
NOREPLACE = 1

_library = ctypes.CDLL(None, use_errno=True)


class Both:
    """Two directories, and what is open in them."""

    def __init__(self, first: Path, second: Path, seed: int) -> None:
        self._directories = (first, second)
        self._open: list[tuple[int, int]] = []
        self._chance = random.Random(seed)
        self.said: list[str] = []
        self.errors: set[int] = set()

    def step(self) -> None:
        """Do one thing to both."""
        choose = self._chance.choice
        name, other = choose(NAMES), choose(NAMES)
        size = choose((0, 1, 100, 4095, 4096, 9000, 70_000))
        calls: list[tuple[str, Callable[[Path], object]]] = [
            (f"unlink {name}", lambda top: os.unlink(top / name)),
            (f"rename {name} {other}", lambda top: os.rename(top / name, top / other)),
            (f"rename -n {name} {other}", lambda top: rename_flagged(top / name, top / other)),
            (f"truncate {name} {size}", lambda top: os.truncate(top / name, size)),
            (f"chmod {name}", lambda top: os.chmod(top / name, 0o400 | size & 0o277)),
            (f"utime {name}", lambda top: os.utime(top / name, ns=(size, size * 1001))),
            (f"rmdir {name}", lambda top: os.rmdir(top / name)),
            (f"opendir {name}", lambda top: os.listdir(top / name)),
            (f"lookup {name}/x", lambda top: os.stat(top / name / "x")),
            (f"readlink {name}", lambda top: os.readlink(top / name)),
            ("long name", lambda top: os.stat(top / ("n" * 300))),
        ]
        if self._chance.random() < 0.25 or not self._open:
            flags = choose(FLAGS) | choose(CREATING)
            self.said.append(f"open {name} {flags:o}")
            made = self._both([lambda top: os.open(top / name, flags, 0o640)] * 2)
            if made is not None:
                self._open.append(made)
        elif self._chance.random() < 0.7:
            self._with_descriptor(size)
        else:
            said, call = choose(calls)
            self.said.append(said)
            self._both([call] * 2)
        # Seldom: what was just read is in memory, which would hide that it is not kept.
        if self._chance.random() < 0.1:
            self._compare()

    def close(self) -> None:
        for pair in self._open:
            for one in pair:
                os.close(one)
        self._open.clear()

    def _with_descriptor(self, size: int) -> None:
        pair = self._chance.choice(self._open)
        offset = self._chance.choice((0, 1, 50, 4000, 4096, 60_000))
        data = self._chance.randbytes(size)
        calls: list[tuple[str, Callable[[int], object]]] = [
            (f"pwrite {size} {offset}", lambda one: os.pwrite(one, data, offset)),
            (f"write {size}", lambda one: os.write(one, data)),
            (f"pread {size} {offset}", lambda one: os.pread(one, size, offset)),
            (f"read {size}", lambda one: os.read(one, size)),
            (f"lseek {offset}", lambda one: os.lseek(one, offset, os.SEEK_SET)),
            ("lseek end", lambda one: os.lseek(one, 0, os.SEEK_END)),
            (f"ftruncate {size}", lambda one: os.ftruncate(one, size)),
            ("fsync", os.fsync),
            ("fchmod", lambda one: os.fchmod(one, 0o600 | size & 0o77)),
            (f"fallocate {offset} {size}", lambda one: os.posix_fallocate(one, offset, size)),
            ("close", os.close),
        ]
        # Few are open, so that most files are not, and are read again from the store.
        said, call = calls[-1] if len(self._open) > 2 else self._chance.choice(calls)
        self.said.append(f"{said} of {self._open.index(pair)}")
        results = [attempt(call, one) for one in pair]
        self._same(results)
        if said == "close":
            self._open.remove(pair)

    def _both(self, calls: list[Callable[[Path], object]]) -> tuple[int, int] | None:
        pairs = zip(calls, self._directories, strict=True)
        results = [attempt(call, top) for call, top in pairs]
        if self.said[-1].startswith("open ") and not any(isinstance(one, str) for one in results):
            first, second = results
            assert isinstance(first, int)
            assert isinstance(second, int)
            return first, second
        self._same(results)
        return None

    def _same(self, results: list[object]) -> None:
        first, second = results
        assert first == second, self.said[-30:]
        if isinstance(first, str):
            self.errors.add(int(first.split()[1]))

    def _compare(self) -> None:
        first, second = (
            {name: seen(top / name) for name in os.listdir(top)} for top in self._directories
        )
        assert first == second, self.said[-30:]
        for pair in self._open:
            one, other = (of_descriptor(found) for found in pair)
            assert one == other, self.said[-30:]


def attempt(call: Callable[[Any], object], argument: object) -> object:
    """Return the result of a call, or the number of its error as a text."""
    try:
        return call(argument)
    except OSError as error:
        return f"error {error.errno}"


def rename_flagged(old: Path, new: Path) -> None:
    if _library.renameat2(-100, os.fsencode(old), -100, os.fsencode(new), NOREPLACE):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def seen(path: Path) -> tuple[object, ...]:
    found = path.stat()
    return (stat.filemode(found.st_mode), found.st_size, found.st_nlink, path.read_bytes())


def of_descriptor(descriptor: int) -> tuple[object, ...]:
    found = os.fstat(descriptor)
    where = os.lseek(descriptor, 0, os.SEEK_CUR)
    content = attempt(lambda one: os.pread(one, 1 << 20, 0), descriptor)
    return (stat.filemode(found.st_mode), found.st_size, found.st_nlink, where, content)


@pytest.mark.parametrize("seed", range(cases(2, 12)))
def test_m1_to_m24_calls_have_the_results_that_they_have_on_a_disk(
    tmp_path: Path, seed: int
) -> None:
    image, disk = tmp_path / "image", tmp_path / "disk"
    disk.mkdir()
    with blobstore.create(image, {}, encrypted=False, free=64 << 20):
        pass
    mounted = MountProcess(image, tmp_path / "mnt")
    both = Both(mounted.directory, disk, seed)
    for _ in range(cases(800, 4000)):
        both.step()
    both.close()
    assert {errno.ENOENT, errno.EEXIST, errno.EBADF, errno.ENOTDIR} <= both.errors
    lasting = {path.name: path.read_bytes() for path in disk.iterdir()}
    assert mounted.end()[0] == 0
    with blobstore.open(image, direct=True) as store:
        assert store.verify().ok
        found = {name: store.get(name) for name in store}
    assert found == {name: data for name, data in lasting.items() if not name.endswith(".tmp")}
