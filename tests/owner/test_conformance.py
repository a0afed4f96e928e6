"""What a store promises, of a store and of the client of one alike (O30, O33)."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

import blobstore

if TYPE_CHECKING:
    from pathlib import Path

    from blobstore.owner import AnyStore, StoreClient


@pytest.fixture(params=["store", "client"])
def any_store(request: pytest.FixtureRequest) -> AnyStore:
    found: AnyStore = request.getfixturevalue(request.param)
    return found


def test_a_put_is_what_get_returns(any_store: AnyStore) -> None:
    any_store.put("a", b"new")
    assert any_store.get("a") == b"new"
    any_store.put("a", bytearray(5000))
    any_store.put("b", memoryview(b""))
    assert (any_store.get("a"), any_store.get("b")) == (bytes(5000), b"")
    assert any_store.get("a", previous=True) == b"new"


def test_sections_are_described(any_store: AnyStore, store: blobstore.Store) -> None:
    any_store.put("b", b"12")
    assert any_store.sections() == store.sections()
    assert any_store.sections(allow_damaged=True) == store.sections(allow_damaged=True)
    assert any_store.section("b") == store.section("b")
    assert any_store.section("b").size == 2
    assert list(any_store) == ["a", "b"]
    assert len(any_store) == 2
    assert "a" in any_store
    assert "c" not in any_store
    assert 1 not in any_store
    assert any_store.info() == store.info()
    assert any_store.digest() == store.digest()
    assert not any_store.read_only


def test_verify_reports(any_store: AnyStore, store: blobstore.Store) -> None:
    any_store.put("a", b"1")
    any_store.put("a", b"22")
    calls: list[tuple[int, int]] = []
    report = any_store.verify(lambda done, total: calls.append((done, total)))
    assert report == store.verify()
    assert report
    assert calls[-1] == (3, 3)


def test_sections_are_registered_resized_renamed_and_deleted(
    any_store: AnyStore,
) -> None:
    made = any_store.register("c", 100, copies=1, type="eeprom")
    assert (made.name, made.max_size, made.copies, made.type) == ("c", 100, 1, "eeprom")
    assert any_store.register("c", 50) == made
    assert any_store.register("c", 200).max_size == 200
    assert any_store.register("w", 512, "window").kind == "window"
    any_store.put("a", b"content")
    any_store.resize("a", 7)
    assert any_store.section("a").max_size == 7
    any_store.rename("a", "d")
    assert any_store.get("d") == b"content"
    any_store.delete("d")
    assert set(any_store) == {"b", "c", "w"}


@pytest.mark.parametrize(
    "name", ["/", "..", ".", "a/b/../c", "%2F", "?x=1", "#", " ", "+", "ü€", "a&b", "😀" * 50]
)
def test_every_name_is_one(any_store: AnyStore, name: str) -> None:
    any_store.register(name, 10)
    any_store.put(name, b"12")
    assert any_store.get(name) == b"12"
    assert name in any_store
    any_store.rename(name, "plain")
    any_store.rename("plain", name)
    any_store.delete(name)
    assert name not in any_store


def test_errors_have_their_class_and_message(any_store: AnyStore, store: blobstore.Store) -> None:
    """Each of these raises what the store in this process raises."""
    any_store.put("a", bytes(100))
    failing = [
        lambda s: s.get("c"),
        lambda s: s.get("b"),
        lambda s: s.get("b", previous=True),
        lambda s: s.section("c"),
        lambda s: s.put("c", b""),
        lambda s: s.put("b", bytes(3001)),
        lambda s: s.put("b", bytes(1 << 20)),
        lambda s: s.register("a", 10, "window"),
        lambda s: s.register("a", 10, copies=1),
        lambda s: s.register("a", 10, copies=3),
        lambda s: s.register("a", -1),
        lambda s: s.register("", 1),
        lambda s: s.register("x" * 201, 1),
        lambda s: s.register("c", 1, "nonsense"),
        lambda s: s.register("huge", 1 << 62),
        lambda s: s.get(""),
        lambda s: s.resize("a", 99),
        lambda s: s.resize("c", 99),
        lambda s: s.rename("a", "b"),
        lambda s: s.rename("a", "\n"),
        lambda s: s.rename("c", "d"),
        lambda s: s.delete("c"),
    ]
    before = store.digest()
    for number, fail in enumerate(failing):
        errors = []
        for each in (store, any_store):
            with pytest.raises((blobstore.StorageError, ValueError)) as info:
                fail(each)  # type: ignore[no-untyped-call]
            error = info.value
            errors.append((type(error), str(error), getattr(error, "hint", None), vars(error)))
        assert errors[0] == errors[1], number
    assert store.digest() == before


def test_a_transaction_is_all_or_nothing(any_store: AnyStore) -> None:
    with any_store.transaction() as changes:
        changes.put("a", b"1")
        changes.register("c", 10)
        changes.put("c", b"2")
        changes.rename("b", "d")
        changes.put("d", b"3")
        assert (changes.get("a"), changes.get("c"), changes.get("d")) == (b"1", b"2", b"3")
        assert changes.generation is None
    assert [any_store.get(name) for name in "acd"] == [b"1", b"2", b"3"]
    generations = {any_store.section(name).generation for name in "acd"}
    assert generations == {changes.generation}
    before = any_store.digest()
    with pytest.raises(blobstore.BlobNotFoundError), any_store.transaction() as changes:
        changes.put("a", b"other")
        changes.delete("missing")
    assert any_store.digest() == before
    with pytest.raises(KeyError), any_store.transaction() as changes:
        changes.put("a", b"other")
        raise KeyError
    assert any_store.digest() == before
    with pytest.raises(ValueError, match="has ended"):
        changes.put("a", b"late")
    with any_store.transaction() as changes:
        pass
    assert changes.generation is None
    assert any_store.digest() == before


def test_a_transaction_reads_what_it_changes(any_store: AnyStore) -> None:
    any_store.put("a", b"1")
    with any_store.transaction() as changes:
        changes.rename("a", "c")
        assert changes.get("c") == b"1"
        with pytest.raises(blobstore.BlobNotFoundError):
            changes.get("a")
        changes.register("a", 5)
        with pytest.raises(blobstore.UnwrittenBlobError):
            changes.get("a")
        changes.put("a", changes.get("c") + b"2")
        changes.delete("c")
        changes.resize("b", 1)
    assert any_store.get("a") == b"12"
    assert any_store.section("b").max_size == 1
    assert "c" not in any_store


def test_changes_are_made_only_from_the_generation_they_name(
    any_store: AnyStore,
) -> None:
    any_store.put("a", b"1")
    known = any_store.section("a").generation
    with any_store.transaction() as changes:
        changes.require_generation("a", known)
        changes.put("a", b"2")
    before = any_store.digest()
    with (
        pytest.raises(blobstore.GenerationMismatchError, match=rf"'a' .*, not {known}"),
        any_store.transaction() as changes,
    ):
        changes.require_generation("a", known)
        changes.put("a", b"3")
    assert any_store.digest() == before
    with (
        pytest.raises(blobstore.GenerationMismatchError),
        any_store.transaction() as changes,
    ):
        changes.register("new", 1)
        changes.require_generation("new", 0)
    assert any_store.digest() == before


def test_a_closed_store_takes_nothing(any_store: AnyStore) -> None:
    with any_store:
        any_store.put("a", b"1")
    any_store.close()
    for use in (
        lambda: any_store.get("a"),
        lambda: any_store.put("a", b""),
        any_store.info,
        any_store.verify,
        any_store.changes,
        lambda: any_store.window("a"),
    ):
        with pytest.raises(ValueError, match="was closed"):
            use()


def test_damage_keeps_its_class(client: StoreClient, image: Path) -> None:
    """O33: a client must not take damage for absence."""
    client.put("a", b"needle" * 100)
    content = bytearray(image.read_bytes())
    place = content.index(b"needle" * 100)
    with image.open("r+b") as file:
        file.seek(place + 5)
        file.write(b"X")
    with pytest.raises(blobstore.CorruptBlobError) as info:
        client.get("a")
    assert (info.value.name, info.value.generation) == ("a", 2)
    assert info.value.offset is not None
    assert not isinstance(info.value, blobstore.DamagedHeadError)
    assert not client.verify()


def test_a_read_that_is_overtaken_changes_nothing(
    client: StoreClient, store: blobstore.Store
) -> None:
    client.put("a", b"1")
    with (
        pytest.raises(blobstore.GenerationMismatchError),
        client.transaction() as changes,
    ):
        seen = changes.get("a")
        store.put("a", b"from elsewhere")
        changes.put("a", seen + b"2")
    assert client.get("a") == b"from elsewhere"


def test_a_window_reads_and_writes_anywhere_o60(any_store: AnyStore) -> None:
    any_store.register("w", 5000, "window")
    with any_store.window("w") as window:
        assert (window.name, window.size, window.block_size) == ("w", 5000, 512)
        assert (window.read_only, window.in_place) == (False, False)
        assert window.read(0, 5000) == bytes(5000)
        window.write(4990, b"0123456789")
        window.write(7, memoryview(b"abc"))
        window.write(0, b"")
        window.write(5000, b"")
        found = bytearray(4)
        window.read_into(4988, found)
        assert found == b"\0\x0001"
        assert window.read(5000, 0) == b""
        window.discard(4992, 3)
        window.flush()
        expected = bytes(7) + b"abc" + bytes(4980) + b"01\0\0\x0056789"
        assert any_store.get("w") == expected
        window.write(0, b"now", fua=True)
        assert any_store.get("w") == b"now" + expected[3:]
        window.write(0, b"end")
        with pytest.raises(ValueError, match="has an open window"):
            any_store.put("w", b"")
    assert any_store.get("w") == b"end" + expected[3:]
    any_store.put("w", b"put")
    with any_store.window("w") as window:
        assert window.read(0, 5) == b"put\0\0"


def test_a_window_refuses_what_a_window_refuses_o60(
    any_store: AnyStore, store: blobstore.Store
) -> None:
    any_store.register("w", 5000, "window")
    any_store.register("v", 10, "window")
    any_store.register("one", 512, "window", copies=1)
    failing = [
        lambda w: w.read(4999, 2),
        lambda w: w.read(-1, 1),
        lambda w: w.write(4999, b"12"),
        lambda w: w.write(-1, b"12"),
        lambda w: w.discard(4999, 2),
        lambda w: w.discard(-1, 2),
        lambda w: w.discard(2, -1),
        lambda _: any_store.window("a"),
        lambda _: any_store.window("none"),
        lambda _: any_store.window(""),
        lambda w: (w.close(), w.flush()),
        lambda w: w.read(0, 1),
        lambda w: w.write(0, b""),
        lambda w: w.discard(0, 1),
    ]
    with any_store.window("one") as window:
        assert window.read_only
        assert window.read(0, 512) == bytes(512)
        with pytest.raises(blobstore.StorageError, match="takes no writes"):
            window.write(0, b"1")
    mine, other = any_store.window("w"), store.window("v")
    for number, fail in enumerate(failing):
        errors = []
        for each in (other, mine):
            with pytest.raises((blobstore.StorageError, ValueError)) as info:
                fail(each)  # type: ignore[no-untyped-call]
            error = info.value
            said = str(error).replace("5000", "10") if number < 7 else str(error)
            errors.append((type(error), getattr(error, "hint", None), number < 7 or said))
        assert errors[0] == errors[1], number
    mine.close()


def test_commits_are_told_o66(any_store: AnyStore) -> None:
    any_store.register("w", 512, "window")
    with any_store.changes() as watch:
        begin = next(watch)
        assert begin == blobstore.CommitInfo(any_store.info().generation)
        any_store.put("a", b"1")
        with any_store.transaction() as changes:
            changes.rename("b", "c")
            changes.register("n", 5)
            changes.put("a", b"2")
        any_store.resize("n", 600)
        any_store.delete("n")
        with any_store.window("w") as window:
            window.write(0, b"1")
        told = [next(watch) for _ in range(5)]
        assert [one.generation for one in told] == list(
            range(begin.generation + 1, begin.generation + 6)
        )
        change = blobstore.SectionChange
        assert [set(one.changes) for one in told] == [
            {change("a", "changed")},
            {change("c", "renamed", "b"), change("n", "created"), change("a", "changed")},
            {change("n", "changed")},
            {change("n", "deleted")},
            {change("w", "changed")},
        ]
        assert not any(one.missed for one in told)
    assert list(watch) == []
    watch.close()


def test_a_watch_goes_on_where_another_ended_o67(any_store: AnyStore) -> None:
    with any_store.changes() as watch:
        began = next(watch).generation
    any_store.put("a", b"1")
    any_store.put("b", b"2")
    with any_store.changes(began + 1) as watch:
        assert next(watch) == blobstore.CommitInfo(began + 1)
        assert next(watch).changes == (blobstore.SectionChange("b", "changed"),)
    for unknown in (0, 1000):
        with any_store.changes(unknown) as watch:
            newest = any_store.info().generation
            assert next(watch) == blobstore.CommitInfo(newest, missed=True)
            any_store.put("a", b"3")
            assert next(watch).changes == (blobstore.SectionChange("a", "changed"),)


def test_a_watch_that_is_late_is_told_so_o68(any_store: AnyStore) -> None:
    with any_store.changes() as watch:
        began = next(watch).generation
        with any_store.transaction() as changes:
            for number in range(70):
                changes.register(f"n{number}", 1)
        assert next(watch) == blobstore.CommitInfo(began + 1, missed=True)


def test_a_watch_says_that_nothing_happened_o66(any_store: AnyStore) -> None:
    with any_store.changes(timeout=0.1) as watch:
        first = next(watch)
        assert [next(watch), next(watch)] == [first, first]
    with pytest.raises(ValueError, match="must be at least 0"):
        any_store.changes(-1)
    for bad in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="must be at least 0"):
            any_store.changes(timeout=bad)


def test_a_watch_is_closed_from_another_thread_o66(any_store: AnyStore) -> None:
    with any_store.changes() as watch:
        next(watch)
        closing = threading.Timer(0.3, watch.close)
        closing.start()
        assert list(watch) == []
        closing.join()
