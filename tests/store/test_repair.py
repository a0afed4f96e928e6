"""Repair brings back what is proved, and asks about the rest (C70 to C77)."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest

from blobstore.scan import scan
from formats.container import HEAD_SIZE
from formats.container_decoder import Record
from formats.device import MemoryDevice
from tests.support.stores import CORRUPT, Contents, contents, image, open_store, spec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from blobstore.store import Store
    from blobstore.verification import Report

    Damage = Callable[[bytearray, int], None]

#: What `contents` says of a store, and which of its sections may be lost.
SPECS = [spec("a", 700), spec("b", 3000, b"first b"), spec("p", 300, b"p", copies=1)]


def zeroed(content: bytearray, offset: int) -> None:
    content[offset : offset + HEAD_SIZE] = bytes(HEAD_SIZE)


def noise(content: bytearray, offset: int) -> None:
    content[offset : offset + HEAD_SIZE] = bytes(range(1, 256)) * 2 + b"\xa1\xa2"


def garbled(start: int) -> Damage:
    """Return what one damaged block of a cipher does."""

    def damage(content: bytearray, offset: int) -> None:
        content[offset + start : offset + start + 16] = bytes(
            byte ^ 0xA5 ^ number
            for number, byte in enumerate(content[offset + start : offset + start + 16])
        )

    return damage


def heads(content: bytes) -> list[int]:
    return [offset for offset, _ in scan(MemoryDevice(content)).items]


def records(content: bytes) -> list[int]:
    return [o for o, item in scan(MemoryDevice(content)).items if isinstance(item, Record)]


def damaged(content: bytes, how: Damage, *offsets: int) -> MemoryDevice:
    bad = bytearray(content)
    for offset in offsets:
        how(bad, offset)
    return MemoryDevice(bad)


def histories() -> Iterator[tuple[str, bytes, Contents]]:
    """Yield stores after each step of a life, closed and killed, with what they hold."""
    steps: list[Callable[[Store], object]] = [
        lambda store: store.put("a", b"1" * 600),
        lambda store: store.put("b", b"2" * 2000 + bytes(40)),
        lambda store: store.put("a", b"3"),
        lambda store: store.put("b", b""),
        lambda store: store.rename("b", "c"),
        lambda store: store.register("new", 900),
        lambda store: store.put("new", b"n" * 900),
        lambda store: store.register("a", 1500),
        lambda store: store.put("p", b"q" * 300),
        lambda store: _both(store, "a", "c"),
        lambda store: store.put("c", b"5" * 100),
        lambda store: store.delete("new"),
        lambda store: store.put("a", b"6" * 1024),
    ]
    device = MemoryDevice(image(SPECS, free=16384))
    yield "new", bytes(device.content), contents(open_store(bytes(device.content)))
    for number, step in enumerate(steps):
        store = open_store(device)
        step(store)
        found = contents(store)
        yield f"{number} killed", bytes(device.content), found
        store.close()
        yield f"{number} closed", bytes(device.content), found
    store = open_store(device)
    for number, step in enumerate((steps[0], steps[9], steps[2])):
        step(store)
        yield f"late {number}", bytes(device.content), contents(store)


def _both(store: Store, *names: str) -> None:
    with store.transaction() as changes:
        for name in names:
            changes.put(name, b"both " + name.encode())


def repaired(device: MemoryDevice, **consent: object) -> tuple[Report, Contents]:
    """Repair a store; return the report, and what a reader finds afterwards."""
    store = open_store(device)
    report = store.repair(**consent)  # type: ignore[arg-type]
    assert report.ok == store.verify().ok or report.problems
    store.close()
    return report, contents(open_store(bytes(device.content), read_only=True))


@pytest.mark.parametrize("how", [zeroed, noise], ids=["zeros", "noise"])
def test_c73_each_lost_head_is_proved_or_reported(how: Damage) -> None:
    """Whatever head is lost at whatever moment of a life: never an older blob without consent."""
    counts: Counter[str] = Counter()
    for label, content, truth in histories():
        for offset in heads(content):
            device = damaged(content, how, offset)
            report, found = repaired(device)
            if report.ok:
                assert found == truth, (label, offset)
                assert report.repairs
                counts["proved"] += 1
                continue
            counts["reported"] += 1
            assert open_store(device, read_only=True).info().damaged_heads == (offset,)
            for name, blob in found.items():
                assert blob in (truth.get(name), CORRUPT), (label, offset, name)
            # The repair that could do nothing changed nothing that is read.
            before = contents(open_store(damaged(content, how, offset), read_only=True))
            assert found == before
    assert counts["proved"] > 90
    assert counts["reported"] > 50
