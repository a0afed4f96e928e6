"""Damage and tampering are reported, and never answered with other data (C43, C45, C48)."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest

from blobstore.container.authentication import Authenticator
from blobstore.container.open_container import open_container
from blobstore.container.scan import scan
from blobstore.errors import (
    CorruptBlobError,
    CorruptStoreError,
    DamagedHeadError,
)
from formats.devices.device import MemoryDevice
from formats.errors import (
    ContainerError,
    DeviceError,
    EmptyImageError,
    ForeignImageError,
    TruncatedImageError,
)
from tests.support.devices import FaultyDevice
from tests.support.stores import CORRUPT, contents, image, open_store, spec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from formats.devices.device import WritableBuffer


BLOBS = {"a": b"A" * 700, "b": b"B" * 100, "p": b"P" * 300}


def written(*, close: bool) -> bytes:
    """Return a store of three sections whose copies were all written."""
    device = MemoryDevice(
        image([spec("a", 700), spec("b", 100), spec("p", 300, copies=1)], free=1024)
    )
    store = open_store(device)
    for number in (1, 2, 3):
        for name, blob in BLOBS.items():
            store.put(name, blob if number == 3 else bytes([number]) * 50)
    if close:
        store.close()
    return bytes(device.content)


def flipped(content: bytes, position: int, mask: int = 1) -> bytes:
    changed = bytearray(content)
    changed[position] ^= mask
    return bytes(changed)


def test_c45_damage_to_a_closed_store_is_not_answered_with_the_older_copy() -> None:
    content = written(close=True)
    store = open_store(content)
    region = next(r for r in store.regions() if r.section == "a" and r.use.endswith("the blob"))
    assert region.size == 700
    store = open_store(flipped(content, region.offset + 333))
    with pytest.raises(CorruptBlobError) as caught:
        store.get("a")
    assert (caught.value.name, caught.value.generation) == ("a", 8)
    assert caught.value.offset == region.offset - 512
    assert store.get("b") == BLOBS["b"]
    store.put("a", b"new")  # a whole new blob mends the section
    assert store.get("a") == b"new"
    assert store.verify().ok


def heads(content: bytes) -> Iterator[int]:
    return iter([offset for offset, _ in scan(MemoryDevice(content)).items])


def test_c43_a_damaged_head_is_no_absence_and_stops_writing() -> None:
    """The head of "a"'s older copy: the root proves the rest, nothing proves "a" (C67, C74)."""
    content = written(close=True)
    first = next(heads(content))
    assert first == open_container(MemoryDevice(content)).directory.sections["a"].older.offset
    for damaged in (
        content[:first] + bytes(512) + content[first + 512 :],  # framing lost as well
        content[:first] + b"\xa2" * 512 + content[first + 512 :],
    ):
        store = open_store(damaged)
        assert store.info().damaged_heads == (first,)
        assert store.info().fresh
        assert store.info().root is None
        assert store.get("b") == BLOBS["b"]
        assert store.get("p") == BLOBS["p"]
        for name in ("a", "unknown"):
            with pytest.raises(DamagedHeadError):
                store.get(name)
        with pytest.raises(DamagedHeadError):
            assert "unknown" in store
        with pytest.raises(DamagedHeadError):
            store.put("b", b"new")
        with pytest.raises(DamagedHeadError):
            store.register("new", 10)
        with pytest.raises(DamagedHeadError):
            store.digest()
        store.close()


def test_c43_every_pair_of_damaged_heads_hides_no_other_section() -> None:
    content = written(close=True)
    offsets = list(heads(content))
    for first in offsets:
        for second in offsets:
            damaged = bytearray(content)
            damaged[first : first + 512] = bytes(512)
            damaged[second : second + 512] = bytes(512)
            store = open_store(bytes(damaged), read_only=True)
            sizes = [item.length for _, item in scan(MemoryDevice(damaged)).items]
            assert sum(sizes) == len(content) - 1024
            for name, blob in contents(store).items():
                assert blob in (BLOBS[name], "corrupt")


class Unreadable(MemoryDevice):
    """Has one sector that cannot be read."""

    def __init__(self, content: bytes, sector: int) -> None:
        super().__init__(content)
        self._sector = sector

    def read_into(self, offset: int, buffer: WritableBuffer, /) -> None:
        if offset < self._sector + 512 and self._sector < offset + len(buffer):
            raise DeviceError("the sector cannot be read")
        super().read_into(offset, buffer)


def test_c43_an_unreadable_sector_is_a_damaged_head() -> None:
    content = written(close=True)
    for head in heads(content):
        store = open_store(Unreadable(content, head), read_only=True)
        assert store.info().damaged_heads == (head,)
        found = contents(store)
        assert all(blob in (BLOBS[name], "corrupt") for name, blob in found.items())


def test_c67_a_head_that_cannot_be_read_once_is_read_again() -> None:
    content = written(close=True)
    whole = FaultyDevice(MemoryDevice(content), "read", 0)
    open_store(whole, read_only=True)
    for number in range(1, whole.counts["read"] + 1):
        store = open_store(FaultyDevice(MemoryDevice(content), "read", number), read_only=True)
        assert contents(store) == BLOBS


def test_c40_one_header_copy_is_enough_and_is_repaired() -> None:
    content = written(close=True)
    for copy in (0, 1):
        damaged = flipped(content, copy * 512 + 40)
        store = open_store(damaged, read_only=True)
        assert contents(store) == BLOBS
        problems = store.verify().problems
        assert [problem.offset for problem in problems] == [copy * 512]
        device = MemoryDevice(damaged)
        open_store(device).close()
        assert bytes(device.content) == content


