"""Windows: sections that are written like disks (C62)."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

import blobstore
from blobstore.container.commit import Change, commit
from blobstore.errors import (
    BlobNotFoundError,
    CorruptBlobError,
    DamagedHeadError,
    SectionMismatchError,
    UnwrittenBlobError,
)
from formats.container.model import Kind
from formats.errors import ReadOnlyError
from tests.support.devices import RecordingDevice
from tests.support.stores import image, open_store, spec
from tests.support.windows import manual_alarms, window_image, window_spec, written_bytes

if TYPE_CHECKING:
    from pathlib import Path

SIZE = 5000


@pytest.fixture(autouse=True)
def _no_time_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What time does is in `test_window_time`."""
    manual_alarms(monkeypatch)


@pytest.fixture
def device() -> RecordingDevice:
    return RecordingDevice(window_image(SIZE))


# ------------------------------------------------------------ what it shows


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 1000, 3584, 131_071])
def test_c62_its_size_is_exact_to_the_byte(size: int, in_place: bool) -> None:
    store = open_store(window_image(size, block_size=4096))
    with store.window("w", in_place=in_place) as window:
        assert window.size == size
        content = random.Random(size).randbytes(size)
        window.write(0, content)
        window.flush()
        assert window.read(0, size) == content
        with pytest.raises(ValueError, match="outside"):
            window.write(size, b"x")
        with pytest.raises(ValueError, match="outside"):
            window.read(size, 1)
        if size:
            window.write(size - 1, b"!")
            content = content[:-1] + b"!"
    if size or in_place:
        assert store.get("w") == content
    store.close()


def test_c62_what_is_behind_the_blob_is_zeros() -> None:
    store = open_store(window_image(SIZE, b"blob"))
    with store.window("w") as window:
        assert window.read(0, SIZE) == b"blob".ljust(SIZE, b"\0")
    assert store.get("w") == b"blob"
    with store.window("w") as window:
        window.write(4, b"!")
    assert store.get("w") == b"blob!".ljust(SIZE, b"\0")


@pytest.mark.parametrize("in_place", [False, True])
def test_c62_fill_behind_a_shorter_blob_never_shows(
    device: RecordingDevice, in_place: bool
) -> None:
    store = open_store(device)
    store.put("w", b"\xaa" * SIZE)
    store.put("w", b"\xbb" * SIZE)
    store.put("w", b"short")
    with store.window("w", in_place=in_place) as window:
        assert window.read(0, SIZE) == b"short".ljust(SIZE, b"\0")
    with store.window("w") as window:
        for number in range(4):
            window.write(0, bytes([number]))
            window.flush()
            assert store.get("w") == bytes([number]) + b"hort".ljust(SIZE - 1, b"\0")
    assert store.verify().ok


def test_an_unwritten_window_reads_as_zeros_and_stays_unwritten(device: RecordingDevice) -> None:
    store = open_store(device)
    device.log.clear()
    with store.window("w") as window:
        assert window.read(0, SIZE) == bytes(SIZE)
        window.flush()
        window.write(10, b"")
        window.discard(10, 0)
    assert not device.log
    with pytest.raises(UnwrittenBlobError):
        store.get("w")


@pytest.mark.parametrize("discard", [False, True])
def test_zeros_written_to_an_unwritten_window_count(discard: bool) -> None:
    store = open_store(window_image(SIZE))
    with store.window("w") as window:
        if discard:
            window.discard(0, SIZE)
        else:
            window.write(0, bytes(10))
    assert store.get("w") == bytes(SIZE)


def test_others_see_what_was_committed(device: RecordingDevice) -> None:
    store = open_store(device)
    with store.window("w") as window:
        window.write(0, b"one")
        window.flush()
        window.write(0, b"two")
        one = b"one".ljust(SIZE, b"\0")
        assert store.get("w") == one
        reader = open_store(device.content, read_only=True)
        assert reader.get("w") == one
        assert reader.verify().ok
        assert window.read(0, 3) == b"two"
    assert store.get("w")[:3] == b"two"


# ------------------------------------------------------------- what commits


def test_c62_a_flush_is_one_commit_with_one_flush(device: RecordingDevice) -> None:
    store = open_store(device)
    generation = store.info().generation
    window = store.window("w")
    device.log.clear()
    for number in range(50):
        window.write(number * 100, bytes([number + 1]) * 100)
    assert not device.log
    window.flush()
    assert device.flushes == 1
    assert store.info().generation == generation + 1
    window.flush()
    assert device.flushes == 1
    store.close()


