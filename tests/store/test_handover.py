"""Who uses an image: one writer or many readers, across processes, and how it changes hands."""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

import blobstore
import luks
from blobstore.store import reliance
from formats.devices.file import FileDevice
from formats.errors import DeviceBusyError, ReadOnlyError
from luks.header import lock as header_lock
from tests.support.cli import blobstore as command
from tests.support.stores import contents, image, open_store, spec

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from blobstore.container.open_container import OpenContainer

SECRET = b"handover"
KDF = luks.Pbkdf2("sha256", 1000)

#: Opens the store as it is told, and does what it reads from stdin, line by line.
PROCESS = """
import sys
import blobstore
store = blobstore.open(sys.argv[1], b"handover", read_only=sys.argv[2] == "read", direct=True)
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
                blobstore.open(path, SECRET, read_only=read_only, direct=True)
    blobstore.open(path, SECRET, direct=True).close()


def test_readers_share_and_keep_writers_out(path: Path) -> None:
    with (
        other(path, "read") as reader,
        blobstore.open(path, SECRET, read_only=True, direct=True) as store,
    ):
        assert store.get("a") == b"first"
        with pytest.raises(DeviceBusyError, match=f"process {reader.process.pid}"):
            blobstore.open(path, SECRET, direct=True)


def test_a_reader_without_lock_sees_what_was_there_when_it_opened(path: Path) -> None:
    with other(path, "write") as writer:
        writer.does('store.put("a", b"second")')
        with blobstore.open(path, SECRET, read_only=True, lock=False, direct=True) as store:
            assert store.get("a") == b"second"
        with pytest.raises(ValueError, match="only be read"):
            blobstore.open(path, SECRET, lock=False, direct=True)
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
        with blobstore.open(path, SECRET, released=True, direct=True) as target:
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
    with blobstore.open(path, SECRET, direct=True) as store:
        assert store.get("a") == b"fifth"
        assert not store.verify().problems


def test_a_released_store_that_is_closed_writes_nothing(path: Path) -> None:
    store = blobstore.open(path, SECRET, direct=True)
    store.put("a", b"second")
    store.release()
    before = path.read_bytes()
    with blobstore.open(path, SECRET, direct=True) as another:
        another.put("a", b"third")
        after = path.read_bytes()
        store.close()
        assert path.read_bytes() == after != before


def test_only_a_store_opened_by_path_for_writing_changes_hands(path: Path) -> None:
    with pytest.raises(ValueError, match="opened for writing"):
        blobstore.open(path, SECRET, read_only=True, released=True, direct=True)
    with (
        blobstore.open(path, SECRET, read_only=True, direct=True) as store,
        pytest.raises(ValueError, match="hands"),
    ):
        store.take_over()
    in_memory = open_store(image([spec("a", 10)]))
    with pytest.raises(ValueError, match="hands"):
        in_memory.release()
    assert contents(in_memory) == {"a": "unwritten"}


# ------------------------------------------------- what is asked when it is taken over


def released(path: Path, **options: Any) -> blobstore.Store:
    """Return a store that knew a put, and gave the image up."""
    store: blobstore.Store = blobstore.open(path, SECRET, direct=True, **options)
    store.put("a", b"second")
    store.release()
    return store


def change(path: Path, content: bytes, **options: Any) -> blobstore.StateDigest:
    store: blobstore.Store = blobstore.open(path, SECRET, direct=True, **options)
    with store:
        store.put("a", content)
        return store.digest()


@pytest.mark.parametrize("how", ["restored", "removed"])
def test_c65_an_image_that_was_replaced_is_not_taken_over(path: Path, how: str) -> None:
    """Its put would be acknowledged, and lost with a file that has no name."""
    copy = path.with_name("copy")
    copy.write_bytes(path.read_bytes())
    store = released(path)
    if how == "removed":
        path.unlink()
    else:
        copy.replace(path)
    with pytest.raises(blobstore.ImageReplacedError, match="C65") as caught:
        store.take_over()
    assert caught.value.hint
    with pytest.raises(ReadOnlyError):
        store.put("a", b"lost")
    if how == "restored":
        change(path, b"third")  # nobody holds it
    store.close()


def test_c65_a_store_that_was_replaced_by_a_new_one_is_not_taken_over(path: Path) -> None:
    store = released(path)
    blobstore.create(path, {"a": 100}, SECRET, kdf=KDF, overwrite=True).close()
    with pytest.raises(blobstore.ImageReplacedError):
        store.take_over()
    store.close()


def test_c65_an_older_state_is_not_taken_over(path: Path) -> None:
    older = path.read_bytes()
    store = released(path)
    path.write_bytes(older)  # in the same file
    with pytest.raises(blobstore.PinMismatchError, match="C65") as caught:
        store.take_over()
    assert caught.value.hint
    # As many commits, and not the same ones.
    with blobstore.open(path, SECRET, direct=True) as other:
        while other.digest().generation < store.digest().generation:
            other.put("a", b"another history")
    with pytest.raises(blobstore.PinMismatchError, match="C65"):
        store.take_over()
    assert path.read_bytes() != older
    with blobstore.open(path, SECRET, direct=True) as other:  # not locked, and nothing was written
        other.put("a", b"newer")
        assert other.get("a") == b"newer"
    store.close()


def test_c65_another_store_is_not_taken_over(tmp_path: Path) -> None:
    path, other = tmp_path / "image", tmp_path / "other"
    for each in (path, other):
        blobstore.create(each, {"a": 100}, encrypted=False, size=1 << 20).close()
    for _ in range(3):
        with blobstore.open(other, direct=True) as store:
            store.put("a", b"other")
    store = blobstore.open(path, released=True, direct=True)
    path.write_bytes(other.read_bytes())
    with pytest.raises(blobstore.PinMismatchError, match="another store"):
        store.take_over()
    store.close()


def test_c65_pins_are_asked_when_it_is_taken_over(path: Path) -> None:
    store = released(path)
    digest = change(path, b"third")
    wrong = blobstore.StateDigest(digest.generation, bytes(32))
    for pins in (
        {"expect_digest": wrong},
        {"expect_digest": store.digest()},
        {"at_least_generation": digest.generation + 100},
    ):
        with pytest.raises(blobstore.PinMismatchError):
            store.take_over(**pins)
        assert change(path, b"third") != digest  # it is not locked
        digest = change(path, b"third")
    store.take_over(expect_digest=digest, at_least_generation=digest.generation)
    assert store.get("a") == b"third"
    store.take_over(at_least_generation=digest.generation)
    with pytest.raises(blobstore.PinMismatchError):
        store.take_over(expect_digest=wrong)
    store.put("a", b"fourth")
    store.close()


def test_c65_protection_is_asked_when_it_is_taken_over(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same store, said to be of the clear: only its own key could write that."""
    store = released(path)

    def unprotected(known: OpenContainer) -> OpenContainer:
        container = follow_store(known)
        container.header = replace(container.header, encrypted=False)
        return container

    follow_store = reliance.follow_store
    monkeypatch.setattr("blobstore.store.handover.follow_store", unprotected)
    with pytest.raises(luks.PolicyError, match="C25"):
        store.take_over()
    change(path, b"third")
    store.close()
    permitted = released(path, allow_unprotected=True)
    permitted.take_over()
    permitted.close()


