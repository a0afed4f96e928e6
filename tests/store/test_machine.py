"""A state machine drives the store against a dict: changes, transactions, kills, crashes."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from blobstore.errors import SectionExistsError
from formats.devices.device import MemoryDevice
from tests.support.devices import RecordingDevice, crash_states
from tests.support.stores import UNWRITTEN, Contents, contents, image, open_store, spec
from tests.support.strategies import names

if TYPE_CHECKING:
    from blobstore.store.store import Store
    from blobstore.store.transaction import Transaction


class _AbandonError(Exception):
    """Leaves a transaction's block."""


class StoreMachine(RuleBasedStateMachine):
    """What the store holds is what a dict holds, whatever happens to it."""

    @initialize(
        block_size=st.sampled_from((512, 4096)),
        encrypted=st.booleans(),
        sizes=st.lists(st.integers(0, 3000), max_size=3),
    )
    def make(self, block_size: int, encrypted: bool, sizes: list[int]) -> None:
        specs = [spec(f"section {number}", size) for number, size in enumerate(sizes)]
        content = image(specs, block_size=block_size, free=32 << 10, encrypted=encrypted)
        self.device = RecordingDevice(content, resizable=True)
        self.store = open_store(self.device)
        self.model: Contents = {spec.name: UNWRITTEN for spec in specs}
        self.max_sizes = {spec.name: spec.max_size for spec in specs}

    # ------------------------------------------------------------- changes

    def changes(self, data: st.DataObject, store: Store | Transaction) -> None:
        """Make one change to a store or in a transaction, and to the model."""
        changes = [self.register]
        if self.model:
            changes += [self.put, self.resize, self.rename, self.delete]
        data.draw(st.sampled_from(changes))(data, store)

    def pick(self, data: st.DataObject) -> str:
        return data.draw(st.sampled_from(sorted(self.model)), label="section")

    def register(self, data: st.DataObject, store: Store | Transaction) -> None:
        name, size = data.draw(names, label="name"), data.draw(st.integers(0, 5000), label="size")
        store.register(name, size)
        self.model.setdefault(name, UNWRITTEN)
        self.max_sizes[name] = max(size, self.max_sizes.get(name, 0))

    def put(self, data: st.DataObject, store: Store | Transaction) -> None:
        name = self.pick(data)
        size = data.draw(st.integers(0, self.max_sizes[name]), label="size")
        blob = data.draw(st.binary(min_size=min(size, 8), max_size=8)) * (size // 8 + 1)
        store.put(name, blob[:size])
        self.model[name] = blob[:size]

    def resize(self, data: st.DataObject, store: Store | Transaction) -> None:
        name = self.pick(data)
        blob = self.model[name]
        least = 0 if isinstance(blob, str) else len(blob)
        size = data.draw(st.integers(least, least + 4000), label="size")
        store.resize(name, size)
        self.max_sizes[name] = size

    def rename(self, data: st.DataObject, store: Store | Transaction) -> None:
        name, new = self.pick(data), data.draw(names, label="new name")
        if new != name and new in self.model:
            with pytest.raises(SectionExistsError):
                store.rename(name, new)
            return
        store.rename(name, new)
        self.model[new] = self.model.pop(name)
        self.max_sizes[new] = self.max_sizes.pop(name)

    def delete(self, data: st.DataObject, store: Store | Transaction) -> None:
        name = self.pick(data)
        store.delete(name)
        del self.model[name], self.max_sizes[name]

    # --------------------------------------------------------------- rules

    @rule(data=st.data())
    def change(self, data: st.DataObject) -> None:
        self.changes(data, self.store)

    @rule(data=st.data(), number=st.integers(0, 4))
    def transaction(self, data: st.DataObject, number: int) -> None:
        with self.store.transaction() as changes:
            for _ in range(number):
                self.changes(data, changes)

    @rule(data=st.data(), number=st.integers(1, 4))
    def abandoned_transaction(self, data: st.DataObject, number: int) -> None:
        model, max_sizes = dict(self.model), dict(self.max_sizes)
        before = self.device.content
        with suppress(_AbandonError), self.store.transaction() as changes:
            for _ in range(number):
                self.changes(data, changes)
            raise _AbandonError
        assert self.device.content == before
        self.model, self.max_sizes = model, max_sizes

    @rule()
    def compact(self) -> None:
        free = self.store.info().free
        self.store.compact()
        assert self.store.info().free == free

    @rule()
    def close_and_reopen(self) -> None:
        self.store.close()
        self.store = open_store(self.device)
        assert self.store.info().clean

    @rule()
    def kill_and_reopen(self) -> None:
        self.store = open_store(self.device)

    @rule(data=st.data(), number=st.integers(1, 3))
    def crash(self, data: st.DataObject, number: int) -> None:
        """Go on with any state that a crash in a transaction may have left."""
        before = self.device.content
        old = dict(self.model), dict(self.max_sizes)
        self.device.log.clear()
        self.transaction(data, number)
        new = self.model, self.max_sizes
        states = [
            state.content
            for state in crash_states(before, self.device.log, exhaustive=3, samples=2)
        ]
        content = data.draw(st.sampled_from(states or [self.device.content]))
        self.device = RecordingDevice(content, resizable=True)
        self.store = open_store(self.device)
        found = contents(self.store), {i.name: i.max_size for i in self.store.sections()}
        assert found in (old, new)
        self.model, self.max_sizes = found

    @rule()
    def somebody_reads_meanwhile(self) -> None:
        reader = open_store(MemoryDevice(self.device.content), read_only=True)
        assert contents(reader) == self.model
        assert reader.digest() == self.store.digest()

    @precondition(lambda self: hasattr(self, "store"))
    @invariant()
    def it_holds_what_the_model_holds(self) -> None:
        self.device.log.clear()
        assert contents(self.store) == self.model
        assert {info.name: info.max_size for info in self.store.sections()} == self.max_sizes

    def teardown(self) -> None:
        if hasattr(self, "store"):
            assert not self.store.verify().problems
            self.store.close()
            assert open_store(self.device, read_only=True).info().clean


StoreMachine.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
TestStoreMachine = StoreMachine.TestCase