def test_fua_is_durable_with_everything_before_it(device: RecordingDevice) -> None:
    window = open_store(device).window("w")
    window.write(0, b"before")
    window.write(3000, b"forced", fua=True)
    found = open_store(device.content, read_only=True).get("w")
    assert (found[:6], found[3000:3006]) == (b"before", b"forced")


def test_c62_a_commit_writes_the_blocks_that_differ_and_the_first() -> None:
    """The older copy lacks what changed in the last commit as well."""
    size = 100 << 10
    device = RecordingDevice(window_image(size, bytes(size), block_size=4096))
    store = open_store(device)
    window = store.window("w")
    written_bytes(device)
    whole = 26 * 4096

    def commit(*offsets: int) -> int:
        for offset in offsets:
            window.write(offset, random.Random(offset).randbytes(10))
        window.flush()
        assert open_store(device.content, read_only=True).get("w") == window.read(0, size)
        return written_bytes(device)

    assert commit(50_000) == whole  # of the older copy nothing is known
    assert commit(70_000) == 3 * 4096
    assert commit(0) == 2 * 4096
    window.write(1, b"other")
    assert commit() == 4096
    assert commit(8000) == 2 * 4096
    window.write(11_700, b"crosses a boundary".center(400))
    window.write(20_000, b"!")
    assert commit() == 4 * 4096  # 0, 2, 3 and 5
    assert commit(20_001) == 4 * 4096
    store.put("b", b"another section")
    written_bytes(device)
    assert commit(20_002) == 2 * 4096
    store.close()
    assert open_store(device).verify().ok


@pytest.mark.parametrize("times", [1, 2, 3])
def test_c62_nothing_is_left_out_of_a_copy_that_others_wrote(
    device: RecordingDevice, times: int
) -> None:
    """Whatever may have been committed behind the window's back."""
    store = open_store(device)
    window = store.window("w")
    for number in (1, 2):
        window.write(0, bytes([number]))
        window.flush()
    section = store._session.lookup.find("w")
    for number in range(times):
        blob = bytes([99 + number]) * SIZE
        change = Change(section, "w", blob=blob, replaces=section)
        commit(store._session.container, [change])
    for number in (3, 4, 5):
        window.write(0, bytes([number]))
        window.flush()
        expected = bytes([number]).ljust(SIZE, b"\0")
        assert open_store(device.content, read_only=True).get("w") == expected
    assert store.verify().ok


def test_what_is_written_again_is_not_committed(device: RecordingDevice) -> None:
    """An at24c device writes its whole array at the end of each transfer."""
    store = open_store(device)
    array = random.Random(1).randbytes(SIZE)
    store.put("w", array)
    window = store.window("w")
    device.log.clear()
    window.write(0, array)
    window.flush()
    assert not device.log
    window.write(0, array, fua=True)
    assert not device.log
    window.write(0, b"?" + array[1:], fua=True)
    device.log.clear()
    window.write(0, b"?" + array[1:-1] + b"!")
    window.flush()
    assert written_bytes(device) == 3 * 512  # the head, what changed before, and now


def test_what_is_written_again_is_not_committed_in_a_new_window(device: RecordingDevice) -> None:
    window = open_store(device).window("w")
    window.write(0, bytes(100), fua=True)
    device.log.clear()
    window.write(0, bytes(SIZE), fua=True)
    assert not device.log


def test_closing_the_store_commits_its_windows(device: RecordingDevice) -> None:
    with open_store(device) as store:
        window = store.window("w")
        window.write(0, b"text")
    reopened = open_store(device, read_only=True)
    assert reopened.get("w")[:4] == b"text"
    assert reopened.info().clean
    for call in (window.flush, lambda: window.read(0, 1), lambda: window.write(0, b"x")):
        with pytest.raises(ValueError, match="closed"):
            call()
    window.close()


def test_a_backup_has_what_was_committed(tmp_path: Path) -> None:
    path, copy = tmp_path / "image", tmp_path / "copy"
    path.write_bytes(image([window_spec("w", SIZE), window_spec("p", SIZE)], encrypted=False))
    with blobstore.open(path, direct=True) as store:
        window, in_place = store.window("w"), store.window("p", in_place=True)
        window.write(0, b"one", fua=True)
        window.write(0, b"two")
        in_place.write(0, b"unverified", fua=True)
        blobstore.backup(path, copy)
        with blobstore.open(copy, direct=True) as backup:
            assert backup.get("w") == b"one".ljust(SIZE, b"\0")
            assert backup.get("p", previous=True) == bytes(SIZE)
            with pytest.raises(CorruptBlobError, match="C62"):
                backup.get("p")
    with blobstore.open(path, direct=True) as store:
        assert store.get("w")[:3] == b"two"
        assert store.get("p")[:10] == b"unverified"


