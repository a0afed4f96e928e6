"""Who uses an image: one writer or many readers, across processes, and how it changes hands."""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

import blobstore
import luks
from formats.errors import DeviceBusyError, ReadOnlyError
from tests.support.cli import blobstore as command
from tests.support.stores import contents, image, open_store, spec

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SECRET = b"handover"
KDF = luks.Pbkdf2("sha256", 1000)

#: Opens the store as it is told, and does what it reads from stdin, line by line.
PROCESS = """
import sys
import blobstore
store = blobstore.open(sys.argv[1], b"handover", read_only=sys.argv[2] == "read")
print("open", flush=True)
for line in sys.stdin:
    exec(line)
    print("done", flush=True)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    with blobstore.create(path, {"a": 100}, SECRET, kdf=KDF) as store:
        store.put("a", b"first")
    return path


class Other:
    """Another process with the image open."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self._answers("open")

    def does(self, code: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(code + "\n")
        self.process.stdin.flush()
        self._answers("done")

    def _answers(self, expected: str) -> None:
        assert self.process.stdout
        assert self.process.stdout.readline() == expected + "\n"


@contextmanager
def other(path: Path, mode: str) -> Iterator[Other]:
    process = subprocess.Popen(
        [sys.executable, "-c", PROCESS, str(path), mode],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Other(process)
    finally:
        process.kill()
        process.communicate()


def test_one_writer_keeps_everybody_out_and_is_named(path: Path) -> None:
    with other(path, "write") as writer:
        for read_only in (True, False):
            with pytest.raises(DeviceBusyError, match=f"process {writer.process.pid}"):
                blobstore.open(path, SECRET, read_only=read_only)
    blobstore.open(path, SECRET).close()


def test_readers_share_and_keep_writers_out(path: Path) -> None:
    with other(path, "read") as reader, blobstore.open(path, SECRET, read_only=True) as store:
        assert store.get("a") == b"first"
        with pytest.raises(DeviceBusyError, match=f"process {reader.process.pid}"):
            blobstore.open(path, SECRET)


def test_a_reader_without_lock_sees_what_was_there_when_it_opened(path: Path) -> None:
    with other(path, "write") as writer:
        writer.does('store.put("a", b"second")')
        with blobstore.open(path, SECRET, read_only=True, lock=False) as store:
            assert store.get("a") == b"second"
        with pytest.raises(ValueError, match="only be read"):
            blobstore.open(path, SECRET, lock=False)
        key = path.parent / "key"
        key.write_bytes(SECRET)
        assert command("get", path, "a", "--key-file", key).returncode == 23
        read = command("get", path, "a", "--key-file", key, "--no-lock")
        assert read.stdout == b"second"
        assert command("rm", path, "a", "--key-file", key, "--no-lock").returncode == 2


def test_an_image_changes_hands_and_back(path: Path) -> None:
    """As in a live migration: the volume is unlocked before the lock is there to be had."""
    with other(path, "write") as source:
        source.does('store.put("a", b"second")')
        with blobstore.open(path, SECRET, released=True) as target:
            assert target.get("a") == b"second"
            with pytest.raises(DeviceBusyError):
                target.take_over()
            with pytest.raises(ReadOnlyError):
                target.put("a", b"too early")
            source.does('store.put("a", b"third"); store.register("grown", 20 << 20)')
            source.does("store.release()")
            target.take_over()
            target.take_over()
            assert target.get("a") == b"third"
            assert target.section("grown").max_size == 20 << 20
            target.put("a", b"fourth")
            target.put("grown", b"g" * (20 << 20))
            target.release()
            with pytest.raises(ReadOnlyError):
                target.put("a", b"too late")
            source.does('store.take_over(); assert store.get("a") == b"fourth"')
            source.does('store.put("a", b"fifth"); store.close()')
    with blobstore.open(path, SECRET) as store:
        assert store.get("a") == b"fifth"
        assert not store.verify().problems


def test_a_released_store_that_is_closed_writes_nothing(path: Path) -> None:
    store = blobstore.open(path, SECRET)
    store.put("a", b"second")
    store.release()
    before = path.read_bytes()
    with blobstore.open(path, SECRET) as another:
        another.put("a", b"third")
        after = path.read_bytes()
        store.close()
        assert path.read_bytes() == after != before


def test_only_a_store_opened_by_path_for_writing_changes_hands(path: Path) -> None:
    with pytest.raises(ValueError, match="opened for writing"):
        blobstore.open(path, SECRET, read_only=True, released=True)
    with (
        blobstore.open(path, SECRET, read_only=True) as store,
        pytest.raises(ValueError, match="hands"),
    ):
        store.take_over()
    in_memory = open_store(image([spec("a", 10)]))
    with pytest.raises(ValueError, match="hands"):
        in_memory.release()
    assert contents(in_memory) == {"a": "unwritten"}