def test_c40_without_any_header_it_is_a_damaged_container_not_a_foreign_file() -> None:
    content = written(close=True)
    with pytest.raises(ContainerError):
        open_store_raw(content[:40] + bytes(400) + content[440:552] + bytes(400) + content[952:])


def test_what_is_no_container_is_named() -> None:
    for content, kind in (
        (b"", EmptyImageError),
        (bytes(100_000), EmptyImageError),
        (b"#!/bin/sh\n" * 500, ForeignImageError),
        (b"x", ForeignImageError),
        (written(close=True)[:-512], TruncatedImageError),
        (written(close=True)[:1500], TruncatedImageError),
    ):
        with pytest.raises(kind):
            open_store_raw(content)


def open_store_raw(content: bytes) -> None:
    open_container(MemoryDevice(content))


# ------------------------------------------------------------------ tampering


def history() -> list[bytes]:
    """Return a store after each of some commits, closed and open."""
    device = MemoryDevice(image([spec("a", 700), spec("b", 100)], free=4096))
    images = [bytes(device.content)]
    for number in range(4):
        store = open_store(device)
        for name in ("a", "b"):
            store.put(name, f"{name}{number}".encode() * 20)
            images.append(bytes(device.content))
        if number == 1:
            store.register("c", 50)
            images.append(bytes(device.content))
            store.put("c", b"c1")
            images.append(bytes(device.content))
        store.close()
        images.append(bytes(device.content))
    return images


def test_c48_no_single_item_can_be_set_back() -> None:
    """Replays of one item, or both copies of a section, or both headers."""
    images = history()
    counts: Counter[str] = Counter()
    for index, current in enumerate(images):
        truth = contents(open_store(current, read_only=True))
        clean = open_store(current, read_only=True).info().clean
        before = [contents(open_store(image, read_only=True)) for image in images[:index]]
        for earlier in images[:index]:
            for start, size in _parts(current):
                if current[start : start + size] == earlier[start : start + size]:
                    continue
                mixed = current[:start] + earlier[start : start + size] + current[start + size :]
                counts["tried"] += 1
                try:
                    store = open_store(mixed, read_only=True)
                except CorruptStoreError:
                    counts["refused"] += 1
                    continue
                found = contents(store)
                if found == truth:
                    counts["harmless"] += 1
                elif store.info().root is None:
                    # Where a record lies now there was no head then.
                    assert all(found[name] in (truth[name], CORRUPT) for name in found)
                    counts["damaged"] += 1
                else:
                    # An unclosed newest commit set back by one looks torn (section 7).
                    assert not clean
                    assert found == before[-1]
                    counts["torn"] += 1
    assert counts["refused"] > 100
    assert counts["torn"] > 10
    assert counts["damaged"] > 10


def test_c48_the_generation_that_attests_something_else_is_named() -> None:
    device = MemoryDevice(image([spec("a", 700), spec("b", 100)]))
    with open_store(device) as store:
        for number in range(5):
            store.put("a", bytes([number]))
        before = bytes(device.content)
        store.put("a", b"set back")
        newest = store._session.container.directory.sections["a"].newest
    content = bytearray(device.content)
    record = slice(newest.offset, newest.offset + newest.length)
    content[record] = before[record]
    generation = newest.version.generation
    with pytest.raises(CorruptStoreError, match=rf"generation {generation} attests .*C48") as error:
        open_store(bytes(content))
    assert error.value.generation == generation > 5


def _parts(content: bytes) -> list[tuple[int, int]]:
    items = [(offset, item.length) for offset, item in scan(MemoryDevice(content)).items]
    sections = [
        section.place
        for section in open_container(MemoryDevice(content)).directory.sections.values()
    ]
    return [(0, 512), (512, 512), (0, 1024), *items, *sections]


def test_c22_a_changed_blob_with_a_right_crc_is_found() -> None:
    """The crc32 is no authentication: only the key makes a mac."""
    import zlib

    content = bytearray(written(close=True))
    device = MemoryDevice(content)
    container = open_container(device)
    copy = container.directory.sections["b"].newest
    blob = b"X" * copy.version.size
    content[copy.offset + 512 : copy.offset + 512 + len(blob)] = blob
    old, new = (zlib.crc32(data).to_bytes(4, "big") for data in (BLOBS["b"], blob))
    head = bytes(content[copy.offset : copy.offset + 512])
    assert head.count(b"\x04\x04" + old) == 1
    changed = head.replace(b"\x04\x04" + old, b"\x04\x04" + new)
    forged = Authenticator(container.header.authentication, b"?" * 32, container.header.store_id)
    for sealed in (changed, forged.with_check(copy.offset, changed, copy.frame.check_start)):
        content[copy.offset : copy.offset + 512] = sealed
        with pytest.raises(DamagedHeadError):
            open_store(bytes(content)).get("b")


def test_c21_sections_cannot_be_swapped() -> None:
    """A head is bound to its place, so a sound item elsewhere is damage."""
    content = bytearray(written(close=True))
    container = open_container(MemoryDevice(content))
    a, b = (container.directory.sections[name] for name in ("b", "p"))
    first, second = a.newest.offset, b.newest.offset
    size = a.newest.length
    assert size == b.newest.length
    content[first : first + size], content[second : second + size] = (
        content[second : second + size],
        content[first : first + size],
    )
    store = open_store(bytes(content))
    for name in ("b", "p"):
        with pytest.raises(DamagedHeadError):
            store.get(name)
