"""What is open, from one process to another, without a kernel (M61)."""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blobstore.mount import passing
from blobstore.mount.dispatcher import Dispatcher
from formats.errors import DeviceError, FormatError
from formats.fuse.messages import ROOT
from tests.support.mounts import NOBODY, Programs
from tests.support.stores import image, open_store, spec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from blobstore.store.store import Store

SPECS = [spec("a", 700, b"old a"), spec("b", 700, b"old b")]


@pytest.fixture
def store() -> Store:
    return open_store(image(SPECS, free=2 << 20))


def busy(store: Store) -> tuple[Programs, Dispatcher]:
    """Return a directory in which everything is open that can be."""
    programs = Programs(store)
    dispatcher = Dispatcher(programs.tree)
    draft = programs.open("draft", os.O_RDWR | os.O_CREAT, pid=5)
    programs.write(draft, b"draft" * 1000, pid=5)
    replaced = programs.open("a")
    programs.replace("a", b"new a")
    reading = programs.open("b")
    reading.killed = True
    programs.save("x.tmp", b"temporary")
    programs.tree.lookup("b").mode = 0o640
    for number, handle in enumerate((draft, replaced, reading), 10):
        dispatcher.handles[number] = handle
        dispatcher.nodes[handle.file.node] = handle.file
        handle.file.lookups = number
    dispatcher.listings[20] = [(ROOT, 0o40700, b".")]
    dispatcher.last_handle = 20
    programs.tree.directory.root.mode = 0o711
    return programs, dispatcher


@contextmanager
def saved(dispatcher: Dispatcher) -> Iterator[int]:
    descriptor = passing.save(dispatcher)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def test_m61_another_process_knows_the_same(store: Store) -> None:
    before, dispatcher = busy(store)
    after = Programs(store)
    restored = Dispatcher(after.tree)
    with saved(dispatcher) as descriptor:
        passing.restore(restored, descriptor)
    assert restored.listings == dispatcher.listings
    assert restored.last_handle == 20
    assert after.names() == before.names() == {"a", "b", "draft", "x.tmp"}
    for number, handle in dispatcher.handles.items():
        other = restored.handles[number]
        for name in type(handle).PASSED:
            assert getattr(other, name) == getattr(handle, name)
        for name in ("node", "name", "section", "mode", "mtime", "is_draft", "lookups", "length"):
            assert getattr(other.file, name) == getattr(handle.file, name), name
        assert restored.nodes[other.file.node] is other.file
        assert after.tree.contents.read(other.file, 0, 9000) == before.tree.contents.read(
            handle.file, 0, 9000
        )
    draft = restored.handles[10]
    assert draft.opener == 5
    assert after.tree.directory.root.mode == 0o711
    assert after.read("x.tmp") == b"temporary"
    # It goes on as it would have: numbers are not given again, and close commits (M13).
    made = after.tree.create("new", os.O_CREAT, 0o600, NOBODY, 1)
    assert made.file.node > max(one.file.node for one in dispatcher.handles.values())
    after.close(draft, pid=5)
    assert store.get("draft") == b"draft" * 1000


def test_m61_memory_is_counted_as_before(store: Store) -> None:
    before, dispatcher = busy(store)
    after = Programs(store, memory=1 << 14, largest_file=1 << 14)
    with saved(dispatcher) as descriptor:
        passing.restore(Dispatcher(after.tree), descriptor)
    handle = after.create("large")
    with pytest.raises(OSError, match="No space") as caught:
        after.write(handle, bytes((1 << 14) - 5000))
    assert caught.value.errno == errno.ENOSPC
    del before


def broken(data: bytes) -> None:
    """Require that a state is refused, and changes nothing."""
    programs = Programs(open_store(image(SPECS)))
    dispatcher = Dispatcher(programs.tree)
    descriptor = os.memfd_create("broken")
    try:
        os.write(descriptor, data)
        with pytest.raises(FormatError, match="M61"):
            passing.restore(dispatcher, descriptor)
    finally:
        os.close(descriptor)
    assert not dispatcher.handles
    assert dispatcher.nodes.keys() == {ROOT}
    assert not programs.tree.directory.files


def test_m61_a_state_that_is_not_whole_is_refused(store: Store) -> None:
    _, dispatcher = busy(store)
    with saved(dispatcher) as descriptor:
        data = os.pread(descriptor, 1 << 20, 0)
    for size in (*range(0, len(data), 97), len(data) - 1):
        broken(data[:size])


@given(st.binary(max_size=200), st.booleans())
def test_m61_any_bytes_are_refused(data: bytes, sized: bool) -> None:
    broken(len(data).to_bytes(8, "little") + data if sized else data)


@pytest.mark.parametrize("call", ["memfd_create", "fdopen"])
def test_m61_without_memory_nothing_is_passed_on(
    store: Store, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    programs, dispatcher = busy(store)
    descriptors = len(os.listdir("/proc/self/fd"))

    def fails(*_: object, **__: object) -> int:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(os, call, fails)
    with pytest.raises(DeviceError, match="M61"):
        passing.save(dispatcher)
    monkeypatch.undo()
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert programs.read("draft") == b"draft" * 1000
