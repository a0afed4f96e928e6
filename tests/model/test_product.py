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

from blobstore import structure
from blobstore.commit import commit
from blobstore.layout import SectionSpec as LayoutSpec
from blobstore.layout import initialise as product_initialise
from blobstore.recovery import close, recover
from formats.container import HEAD_SIZE, Kind
from tests.model.disk import EMPTY, Body, Record, State, written
from tests.model.explore import explore
from tests.model.headers import initialise, new_items
from tests.model.product import (
    BLOCK_SIZE,
    KEY,
    STORE_ID,
    RecordingDevice,
    blob_bytes,
    block_bytes,
    contents,
    contents_of,
    image,
    opened,
    section_id,
)
from tests.model.reader import read
from tests.model.recovery import recovery
from tests.model.rules import ALL
from tests.model.scenarios import B2, FAMILIES, SINGLE, A, menu
from tests.model.writing import Store

if TYPE_CHECKING:
    from collections.abc import Sequence

    from blobstore.opened import OpenContainer
    from tests.model import explore as exploring
    from tests.model.disk import Atom, Disk
    from tests.model.writing import Change, Epoch

FAMILIES_COMPARED = (
    "everything, in a new store",
    "three operations, CBC",
    "bad headers",
    "sections of one copy, CBC",
    "three sections",
    "growth",
    "names",
)
OPERATIONS = "put A, put B, put A+B, create C, resize A, resize B, close"


@cache
def _states(family: str, most: int, *, running: bool) -> list[exploring.State]:
    """Return states that histories of a family lead to, evenly chosen, and always the same."""
    outcome = explore(replace(FAMILIES[family], damage=False, replay=False))
    states = [state for state in outcome.steps if state.running or not running]
    return states[:: -(-len(states) // most)]


@pytest.mark.parametrize("family", FAMILIES_COMPARED)
def test_product_sees_and_recovers_the_same(family: str) -> None:
    recovered = 0
    states = _states(family, 1000, running=False)
    assert len(states) > 500
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


@pytest.mark.parametrize("operation", OPERATIONS.split(", "))
def test_product_writes_the_same(operation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = 0
    (modelled,) = menu(operation).values()
    for family in ("everything, in a new store", "everything, in a used store"):
        for state in _states(family, 200, running=True):
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
    assert changes > 100


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
    _compare(disk, initialise(specs, 3, ALL), device)


def _do(
    operation: str, change: Change, container: OpenContainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Let the product do what the model did."""
    sections = container.directory.sections
    records = [block.head for _, block in change.epochs[0] if isinstance(block.head, Record)]
    match operation.split():
        case ["put", names]:
            blobs = [blob_bytes(record.content) for record in records]
            changed = [sections[name] for name in names.split("+")]
            commit(container, list(zip(changed, blobs, strict=True)))
        case ["create", name]:
            identifier = section_id(records[0].section)
            monkeypatch.setattr(os, "urandom", lambda _: identifier)
            structure.create_section(
                container, name, BLOCK_SIZE - HEAD_SIZE, kind=Kind.BLOB, copies=2, type_=""
            )
        case ["resize", name]:
            size = records[0].blocks * BLOCK_SIZE - HEAD_SIZE
            structure.resize_section(container, sections[name], size)
        case ["close"]:
            close(container)


def _compare(disk: Disk, epochs: Sequence[Epoch], device: RecordingDevice) -> None:
    """Compare what the product wrote, and in which epoch, with what the model writes."""
    *flushed, unflushed = device.epochs
    assert not unflushed
    if not flushed and epochs == [[]]:
        return  # the product does not flush a store that seems to be closed
    compared: set[int] = set()
    left = list(epochs)
    for positions in flushed:
        modelled = {position for position, _ in left[0]} if left else set()
        # The product also zeroes the heads of free items that were merged into another, and fill.
        besides = positions - modelled
        assert not any(isinstance(disk[position].head, Record) for position in besides)
        if positions and positions == besides:
            continue
        assert modelled <= positions
        compared = (compared | modelled) - besides
        disk = written(disk, left.pop(0))
    assert not left
    for position in compared:
        block, start = disk[position], position * BLOCK_SIZE
        # What stands behind a head that is written alone has no meaning.
        size = BLOCK_SIZE if _has_blob(block.head) else HEAD_SIZE
        found = bytes(device.content[start : start + size])
        assert found == block_bytes(position, block)[:size]


def _has_blob(head: Atom) -> bool:
    return isinstance(head, Body) or (isinstance(head, Record) and head.state is State.LIVE)
