"""Our reader against one that was written from `spec/` alone, on what our writer leaves behind."""

from __future__ import annotations

import functools
import itertools
import random
from typing import TYPE_CHECKING, Literal

import pytest

from tests.reference.agreement import REFUSED, assert_agree, ours, theirs
from tests.reference.reader import CORRUPT, Reader
from tests.reference.syntax import is_valid_der
from tests.support.devices import Flush, RecordingDevice, crash_states
from tests.support.stores import contents, image, open_store, spec

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tests.support.devices import CrashState

Operation = (
    tuple[Literal["put"], str, bytes]
    | tuple[Literal["register"], str, int]
    | tuple[Literal["close"]]
)
SECTOR = 512


PUTS: list[Operation] = [
    ("put", "a", b"second" * 90),
    ("put", "single", b"overwritten in place"),
    ("put", "never", b"now"),
    ("close",),
    ("put", "a", b""),
    ("put", "a", b"fourth"),
]
CREATES: list[Operation] = [
    ("put", "a", b"second"),
    ("register", "new", 700),
    ("put", "new", b"its first"),
    ("register", "newer", 10),
    ("put", "new", b"its second"),
]
GROWS: list[Operation] = [
    ("register", "a", 1100),
    ("put", "a", b"long" * 250),
    ("register", "never", 513),
    ("register", "a", 1700),
    ("put", "a", b"longer" * 250),
    ("put", "never", b"at last"),
]


def mixed(generator: random.Random) -> list[Operation]:
    """Return operations on sections that come and grow; the device has blocks of 1024."""
    sizes = {"a": 600, "single": 40, "never": 10}
    operations: list[Operation] = []
    for number in range(16):
        match generator.randrange(8):
            case 0:
                operations.append(("close",))
            case 1 if len(sizes) < 6:
                sizes[f"new {number}"] = generator.choice((0, 100, 513, 1500))
                operations.append(("register", f"new {number}", sizes[f"new {number}"]))
            case 2:
                name = generator.choice(list(sizes))
                sizes[name] += generator.choice((1, 400))
                operations.append(("register", name, sizes[name]))
            case _:
                name = generator.choice(list(sizes))
                blob = generator.randbytes(generator.randint(0, sizes[name]))
                operations.append(("put", name, blob))
    return operations


HISTORIES = {
    "puts": PUTS,
    "creates": CREATES,
    "grows": GROWS,
    "mixed": mixed(random.Random(1)),
    "mixed again": mixed(random.Random(2)),
}
SECTIONS = [spec("a", 600, b"first"), spec("single", 40, b"alone", copies=1), spec("never", 10)]


class History:
    """What a store went through, and what was on its device after each step."""

    def __init__(self, name: str, *, encrypted: bool, close: bool) -> None:
        block_size, free = (1024, 50_000) if name.startswith("mixed") else (512, 13_000)
        before = image(SECTIONS, block_size=block_size, free=free, encrypted=encrypted)
        self.device = RecordingDevice(before)
        self.snapshots = [self.device.content]
        store = open_store(self.device)
        for operation in HISTORIES[name]:
            if operation[0] == "put":
                store.put(operation[1], operation[2])
            elif operation[0] == "close":
                store.close()
                self.snapshots.append(self.device.content)
                store = open_store(self.device)
            else:
                store.register(operation[1], operation[2])
            self.snapshots.append(self.device.content)
        if close:
            store.close()
            self.snapshots.append(self.device.content)


@functools.cache
def history(name: str, *, encrypted: bool = False, close: bool = True) -> History:
    return History(name, encrypted=encrypted, close=close)


def distinct(states: Iterable[CrashState]) -> list[bytes]:
    """Return the different contents in their order."""
    return list(dict.fromkeys(state.content for state in states))


every_history = pytest.mark.parametrize("name", HISTORIES)
encrypted_or_not = pytest.mark.parametrize("encrypted", [False, True])
closed_or_not = pytest.mark.parametrize("close", [False, True])


# --- What the writer writes --------------------------------------------------------------------


@encrypted_or_not
@pytest.mark.parametrize("block_size", [1 << power for power in range(9, 17)])
def test_fresh_images(block_size: int, encrypted: bool) -> None:
    names = {"n": b"", "ü" * 100: b"x" * 513, "z": b"y" * 70_000}
    specs = [spec(name, len(blob), blob) for name, blob in names.items()]
    for chosen, free in itertools.product(([], specs[:1], specs), (0, 1, 200_000)):
        content = image(chosen, block_size=block_size, free=free, encrypted=encrypted)
        assert is_valid_der(content)
        assert theirs(content) == ours(content) == {s.name: names[s.name] for s in chosen}
        assert theirs(content + bytes(block_size)) == ours(content + b"\xff" * 512)  # C2
        for copy in (0, 1):  # C40: one header copy is enough
            one = bytearray(content)
            one[copy * block_size : (copy + 1) * block_size] = bytes(block_size)
            assert theirs(bytes(one)) == ours(bytes(one)) == ours(content)
        none = bytes(2 * block_size) + content[2 * block_size :]
        assert theirs(none) is ours(none) is REFUSED


