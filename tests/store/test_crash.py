"""Whatever a crash leaves holds exactly the old or the new state (C31, C44, C52, C55, C59, C60).

A scenario runs on a recording device. Each crash state of its log is opened:
it must show the state acknowledged last, or the one being written. Then the
recovery of that state is crashed in turn.
"""

from __future__ import annotations

import itertools
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from blobstore.container.initialise import container_size, initialise
from blobstore.container.open_container import open_container
from formats.devices.device import MemoryDevice
from formats.errors import FormatError
from tests.support.devices import CrashState, RecordingDevice, crash_states
from tests.support.stores import CORRUPT, UNWRITTEN, Contents, contents, image, open_store, spec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from blobstore.store.store import Store
    from blobstore.store.transaction import Transaction


def put(name: str, blob: bytes) -> Callable[[Store], object]:
    return lambda store: store.put(name, blob)


def register(name: str, size: int) -> Callable[[Store], object]:
    return lambda store: store.register(name, size)


def rename(name: str, new: str) -> Callable[[Store], object]:
    return lambda store: store.rename(name, new)


def delete(name: str) -> Callable[[Store], object]:
    return lambda store: store.delete(name)


def together(*steps: Callable[[Transaction], object]) -> Callable[[Store], object]:
    """Return steps as one transaction."""

    def step(store: Store) -> None:
        with store.transaction() as changes:
            for change in steps:
                change(changes)

    return step


def reopen(store: Store) -> None:
    store.close()


