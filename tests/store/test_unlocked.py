"""C66: who reads without the lock sees an old or a new state, or that the image is busy.

A real process writes all the time, in every way there is; readers look at it from
here. What is damaged is still called damaged.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import blobstore
import luks
from blobstore.image.layers import open_layers
from formats.devices.file import FileDevice
from formats.devices.steady import steadily
from formats.errors import FormatError
from tests.support.cli import blobstore as command

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from formats.devices.device import BlockDevice

SECRET = b"unlocked test"
QUICK = luks.Pbkdf2("sha256", 1000)
SIZES = {"one": 300, "two": 40_000, "three": 9_000}
#: How the image is made.
KINDS: dict[str, dict[str, object]] = {
    "clear": {"encrypted": False},
    "luks2": {},
    "luks1": {"luks_version": 1},
    "luks2 in qcow2": {"image_format": "qcow2"},
    "qcow2": {"image_format": "qcow2", "own_luks": True},
}
#: Seconds for which each reader reads.
DURATION = 0.5

WRITER = """
import itertools, sys
import blobstore
from tests.store.test_unlocked import SECRET, SIZES, blob
path, what = sys.argv[1:]
secret = None if "clear" in path else SECRET
store = blobstore.open(path, secret, direct=True)
print("open", flush=True)
for number in itertools.count(8):
    if what == "puts":
        name = list(SIZES)[number % 3]
        store.put(name, blob(name, number))
    elif what == "transactions":
        with store.transaction() as changes:
            for name in SIZES:
                changes.put(name, blob(name, number))
    elif what == "structure":
        step = number % 8
        if step == 0:
            store.register("extra", 5000 + number % 7 * 4096)
        elif step == 1:
            store.put("extra", bytes(100))
        elif step == 2:
            store.resize("one", 300 + number % 5 * 8192)
        elif step == 3:
            store.rename("extra", "renamed")
        elif step == 4:
            store.delete("renamed")
        elif step == 5:
            store.put("one", blob("one", number))
        elif step == 6 and number < 400:
            store.grow(store.info().size + 4096)
        else:
            store.compact()
    elif what == "close":
        store.put("one", blob("one", number))
        store.close()
        store = blobstore.open(path, secret, direct=True)
    elif what == "window":
        with store.window("window") as window:
            for _ in range(20):
                number += 1
                window.write(0, bytes([number % 256]) * window.size, fua=True)
    elif what == "one":
        store.put("one", blob("one", number))
    elif what == "scrub":
        store.scrub()
