"""C66: who reads without the lock sees an old or a new state, or that the image is busy.

A real process writes all the time, in every way there is; readers look at it from
here. What is damaged is still called damaged.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

import blobstore
import luks
from formats.errors import DeviceError, FormatError
from formats.file import FileDevice
from formats.steady import steadily
from tests.support.cli import blobstore as command

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

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
DURATION = 2.0

WRITER = """
import itertools, sys
import blobstore
from tests.store.test_unlocked import SECRET, SIZES, blob
path, what = sys.argv[1:]
secret = None if "clear" in path else SECRET
store = blobstore.open(path, secret)
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
        store = blobstore.open(path, secret)
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
        for number in (0, 1):
            for name in SIZES:
                store.put(name, blob(name, number))
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
    return blobstore.open(path, secret_of(path), read_only=True, lock=False)


def read_all(path: Path, store: blobstore.Store) -> None:
    """Do everything that reads."""
    for name in SIZES:
        require_blob(name, store.get(name))
        section = store.section(name)
        assert section.name == name
        assert section.damage is None
        assert name in store
    assert {*SIZES} <= {*store} <= {*SIZES, "extra", "renamed"}
    assert all(section.damage is None for section in store.sections())
    assert store.digest().root
    assert store.info().generation
    assert store.regions()
    assert "nonsense" not in store
    with pytest.raises((blobstore.BlobNotFoundError, blobstore.StoreBusyError)):
        store.get("nonsense")


def read_previous(path: Path, store: blobstore.Store) -> None:
    require_blob("one", store.get("one", previous=True))


def read_verify(path: Path, store: blobstore.Store) -> None:
    report = store.verify()
    assert report.ok, report.problems


def read_backup(path: Path, store: blobstore.Store) -> None:
    copy = path.with_name("copy")
    blobstore.backup(path, copy, secret_of(path), overwrite=True)
    with blobstore.open(copy, secret_of(path)) as copied:
        for name in SIZES:
            require_blob(name, copied.get(name))
        assert copied.verify().ok


def read_compare(path: Path, store: blobstore.Store) -> None:
    with unlocked(path) as other:
        for difference in blobstore.compare(store, other):
            assert difference.change != "unreadable", difference


def read_clone(path: Path, store: blobstore.Store) -> None:
    blobstore.clone(store, path.with_name("clone"), overwrite=True).close()
    with blobstore.open(path.with_name("clone")) as cloned:
        for name in SIZES:
            require_blob(name, cloned.get(name))


def read_looks(path: Path, store: blobstore.Store) -> None:
    assert blobstore.is_encrypted(path) is (secret_of(path) is not None)


def together(path: Path, store: blobstore.Store) -> None:
    numbers = store.at_one_moment(lambda: {require_blob(name, store.get(name)) for name in SIZES})
    assert len(numbers) == 1


READERS = {
    "all": read_all,
    "verify": read_verify,
    "backup": read_backup,
    "compare": read_compare,
    "clone": read_clone,
    "looks": read_looks,
}
CASES = [
    *(("luks2", what, reader) for what in ("puts", "structure", "close") for reader in READERS),
    *((kind, what, "all") for kind in KINDS for what in ("puts", "structure", "close", "scrub")),
    *((kind, "structure", "backup") for kind in ("qcow2", "luks2 in qcow2")),
    ("qcow2", "structure", "looks"),
    ("luks2 in qcow2", "structure", "looks"),
]


def read_for_a_while(
    path: Path, read: Callable[[Path, blobstore.Store], None], *, reopen: bool
) -> tuple[int, int]:
    """Read again and again; return how often it was read, and how often it was busy."""
    done = busy = 0
    end = time.monotonic() + DURATION
    store = None
    while time.monotonic() < end:
        try:
            if store is None or reopen:
                store = unlocked(path)
            read(path, store)
            done += 1
        except blobstore.StoreBusyError:
            busy += 1
    return done, busy


@pytest.mark.parametrize(("kind", "what", "reader"), sorted(set(CASES)))
def test_c66_who_reads_beside_a_writer_sees_no_corruption(
    tmp_path: Path, kind: str, what: str, reader: str
) -> None:
    path = make(tmp_path, kind)
    with writer(path, what):
        for reopen in (False, True):
            done, busy = read_for_a_while(path, READERS[reader], reopen=reopen)
            assert done + busy
            print(kind, what, reader, reopen, done, busy)
    with blobstore.open(path, secret_of(path)) as store:
        assert store.verify().ok
