"""What is explored: stores, menus, and the families of histories in which nothing may go wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.model.commits import put, window
from tests.model.disk import CBC, EMPTY, Disk, written
from tests.model.explore import Scenario
from tests.model.headers import SectionSpec, close, grow, initialise
from tests.model.reader import read
from tests.model.rules import ALL
from tests.model.structure import create, delete, rename, resize
from tests.model.writing import Operation, Store

if TYPE_CHECKING:
    from collections.abc import Sequence

A, B, C = (SectionSpec(name) for name in "ABC")
B2 = SectionSpec("B", blocks=2)
B3 = SectionSpec("B", blocks=3)
UNWRITTEN = SectionSpec("B", live=False)
SINGLE = SectionSpec("P", copies=1)


def new_store(*specs: SectionSpec, free: int = 0, room: int = 0) -> Disk:
    """Return a store as C59 makes it: first copies live or unwritten, second ones void.

    Args:
        specs: Its sections.
        free: Blocks of its free item; 0 for none.
        room: Blocks behind the container, for it to grow into.
    """
    size = 2 + sum(spec.blocks * spec.copies for spec in specs) + free + room
    disk: Disk = (EMPTY,) * size
    for epoch in initialise(specs, free, ALL):
        disk = written(disk, epoch)
    return disk


def used_store(*specs: SectionSpec, free: int = 0, room: int = 0) -> Disk:
    """Return such a store after two puts to each section and a close: commits wrote all copies."""
    disk = new_store(*specs, free=free, room=room)
    operations: list[Operation] = [put(spec.name) for spec in specs * 2]
    for number, operation in enumerate([*operations, close], -100):
        change = operation(Store(disk, read(disk, ALL), ALL, number))
        assert change is not None
        for epoch in change.epochs:
            disk = written(disk, epoch)
    return disk


def menu(text: str) -> dict[str, Operation]:
    """Return the operations of a list such as "put A, put A+B, rename A Z, grow 4, close"."""
    return {words: _operation(words.split()) for words in text.split(", ")}


def _operation(words: Sequence[str]) -> Operation:
    match words:
        case ["put", names]:
            return put(*names.split("+"))
        case ["window", name]:
            return window(name)
        case ["create", name]:
            return create(name)
        case ["delete", name]:
            return delete(name)
        case ["rename", name, new]:
            return rename(name, new)
        case ["resize", name]:
            return resize(name)
        case ["grow", blocks]:
            return grow(int(blocks))
        case ["close"]:
            return close
        case _:
            raise ValueError(f"there is no operation {' '.join(words)}")


EVERYTHING = (
    "put A, put B, put A+B, create C, delete B, rename A Z, resize A, resize B, grow 4, close"
)
ONE_COPY = "put A, put P, rename P Q, resize P, delete P, close"
WINDOWS = "put A, put B, put A+B, window B, close"
PUTS = "put A, put B, put A+B, close"

_NEW = new_store(A, B, free=5, room=4)
_USED = used_store(A, B, free=5, room=4)
_ONE_COPY = used_store(A, SINGLE, free=5)
_WINDOWS = used_store(A, B3)

#: By name. Each is as large as can be explored to its end in well under a minute.
FAMILIES: dict[str, Scenario] = {
    "everything, in a new store": Scenario(
        _NEW, menu(EVERYTHING), operations=2, bad_headers=1, damage=True, replay=True
    ),
    "everything, in a used store": Scenario(
        _USED, menu(EVERYTHING), operations=2, bad_headers=1, damage=True, replay=True
    ),
    "everything, with an unwritten section": Scenario(
        new_store(A, UNWRITTEN, free=4), menu(EVERYTHING), operations=2, damage=True, replay=True
    ),
    "three operations": Scenario(_USED, menu(EVERYTHING)),
    "three operations, CBC": Scenario(_USED, menu(EVERYTHING), medium=CBC),
    "three operations, damage": Scenario(_USED, menu(EVERYTHING), crashes=1, damage=True),
    "three operations, replay": Scenario(_USED, menu(EVERYTHING), kills=False, replay=True),
    "bad headers": Scenario(
        used_store(A, B, free=3, room=4),
        menu("put A, put A+B, create C, grow 4, close"),
        bad_headers=2,
    ),
    "sections of one copy": Scenario(_ONE_COPY, menu(ONE_COPY), damage=True, replay=True),
    "sections of one copy, CBC": Scenario(_ONE_COPY, menu(ONE_COPY), damage=True, medium=CBC),
    "windows, damage": Scenario(_WINDOWS, menu(WINDOWS), operations=2, crashes=1, damage=True),
    "windows, replay": Scenario(_WINDOWS, menu(WINDOWS), operations=2, kills=False, replay=True),
    "windows, three operations, CBC": Scenario(_WINDOWS, menu(WINDOWS), medium=CBC),
    "three sections": Scenario(
        used_store(A, B, C), menu("put A, put A+B, put A+B+C, close"), kills=False, replay=True
    ),
    "four puts": Scenario(used_store(A, B), menu(PUTS), operations=4, kills=False, replay=True),
    "growth": Scenario(
        used_store(A, free=1, room=8),
        menu("grow 4, create C, put A, delete C, close"),
        operations=4,
        damage=True,
        replay=True,
    ),
    "structure, four crashes": Scenario(
        used_store(A, B, free=5),
        menu("put B, create C, delete B, resize A, close"),
        operations=2,
        crashes=4,
    ),
    "names": Scenario(
        used_store(A, free=4),
        menu("rename A Z, create A, put A, rename Z B, delete A, close"),
        damage=True,
    ),
}
