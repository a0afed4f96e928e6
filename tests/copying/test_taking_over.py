"""Interrupts and failing devices while a store is followed and taken over."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import blobstore
from tests.support.effort import cases
from tests.support.interrupts import InterruptPoints

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    with blobstore.create(path, {"a": 500}, encrypted=False, free=0) as store:
        store.put("a", b"state")
    return path


def test_an_interrupt_while_a_store_is_taken_leaves_it_free_o178_o179(image: Path) -> None:
    def take(store: blobstore.Store) -> None:
        store.follow()
        store.take_over()

    with blobstore.open(image, released=True, direct=True) as first:
        points = InterruptPoints(lambda: take(first))
    for point in points.chosen(cases(80, 2000)):
        waiting = blobstore.open(image, released=True, direct=True)
        with pytest.raises(KeyboardInterrupt), points.interrupted_at(point):
            take(waiting)
            raise KeyboardInterrupt  # where the call ends before the point
        waiting.take_over()
        waiting.put("a", b"taken")
        waiting.close()
        with blobstore.open(image, direct=True) as again:
            assert again.get("a") == b"taken"
            assert again.verify().ok


def test_what_is_read_while_another_process_writes_is_one_state_o179(image: Path) -> None:
    with (
        blobstore.open(image, direct=True) as owner,
        blobstore.open(image, released=True, direct=True) as waiting,
    ):
        for number in range(cases(50, 2000)):
            owner.put("a", b"%d" % number)
            assert waiting.follow() == owner.info().generation
            assert waiting.get("a") == b"%d" % number
        owner.register("b", 100)
        generation = owner.info().generation
        assert waiting.follow() == generation
        assert "b" in waiting
