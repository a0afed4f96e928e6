"""The product does what the model does: it sees the same and writes the same, in the same order.

So what the model proves of the rules holds for the product, as far as it has the operations. What
it makes of damaged heads is not compared here.
"""

from __future__ import annotations

import os
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

import pytest

from blobstore.container.growth import grow
from blobstore.container.initialise import SectionSpec as LayoutSpec
from blobstore.container.initialise import initialise as product_initialise
from blobstore.container.recovery import close, recover
from blobstore.store.lookup import Lookup
from blobstore.store.transaction import Transaction
from formats.container.model import HEAD_SIZE
from tests.model.disk import EMPTY, Record, State, written
from tests.model.explore import explore
from tests.model.headers import initialise, new_items
from tests.model.product import (
    BLOCK_SIZE,
    KEY,
    STORE_ID,
    RecordingDevice,
    blob_bytes,
    contents,
    contents_of,
    image,
    meaning,
    opened,
    section_id,
)
from tests.model.reader import read
from tests.model.recovery import recovery
from tests.model.rules import ALL
from tests.model.scenarios import B2, FAMILIES, SINGLE, A, menu, used_store
from tests.model.writing import Store

if TYPE_CHECKING:
    from collections.abc import Sequence

    from blobstore.container.open_container import OpenContainer
    from tests.model import explore as exploring
    from tests.model.disk import Disk
    from tests.model.writing import Change, Epoch

FAMILIES_COMPARED = (
    "everything, in a new store",
    "three operations, CBC",
    "several sections at once",
    "bad headers",
    "sections of one copy, CBC",
    "three sections",
    "growth",
    "names",
)
OPERATIONS = (
    "put A, put A+B, create C, create C live and put A, create C single and create D, "
    "resize A, resize B and put A, create C and resize B, rename A Z, rename B Z and delete A, "
    "delete B, delete B and put A, grow 4, close"
)


@cache
def _states(family: str, most: int, *, running: bool) -> list[exploring.State]:
    """Return states that histories of a family lead to, evenly chosen, and always the same."""
    outcome = explore(replace(FAMILIES[family], damage=False, replay=False))
    states = [state for state in outcome.steps if state.running or not running]
    return states[:: -(-len(states) // most)]


@pytest.mark.parametrize("family", FAMILIES_COMPARED)
def test_product_sees_and_recovers_the_same(family: str) -> None:
    recovered = 0
    states = _states(family, 500, running=False)
    assert len(states) > 250
    for state in states:
        disk = written(state.disk, state.pending)
        directory = read(disk, ALL)
        device, container = opened(disk)
        assert contents_of(container) == contents(directory.view)
        assert container.directory.generation == directory.generation
        assert container.directory.clean == (directory.header.durable == directory.generation)

        recover(container)
        epochs = recovery(disk, directory, ALL)
        _compare(disk, epochs, device)
        recovered += any(epochs)
    assert recovered > len(states) / 10


def test_product_voids_the_newest_record_last_c56(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = used_store(A, free=5)
    change = menu("resize A")["resize A"](Store(disk, read(disk, ALL), ALL, number=9))
    assert change is not None
    device, container = opened(disk)
    _do("resize A", change, container, monkeypatch)
    _compare(disk, change.epochs, device)


@pytest.mark.parametrize("operation", OPERATIONS.split(", "))
def test_product_writes_the_same(operation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = 0
    (modelled,) = menu(operation).values()
    for family in ("everything, in a new store", "everything, in a used store"):
        for state in _states(family, 250, running=True):
            if state.pending:
                continue
            disk = state.disk
            change = modelled(Store(disk, read(disk, ALL), ALL, number=9))
            if change is None:
                continue
            device, container = opened(disk)
            _do(operation, change, container, monkeypatch)
            _compare(disk, change.epochs, device)
            assert contents_of(container) == contents(change.view)
            changes += 1
    assert changes > 30


def test_product_initialises_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    specs = [A, B2._replace(live=False), SINGLE]
    items, _ = new_items(specs, free=3)
    firsts = [b.head for _, b in items if isinstance(b.head, Record) and b.head.copy == 0]
    wanted = [
        LayoutSpec(
            record.name,
            record.blocks * BLOCK_SIZE - HEAD_SIZE,
            copies=record.copies,
            content=blob_bytes(record.content) if record.content else None,
        )
        for record in firsts
    ]
    disk: Disk = (EMPTY,) * (2 + 2 + 4 + 1 + 3)
    device = RecordingDevice(image(disk))
    identifiers = iter([section_id(record.section) for record in firsts])
    monkeypatch.setattr(os, "urandom", lambda _: next(identifiers))
    product_initialise(
        device, wanted, encrypted=True, block_size=BLOCK_SIZE, store_id=STORE_ID, key=KEY
    )
    _, *epochs = initialise(specs, 3, ALL)
    # The model knows only where this container has its header copies.
    _compare(disk, [list(enumerate(disk)), *epochs], device)


def _do(
    operation: str, change: Change, container: OpenContainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Let the product do what the model did."""
    if operation == "close":
        close(container)
        return
    if operation.startswith("grow"):
        grow(container, container.total + int(operation.split()[1]) * BLOCK_SIZE)
        return
    heads = [block.head for epoch in change.epochs for _, block in epoch]
    committed = [
        head for head in heads if isinstance(head, Record) and head.state is not State.VOID
    ]
    records = {record.name: record for record in committed}
    transaction = Transaction(container, Lookup(container))
    for step in operation.split(" and "):
        match step.split():
            case ["put", names]:
                for name in names.split("+"):
                    transaction.put(name, blob_bytes(records[name].content))
            case ["create", name, *how]:
                identifier = section_id(records[name].section)
                monkeypatch.setattr(os, "urandom", lambda _, identifier=identifier: identifier)
                copies = 1 if "single" in how else 2
                transaction.register(name, BLOCK_SIZE - HEAD_SIZE, copies=copies)
                if "live" in how:
                    transaction.put(name, blob_bytes(records[name].content))
            case ["resize", name]:
                transaction.resize(name, records[name].blocks * BLOCK_SIZE - HEAD_SIZE)
            case ["rename", name, new]:
                transaction.rename(name, new)
            case ["delete", name]:
                transaction.delete(name)
    transaction.commit()


def _compare(disk: Disk, epochs: Sequence[Epoch], device: RecordingDevice) -> None:
    """Compare what the product wrote, and in which epoch, with what the model writes."""
    assert list(map(set, device.epochs)) == [{position for position, _ in e} for e in epochs]
    for found, epoch in zip(device.epochs, epochs, strict=True):
        disk = written(disk, epoch)
        for position, content in found.items():
            wanted, meant = meaning(position, disk[position], content)
            assert meant == wanted
