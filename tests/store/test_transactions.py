"""Transactions: several sections change together or not at all (C31, C52 to C57)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from blobstore.container.open_container import open_container
from blobstore.errors import (
    BlobNotFoundError,
    BlobTooLargeError,
    NoSpaceError,
    SectionExistsError,
    SectionMismatchError,
    UnwrittenBlobError,
)
from formats.container.model import HEAD_SIZE
from formats.devices.device import MemoryDevice
from formats.errors import ReadOnlyError
from tests.support.devices import Flush, RecordingDevice, Write
from tests.support.stores import CORRUPT, UNWRITTEN, contents, image, open_store, spec

if TYPE_CHECKING:
    from collections.abc import Callable

    from blobstore.store.transaction import Transaction

SPECS = [spec("a", 700, b"old a"), spec("b", 100, b"old b"), spec("p", 90, b"old p", copies=1)]
OLD = {"a": b"old a", "b": b"old b", "p": b"old p"}


def recorded(free: int = 20_000) -> RecordingDevice:
    return RecordingDevice(image(SPECS, free=free))


def test_c31_puts_of_several_sections_are_one_flush() -> None:
    device = recorded()
    store = open_store(device)
    device.log.clear()
    with store.transaction() as changes:
        changes.put("a", b"new a")
        changes.put("b", b"new b")
        assert changes.get("a") == b"new a"
    assert [type(event) for event in device.log] == [Write, Write, Flush]
    assert contents(store) == {**OLD, "a": b"new a", "b": b"new b"}
    generations = {store.section(name).generation for name in "ab"}
    assert len(generations) == 1


def test_everything_in_one_commit() -> None:
    device = recorded()
    store = open_store(device)
    generation = store.info().generation
    with store.transaction() as changes:
        changes.register("new", 300, type="label")
        changes.put("new", b"n" * 300)
        changes.register("blank", 10)
        changes.rename("a", "z")
        changes.put("z", b"z" * 700)
        changes.resize("z", 2000)
        changes.register("p", 200)  # moves: so it may be part of a commit of several
        changes.delete("b")
    expected = {"new": b"n" * 300, "blank": UNWRITTEN, "z": b"z" * 700, "p": b"old p"}
    assert store.info().generation == generation + 1
    assert contents(store) == expected
    assert store.section("z").max_size == 2000
    assert store.info().clean
    assert store.verify().ok
    store.close()
    assert contents(open_store(device)) == expected


def test_an_abandoned_block_changes_nothing() -> None:
    device = recorded()
    store = open_store(device)
    before = device.content
    with pytest.raises(KeyError), store.transaction() as changes:
        changes.put("a", b"new")
        changes.delete("b")
        raise KeyError
    assert device.content == before
    assert contents(store) == OLD
    with pytest.raises(ValueError, match="ended"):
        changes.put("a", b"late")
    store.put("a", b"goes on")


REFUSED: dict[str, tuple[type[Exception], Callable[[Transaction], object]]] = {
    "unknown": (BlobNotFoundError, lambda t: t.put("x", b"")),
    "unknown, renamed": (BlobNotFoundError, lambda t: t.rename("x", "y")),
    "unknown, deleted": (BlobNotFoundError, lambda t: t.delete("x")),
    "too large": (BlobTooLargeError, lambda t: t.put("b", b"x" * 101)),
    "too small for its blob": (BlobTooLargeError, lambda t: t.resize("b", 4)),
    "name taken": (SectionExistsError, lambda t: t.rename("a", "b")),
    "another kind": (SectionMismatchError, lambda t: t.register("a", 1, "window")),
    "no kind": (ValueError, lambda t: t.register("a", 1, "box")),
    "bad name": (ValueError, lambda t: t.rename("a", "")),
    "bad size": (ValueError, lambda t: t.resize("a", -1)),
    "a control in a type": (ValueError, lambda t: t.register("n", 1, type="\n")),
    "no room": (NoSpaceError, lambda t: t.register("n", 1 << 20)),
    "unwritten": (UnwrittenBlobError, lambda t: t.get("blank")),
    "name not a str": (TypeError, lambda t: t.put(b"a", b"")),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_changes_nothing(case: str) -> None:
    error, change = REFUSED[case]
    device = recorded()
    store = open_store(device)
    before = device.content
    with pytest.raises(error), store.transaction() as changes:
        changes.put("a", b"new a")
        changes.register("blank", 1)
        change(changes)
    assert device.content == before
    assert contents(store) == OLD


def test_c32_a_single_copy_never_joins_others() -> None:
    device = recorded()
    store = open_store(device)
    before = device.content
    for overwrite in ("put", "delete"):
        with pytest.raises(ValueError, match="one copy"), store.transaction() as changes:
            changes.put("a", b"new a")
            if overwrite == "put":
                changes.put("p", b"new")
            else:
                changes.delete("p")
    assert device.content == before
    with store.transaction() as changes:
        changes.put("p", b"alone")
    assert store.get("p") == b"alone"


def test_names_are_free_again_at_once() -> None:
    store = open_store(recorded())
    with store.transaction() as changes:
        changes.rename("a", "tmp")
        changes.rename("b", "a")
        changes.rename("tmp", "b")
        with pytest.raises(BlobNotFoundError):
            changes.get("tmp")
    assert contents(store) == {**OLD, "a": b"old b", "b": b"old a"}
    with store.transaction() as changes:
        changes.delete("a")
        changes.register("a", 10)
        changes.put("a", b"another")
        changes.register("passing", 10)
        changes.delete("passing")
    assert contents(store) == {**OLD, "a": b"another", "b": b"old a"}


def test_nothing_else_changes_while_a_transaction_is_open() -> None:
    store = open_store(recorded())
    with store.transaction() as changes:
        changes.put("a", b"new a")
        assert store.get("a") == b"old a"
        refused: tuple[Callable[[], object], ...] = (
            lambda: store.put("b", b"new b"),
            lambda: store.delete("b"),
            lambda: store.grow(1 << 20),
        )
        for change in refused:
            with pytest.raises(ValueError, match="under way"):
                change()
    assert store.get("a") == b"new a"


def test_closing_the_store_abandons_a_transaction() -> None:
    device = recorded()
    store = open_store(device)
    with pytest.raises(ValueError, match="ended"), store.transaction() as changes:
        changes.put("a", b"new a")
        store.close()
    assert contents(open_store(device)) == OLD


def test_a_read_only_store_has_no_transactions() -> None:
    store = open_store(recorded(), read_only=True)
    with pytest.raises(ReadOnlyError), store.transaction():
        pytest.fail("the block was entered")
    with pytest.raises(ReadOnlyError):
        store.delete("a")
    with pytest.raises(ReadOnlyError):
        store.rename("a", "z")


def test_c53_delete_and_use_the_space_again() -> None:
    device = recorded(free=512)
    store = open_store(device)
    store.delete("a")
    store.delete("p")
    assert contents(store) == {"b": b"old b"}
    with pytest.raises(BlobNotFoundError):
        store.get("a")
    store.register("c", 500)
    store.put("c", b"c" * 500)
    expected = {"b": b"old b", "c": b"c" * 500}
    store.close()
    store = open_store(device.content)
    assert contents(store) == expected
    assert store.verify().ok


def test_c56_free_neighbours_become_one() -> None:
    store = open_store(RecordingDevice(image([spec(n, 600, n.encode()) for n in "abcde"])))
    for name in "bdcea":
        store.delete(name)
    assert not len(store)
    assert [region.use for region in store.regions()][2:] == ["free"]


def test_compaction_joins_free_space() -> None:
    specs = [spec(n, 600 + 100 * i, n.encode()) for i, n in enumerate("abcdefgh")]
    device = RecordingDevice(image(specs, free=8192))
    store = open_store(device)
    for name in "bdf":
        store.delete(name)
    kept = {name: name.encode() for name in "acegh"}
    info = store.info()
    free = info.free
    steps: list[tuple[int, int]] = []
    assert store.compact(lambda done, total: steps.append((done, total))) == len(kept)
    assert steps == sorted(steps)
    assert {total for _, total in steps} == {info.size}, "progress is in bytes"
    assert steps[-1][0] > len(kept)
    assert contents(store) == kept
    assert [(r.size, r.use) for r in store.regions()][2] == (free, "free")
    assert store.compact() == 0
    store.close()
    store = open_store(device.content)
    assert contents(store) == kept
    assert store.verify().ok


def test_compaction_stops_where_there_is_no_room_to_move() -> None:
    store = open_store(RecordingDevice(image([spec(n, 600, n.encode()) for n in "abc"])))
    store.delete("b")
    assert store.compact() == 0  # the gap is as large as what is before it
    store.delete("c")
    assert store.compact() == 1
    assert [region.use for region in store.regions()][2] == "free"
    assert contents(store) == {"a": b"a"}


def test_compaction_leaves_what_cannot_be_read() -> None:
    device = MemoryDevice(image([spec(n, 600, n.encode()) for n in "abc"], free=8192))
    store = open_store(device)
    at = open_container(device).directory.sections["b"].newest.offset + HEAD_SIZE
    device.content[at] ^= 1
    store.delete("c")
    assert store.compact() == 0
    store.delete("a")
    assert store.compact() == 0
    assert contents(store) == {"b": CORRUPT}


def test_c57_register_lets_the_image_grow() -> None:
    device = MemoryDevice(image(SPECS, free=512))
    with open_store(device) as store:
        store.register("large", 300_000)
        store.put("large", b"l" * 300_000)
        store.register("a", 5000)
        assert store.info().size == device.size
        assert store.verify().ok
    store = open_store(device)
    assert contents(store) == {**OLD, "large": b"l" * 300_000}


def test_c57_grow_takes_what_lies_behind_first() -> None:
    content = image(SPECS, free=512)
    device = RecordingDevice(content + bytes(8192))
    with open_store(device) as store:
        store.register("c", 1500)
        assert store.info().size == len(content) + 8192
        with pytest.raises(NoSpaceError):
            store.grow(len(content) + 10_000)
        store.grow(100)  # it has more
    assert contents(open_store(device)) == {**OLD, "c": UNWRITTEN}
