"""What counts: details of the directory that whole stores seldom show (C42 to C49)."""

from __future__ import annotations

import pytest

from blobstore.container.directory import Directory
from blobstore.container.open_container import open_container
from blobstore.container.sections import Section
from blobstore.errors import DamagedHeadError
from formats.container.model import State
from formats.devices.device import MemoryDevice
from tests.support.devices import Flush, RecordingDevice, Write
from tests.support.stores import image, open_store, spec


def empty_directory() -> Directory:
    return Directory(
        sections={},
        free={},
        generation=1,
        rolled_back=None,
        state=0,
        root=None,
        fresh=True,
        clean=True,
    )


def test_c63_an_extent_is_left_over_once_however_often_that_is_noted() -> None:
    """Memory follows a step again if the first time was interrupted."""
    directory = empty_directory()
    first, second = Section([None]), Section([None])  # equal, but not the same
    for _ in range(2):
        directory.leave_over(first)
        directory.leave_over(second)
    assert list(map(id, directory.left_over)) == [id(first), id(second)]
    for _ in range(2):
        directory.take_up(first)
    assert list(map(id, directory.left_over)) == [id(second)]


def deleted() -> bytes:
    """Return a store that was cut off when the tombstone of "x" was durable, and no more."""
    device = RecordingDevice(image([spec("x", 100), spec("y", 100)], free=1024))
    store = open_store(device)
    for number in range(2):
        store.put("x", b"x%d" % number)
    content, start = bytearray(device.content), len(device.log)
    store.delete("x")
    for event in device.log[start : device.log.index(Flush(), start)]:
        assert isinstance(event, Write)
        content[event.offset : event.offset + len(event.data)] = event.data
    return bytes(content)


def test_c46_what_was_deleted_is_left_over_until_a_writer_releases_it() -> None:
    device = MemoryDevice(deleted())
    directory = open_container(device).directory
    (extent,) = directory.left_over
    assert extent.newest.version.state is State.TOMBSTONE
    assert list(directory.sections) == ["y"]
    with open_store(device) as store:
        assert list(store) == ["y"]
    directory = open_container(device).directory
    assert directory.left_over == []
    assert extent.place[0] in directory.free


def test_c43_a_tombstone_beside_a_damaged_head_proves_no_absence() -> None:
    """There may have been a newer record: the section is known, and cannot be read."""
    content = bytearray(deleted())
    (extent,) = open_container(MemoryDevice(content)).directory.left_over
    older = extent.older.offset
    content[older : older + 512] = bytes(512)
    directory = open_container(MemoryDevice(content)).directory
    assert directory.sections["x"].damage is not None
    assert directory.left_over == []
    store = open_store(bytes(content), read_only=True)
    with pytest.raises(DamagedHeadError):
        store.get("x")
    assert [section.name for section in store.sections(allow_damaged=True)] == ["x", "y"]
