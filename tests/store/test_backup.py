"""Copies of stores in use hold one state; clones are other stores; diffs say what differs."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING
from unittest import mock

import pytest

import blobstore
import luks
from blobstore.scan import scan
from tests.support.stores import contents

if TYPE_CHECKING:
    from pathlib import Path

    from blobstore.scan import Scan
    from formats.device import BlockDevice

SECRET = b"backup test"
QUICK = luks.Pbkdf2("sha256", 1000)
SECTIONS = {"one": 40_000, "two": 300_000}

WRITER = """
import sys
import blobstore
from tests.store.test_backup import SECRET, blob
store = blobstore.open(sys.argv[1], SECRET)
number = 0
while True:
    number += 1
    with store.transaction() as changes:
        changes.put("one", blob("one", number))
        changes.put("two", blob("two", number))
    if number % 50 == 0:
        store.register("grown", number)
    print(number, flush=True)
"""


def blob(name: str, number: int) -> bytes:
    """Return a blob in which every byte tells which one it is."""
    return number.to_bytes(4, "big") * (SECTIONS[name] // 4 - number % 100)


def make(path: Path, **options: object) -> None:
    with blobstore.create(path, SECTIONS, SECRET, kdf=QUICK, **options) as store:  # type: ignore[arg-type]
        for name in SECTIONS:
            store.put(name, blob(name, 0))


def test_a_backup_while_another_process_writes_is_one_state(tmp_path: Path) -> None:
    image = tmp_path / "image"
    make(image)
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(image)], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout
    seen = set()
    busy = 0
    try:
        assert writer.stdout.readline() == "1\n"
        for number in range(12):
            copy = tmp_path / f"copy {number}"
            try:
                blobstore.backup(image, copy, SECRET)
            except blobstore.StoreBusyError:
                busy += 1
                assert not copy.exists()
                continue
            with blobstore.open(copy, SECRET) as store:
                assert store.verify().ok
                state = int.from_bytes(store.get("one")[:4], "big")
                assert store.get("one") == blob("one", state)
                assert store.get("two") == blob("two", state)
                seen.add(state)
    finally:
        writer.kill()
        writer.communicate()
    assert len(seen) > 1, f"busy {busy} times"
    assert max(seen) > 1


def test_a_backup_of_a_store_that_never_rests_is_refused(tmp_path: Path) -> None:
    image, copy = tmp_path / "image", tmp_path / "copy"
    make(image)
    with blobstore.open(image, SECRET) as store:

        def restless(device: BlockDevice) -> Scan:
            store.put("one", b"again")
            return scan(device)

        with (
            mock.patch("blobstore.copying.scan", restless),
            pytest.raises(blobstore.StoreBusyError, match="10 passes"),
        ):
            blobstore.backup(image, copy, SECRET)
    assert [path.name for path in tmp_path.iterdir()] == ["image"]


def test_a_put_during_the_copy_is_copied_again(tmp_path: Path) -> None:
    image, copy = tmp_path / "image", tmp_path / "copy"
    make(image)
    with blobstore.open(image, SECRET) as store:

        def meanwhile(done: int, total: int) -> None:
            if done == total:
                store.put("two", b"late")
                store.register("new", 100)

        blobstore.backup(image, copy, SECRET, progress=meanwhile)
        with blobstore.open(copy, SECRET) as copied:
            assert contents(copied) == contents(store)
            assert copied.digest() == store.digest()


@pytest.mark.parametrize(
    "options",
    [
        {"luks_version": 2},
        {"luks_version": 1, "image_format": "qcow2"},
        {"own_luks": True, "image_format": "qcow2"},
    ],
)
def test_an_image_that_grows_during_the_copy_is_copied_whole(
    tmp_path: Path, options: dict[str, object]
) -> None:
    image, copy = tmp_path / "image", tmp_path / "copy"
    make(image, free=0, **options)
    size = image.stat().st_size
    with blobstore.open(image, SECRET) as store:
        late = iter([False])

        def meanwhile(_done: int, _total: int) -> None:
            if not next(late, True):
                store.register("new", 20 << 20)
                store.put("new", b"new" * (5 << 20))

        blobstore.backup(image, copy, SECRET, progress=meanwhile)
        assert image.stat().st_size > size + (15 << 20)
        with blobstore.open(copy, SECRET) as copied:
            assert contents(copied) == contents(store)
            assert copied.verify().ok


@pytest.mark.parametrize("detached", [False, True])
@pytest.mark.parametrize("version", [1, 2])
def test_a_backup_opens_as_the_image_does(tmp_path: Path, version: int, detached: bool) -> None:
    image, copy = tmp_path / "image", tmp_path / "copy"
    header = tmp_path / "header" if detached else None
    make(image, luks_version=version, header=header)
    blobstore.backup(image, copy, SECRET, header=header)
    assert copy.read_bytes() == image.read_bytes()
    with pytest.raises(blobstore.ImageExistsError):
        blobstore.backup(image, copy, SECRET, header=header)
    with pytest.raises(luks.NoKeyslotMatchError):
        blobstore.backup(image, tmp_path / "another", b"wrong", header=header)
    assert not (tmp_path / "another").exists()


def test_a_backup_in_the_clear(tmp_path: Path) -> None:
    image, copy = tmp_path / "image", tmp_path / "copy"
    with blobstore.create(image, {"a": 100}, encrypted=False) as store:
        store.put("a", b"a")
        blobstore.backup(image, copy)
        with blobstore.open(copy) as copied:
            assert contents(copied) == {"a": b"a"}


def test_a_clone_is_another_store(tmp_path: Path) -> None:
    image, other = tmp_path / "image", tmp_path / "clone"
    make(image)
    with blobstore.open(image, SECRET, read_only=True) as store:
        with blobstore.clone(store, other, b"another", kdf=QUICK) as clone:
            assert contents(clone) == contents(store)
            assert clone.info().store_id != store.info().store_id
            assert clone.image
            assert store.image
            assert clone.image.luks
            assert store.image.luks
            assert clone.image.luks.uuid != store.image.luks.uuid
        with pytest.raises(blobstore.ImageExistsError):
            blobstore.clone(store, other, b"another", kdf=QUICK)
        with blobstore.clone(store, tmp_path / "clear") as clear:
            assert contents(clear) == contents(store)
            assert not clear.info().encrypted
    with blobstore.open(other, b"another") as clone:
        assert clone.get("two") == blob("two", 0)
        assert clone.verify().ok


def test_what_cannot_be_read_is_not_cloned(tmp_path: Path) -> None:
    image, other = tmp_path / "image", tmp_path / "clone"
    with blobstore.create(image, {"a": 100}, encrypted=False) as store:
        store.put("a", b"to be damaged")
    image.write_bytes(image.read_bytes().replace(b"to be damaged", b"to be_damaged"))
    with (
        blobstore.open(image, read_only=True) as store,
        pytest.raises(blobstore.CorruptBlobError),
    ):
        blobstore.clone(store, other)
    assert [path.name for path in tmp_path.iterdir()] == ["image"]


def test_compare_says_what_became_of_each_section(tmp_path: Path) -> None:
    image, copy = tmp_path / "image", tmp_path / "copy"
    sections = {"same": 10, "changed": 10, "removed": 10, "resized": 10, "bad": 100}
    with blobstore.create(image, sections, encrypted=False) as store:
        for name in sections:
            store.put(name, b"to be damaged" if name == "bad" else b"old")
    blobstore.backup(image, copy)
    copy.write_bytes(copy.read_bytes().replace(b"to be damaged", b"to be_damaged"))
    with blobstore.open(copy) as after:
        after.put("changed", b"new")
        after.delete("removed")
        after.resize("resized", 20)
        after.register("added", 10)
        with blobstore.open(image, read_only=True) as before:
            differences = {found.name: found for found in blobstore.compare(before, after)}
    assert {name: found.change for name, found in differences.items()} == {
        "same": "same",
        "changed": "changed",
        "removed": "removed",
        "resized": "changed",
        "added": "added",
        "bad": "unreadable",
    }
    assert differences["added"].before is None
    added = differences["added"].after
    assert added
    assert (added.size, added.sha256) == (None, None)