@pytest.mark.parametrize("detached", [False, True])
def test_c65_another_volume_is_not_taken_over(path: Path, tmp_path: Path, detached: bool) -> None:
    header = tmp_path / "header" if detached else None
    options = {"header": header} if header else {}
    if header:
        blobstore.create(path, {"a": 100}, SECRET, kdf=KDF, header=header, overwrite=True).close()
    store = released(path, **options)
    with luks.edit(header or path) as changes:  # keys may change meanwhile
        changes.unlock(SECRET)
        changes.add_keyslot(b"another passphrase", kdf=KDF)
    store.take_over()
    store.release()
    other = tmp_path / "other"
    blobstore.create(
        other,
        {"a": 100},
        SECRET,
        kdf=KDF,
        size=path.stat().st_size,
        header=header and tmp_path / "other header",
    ).close()
    if header:
        (tmp_path / "other header").replace(header)
    else:
        path.write_bytes(other.read_bytes())
    with pytest.raises(luks.PolicyError, match="C65"):
        store.take_over()
    FileDevice(path, read_only=False).close()  # it was unlocked
    if header:
        header.unlink()  # a header on a stick that was pulled out is not another header
        store.take_over()
        assert store.get("a") == b"second"
    store.close()


def test_c65_a_qcow2_image_that_was_not_closed_is_not_taken_over(tmp_path: Path) -> None:
    """As after a crash of QEMU that left its counts for later: they would be wrong."""
    path = tmp_path / "image"
    blobstore.create(path, {"a": 100}, SECRET, kdf=KDF, image_format="qcow2").close()
    store = released(path)
    with path.open("r+b") as file:
        file.seek(79)  # incompatible features, of which the first bit is "dirty"
        file.write(b"\x01")
    with pytest.raises(blobstore.StorageError, match="Q5"):
        store.take_over()
    store.close()
    blobstore.open(path, SECRET, direct=True).close()


def test_windows_of_a_released_store_take_no_writes(path: Path) -> None:
    """What they would write back is older than what the other process left."""
    with blobstore.open(path, SECRET, direct=True) as store:
        store.register("w", 4096, "window")
        store.release()
        for in_place in (False, True):
            with store.window("w", in_place=in_place) as window:
                assert window.read_only
                with pytest.raises(ReadOnlyError):
                    window.write(0, b"x")
                with pytest.raises(ValueError, match="close the windows"):
                    store.take_over()
        store.take_over()
        with store.window("w") as window:
            window.write(0, b"x")


def test_c65_a_backup_does_not_replace_an_image_in_use(path: Path, tmp_path: Path) -> None:
    used = tmp_path / "used"
    with (
        blobstore.create(used, {"a": 100}, SECRET, kdf=KDF) as store,
        pytest.raises(DeviceBusyError),
    ):
        blobstore.backup(path, used, SECRET, overwrite=True)
    assert store.read_only is False
    key = tmp_path / "key"
    key.write_bytes(SECRET)
    with blobstore.open(used, SECRET, direct=True) as store:
        for arguments in (
            ("get", path, "a", "-o", used),
            ("backup", path, used),
            ("create", used),
        ):
            assert command(*arguments, "--force", "--key-file", key).returncode == 23, arguments
        store.put("a", b"not lost")
    with blobstore.open(used, SECRET, direct=True) as store:
        assert store.get("a") == b"not lost"


def test_c65_keys_are_not_changed_in_a_file_that_was_replaced(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = path.with_name("copy")
    copy.write_bytes(path.read_bytes())
    real = header_lock._lock

    def lock(fd: int, name: str, end: float) -> None:
        if copy.exists():
            copy.replace(path)
        real(fd, name, end)

    monkeypatch.setattr(header_lock, "_lock", lock)
    with pytest.raises(blobstore.ImageReplacedError), luks.edit(path) as changes:
        changes.unlock(SECRET)
        changes.add_keyslot(b"another passphrase", kdf=KDF)
    with luks.edit(path) as changes:
        changes.unlock(SECRET)
        changes.add_keyslot(b"another passphrase", kdf=KDF)
    blobstore.open(path, b"another passphrase", direct=True).close()
