"""Repair brings back what is proved, and asks about the rest (C70 to C77)."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from blobstore.container.open_container import open_container
from blobstore.container.scan import scan
from blobstore.errors import (
    BlobNotFoundError,
    CorruptBlobError,
    DamagedHeadError,
    PoisonedStoreError,
)
from formats.container.decoder import Record
from formats.container.model import HEAD_SIZE
from formats.devices.device import MemoryDevice
from formats.errors import DeviceError, FormatError
from tests.support.devices import FaultyDevice, RecordingDevice, crash_states
from tests.support.stores import CORRUPT, Contents, contents, image, open_store, spec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from blobstore.container.verification import Report
    from blobstore.store.store import Store
    from tests.support.devices import Operation

    Damage = Callable[[bytearray, int], None]

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
    for label, content, truth in list(histories())[:: 1 if how is zeroed else 6]:
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
    assert counts["proved"] > (100 if how is zeroed else 15)
    assert counts["reported"] > (80 if how is zeroed else 10)


def test_c71_one_garbled_block_of_a_head_is_mended() -> None:
    """What a flipped bit below a cipher does: 16 bytes of noise, anywhere in a head."""
    counts: Counter[bool] = Counter()
    for label, content, truth in list(histories())[9:11]:
        for offset in records(content)[:2] + heads(content)[-1:]:
            for start in range(0, HEAD_SIZE, 16):
                report, found = repaired(damaged(content, garbled(start), offset))
                if report.ok:
                    assert found == truth, (label, offset, start)
                counts[report.ok] += 1
    # What is left: a root of a generation that no other head tells of.
    assert counts[True] > 170
    assert counts[False] < 16


@pytest.mark.parametrize("bit", range(3, 4096, 331))
def test_c71_a_flipped_bit_is_mended_wherever_it_is(bit: int) -> None:
    _, content, truth = list(histories())[-1]
    for offset in heads(content):
        device = damaged(content, lambda bad, at: _flip(bad, at, bit), offset)
        report, found = repaired(device)
        assert report.ok
        assert found == truth
        assert [finding.offset for finding in report.repairs] == [offset]
        assert b"".join(_heads_of(device)) == b"".join(_heads_of(MemoryDevice(content)))


def _flip(content: bytearray, offset: int, bit: int) -> None:
    content[offset + bit // 8] ^= 1 << bit % 8


def _heads_of(device: MemoryDevice) -> list[bytes]:
    content = bytes(device.content)
    return [content[offset : offset + HEAD_SIZE] for offset in heads(content)]


def test_c73_two_lost_heads_are_proved_or_reported() -> None:
    counts: Counter[bool] = Counter()
    for label, content, truth in list(histories())[20:23:2]:
        offsets = heads(content)
        for number, first in enumerate(offsets):
            for second in offsets[number + 1 :]:
                report, found = repaired(damaged(content, zeroed, first, second))
                if report.ok:
                    assert found == truth, (label, first, second)
                assert all(blob in (truth.get(name), CORRUPT) for name, blob in found.items())
                counts[report.ok] += 1
    assert counts[True] >= 5
    assert counts[False] >= 5


def test_c73_a_lost_rename_is_proved_by_a_name_that_is_tried() -> None:
    stores = {label: (content, truth) for label, content, truth in histories()}
    content, truth = stores["4 closed"]
    newest = open_container(MemoryDevice(content)).directory.sections["c"].newest.offset
    device = damaged(content, zeroed, newest)
    assert not repaired(device)[0].ok
    assert not repaired(device, names={"other"})[0].ok
    report, found = repaired(device, names="c")
    assert report.ok
    assert found == truth


def lost(close: bool) -> tuple[bytes, int, int]:
    """Return a store, and where the newest and the older record of "a" lie."""
    device = MemoryDevice(image(SPECS, free=4096))
    store = open_store(device)
    store.put("b", b"other")
    store.put("a", b"older")
    store.put("a", b"newer")
    if close:
        store.close()
    section = open_container(MemoryDevice(device.content)).directory.sections["a"]
    return bytes(device.content), section.newest.offset, section.older.offset


@pytest.mark.parametrize("which", ["newest", "older"])
@pytest.mark.parametrize("close", [True, False], ids=["closed", "killed"])
def test_c75_a_human_may_accept_what_is_left(close: bool, which: str) -> None:
    content, newest, older = lost(close)
    device = damaged(content, zeroed, newest if which == "newest" else older)
    report, found = repaired(device)
    if which == "newest" and close:
        assert report.ok
        assert found["a"] == b"newer"
        return
    # Without consent, and with another section's, nothing is decided.
    assert not report.ok
    assert any("'a'" in problem.message for problem in report.problems)
    assert not repaired(device, accept_previous={"b"})[0].ok
    with pytest.raises(DamagedHeadError):
        open_store(device).put("b", b"new")
    highest = open_container(MemoryDevice(content)).directory.generation
    report, found = repaired(device, accept_previous={"a"})
    assert report.ok
    assert found["a"] == (b"older" if which == "newest" else b"newer")
    assert found["b"] == b"other"
    store = open_store(device)
    assert store.digest().generation > highest  # C30: what was lost is not used again
    store.put("a", b"after")
    store.close()
    assert contents(open_store(device))["a"] == b"after"


def test_c75_what_has_no_name_left_is_given_up_only_if_that_is_said() -> None:
    content, _, _ = lost(close=True)
    only = open_container(MemoryDevice(content)).directory.sections["p"].newest.offset
    device = damaged(content, zeroed, only)
    assert not repaired(device, accept_previous={"a", "b", "p"})[0].ok
    report, found = repaired(device, accept_lost=True)
    assert report.ok
    assert found == {"a": b"newer", "b": b"other"}
    store = open_store(device)
    with pytest.raises(BlobNotFoundError):
        store.get("p")
    store.register("p", 300)
    store.put("p", b"made anew")
    assert store.verify().ok


def test_c44_damage_around_a_commit_in_doubt_is_asked_about() -> None:
    """One of two members is torn away with its head: complete or not, nobody knows."""
    device = MemoryDevice(image(SPECS, free=4096))
    store = open_store(device)
    store.put("a", b"before a")
    store.put("b", b"before b")
    _both(store, "a", "b")
    content = bytes(device.content)
    sections = open_container(MemoryDevice(content)).directory.sections
    # Head and blob: nothing can prove it.
    bad = bytearray(content)
    newest = sections["a"].newest
    bad[newest.offset : newest.offset + newest.length] = bytes(newest.length)
    report, found = repaired(MemoryDevice(bad))
    assert not report.ok
    assert found["a"] == found["b"] == CORRUPT
    assert not repaired(MemoryDevice(bad), accept_previous={"a"})[0].ok
    report, found = repaired(MemoryDevice(bad), accept_previous={"a", "b"})
    assert report.ok
    assert (found["a"], found["b"]) == (b"before a", b"before b")
    # The head alone is rebuilt: the other member attests the root.
    report, found = repaired(damaged(content, zeroed, newest.offset))
    assert report.ok
    assert (found["a"], found["b"]) == (b"both a", b"both b")


def test_c72_lost_free_space_is_free_again_and_joined() -> None:
    content, _, _ = lost(close=True)
    (free,) = open_container(MemoryDevice(content)).directory.free
    device = damaged(content, zeroed, free)
    report, _ = repaired(device)
    assert report.ok
    store = open_store(device)
    store.register("new", 1500)
    store.put("new", b"n" * 1500)
    store.close()
    assert open_store(device).verify().ok


def test_a_corrupt_newest_blob_is_reported_and_not_repaired() -> None:
    content, newest, _ = lost(close=True)
    bad = bytearray(content)
    bad[newest + HEAD_SIZE] ^= 1
    device = MemoryDevice(bad)
    report, found = repaired(device, accept_previous={"a"})
    assert not report.ok
    assert found["a"] == CORRUPT
    store = open_store(device)
    with pytest.raises(CorruptBlobError):
        store.get("a")
    store.restore("a")
    assert store.get("a") == b"older"


def test_c76_header_copies_are_repaired_also_around_damaged_heads() -> None:
    content, _, older = lost(close=True)
    for copy in (0, 1):
        device = damaged(content, zeroed, copy * 512)
        report, found = repaired(device)
        assert report.ok
        assert [finding.offset for finding in report.repairs] == [copy * 512]
        assert bytes(device.content) == content
        device = damaged(content, zeroed, copy * 512, older)
        report, found = repaired(device)
        assert not report.ok
        assert [finding.offset for finding in report.repairs] == [copy * 512]
        assert found["a"] == CORRUPT


def test_repair_writes_nothing_to_a_sound_store() -> None:
    content, _, _ = lost(close=True)
    device = MemoryDevice(content)
    report, _ = repaired(device)
    assert report.ok
    assert not report.repairs
    assert bytes(device.content) == content


# ------------------------------------------------- crashes and failing devices

CASES: dict[str, tuple[Callable[[bytes], list[int]], Damage, dict[str, object]]] = {
    "rebuilt": (lambda content: [_newest(content, "a")], zeroed, {}),
    "mended": (lambda content: heads(content)[:2], garbled(96), {}),
    "rebuilt and free": (lambda content: [_newest(content, "a"), heads(content)[-1]], zeroed, {}),
    "accepted": (
        lambda content: [_newest(content, "a", older=True), 512],
        zeroed,
        {"accept_previous": {"a"}},
    ),
    "lost": (
        lambda content: [_newest(content, "p"), _newest(content, "a", older=True)],
        zeroed,
        {"accept_previous": {"a", "b"}, "accept_lost": True},
    ),
}


def _newest(content: bytes, name: str, *, older: bool = False) -> int:
    section = open_container(MemoryDevice(content)).directory.sections[name]
    return section.older.offset if older else section.newest.offset


@pytest.mark.parametrize(
    ("case", "close"),
    # Nothing attests the newest commit of a store that was killed.
    [(case, True) for case in CASES] + [(case, False) for case in ("mended", "accepted", "lost")],
)
def test_c77_repair_can_crash_anywhere(case: str, close: bool) -> None:
    places, how, consent = CASES[case]
    content, _, _ = lost(close)
    before = bytes(damaged(content, how, *places(content)).content)
    device = RecordingDevice(before)
    report = open_store(device).repair(**consent)  # type: ignore[arg-type]
    assert report.ok
    final = contents(open_store(device.content, read_only=True))
    states = 0
    for crash in crash_states(before, device.log):
        states += 1
        found = contents(open_store(crash.content, read_only=True))
        assert all(blob in (final.get(name), CORRUPT) for name, blob in found.items())
        again, ended = repaired(MemoryDevice(crash.content), **consent)
        assert again.ok
        assert ended == final
    assert states >= 4


@pytest.mark.parametrize("kind", ["read", "write", "flush"])
@pytest.mark.parametrize("case", ["mended", "rebuilt and free", "lost"])
def test_c77_repair_fails_cleanly_at_every_request(case: str, kind: Operation) -> None:
    places, how, consent = CASES[case]
    content, _, _ = lost(close=True)
    before = bytes(damaged(content, how, *places(content)).content)
    _, final = repaired(MemoryDevice(before), **consent)
    number = failures = 0
    while True:
        number += 1
        memory = MemoryDevice(before)
        device = FaultyDevice(memory, kind, number)
        with suppress(DeviceError, PoisonedStoreError, FormatError):
            open_store(device).repair(**consent)  # type: ignore[arg-type]
        if not device.failed:
            break
        failures += 1
        found = contents(open_store(bytes(memory.content), read_only=True))
        assert all(blob in (final.get(name), CORRUPT) for name, blob in found.items())
        report, ended = repaired(memory, **consent)
        assert report.ok
        assert ended == final
    assert failures >= 2
