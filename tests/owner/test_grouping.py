"""Puts that wait at the same time share a commit, and no more than that (O75)."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest

import blobstore
from blobstore.errors import (
    BlobNotFoundError,
    BlobTooLargeError,
    GenerationMismatchError,
    PoisonedStoreError,
)
from blobstore.owner.grouping import MOST, GroupedPuts
from formats.devices.device import MemoryDevice
from formats.errors import DeviceError
from tests.support.devices import FaultyDevice, RecordingDevice
from tests.support.stores import image, open_store, spec

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from formats.devices.device import BlockDevice

COUNT = 6
Outcome = int | Exception


def store_of(device: Callable[[bytes], BlockDevice] = MemoryDevice) -> blobstore.Store:
    specs = [spec(f"s{number}", 100, b"old") for number in range(COUNT)]
    return open_store(device(image(specs, free=20_000)))


def together(puts: GroupedPuts, wanted: Sequence[tuple[str, bytes, int | None]]) -> list[Outcome]:
    """Put all at the same time: all of them wait for a put that there is not."""
    outcomes: dict[int, Outcome] = {}

    def put(number: int) -> None:
        try:
            outcomes[number] = puts.put(*wanted[number])
        except (blobstore.StorageError, ValueError) as error:
            outcomes[number] = error

    threads = [threading.Thread(target=put, args=(number,)) for number in range(len(wanted))]
    puts._leads = True
    for thread in threads:
        before = len(puts._waiting)
        thread.start()
        deadline = time.monotonic() + 60
        while len(puts._waiting) <= before:
            assert time.monotonic() < deadline
            time.sleep(0.001)
    puts._leave()
    for thread in threads:
        thread.join(60)
    return [outcomes[number] for number in range(len(wanted))]


def test_puts_that_wait_share_a_flush_o75() -> None:
    devices: list[RecordingDevice] = []

    def recorded(content: bytes) -> RecordingDevice:
        devices.append(RecordingDevice(content))
        return devices[0]

    store = store_of(recorded)
    puts = GroupedPuts(store)
    begin = store.info().generation
    flushes = devices[0].flushes
    outcomes = together(puts, [(f"s{n}", b"%d" % n, None) for n in range(COUNT)])
    assert outcomes == [begin + 1] * COUNT
    assert devices[0].flushes == flushes + 1
    found = open_store(bytes(devices[0].content))
    assert [found.get(f"s{n}") for n in range(COUNT)] == [b"%d" % n for n in range(COUNT)]
    # One that comes later has a commit of its own.
    assert puts.put("s0", b"later") == begin + 2


def test_a_put_that_is_alone_waits_for_no_other_o171() -> None:
    store = store_of()
    puts = GroupedPuts(store)
    begin = store.info().generation
    with pytest.raises(BlobNotFoundError):
        puts.put("none", b"")
    outcomes: dict[str, int] = {}
    threads = [
        threading.Thread(target=lambda name=name: outcomes.update({name: puts.put(name, b"1")}))
        for name in ("s0", "s1", "s2")
    ]
    with store._session.lock:
        for count, thread in enumerate(threads):
            thread.start()
            deadline = time.monotonic() + 60
            while not puts._leads or len(puts._waiting) < count:
                assert time.monotonic() < deadline
                time.sleep(0.001)
    for thread in threads:
        thread.join(60)
    assert outcomes == {"s0": begin + 1, "s1": begin + 2, "s2": begin + 2}
    assert not puts._leads


def test_each_put_has_its_own_error_o75() -> None:
    store = store_of()
    puts = GroupedPuts(store)
    known = store.section("s0").generation
    outcomes = together(
        puts,
        [
            ("s0", b"right", known),
            ("s1", b"wrong", known + 9),
            ("none", b"", None),
            ("s2", bytes(101), None),
            ("s3", b"new", None),
        ],
    )
    assert outcomes[0] == outcomes[4]
    assert [type(one) for one in outcomes[1:4]] == [
        GenerationMismatchError,
        BlobNotFoundError,
        BlobTooLargeError,
    ]
    assert [store.get(f"s{n}") for n in range(4)] == [b"right", b"old", b"old", b"new"]


def test_what_can_only_be_put_alone_is_put_alone_o75() -> None:
    store = store_of()
    store.register("one", 100, copies=1)
    store.register("w", 100, "window")
    puts = GroupedPuts(store)
    with store.window("w"):
        wanted = [(name, b"new", None) for name in ("s0", "one", "w", "s1")]
        outcomes = together(puts, wanted)
    assert isinstance(outcomes[2], ValueError)
    numbers = [outcomes[n] for n in (0, 1, 3)]
    assert len(set(map(str, numbers))) == 3
    assert all(isinstance(one, int) for one in numbers)
    assert [store.get(name) for name in ("s0", "one", "s1")] == [b"new"] * 3


def test_puts_to_one_section_are_made_one_after_the_other_o75() -> None:
    store = store_of()
    begin = store.info().generation
    known = store.section("s0").generation
    puts = GroupedPuts(store)
    outcomes = together(
        puts,
        [("s0", b"1", known), ("s0", b"2", known), ("s0", b"3", None), ("s1", b"1", None)],
    )
    assert outcomes[0] == outcomes[3] == begin + 1
    assert isinstance(outcomes[1], GenerationMismatchError)
    assert outcomes[2] == begin + 2
    assert store.get("s0") == b"3"
    assert store.get("s0", previous=True) == b"1"


@pytest.mark.parametrize("operation", ["write", "flush"])
def test_none_is_acknowledged_where_the_commit_failed_o75(operation: str) -> None:
    devices: list[FaultyDevice] = []

    def faulty(content: bytes) -> FaultyDevice:
        devices.append(FaultyDevice(MemoryDevice(content), operation, 1 << 30, persistent=True))  # type: ignore[arg-type]
        return devices[0]

    store = store_of(faulty)
    puts = GroupedPuts(store)
    devices[0]._number = 0
    outcomes = together(puts, [(f"s{n}", b"new", None) for n in range(COUNT)])
    assert [type(one) for one in outcomes] == [DeviceError] * COUNT
    with pytest.raises(PoisonedStoreError):
        puts.put("s0", b"later")
    store.close()
    with pytest.raises(ValueError, match="was closed"):
        puts.put("s0", b"later")


def test_a_commit_has_so_many_sections_o75() -> None:
    specs = [spec(f"s{number}", 10) for number in range(MOST + 2)]
    store = open_store(image(specs))
    puts = GroupedPuts(store)
    begin = store.info().generation
    outcomes = together(puts, [(f"s{n}", b"1", None) for n in range(MOST + 2)])
    assert sorted(map(str, outcomes)) == [str(begin + 1)] * MOST + [str(begin + 2)] * 2


def test_many_threads_lose_nothing_o75() -> None:
    store = store_of()
    puts = GroupedPuts(store)
    last = [0] * COUNT

    def run(number: int) -> None:
        generation = 0
        for count in range(50):
            found = puts.put(f"s{number}", b"%d" % count)
            assert found > generation
            generation = last[number] = found

    threads = [threading.Thread(target=run, args=(number,)) for number in range(COUNT)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [store.get(f"s{n}") for n in range(COUNT)] == [b"49"] * COUNT
    assert [store.section(f"s{n}").generation for n in range(COUNT)] == last
    assert store.verify()
