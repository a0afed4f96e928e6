"""Commits are told to those who watch, once they are durable (O66 to O68)."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

import blobstore
from blobstore import CommitInfo, SectionChange
from blobstore.container.recent import MOST_COMMITS, MOST_SECTIONS
from blobstore.store.news import News
from formats.devices.device import MemoryDevice
from formats.errors import DeviceError
from tests.support.devices import FaultyDevice, RecordingDevice
from tests.support.interrupts import InterruptPoints
from tests.support.stores import image, open_store, spec

if TYPE_CHECKING:
    from pathlib import Path

CONTENT = image([spec("a", 700, b"old"), spec("b", 100, b"b")], free=20_000)
SAMPLE = 150


def test_a_commit_is_told_after_its_flush_o66(monkeypatch: pytest.MonkeyPatch) -> None:
    device = RecordingDevice(CONTENT)
    store = open_store(device)
    told: list[tuple[int, int]] = []
    with store.changes() as watch:
        assert next(watch) == CommitInfo(store.info().generation)
        monkeypatch.setattr(News, "tell", lambda _: told.append((device.flushes, len(device.log))))
        store.put("a", b"new")
    assert told[0] == (device.flushes, len(device.log))
    assert device.flushes > 0


def test_what_is_told_can_be_read_o66() -> None:
    """A watch in another thread finds what it is told of."""
    store = open_store(CONTENT)
    found: list[bytes] = []

    def follow() -> None:
        with store.changes() as watch:
            next(watch)
            ready.set()
            for told in watch:
                assert store.section("a").generation >= told.generation
                found.append(store.get("a"))
                if found[-1] == b"99":
                    return

    ready = threading.Event()
    thread = threading.Thread(target=follow)
    thread.start()
    ready.wait(30)
    for number in range(100):
        store.put("a", str(number).encode())
    thread.join(60)
    assert found[-1] == b"99"
    assert found == sorted(found, key=int)


def test_an_interrupted_commit_is_told_if_it_happened_o66() -> None:
    store = open_store(CONTENT)
    store.changes().close()
    points = InterruptPoints(lambda: store.put("a", b"new"))
    outcomes = set()
    for point in points.chosen(SAMPLE):
        store = open_store(CONTENT)
        with store.changes(timeout=0) as watch:
            first = next(watch)
            with suppress(KeyboardInterrupt), points.interrupted_at(point):
                store.put("a", b"new")
            try:
                happened = store.get("a") == b"new"
            except blobstore.PoisonedStoreError:
                continue
            told = next(watch)
            assert bool(told.changes) == happened, point
            assert told.generation == first.generation + happened
            outcomes.add(happened)
    assert outcomes == {False, True}


@pytest.mark.parametrize("operation", ["write", "flush"])
def test_what_failed_is_not_told_o66(operation: str) -> None:
    device = FaultyDevice(
        MemoryDevice(CONTENT),
        operation,  # type: ignore[arg-type]
        1 << 30,
        persistent=True,
    )
    store = open_store(device)
    device._number = 0
    with store.changes(timeout=0) as watch:
        first = next(watch)
        with pytest.raises(DeviceError):
            store.put("a", b"new")
        assert next(watch) == first


def test_a_late_watch_is_told_that_it_missed_something_o68() -> None:
    store = open_store(CONTENT)
    with store.changes() as slow, store.changes() as quick:
        begin = next(slow).generation
        assert next(quick).generation == begin
        for _ in range(MOST_COMMITS + 1):
            store.put("a", b"1")
            next(quick)
        newest = begin + MOST_COMMITS + 1
        assert next(slow) == CommitInfo(newest, missed=True)
        store.put("b", b"2")
        expected = CommitInfo(newest + 1, (SectionChange("b", "changed"),))
        assert (next(slow), next(quick)) == (expected, expected)
    recent = store._session.container.directory.recent
    assert recent is not None
    assert len(recent.commits) == MOST_COMMITS
    with store.changes(newest + 1 - MOST_COMMITS) as watch:
        assert not next(watch).missed
        assert next(watch).generation == newest + 2 - MOST_COMMITS
    with store.changes(newest - MOST_COMMITS) as watch:
        assert next(watch) == CommitInfo(newest + 1, missed=True)


def test_a_commit_of_many_sections_is_not_kept_o68() -> None:
    store = open_store(CONTENT)
    for count in (MOST_SECTIONS, MOST_SECTIONS + 1):
        with store.changes() as watch:
            begin = next(watch).generation
            with store.transaction() as changes:
                for number in range(count):
                    changes.register(f"{count} {number}", 1)
            told = next(watch)
            assert told.generation == begin + 1
            assert (len(told.changes), told.missed) == (
                (count, False) if count == MOST_SECTIONS else (0, True)
            )


def test_what_others_did_while_the_image_was_released_is_missed_o67(tmp_path: Path) -> None:
    path = tmp_path / "image"
    blobstore.create(path, {"a": 700, "b": 100}, encrypted=False).close()
    with blobstore.open(path, direct=True) as store, store.changes(timeout=0) as watch:
        begin = next(watch).generation
        store.put("a", b"1")
        assert next(watch).generation == begin + 1
        store.release()
        with blobstore.open(path, direct=True) as other:
            other.put("a", b"2")
        store.take_over()
        assert next(watch) == CommitInfo(begin + 2, missed=True)
        store.put("b", b"3")
        assert next(watch).changes == (SectionChange("b", "changed"),)


def test_a_watch_ends_with_its_store_o66() -> None:
    store = open_store(CONTENT)
    watch = store.changes()
    next(watch)
    closing = threading.Timer(0.2, store.close)
    closing.start()
    assert list(watch) == []
    closing.join()
    with pytest.raises(ValueError, match="was closed"):
        store.changes()


def test_a_deleted_section_has_the_name_that_it_had_o66() -> None:
    store = open_store(CONTENT)
    with store.changes() as watch:
        next(watch)
        with store.transaction() as changes:
            changes.rename("a", "z")
            changes.delete("z")
            changes.rename("b", "a")
            changes.put("a", b"1")
        assert set(next(watch).changes) == {
            SectionChange("a", "deleted"),
            SectionChange("a", "renamed", "b"),
        }
