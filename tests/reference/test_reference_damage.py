"""Both readers on the output of the writer, with parts of it damaged or set back."""

from __future__ import annotations

import itertools
import random
from typing import TYPE_CHECKING

import pytest

from tests.reference.agreement import assert_agree, each_once, theirs
from tests.reference.histories import HISTORIES, distinct, history
from tests.reference.reader import CORRUPT, Reader
from tests.support.devices import RecordingDevice, crash_states
from tests.support.effort import cases
from tests.support.stores import image, open_store, spec

if TYPE_CHECKING:
    from collections.abc import Iterator

SECTOR = 512

every_history = pytest.mark.parametrize("name", HISTORIES)
encrypted_or_not = pytest.mark.parametrize("encrypted", [False, True])
closed_or_not = pytest.mark.parametrize("close", [False, True])


# --- Damage ------------------------------------------------------------------------------------


def flipped(content: bytes) -> Iterator[bytes]:
    """One bit of some bytes; all bits of the first 8 bytes of each sector."""
    step = cases(31, 5)  # each is searched for by both readers
    for at in range(len(content)):
        if at % SECTOR >= 8 and at % step:
            continue
        for bit in range(8) if at % SECTOR < 8 else ((at // step + at // SECTOR) % 8,):
            changed = bytearray(content)
            changed[at] ^= 1 << bit
            yield bytes(changed)


@closed_or_not
@encrypted_or_not
def test_a_flipped_bit(encrypted: bool, close: bool) -> None:
    sections = [spec("a", 100, b"first"), spec("single", 40, b"alone", copies=1)]
    device = RecordingDevice(image(sections, free=4 * SECTOR + 1, encrypted=encrypted))
    store = open_store(device)
    store.put("a", b"second")
    store.register("new", 10)
    store.put("single", b"again")
    store.put("a", b"third")
    if close:
        store.close()
    assert assert_agree(flipped(device.content)) > len(device.content) // 16


@every_history
@closed_or_not
def test_lost_sectors(name: str, close: bool) -> None:
    """Heads that are gone hide items; the rules of C43 say how long those were."""
    content = history(name, close=close).device.content
    generator = random.Random(name)
    starts = range(0, len(content), SECTOR)
    pairs = [generator.sample(starts, 2) for _ in range(cases(40, 400))]

    def states() -> Iterator[bytes]:
        for lost in (*itertools.combinations(starts, 1), *pairs):
            changed = bytearray(content)
            for at in lost:
                rubbish = generator.choice((bytes(SECTOR), generator.randbytes(SECTOR)))
                changed[at : at + SECTOR] = rubbish
            yield bytes(changed)

    assert assert_agree(states()) > len(starts) // 2


# --- Replay ------------------------------------------------------------------------------------


@every_history
@closed_or_not
@encrypted_or_not
def test_parts_set_back(name: str, encrypted: bool, close: bool) -> None:
    """Headers, items, heads and sections as they were earlier."""
    past = history(name, encrypted=encrypted, close=close)
    newest = past.snapshots[-1]
    olds = [old.ljust(len(newest), b"\0") for old in past.snapshots[:-1]]
    found = Reader(newest)
    block, bounds = found.block, [0, found.block, 2 * found.block]
    for item in found.items:
        bounds.append(bounds[-1] + item.length)
    ranges = list(itertools.pairwise(bounds))
    neighbours = [(start, end) for (start, _), (_, end) in itertools.pairwise(ranges)]
    heads = [(start, start + SECTOR) for start, _ in ranges]
    places = [[part] for part in (*ranges, *neighbours, *heads, (2 * block, len(newest)))]
    places += [
        [
            (record.offset, record.offset + record.length)
            for record in found.records
            if record.meta.section_id == section
        ]
        for section in found.newest
    ]

    def states() -> Iterator[bytes]:
        for parts, old in itertools.product(places, olds):
            changed = bytearray(newest)
            for start, end in parts:
                changed[start:end] = old[start:end]
            yield bytes(changed)

    for state in each_once(states()):
        assert_agree([state])
        answered = theirs(state)
        if close and answered and not Reader(state).damaged:  # C48: nothing old is answered
            for section_name, blob in answered.items():
                assert blob in (found.blobs.get(section_name), CORRUPT)


@every_history
@closed_or_not
def test_mixtures_of_states(name: str, close: bool) -> None:
    """Sectors of different moments, which no crash leaves."""
    past = history(name, close=close)
    states = distinct(crash_states(past.device.before, past.device.log))
    size = max(map(len, states))
    states = [state.ljust(size, b"\0") for state in states]
    generator = random.Random(f"{name} {close}")

    def mixtures() -> Iterator[bytes]:
        for _ in range(cases(200, 1000)):
            mixed = bytearray(generator.choice(states))
            for _ in range(generator.choice((1, 1, 2, 3))):
                start = generator.randrange(0, len(mixed), SECTOR)
                end = min(len(mixed), start + SECTOR * generator.choice((1, 1, 2, 3, 4)))
                mixed[start:end] = generator.choice(states)[start:end]
            yield bytes(mixed)

    assert assert_agree(mixtures()) > 20


def test_nothing_old_comes_back_beside_a_lost_head() -> None:
    """C14: what an interrupted move leaves in a free item is void, if C43 (c) finds it there."""
    device = RecordingDevice(
        image([spec("big", 2000, b"big"), spec("a", 100, b"old")], free=20_480)
    )
    store = open_store(device)
    store.register("big", 2600)  # leaves room for the larger "a" in front of the present one
    store.close()
    resized = RecordingDevice(device.content)
    open_store(resized).register("a", 1100)
    for content in distinct(crash_states(device.content, resized.log)):
        after = RecordingDevice(content)
        store = open_store(after)
        store.put("a", b"new")
        store.close()
        closed = after.content
        starts = range(0, len(closed), SECTOR)
        for lost in each_once(closed[:at] + bytes(SECTOR) + closed[at + SECTOR :] for at in starts):
            assert_agree([lost])
            found = theirs(lost)
            assert found is not None
            assert found.get("a", CORRUPT) in (b"new", CORRUPT)
