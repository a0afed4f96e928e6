"""What is explored: stores, menus, and the families of histories in which nothing may go wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.model.disk import CBC, EMPTY, Disk, written
from tests.model.explore import Scenario
from tests.model.headers import SectionSpec, close, grow, initialise
from tests.model.reader import read
from tests.model.rules import ALL
from tests.model.transactions import (
    create,
    delete,
    put,
    rename,
    resize,
    together,
    window,
)
from tests.model.writing import Operation, Store

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.model.transactions import Step

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
        room: Blocks after the container, into which it can grow.
    """
    size = 2 + sum(spec.blocks * spec.copies for spec in specs) + free + room
    disk: Disk = (EMPTY,) * size
    for epoch in initialise(specs, free, ALL):
        disk = written(disk, epoch)
    return disk


def used_store(*specs: SectionSpec, free: int = 0, room: int = 0) -> Disk:
    """Return such a store after two puts to each section and a close: commits wrote all copies."""
    disk = new_store(*specs, free=free, room=room)
    operations: list[Operation] = [together(put(spec.name)) for spec in specs * 2]
    for number, operation in enumerate([*operations, close], -100):
        change = operation(Store(disk, read(disk, ALL), ALL, number))
        assert change is not None
        for epoch in change.epochs:
            disk = written(disk, epoch)
    return disk


def menu(text: str) -> dict[str, Operation]:
    """Return the operations of a list such as "put A+B, create C and put A, grow 4, close"."""
    return {words: _operation(words.split()) for words in text.split(", ")}


def _operation(words: Sequence[str]) -> Operation:
    match words:
        case ["grow", blocks]:
            return grow(int(blocks))
        case ["close"]:
            return close
        case _:
            steps = [_steps(step.split()) for step in " ".join(words).split(" and ")]
            return together(*(step for some in steps for step in some))


def _steps(words: Sequence[str]) -> list[Step]:
    match words:
        case ["put", names]:
            return [put(name) for name in names.split("+")]
        case ["window", name]:
            return [window(name)]
        case ["create", name]:
            return [create(name)]
        case ["create", name, "live"]:
            return [create(name, live=True)]
        case ["create", name, "single"]:
            return [create(name, copies=1)]
        case ["create", name, "single", "live"]:
            return [create(name, copies=1, live=True)]
        case ["delete", name]:
            return [delete(name)]
        case ["rename", name, new]:
            return [rename(name, new)]
        case ["resize", name]:
            return [resize(name)]
        case ["resize", name, "anew"]:
            return [resize(name, anew=True)]
        case _:
            raise ValueError(f"there is no step {' '.join(words)}")


EVERYTHING = (
    "put A, put B, put A+B, create C, create C live and put A, delete B, rename A Z, "
    "resize A, resize B, grow 4, close"
)
CREATED = "create C, put C, create C live, create C and put A, put A, delete C, close"
SEVERAL = (
    "put A+B, create C live and put A, resize A and put B, rename B Z and delete A, "
    "create C and delete B, create C and resize B, close"
)
ONE_COPY = (
    "put A, put P, rename P Q, resize P, delete P, delete A, "
    "create S single, create S single live, create S single live and put A, close"
)
PUTS = "put A, put B, put A+B, close"
WINDOWS = "put A, put B, put A+B, window B, close"

_NEW = new_store(A, B, free=5, room=4)
_USED = used_store(A, B, free=5, room=4)
_ONE_COPY = used_store(A, SINGLE, free=5)

#: By name. Each is as large as can be explored to its end in a quarter of a minute or so.
FAMILIES: dict[str, Scenario] = {
    "everything, in a new store": Scenario(
        _NEW, menu(EVERYTHING), operations=2, bad_headers=1, kills=False, damage=True
    ),
    "everything, in a used store": Scenario(
        _USED, menu(EVERYTHING), operations=2, damage=True, replay=True
    ),
    "everything, with an unwritten section": Scenario(
        new_store(A, UNWRITTEN, free=4), menu(EVERYTHING), operations=2, damage=True, replay=True
    ),
    "three operations": Scenario(_USED, menu(EVERYTHING), kills=False),
    "three operations, CBC": Scenario(_USED, menu(EVERYTHING), crashes=1, medium=CBC),
    "three operations, damage": Scenario(
        _USED, menu(EVERYTHING), crashes=1, kills=False, damage=True
    ),
    "three operations, replay": Scenario(_USED, menu(EVERYTHING), crashes=1, replay=True),
    "a created section": Scenario(used_store(A, free=3), menu(CREATED), damage=True, replay=True),
    "several sections at once": Scenario(
        used_store(A, B, free=6), menu(SEVERAL), operations=2, damage=True, replay=True
    ),
    "bad headers": Scenario(
        used_store(A, B, free=3, room=4),
        menu("put A, put A+B, create C, grow 4, close"),
        bad_headers=2,
    ),
    "sections of one copy": Scenario(
        _ONE_COPY, menu(ONE_COPY), crashes=1, damage=True, replay=True
    ),
    "sections of one copy, CBC": Scenario(
        _ONE_COPY, menu(ONE_COPY), operations=2, damage=True, medium=CBC
    ),
    "windows": Scenario(
        used_store(A, B2), menu(WINDOWS), operations=2, kills=False, damage=True, replay=True
    ),
    "windows, CBC": Scenario(used_store(A, B3), menu(WINDOWS), operations=2, medium=CBC),
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
