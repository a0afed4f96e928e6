"""A state machine drives a window against a bytearray: writes, pauses, kills, crashes (C62)."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from blobstore.errors import CorruptBlobError, UnwrittenBlobError
from tests.support.devices import RecordingDevice, crash_states
from tests.support.stores import open_store
from tests.support.windows import ManualAlarm, manual_alarms, window_image

buffered = precondition(lambda self: not self.window.in_place)


class WindowMachine(RuleBasedStateMachine):
    """It holds what the bytearray holds; the store has what was committed."""

    @initialize(
        block_size=st.sampled_from((512, 4096)),
        size=st.integers(1, 10_000),
        start=st.none() | st.integers(0, 10_000),
        in_place=st.booleans(),
    )
    def make(self, block_size: int, size: int, start: int | None, in_place: bool) -> None:
        self.patch = pytest.MonkeyPatch()
        self.alarms: list[ManualAlarm] = manual_alarms(self.patch)
        content = None if start is None else b"\x07" * min(start, size)
        self.size = size
        self.committed: bytes | None = content
        self.model = bytearray((content or b"").ljust(size, b"\0"))
        #: Since the last commit; what was never written is written even by zeros.
        self.written = False
        self.device = RecordingDevice(window_image(size, content, block_size=block_size))
        self.store = open_store(self.device)
        self._open(in_place=in_place)

    def _open(self, *, in_place: bool, accept_unverified: bool = False) -> None:
        self.window = self.store.window(
            "w", in_place=in_place, accept_unverified=accept_unverified, idle=1, longest=3
        )
        if in_place:
            self.committed = None

    # ------------------------------------------------------------- writes

    @rule(data=st.data(), fua=st.booleans())
    def write(self, data: st.DataObject, fua: bool) -> None:
        offset = data.draw(st.integers(0, self.size))
        length = data.draw(st.integers(0, min(self.size - offset, 1500)))
        value = data.draw(st.binary(min_size=1, max_size=3))
        text = (value * length)[:length]
        self.window.write(offset, text, fua=fua)
        self._note(offset, text)
        if fua:
            self._note_commit()

    @rule(data=st.data())
    def discard(self, data: st.DataObject) -> None:
        offset = data.draw(st.integers(0, self.size))
        length = data.draw(st.integers(0, self.size - offset))
        self.window.discard(offset, length)
        self._note(offset, bytes(length))

    @rule()
    def write_it_all_again(self) -> None:
        self.window.write(0, self.model)
        self._note(0, bytes(self.model))

    @rule()
    def flush(self) -> None:
        self.window.flush()
        self._note_commit()

    @buffered
    @rule(seconds=st.sampled_from((0.5, 1)))
    def time_passes(self, seconds: float) -> None:
        generation = self.store.info().generation
        left = self.alarms[-1].advance(seconds)
        if seconds == 1 or self.store.info().generation > generation:
            assert left is None
            self._note_commit()

    @rule(blob=st.binary(max_size=100))
    def put_elsewhere(self, blob: bytes) -> None:
        self.store.put("b", blob)
        assert self.store.get("b") == blob

    # --------------------------------------------------------------- ends

    @rule(in_place=st.booleans())
    def close_and_open(self, in_place: bool) -> None:
        self.window.close()
        if self.window.in_place or self.written:
            self.committed = bytes(self.model)
        self.written = False
        if self.committed is None:
            with pytest.raises(UnwrittenBlobError):
                self.store.get("w")
        else:
            assert self.store.get("w").ljust(self.size, b"\0") == self.model
        self._open(in_place=in_place)

    @rule(in_place=st.booleans(), close=st.booleans())
    def reopen_the_store(self, in_place: bool, close: bool) -> None:
        """Closing commits; killing loses what was not committed, but in place."""
        was_in_place = self.window.in_place
        if close:
            self.store.close()
            if was_in_place or self.written:
                self.committed = bytes(self.model)
        elif not was_in_place:
            self.model = bytearray((self.committed or b"").ljust(self.size, b"\0"))
        self.written = False
        self.store = open_store(self.device)
        unverified = was_in_place and not close
        if unverified:
            with pytest.raises(CorruptBlobError):
                self.store.window("w")
        self._open(in_place=in_place, accept_unverified=unverified)
        if unverified and not in_place:
            self.flush()
            self.committed = bytes(self.model)

    @buffered
    @rule(data=st.data())
    def crash_in_a_commit(self, data: st.DataObject) -> None:
        before = self.device.content
        self.device.log.clear()
        old = (self.committed or b"").ljust(self.size, b"\0")
        self.write(data, fua=True)
        new = bytes(self.model)
        states = [
            state.content
            for state in crash_states(before, self.device.log, exhaustive=4, samples=4)
        ]
        self.device = RecordingDevice(data.draw(st.sampled_from(states)))
        self.store = open_store(self.device)
        self._open(in_place=False)
        found = self.window.read(0, self.size)
        assert found in (old, new)
        self.model[:] = found
        try:
            self.committed = self.store.get("w")
        except UnwrittenBlobError:
            self.committed = None

    @precondition(lambda self: hasattr(self, "store"))
    @invariant()
    def it_holds_what_the_model_holds(self) -> None:
        self.device.log.clear()
        assert self.window.read(0, self.size) == self.model
        if self.window.in_place:
            with pytest.raises(CorruptBlobError):
                self.store.get("w")
        elif self.committed is None:
            with pytest.raises(UnwrittenBlobError):
                self.store.get("w")
        else:
            assert self.store.get("w") == self.committed
            assert self.store.verify().ok

    def teardown(self) -> None:
        if not hasattr(self, "store"):
            return
        self.store.close()
        reader = open_store(self.device, read_only=True)
        assert reader.verify().ok
        assert reader.info().clean
        assert reader.window("w").read(0, self.size) == self.model
        self.patch.undo()

    # ------------------------------------------------------------ internal

    def _note(self, offset: int, data: bytes) -> None:
        if self.model[offset : offset + len(data)] != data or (data and self.committed is None):
            self.written = True
        self.model[offset : offset + len(data)] = data

    def _note_commit(self) -> None:
        if self.window.in_place:
            return
        if self.written:
            self.committed = bytes(self.model)
        self.written = False


WindowMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestWindowMachine = WindowMachine.TestCase
