"""What crashes and failing requests leave of windows (C62, C31, C51).

Of a buffered window: the content of the last acknowledged commit, or of a later
one, so never a write without those before it. Of one written in place: byte
by byte what was there at the last flush, or what was written since; and beside
it what was there at first.
"""

from __future__ import annotations

import random
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Literal, get_args

import pytest

import luks
from blobstore.container.initialise import initialise
from blobstore.errors import CorruptBlobError, NoPreviousBlobError, PoisonedStoreError
from blobstore.store.store import Store
from formats.devices.device import BlockDevice, MemoryDevice
from formats.errors import DeviceError
from tests.store.test_crash import check_recovery
from tests.support.devices import FaultyDevice, Operation, RecordingDevice, crash_states
from tests.support.stores import UNWRITTEN, contents, open_store
from tests.support.windows import manual_alarms, window_image, window_spec

if TYPE_CHECKING:
    from collections.abc import Callable

    from blobstore.store.windows.window import Window
    from tests.support.windows import ManualAlarm

SIZE = 2700
SECTOR = 512

#: A write (offset, bytes), or something else that happens.
Step = tuple[int, bytes] | Literal["flush", "pause", "put", "reopen"]


def random_steps(seed: int, count: int, size: int = SIZE) -> list[Step]:
    generator = random.Random(seed)
    steps: list[Step] = []
    for _ in range(count):
        offset = generator.randrange(size)
        data = generator.randbytes(min(generator.choice((1, 3, 512, 700)), size - offset))
        steps.append((offset, data))
        if generator.random() < 0.4:
            steps.append(generator.choice(("flush", "flush", "pause", "put")))
    return steps


class Expected:
    """The content of a window as the device sees it, and what may be durable of it."""

    def __init__(self, content: bytes) -> None:
        self.content = bytearray(content)
        #: Of each moment that was, or was to be, a commit.
        self.points = [bytes(content)]

    def write(self, offset: int, data: bytes) -> None:
        self.content[offset : offset + len(data)] = data

    def commit(self) -> int:
        """Note a commit; return its number."""
        self.points.append(bytes(self.content))
        return len(self.points) - 1


def run_buffered(
    device: RecordingDevice, steps: list[Step], monkeypatch: pytest.MonkeyPatch
) -> Expected:
    """Run steps on window ``w``; mark the number of each commit when it is known to be durable."""
    alarms = manual_alarms(monkeypatch)
    store = open_store(device)
    window = store.window("w")
    expected = Expected(window.read(0, SIZE))
    device.mark(0)
    for number, step in enumerate(steps):
        if isinstance(step, tuple):
            window.write(*step)
            expected.write(*step)
            continue
        committed = expected.commit()
        if step == "flush":
            window.flush()
        elif step == "pause":
            alarms[-1].advance(1000)
        elif step == "put":
            window.flush()
            device.mark(committed)
            store.put("b", b"%d" % number)
        else:
            store.close()
            store = open_store(device)
            window = store.window("w")
        device.mark(committed)
    return expected


def marked(marks: tuple[object, ...]) -> int:
    return max((mark for mark in marks if isinstance(mark, int)), default=0)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("start", [None, b"short", b"\x55" * SIZE])
