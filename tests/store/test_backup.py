"""Copies of stores in use hold one state; clones are other stores; diffs say what differs."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

import pytest

import blobstore
import luks
from blobstore.container.scan import scan
from formats.state.swtpm import Slot, decode_state
from formats.state.swtpm_linear import encode_linear
from tests.support.stores import UNWRITTEN, contents

if TYPE_CHECKING:
    from blobstore.container.scan import Scan
    from formats.devices.device import BlockDevice

SECRET = b"backup test"
QUICK = luks.Pbkdf2("sha256", 1000)
SECTIONS = {"one": 40_000, "two": 300_000}

WRITER = """
import sys
import blobstore
from tests.store.test_backup import SECRET, blob
store = blobstore.open(sys.argv[1], SECRET, direct=True)
number = 0
while True:
    number += 1
    with store.transaction() as changes:
        changes.put("one", blob("one", number))
        changes.put("two", blob("two", number))
    if number % 50 == 0:
        store.register("grown", number)
    if number == 1:
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
    seen: set[int] = set()
    tries = itertools.count()
    give_up = time.monotonic() + 120  # the writer never rests, and any number may be busy
    try:
        assert writer.stdout.readline() == "1\n"
        while len(seen) < 3 and time.monotonic() < give_up:
            copy = tmp_path / f"copy {next(tries)}"
            try:
                blobstore.backup(image, copy, SECRET)
            except blobstore.StoreBusyError:
                assert not copy.exists()
                continue
            with blobstore.open(copy, SECRET, direct=True) as store:
                assert store.verify().ok
                state = int.from_bytes(store.get("one")[:4], "big")
                assert store.get("one") == blob("one", state)
                assert store.get("two") == blob("two", state)
                seen.add(state)
    finally:
        writer.kill()
        writer.communicate()
    assert len(seen) == 3, f"after {next(tries)} tries"


def test_a_backup_of_a_store_that_never_rests_is_refused(tmp_path: Path) -> None:
    image, copy = tmp_path / "image", tmp_path / "copy"
    make(image)
    with blobstore.open(image, SECRET, direct=True) as store:

        def restless(device: BlockDevice) -> Scan:
            store.put("one", b"again")
            return scan(device)

        with (
            mock.patch("blobstore.copies.copier.scan", restless),
            pytest.raises(blobstore.StoreBusyError, match="10 passes"),
        ):
            blobstore.backup(image, copy, SECRET)
    assert [path.name for path in tmp_path.iterdir()] == ["image"]


def test_a_put_during_the_copy_is_copied_again(tmp_path: Path) -> None:
    image, copy = tmp_path / "image", tmp_path / "copy"
    make(image)
    with blobstore.open(image, SECRET, direct=True) as store:

        def meanwhile(done: int, total: int) -> None:
            if done == total:
                store.put("two", b"late")
                store.register("new", 100)

        blobstore.backup(image, copy, SECRET, progress=meanwhile)
        with blobstore.open(copy, SECRET, direct=True) as copied:
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
    with blobstore.open(image, SECRET, direct=True) as store:
        late = iter([False])

        def meanwhile(_done: int, _total: int) -> None:
            if not next(late, True):
                store.register("new", 20 << 20)
                store.put("new", b"new" * (5 << 20))

        blobstore.backup(image, copy, SECRET, progress=meanwhile)
        assert image.stat().st_size > size + (15 << 20)
        with blobstore.open(copy, SECRET, direct=True) as copied:
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
        with blobstore.open(copy, direct=True) as copied:
            assert contents(copied) == {"a": b"a"}


def test_a_clone_is_another_store(tmp_path: Path) -> None:
    image, other = tmp_path / "image", tmp_path / "clone"
    make(image)
    with blobstore.open(image, SECRET, read_only=True, direct=True) as store:
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
    with blobstore.open(other, b"another", direct=True) as clone:
        assert clone.get("two") == blob("two", 0)
        assert clone.verify().ok