"""


def blob(name: str, number: int) -> bytes:
    """Return a blob in which every byte tells which one it is."""
    return number.to_bytes(4, "big") * (SIZES[name] // 4 - number % 50)


def require_blob(name: str, found: bytes) -> int:
    number = int.from_bytes(found[:4], "big")
    assert found == blob(name, number)
    return number


def secret_of(path: Path) -> bytes | None:
    return None if "clear" in path.name else SECRET


def make(tmp_path: Path, kind: str) -> Path:
    path = tmp_path / f"{kind.replace(' ', '-')}.img"
    options = KINDS[kind] if kind == "clear" else {"kdf": QUICK} | KINDS[kind]
    with blobstore.create(path, SIZES, secret_of(path), **options) as store:  # type: ignore[arg-type]
        store.register("window", 20_000, "window")
        for number in (0, 1):
            for name in SIZES:
                store.put(name, blob(name, number))
        with store.window("window") as window:
            window.write(0, bytes(window.size))
    return path


@contextmanager
def writer(path: Path, what: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), what],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout
        assert process.stdout.readline() == "open\n"
        yield process
        assert process.poll() is None, "the writer failed"
    finally:
        process.kill()
        _, errors = process.communicate()
        assert not errors, errors


def unlocked(path: Path) -> blobstore.Store:
    return blobstore.open(path, secret_of(path), read_only=True, lock=False, direct=True)


def read_all(store: blobstore.Store) -> None:
    """Do everything that reads."""
    for name in SIZES:
        require_blob(name, store.get(name))
        section = store.section(name)
        assert section.name == name
        assert section.damage is None
        assert name in store
    assert {*SIZES} <= {*store} <= {*SIZES, "window", "extra", "renamed"}
    assert all(section.damage is None for section in store.sections())
    assert store.digest().root
    assert store.info().generation
    assert store.regions()
    assert "nonsense" not in store
    with pytest.raises((blobstore.BlobNotFoundError, blobstore.StoreBusyError)):
        store.get("nonsense")


def read_previous(store: blobstore.Store) -> None:
    require_blob("two", store.get("two", previous=True))


def read_verify(store: blobstore.Store) -> None:
    report = store.verify()
    assert report.ok, report.problems


def read_together(store: blobstore.Store) -> None:
    found = store.at_one_moment(lambda: [require_blob(name, store.get(name)) for name in SIZES])
    if min(found) > 1:  # the writer has written each of them
        assert max(found) - min(found) < len(SIZES)


def read_windows(store: blobstore.Store) -> None:
    with store.window("window") as window:
        assert len({*window.read(0, window.size)}) == 1


def path_of(store: blobstore.Store) -> Path:
    assert store.image
    return Path(store.image.path)


def read_backup(store: blobstore.Store) -> None:
    path = path_of(store)
    copy = path.with_name("copy")
    blobstore.backup(path, copy, secret_of(path), overwrite=True)
    with blobstore.open(copy, secret_of(path), direct=True) as copied:
        for name in SIZES:
            require_blob(name, copied.get(name))
        assert copied.verify().ok


def read_compare(store: blobstore.Store) -> None:
    with unlocked(path_of(store)) as other:
        for difference in blobstore.compare(store, other):
            assert difference.change != "unreadable", difference


def read_clone(store: blobstore.Store) -> None:
    clone = path_of(store).with_name("clone")
    blobstore.clone(store, clone, overwrite=True).close()
    with blobstore.open(clone, direct=True) as cloned:
        for name in SIZES:
            require_blob(name, cloned.get(name))


def read_unpack(store: blobstore.Store) -> None:
    target = path_of(store).with_name("unpacked")
    unpacked = blobstore.unpack(store, target, overwrite=True)
    assert not unpacked.failed
    for name in SIZES:
        require_blob(name, unpacked.files[name].read_bytes())


def read_convert(store: blobstore.Store) -> None:
    path = path_of(store)
    target = path.with_name("converted")
    blobstore.convert(
        path, target, secret_of(path), to="raw", lock=False, overwrite=True, allow_unprotected=True
    )
    with blobstore.open(target, direct=True) as converted:
        for name in SIZES:
            require_blob(name, converted.get(name))
        assert converted.verify().ok


def read_looks(store: blobstore.Store) -> None:
    path = path_of(store)
    assert blobstore.is_encrypted(path) is (secret_of(path) is not None)


READERS = {
    "all": read_all,
    "previous": read_previous,
    "verify": read_verify,
    "together": read_together,
    "backup": read_backup,
    "compare": read_compare,
    "clone": read_clone,
    "unpack": read_unpack,
    "convert": read_convert,
    "looks": read_looks,
    "windows": read_windows,
}
CASES = {
    # (Whoever is moved has no previous blob.)
    *(("luks2", "structure", reader) for reader in READERS if reader != "previous"),
    *(("luks2", "puts", reader) for reader in ("previous", "backup", "clone", "convert")),
    *((kind, what, "all") for kind in KINDS for what in ("puts", "structure")),
    *(("qcow2", what, "all") for what in ("close", "scrub")),
    *((kind, "structure", "backup") for kind in ("qcow2", "luks2 in qcow2")),
    ("luks2", "window", "windows"),
    ("luks2", "transactions", "together"),
    ("qcow2", "structure", "looks"),
}


def read_for_a_while(
    path: Path, read: Callable[[blobstore.Store], None], *, reopen: bool
) -> tuple[int, int]:
    """Read again and again; return how often it was read, and how often it was busy."""
    done = busy = 0
    end = time.monotonic() + DURATION
    store = None
    while time.monotonic() < end:
        try:
            if store is None or reopen:
                store = unlocked(path)
            read(store)
            done += 1
        except blobstore.StoreBusyError:
            busy += 1
    return done, busy


@pytest.mark.parametrize(("kind", "what", "reader"), sorted(CASES))
def test_c66_who_reads_beside_a_writer_sees_no_corruption(
    tmp_path: Path, kind: str, what: str, reader: str
) -> None:
    path = make(tmp_path, kind)
    with writer(path, what):
        for reopen in (False, True):
            done, busy = read_for_a_while(path, READERS[reader], reopen=reopen)
            assert done + busy
    with blobstore.open(path, secret_of(path), direct=True) as store:
        assert store.verify().ok


# ------------------------------------------------------------------ one reader that waits


def put(path: Path, *numbers: int) -> None:
    with blobstore.open(path, secret_of(path), direct=True) as store:
        for number in numbers:
            for name in SIZES:
                store.put(name, blob(name, number))


@pytest.mark.parametrize("kind", KINDS)
def test_c66_a_reader_that_is_many_puts_old_reads_on(tmp_path: Path, kind: str) -> None:
    path = make(tmp_path, kind)
    with unlocked(path) as store:
        put(path, *range(2, 9))
        assert require_blob("two", store.get("two")) == 8
        assert require_blob("two", store.get("two", previous=True)) == 7
        with blobstore.open(path, secret_of(path), direct=True) as other:
            other.register("new", 30 << 20)
            other.put("new", b"new" * (10 << 20))
            other.rename("one", "other")
            other.delete("three")
            assert store.get("new") == other.get("new")
        assert {*store} == {"two", "other", "new", "window"}
        with pytest.raises(blobstore.BlobNotFoundError):
            store.get("one")
        assert "three" not in store
        assert store.verify().ok


def test_c66_what_is_not_there_is_looked_for_once_more(tmp_path: Path) -> None:
    """An absent or unwritten section makes emulators manufacture new state."""
    path = make(tmp_path, "luks2")
    with blobstore.open(path, SECRET, direct=True) as store:
        store.register("late", 100)
    with unlocked(path) as reader:
        with pytest.raises(blobstore.UnwrittenBlobError):
            reader.get("late")
        with blobstore.open(path, SECRET, direct=True) as store:
            store.put("late", b"written")
            store.register("later", 10)
        assert "later" in reader
        assert reader.get("late") == b"written"


def test_c66_a_released_store_reads_what_the_other_process_wrote(tmp_path: Path) -> None:
    path = make(tmp_path, "luks2")
    with blobstore.open(path, SECRET, direct=True) as store:
        store.release()
        put(path, *range(2, 9))
        assert require_blob("two", store.get("two")) == 8
        store.take_over()
        assert require_blob("two", store.get("two")) == 8


@pytest.mark.parametrize("kind", ["clear", "luks2", "qcow2"])
def test_c66_damage_is_still_damage(tmp_path: Path, kind: str) -> None:
    path = make(tmp_path, kind)
    with blobstore.open(path, secret_of(path), read_only=True, direct=True) as store:
        place = store._session.container.directory.sections["two"].newest.offset
        device = store._session.container.device
        known = bytearray(512)
        device.read_into(place + 4096, known)
    with open_layers_for_damage(path) as payload:
        payload.write(place + 4096, bytes(byte ^ 1 for byte in known))
        payload.flush()
    began = time.monotonic()
    with unlocked(path) as store:
        with pytest.raises(blobstore.CorruptBlobError, match="C23"):
            store.get("two")
        assert not store.verify().ok
        require_blob("one", store.get("one"))
        unpacked = blobstore.unpack(store, tmp_path / "unpacked")
        assert set(unpacked.failed) == {"two"}
        (found,) = [d for d in blobstore.compare(store, store) if d.name == "two"]
        assert found.change == "unreadable"
    assert time.monotonic() - began < 5, "it is not waited for what does not change"
    # Beside a writer, too, which does not touch that section.
    with writer(path, "one"), unlocked(path) as store:
        for _ in range(20):
            with pytest.raises(blobstore.CorruptBlobError, match="C23"):
                store.get("two")


@contextmanager
def open_layers_for_damage(path: Path) -> Iterator[BlockDevice]:
    with ExitStack() as stack:
        yield open_layers(stack, path, secret_of(path), read_only=False).payload


def test_c66_a_damaged_head_is_still_damaged(tmp_path: Path) -> None:
    path = make(tmp_path, "clear")
    with blobstore.open(path, direct=True) as store:
        place = store._session.container.directory.sections["two"].newest.offset
    with FileDevice(path, read_only=False) as file:
        file.write(place, os.urandom(512))  # less may be mended (C67)
    with unlocked(path) as store:
        with pytest.raises(blobstore.DamagedHeadError):
            store.digest()
        assert store.info().damaged_heads
        assert not store.verify().ok


def test_c66_what_is_no_store_is_called_so_at_once(tmp_path: Path) -> None:
    path = tmp_path / "foreign"
    path.write_bytes(os.urandom(1 << 20))
    began = time.monotonic()
    with pytest.raises(blobstore.StorageError) as caught:
        blobstore.open(path, read_only=True, lock=False, direct=True)
    assert caught.value.exit_code == 32
    image = make(tmp_path, "luks2")
    with pytest.raises(luks.NoKeyslotMatchError):
        blobstore.open(image, b"wrong", read_only=True, lock=False, direct=True)
    with pytest.raises(blobstore.PinMismatchError):
        blobstore.open(
            image, SECRET, read_only=True, lock=False, at_least_generation=1 << 40, direct=True
        )
    assert time.monotonic() - began < 5


# ------------------------------------------------------------------ the means itself


def test_c66_an_image_that_never_holds_still_is_busy(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(4096))
    tries = 0

    def attempt() -> None:
        nonlocal tries
        tries += 1
        file.read(0, 512)
        path.write_bytes(os.urandom(4096))
        raise FormatError("a passing error")

    with FileDevice(path, lock=False) as file:
        began = time.monotonic()
        with pytest.raises(blobstore.StoreBusyError, match="C66") as caught:
            steadily(file, attempt, busy=blobstore.StoreBusyError)
        assert isinstance(caught.value.__cause__, FormatError)
        assert caught.value.hint
        assert time.monotonic() - began < 10
        assert tries >= 4


def test_c66_what_led_to_an_error_is_what_counts(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(4096))
    tries = 0

    def attempt() -> bytes:
        nonlocal tries
        tries += 1
        found = file.read(0, 512)
        if tries == 1:
            with path.open("r+b") as other:  # what was not read does not matter
                other.seek(1000)
                other.write(b"x")
        if tries == 2:
            path.write_bytes(b"1" * 4096)
        if found == bytes(512):
            raise FormatError("zeros")
        return found

    with FileDevice(path, lock=False) as file:
        with pytest.raises(FormatError, match="zeros"):
            steadily(file, attempt)
        assert tries == 1
        assert steadily(file, attempt) == b"1" * 512
        assert tries == 3
        assert file.observer is None


def test_c66_a_result_may_have_to_hold_still(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"a" * 512)
    changes = iter(b"bcd")

    def attempt() -> bytes:
        found = file.read(0, 512)
        if change := next(changes, 0):
            path.write_bytes(bytes([change]) * 512)
        return found[:1]

    with FileDevice(path, lock=False) as file:
        assert steadily(file, attempt, settled=lambda _: False) == b"d"


# ------------------------------------------------------------------ looks before the lock

SNAPSHOTS = """
import sys
from formats.devices.file import FileDevice
from formats.qcow2 import snapshots
from formats.qcow2.opening import open_image
print("open", flush=True)
while True:
    with FileDevice(sys.argv[1], read_only=False) as file:
        for _ in range(20):
            snapshots.create_snapshot(file, "one")
            snapshots.delete_snapshot(file, "one")
