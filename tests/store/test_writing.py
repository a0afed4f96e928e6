"""The writer that all changes go through: durable, or nothing more is written (C51)."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import pytest

from blobstore.container.durable import ATTEMPTS, PIECE_SIZE, DurableWriter, Span, interrupt_first
from blobstore.errors import PoisonedStoreError
from formats.devices.device import MemoryDevice
from formats.errors import DeviceError
from tests.support.devices import FaultyDevice, Mark, RecordingDevice, Write
from tests.support.stores import open_store
from tests.support.windows import manual_alarms, window_image

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.devices import Operation

SIZE = 4096
SPAN = Span(512, (b"first", b"second"), 1024)


def writing(operation: Operation, number: int, *, persistent: bool = True) -> DurableWriter:
    memory = MemoryDevice(SIZE)
    return DurableWriter(FaultyDevice(memory, operation, number, persistent=persistent))


@pytest.mark.parametrize("length", [11, 512, PIECE_SIZE, PIECE_SIZE + 1, 3 * PIECE_SIZE + 77])
@pytest.mark.parametrize("first", [0, 1, PIECE_SIZE - 1, PIECE_SIZE, PIECE_SIZE + 5])
def test_a_span_is_its_parts_then_zeros_in_pieces(first: int, length: int) -> None:
    start = b"abcdefg" * (first // 7 + 1)
    parts: tuple[bytes, ...] = (start[:first], b"!", b"", b"end")
    if first + 4 > length:
        parts = (start[:length],)
    span = Span(1000, parts, length)
    pieces = list(span.pieces())
    assert b"".join(piece for _, piece in pieces) == b"".join(parts).ljust(length, b"\0")
    assert [at for at, _ in pieces] == list(range(1000, 1000 + length, PIECE_SIZE))
    assert all(len(piece) == PIECE_SIZE for _, piece in pieces[:-1])


def test_c51_what_is_written_is_flushed() -> None:
    device = RecordingDevice(SIZE)
    writer = DurableWriter(device)
    writer.write([SPAN])
    assert [type(event).__name__ for event in device.log] == ["Write", "Flush"]
    assert device.log[0] == Write(512, b"firstsecond".ljust(1024, b"\0"))
    assert not writer.poisoned
    assert not writer.unflushed


@pytest.mark.parametrize("operation", ["write", "flush"])
def test_c51_the_first_failure_is_repeated_and_the_second_is_the_end(operation: Operation) -> None:
    writer = writing(operation, 1, persistent=False)
    writer.write([SPAN])
    assert not writer.poisoned
    writer = writing(operation, 1)
    with pytest.raises(DeviceError, match=f"{operation} {ATTEMPTS} fails"):
        writer.write([SPAN])
    assert writer.poisoned


def _write_in_place(writer: DurableWriter) -> None:
    writer.write_in_place(0, b"x")


@pytest.mark.parametrize(
    "call",
    [
        lambda writer: writer.write([SPAN]),
        lambda writer: writer.write(),
        _write_in_place,
        lambda writer: writer.require_sound(),
    ],
)
@pytest.mark.parametrize(
    "fail",
    [
        lambda writer: writer.write([SPAN]),
        lambda writer: writer.write(),
        _write_in_place,
    ],
)
def test_c51_after_a_failure_nothing_is_written(
    fail: Callable[[DurableWriter], None], call: Callable[[DurableWriter], None]
) -> None:
    memory = MemoryDevice(SIZE)
    operation: Operation = "write" if fail is _write_in_place else "flush"
    device = FaultyDevice(memory, operation, 1, persistent=True)
    writer = DurableWriter(device)
    with pytest.raises(DeviceError, match="injected"):
        fail(writer)
    assert writer.poisoned
    content, counts = bytes(memory.content), dict(device.counts)
    with pytest.raises(PoisonedStoreError, match="injected"):
        call(writer)
    assert (bytes(memory.content), device.counts) == (content, counts)


def test_c51_what_is_in_place_is_flushed_by_the_next_write() -> None:
    device = RecordingDevice(SIZE)
    writer = DurableWriter(device)
    writer.write_in_place(7, b"in place")
    assert device.log == [Write(7, b"in place")]
    assert writer.unflushed
    writer.write()
    assert device.flushes == 1
    assert not writer.unflushed


def test_c51_what_is_not_kept_is_not_flushed_by_a_second_attempt() -> None:
    writer = writing("flush", 1, persistent=False)
    writer.write_in_place(0, b"x")
    with pytest.raises(DeviceError, match="flush 1 fails"):
        writer.write([SPAN])
    assert writer.poisoned


class Interrupted(BaseException):
    """Nothing that a storage layer knows."""


@pytest.mark.parametrize("call", [lambda writer: writer.write([SPAN]), _write_in_place])
def test_c63_an_interrupt_in_a_write_leaves_it_in_doubt(
    call: Callable[[DurableWriter], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    device = RecordingDevice(SIZE)
    writer = DurableWriter(device)

    def interrupt(_offset: int, _data: bytes) -> None:
        raise Interrupted

    with monkeypatch.context() as patched:
        patched.setattr(device, "write", interrupt)
        with pytest.raises(Interrupted):
            call(writer)
    assert writer.poisoned
    with pytest.raises(PoisonedStoreError, match="was interrupted"):
        writer.write([SPAN])
    assert device.log == []


def test_c63_memory_follows_what_is_durable() -> None:
    device = RecordingDevice(SIZE)
    writer = DurableWriter(device)
    writer.write([SPAN], lambda: device.mark("followed"), ["a"])
    assert [type(event).__name__ for event in device.log] == ["Write", "Flush", "Mark"]
    writer.require_sound()
    writer.settle()
    assert len(device.log) == 3
    assert writer.in_doubt == ()


@pytest.mark.parametrize(
    "call",
    [
        lambda writer: writer.settle(),
        lambda writer: writer.require_sound(),
        lambda writer: writer.write(),
        lambda writer: writer.write_free([]),
        _write_in_place,
    ],
)
def test_c63_memory_follows_before_anything_else_after_an_interrupt(
    call: Callable[[DurableWriter], None],
) -> None:
    device = RecordingDevice(SIZE)
    writer = DurableWriter(device)

    def follow() -> None:
        device.mark("followed")
        if len(device.log) == 3:
            raise Interrupted

    with pytest.raises(Interrupted):
        writer.write([SPAN], follow)
    assert not writer.poisoned
    call(writer)
    assert [type(event).__name__ for event in device.log[:4]] == ["Write", "Flush", "Mark", "Mark"]
    assert not any(isinstance(event, Mark) for event in device.log[4:])


def test_c63_the_names_of_a_step_are_in_doubt_until_it_is_durable() -> None:
    writer = writing("flush", 1)
    with pytest.raises(DeviceError):
        writer.write([SPAN], names=["a", "b"])
    assert list(writer.in_doubt) == ["a", "b"]


def test_c63_memory_does_not_follow_what_failed() -> None:
    followed: list[str] = []
    writer = writing("flush", 1)
    with pytest.raises(DeviceError):
        writer.write([SPAN], lambda: followed.append("at once"))
    writer.settle()
    assert followed == []


@pytest.mark.parametrize("operation", ["write", "flush"])
def test_c57_free_space_that_cannot_be_written_leaves_nothing_in_doubt(
    operation: Operation,
) -> None:
    memory = MemoryDevice(SIZE)
    writer = DurableWriter(FaultyDevice(memory, operation, 1, persistent=True))
    with pytest.raises(DeviceError, match=f"{operation} {ATTEMPTS} fails"):
        writer.write_free([SPAN])
    assert not writer.poisoned
    device = RecordingDevice(SIZE)
    writer = DurableWriter(device)
    writer.write_free([SPAN])
    assert [type(event).__name__ for event in device.log] == ["Write", "Flush"]


def test_c57_free_space_is_not_written_when_something_is_in_doubt() -> None:
    device = FaultyDevice(MemoryDevice(SIZE), "flush", 1)
    writer = DurableWriter(device)
    with pytest.raises(DeviceError):
        writer.write()
    counts = dict(device.counts)
    with pytest.raises(PoisonedStoreError):
        writer.write_free([SPAN])
    assert device.counts == counts


def test_c51_what_is_in_place_is_flushed_before_free_space_is_written() -> None:
    """For a flush for the free space may fail, and that must not be forgotten."""
    device = RecordingDevice(SIZE)
    writer = DurableWriter(device)
    writer.write_in_place(0, b"x")
    writer.write_free([SPAN])
    kinds = [type(event).__name__ for event in device.log]
    assert kinds == ["Write", "Flush", "Write", "Flush"]
    assert not writer.unflushed
    writer = writing("flush", 1)
    writer.write_in_place(0, b"x")
    with pytest.raises(DeviceError, match="flush 1 fails"):
        writer.write_free([SPAN])
    assert writer.poisoned


@pytest.mark.parametrize(
    ("ending", "closing", "raised"),
    [
        (KeyboardInterrupt(), PoisonedStoreError("interrupted"), None),
        (None, PoisonedStoreError("failed"), PoisonedStoreError),
        (ValueError("wrong"), PoisonedStoreError("failed"), PoisonedStoreError),
        (KeyboardInterrupt(), ValueError("not of a storage"), ValueError),
    ],
)
def test_an_interrupt_is_not_replaced_by_what_closing_makes_of_it(
    ending: BaseException | None, closing: Exception, raised: type[Exception] | None
) -> None:
    with nullcontext() if raised is None else pytest.raises(raised), interrupt_first(ending):
        raise closing


def test_c51_a_window_in_place_tells_of_a_write_that_failed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And from then on nothing is written, by the window or the store."""
    manual_alarms(monkeypatch)
    size = 5000
    counting = FaultyDevice(MemoryDevice(window_image(size, bytes(size))), "write", 10**9)
    open_store(counting).window("w", in_place=True)
    memory = MemoryDevice(window_image(size, bytes(size)))
    device = FaultyDevice(memory, "write", counting.counts["write"] + 1)
    store = open_store(device)
    window = store.window("w", in_place=True)
    with pytest.raises(DeviceError, match="injected"):
        window.write(0, b"text")
    content, counts = bytes(memory.content), dict(device.counts)
    changes: list[Callable[[], object]] = [
        lambda: window.write(0, b"text"),
        window.flush,
        window.close,
        lambda: store.put("b", b"new"),
    ]
    for change in changes:
        with pytest.raises(PoisonedStoreError):
            change()
    store.close()
    assert bytes(memory.content) == content
    assert device.counts["write"] == counts["write"]