def test_what_cannot_be_read_is_not_cloned(tmp_path: Path) -> None:
    image, other = tmp_path / "image", tmp_path / "clone"
    with blobstore.create(image, {"a": 100}, encrypted=False) as store:
        store.put("a", b"to be damaged")
    image.write_bytes(image.read_bytes().replace(b"to be damaged", b"to be_damaged"))
    with (
        blobstore.open(image, read_only=True, direct=True) as store,
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
    with blobstore.open(copy, direct=True) as after:
        after.put("changed", b"new")
        after.delete("removed")
        after.resize("resized", 20)
        after.register("added", 10)
        with blobstore.open(image, read_only=True, direct=True) as before:
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


TPM = (Path(__file__).parents[2] / "examples" / "machine" / "tpm2-permall.bin").read_bytes()


def machine(path: Path, permanent: str = "tpm-permanent-state", type_: str = "") -> blobstore.Store:
    """Make a store with a TPM whose permanent state has this name and type, and open it."""
    specs = [
        blobstore.SectionSpec(permanent, 256 << 10, type=type_),
        blobstore.SectionSpec("tpm-save-state", 1000),
        blobstore.SectionSpec("vpd", 100),
    ]
    store = blobstore.create(path, specs, encrypted=False)
    store.put(permanent, TPM)
    store.put("tpm-save-state", b"saved")
    store.put("vpd", b"V")
    return store


def test_c83_a_clone_of_a_tpm_is_made_only_if_it_is_said_what_becomes_of_it(tmp_path: Path) -> None:
    with machine(tmp_path / "image") as store:
        with pytest.raises(luks.PolicyError, match=r"C83") as caught:
            blobstore.clone(store, tmp_path / "clone")
        assert "--tpm keep, fresh or drop" in (caught.value.hint or "")
        with pytest.raises(ValueError, match="keep, fresh, drop"):
            blobstore.clone(store, tmp_path / "clone", tpm="new")  # type: ignore[arg-type]
        assert [path.name for path in tmp_path.iterdir()] == ["image"]
        with blobstore.clone(store, tmp_path / "kept", tpm="keep") as clone:
            assert contents(clone) == contents(store)
        with blobstore.clone(store, tmp_path / "fresh", tpm="fresh") as clone:
            assert contents(clone) == {
                "tpm-permanent-state": UNWRITTEN,
                "tpm-save-state": UNWRITTEN,
                "vpd": b"V",
            }
            assert [one.max_size for one in clone.sections()] == [256 << 10, 1000, 100]
        with blobstore.clone(store, tmp_path / "dropped", tpm="drop") as clone:
            assert contents(clone) == {"vpd": b"V"}
    for image in ("fresh", "dropped"):
        assert TPM[100:200] not in (tmp_path / image).read_bytes()


@pytest.mark.parametrize(
    ("name", "type_", "blob"),
    [
        ("tpm-permanent-state", "", b"whatever this is"),
        ("guest7-permanent-state", "", b"whatever this is"),
        ("tpm2-00.permall", "", b"whatever this is"),
        ("nvram", "tpm2-permall", b"whatever this is"),
        ("nvram", "tpm12-savestate", b"whatever this is"),
        ("nvram", "", TPM),
        ("nvram", "", decode_state(TPM).data),  # type: ignore[union-attr]
        ("nvram", "", encode_linear({Slot.PERMANENT: TPM})),
        ("nvram", "raw", TPM),
    ],
)
def test_c83_a_tpm_is_known_by_name_type_or_content(
    tmp_path: Path, name: str, type_: str, blob: bytes
) -> None:
    spec = blobstore.SectionSpec(name, len(blob), type=type_, content=blob)
    with blobstore.create(tmp_path / "image", [spec], encrypted=False) as store:
        with pytest.raises(luks.PolicyError):
            blobstore.clone(store, tmp_path / "clone")
        with blobstore.clone(store, tmp_path / "clone", tpm="fresh") as clone:
            assert contents(clone) == {name: UNWRITTEN}
            assert clone.section(name).type == type_


def test_some_sections_are_cloned(tmp_path: Path) -> None:
    with machine(tmp_path / "image") as store:
        with blobstore.clone(store, tmp_path / "one", only=["vpd"]) as clone:
            assert contents(clone) == {"vpd": b"V"}
        others = {"tpm-permanent-state", "tpm-save-state"}
        with blobstore.clone(store, tmp_path / "two", without=others) as clone:
            assert contents(clone) == {"vpd": b"V"}
        with blobstore.clone(store, tmp_path / "three", tpm="keep", without="vpd") as clone:
            assert set(clone) == others
        for unknown in ({"only": ["vdp"]}, {"without": ["vdp"]}, {"only": ["vpd", "vdp"]}):
            with pytest.raises(blobstore.BlobNotFoundError, match="'vdp'"):
                blobstore.clone(store, tmp_path / "four", **unknown)  # type: ignore[arg-type]
        assert not (tmp_path / "four").exists()