"""


@pytest.mark.parametrize("kind", ["qcow2", "luks2 in qcow2"])
def test_c66_looks_beside_the_making_of_snapshots(tmp_path: Path, kind: str) -> None:
    """They ended with "damaged", before they came to ask for the lock."""
    path = make(tmp_path, kind)
    key = tmp_path / "key"
    key.write_bytes(SECRET)
    process = subprocess.Popen(
        [sys.executable, "-c", SNAPSHOTS, str(path)], stdout=subprocess.PIPE, text=True
    )
    codes = set()
    try:
        assert process.stdout
        assert process.stdout.readline() == "open\n"
        for _ in range(300):
            assert blobstore.is_encrypted(path)
        for _ in range(6):
            for arguments in (
                ("info", path),
                ("ls", path, "--no-lock"),
                ("header", "dump", path),
                ("key", "list", path),
            ):
                takes_key = arguments[0] in ("info", "ls")
                options = ("--key-file", key) if takes_key else ()
                done = command(*arguments, *options)
                codes.add(done.returncode)
                assert done.returncode in (0, 23, 77), done
        assert process.poll() is None
    finally:
        process.kill()
        process.communicate()
    assert 0 in codes


KEYS = """
import sys
import luks
from tests.store.test_unlocked import SECRET, QUICK
print("open", flush=True)
while True:
    slot = luks.add_keyslot(sys.argv[1], SECRET, b"another", kdf=QUICK)
    luks.remove_keyslot(sys.argv[1], slot)
"""


@pytest.mark.parametrize("kind", ["luks1", "luks2"])
def test_c66_headers_are_read_while_keys_change(tmp_path: Path, kind: str) -> None:
    path = make(tmp_path, kind)
    process = subprocess.Popen(
        [sys.executable, "-c", KEYS, str(path)], stdout=subprocess.PIPE, text=True
    )
    opened = 0
    try:
        assert process.stdout
        assert process.stdout.readline() == "open\n"
        end = time.monotonic() + DURATION
        while time.monotonic() < end:
            luks.load_header(path)
            assert luks.is_luks(path)
            with unlocked(path) as store:
                read_all(store)
            opened += 1
        assert process.poll() is None
    finally:
        process.kill()
        process.communicate()
    assert opened