# ------------------------------------------------------------- who may not


def test_only_windows_have_windows(device: RecordingDevice) -> None:
    store = open_store(device)
    with pytest.raises(SectionMismatchError):
        store.window("b")
    with pytest.raises(BlobNotFoundError):
        store.window("unknown")


def test_a_section_has_one_window_and_is_changed_through_it(device: RecordingDevice) -> None:
    store = open_store(device)
    store.put("w", b"put")
    store.put("w", b"put")

    def in_transaction() -> None:
        with store.transaction() as changes:
            changes.put("b", b"not written either")
            changes.put("w", b"x")

    window = store.window("w")
    window.write(0, b"P")
    for change in (
        lambda: store.window("w"),
        lambda: store.window("w", in_place=True),
        lambda: store.put("w", b"x"),
        lambda: store.restore("w"),
        lambda: store.delete("w"),
        lambda: store.rename("w", "z"),
        lambda: store.resize("w", SIZE + 1),
        lambda: store.register("w", SIZE * 2, "window"),
        in_transaction,
    ):
        with pytest.raises(ValueError, match="open window"):
            change()
    assert store.get("b") == b"b"
    assert store.register("w", SIZE, "window").max_size == SIZE
    with store.transaction() as changes:
        assert changes.get("w") == b"put"
        changes.rename("b", "c")
    window.close()
    assert store.get("w") == b"Put".ljust(SIZE, b"\0")
    store.rename("w", "z")
    assert store.window("z").read(0, 3) == b"Put"


def test_in_a_transaction_nothing_else_commits(device: RecordingDevice) -> None:
    store = open_store(device)
    window = store.window("w")
    with store.transaction() as changes:
        changes.put("b", b"new")
        window.write(0, b"text")
        for call in (
            window.flush,
            window.close,
            lambda: window.write(0, b"T", fua=True),
        ):
            with pytest.raises(ValueError, match="under way"):
                call()
    assert store.get("b") == b"new"
    window.close()
    assert store.get("w")[:4] == b"Text"


def test_a_store_open_for_reading_has_windows_for_reading(device: RecordingDevice) -> None:
    with open_store(device) as store:
        store.put("w", b"text")
    store = open_store(device, read_only=True)
    device.log.clear()
    for in_place in (False, True):
        with store.window("w", in_place=in_place) as window:
            assert window.read_only
            assert window.read(0, 5) == b"text\0"
            with pytest.raises(ReadOnlyError):
                window.write(0, b"")
            with pytest.raises(ReadOnlyError):
                window.discard(0, 1)
            window.flush()
    store.close()
    assert not device.log


def test_c32_a_section_of_one_copy_is_only_read() -> None:
    store = open_store(image([spec("w", 100, b"text", kind=Kind.WINDOW, copies=1)]))
    with store.window("w") as window:
        assert window.read(0, 4) == b"text"
        with pytest.raises(ReadOnlyError):
            window.write(0, b"x")
    with pytest.raises(SectionMismatchError, match="one copy"):
        store.window("w", in_place=True)


@pytest.mark.parametrize("in_place", [False, True])
def test_c61_around_a_damaged_head_nothing_is_written(in_place: bool) -> None:
    content = bytearray(image([window_spec("w", 100, b"text"), spec("b", 100, b"b")]))
    content[-512 * 4 : -512 * 3] = b"\xff" * 512  # the head of b's newest copy
    with pytest.raises(DamagedHeadError):
        open_store(bytes(content)).window("w")  # it may be older than it was (C67)
    store = open_store(bytes(content), allow_damaged=True)
    if in_place:
        with pytest.raises(DamagedHeadError):
            store.window("w", in_place=True)
        return
    window = store.window("w")
    assert window.read(0, 4) == b"text"
    with pytest.raises(DamagedHeadError):
        window.write(0, b"x")
    store.close()


def test_c23_what_does_not_verify_has_no_window(device: RecordingDevice) -> None:
    store = open_store(device)
    store.put("w", b"text" * 1000)
    store.close()
    content = bytearray(device.content)
    content[content.index(b"texttext")] ^= 1
    for unverified in (False, True):
        with pytest.raises(CorruptBlobError, match="C23"):
            open_store(bytes(content)).window("w", accept_unverified=unverified)