@pytest.mark.parametrize("length", range(1, 201))
def test_every_length_of_name(length: int) -> None:
    """C7: the NULL where the padding cannot have the length it needs."""
    content = image([spec("n" * length, 5, b"12345")], encrypted=False)
    assert is_valid_der(content)
    assert theirs(content) == ours(content) == {"n" * length: b"12345"}


@every_history
@encrypted_or_not
def test_states_between_commits_are_der(name: str, encrypted: bool) -> None:
    past = history(name, encrypted=encrypted)
    assert all(map(is_valid_der, past.snapshots))
    assert_agree(past.snapshots)
    # Not only between commits: whenever everything has been flushed.
    for state in crash_states(past.device.before, past.device.log, exhaustive=0, samples=1):
        if isinstance(past.device.log[state.point - 1], Flush) and state.landed == 0:
            assert is_valid_der(state.content)


# --- Crashes -----------------------------------------------------------------------------------


@every_history
@encrypted_or_not
def test_every_crash_state_of_a_history(name: str, encrypted: bool) -> None:
    past = history(name, encrypted=encrypted)
    states = distinct(crash_states(past.device.before, past.device.log))
    assert_agree(states)
    assert all(map(ours, states)), "a crash lost the store"


@every_history
def test_recovery_changes_nothing_that_is_read(name: str) -> None:
    """C60: a reader acts as if recovery had happened, and it may crash as well."""
    past = history(name)
    for content in distinct(crash_states(past.device.before, past.device.log, exhaustive=4)):
        before = theirs(content)
        device = RecordingDevice(content)
        store = open_store(device)
        store.put("never", b"recovered")
        after = contents(store)
        assert theirs(device.content) == after
        assert before is not None
        assert {**before, "never": b"recovered"} == after
        crashed = distinct(crash_states(content, device.log, exhaustive=2, samples=2))
        assert_agree(crashed)
        assert all(theirs(state) in (before, after) for state in crashed)


# --- Damage ------------------------------------------------------------------------------------


def flipped(content: bytes) -> Iterator[bytes]:
    """One bit of every byte; all bits of the first 8 bytes of each sector."""
    for at in range(len(content)):
        for bit in range(8) if at % SECTOR < 8 else ((at * 5 + at // SECTOR) % 8,):
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
    assert assert_agree(flipped(device.content)) > len(device.content)


@every_history
@closed_or_not
def test_lost_sectors(name: str, close: bool) -> None:
    """Heads that are gone hide items; the rules of C43 say how long those were."""
    content = history(name, close=close).device.content
    generator = random.Random(name)
    starts = range(0, len(content), SECTOR)
    pairs = list(itertools.combinations(starts, 2))
    for lost in (*itertools.combinations(starts, 1), *generator.sample(pairs, 400)):
        changed = bytearray(content)
        for at in lost:
            rubbish = generator.choice((bytes(SECTOR), generator.randbytes(SECTOR)))
            changed[at : at + SECTOR] = rubbish
        assert_agree([bytes(changed)])


# --- Replay ------------------------------------------------------------------------------------


@every_history
@closed_or_not
@encrypted_or_not
def test_parts_set_back(name: str, encrypted: bool, close: bool) -> None:
    """Headers, items, heads and sections as they were earlier."""
    past = history(name, encrypted=encrypted, close=close)
    newest, olds = past.snapshots[-1], past.snapshots[:-1]
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
    for parts, old in itertools.product(places, olds):
        changed = bytearray(newest)
        for start, end in parts:
            changed[start:end] = old[start:end]
        state = bytes(changed)
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
    generator = random.Random(f"{name} {close}")
    for _ in range(1000):
        mixed = bytearray(generator.choice(states))
        for _ in range(generator.choice((1, 1, 2, 3))):
            start = generator.randrange(0, len(mixed), SECTOR)
            end = min(len(mixed), start + SECTOR * generator.choice((1, 1, 2, 3, 4)))
            mixed[start:end] = generator.choice(states)[start:end]
        assert_agree([bytes(mixed)])


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
        for at in range(0, len(content), SECTOR):
            lost = after.content[:at] + bytes(SECTOR) + after.content[at + SECTOR :]
            assert_agree([lost])
            found = theirs(lost)
            assert found is not None
            assert found.get("a", CORRUPT) in (b"new", CORRUPT)
