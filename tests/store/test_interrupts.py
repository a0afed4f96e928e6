"""C63: an interrupt at any bytecode of anything that writes loses and falsifies nothing.

Each call is interrupted before each of its bytecodes in turn. Then the same store is
read, changed and closed, and what is on the device is opened anew: the call happened
or it did not, and what was acknowledged after it is there. CI tries a sample of the
points; `BLOBSTORE_EVERY_INTERRUPT=1` tries all, `=classes` one of each kind.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple, NoReturn

import pytest

from blobstore.errors import (
    BlobNotFoundError,
    CorruptBlobError,
    PoisonedStoreError,
    UnwrittenBlobError,
)
from formats.container.model import Kind
from formats.devices.device import MemoryDevice
from formats.process import OwnedLock, Owner
from tests.support.devices import RecordingDevice, crash_states
from tests.support.interrupts import InterruptPoints
from tests.support.stores import CORRUPT, UNWRITTEN, Contents, contents, image, open_store, spec

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from blobstore.store.store import Store

    Interrupt = AbstractContextManager[object]

SIZE = 1500
SPECS = [
    spec("a", 700, b"old a"),
    spec("b", 100, b"old b"),
    spec("c", 100, b"old c"),
    spec("w", SIZE, b"old w".ljust(SIZE, b"\0"), kind=Kind.WINDOW),
]
#: Points of each call that CI tries.
SAMPLE = 150


def _several_puts(store: Store) -> None:
    with store.transaction() as changes:
        changes.put("a", b"new a")
        changes.put("c", b"new c")


def _everything(store: Store) -> None:
    with store.transaction() as changes:
        changes.register("d", 300)
        changes.put("d", b"new d")
        changes.put("a", b"new a")
        changes.rename("a", "z")
        changes.resize("c", 500)


def _exchange(store: Store) -> None:
    with store.transaction() as changes:
        changes.rename("a", "x")
        changes.rename("c", "a")
        changes.rename("x", "c")


def _write_window(store: Store) -> None:
    with store.window("w", idle=1000, longest=1000) as window:
        window.write(3, b"new")
        window.flush()
        window.write(SIZE - 3, b"end", fua=True)


def _write_shared_window(store: Store) -> None:
    with store.shared_window("w") as window:
        window.write(3, b"new")
        with store.shared_window("w") as other:
            other.flush()
        window.write(SIZE - 3, b"end", fua=True)


def _write_in_place(store: Store) -> None:
    with store.window("w", in_place=True) as window:
        window.write(3, b"new")
        window.flush()


def _leave_abandoned(store: Store) -> None:
    with suppress(RuntimeError), store.transaction() as changes:
        changes.put("a", b"new a")
        raise RuntimeError


class Case(NamedTuple):
    """A call that writes; ``prepare`` is not interrupted."""

    call: Callable[[Store], object]
    prepare: Callable[[Store], object] = lambda _: None


CASES = {
    "put": Case(lambda store: store.put("a", b"new a")),
    "put again": Case(lambda store: store.put("a", b"new a"), lambda store: store.put("a", b"1")),
    "several puts": Case(_several_puts),
    "abandoned": Case(_leave_abandoned),
    "create": Case(lambda store: store.register("d", 300)),
    "create beyond the end": Case(lambda store: store.register("d", 30_000)),
    "resize": Case(lambda store: store.register("a", 3000)),
    "rename": Case(lambda store: store.rename("a", "z")),
    "exchange": Case(_exchange),
    "delete": Case(lambda store: store.delete("a")),
    "everything": Case(_everything),
    "restore": Case(lambda store: store.restore("a"), lambda store: store.put("a", b"new a")),
    "grow": Case(lambda store: store.grow(60_000)),
    "compact": Case(lambda store: store.compact(), lambda store: store.delete("b")),
    "scrub": Case(lambda store: store.scrub(), lambda store: store.delete("b")),
    "window": Case(_write_window),
    "window, shared": Case(_write_shared_window),
    "window in place": Case(_write_in_place),
    "close": Case(lambda store: store.close(), lambda store: store.put("a", b"new a")),
    "open": Case(lambda store: open_store(store._session.container.device)),
}


@pytest.mark.parametrize("name", CASES)
def test_c63_an_interrupt_anywhere(name: str) -> None:
    case = CASES[name]
    before = image(SPECS, free=20_000)
    store, device = _prepared(before, case)
    old = contents(store)
    points = InterruptPoints(lambda: case.call(store))
    states = [old, contents(open_store(bytes(device.content)))]
    if name.startswith("window"):
        states.append({**old, "w": b"oldnew".ljust(SIZE, b"\0")})
    if name == "window in place":
        # As after a crash: what is in place is unverified until it is accepted (C62).
        states.append({**old, "w": CORRUPT})
    chosen = points.chosen(SAMPLE)
    print(f"{name}: {len(chosen)} of {points}")
    outcomes = [
        _interrupt(before, case, points.interrupted_at(point), states, f"interrupted at {point}")
        for point in chosen
    ]
    # Nearly everywhere the store goes on; it may refuse only around the writes themselves.
    assert outcomes.count("refused") < len(outcomes) // 2
    assert "went on" in outcomes


def test_c90_an_interrupt_leaves_no_lock_of_threads_taken() -> None:
    lock = OwnedLock(Owner("the store"))

    def call() -> None:
        with lock:
            pass

    points = InterruptPoints(call)
    assert points.total > 5
    for point in range(1, points.total + 1):
        with suppress(KeyboardInterrupt), points.interrupted_at(point):
            call()
        assert not lock.is_mine, f"interrupted at {point}"


class InterruptedLock(OwnedLock):  # type: ignore[misc]
    """Is interrupted when it has just been taken."""

    def acquire(self, blocking: bool = True, timeout: float = -1) -> NoReturn:
        super().acquire(blocking, timeout)
        raise KeyboardInterrupt


def test_c90_a_lock_whose_taking_was_interrupted_is_released() -> None:
    lock = InterruptedLock(Owner("the store"))
    with pytest.raises(KeyboardInterrupt), lock.within(10):
        pass
    assert not lock.is_mine


def test_c90_a_lock_is_waited_for_no_longer_than_asked() -> None:
    lock = OwnedLock(Owner("the store"))
    with lock, lock.within(0) as taken:
        assert taken  # by this thread already
        with ThreadPoolExecutor(1) as threads:
            assert not threads.submit(_is_free, lock).result()
        assert lock.is_mine
    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(_is_free, lock).result()


def _is_free(lock: OwnedLock) -> bool:
    with lock.within(0.01) as taken:
        return taken


#: Those of several steps, and points of each after which every crash is tried.
STRUCTURAL = ("put", "create", "resize", "delete", "everything", "grow", "scrub")
CRASH_SAMPLE = 12


@pytest.mark.parametrize("name", STRUCTURAL)
def test_c63_a_crash_after_an_interrupt(name: str) -> None:
    """What the interrupted store acknowledges afterwards is durable like anything else."""
    case = CASES[name]
    before = image(SPECS, free=20_000)
    store, device = _prepared(before, case)
    old = contents(store)
    points = InterruptPoints(lambda: case.call(store))
    states = [old, contents(open_store(bytes(device.content)))]
    crashes = 0
    for point in points.chosen(CRASH_SAMPLE):
        interrupt = points.interrupted_at(point)
        crashes += _crash_after(before, case, interrupt, states, f"interrupted at {point}")
    assert crashes > CRASH_SAMPLE


def _crash_after(
    before: bytes, case: Case, interrupt: Interrupt, states: list[Contents], where: str
) -> int:
    recording = RecordingDevice(before, resizable=True)
    store = open_store(recording)
    case.prepare(store)
    start = len(recording.log)
    with suppress(KeyboardInterrupt), interrupt:
        case.call(store)
    if store._session.closed or store._session.container.writer.poisoned:
        return 0
    # What is seen then may have been acted on; what is acknowledged later builds on it.
    seen = contents(store)
    allowed: list[Contents] = [seen]
    later: Contents = {}
    for number in range(1, 4):
        recording.mark(number)
        if number == 1:
            store.put("w", b"later")
            later = {"w": b"later"}
        elif number == 2:
            store.register("e", 600)
            later = {**later, "e": UNWRITTEN}
        else:
            store.close()
        allowed.append({**seen, **later})
    crashes = 0
    for crash in crash_states(before, recording.log, exhaustive=3, samples=6):
        last = max((mark for mark in crash.marks if isinstance(mark, int)), default=-1)
        if crash.point < start:
            continue
        crashes += 1
        found = contents(open_store(crash.content, read_only=True))
        expected = states if last < 1 else allowed[last - 1 : last + 1]
        assert found in expected, f"{where}, then {crash.point}"
    return crashes


def _prepared(before: bytes, case: Case) -> tuple[Store, MemoryDevice]:
    device = MemoryDevice(before)
    store = open_store(device)
    case.prepare(store)
    return store, device


def _interrupt(
    before: bytes, case: Case, interrupt: Interrupt, states: list[Contents], where: str
) -> str:
    """Interrupt a call, go on, and open anew; return whether the store went on."""
    store, device = _prepared(before, case)
    with suppress(KeyboardInterrupt), interrupt:
        case.call(store)
    if store._session.closed:
        assert contents(open_store(bytes(device.content))) in states, where
        store.close()
        return "went on"
    _check_reading(store, states, where)
    after: Contents = {}
    try:
        if "w" not in store._session.lookup.windows:
            store.put("w", b"later")
            after["w"] = b"later"
        store.register("e", 600)
        after["e"] = UNWRITTEN
        store.put("e", b"later")
        after["e"] = b"later"
        store.register("e", 900)
        outcome = "went on"
    except PoisonedStoreError:
        outcome = "refused"
    _check_anew(device, states, after, where)
    with suppress(PoisonedStoreError):
        store.close()
    _check_anew(device, states, after, where)
    return outcome


def _check_reading(store: Store, states: list[Contents], where: str) -> None:
    """What the interrupted store answers is of before the call or after it, or refused."""
    # A section in place is read through its window, which the interrupt may have left open.
    names = {name for state in states for name in state} - store._session.lookup.windows.keys()
    found: Contents = {}
    for name in names:
        try:
            found[name] = store.get(name)
        except BlobNotFoundError:
            pass
        except UnwrittenBlobError:
            found[name] = UNWRITTEN
        except CorruptBlobError:
            found[name] = CORRUPT
        except PoisonedStoreError:
            return
    assert found in [{n: b for n, b in state.items() if n in names} for state in states], where


def _check_anew(device: MemoryDevice, states: list[Contents], after: Contents, where: str) -> None:
    found, is_sound, end = _found_anew(bytes(device.content))
    assert found in [{**state, **after} for state in states], where
    assert is_sound or CORRUPT in found.values(), where
    assert end == device.size, f"{where}: a gap at byte {end}"


@lru_cache(64)  # interrupts at neighbouring points leave the same
def _found_anew(content: bytes) -> tuple[Contents, bool, int]:
    """Return what a store holds, whether it verifies, and where its regions have a gap."""
    store = open_store(content)
    found = contents(store)
    is_sound = store.verify().ok
    end = 0
    for region in store.regions():
        if region.offset != end:
            break
        end += region.size
    return found, is_sound, end
