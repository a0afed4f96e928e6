"""The pieces: counts of every width, entries of tables, caches that stay small."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from formats.devices.device import MemoryDevice
from formats.qcow2.counts import Counts
from formats.qcow2.creation import Qcow2Options
from formats.qcow2.header import read_header
from formats.qcow2.host import Host
from formats.qcow2.opening import open_image
from formats.qcow2.refcounts import Refcounts
from formats.qcow2.sparse import SparseCounts
from formats.qcow2.tables import (
    COMPRESSED,
    COPIED,
    ZERO,
    EntryKind,
    L2Cache,
    clusters_of,
    compressed_place,
    entry_kind,
)
from tests.qcow2.support import new_image


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16, 32, 64])
@settings(max_examples=60, derandomize=True, deadline=None)
@given(data=st.data())
def test_counts_are_as_an_array_of_numbers(bits: int, data: st.DataObject) -> None:
    """Q3"""
    size = 64 * 8 // bits
    counts, model = Counts(bytearray(64), bits), [0] * size
    values = st.one_of(st.just((1 << bits) - 1), st.integers(0, (1 << bits) - 1))
    for index, value in data.draw(st.lists(st.tuples(st.integers(0, size - 1), values))):
        counts[index] = model[index] = value
    first = data.draw(st.integers(0, size))
    number = data.draw(st.integers(0, size - first))
    counts.fill(first, number)
    model[first : first + number] = [1] * number
    assert len(counts) == size
    assert [counts[index] for index in range(size)] == model
    assert dict(counts.used()) == {index: value for index, value in enumerate(model) if value}
    start = data.draw(st.integers(0, size))
    free = next((index for index in range(start, size) if not model[index]), None)
    assert counts.find_free(start) == free
    run = 0
    while start + run < size and not model[start + run]:
        run += 1
    assert counts.free_run(start, size) == run


def test_where_compressed_clusters_are() -> None:
    """With clusters of 64 KiB the offset has 54 bits, and the sectors after it 8."""
    entry = COMPRESSED | 3 << 54 | 0x12345
    assert compressed_place(entry, 16) == (0x12345, 4 * 512 - 0x145)
    assert list(clusters_of(entry, 16)) == [1]
    assert list(clusters_of(COMPRESSED | 3 << 54 | 0x1FFFF, 16)) == [1, 2]
    assert compressed_place(COMPRESSED | 1 << 61 | 0x200, 9) == (0x200, 1024)


def test_kinds_of_entries() -> None:
    assert entry_kind(0) is EntryKind.UNALLOCATED
    assert entry_kind(ZERO) is EntryKind.ZERO
    assert entry_kind(65536 | COPIED | ZERO) is EntryKind.ZERO
    assert entry_kind(65536 | COPIED) is EntryKind.DATA
    assert entry_kind(COMPRESSED | 1) is EntryKind.COMPRESSED


def test_caches_of_tables_do_not_grow_with_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """Q22"""
    monkeypatch.setattr("formats.qcow2.refcounts._CACHE_SIZE", 8 << 10)
    cluster_size = 2 << 20
    host = Host(MemoryDevice(12 * cluster_size))
    header = read_header(new_image(1 << 20, Qcow2Options(cluster_size=cluster_size)))
    cache = L2Cache(host, header)
    for number in range(12):
        cache.get(number * cluster_size)
    assert len(cache._tables) == 4
    image = new_image(64 << 20, Qcow2Options(cluster_size=512, refcount_bits=64))
    with open_image(image, read_only=False) as disk:
        disk.write(0, b"x" * (4 << 20))
    refcounts = Refcounts(Host(image), read_header(image))
    assert sum(refcounts.get(cluster) for cluster in range(8000)) > 7900
    assert len(refcounts._blocks) == 16


def test_what_waits_in_memory_is_written_before_it_is_much(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Q22: without a flush."""
    monkeypatch.setattr("formats.qcow2.metadata._MOST_DIRTY", 64 << 10)
    image = new_image(8 << 20, Qcow2Options(cluster_size=512))
    disk = open_image(image, read_only=False)
    most = 0
    for at in range(0, 8 << 20, 64 << 10):
        disk.write(at, b"y" * (64 << 10))
        most = max(most, disk._metadata.l2.dirty_size)
    assert most < 80 << 10
    with open_image(MemoryDevice(image.content)) as crashed:
        assert crashed.read(0, 4 << 20) == b"y" * (4 << 20)
    disk.close()


def test_counts_of_all_clusters_hold_any_number() -> None:
    counts = SparseCounts()
    counts[5] = 3
    counts[1 << 40] = 65_535
    counts.add(1 << 40, 1)
    assert (counts[5], counts[1 << 40], counts[6]) == (3, 65_536, 0)
    assert list(counts.used()) == [(5, 3), (1 << 40, 65_536)]
    assert list(counts.between(0, 1 << 20)) == [(5, 3)]
    assert counts.end(1 << 50) == (1 << 40) + 1
    assert counts.end(1 << 40) == 6
    copied = counts.copy()
    copied[5] = 0
    assert counts[5] == 3
    with pytest.raises(OverflowError):
        counts.add(5, -4)
