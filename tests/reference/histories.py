"""Histories that our writer goes through, for the other reader to look at."""

from __future__ import annotations

import functools
import random
from typing import TYPE_CHECKING, Any

from tests.reference.agreement import theirs
from tests.support.devices import RecordingDevice
from tests.support.stores import image, open_store, spec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tests.support.devices import CrashState
    from tests.support.stores import Contents

    # What is done to a store, or to a transaction.
    Operation = Callable[[Any], object]
    Steps = list[Operation | None]  # None closes the store and opens it again

SECTIONS = [
    spec("a", 600, b"first"),
    spec("single", 40, b"alone", copies=1),
    spec("never", 10),
    spec("last", 20),  # no history touches it
]


def do(method: str, *arguments: object, **named: object) -> Operation:
    return lambda store: getattr(store, method)(*arguments, **named)


def together(*operations: Operation) -> Operation:
    """Do these in one transaction."""

    def run(store: Any) -> None:
        with store.transaction() as changes:
            for operation in operations:
                operation(changes)

    return run


PUTS: Steps = [
    do("put", "a", b"second" * 90),
    do("put", "single", b"overwritten in place"),
    do("put", "never", b"now"),
    None,
    do("put", "a", b""),
    do("put", "a", b"fourth"),
]
CREATES: Steps = [
    do("put", "a", b"second"),
    do("register", "new", 700),
    do("put", "new", b"its first"),
    do("register", "newer", 10, copies=1),
    do("put", "new", b"its second"),
]
RESIZES: Steps = [
    do("register", "a", 1100),
    do("put", "a", b"long" * 250),
    do("register", "never", 513),
    do("resize", "a", 1700),
    do("put", "a", b"longer" * 250),
    do("resize", "single", 600),
    do("put", "never", b"at last"),
    do("resize", "a", 1500),
]
DELETES: Steps = [
    do("put", "a", b"second"),
    do("delete", "a"),
    do("rename", "never", "a"),
    do("put", "a", b"not now"),
    do("delete", "single"),
    do("register", "single", 100),
    None,
    do("rename", "a", "never"),
    do("delete", "never"),
]
TRANSACTIONS: Steps = [
    together(do("put", "a", b"second"), do("put", "never", b"now")),
    together(do("register", "new", 700), do("put", "new", b"n" * 600), do("put", "a", b"third")),
    together(do("rename", "a", "b"), do("rename", "never", "a"), do("resize", "new", 1300)),
    together(do("delete", "a"), do("register", "a", 30), do("resize", "single", 90)),
    together(do("delete", "b"), do("put", "new", b"again")),
]
GROWS: Steps = [
    do("put", "a", b"second"),
    do("grow", 24_000),
    do("put", "a", b"third"),
    do("register", "large", 12_000),
    do("grow", 40_000),
]


def mixed(generator: random.Random) -> Steps:
    """Return operations of all kinds; the device has blocks of 1024."""
    sizes = {"a": 600, "single": 40, "never": 10}
    copies = {"single": 1}
    operations: Steps = []
    for number in range(16):
        name = generator.choice(list(sizes))
        match generator.randrange(10):
            case 0:
                operations.append(None)
            case 1 if len(sizes) < 6:
                created = f"new {number}"
                sizes[created] = generator.choice((0, 100, 513, 1500))
                operations.append(do("register", created, sizes[created]))
            case 2:
                sizes[name] += generator.choice((1, 400))
                operations.append(do("register", name, sizes[name]))
            case 3 if len(sizes) > 2:
                del sizes[name]
                operations.append(do("delete", name))
            case 4:
                renamed = f"{name[:4]} {number}"
                sizes[renamed] = sizes.pop(name)
                copies[renamed] = copies.get(name, 2)
                operations.append(do("rename", name, renamed))
            case 5 | 6:
                changed = [n for n in sizes if copies.get(n) != 1]
                puts = [do("put", n, generator.randbytes(sizes[n])) for n in changed]
                operations.append(together(*puts))
            case _:
                blob = generator.randbytes(generator.randint(0, sizes[name]))
                operations.append(do("put", name, blob))
    return operations


HISTORIES: dict[str, Steps] = {
    "puts": PUTS,
    "creates": CREATES,
    "resizes": RESIZES,
    "deletes": DELETES,
    "transactions": TRANSACTIONS,
    "grows": GROWS,
    "mixed": mixed(random.Random(1)),
    "mixed again": mixed(random.Random(2)),
}


class History:
    """What a store went through, and what was on its device after each step."""

    def __init__(self, name: str, *, encrypted: bool, close: bool) -> None:
        block_size, free = (1024, 60_000) if name.startswith("mixed") else (512, 13_000)
        before = image(SECTIONS, block_size=block_size, free=free, encrypted=encrypted)
        self.device = RecordingDevice(before, resizable=True)
        self.snapshots = [self.device.content]
        store = open_store(self.device)
        for operation in HISTORIES[name]:
            if operation:
                operation(store)
            else:
                store.close()
                self.note()
                store = open_store(self.device)
            self.note()
        if close:
            store.close()
            self.note()

    def note(self) -> None:
        self.snapshots.append(self.device.content)
        self.device.mark(len(self.snapshots))

    @functools.cached_property
    def said(self) -> list[Contents | None]:
        """What was in the store after each step."""
        return [theirs(content) for content in self.snapshots]


@functools.cache
def history(name: str, *, encrypted: bool = False, close: bool = True) -> History:
    return History(name, encrypted=encrypted, close=close)


def distinct(states: Iterable[CrashState]) -> list[bytes]:
    """Return the different contents in their order."""
    return list(dict.fromkeys(state.content for state in states))
