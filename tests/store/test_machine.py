"""A state machine drives the store against a dict: puts, registrations, kills, crashes."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from blobstore.errors import NoSpaceError
from formats.device import MemoryDevice
from tests.support.devices import RecordingDevice, crash_states
from tests.support.stores import UNWRITTEN, Contents, contents, image, open_store, spec
from tests.support.strategies import names


class StoreMachine(RuleBasedStateMachine):
    """What the store holds is what a dict holds, whatever happens to it."""

    sections = Bundle("sections")

    @initialize(
        target=sections,
        block_size=st.sampled_from((512, 4096)),
        encrypted=st.booleans(),
        sizes=st.lists(st.integers(0, 3000), max_size=3),
    )
    def make(self, block_size: int, encrypted: bool, sizes: list[int]) -> object:
        specs = [spec(f"section {number}", size) for number, size in enumerate(sizes)]
        content = image(specs, block_size=block_size, free=64 << 10, encrypted=encrypted)
        self.device = RecordingDevice(content)
        self.store = open_store(self.device)
        self.model: Contents = {spec.name: UNWRITTEN for spec in specs}
        self.max_sizes = {spec.name: spec.max_size for spec in specs}
        return multiple(*self.model)

    @rule(target=sections, name=names, size=st.integers(0, 5000))
    def register(self, name: str, size: int) -> str:
        try:
            info = self.store.register(name, size)
        except NoSpaceError:
            return name if name in self.model else multiple()  # type: ignore[return-value]
        self.model.setdefault(name, UNWRITTEN)
        self.max_sizes[name] = max(size, self.max_sizes.get(name, 0))
        assert info.max_size == self.max_sizes[name]
        return name

    @rule(name=sections, data=st.data())
    def put(self, name: str, data: st.DataObject) -> None:
        size = data.draw(st.integers(0, self.max_sizes[name]))
        blob = data.draw(st.binary(min_size=min(size, 8), max_size=8)) * (size // 8 + 1)
        self.store.put(name, blob[:size])
        self.model[name] = blob[:size]

    @rule()
    def close_and_reopen(self) -> None:
        self.store.close()
        self.store = open_store(self.device)
        assert self.store.info().clean or self.store.digest().generation == 1

    @rule()
    def kill_and_reopen(self) -> None:
        self.store = open_store(self.device)

    @rule(name=sections, data=st.data())
    def crash_in_a_put(self, name: str, data: st.DataObject) -> None:
        """Go on with any state that the crash may have left."""
        before = self.device.content
        self.device.log.clear()
        old = dict(self.model)
        self.put(name, data)
        states = [
            state.content
            for state in crash_states(before, self.device.log, exhaustive=4, samples=4)
        ]
        content = data.draw(st.sampled_from(states))
        self.device = RecordingDevice(content)
        self.store = open_store(self.device)
        found = contents(self.store)
        assert found in (old, self.model)
        self.model = found

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
            assert self.store.verify().ok
            self.store.close()
            assert open_store(self.device, read_only=True).info().clean


StoreMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestStoreMachine = StoreMachine.TestCase
