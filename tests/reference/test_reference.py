"""The reader of `blobstore` and one written from `spec/` alone, on the output of its writer."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest

from tests.reference.agreement import REFUSED, assert_agree, ours, theirs
from tests.reference.histories import HISTORIES, distinct, do, history, together
from tests.reference.reader import CORRUPT, Reader
from tests.reference.syntax import is_valid_der
from tests.support.devices import Flush, RecordingDevice, crash_states
from tests.support.stores import contents, image, open_store, spec

if TYPE_CHECKING:
    from tests.support.stores import Contents

every_history = pytest.mark.parametrize("name", HISTORIES)
encrypted_or_not = pytest.mark.parametrize("encrypted", [False, True])


# --- What the writer writes --------------------------------------------------------------------


@encrypted_or_not
@pytest.mark.parametrize("block_size", [1 << power for power in range(9, 17)])
def test_fresh_images(block_size: int, encrypted: bool) -> None:
    names = {"n": b"", "ü" * 100: b"x" * 513, "z": b"y" * 70_000}
    specs = [spec(name, len(blob), blob) for name, blob in names.items()]
    for chosen, free in itertools.product(([], specs[:1], specs), (0, 1, 200_000)):
        content = image(chosen, block_size=block_size, free=free, encrypted=encrypted)
        assert is_valid_der(content)
        assert theirs(content) == ours(content) == {s.name: names[s.name] for s in chosen}
        assert theirs(content + bytes(block_size)) == ours(content + b"\xff" * 512)  # C2
        for copy in (0, 1):  # C40: one header copy is enough
            one = bytearray(content)
            one[copy * block_size : (copy + 1) * block_size] = bytes(block_size)
            assert theirs(bytes(one)) == ours(bytes(one)) == ours(content)
        none = bytes(2 * block_size) + content[2 * block_size :]
        assert theirs(none) is ours(none) is REFUSED


@pytest.mark.parametrize("length", range(1, 201))
def test_every_length_of_name(length: int) -> None:
    """C7: the NULL where the padding cannot have the length it needs."""
    content = image([spec("n" * length, 5, b"12345")], encrypted=False)
    assert is_valid_der(content)
    assert theirs(content) == ours(content) == {"n" * length: b"12345"}


@every_history
@encrypted_or_not
def test_states_between_commits_are_der(name: str, encrypted: bool) -> None:
    past = history(name, encrypted=encrypted)
    assert all(map(is_valid_der, past.snapshots))
    assert_agree(past.snapshots)
    # Not only between commits: whenever everything has been flushed.
    for state in crash_states(past.device.before, past.device.log, exhaustive=0, samples=1):
        if isinstance(past.device.log[state.point - 1], Flush) and state.landed == 0:
            assert is_valid_der(state.content[: Reader(state.content).total])  # (C57)


# --- Crashes -----------------------------------------------------------------------------------


@every_history
@encrypted_or_not
def test_every_crash_state_of_a_history(name: str, encrypted: bool) -> None:
    """Also that each step happened or did not (C44), but for puts to single copies (C32)."""
    past = history(name, encrypted=encrypted)
    overwritten = "single" if name == "puts" else "sing" if name.startswith("mixed") else "none"
    seen: dict[bytes, Contents] = {}
    for state in crash_states(past.device.before, past.device.log):
        if state.content not in seen:
            assert_agree([state.content])
            answered = theirs(state.content)
            assert answered is not REFUSED, "a crash lost the store"
            seen[state.content] = answered
        found, done = seen[state.content], len(state.marks)
        torn = {n: b for n, b in found.items() if n.startswith(overwritten) and b == CORRUPT}
        assert found in [{**said, **torn} for said in past.said[done : done + 2] if said]


@every_history
def test_recovery_changes_nothing_that_is_read(name: str) -> None:
    """C60: a reader acts as if recovery had happened, and it may crash as well."""
    past = history(name)
    for content in distinct(crash_states(past.device.before, past.device.log, exhaustive=4)):
        before = theirs(content)
        device = RecordingDevice(content)
        store = open_store(device)
        store.put("last", b"recovered")
        after = contents(store)
        assert theirs(device.content) == after
        assert before is not None
        assert {**before, "last": b"recovered"} == after
        crashed = distinct(crash_states(content, device.log, exhaustive=2, samples=2))
        assert_agree(crashed)
        assert all(theirs(state) in (before, after) for state in crashed)


@pytest.mark.parametrize("copies", [2, 1])
def test_created_with_its_blob(copies: int) -> None:
    """C52, C44: with one copy as with two it is there with all of its blob, or not there."""
    device = RecordingDevice(image([spec("a", 600, b"first")], free=8000))
    store = open_store(device)
    together(do("register", "new", 900, copies=copies), do("put", "new", b"n" * 900))(store)
    for content in distinct(crash_states(device.before, device.log)):
        assert_agree([content])
        assert theirs(content) in ({"a": b"first"}, {"a": b"first", "new": b"n" * 900})