def test_c62_buffered(start: bytes | None, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = random_steps(seed, 10)
    steps[len(steps) // 2 : len(steps) // 2] = ["reopen"]
    before = window_image(SIZE, start)
    device = RecordingDevice(before)
    expected = run_buffered(device, [*steps, "flush", "reopen"], monkeypatch)
    counts: Counter[str] = Counter()
    seen: set[bytes] = set()
    for crash in crash_states(before, device.log, exhaustive=6, samples=12):
        last = marked(crash.marks)
        allowed = expected.points[last : last + 2]
        counts["states"] += 1
        found = contents(open_store(crash.content, read_only=True))["w"]
        if found == UNWRITTEN:
            assert start is None
            assert last == 0
            found = b""
        assert isinstance(found, bytes)
        assert found.ljust(SIZE, b"\0") in allowed
        counts["old" if found == allowed[0] else "new"] += 1
        if crash.content not in seen:
            seen.add(crash.content)
            go_on(crash.content, found.ljust(SIZE, b"\0"))
    assert counts["states"] > 100
    assert counts["new"] > 10


def go_on(content: bytes, expected: bytes) -> None:
    """After the crash the window goes on from what is there, and commits partly again."""
    memory = MemoryDevice(content)
    with open_store(memory) as store:
        window = store.window("w")
        assert window.read(0, SIZE) == expected
        for number in range(3):
            window.write(600 * number, b"after")
            window.flush()
    reopened = open_store(memory, read_only=True)
    assert reopened.verify().ok
    found = reopened.get("w")
    assert (found[:5], found[600:605], found[1200:1205]) == (b"after",) * 3
    assert found[1205:] == expected[1205:]


def test_c60_recovery_of_a_torn_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """A torn partial commit is rolled back, and the recovery may crash as well."""
    before = window_image(SIZE, bytes(SIZE))
    device = RecordingDevice(before)
    steps: list[Step] = [
        (0, b"1" * 900),
        "flush",
        (900, b"2" * 900),
        "flush",
        (1800, b"3" * 900),
        "flush",
    ]
    run_buffered(device, steps, monkeypatch)
    states = 0
    for crash in crash_states(before, device.log, exhaustive=4, samples=6):
        found = contents(open_store(crash.content, read_only=True))
        states += check_recovery(crash.content, found)
    assert states > 200


# ---------------------------------------------------------------- in place


#: Of each byte the values that it may have.
MayBe = tuple[frozenset[int], ...]


class Bytes:
    """What each byte of a window in place may be after a crash.

    Not each sector: of several writes to one some may be lost.
    """

    def __init__(self, content: bytes) -> None:
        self.content = bytearray(content)
        self.may_be: MayBe = ()
        self.flush()

    def write(self, offset: int, data: bytes) -> None:
        self.content[offset : offset + len(data)] = data
        self.may_be = tuple(
            values | {now} for values, now in zip(self.may_be, self.content, strict=True)
        )

    def flush(self) -> None:
        self.may_be = tuple(frozenset((now,)) for now in self.content)


def is_allowed(may_be: MayBe, found: bytes) -> bool:
    return all(now in values for values, now in zip(may_be, found, strict=True))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("start", [None, b"short", b"\x55" * SIZE])
def test_c62_in_place(start: bytes | None, seed: int) -> None:
    before = window_image(SIZE, start)
    first = (start or b"").ljust(SIZE, b"\0")
    device = RecordingDevice(before)
    store = open_store(device)
    window = store.window("w", in_place=True)
    held = Bytes(first)
    device.mark(held.may_be)
    device.mark("opened")
    for step in random_steps(seed, 12):
        if isinstance(step, tuple):
            held.write(*step)
            # From before the write on: it may be torn.
            device.mark(held.may_be)
            window.write(*step)
        elif step == "put":
            store.put("b", b"x")
            held.flush()
            device.mark(held.may_be)
        elif step == "flush":
            window.flush()
            held.flush()
            device.mark(held.may_be)
    device.mark("closing")
    window.close()
    device.mark("closed")
    last = bytes(held.content)
    assert store.get("w") == last
    store.close()
    counts: Counter[str] = Counter()
    for crash in crash_states(before, device.log, exhaustive=6, samples=12):
        counts[_look(crash.content, crash.marks, first, last)] += 1
    assert counts["first"] > 10
    assert counts["last"] > 3
    assert counts["unverified"] > 100
    assert counts["unverified, nothing beside it"] > 3
    assert counts.total() > 250


def _look(content: bytes, marks: tuple[object, ...], first: bytes, last: bytes) -> str:
    """Check one crash state and say what it is."""
    store = open_store(content, read_only=True)
    found = contents(store)["w"]
    if found == UNWRITTEN:
        assert "opened" not in marks
        return "unwritten"
    if isinstance(found, bytes):
        found = found.ljust(SIZE, b"\0")
        if found == first and "opened" not in marks:
            return "first"
        assert found == last
        assert "closing" in marks
        return "last"
    assert "closed" not in marks
    (problem,) = store.verify().problems
    assert "unverified [C62]" in problem.message
    may_be = [mark for mark in marks if isinstance(mark, tuple)] or [Bytes(first).may_be]
    for in_place in (False, True):
        going_on = open_store(content)
        with going_on.window("w", in_place=in_place, accept_unverified=True) as window:
            found = window.read(0, SIZE)
            assert is_allowed(may_be[-1], found)
        assert going_on.get("w") == found
        assert going_on.verify().ok
    try:
        assert store.get("w", previous=True) == first
    except NoPreviousBlobError:
        assert "closing" in marks
        return "unverified, nothing beside it"
    return "unverified"


# -------------------------------------------------------------- in a volume

SECRET = b"secret"
_IN_VOLUME = 9000


@pytest.mark.parametrize("sector_size", [512, 4096])
@pytest.mark.parametrize("in_place", [False, True])
def test_c62_in_a_volume(sector_size: int, in_place: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sectors of the volume are torn, those with the head as well."""
    manual_alarms(monkeypatch)
    device = RecordingDevice((1 << 20) + (64 << 10))
    with luks.format(
        device,
        SECRET,
        version=2,
        sector_size=sector_size,
        kdf=luks.Pbkdf2("sha256", 1000),
        overwrite=True,
        keyslots_size=256 << 10,
        data_offset=1 << 20,
    ) as volume:
        initialise(volume, [window_spec("w", _IN_VOLUME, bytes(_IN_VOLUME))], encrypted=True)
    before = device.content
    device.log.clear()
    states = [bytes(_IN_VOLUME)]
    with luks.open(device, SECRET, read_only=False) as volume:
        store = Store.on_device(volume, encrypted=True)
        window = store.window("w", in_place=in_place)
        device.mark(0)
        for offset in (0, 3000, 3584, 8999):
            content = bytearray(states[-1])
            content[offset : offset + 700] = bytes([len(states)]) * len(
                content[offset : offset + 700]
            )
            window.write(offset, content[offset : offset + 700])
            window.flush()
            states.append(bytes(content))
            device.mark(len(states) - 1)
        store.close()
    seen: Counter[int] = Counter()
    for crash in crash_states(before, device.log, exhaustive=3, samples=10):
        last = marked(crash.marks)
        with luks.open(MemoryDevice(crash.content), SECRET) as volume:
            store = Store.on_device(volume, encrypted=True, read_only=True)
            found = _read_all(store)
        allowed = states[last : last + 2]
        if in_place:
            for start in range(0, _IN_VOLUME, SECTOR):
                # The blob starts at a sector of the device.
                place = slice(start, start + SECTOR)
                assert found[place] in {state[place] for state in allowed}
        else:
            assert found in allowed
        seen[last] += 1
    assert seen.total() > 150
    assert set(seen) == set(range(len(states)))


def _read_all(store: Store) -> bytes:
    window = store.window("w", accept_unverified=True)
    return window.read(0, window.size)


# ---------------------------------------------------------- failing requests


@pytest.mark.parametrize("persistent", [False, True], ids=["once", "for ever"])
@pytest.mark.parametrize("kind", get_args(Operation))
@pytest.mark.parametrize("in_place", [False, True])
def test_every_failing_request(
    in_place: bool, kind: Operation, persistent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    alarms = manual_alarms(monkeypatch)
    before = window_image(SIZE, b"start")
    number = 0
    told = 0
    while True:
        number += 1
        memory = MemoryDevice(before)
        device = FaultyDevice(memory, kind, number, persistent=persistent)
        alarms.clear()
        session = _Session(device, alarms, in_place=in_place)
        told += not session.run()
        if not device.failed:
            break
        session.check(open_store(memory))
    assert session.acknowledged == 3
    if kind in ("read", "flush"):
        assert told


class _Session:
    """A session that may fail anywhere, and what then has to be there."""

    def __init__(self, device: BlockDevice, alarms: list[ManualAlarm], *, in_place: bool) -> None:
        self._device = device
        self._alarms = alarms
        self._in_place = in_place
        self._expected = Expected(b"start".ljust(SIZE, b"\0"))
        self._held = Bytes(self._expected.points[0])
        self.acknowledged = 0

    def run(self) -> bool:
        """Return whether everything was acknowledged."""
        try:
            store = open_store(self._device)
        except DeviceError:
            return False
        try:
            self._use(store)
        except (DeviceError, PoisonedStoreError, CorruptBlobError):
            # A head that cannot be read is damage (C43).
            with suppress(DeviceError, PoisonedStoreError):
                store.close()
            return False
        return True

    def _use(self, store: Store) -> None:
        window = store.window("w", in_place=self._in_place)
        self._write(window, 0, b"1" * 800)
        self._durable(window.flush)
        self._write(window, 1000, b"2" * 800)
        if self._in_place:
            self._durable(window.flush)
        else:
            self._durable(lambda: self._after_a_pause(window))
        store.put("b", b"new")
        self._write(window, 500, b"3" * 800)
        self._durable(store.close)

    def _after_a_pause(self, window: Window) -> None:
        self._alarms[-1].advance(1000)
        window.flush()  # has nothing to do but to tell what failed

    def _write(self, window: Window, offset: int, data: bytes) -> None:
        self._expected.write(offset, data)
        self._held.write(offset, data)
        window.write(offset, data)

    def _durable(self, step: Callable[[], object]) -> None:
        point = self._expected.commit()
        step()
        self.acknowledged = point
        self._held.flush()

    def check(self, store: Store) -> None:
        try:
            found = store.get("w").ljust(SIZE, b"\0")
        except CorruptBlobError:
            assert self._in_place
            with store.window("w", accept_unverified=True) as window:
                found = window.read(0, SIZE)
            assert is_allowed(self._held.may_be, found)
            return
        points = self._expected.points
        if self._in_place:
            # As it was, or as it was closed.
            assert found in (points[0], points[-1])
            assert found == points[-1] or not self.acknowledged
        else:
            assert found in points[self.acknowledged :]
