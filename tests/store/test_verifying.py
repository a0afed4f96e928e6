"""Verifying a store that others use (O153)."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest

import blobstore
from blobstore.container import verification
from blobstore.container.verification import Verified

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from blobstore.container.sections import Copy

SIZE, COUNT = 100_000, 30


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    with blobstore.create(path, {f"s{n}": SIZE for n in range(COUNT)}, encrypted=False) as store:
        for number in range(COUNT):
            store.put(f"s{number}", bytes([number]) * SIZE)
            store.put(f"s{number}", bytes([number + 1]) * SIZE)
    return path


@pytest.fixture
def store(image: Path) -> Iterator[blobstore.Store]:
    with blobstore.open(image, direct=True) as opened:
        yield opened


def damage(image: Path, number: int) -> None:
    content = image.read_bytes()
    place = content.index(bytes([number + 1]) * SIZE)
    with image.open("r+b") as file:
        file.seek(place + 7)
        file.write(b"!")


def test_o153_others_use_the_store_meanwhile(store: blobstore.Store) -> None:
    done_at: list[float] = []
    putting = threading.Thread(target=lambda: store.put("s0", b"new"))

    def progress(done: int, total: int) -> None:
        if not putting.ident:
            putting.start()
        time.sleep(0.02)  # so that each section is more than one look
        done_at.append(done / total)
        if not putting.is_alive() and done < total:
            finished.add("early")

    finished: set[str] = set()
    report = store.verify(progress)
    putting.join()
    assert finished == {"early"}
    assert done_at == sorted(done_at)
    assert done_at[-1] == 1
    assert (report.ok, report.sections, report.records) == (True, COUNT, 2 * COUNT)
    assert store.get("s0") == b"new"


def test_o153_what_changes_meanwhile_is_read_again(
    store: blobstore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    original = verification._problem_of

    def problem_of(container: object, copy: Copy, advance: object) -> str:
        read.append(copy.identity.name)
        return original(container, copy, advance)  # type: ignore[arg-type]

    monkeypatch.setattr(verification, "_problem_of", problem_of)
    look = Verified.look

    def look_and_put(self: Verified, seconds: float) -> bool:
        more = look(self, seconds)
        if not more:
            store.put("s3", b"changed")
        return more

    monkeypatch.setattr(Verified, "look", look_and_put)
    assert store.verify().ok
    assert len(read) == 2 * COUNT + 1  # each copy once, and the one that was put
    assert read[-1] == "s3"


def test_o153_damage_is_found_once(store: blobstore.Store, image: Path) -> None:
    damage(image, 5)
    report = store.verify()
    assert [(one.name, "C23" in one.message) for one in report.problems] == [("s5", True)]
    assert (report.records, report.blob_bytes) == (2 * COUNT, 2 * COUNT * SIZE)


def test_o153_a_store_that_is_closed_meanwhile_says_so(
    store: blobstore.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look_and_close(_self: Verified, _seconds: float) -> bool:
        threading.Thread(target=store.close).start()
        return True

    monkeypatch.setattr(Verified, "look", look_and_close)
    with pytest.raises(ValueError, match="closed"):
        store.verify()


def test_o153_in_a_transaction_it_is_of_that_moment(store: blobstore.Store) -> None:
    with store.transaction() as changes:
        changes.put("s1", b"x")
        assert store.verify().ok