class HalfBacked(RecordingDevice):
    """Has space of its own for what it begins with, and finds some for the rest when asked."""

    def backed_ranges(self, offset: int, size: int) -> Iterator[tuple[int, int]]:
        end = min(offset + size, self.size // 2)
        if offset < end:
            yield offset, end - offset

    def reserve(self, offset: int, size: int, /) -> None:
        """Find it."""


def run(
    before: bytes,
    steps: list[Callable[[Store], object]],
    kind: type[RecordingDevice] = RecordingDevice,
) -> tuple[RecordingDevice, list[Contents]]:
    """Run a scenario; return the recording and the state after each step, marked by number."""
    device = kind(before, resizable=True)
    store = open_store(device)
    states = [contents(store)]
    device.mark(0)
    for number, step in enumerate(steps, 1):
        step(store)
        if step is reopen:
            store = open_store(device)
        states.append(contents(store))
        device.mark(number)
    return device, states


def acknowledged(state: CrashState) -> int:
    return max((mark for mark in state.marks if isinstance(mark, int)), default=0)


def check(
    before: bytes,
    steps: list[Callable[[Store], object]],
    kind: type[RecordingDevice] = RecordingDevice,
    **bounds: int,
) -> Counter[str]:
    """Check every crash state of a scenario, and of the recovery of each distinct one."""
    device, states = run(before, steps, kind)
    counts: Counter[str] = Counter()
    seen: set[bytes] = set()
    for crash in crash_states(before, device.log, **bounds):
        counts["states"] += 1
        last = acknowledged(crash)
        allowed = states[last : last + 2]
        found = contents(open_store(crash.content, read_only=True))
        assert found in allowed, f"{crash.point} {crash.landed}: {found} is none of {allowed}"
        counts["old" if found == allowed[0] else "new"] += 1
        if crash.content in seen:
            continue
        seen.add(crash.content)
        counts["recovery states"] += check_recovery(crash.content, found)
    # Each step was seen to have happened before it was acknowledged.
    assert counts["new"] >= sum(a != b for a, b in itertools.pairwise(states))
    return counts


def check_recovery(content: bytes, found: Contents) -> int:
    """Crash the recovery of one state at every point; what was found must stay."""
    device = RecordingDevice(content)
    store = open_store(device)
    assert contents(store) == found
    store.verify()
    store.close()
    states = 0
    seen: set[bytes] = set()  # most sectors are written as they were
    for crash in crash_states(content, device.log, exhaustive=4, samples=8):
        states += 1
        if crash.content not in seen:
            seen.add(crash.content)
            assert contents(open_store(crash.content, read_only=True)) == found
    reopened = open_store(device.content, read_only=True)
    assert contents(reopened) == found
    assert reopened.verify().ok
    assert reopened.info().clean
    return states


SMALL = [spec("a", 2000), spec("b", 100, b"first")]


def test_c31_put_on_small_blocks_exhaustively() -> None:
    """Every subset of the sectors of every put, up to eight of them."""
    counts = check(
        image([spec("a", 3500), spec("b", 100, b"first")]),
        [put("a", b"1" * 3500), put("a", b"2" * 600), put("b", b""), put("a", b"3" * 3000)],
    )
    assert counts["states"] >= 400


def test_c31_put_on_page_blocks_sampled() -> None:
    """Larger than any number of subsets: sampled with a fixed seed."""
    counts = check(
        image([spec("tpm", 70_000)], block_size=4096),
        [put("tpm", bytes(range(256)) * 270), put("tpm", b"2" * 70_000), put("tpm", b"3" * 4000)],
        samples=40,
    )
    assert counts["states"] > 300


def test_c58_close_and_reopen() -> None:
    counts = check(
        image(SMALL),
        [put("a", b"1"), reopen, put("a", b"2"), put("b", b"3"), reopen, put("a", b"4")],
    )
    assert counts["states"] > 30


def test_c52_create() -> None:
    counts = check(
        image(SMALL, free=8192),
        [
            register("new", 600),
            put("new", b"n"),
            put("a", b"1" * 2000),
            register("second", 10),
            reopen,
            put("second", b"s"),
        ],
    )
    assert counts["states"] > 100


def test_c52_an_extent_in_the_middle_of_a_free_item() -> None:
    """Where only the first half has space of its own."""
    counts = check(
        image(SMALL, free=32768),
        [
            register("new", 600),
            put("new", b"n"),
            register("second", 10),
            reopen,
            register("new", 1200),
            put("a", b"1" * 2000),
            delete("second"),
            register("third", 9000),
        ],
        HalfBacked,
    )
    assert counts["states"] > 100


def test_c55_resize() -> None:
    counts = check(
        image(SMALL, free=16384),
        [
            put("a", b"1" * 700),
            register("a", 2500),
            put("a", b"2" * 2500),
            put("b", b"2"),
            register("b", 600),
            register("a", 3600),
            reopen,
            put("a", b"3" * 3600),
        ],
        exhaustive=6,
        samples=24,
    )
    assert counts["states"] >= 400


def test_c53_delete_and_c54_rename() -> None:
    counts = check(
        image([*SMALL, spec("p", 600, b"p", copies=1)], free=4096),
        [
            put("a", b"1" * 1500),
            rename("b", "c"),
            delete("a"),
            put("c", b"2"),
            rename("c", "a"),
            register("new", 900),
            reopen,
            delete("new"),
            delete("a"),
        ],
    )
    assert counts["states"] > 150


def test_c31_transactions() -> None:
    counts = check(
        image([*SMALL, spec("p", 600, b"p", copies=1)], free=16384),
        [
            together(lambda t: t.put("a", b"1" * 1500), lambda t: t.put("b", b"1")),
            together(lambda t: t.put("a", b"2"), lambda t: t.register("new", 700)),
            together(
                lambda t: t.put("new", b"3" * 700),
                lambda t: t.rename("a", "z"),
                lambda t: t.resize("b", 900),
                lambda t: t.put("b", b"3" * 900),
            ),
            reopen,
            together(
                lambda t: t.delete("z"),
                lambda t: t.register("p", 1000),
                lambda t: t.register("a", 100),
                lambda t: t.put("a", b"4"),
                lambda t: t.put("new", b"4"),
            ),
        ],
        exhaustive=6,
        samples=32,
    )
    assert counts["states"] > 500


def test_c55_compaction() -> None:
    specs = [spec(name, 700, name.encode() * 50) for name in "abcdef"]
    before = MemoryDevice(image(specs, free=4096))
    with open_store(before) as store:
        store.delete("a")
        store.delete("c")
        store.register("p", 100, copies=1)
    counts = check(
        bytes(before.content),
        [lambda store: store.compact(), put("f", b"1"), delete("b"), lambda store: store.compact()],
        exhaustive=5,
        samples=16,
    )
    assert counts["states"] > 100


def test_c57_grow() -> None:
    counts = check(
        image(SMALL, free=1024),
        [
            put("a", b"1" * 700),
            register("large", 2500),
            put("large", b"2" * 2500),
            lambda store: store.grow(store.info().size + 4096),
            register("a", 3600),
            reopen,
            delete("large"),
        ],
        exhaustive=6,
        samples=24,
    )
    assert counts["states"] > 200


@pytest.mark.parametrize("lost", ["head", "framing"])
def test_c14_nothing_in_a_free_item_with_a_damaged_head_passes_for_a_section(lost: str) -> None:
    """A crash may have left records there; a search behind the damage finds them (C43)."""
    before = image(SMALL, free=16384)
    steps = [register("new", 600), register("a", 2500), put("b", b"2")]
    device, states = run(before, steps)
    damages = 0
    for crash in crash_states(before, device.log, exhaustive=4, samples=8):
        # As after the crash, and after a writer that went on.
        memory = MemoryDevice(crash.content)
        store = open_store(memory)
        store.put("b", b"after the crash")
        store.close()
        for content in (crash.content, bytes(memory.content)):
            truth = contents(open_store(content, read_only=True))
            for offset in open_container(MemoryDevice(content)).directory.free:
                bad = bytearray(content)
                bad[offset : offset + 512] = bytes(512)
                if lost == "head":
                    bad[offset : offset + 8] = content[offset : offset + 8]
                damages += 1
                for name, found in contents(open_store(bytes(bad), read_only=True)).items():
                    assert found in (truth.get(name), CORRUPT)
    assert damages > 100
    assert states[-1] == {"a": UNWRITTEN, "b": b"2", "new": UNWRITTEN}


def test_c32_a_single_copy_is_old_new_or_corrupt_and_nothing_else() -> None:
    before = image([spec("p", 900, b"old" * 300, copies=1), spec("a", 100, b"a")])
    device = RecordingDevice(before)
    store = open_store(device)
    store.put("p", b"new" * 300)
    seen = Counter(
        str(contents(open_store(crash.content, read_only=True))["p"][:3])
        for crash in crash_states(before, device.log)
    )
    assert set(seen) == {str(b"old"), str(b"new"), "cor"}


@pytest.mark.parametrize("block_size", [512, 4096])
@pytest.mark.parametrize("old_block_size", [None, 512, 8192])
def test_c59_initialise(block_size: int, old_block_size: int | None) -> None:
    """A device holds no container, the old one, or the new one."""
    specs = [spec("a", 3000), spec("b", 10, b"content"), spec("c", 90_000, copies=1)]
    size = container_size(specs, block_size=block_size, free=20_000)
    old = [spec("old", 1000, b"old")]
    before = bytes(size)
    if old_block_size:
        before = image(old, block_size=old_block_size, free=50_000).ljust(size, b"\0")
    device = RecordingDevice(before)
    initialise(device, specs, encrypted=False, block_size=block_size)
    device.mark("done")
    outcomes: Counter[str] = Counter()
    for crash in crash_states(before, device.log, samples=40):
        try:
            found = contents(open_store(crash.content))
        except FormatError as error:
            assert "done" not in crash.marks
            outcomes[type(error).__name__] += 1
            continue
        if set(found) <= {"old"}:
            # The old container, its items perhaps already damaged.
            assert "done" not in crash.marks
            assert found.get("old", CORRUPT) in (b"old", CORRUPT)
            outcomes["old"] += 1
        else:
            assert found == {"a": "unwritten", "b": b"content", "c": "unwritten"}
            outcomes["new"] += 1
    assert outcomes["new"] >= 3
    assert bool(outcomes["old"]) == bool(old_block_size)
    assert outcomes.total() > 100
