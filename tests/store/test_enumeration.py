"""Whoever enumerates sections is told where damage hides some; what is left is listed (C82)."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING
from unittest import mock

import pytest

import blobstore
from blobstore.container.directory import Directory
from blobstore.container.open_container import open_container
from blobstore.container.scan import Damaged, scan
from blobstore.container.sections import Section
from blobstore.errors import CorruptStoreError, DamagedHeadError, PoisonedStoreError
from formats.container.model import HEAD_SIZE
from formats.devices.device import MemoryDevice
from formats.errors import DeviceError
from tests.reference.histories import HISTORIES, distinct, history
from tests.support.devices import FaultyDevice, crash_states
from tests.support.stores import image, open_store, spec

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from blobstore.store.store import Store


def without_heads(content: bytes, *offsets: int) -> bytes:
    """Return a container in which nothing is left of these heads."""
    damaged = bytearray(content)
    for offset in offsets:
        damaged[offset : offset + HEAD_SIZE] = bytes(HEAD_SIZE)
    return bytes(damaged)


def records_of(content: bytes, name: str) -> list[int]:
    """Return where the records of a section are."""
    copies = open_container(MemoryDevice(content)).directory.sections[name].copies
    return [copy.offset for copy in copies if copy]


def written() -> bytes:
    """Return a closed store of two sections, both copies of which were written."""
    device = MemoryDevice(image([spec("tpm", 100), spec("vpd", 100)], free=1024))
    with open_store(device) as store:
        for number in range(2):
            store.put("tpm", b"T%d" % number)
            store.put("vpd", b"V%d" % number)
    return bytes(device.content)


def renamed_and_reused() -> tuple[bytes, int]:
    """Return a store in which damage hides that a section was renamed, and another has its name.

    Returns:
        Also where the record is that is left of it.
    """
    device = MemoryDevice(image([spec("x", 100)], free=4096))
    with open_store(device) as store:
        store.put("x", b"first")
        store.put("x", b"precious")
        store.rename("x", "y")
        store.register("x", 100)
        store.put("x", b"another")
        section = store._session.container.directory.sections["y"]
        newest, older = section.newest_and_older
    return without_heads(bytes(device.content), newest.offset), older.offset


def test_c82_what_is_concluded_from_an_enumeration_is_refused_where_damage_may_hide_sections() -> (
    None
):
    content = written()
    store = open_store(without_heads(content, *records_of(content, "tpm")), read_only=True)
    assert not store.info().complete
    for conclude in (store.sections, lambda: list(store), lambda: len(store)):
        with pytest.raises(DamagedHeadError, match="it may hide sections"):
            conclude()
    complete = open_store(content, read_only=True)
    assert complete.info().complete
    assert list(complete) == ["tpm", "vpd"]
    assert len(complete) == 2


def test_c82_a_section_of_which_no_head_is_left_is_listed_without_a_name() -> None:
    content = written()
    first, second = records_of(content, "tpm")
    store = open_store(without_heads(content, first, second), read_only=True)
    hidden, vpd = store.sections(allow_damaged=True)
    assert (hidden.name, hidden.offset) == ("", first)
    assert f"{second + 1024 - first} bytes" in (hidden.damage or "")
    assert (vpd.name, vpd.damage) == ("vpd", None)
    with pytest.raises(DamagedHeadError):
        store.get(hidden.name)


def test_c82_a_section_of_which_one_head_is_left_is_listed_once() -> None:
    content = written()
    for offset in records_of(content, "tpm"):
        store = open_store(without_heads(content, offset), read_only=True)
        tpm, vpd = store.sections(allow_damaged=True)
        assert (tpm.name, vpd.name) == ("tpm", "vpd")
        assert "head is damaged" in (tpm.damage or "")


def test_c82_damaged_free_space_hides_nothing_where_the_root_proves_that() -> None:
    content = written()
    (free,) = open_container(MemoryDevice(content)).directory.free
    store = open_store(without_heads(content, free), read_only=True)
    assert store.info().complete
    assert list(store) == ["tpm", "vpd"]
    assert any(region.use == "hidden by a damaged head" for region in store.regions())
    assert_tiled(store)


def test_c82_damaged_free_space_is_listed_where_anything_may_have_been_there() -> None:
    """The newest of one section is lost as well, so that the root proves nothing."""
    content = written()
    (free,) = open_container(MemoryDevice(content)).directory.free
    newest = open_container(MemoryDevice(content)).directory.sections["tpm"].newest.offset
    store = open_store(without_heads(content, free, newest), read_only=True)
    *_, hidden = store.sections(allow_damaged=True)
    assert (hidden.name, hidden.offset) == ("", free)


def hidden(
    damaged: list[tuple[int, int]], sections: dict[str, Section] | None = None
) -> list[tuple[int, int]]:
    """Return offset and length of what is hidden, given those of damaged items."""
    directory = Directory(
        sections=sections or {},
        free={},
        generation=1,
        rolled_back=None,
        state=0,
        root=None,
        fresh=False,
        clean=True,
        damaged=[(offset, Damaged(length)) for offset, length in damaged],
    )
    return directory.hidden()


def test_c82_what_adjacent_damaged_heads_hide_is_one_range() -> None:
    damaged = [(1024, 512), (4096, 1024), (5120, 512), (5632, 512), (8192, 512), (8704, 512)]
    assert hidden(damaged) == [(1024, 512), (4096, 2048), (8192, 1024)]


def test_c82_what_lies_after_the_missing_copy_of_a_section_is_hidden() -> None:
    """One damaged item may take more than the copy: the framing that is left may be wrong."""
    content = written()
    section = open_container(MemoryDevice(content)).directory.sections["tpm"]
    start, (_, second) = section.place[0], section.copies
    assert second is not None
    damaged = Section([None, second])
    assert hidden([(start, 1024)], {"tpm": damaged}) == []
    assert hidden([(start, 4096)], {"tpm": damaged}) == [(start + 1024, 3072)]
    first = replace(second, offset=start, identity=second.identity._replace(copy=0))
    assert hidden([(start + 1024, 1536)], {"tpm": Section([first, None])}) == [(start + 2048, 512)]


def test_c13_a_section_that_gives_way_is_listed_without_its_name() -> None:
    content, left = renamed_and_reused()
    store = open_store(content, read_only=True, allow_damaged=True)
    nameless, other = store.sections(allow_damaged=True)
    assert (nameless.name, nameless.offset, nameless.size) == ("", left, len(b"precious"))
    assert "another one has the name it had [C13]" in (nameless.damage or "")
    assert other.name == "x"
    assert store.get("x") == b"another"
    report = store.verify()
    assert report.sections == 2
    assert any(problem.offset == left and not problem.name for problem in report.problems)
    assert_tiled(store)


def test_c82_a_failed_write_leaves_an_enumeration_in_doubt() -> None:
    device = FaultyDevice(MemoryDevice(written()), "write", 0)
    store = open_store(device)
    with (
        mock.patch.object(FaultyDevice, "write", side_effect=DeviceError("broken")),
        pytest.raises(DeviceError),
    ):
        store.rename("tpm", "new")
    with pytest.raises(PoisonedStoreError):
        store.sections()
    assert len(store.sections(allow_damaged=True)) == 2


@pytest.mark.parametrize("lost", [1, 2])
def test_c61_a_damaged_store_is_not_said_to_need_no_compaction(lost: int) -> None:
    content = written()
    store = open_store(without_heads(content, *records_of(content, "tpm")[:lost]))
    with pytest.raises(DamagedHeadError):
        store.compact()
    with pytest.raises(DamagedHeadError):
        store.scrub()


def assert_tiled(store: Store) -> None:
    """Check that regions and checked items cover every byte once, and that nothing is unlisted."""
    container = store._session.container
    position = 0
    for region in store.regions():
        assert region.offset == position, region
        assert region.size > 0, region
        position += region.size
    assert position == container.device.size
    position = 0
    for item in store.verify().items:
        assert item.offset == position, item
        position += item.length
    assert position == container.total
    directory = container.directory
    known = [section for _, section in directory.every_section()]
    listed = {info.offset for info in store.sections(allow_damaged=True)}
    assert len(listed) == len(known) + len(directory.hidden())
    missing = {
        start + number * extent.newest.length
        for section in known
        for extent in (section, *section.rivals)
        for number, copy in enumerate(extent.copies)
        for start in (extent.place[0],)
        if copy is None
    }
    hidden = [range(start, start + length) for start, length in directory.hidden()]
    for offset, _ in () if directory.complete else directory.damaged:
        assert offset in missing or any(offset in one for one in hidden)


def interesting(states: list[bytes], generator: random.Random) -> Iterator[bytes]:
    """Yield some of the states, each with one to three heads damaged, in different ways."""
    for content in generator.sample(states, min(len(states), 40)):
        try:
            heads = [offset for offset, _ in scan(MemoryDevice(content), quiet=True).items]
        except blobstore.StorageError:
            continue
        for _ in range(6):
            damaged = bytearray(content)
            for offset in generator.sample(heads, min(len(heads), generator.randint(1, 3))):
                start = offset + generator.choice((0, 0, 40))
                rubbish = generator.choice((bytes(HEAD_SIZE), generator.randbytes(HEAD_SIZE)))
                end = offset + HEAD_SIZE
                damaged[start:end] = rubbish[: end - start]
            yield bytes(damaged)


@pytest.mark.parametrize("name", HISTORIES)
def test_c82_every_byte_of_a_damaged_store_is_accounted_for(name: str) -> None:
    """Crashed anywhere in a history, and then damaged."""
    past = history(name, close=False)
    generator = random.Random(name)
    states = distinct(crash_states(past.device.before, past.device.log, exhaustive=2, samples=4))
    seen = 0
    for content in interesting(states, generator):
        try:
            store = open_store(content, read_only=True)
        except CorruptStoreError:
            continue  # contradicts itself even where damage excuses some of it
        assert_tiled(store)
        seen += not store.info().complete
    assert seen > 20


def test_c82_no_copy_of_a_store_turns_damage_into_absence(tmp_path: Path) -> None:
    path = tmp_path / "image"
    with blobstore.create(path, {"tpm": 100, "vpd": 100}, encrypted=False) as store:
        for _ in range(2):
            store.put("tpm", b"T")
            store.put("vpd", b"V")
    sound = path.read_bytes()
    path.write_bytes(without_heads(sound, *records_of(sound, "tpm")))
    (tmp_path / "sound").write_bytes(sound)
    with (
        blobstore.open(path, read_only=True, allow_damaged=True) as store,
        blobstore.open(tmp_path / "sound", read_only=True) as whole,
    ):
        with (
            blobstore.open(path, read_only=True) as refused,
            pytest.raises(DamagedHeadError, match="C67"),
        ):
            blobstore.unpack(refused, tmp_path / "unpacked")
        with pytest.raises(DamagedHeadError):
            blobstore.clone(store, tmp_path / "clone")
        with pytest.raises(DamagedHeadError):
            blobstore.clone(store, tmp_path / "clone", only=["vpd"])
        with pytest.raises(DamagedHeadError):
            blobstore.convert(path, tmp_path / "clone")
        for pair in ((store, whole), (whole, store)):
            with pytest.raises(DamagedHeadError):
                blobstore.compare(*pair)
        unpacked = blobstore.unpack(store, tmp_path / "unpacked")
        assert [section.offset for section in unpacked.nameless] == records_of(sound, "tpm")[:1]
        assert list(unpacked.files) == ["vpd"]
    with pytest.raises(blobstore.ManifestError):
        blobstore.load_manifest(tmp_path / "unpacked" / "manifest.toml")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["image", "sound", "unpacked"]


def test_c82_a_manifest_packs_no_unwritten_section_for_a_blob_that_could_not_be_read(
    tmp_path: Path,
) -> None:
    path = tmp_path / "image"
    with blobstore.create(path, {"a": 100}, encrypted=False) as store:
        store.put("a", b"to be damaged")
    path.write_bytes(path.read_bytes().replace(b"to be damaged", b"to be_damaged"))
    with blobstore.open(path, read_only=True) as store:
        unpacked = blobstore.unpack(store, tmp_path / "unpacked")
    assert list(unpacked.failed) == ["a"]
    manifest = tmp_path / "unpacked" / "manifest.toml"
    assert "could not be read" in manifest.read_text()
    with pytest.raises(blobstore.StorageError, match=r"a\.bin"):
        blobstore.load_manifest(manifest)


def test_c67_a_permission_outlasts_what_is_read_anew_without_the_lock(tmp_path: Path) -> None:
    """A reader without the lock looks at the heads again where it fails (C66)."""
    path = tmp_path / "image"
    with blobstore.create(path, {"tpm": 100, "vpd": 100}, encrypted=False) as store:
        for _ in range(2):
            store.put("tpm", b"T")
            store.put("vpd", b"V")
    sound = path.read_bytes()
    path.write_bytes(without_heads(sound, *records_of(sound, "tpm")))
    with blobstore.open(path, read_only=True, lock=False, allow_damaged=True) as store:
        with pytest.raises(DamagedHeadError):
            store.get("tpm")
        assert store.get("vpd") == b"V"
    with (
        blobstore.open(path, read_only=True, lock=False) as store,
        pytest.raises(DamagedHeadError),
    ):
        store.get("vpd")
